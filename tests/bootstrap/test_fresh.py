"""`start.py --fresh`: on a dead head, after a word, stronger than the keeper; never over one that lives."""

import io
import json
import os
import socket
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from bootstrap import bring_up, machine, state, store
from bootstrap.carry_out import Start
from bootstrap.plan import Action
from bootstrap.progress import Output
from bootstrap.reach import Raylet
from bootstrap.survey import Survey, survey
from config import loader
from config.paths import StatePaths
from grid_agent.edges import keeper
from tests.support.cluster import ROOT, Cluster, until

# A keeper in name only: it holds the lock and does nothing.
IDLE = """
import sys, time
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from grid_agent.edges import keeper
handle = keeper.own(keeper.Files(Path(sys.argv[2])))
time.sleep(600)
"""


class Dead:
    """A cluster whose head is dead, with a store to go on from and a keeper that lives."""

    def __init__(self) -> None:
        self.cluster = Cluster(workers=1)
        self.files = keeper.Files(self.cluster.folder)
        self.paths = StatePaths(self.cluster.folder)
        state.prepare(self.paths)
        self.settings = loader.load(str(self.cluster.file), {})
        here = machine.here(self.settings, self.cluster.environ())
        store.prepare(self.paths.gcs, store.owner(self.cluster.name, here.gcs_address))
        (self.paths.gcs / "store" / "session_name").write_text("session_of_before\n")
        how = {
            "argv": [sys.executable, "-c", IDLE, str(ROOT), str(self.files.root)],
            "env": {"PATH": os.environ["PATH"]},
            "cwd": "/",
        }
        self.files.plan.write_text(json.dumps({"head": "head", "keeper": how}))
        keeper.spawn(how)
        self.keeper = until(self.cluster.keeper, 20)

    def looks(self, *, fresh: bool = True) -> Survey:
        return survey(self.settings, os.environ, fresh=fresh)

    def begin(self) -> tuple[int, str]:
        """`--fresh --yes` in this process: the exit code, and what was said."""
        said = io.StringIO()
        code = bring_up.bring_up(
            self.settings,
            Output(said, said),
            config=str(self.cluster.file),
            timeout_s=20,
            redeploy=False,
            fresh=True,
            yes=True,
        )
        return code, said.getvalue()

    def untouched(self) -> bool:
        """Nothing of the old cluster was put aside, and nobody was told that a person stopped the head."""
        aside = list(self.files.root.glob("gcs.set-aside-*"))
        kept = (self.paths.gcs / "store" / "session_name").exists()
        return kept and not aside and not self.files.stopped("head").exists()


@pytest.fixture
def dead(monkeypatch: pytest.MonkeyPatch) -> Iterator[Dead]:
    made = Dead()
    for name, value in made.cluster.environ().items():
        monkeypatch.setenv(name, value)
    yield made
    made.cluster.close()


def alive(seen: Survey, folder: Path) -> Survey:
    """The same look, with a head in it."""
    raylet = Raylet("head", 1, "ab", seen.here.gcs_address, str(folder), head=True)
    return replace(seen, raylets={"head": raylet})


def test_where_nobody_can_be_asked_nothing_is_changed_and_the_flag_is_named(dead: Dead) -> None:
    done = dead.cluster.start("--fresh")
    assert done.returncode == 1, done.stderr
    assert "start.py --fresh --yes" in done.stderr
    assert dead.untouched()
    assert dead.cluster.keeper() == dead.keeper


def test_over_a_head_that_lives_it_is_refused(dead: Dead, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = alive(dead.looks(), dead.cluster.home)
    monkeypatch.setattr(bring_up, "survey", lambda *_, **__: seen)
    code, said = dead.begin()
    assert code == 5
    assert "stop.py first" in said
    assert dead.untouched()
    assert dead.cluster.keeper() == dead.keeper


def test_a_keeper_that_was_quicker_has_its_head_and_there_is_a_keeper_again(
    dead: Dead, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = dead.looks()
    looks = iter([seen, alive(seen, dead.cluster.home)])
    monkeypatch.setattr(bring_up, "survey", lambda *_, **__: next(looks))
    code, said = dead.begin()
    assert code == 5
    assert "stop.py first" in said
    assert dead.untouched()
    assert until(dead.cluster.keeper, 20) != dead.keeper


def test_the_keeper_is_ended_before_anything_and_is_there_again_when_the_start_is_refused(
    dead: Dead,
) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", dead.cluster.http_port))
        other.listen()
        done = dead.cluster.start("--fresh", "--yes")
    assert done.returncode == 3, done.stderr
    assert f"port {dead.cluster.http_port} (http.port)" in done.stderr
    assert dead.untouched()
    assert until(dead.cluster.keeper, 20) != dead.keeper


def test_what_was_kept_is_put_aside_and_the_head_does_not_go_on_from_it(
    dead: Dead, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Up to the first action, at which there is no keeper that would bring the old head back."""
    begun = []

    def carry_out(start: Start, actions: list[Action]) -> int:
        begun.append((next(a.why for a in actions if a.kind == "start"), dead.cluster.keeper()))
        return 0

    monkeypatch.setattr(bring_up, "carry_out", carry_out)
    code, said = dead.begin()
    assert code == 0, said
    ((why, there),) = begun
    assert "the head does not run" in why
    assert there is None
    (aside,) = dead.files.root.glob("gcs.set-aside-*")
    assert (aside / "store" / "session_name").read_text() == "session_of_before\n"
    assert str(aside) in said
    assert list((dead.paths.gcs / "store").iterdir()) == []
    assert until(dead.cluster.keeper, 20) != dead.keeper
