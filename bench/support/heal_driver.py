"""The driver of `bench/heal.py --hosts`, on the head: does the harm, and sees who comes back when."""

import contextlib
import json
import random
import shlex
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

STEP_S = 300  # on a busy machine a start alone takes most of a minute, and is given up by Ray at times
# Waits for a line, so that the login is over when the harm is due, and says when it was done. A raylet that
# shall be stopped must be seen stopped.
SIGNAL = """
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
        os.kill(int(pid), int(sys.argv[2]))
        time.sleep(0.05)
        stopped = sys.argv[2] == "9" or open(f"/proc/{pid}/stat").read().rpartition(")")[2].split()[0] == "T"
        print(began if stopped else "not stopped", flush=True)
"""


class Driver:
    """Harms raylets on the workers, and sees them come back."""

    def __init__(self, given: dict[str, Any]) -> None:
        self.given = given
        self.rng = random.Random(given["seed"])
        self.now: dict[str, str] = {}  # name -> node id of the raylet that lives
        self.seen: set[str] = set()
        self.hosts = {"gpu1": "gpu1", "loop": "gpu2", "bare": "gpu3"}
        self.loop: subprocess.Popen[str] | None = None
        with step("connect to Ray"):
            ray.init(given["address"], log_to_driver=False, logging_level="ERROR")
        self.noop = ray.remote(num_cpus=0, max_retries=0)(lambda: None)
        self.faults: dict[str, Callable[[str], float | None]] = {
            "kill": self.killed,
            "stop": self.stopped,
            "power": self.powerless,
        }

    # --- what the contenders do ---

    def start(self, name: str, *more: str) -> str:
        """The shell words of `ray start`, with its own folder for sessions."""
        env = ["env", *(f"{key}={value}" for key, value in self.given["env"].items())]
        flags = ["--num-cpus=1", "--num-gpus=0", "--object-store-memory=80000000", "--disable-usage-stats"]
        argv = [self.given["ray"], "start", f"--address={self.given['address']}", f"--node-name={name}"]
        return shlex.join([*env, *argv, *flags, f"--temp-dir=/tmp/{name}", *more])

    def ssh(self, host: str, command: str, **more: Any) -> "subprocess.Popen[str]":
        """A command on a host, by a login of its own."""
        more = {**dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.DEVNULL), **more}
        return subprocess.Popen([*self.given["ssh"][host], command], text=True, **more)

    def begin_bare(self) -> "subprocess.Popen[str]":
        """A start by hand, and again where Ray gives up, as it does on a busy machine."""
        return self.ssh("gpu3", f"until {self.start('bare')}; do :; done")

    def begin_loop(self) -> None:
        """The shell loop, as at boot."""
        if self.loop is not None:
            self.loop.kill()
            self.loop.wait()
        self.loop = self.ssh("gpu2", f"while :; do {self.start('loop', '--block')}; done")

    # --- one run ---

    def run(self) -> None:
        """Bring the two others up, then measure each way `runs` times, in turn, at a random phase."""
        self.begin_loop()
        bare = self.begin_bare()
        try:
            for name in self.hosts:
                self.back(name)
            bare.wait(STEP_S)
            for _ in range(self.given["runs"]):
                for fault in self.given["faults"]:
                    for name in self.rng.sample(sorted(self.hosts), len(self.hosts)):
                        self.measure(fault, name)
        finally:
            if self.loop is not None:
                self.loop.kill()

    def measure(self, fault: str, name: str) -> None:
        """One fault, once the agent has nothing to heal."""
        with step("the agent says pass"):
            self.until_pass()
        time.sleep(self.rng.uniform(3, 5))
        with step(f"{fault} to usable: {name}", 2 * STEP_S + self.given["hang_s"]):
            took_s = self.faults[fault](name)
        print(json.dumps([fault, "ours" if name == "gpu1" else name, took_s]), flush=True)

    def killed(self, name: str) -> float:
        """Seconds from the kill to a task on the next life of this node."""
        began = self.signal(name, signal.SIGKILL)
        started = self.begin_bare() if name == "bare" else None
        self.back(name)
        took_s = time.monotonic() - began
        if started is not None:
            started.wait(STEP_S)
        return took_s

    def stopped(self, name: str) -> float | None:
        """The same from SIGSTOP; who knew it kills the raylet first. None: not in time."""
        if name == "bare":
            return self.killed(name)
        began = self.signal(name, signal.SIGSTOP)
        bound_s = self.given["hang_s"] + 60
        if self.usable(name, bound_s):
            return time.monotonic() - began
        self.signal(name, signal.SIGKILL)
        self.back(name)
        return None

    def powerless(self, name: str) -> float:
        """Seconds from the moment at which SSH answers after a power loss."""
        print(json.dumps(["power off and on", self.hosts[name]]), flush=True)
        began = float(sys.stdin.readline())
        started = None
        if name == "loop":
            self.begin_loop()
        elif name == "bare":
            started = self.begin_bare()
        self.back(name)
        took_s = time.monotonic() - began
        if started is not None:
            started.wait(STEP_S)
        return took_s

    def signal(self, name: str, number: int) -> float:
        """Send a signal to a raylet, on its host; when that was."""
        command = f"python3 -S -c {shlex.quote(SIGNAL)} {self.now[name]} {int(number)}"
        pipe = subprocess.PIPE
        sender = self.ssh(self.hosts[name], command, stdin=pipe, stdout=pipe)
        assert sender.stdin is not None
        assert sender.stdout is not None
        assert sender.stdout.readline() == "ready\n"
        sender.stdin.write("now\n")
        sender.stdin.flush()
        began = float(sender.stdout.readline())
        sender.stdin.close()
        sender.wait(STEP_S)
        return began

    # --- what is seen ---

    def back(self, name: str) -> None:
        """Wait until this node is usable again, which it must be."""
        assert self.usable(name, STEP_S), f"{name} was not usable within {STEP_S} s"

    def usable(self, name: str, within_s: float) -> bool:
        """Wait until a task pinned to a new life of this node has completed.

        A dead raylet may stay listed ALIVE for minutes: only a node id that was never seen counts.
        """
        deadline = time.monotonic() + within_s
        while time.monotonic() < deadline:
            rows = {n["NodeID"] for n in ray.nodes() if n["NodeName"] == name and n["Alive"]}
            for node_id in rows - self.seen:
                pin = NodeAffinitySchedulingStrategy(node_id, soft=False)
                # The raylet here may hear of the node a moment later than we did.
                with contextlib.suppress(ray.exceptions.TaskUnschedulableError):
                    ray.get(self.noop.options(scheduling_strategy=pin).remote(), timeout=STEP_S)
                    self.seen |= rows
                    self.now[name] = node_id
                    return True
            time.sleep(0.02)
        return False

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
def step(name: str, within_s: float = STEP_S) -> Iterator[None]:
    """A deadline for one step; what did not end in time is named."""

    def late(*_: object) -> None:
        raise TimeoutError(f"not within {within_s:g} s: {name}")

    signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, within_s)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


if __name__ == "__main__":
    Driver(json.loads(sys.argv[1])).run()
