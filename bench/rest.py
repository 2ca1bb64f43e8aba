"""What the agent costs when nothing happens: `python bench/rest.py`.

A head and two workers with the agent, and beside it on the same head an idle application of one replica that
does nothing, and on each worker an actor that does nothing. The CPU of both replicas, of the probe and of the
empty actor on each worker over the same time, from /proc. Prints percents of one core; writes
bench/results/rest.json.
"""

import argparse
import json
import os
import signal
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import ray
from ray import serve

from tests.support.cluster import Cluster, processes

GOAL = "goal: below 2 % of a core"
NODE_GOAL = "goal: below 0.5 % for each node"
TICKS_PER_S = os.sysconf("SC_CLK_TCK")
KINDS = {
    "agent": "ServeReplica:grid-agent",
    "idle replica": "ServeReplica:idle",
    "probe": "GridAgentProbe",
    "empty actor": "ray::Empty",
}


@serve.deployment(num_replicas=1, ray_actor_options={"num_cpus": 0})
class Idle:
    """Does nothing."""

    def __call__(self) -> str:
        """Answer."""
        return "idle"


@ray.remote(num_cpus=0, scheduling_strategy="SPREAD")
class Empty:
    """Does nothing."""

    def ready(self) -> bool:
        """Answer."""
        return True


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--rest-s", type=float, default=60.0)
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what was started is ended
    cluster = Cluster()
    try:
        started = cluster.start()
        assert started.returncode == 0, started.stdout + started.stderr
        os.environ["RAY_AUTH_MODE"] = "disabled"
        ray.init(f"127.0.0.1:{cluster.port}", log_to_driver=False, logging_level="ERROR", namespace="bench")
        serve.run(Idle.bind(), name="idle", route_prefix="/idle", blocking=False)
        empty = [Empty.remote() for _ in range(3)]
        ray.get([actor.ready.remote() for actor in empty])
        time.sleep(20)  # the last of everybody's start
        runs = []
        for run in range(args.runs):
            runs.append(measure(args.rest_s))
            print(f"run {run + 1}: " + ", ".join(f"{k} {v:.2f} %" for k, v in runs[-1].items()), flush=True)
        report(runs)
    finally:
        ray.shutdown()
        cluster.close()


def measure(rest_s: float) -> dict[str, float]:
    """Percent of a core of each kind of process; of the probes, of one."""
    ours = {pid: title(argv) for pid, argv in processes().items() if belongs(pid)}
    before = {pid: used_s(pid) for pid in ours}
    time.sleep(rest_s)
    used = {pid: 100 * (used_s(pid) - at) / rest_s for pid, at in before.items()}
    found = {}
    for name, mark in KINDS.items():
        of = [used[pid] for pid, text in ours.items() if mark in text]
        assert of, f"no process called {mark}"
        found[name] = sum(of) / len(of)
    return found


def title(argv: list[str]) -> str:
    """The title that Ray gives a worker."""
    return " ".join(argv)


def belongs(pid: int) -> bool:
    """Whether a worker of Ray is one of this cluster: its parent's GCS is."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        parent = Path(f"/proc/{stat[1]}/cmdline").read_bytes().decode(errors="replace")
    except OSError:
        return False
    return f":{ray.get_runtime_context().gcs_address.rpartition(':')[2]}" in parent


def used_s(pid: int) -> float:
    """CPU seconds of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS_PER_S


def report(runs: list[dict[str, float]]) -> None:
    """The difference first."""
    runs = sorted(runs, key=lambda r: r["agent"] - r["idle replica"])
    middle = runs[len(runs) // 2]
    beyond = middle["agent"] - middle["idle replica"]
    print(f"\nthe agent beyond an idle replica: {beyond:.2f} % of a core   ({GOAL})")
    print(f"agent {middle['agent']:.2f} %, idle replica {middle['idle replica']:.2f} %")
    node = middle["probe"] - middle["empty actor"]
    print(f"the probe of a node beyond an empty actor: {node:.2f} %   ({NODE_GOAL})")
    print(f"probe {middle['probe']:.2f} %, empty actor {middle['empty actor']:.2f} %")
    print(f"median of {len(runs)}; {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    folder = Path(__file__).parent / "results"
    folder.mkdir(exist_ok=True)
    (folder / "rest.json").write_text(json.dumps(runs))


if __name__ == "__main__":
    main()
