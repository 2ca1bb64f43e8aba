"""The composed agent without Ray: what it says before it runs, and that only one of two runs."""

import asyncio
import logging
from pathlib import Path

import pytest

from config import loader
from grid_agent.compose import Agent, steady_clock
from grid_agent.core import messages as m
from grid_agent.core.terms import Cause
from grid_agent.log_file import PrivateFileHandler
from tests.core.situations import Story
from tests.support.cluster import free_port, until_true


def agent(home: Path) -> Agent:
    settings = loader.loads(loader.default_file().read_text(), "local.yaml", {})
    return Agent(settings, f"127.0.0.1:{free_port()}", {"XDG_STATE_HOME": str(home), "HOME": str(home)})


async def test_only_one_of_two_agents_runs_and_the_other_takes_over(tmp_path: Path) -> None:
    first, second = agent(tmp_path), agent(tmp_path)
    await first.start()
    await until_true(first.ever_ran)
    await second.start()
    await asyncio.sleep(0.5)
    assert not second.ever_ran()
    await first.stop()
    await until_true(second.ever_ran)
    await second.stop()


async def test_an_agent_whose_lock_was_replaced_lets_no_repair_through(tmp_path: Path) -> None:
    """Somebody removed the state folder: two agents hold a lock each, and the file on the disk decides."""
    first, second = agent(tmp_path), agent(tmp_path)
    await first.start()
    await until_true(first.ever_ran)
    assert first._not_in_charge() is None
    first.paths.agent_lock.unlink()
    await second.start()
    await until_true(second.ever_ran)
    assert "another's" in (first._not_in_charge() or "")
    assert second._not_in_charge() is None
    assert second.journal.epoch > first.journal.epoch
    head = second.loop.belief.nodes["head"]
    ended = await first.gate.repair(m.RestartWorker("worker1", "head", 1, None), head)
    assert (ended.ok, ended.begun) == (False, False)
    told = await first._edges.gcs.tell_dead(m.TellRay("worker1", "a1", Cause.PROCESS_GONE, "gone"))
    assert (told.accepted, "another's" in told.detail) == (False, True)
    await first.stop()
    await second.stop()


async def test_an_incident_that_is_no_longer_in_memory_is_told_all_the_same(tmp_path: Path) -> None:
    one, story = agent(tmp_path), Story()
    before = await one.journal.open(story.belief, story.now)
    story.die("gpu1")
    await one.journal.save(before, story.belief, (), (), story.now)
    assert one.incidents() == []
    found = await one.incident(1)
    assert found is not None
    assert (found["id"], found["nodes"], found["steps"] != []) == (1, ["gpu1"], True)
    assert await one.incident(2) is None
    await one.journal.close()


async def test_without_a_gcs_it_is_alive_but_not_ready_and_says_fail(tmp_path: Path) -> None:
    one = agent(tmp_path)
    await one.start()
    await until_true(lambda: one.loop.belief.observer.gcs_silent_since is not None)
    assert one.late_s() is None
    assert not one.ready()
    body = one.health()
    assert body["status"] == "fail"
    assert [n["state"] for n in body["nodes"]] == ["JOINING"] * 3
    assert b"grid_agent_node_up" in one.metrics()
    await one.stop()


async def test_a_loop_that_stands_still_is_late(tmp_path: Path) -> None:
    one = agent(tmp_path)
    await one.start()
    await until_true(one.ever_ran)
    one.loop.clock = lambda: one.loop.belief.stepped_at + 3.5  # type: ignore[assignment]
    assert one.late_s() == pytest.approx(3.5)
    await one.stop()


def test_the_clock_cannot_jump() -> None:
    clock = steady_clock()
    times = [clock() for _ in range(100)]
    assert times == sorted(times)


async def test_a_loop_that_ended_makes_the_replica_unhealthy(tmp_path: Path) -> None:
    one = agent(tmp_path)

    def broken(events: object) -> None:
        raise RuntimeError("a bug in the core")

    one.loop._step = broken  # type: ignore[method-assign]
    await one.start()
    await until_true(one.ever_ran)
    await until_true(one._running[0].done)
    assert one.ever_ran()  # so that a late loop counts against it, and Serve restarts the replica
    one.loop.clock = lambda: one.loop.belief.stepped_at + 60  # type: ignore[assignment]
    assert one.late_s() is not None
    await one.stop()


def test_a_rotated_log_is_private(tmp_path: Path) -> None:
    log = tmp_path / "agent.log"
    handler = PrivateFileHandler(log, maxBytes=10, backupCount=1)
    for word in ("first line", "second line"):
        handler.emit(logging.LogRecord("x", logging.INFO, "", 0, word, None, None))
    handler.close()
    assert {p.name: p.stat().st_mode & 0o777 for p in tmp_path.iterdir()} == {
        "agent.log": 0o600,
        "agent.log.1": 0o600,
    }
    assert "second line" in log.read_text()
