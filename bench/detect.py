"""How soon a death is known, and how often a pause is taken for one: `python bench/detect.py`.

Three clusters side by side on this machine, each a head and two workers: grid-agent, Ray with its defaults,
and Ray tuned to be as fast as the agent (a check every second, 1 s to answer, 3 failures). Each fault falls
on all three at once, at a random phase of their intervals: kill -9 of a raylet with a retriable task on it, a
raylet stopped for good, and raylets stopped for 2 to 60 s, of which none should be taken for dead. Prints
ratios first, then medians and worst; writes bench/results/detect.json and, with --picture, an SVG.
"""

import argparse
import asyncio
import contextlib
import json
import os
import random
import signal
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench.support.contenders import Bare, Contender, WithAgent
from bench.support.picture import draw

FAST = {
    "health_check_initial_delay_ms": 1000,
    "health_check_period_ms": 1000,
    "health_check_timeout_ms": 1000,
    "health_check_failure_threshold": 3,
}
TASK_S = 3.0
PARTS = ("kill", "stop", "pause")
RESULTS = Path(__file__).parent / "results"


@dataclass
class Seen:
    """What one contender showed, in seconds from the fault."""

    suspect_s: list[float] = field(default_factory=list)
    verdict_s: list[float] = field(default_factory=list)
    dead_s: list[float] = field(default_factory=list)
    task_late_s: list[float] = field(default_factory=list)
    stop_suspect_s: list[float] = field(default_factory=list)
    stop_verdict_s: list[float] = field(default_factory=list)
    stop_dead_s: list[float] = field(default_factory=list)
    pauses_s: list[float] = field(default_factory=list)
    died_of_s: list[float] = field(default_factory=list)  # the pauses that were taken for a death


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--only", choices=PARTS, nargs="+", default=PARTS)
    parser.add_argument("--pauses", type=float, nargs="+", default=[2, 5, 10, 20, 40, 60], metavar="S")
    parser.add_argument("--hang-s", type=float, default=90.0, help="agent.hang_s of the run (default: 90)")
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    parser.add_argument("--picture", type=Path, help="write the SVG here, too")
    args = parser.parse_args()
    os.environ["RAY_AUTH_MODE"] = "disabled"
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what was started is ended
    contenders = [WithAgent(args.hang_s), Bare("Ray, defaults", {}), Bare("Ray, 1 s / 1 s / 3", FAST)]
    with contextlib.ExitStack() as ends:
        for contender in contenders:
            ends.callback(contender.close)
        seen = asyncio.run(measure(contenders, args, random.Random(args.seed)))
    report(seen, args)


async def measure(
    contenders: Sequence[Contender], args: argparse.Namespace, rng: random.Random
) -> dict[str, Seen]:
    """Start all, then one fault after the other on all of them at once."""
    for contender in contenders:
        begun = time.monotonic()
        await contender.start()
        print(f"{contender.name}: up in {time.monotonic() - begun:.0f} s", flush=True)
    seen = {c.name: Seen() for c in contenders}
    try:
        for run in range(args.runs):
            worker = f"w{run % 2 + 1}"
            for part, one in (("kill", kill), ("stop", stop)):
                if part in args.only:
                    phases = [rng.uniform(0.0, 3.0) for _ in contenders]
                    await asyncio.gather(
                        *(one(c, seen[c.name], worker, p) for c, p in zip(contenders, phases, strict=True))
                    )
                    print(f"run {run + 1}, {part}: {summary(seen, part)}", flush=True)
            for pause_s in args.pauses if "pause" in args.only else ():
                await asyncio.gather(*(pause(c, seen[c.name], worker, pause_s) for c in contenders))
                dead = [name for name, s in seen.items() if s.died_of_s and s.died_of_s[-1] == pause_s]
                said = ", ".join(dead) or "nobody"
                print(f"run {run + 1}, stopped for {pause_s:g} s: taken for dead by {said}", flush=True)
    finally:
        for contender in contenders:
            await contender.let_go()
    return seen


async def kill(contender: Contender, seen: Seen, worker: str, phase_s: float) -> None:
    """End a raylet by SIGKILL, with a retriable task of TASK_S on it."""
    task = await contender.begin_task(worker, TASK_S)
    node_id = await contender.node_id(worker)
    await asyncio.sleep(phase_s / 3)  # within the task's run
    at, wall = time.monotonic(), time.time()
    contender.signal(worker, signal.SIGKILL)
    seen.dead_s.append(await contender.until_dead(node_id, 120) - at)
    done = await task.done()
    if done is not None:
        seen.task_late_s.append(done - wall - TASK_S)
    story = await contender.story(worker, wall)
    if story is not None:
        seen.suspect_s.append(story.failed_at - wall)
        seen.verdict_s.append(story.opened_at - wall)
    await contender.back(worker, node_id)


async def stop(contender: Contender, seen: Seen, worker: str, phase_s: float) -> None:
    """SIGSTOP of a raylet, for good."""
    node_id = await contender.node_id(worker)
    await asyncio.sleep(phase_s)
    at, wall = time.monotonic(), time.time()
    pid = contender.signal(worker, signal.SIGSTOP)
    seen.stop_dead_s.append(await contender.until_dead(node_id, 300) - at)
    story = await contender.story(worker, wall)
    if story is not None:
        seen.stop_suspect_s.append(story.failed_at - wall)
        seen.stop_verdict_s.append(story.opened_at - wall)
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGCONT)  # it learns that it is dead, and exits
    await contender.back(worker, node_id)


async def pause(contender: Contender, seen: Seen, worker: str, pause_s: float) -> None:
    """SIGSTOP, and SIGCONT after a while: nobody should die of it."""
    node_id = await contender.node_id(worker)
    pid = contender.signal(worker, signal.SIGSTOP)
    await asyncio.sleep(pause_s)
    died = not await contender.alive(node_id)
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGCONT)
    await asyncio.sleep(3.0)
    died = died or not await contender.alive(node_id)
    seen.pauses_s.append(pause_s)
    if died:
        seen.died_of_s.append(pause_s)
    await contender.back(worker, node_id if died else None)


def summary(seen: dict[str, Seen], part: str) -> str:
    """The last run, in one line."""
    lists = {n: s.dead_s if part == "kill" else s.stop_dead_s for n, s in seen.items()}
    return "GCS DEAD after " + ", ".join(f"{times[-1]:.2f} s ({n})" for n, times in lists.items() if times)


def middle(times: list[float]) -> str:
    """Median and worst."""
    return f"{statistics.median(times):7.2f} ({max(times):.2f})" if times else "      -"


def report(seen: dict[str, Seen], args: argparse.Namespace) -> None:
    """Ratios first."""
    agent, defaults, fast = seen.values()
    print()
    for what, ours, rays, goal in (
        ("kill -9: verdict", agent.verdict_s, defaults.dead_s, "at least 40"),
        ("kill -9: GCS DEAD", agent.dead_s, defaults.dead_s, "at least 25, worst <= 1.0 s"),
        ("SIGSTOP: suspect", agent.stop_suspect_s, defaults.stop_dead_s, "at least 30"),
    ):
        if ours and rays:
            ratio = statistics.median(rays) / statistics.median(ours)
            print(f"{what:20} {ratio:6.1f} times sooner than Ray's defaults   (goal: {goal})")
    print(f"\n{'median (worst), s':22}" + "".join(f"{name:>22}" for name in seen))
    rows = {
        "kill -9: suspect": [s.suspect_s for s in seen.values()],
        "kill -9: verdict": [s.verdict_s for s in seen.values()],
        "kill -9: GCS DEAD": [s.dead_s for s in seen.values()],
        f"{TASK_S:g} s task late by": [s.task_late_s for s in seen.values()],
        "SIGSTOP: suspect": [s.stop_suspect_s for s in seen.values()],
        "SIGSTOP: verdict": [s.stop_verdict_s for s in seen.values()],
        "SIGSTOP: GCS DEAD": [s.stop_dead_s for s in seen.values()],
    }
    for name, cells in rows.items():
        print(f"{name:22}" + "".join(f"{middle(times):>22}" for times in cells))
    cells = [f"{len(s.died_of_s)} of {len(s.pauses_s)}" for s in (agent, defaults, fast)]
    print(f"{'false deaths, pauses':22}" + "".join(f"{cell:>22}" for cell in cells))
    load = os.getloadavg()[0]
    print(f"hang_s {args.hang_s:g}, seed {args.seed}, {os.cpu_count()} cores, load {load:.1f}")
    data: dict[str, Any] = {n: vars(s) for n, s in seen.items()}
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "detect.json").write_text(json.dumps({"seed": args.seed, "hang_s": args.hang_s, "seen": data}))
    if args.picture:
        args.picture.write_text(draw(data))


if __name__ == "__main__":
    main()
