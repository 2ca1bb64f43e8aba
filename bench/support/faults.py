"""The faults of `bench/detect.py`, and what a contender showed of them. A fault not in effect is no trial."""

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from bench.support.contender import Contender
from tests.support.netns import status_of

TASK_S = 3.0
LOSS_PERCENT = 30
SETTLE_S = {"paused": 3.0, "cut": 15.0, "lossy": 15.0}


@dataclass
class Times:
    """Seconds from one kind of fault."""

    suspect_s: list[float] = field(default_factory=list)
    verdict_s: list[float] = field(default_factory=list)
    dead_s: list[float] = field(default_factory=list)


@dataclass
class Seen:
    """What one contender showed."""

    kill: Times = field(default_factory=Times)
    stop: Times = field(default_factory=Times)
    link: Times = field(default_factory=Times)
    task_late_s: list[float] = field(default_factory=list)
    disturbed: list[tuple[str, float, bool]] = field(default_factory=list)  # what, how long, taken for dead
    invalid: list[str] = field(default_factory=list)
    undisturbed: int = 0  # taken for dead though nothing was done to it

    def died_of(self, what: str) -> str:
        """How many of these disturbances were taken for a death."""
        of = [died for kind, _, died in self.disturbed if kind == what]
        return f"{sum(of)} of {len(of)}"


async def ready(contender: Contender, seen: Seen) -> None:
    """Bring back whoever was taken for dead though nothing was done to it."""
    for worker in ("w1", "w2"):
        node_id = await contender.node_id(worker)
        if not await contender.alive(node_id):
            seen.undisturbed += 1
            await contender.back(worker, node_id)


async def kill(contender: Contender, seen: Seen, worker: str, phase_s: float) -> None:
    """End a raylet by SIGKILL, with a retriable task of TASK_S on it."""
    task = await contender.begin_task(worker, TASK_S)
    node_id = await contender.node_id(worker)
    await asyncio.sleep(phase_s / 3)  # within the task's run
    at, wall = time.monotonic(), time.time()
    contender.signal(worker, signal.SIGKILL)
    dead_s = await contender.until_dead(node_id, 120) - at
    await _note(contender, seen.kill, worker, wall, dead_s)
    done = await task.done()
    if done is not None:
        seen.task_late_s.append(done - wall - TASK_S)
    await contender.back(worker, node_id)


async def stop(contender: Contender, seen: Seen, worker: str, phase_s: float) -> None:
    """SIGSTOP of a raylet, for good."""
    node_id = await contender.node_id(worker)
    await asyncio.sleep(phase_s)
    at, wall = time.monotonic(), time.time()
    pid = contender.signal(worker, signal.SIGSTOP)
    await asyncio.sleep(0.05)
    stopped = _stopped(pid)
    dead_s = await contender.until_dead(node_id, 300) - at
    if stopped:
        await _note(contender, seen.stop, worker, wall, dead_s)
    else:
        seen.invalid.append("stop")
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGCONT)  # it learns that it is dead, and exits
    await contender.back(worker, node_id)


async def link(contender: Contender, seen: Seen, worker: str, phase_s: float) -> None:
    """The cable of a worker's host pulled, for good."""
    node_id = await contender.node_id(worker)
    await asyncio.sleep(phase_s)
    at, wall = time.monotonic(), time.time()
    contender.cut(worker)
    off = await contender.cut_off(worker)
    dead_s = await contender.until_dead(node_id, 600) - at
    off = off and await contender.cut_off(worker)
    if off:
        await _note(contender, seen.link, worker, wall, dead_s)
    else:
        seen.invalid.append("link")
    contender.heal(worker)
    await contender.back(worker, node_id)


async def _note(contender: Contender, times: Times, worker: str, wall: float, dead_s: float) -> None:
    """Take down when it was DEAD and, where there is an agent, what its incident says."""
    times.dead_s.append(dead_s)
    story = await contender.story(worker, wall)
    if story is not None:
        times.suspect_s.append(story.failed_at - wall)
        times.verdict_s.append(story.opened_at - wall)


def _stopped(pid: int) -> bool:
    return status_of(pid, "State").startswith("T")


async def disturb(contender: Contender, seen: Seen, worker: str, what: str, seconds: float) -> None:
    """Something that passes: nobody should die of it. Ends when its traces are gone."""
    node_id = await contender.node_id(worker)
    valid: list[Callable[[], bool]] = []
    async with _DISTURBANCES[what](contender, worker, valid):
        died = await _died(contender, node_id, seconds)
    died = died or await _died(contender, node_id, SETTLE_S[what])
    await contender.back(worker, node_id if died else None)
    await contender.quiet(worker)
    if not died and not await contender.alive(node_id):
        died = True
        await contender.back(worker, node_id)
    if died or all(check() for check in valid):
        seen.disturbed.append((what, seconds, died))
    else:
        seen.invalid.append(f"{what} for {seconds:g} s")


async def _died(contender: Contender, node_id: str, seconds: float) -> bool:
    """Watch for so long whether it is taken for dead; the disturbance goes on if it is."""
    end, died = time.monotonic() + seconds, False
    while (left_s := end - time.monotonic()) > 0:
        await asyncio.sleep(min(0.5, left_s))
        died = died or not await contender.alive(node_id)
    return died


@asynccontextmanager
async def _paused(contender: Contender, worker: str, valid: list[Callable[[], bool]]) -> AsyncIterator[None]:
    """SIGSTOP, and SIGCONT after a while."""
    pid = contender.signal(worker, signal.SIGSTOP)
    try:
        yield
        stopped = _stopped(pid)
        valid.append(lambda: stopped)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


@asynccontextmanager
async def _cut(contender: Contender, worker: str, valid: list[Callable[[], bool]]) -> AsyncIterator[None]:
    """The cable pulled, and plugged in again."""
    contender.cut(worker)
    try:
        off = await contender.cut_off(worker)
        valid.append(lambda: off)
        yield
    finally:
        contender.heal(worker)


@asynccontextmanager
async def _lossy(contender: Contender, worker: str, valid: list[Callable[[], bool]]) -> AsyncIterator[None]:
    """Some of the packets lost, both ways."""
    end = contender.lose(worker, LOSS_PERCENT)
    lost = 0
    try:
        yield
    finally:
        lost = end()
    valid.append(lambda: lost > 0)


_DISTURBANCES = {"paused": _paused, "cut": _cut, "lossy": _lossy}
