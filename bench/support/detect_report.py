"""What `bench/detect.py` prints: ratios and goals, medians and worst, and who was wrongly taken for dead."""

import argparse
import os
import statistics

from bench.support.faults import TASK_S, Seen

TASK_LATE_S = 1.2
FAULTS = {"kill": "kill -9", "stop": "SIGSTOP", "link": "link down"}
WHAT = {"paused": "raylet stopped", "cut": "link cut", "lossy": "30 % loss"}


def report(seen: dict[str, Seen], args: argparse.Namespace) -> None:
    """Print all of it."""
    agent, defaults, _ = seen.values()
    print()
    ratios(agent, defaults)
    goals(agent, args)
    print(f"\n{'median (worst), s':24}" + "".join(f"{name:>20}" for name in seen))
    for fault, title in FAULTS.items():
        for key, what in (("suspect_s", "suspect"), ("verdict_s", "verdict"), ("dead_s", "GCS DEAD")):
            row(f"{title}: {what}", [getattr(getattr(s, fault), key) for s in seen.values()])
    row(f"{TASK_S:g} s task late by", [s.task_late_s for s in seen.values()])
    print()
    for what, title in WHAT.items():
        if any(kind == what for kind, _, _ in agent.disturbed):
            cells = [s.died_of(what) for s in seen.values()]
            print(f"{title + ', taken for dead':24}" + "".join(f"{cell:>20}" for cell in cells))
    for name, s in seen.items():
        if s.undisturbed:
            print(f"{name}: taken for dead {s.undisturbed} times though nothing was done to it")
        if s.invalid:
            print(f"{name}: not in effect, not counted: {', '.join(s.invalid)}")
    where = "hosts" if args.hosts else "one machine"
    print(
        f"{where}, hang_s {args.hang_s:g}, unreachable_s {args.unreachable_s:g}, seed {args.seed}, "
        f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}"
    )


def ratios(agent: Seen, defaults: Seen) -> None:
    """Against Ray's defaults."""
    for what, ours, rays, goal in (
        ("kill -9: verdict", agent.kill.verdict_s, defaults.kill.dead_s, "at least 40"),
        ("kill -9: GCS DEAD", agent.kill.dead_s, defaults.kill.dead_s, "at least 25, worst <= 1.0 s"),
        ("SIGSTOP: suspect", agent.stop.suspect_s, defaults.stop.dead_s, "at least 30"),
        ("link down: suspect", agent.link.suspect_s, defaults.link.dead_s, "at least 30"),
    ):
        if ours and rays:
            ratio = statistics.median(rays) / statistics.median(ours)
            print(f"{what:20} {ratio:6.1f} times sooner than Ray's defaults   (goal: {goal})")


def goals(agent: Seen, args: argparse.Namespace) -> None:
    """What has a goal of its own."""
    if late := agent.task_late_s:
        said = f"{statistics.median(late):.2f} s late, worst {max(late):.2f} s"
        print(f"retriable task lost  {said}   (goal: at most {TASK_LATE_S:g} s)")
    for what, times, name, limit_s in (
        ("SIGSTOP: verdict", agent.stop.verdict_s, "hang_s", args.hang_s),
        ("link down: verdict", agent.link.verdict_s, "unreachable_s", args.unreachable_s),
    ):
        if times:
            said = f"earliest {min(times):.1f} s, median {statistics.median(times):.1f} s"
            print(f"{what:20} {said}   (goal: as set by {name}, {limit_s:g} s, never before)")
    if agent.disturbed:
        died = sum(died for _, _, died in agent.disturbed)
        print(f"false deaths         {died} of {len(agent.disturbed)} disturbances   (goal: 0)")


def row(title: str, cells: list[list[float]]) -> None:
    """One line of the table, if anything was measured."""
    if any(cells):
        print(f"{title:24}" + "".join(f"{middle(times):>20}" for times in cells))


def middle(times: list[float]) -> str:
    """Median and worst."""
    return f"{statistics.median(times):7.2f} ({max(times):.2f})" if times else "-"
