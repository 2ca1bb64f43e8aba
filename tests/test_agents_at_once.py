"""Agents as processes of their own: one acts, one that is stopped keeps the others out, one takes over."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

AGENT = """
import asyncio, sys
from config import loader
from grid_agent.compose import Agent

async def main():
    settings = loader.loads(loader.default_file().read_text(), "local.yaml", {})
    agent = Agent(settings, "127.0.0.1:1", {"XDG_STATE_HOME": sys.argv[1], "HOME": sys.argv[1]})
    await agent.start()
    print("waiting", flush=True)
    while not agent.ever_ran():
        await asyncio.sleep(0.02)
    print("acting", agent.journal.epoch, flush=True)
    await asyncio.sleep(600)

asyncio.run(main())
"""


class Process:
    """One agent, and what it has said so far."""

    def __init__(self, home: Path, number: int) -> None:
        self.log = home / f"agent{number}.log"
        with self.log.open("wb") as output:
            self.popen = subprocess.Popen(
                [sys.executable, "-c", AGENT, str(home)],
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=Path(__file__).parents[1],
            )

    def epoch(self) -> int | None:
        lines = [line for line in self.log.read_text().splitlines() if line.startswith("acting ")]
        return int(lines[0].split()[1]) if lines else None


@pytest.fixture
def agents(tmp_path: Path) -> Iterator[list[Process]]:
    found: list[Process] = []
    try:
        found.extend(Process(tmp_path, number) for number in range(3))
        yield found
    finally:
        for one in found:
            one.popen.kill()
            one.popen.wait()


def acting(agents: list[Process]) -> list[Process]:
    return [one for one in agents if one.epoch() is not None and one.popen.poll() is None]


def wait_for_one(agents: list[Process], seconds: float = 60.0) -> Process:
    until = time.monotonic() + seconds
    while not acting(agents):
        assert time.monotonic() < until, [one.log.read_text() for one in agents]
        time.sleep(0.05)
    (one,) = acting(agents)
    return one


def test_three_agents_one_acts_and_a_stopped_one_is_followed_only_when_it_has_ended(
    agents: list[Process],
) -> None:
    first = wait_for_one(agents)
    others = [one for one in agents if one is not first]
    until = time.monotonic() + 60
    while not all("waiting" in one.log.read_text() for one in others):
        assert time.monotonic() < until
        time.sleep(0.05)
    os.kill(first.popen.pid, signal.SIGSTOP)
    time.sleep(1.5)
    assert acting(agents) == [first]  # stopped, it still holds the kernel's lock: nobody acts beside it
    os.kill(first.popen.pid, signal.SIGCONT)
    time.sleep(0.5)
    assert acting(agents) == [first]
    first.popen.kill()
    first.popen.wait()
    second = wait_for_one(others)
    time.sleep(0.7)
    assert acting(others) == [second]
    assert (second.epoch() or 0) > (first.epoch() or 0)
