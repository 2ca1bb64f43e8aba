"""How soon a death is known, and how often something that passes is taken for one: `python bench/detect.py`.

Three clusters side by side, each a head and two workers: grid-agent, Ray with its defaults, and Ray tuned to
be as fast as the agent (a check every second, 1 s to answer, 3 failures). Each fault falls on all three at
once, at a random phase of their intervals: kill -9 of a raylet with a retriable task on it; a raylet stopped
for good; the link of a worker down for good; and what nobody should die of: raylets stopped for 2 to 60 s,
links cut for 2 to 60 s, 30 % of the packets lost for a minute. What is done to a link needs --hosts: each
node on a host of its own, made of namespaces (root). Prints ratios first, then medians and worst; writes
bench/results/detect.json and, with --picture, an SVG.
"""

import argparse
import asyncio
import contextlib
import dataclasses
import json
import os
import random
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench.support import faults, lab_contenders
from bench.support.contender import Contender
from bench.support.contenders import Bare, WithAgent
from bench.support.detect_report import report
from bench.support.faults import Seen
from bench.support.picture import draw
from tests.support.hosts import Lab, missing_tools

FAST = {
    "health_check_initial_delay_ms": 1000,
    "health_check_period_ms": 1000,
    "health_check_timeout_ms": 1000,
    "health_check_failure_threshold": 3,
}
BARE: tuple[tuple[str, dict[str, int]], ...] = (("Ray, defaults", {}), ("Ray, 1 s / 1 s / 3", FAST))
HERE, HOSTS = ("kill", "stop", "pause"), ("kill", "stop", "link", "pause", "cut", "loss")
DEATHS = {"kill": faults.kill, "stop": faults.stop, "link": faults.link}
RESULTS = Path(__file__).parent / "results"


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--hosts", action="store_true", help="hosts made of namespaces; needed for links")
    parser.add_argument("--only", choices=HOSTS, nargs="+", help="default: all that the place allows")
    parser.add_argument("--pauses", type=float, nargs="+", default=[2, 5, 10, 20, 40, 60], metavar="S")
    parser.add_argument("--cuts", type=float, nargs="+", default=[2, 5, 10, 20, 40, 60], metavar="S")
    parser.add_argument("--losses", type=float, nargs="+", default=[60], metavar="S")
    parser.add_argument("--hang-s", type=float, default=90.0, help="agent.hang_s of the run (default: 90)")
    parser.add_argument("--unreachable-s", type=float, default=120.0, help="agent.unreachable_s (120)")
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    parser.add_argument("--picture", type=Path, help="write the SVG here, too")
    args = parser.parse_args()
    args.only = args.only or (HOSTS if args.hosts else HERE)
    args.hosts = args.hosts or not set(args.only) <= set(HERE)
    if args.hosts and (missing := missing_tools()):
        parser.error(missing)
    return args


def main() -> None:
    """Measure and report."""
    args = arguments()
    os.environ["RAY_AUTH_MODE"] = "disabled"
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what was started is ended
    with contextlib.ExitStack() as ends:
        contenders = on_hosts(ends.enter_context(Lab(workers=8)), args) if args.hosts else here(args)
        for contender in contenders:
            ends.callback(contender.close)
        seen = asyncio.run(measure(contenders, args, random.Random(args.seed)))
    report(seen, args)
    data = {name: dataclasses.asdict(s) for name, s in seen.items()}
    RESULTS.mkdir(exist_ok=True)
    kept = {"seed": args.seed, "hang_s": args.hang_s, "unreachable_s": args.unreachable_s, "seen": data}
    (RESULTS / "detect.json").write_text(json.dumps(kept))
    if args.picture:
        args.picture.write_text(draw(data))


def here(args: argparse.Namespace) -> list[Contender]:
    """All of them on this machine."""
    return [WithAgent(args.hang_s), *(Bare(name, config) for name, config in BARE)]


def on_hosts(lab: Lab, args: argparse.Namespace) -> list[Contender]:
    """All of them on hosts; from here on this process sees the network of the first head."""
    hosts, nodes = list(lab.hosts.values()), lab_contenders.NODES
    own = [dict(zip(nodes, hosts[i : i + len(nodes)], strict=True)) for i in range(0, len(hosts), len(nodes))]
    lab_contenders.enter(lab.head)
    ours = lab_contenders.LabAgent(lab, own[0], args.hang_s, args.unreachable_s)
    bare = zip(own[1:], BARE, strict=True)
    return [ours, *(lab_contenders.LabBare(lab, of, name, config) for of, (name, config) in bare)]


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
            for part in (part for part in DEATHS if part in args.only):
                await asyncio.gather(*(faults.ready(c, seen[c.name]) for c in contenders))
                phases = [rng.uniform(0.0, 3.0) for _ in contenders]
                pairs = zip(contenders, phases, strict=True)
                await asyncio.gather(*(DEATHS[part](c, seen[c.name], worker, p) for c, p in pairs))
                print(f"run {run + 1}, {part}: {summary(seen, part)}", flush=True)
            for what, seconds in passing(args):
                await asyncio.gather(*(faults.ready(c, seen[c.name]) for c in contenders))
                await asyncio.gather(
                    *(faults.disturb(c, seen[c.name], worker, what, seconds) for c in contenders)
                )
                dead = [
                    n for n, s in seen.items() if s.disturbed and s.disturbed[-1] == (what, seconds, True)
                ]
                said = ", ".join(dead) or "nobody"
                print(f"run {run + 1}, {what} for {seconds:g} s: taken for dead: {said}", flush=True)
    finally:
        for contender in contenders:
            await contender.let_go()
    return seen


def passing(args: argparse.Namespace) -> list[tuple[str, float]]:
    """What nobody should die of, and for how long each time."""
    kinds = (("pause", "paused", args.pauses), ("cut", "cut", args.cuts), ("loss", "lossy", args.losses))
    return [(what, s) for part, what, lengths in kinds if part in args.only for s in lengths]


def summary(seen: dict[str, Seen], part: str) -> str:
    """The last run, in one line."""
    lists = {name: getattr(s, part).dead_s for name, s in seen.items()}
    return "GCS DEAD after " + ", ".join(f"{times[-1]:.2f} s ({n})" for n, times in lists.items() if times)


if __name__ == "__main__":
    main()
