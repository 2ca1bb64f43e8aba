"""Kill to usable, beside a bare `ray start` of the same worker, in one run: `python bench/heal.py [--hosts]`.

Both times end when a task pinned to the new node has completed, as one driver sees it. The kill comes at a
random phase of the agent's intervals. Prints the ratio first, then medians; writes bench/results/heal.json.
"""

import argparse
import json
import os
import random
import signal
import statistics
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import heal_hosts
import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from config import loader
from grid_agent.core import raystart
from grid_agent.edges.host import program
from tests.support.cluster import UNLIMITED, Cluster, until

GOAL = "goal: at most 1.5 x bare start + 3 s"


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    parser.add_argument("--hosts", action="store_true", help="on hosts over SSH, made of namespaces; root")
    hosts = parser.add_argument_group("with --hosts")
    hosts.add_argument("--faults", choices=heal_hosts.FAULTS, nargs="+", default=["kill"])
    hosts.add_argument("--hang-s", type=float, default=90.0, help="agent.hang_s of the run (default: 90)")
    hosts.add_argument("--off-s", type=float, default=10.0, help="how long the power is off (default: 10)")
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what was started is ended
    if args.hosts:
        heal_hosts.main(args)
        return
    rng = random.Random(args.seed)
    cluster = Cluster(guards=UNLIMITED)
    try:
        started = cluster.start()
        assert started.returncode == 0, started.stdout + started.stderr
        os.environ["RAY_AUTH_MODE"] = "disabled"
        ray.init(f"127.0.0.1:{cluster.port}", log_to_driver=False, logging_level="ERROR")
        bare, healed = [], []
        for run in range(args.runs):
            bare.append(bare_start(cluster))
            settle(cluster)
            time.sleep(rng.uniform(1, 3))
            healed.append(kill_to_usable(cluster, f"w{run % 2 + 1}"))
            settle(cluster)
            print(f"run {run + 1}: bare {bare[-1]:.2f} s, kill to usable {healed[-1]:.2f} s", flush=True)
        report(bare, healed, args.seed)
    finally:
        ray.shutdown()
        cluster.close()


def usable(name: str, known: set[str], timeout_s: float = 120) -> str:
    """Wait until a task pinned to a new incarnation of `name` has completed; its node id."""
    deadline = time.monotonic() + timeout_s
    noop = ray.remote(num_cpus=0, max_retries=0)(lambda: None)
    while time.monotonic() < deadline:
        for node in ray.nodes():
            if node["NodeName"] == name and node["Alive"] and node["NodeID"] not in known:
                pin = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
                ray.get(noop.options(scheduling_strategy=pin).remote(), timeout=timeout_s)
                return str(node["NodeID"])
        time.sleep(0.02)
    raise TimeoutError(f"{name} was not usable within {timeout_s} s")


def bare_start(cluster: Cluster) -> float:
    """Seconds from `ray start` of one more worker, by hand, to a task on it."""
    settings = loader.loads(cluster.file.read_text(), str(cluster.file), {})
    node = settings.workers[0].model_copy(update={"name": "bare"})
    gcs_address = ray.get_runtime_context().gcs_address
    known = {n["NodeID"] for n in ray.nodes()}
    request: dict[str, Any] = {
        "op": "start",
        "argv": raystart.worker_argv(settings, node, gcs_address),
        "env": {
            k: v for k, v in raystart.node_env(settings, node, os.environ).items() if "raylet_client" not in k
        },
        "log": str(cluster.home / "bare.log"),
        "lock": str(cluster.home / "bare.lock"),
        "timeout_s": 120,
        "node_name": "bare",
        "gcs_address": gcs_address,
    }
    import threading

    begun = time.monotonic()
    thread = threading.Thread(target=program.handle, args=(request,))
    thread.start()
    node_id = usable("bare", known)
    took_s = time.monotonic() - begun
    thread.join()
    program.handle({"op": "end", "gcs_address": gcs_address, "node_name": "bare", "node_id": node_id})
    return took_s


def kill_to_usable(cluster: Cluster, name: str) -> float:
    """Seconds from `kill -9` of a worker's raylet to a task on its successor."""
    known = {n["NodeID"] for n in ray.nodes()}
    begun = time.monotonic()
    os.kill(cluster.raylets()[name], 9)
    usable(name, known)
    return time.monotonic() - begun


def settle(cluster: Cluster) -> None:
    """Until health passes again."""
    until(lambda: cluster.health()["status"] == "pass", 60)


def report(bare: list[float], healed: list[float], seed: int) -> None:
    """Ratio first, then the medians and extremes."""
    b, h = statistics.median(bare), statistics.median(healed)
    print(f"\nkill to usable / bare start = {h / b:.2f}   ({GOAL}: {1.5 * b + 3:.1f} s here)")
    for name, values in (("bare ray start", bare), ("kill to usable", healed)):
        low, mid, high = min(values), statistics.median(values), max(values)
        print(f"{name:16} min {low:6.2f}  median {mid:6.2f}  max {high:6.2f} s  n={len(values)}")
    print(f"seed {seed}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    results = Path(__file__).parent / "results"
    results.mkdir(exist_ok=True)
    (results / "heal.json").write_text(json.dumps({"seed": seed, "bare_s": bare, "healed_s": healed}))


if __name__ == "__main__":
    main()
