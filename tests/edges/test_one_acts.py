"""Never two raylets of one node: repairs killed midway, agents at once, and one that slept too long."""

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from grid_agent.edges.host import ending, procs
from grid_agent.edges.host.program import handle
from tests.edges.test_host_program import FAKE_RAY, GCS, ID1, SOURCE, raylet, runs, seen, wait_for
from tests.edges.test_host_program import spawn as _spawn

spawn = _spawn  # the fixture
NEW = "d4" * 28  # the id of what FAKE_RAY starts


class Host:
    """One node: the request that repairs it, and programs that carry it out in processes of their own."""

    def __init__(self, folder: Path) -> None:
        self.script = folder / "fake_ray.py"
        self.script.write_text(FAKE_RAY)
        self.folder = folder
        self.programs: list[subprocess.Popen[bytes]] = []

    def request(self, epoch: int | None = None, what: str = "up", fence: str = ID1) -> dict[str, Any]:
        start = {
            "op": "start",
            "argv": [sys.executable, "-S", str(self.script), "gpu1", GCS, what],
            "env": {"PATH": "/usr/bin:/bin"},
            "log": str(self.folder / "gpu1.log"),
            "lock": str(self.folder / "gpu1.lock"),
            "timeout_s": 10,
            "lock_wait_s": 15,
            "node_name": "gpu1",
            "gcs_address": GCS,
        }
        end = {"op": "end", "gcs_address": GCS, "node_id": fence, "term_s": 1.0, "kill_s": 2.0}
        asked = {"op": "steps", "requests": [end, start]}
        return asked if epoch is None else {**asked, "epoch": epoch}

    def program(self) -> subprocess.Popen[bytes]:
        """The host program as SSH starts it; it acts once it has been sent a request."""
        pipe = subprocess.PIPE
        program = subprocess.Popen([sys.executable, "-c", SOURCE], stdin=pipe, stdout=pipe)
        self.programs.append(program)
        return program

    def send(self, request: dict[str, Any]) -> subprocess.Popen[bytes]:
        program = self.program()
        self.say(program, request)
        return program

    def say(self, program: subprocess.Popen[bytes], request: dict[str, Any]) -> None:
        assert program.stdin
        program.stdin.write(json.dumps(request).encode())
        program.stdin.close()

    def answer(self, program: subprocess.Popen[bytes]) -> dict[str, Any]:
        assert program.stdout
        return dict(json.loads(program.stdout.read()))


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    host = Host(tmp_path)
    yield host
    for program in host.programs:
        program.kill()
        program.wait()
        if program.stdout:
            program.stdout.close()
    for node_id in (ID1, NEW):
        assert handle({"op": "end", "gcs_address": GCS, "node_id": node_id})["ok"]


def living() -> list[int]:
    return [row["pid"] for row in seen(node_name="gpu1")["raylets"]]


# --- whatever dies in between -----------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(6))
def test_a_repair_killed_at_any_moment_leaves_no_second_raylet(host: Host, spawn: Any, seed: int) -> None:
    """The program is killed, or its `ray start`, or both; the next repair ends with exactly one raylet."""
    dice = random.Random(seed)
    old = raylet(spawn, "gpu1", ID1)
    for _ in range(3):
        first = host.send(host.request())
        until = time.monotonic() + dice.uniform(0.0, 0.7)
        while time.monotonic() < until:
            assert len(living()) <= 1, f"seed {seed}"
        victims = [first.pid] if dice.random() < 0.7 else []
        below = procs.descendants(procs.process_table(), [first.pid])
        victims += [pid for pid in below if dice.random() < 0.4 and pid not in living()]
        for pid in victims:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        assert len(living()) <= 1, f"seed {seed}"
    last = host.answer(host.send(host.request()))
    assert last["ok"] or last["error"] == "already_running", f"seed {seed}: {last}"
    assert len(living()) == 1, f"seed {seed}"
    assert not runs(old.pid)


def test_what_cannot_be_shown_to_be_gone_is_not_replaced(
    host: Host, spawn: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = raylet(spawn, "gpu1", ID1)
    monkeypatch.setattr(ending, "_signal", lambda *_: "cannot be signalled: Operation not permitted")
    answer = handle({**host.request(), "requests": host.request()["requests"]})
    assert answer["error"] == "not_ended"
    assert living() == [old.pid]


# --- only one agent acts ------------------------------------------------------------------------------


def test_an_older_agent_than_the_last_one_seen_is_refused_before_anything_is_done(
    host: Host, spawn: Any
) -> None:
    assert handle(host.request(epoch=1_700_000_005))["ok"]
    (pid,) = living()
    late = handle(host.request(epoch=1_700_000_004, fence=NEW))
    assert (late["ok"], late["error"]) == (False, "stale")
    assert "answers" not in late
    assert living() == [pid]
    again = handle(host.request(epoch=1_700_000_005, fence=NEW))
    assert again["ok"]
    assert living() != [pid]
    assert handle(host.request(epoch=1_700_000_006))["error"] == "already_running"


def test_a_person_is_no_agent_and_is_never_stale(host: Host) -> None:
    assert handle(host.request(epoch=9))["ok"]
    assert handle(host.request(fence=NEW))["ok"]
    assert handle(host.request(epoch=8))["error"] == "stale"


@pytest.mark.parametrize("content", [b"", b"nonsense", b"\x00" * 40, b"-5\n"])
def test_a_lock_file_that_says_nothing_forbids_nothing(host: Host, content: bytes) -> None:
    (host.folder / "gpu1.lock").write_bytes(content)
    assert handle(host.request(epoch=7))["ok"]
    assert handle(host.request(epoch=6))["error"] == "stale"


def test_an_agent_that_was_stopped_and_wakes_up_is_refused(host: Host, spawn: Any) -> None:
    old = raylet(spawn, "gpu1", ID1)
    sleeper = host.program()
    os.kill(sleeper.pid, signal.SIGSTOP)
    host.say(sleeper, host.request(epoch=7))
    assert host.answer(host.send(host.request(epoch=8)))["ok"]
    assert not runs(old.pid)
    (pid,) = living()
    os.kill(sleeper.pid, signal.SIGCONT)
    assert host.answer(sleeper)["error"] == "stale"
    assert living() == [pid]


def test_one_that_is_stopped_in_the_middle_is_waited_for_and_not_joined(host: Host) -> None:
    """It holds the node's lock, which a stopped process keeps: the other one does nothing."""
    sleeper = host.send(host.request(epoch=7, what="slow"))
    wait_for(lambda: procs.descendants(procs.process_table(), [sleeper.pid]))
    os.kill(sleeper.pid, signal.SIGSTOP)
    request = host.request(epoch=8)
    request["requests"][1]["lock_wait_s"] = 0.2
    assert handle(request)["error"] == "busy"
    os.kill(sleeper.pid, signal.SIGCONT)
    assert host.answer(sleeper)["ok"]
    assert handle(request)["error"] == "already_running"
    assert len(living()) == 1


@pytest.mark.parametrize("agents", [2, 3])
def test_agents_at_once_make_one_raylet_and_the_newest_has_the_last_word(host: Host, agents: int) -> None:
    programs = [host.send(host.request(epoch=100 + n)) for n in range(agents)]
    answers = [host.answer(program) for program in programs]
    assert sum(a["ok"] for a in answers) == 1
    assert {a.get("error", "") for a in answers} <= {"", "already_running", "stale"}
    assert len(living()) == 1
    assert handle(host.request(epoch=100 + agents - 2))["error"] == "stale"


# --- leftovers ------------------------------------------------------------------------------------------


def test_leftovers_of_dead_lives_are_cleared_and_nothing_else(tmp_path: Path, spawn: Any) -> None:
    session = tmp_path / "session_2026-01-01_00-00-00_1"
    sockets = session / "sockets"
    sockets.mkdir(parents=True)
    kept, long_ago = [], time.time() - 3600

    def bound(name: str, *, listens: bool, old: bool = True) -> Path:
        one = socket.socket(socket.AF_UNIX)
        os.chdir(sockets)  # a socket's path is short
        one.bind(name)
        os.chdir("/")
        if listens:
            one.listen()
        kept.append(one)
        if old:
            os.utime(sockets / name, (long_ago, long_ago))
        return sockets / name

    deserted, used = bound("plasma_store", listens=False), bound("raylet.1", listens=True)
    fresh = bound("raylet.2", listens=False, old=False)
    (sockets / "file").write_text("no socket")
    for node_id in (ID1, NEW, "e5" * 28):
        (session / f"ray_spilled_objects_{node_id}" / "deep").mkdir(parents=True)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (session / ("ray_spilled_objects_" + "f6" * 28)).symlink_to(elsewhere)
    raylet(spawn, "gpu1", NEW)
    ids = [ID1, NEW, "f6" * 28, "../../elsewhere"]
    answer = handle({"op": "clear", "session_dir": str(session), "node_ids": ids})
    assert answer["ok"]
    gone = session / f"ray_spilled_objects_{ID1}"
    assert answer["removed"] == [str(deserted), str(gone)]
    assert not deserted.exists()
    assert not gone.exists()
    for path in (used, fresh, sockets / "file", session / f"ray_spilled_objects_{NEW}", elsewhere):
        assert path.exists(), path
    assert (session / ("ray_spilled_objects_" + "e5" * 28)).is_dir()  # of another node
    for one in kept:
        one.close()


@pytest.mark.parametrize("folder", [None, "/nonexistent/session_x", "/tmp", "~/session_x", "/"])
def test_where_there_is_no_session_nothing_is_cleared(folder: str | None) -> None:
    answer = handle({"op": "clear", "session_dir": folder, "node_ids": [ID1]})
    assert answer == {"ok": True, "removed": []}
