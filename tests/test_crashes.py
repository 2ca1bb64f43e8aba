"""kill -9 of the agent at every step from a decision to a message: nothing lost, nothing done twice.

Real processes, real SQLite and a real HTTP server in Slack's place; the cluster outlives its agents.
"""

import multiprocessing
import random
import signal
import sqlite3
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from grid_agent.failpoints import NAMES as POINTS
from tests.support import crash_agent
from tests.support.crash_world import CrashWorld
from tests.support.slack_server import SlackServer

context = multiprocessing.get_context("forkserver")
context.set_forkserver_preload(["tests.support.crash_agent"])
WITHIN_S = 40.0


class Scene:
    """A world, a Slack and a folder; agents come and go."""

    def __init__(self, folder: Path, world: CrashWorld, slack: SlackServer) -> None:
        self.folder, self.world, self.slack = folder, world, slack
        self.began = time.time()
        self.agents: list[Any] = []

    def start(self) -> Any:
        arguments = (self.world.path, str(self.folder), self.slack.base_url, self.began)
        agent = context.Process(target=crash_agent.main, args=arguments, daemon=True)
        agent.start()
        self.agents.append(agent)
        return agent

    def rows(self, sql: str) -> list[tuple[Any, ...]]:
        with sqlite3.connect(self.folder / "journal.sqlite", timeout=5) as db:
            found = db.execute(sql).fetchall()
        db.close()
        return found

    def all_alive(self) -> bool:
        assert self.agents[-1].is_alive(), "the agent has ended by itself"
        bodies = [body for (body,) in self.rows("SELECT body FROM node")]
        return len(bodies) == 4 and all('"state":"ALIVE"' in body for body in bodies)

    def healed(self, incidents: int) -> bool:
        done = self.rows("SELECT count(*), coalesce(sum(open), 0) FROM incident")
        shown = self.rows("SELECT count(*) FROM outbox WHERE shown < wanted")
        return self.all_alive() and done == [(incidents, 0)] and shown == [(0,)]

    def replies(self) -> list[list[str]]:
        return [[r["text"] for r in m["replies"]] for m in self.slack.messages]


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    token = tmp_path / "slack_token"
    token.touch(0o600)
    token.write_text("xoxb-test")
    with CrashWorld(tmp_path) as world, SlackServer() as slack:
        one = Scene(tmp_path, world, slack)
        yield one
        for agent in one.agents:
            agent.kill()
            agent.join(5)


def until(condition: Callable[[], bool], what: str, within_s: float = WITHIN_S) -> None:
    end = time.monotonic() + within_s
    while not quiet(condition):
        assert time.monotonic() < end, f"not within {within_s:g} s: {what}"
        time.sleep(0.02)


def quiet(condition: Callable[[], bool]) -> bool:
    try:
        return condition()
    except sqlite3.OperationalError:  # not made yet
        return False


def killed_at(scene: Scene, spec: str) -> None:
    """One death of w1; the agent is killed at this point of its handling, and another one takes over."""
    agent = scene.start()
    until(scene.all_alive, "all ALIVE")
    posts = len(scene.slack.messages)
    scene.world.failpoint = spec
    time.sleep(0.1)
    scene.world.kill("w1")
    agent.join(WITHIN_S)
    assert agent.exitcode == -signal.SIGKILL, f"{spec} was never reached"
    scene.world.failpoint = ""
    scene.start()
    until(lambda: scene.healed(posts + 1), f"healed after {spec}")
    check(scene, posts + 1)


def check(scene: Scene, deaths: int) -> None:
    """One start, one incident and one message for each death; nothing stuck; the file is sound."""
    assert scene.rows("PRAGMA integrity_check") == [("ok",)]
    assert [node for node, _ in scene.world.starts] == ["w1"] * deaths
    assert scene.world.overlaps == []
    assert scene.world.told_alive == []
    assert scene.rows("SELECT id, open FROM incident") == [(n, 0) for n in range(1, deaths + 1)]
    assert len(scene.slack.messages) == deaths
    assert all("resolved" in message["text"] for message in scene.slack.messages)
    for number, told in enumerate(scene.replies(), 1):
        (steps,) = scene.rows(f"SELECT count(*) FROM step WHERE incident_id = {number}")
        assert len(told) == steps[0]
        assert len(set(told)) == len(told)


@pytest.mark.parametrize("nth", [1, 3])
@pytest.mark.parametrize("point", POINTS)
def test_killed_at(scene: Scene, point: str, nth: int) -> None:
    killed_at(scene, f"{point}:{nth}")


@pytest.mark.slow
@pytest.mark.parametrize("nth", range(1, 11))
@pytest.mark.parametrize("point", POINTS)
def test_killed_at_the_nth_passing(scene: Scene, point: str, nth: int) -> None:
    """As far as one death takes an agent past the point so often; the last passing of all otherwise."""
    agent = scene.start()
    until(scene.all_alive, "all ALIVE")
    scene.world.failpoint = f"{point}:{nth}"
    time.sleep(0.1)
    scene.world.kill("w1")
    until(lambda: not agent.is_alive() or scene.healed(1), f"{point}:{nth} or healed")
    scene.world.failpoint = ""
    agent.kill()
    agent.join(5)
    scene.start()
    until(lambda: scene.healed(1), f"healed after {point}:{nth}")
    check(scene, 1)


@pytest.mark.slow
def test_killed_at_random_fifty_times(scene: Scene) -> None:
    seed = random.randrange(2**32)
    print("seed", seed)
    rng = random.Random(seed)
    scene.start()
    until(scene.all_alive, "all ALIVE")
    for deaths in range(1, 51):
        # The guards count deaths and repairs in windows of many minutes on the agents' clock.
        scene.began -= 3600.0
        scene.agents[-1].kill()
        scene.agents[-1].join(5)
        agent = scene.start()
        until(scene.all_alive, "all ALIVE")
        scene.world.kill("w1")
        time.sleep(rng.uniform(0.0, 1.0))
        agent.kill()
        agent.join(5)
        scene.start()
        until(lambda deaths=deaths: scene.healed(deaths), f"healed, death {deaths}, seed {seed}")
    check(scene, 50)
