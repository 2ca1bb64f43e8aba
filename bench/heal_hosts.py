"""Fault to usable on hosts over SSH, made of namespaces: `python bench/heal.py --hosts` (as root).

In one run, one after another, on a worker host each: grid-agent; a bare `ray start` over ssh that begins at
the very moment of the fault, as if somebody had known it; and a shell loop around `ray start --block` on the
worker, which is what systemd does. Faults: `kill` (SIGKILL of the raylet), `stop` (SIGSTOP, for good) and
`power` (everything on the host ends at once, the cable first; it is on again after --off-s seconds). A time
begins with the fault, after a power loss when the SSH server listens again, and ends when a task pinned to
the new node has completed, as a driver on the head sees it. Prints ratios first, then medians; writes
bench/results/heal_hosts.json. `bench/support/heal_driver.py` runs as that driver.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
NAMES = {"ours": "grid-agent", "loop": "shell loop, --block", "bare": "ray start by ssh, at once"}
FAULTS = ("kill", "stop", "power")
ENV = {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}
Found = dict[str, dict[str, list[float | None]]]


def main(args: argparse.Namespace) -> None:
    """Make the hosts, start the cluster without two of them, measure, report."""
    sys.path.insert(0, str(ROOT))
    from tests.support.cluster import UNLIMITED
    from tests.support.hosts import STATE, Lab, missing_tools

    if missing := missing_tools():
        raise SystemExit(missing)
    with Lab(workers=3) as lab:
        agent = {"hang_s": args.hang_s}
        file = lab.write_cluster_file(ray={"auth": "disabled"}, guards=UNLIMITED, agent=agent)
        spec = json.loads(file.read_text())
        spec["nodes"] = [node for node in spec["nodes"] if node["name"] not in ("gpu2", "gpu3")]
        file.write_text(json.dumps(spec))
        start = [sys.executable, str(ROOT / "bootstrap" / "start.py"), "-c", str(file)]
        started = lab.head.run(start, env=ENV, timeout_s=240)
        assert started.returncode == 0, started.stdout + started.stderr
        try:
            found = follow(lab, args)
        finally:
            log = lab.head.path(f"{STATE}/logs/agent.log")
            (ROOT / "bench" / "results").mkdir(exist_ok=True)
            (ROOT / "bench" / "results" / "heal_hosts.log").write_text(log.read_text())
    report(found, args)


def follow(lab: Any, args: argparse.Namespace) -> Found:
    """Run the driver; switch the power for it, and take down what it measured."""
    given = {
        "ssh": {name: lab.ssh(name) for name in ("gpu1", "gpu2", "gpu3")},
        "ray": str(lab.worker_bin / "ray"),
        "address": f"{lab.head.address}:6379",
        "env": ENV,
        "runs": args.runs,
        "seed": args.seed,
        "faults": args.faults,
        "hang_s": args.hang_s,
    }
    argv = [sys.executable, str(ROOT / "bench" / "support" / "heal_driver.py"), json.dumps(given)]
    pipe = subprocess.PIPE
    driver = lab.head.popen(argv, env=ENV, stdin=pipe, stdout=pipe)
    found: Found = {fault: {name: [] for name in NAMES} for fault in args.faults}
    for line in driver.stdout:
        if not line.startswith('["'):
            continue  # what Ray says about the deaths
        word, *rest = json.loads(line)
        if word == "power off and on":
            driver.stdin.write(f"{power_loss(lab, rest[0], args.off_s)}\n")
            driver.stdin.flush()
            continue
        name, took_s = rest
        found[word][name].append(took_s)
        print(f"{word:6} {NAMES[name]:26} {text(took_s)}", flush=True)
    assert driver.wait(120) == 0, "the driver failed; see above"
    return found


def power_loss(lab: Any, name: str, off_s: float) -> float:
    """Take the power away for so long; the monotonic time at which the SSH server listens again."""
    host = lab.hosts[name]
    host.power_off()
    cut = lab.head.run(lab.ssh(name, "true", ConnectTimeout="1")).returncode == 255
    assert cut, f"{name} answers without power: no valid trial"
    time.sleep(max(0.0, off_s - 1.0))
    host.power_on()
    return time.monotonic()


def text(took_s: float | None) -> str:
    """A time, or that there was none."""
    return " never" if took_s is None else f"{took_s:6.2f} s"


def report(found: Found, args: argparse.Namespace) -> None:
    """Print it, and keep it."""
    print()
    middle = {
        fault: {name: median(values) for name, values in times.items()} for fault, times in found.items()
    }
    for fault in found:
        for line in ratios(fault, middle[fault], args):
            print(line)
    print()
    for fault, times in found.items():
        for name, values in times.items():
            known = [v for v in values if v is not None]
            spread = "never"
            if known:
                spread = f"min {min(known):6.2f}  median {middle[fault][name]:6.2f}  max {max(known):6.2f} s"
                spread += f"  never {len(values) - len(known)}" if len(known) < len(values) else ""
            print(f"{fault:6} {NAMES[name]:26} {spread}  n={len(values)}")
    off = f", off for {args.off_s:g} s" if "power" in found else ""
    hang = f", hang_s {args.hang_s:g}" if "stop" in found else ""
    print(f"seed {args.seed}{hang}{off}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    kept = {"seed": args.seed, "hang_s": args.hang_s, "off_s": args.off_s, **found}
    (ROOT / "bench" / "results" / "heal_hosts.json").write_text(json.dumps(kept))


def median(values: list[float | None]) -> float:
    """The median, where never is later than all."""
    return statistics.median(float("inf") if v is None else v for v in values)


def ratios(fault: str, of: dict[str, float], args: argparse.Namespace) -> list[str]:
    """The ratios of a fault, with their goals."""
    ours, loop, bare = of["ours"], of["loop"], of["bare"]
    beside = [f"{fault}: to usable / ray start at once = {ours / bare:.2f}"]
    if loop != float("inf"):
        goal = "   (goal: below 1)" if fault == "kill" else ""
        beside.insert(0, f"{fault}: to usable / shell loop         = {ours / loop:.2f}{goal}")
    if fault == "stop":
        late = (ours - args.hang_s) / bare
        first = f"stop: (to usable - hang_s) / ray start at once = {late:.2f}   (goal: at most 1.1)"
        never = f"stop: the shell loop did not repair it within {args.hang_s + 60:g} s"
        return [first, never] if loop == float("inf") else [first, *beside]
    if fault == "power":
        goal_s = 1.1 * bare + 3
        beside[-1] += f"   (goal: at most 1.1 x + 3 s from the moment SSH answers: {goal_s:.1f} s here)"
    return beside
