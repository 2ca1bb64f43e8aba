"""start.py to the first 200, beside the same bare commands by hand, in one run: `python bench/start.py`.

By hand: `ray start --head`, two `ray start` at once, then the same deployment; until `/cluster/health` says
200. The bare workers get temp dirs of their own: two at once in one session choose the same socket name.
Prints the ratio first, then medians; writes bench/results/start.json.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import httpx

from tests.support.cluster import BIN, ROOT, Cluster, until

GOAL = "goal: at most 1.3"


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=3)
    args = parser.parse_args()
    ours, bare = [], []
    for run in range(args.runs):
        bare.append(by_hand())
        ours.append(by_start())
        print(f"run {run + 1}: bare {bare[-1]:.1f} s, start.py {ours[-1]:.1f} s", flush=True)
    print(f"\nstart.py / bare commands = {statistics.median(ours) / statistics.median(bare):.2f}   ({GOAL})")
    for name, values in (("bare commands", bare), ("start.py", ours)):
        low, mid, high = min(values), statistics.median(values), max(values)
        print(f"{name:14} min {low:5.1f}  median {mid:5.1f}  max {high:5.1f} s  n={len(values)}")
    results = Path(__file__).parent / "results"
    results.mkdir(exist_ok=True)
    (results / "start.json").write_text(json.dumps({"bare_s": bare, "ours_s": ours}))


def by_start() -> float:
    """Seconds from the command to the first 200."""
    cluster = Cluster()
    try:
        begun = time.monotonic()
        with subprocess.Popen(
            [sys.executable, str(ROOT / "bootstrap" / "start.py"), "-c", str(cluster.file)],
            env=cluster.environ(),
            stdout=subprocess.DEVNULL,
        ):
            return first_200(cluster, begun)
    finally:
        cluster.close()


def by_hand() -> float:
    """The same with bare commands, as somebody would type them into a script."""
    cluster = Cluster()
    env = cluster.environ()
    env.pop("PYTHONPATH")
    ray = [
        str(BIN / "ray"),
        "start",
        "--object-store-memory=80000000",
        "--num-gpus=0",
        "--disable-usage-stats",
    ]
    head = [*ray, "--head", f"--port={cluster.port}", "--num-cpus=0", "--node-name=head", "--no-monitor"]
    head += [f"--dashboard-port={cluster.dashboard_port}", f"--temp-dir={cluster.home / 'r'}"]
    head += [
        "--labels=grid-agent/role=head",
        "--dashboard-agent-listen-port=0",
        "--ray-client-server-port=21001",
    ]
    worker = [*ray, f"--address=127.0.0.1:{cluster.port}", "--num-cpus=1", "--include-log-monitor=False"]
    worker += ["--dashboard-agent-listen-port=0"]
    settings = cluster.home / "settings.json"
    settings.write_text(json.dumps(cluster.spec))
    deploy = [sys.executable, "-m", "deployments.deploy", "--settings", str(settings)]
    deploy += ["--gcs-address", f"127.0.0.1:{cluster.port}"]
    begun = time.monotonic()
    try:
        subprocess.run(head, env=env, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        started = []
        for name in ("w1", "w2"):
            mine = [*worker, f"--node-name={name}", f"--temp-dir={cluster.home / name}"]
            started.append(
                subprocess.Popen(mine, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            )
        for process in started:
            assert process.wait() == 0
        subprocess.run(
            deploy, env=env, check=True, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        return first_200(cluster, begun)
    finally:
        end(cluster)


def first_200(cluster: Cluster, begun: float) -> float:
    """Wait for it."""
    url = f"{cluster.url}/cluster/health"
    until(lambda: httpx.get(url, timeout=2, trust_env=False).status_code == 200, 180, 0.05)
    return time.monotonic() - begun


def end(cluster: Cluster) -> None:
    """End what the bare commands left, by pid."""
    from grid_agent.edges.host import program

    address = next(
        (
            part.removeprefix("--gcs-address=")
            for pid in cluster.raylets().values()
            for part in Path(f"/proc/{pid}/cmdline").read_text().split("\0")
            if part.startswith("--gcs-address=")
        ),
        None,
    )
    if address:
        program.handle({"op": "end_cluster", "gcs_address": address, "temp_dir": str(cluster.home / "r")})
    cluster.close()


if __name__ == "__main__":
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    main()
