"""Kill to usable on hosts over SSH, made of namespaces: `python bench/heal.py --hosts` (as root).

In one run, one after another, on a worker host each: grid-agent; a bare `ray start` over ssh that begins at
the very moment of the kill, as if somebody had known it; and a shell loop around `ray start --block` on the
worker, which is what systemd does. A time begins when `kill -9` was sent on the worker itself and ends when a
task pinned to the new node has completed, as a driver on the head sees it. Prints ratios first, then medians;
writes bench/results/heal_hosts.json. The second half of this file runs as that driver.
"""

import argparse
import contextlib
import json
import os
import random
import shlex
import signal
import statistics
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

ROOT = Path(__file__).resolve().parent.parent
GOAL = "goal: at most 1.2"
NAMES = {"ours": "grid-agent", "loop": "shell loop, --block", "bare": "ray start by ssh, at once"}
ENV = {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}
STEP_S = 120
# Waits for a line, so that the login is over when the kill is due, and says when it sent it.
KILL = """
import os, sys, time
print("ready", flush=True)
sys.stdin.readline()
for pid in filter(str.isdigit, os.listdir("/proc")):
    try:
        argv = open(f"/proc/{pid}/cmdline", "rb").read().split(bytes(1))
    except OSError:
        continue
    if argv[0].endswith(b"/raylet") and f"--node_id={sys.argv[1]}".encode() in argv:
        began = time.monotonic()
        os.kill(int(pid), 9)
        print(began, flush=True)
"""


def main(runs: int, seed: int) -> None:
    """Make the hosts, start the cluster without two of them, measure, report."""
    sys.path.insert(0, str(ROOT))
    from tests.support.cluster import UNLIMITED
    from tests.support.hosts import Lab, missing_tools

    if missing := missing_tools():
        raise SystemExit(missing)
    with Lab(workers=3) as lab:
        file = lab.write_cluster_file(ray={"auth": "disabled"}, guards=UNLIMITED)
        spec = json.loads(file.read_text())
        spec["nodes"] = [node for node in spec["nodes"] if node["name"] not in ("gpu2", "gpu3")]
        file.write_text(json.dumps(spec))
        start = [sys.executable, str(ROOT / "bootstrap" / "start.py"), "-c", str(file)]
        started = lab.head.run(start, env=ENV, timeout_s=240)
        assert started.returncode == 0, started.stdout + started.stderr
        given = {
            "ssh": {name: lab.ssh(name) for name in ("gpu1", "gpu2", "gpu3")},
            "ray": str(lab.worker_bin / "ray"),
            "address": f"{lab.head.address}:6379",
            "runs": runs,
            "seed": seed,
        }
        driver = lab.head.popen(
            [sys.executable, __file__, "--driver", json.dumps(given)], env=ENV, stdout=subprocess.PIPE
        )
        found: dict[str, list[float]] = {name: [] for name in NAMES}
        assert driver.stdout is not None
        for line in driver.stdout:
            if not line.startswith('["'):
                continue  # what Ray says about the deaths
            name, took_s = json.loads(line)
            found[name].append(took_s)
            print(f"{NAMES[name]:26} {took_s:6.2f} s", flush=True)
        assert driver.wait(STEP_S) == 0, "the driver failed; see above"
        log = lab.head.path("/root/.local/state/grid-agent/lab/logs/agent.log")
        (ROOT / "bench" / "results").mkdir(exist_ok=True)
        (ROOT / "bench" / "results" / "heal_hosts.log").write_text(log.read_text())
    report(found, seed)


def report(found: dict[str, list[float]], seed: int) -> None:
    """Print it, and keep it."""
    median = {name: statistics.median(values) for name, values in found.items()}
    print(f"\nkill to usable / shell loop            = {median['ours'] / median['loop']:.2f}   ({GOAL})")
    print(f"kill to usable / ray start at the kill = {median['ours'] / median['bare']:.2f}")
    for name, values in found.items():
        low, high = min(values), max(values)
        print(
            f"{NAMES[name]:26} min {low:6.2f}  median {median[name]:6.2f}  max {high:6.2f} s  n={len(values)}"
        )
    print(f"seed {seed}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    (ROOT / "bench" / "results" / "heal_hosts.json").write_text(json.dumps({"seed": seed, **found}))


# --- the driver, on the head ---------------------------------------------------------------------


class Driver:
    """Kills raylets on the workers, and sees them come back."""

    def __init__(self, given: dict[str, Any]) -> None:
        self.given = given
        self.rng = random.Random(given["seed"])
        self.now: dict[str, str] = {}  # name -> node id of the raylet that lives
        self.seen: set[str] = set()
        with step("connect to Ray"):
            ray.init(given["address"], log_to_driver=False, logging_level="ERROR")
        self.noop = ray.remote(num_cpus=0, max_retries=0)(lambda: None)
        self.measures: dict[str, Callable[[], float]] = {
            "ours": lambda: self.killed("gpu1", "gpu1", None),
            "loop": lambda: self.killed("gpu2", "loop", None),
            "bare": lambda: self.killed("gpu3", "bare", lambda: self.ssh("gpu3", self.start("bare"))),
        }

    def start(self, name: str, *more: str) -> str:
        """The shell words of `ray start`, with its own folder for sessions."""
        env = ["env", *(f"{key}={value}" for key, value in ENV.items())]
        flags = ["--num-cpus=1", "--num-gpus=0", "--object-store-memory=80000000", "--disable-usage-stats"]
        argv = [self.given["ray"], "start", f"--address={self.given['address']}", f"--node-name={name}"]
        return shlex.join([*env, *argv, *flags, f"--temp-dir=/tmp/{name}", *more])

    def ssh(self, host: str, command: str, **more: Any) -> "subprocess.Popen[str]":
        """A command on a host, by a login of its own."""
        more = {**dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.DEVNULL), **more}
        return subprocess.Popen([*self.given["ssh"][host], command], text=True, **more)

    def run(self) -> None:
        """Bring the two others up, then measure each way `runs` times, in turn, at a random phase."""
        loop = self.ssh("gpu2", f"while :; do {self.start('loop', '--block')}; done")
        bare = self.ssh("gpu3", self.start("bare"))
        try:
            for name in ("gpu1", "loop", "bare"):
                with step(f"first life of {name}"):
                    self.usable(name)
            bare.wait(STEP_S)
            for _ in range(self.given["runs"]):
                for name in self.rng.sample(sorted(self.measures), len(self.measures)):
                    with step("the agent says pass"):
                        self.until_pass()
                    time.sleep(self.rng.uniform(3, 5))
                    with step(f"kill to usable: {name}"):
                        print(json.dumps([name, self.measures[name]()]), flush=True)
        finally:
            loop.kill()

    def killed(self, host: str, name: str, follow: Callable[[], Any] | None) -> float:
        """Seconds from the kill to a task on the next life of this node."""
        command = f"python3 -S -c {shlex.quote(KILL)} {self.now[name]}"
        pipe = subprocess.PIPE
        killer = self.ssh(host, command, stdin=pipe, stdout=pipe)
        assert killer.stdin is not None
        assert killer.stdout is not None
        assert killer.stdout.readline() == "ready\n"
        killer.stdin.write("now\n")
        killer.stdin.flush()
        began = float(killer.stdout.readline())
        started = follow() if follow is not None else None
        self.usable(name)
        took_s = time.monotonic() - began
        for process in filter(None, (killer, started)):
            process.wait(STEP_S)
        return took_s

    def usable(self, name: str) -> None:
        """Wait until a task pinned to a new life of this node has completed.

        A dead raylet may stay listed ALIVE for minutes: only a node id that was never seen counts.
        """
        while True:
            rows = [n["NodeID"] for n in ray.nodes() if n["NodeName"] == name and n["Alive"]]
            if new := set(rows) - self.seen:
                break
            time.sleep(0.02)
        self.seen |= new
        self.now[name] = new.pop()
        pin = NodeAffinitySchedulingStrategy(self.now[name], soft=False)
        ray.get(self.noop.options(scheduling_strategy=pin).remote(), timeout=STEP_S)

    def until_pass(self) -> None:
        """Wait until the agent has nothing to heal."""
        while True:
            with contextlib.suppress(OSError):
                url = "http://127.0.0.1:8000/cluster/health"
                with urllib.request.urlopen(url, timeout=5) as answer:
                    if json.load(answer)["status"] == "pass":
                        return
            time.sleep(0.2)


@contextlib.contextmanager
def step(name: str) -> Iterator[None]:
    """A deadline for one step; what did not end in time is named."""

    def late(*_: object) -> None:
        raise TimeoutError(f"not within {STEP_S} s: {name}")

    signal.signal(signal.SIGALRM, late)
    signal.alarm(STEP_S)
    try:
        yield
    finally:
        signal.alarm(0)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--driver", type=json.loads, required=True, help="used by heal.py --hosts only")
    Driver(parser.parse_args().driver).run()
