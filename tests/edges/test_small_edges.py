"""The small edges: what people stopped, a look at a host, what a node sees of itself."""

from pathlib import Path
from typing import Any

import pytest

from grid_agent.core import messages as m
from grid_agent.core.model import NodeBelief
from grid_agent.core.seen import Raylet
from grid_agent.core.terms import State
from grid_agent.edges.looks import Looks
from grid_agent.edges.node_probe import GridAgentProbe
from grid_agent.edges.people import StoppedByPeople

HEAD = NodeBelief("head", "127.0.0.1", "head", State.ALIVE, 0.0)


def test_stopped_nodes_are_files(tmp_path: Path) -> None:
    people = StoppedByPeople(tmp_path / "stopped")
    assert people.stopped() == frozenset()
    (tmp_path / "stopped").mkdir()
    (tmp_path / "stopped" / "gpu1").touch()
    assert people.stopped() == {"gpu1"}


def test_a_folder_that_cannot_be_read_forgets_nobody(tmp_path: Path) -> None:
    folder = tmp_path / "stopped"
    folder.mkdir()
    (folder / "gpu1").touch()
    people = StoppedByPeople(folder)
    assert people.stopped() == {"gpu1"}
    folder.rename(tmp_path / "away")
    folder.write_text("not a folder")
    assert people.stopped() == {"gpu1"}


class Answers:
    """A transport with one answer; it remembers what was asked."""

    def __init__(self, answer: dict[str, Any]) -> None:
        self.answer = answer
        self.asked: list[dict[str, Any]] = []

    async def call(self, request: dict[str, Any], timeout_s: float) -> dict[str, Any]:
        self.asked.append(request)
        return self.answer


async def test_a_look_becomes_an_event() -> None:
    seen = {"pid": 7, "node_id": "id1", "start_ticks": 9, "stat": "S", "node_name": "w1"}
    host = Answers({"ok": True, "raylets": [seen]})
    event = await Looks(lambda by, node: host, "10.0.0.10:6379").look(m.LookAtHost("w1", "id1", "head"), HEAD)
    assert event == m.HostLooked("w1", "head", (Raylet(7, "id1", 9, "S"),), asked_about="id1")
    assert host.asked[0]["op"] == "look"
    assert host.asked[0]["gcs_address"] == "10.0.0.10:6379"


async def test_a_host_that_cannot_be_asked_is_unreachable_not_empty() -> None:
    host = Answers({"ok": False, "error": "no_route", "detail": "No route to host"})
    event = await Looks(lambda by, node: host, "10.0.0.10:6379").look(m.LookAtHost("w1", None, "head"), HEAD)
    assert event == m.HostUnreachable("w1", "head", "no_route: No route to host")


@pytest.mark.parametrize("error", ["key_refused", "timeout", "python_too_old", "internal", "login_timeout"])
async def test_a_look_that_fails_for_our_own_reasons_says_nothing_of_the_host(error: str) -> None:
    host = Answers({"ok": False, "error": error, "detail": "words"})
    event = await Looks(lambda by, node: host, "10.0.0.10:6379").look(m.LookAtHost("w1", "id1", "head"), HEAD)
    assert event == m.LookFailed("w1", "head", f"{error}: words")


async def test_raylets_that_cannot_be_read_make_a_look_worthless() -> None:
    host = Answers({"ok": True, "raylets": [], "unsure": 1})
    event = await Looks(lambda by, node: host, "10.0.0.10:6379").look(m.LookAtHost("w1", "id1", "head"), HEAD)
    assert isinstance(event, m.LookFailed)


def test_a_node_reports_itself() -> None:
    report = GridAgentProbe(
        "/tmp", {"every_s": 0, "timeout_s": 1, "usable_every_s": 0, "kernel_log": "", "sources": []}
    ).report()
    assert report["gpus"]["state"] == "off"  # tests/gpu has the rest
    assert report["mem_available_mb"] > 0
    assert report["disk_free_mb"] > 0
    assert report["load1"] >= 0
    assert report["raylet_pid"] > 0
