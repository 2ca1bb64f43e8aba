"""The keeper as a process: one a cluster, started as nobody's child, ended by pid and start time."""

import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from grid_agent.edges import keeper
from tests.support.cluster import ROOT, until

STAND_IN = """
import sys, time
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from grid_agent.edges import keeper
files = keeper.Files(Path(sys.argv[2]))
if keeper.own(files) is None:
    sys.exit(5)
files.beat.touch()
time.sleep(600)
"""


@pytest.fixture
def files(tmp_path: Path) -> Iterator[keeper.Files]:
    made = keeper.Files(tmp_path)
    (tmp_path / "stopped").mkdir()
    how = {
        "argv": [sys.executable, "-c", STAND_IN, str(ROOT), str(tmp_path)],
        "env": {"PATH": os.environ["PATH"]},
        "cwd": "/",
    }
    made.plan.write_text(json.dumps({"head": "h", "keeper": how}))
    yield made
    keeper.end(made)


def test_it_is_started_once_and_is_nobodys_child(files: keeper.Files) -> None:
    assert "started" in (keeper.ensure(files) or "")
    pid, _ = until(lambda: (there := keeper.running(files)) and there != (0, 0) and there, 20)
    assert keeper.ensure(files) is None
    stat = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    assert int(stat[1]) != os.getpid()
    assert int(stat[3]) != os.getsid(0)
    targets = {str(Path(f"/proc/{pid}/fd/{number}").readlink()) for number in (0, 1, 2)}
    assert targets == {"/dev/null"}


def test_a_second_one_goes_at_once(files: keeper.Files) -> None:
    mine = keeper.own(files)
    assert mine is not None
    assert keeper.own(files) is None
    os.close(mine)
    assert keeper.running(files) is None


def test_a_killed_one_is_replaced_and_a_hung_one_too(files: keeper.Files) -> None:
    keeper.ensure(files)
    first = until(lambda: (there := keeper.running(files)) and there != (0, 0) and there, 20)
    os.kill(first[0], signal.SIGKILL)
    until(lambda: keeper.running(files) is None, 5)
    assert "started" in (keeper.ensure(files) or "")
    second = until(lambda: (there := keeper.running(files)) and there != (0, 0) and there, 20)
    assert second != first
    until(files.beat.exists, 5)
    os.kill(second[0], signal.SIGSTOP)
    assert keeper.ensure(files) is None  # it may only be busy
    assert "hung" in (keeper.ensure(files, time.time() + keeper.STALE_S + 1) or "")
    third = until(lambda: (there := keeper.running(files)) and there != (0, 0) and there, 20)
    assert third != second


def test_none_for_a_head_that_a_person_stopped_or_that_nobody_started(files: keeper.Files) -> None:
    files.stopped("h").touch()
    assert keeper.ensure(files) is None
    files.stopped("h").unlink()
    files.plan.unlink()
    assert keeper.ensure(files) is None
    assert keeper.running(files) is None


def test_the_end_is_for_exactly_this_process(files: keeper.Files) -> None:
    assert keeper.end(files)  # nobody there
    keeper.ensure(files)
    pid, start = until(lambda: (there := keeper.running(files)) and there != (0, 0) and there, 20)
    files.lock.write_text(f"{pid} {start + 1}\n")  # another process of that number
    assert keeper.end(files)
    assert Path(f"/proc/{pid}").exists()
    files.lock.write_text(f"{pid} {start}\n")
    assert keeper.end(files)
    assert keeper.running(files) is None


def test_a_turn_is_for_one(files: keeper.Files) -> None:
    with keeper.turn(files) as mine:
        assert mine
        assert files.turn.read_text().strip() == str(os.getpid())
        with keeper.turn(files) as other:
            assert not other
    with keeper.turn(files) as again:
        assert again
