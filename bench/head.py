"""Death of everything on the head to /cluster/health pass, beside the bare commands: `python bench/head.py`.

Bare: a script that knows the moment runs `ray start --head` with the same arguments, then `serve deploy` of
an application that does nothing, until that answers; nothing else of ours runs then. The two take turns. Also
measured: what the keeper costs at rest. Prints the ratio first, then medians; writes bench/results/head.json.
"""

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import httpx

from grid_agent.edges.host import program
from tests.support.cluster import BIN, Cluster, free_port, until

GOAL = "goal: at most 1.25"
NOTHING = """
from ray import serve
@serve.deployment(ray_actor_options={"num_cpus": 0})
class Nothing:
    async def __call__(self, request):
        return "ok"
app = Nothing.bind()
"""


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--rest", type=float, default=60.0, help="seconds over which the keeper is watched")
    args = parser.parse_args()
    seed = random.randrange(10**6)
    rng = random.Random(seed)
    healed: list[float] = []
    bare: list[float] = []
    share = memory_mb = 0.0
    for run in range(args.runs):
        cluster = Cluster(workers=1)
        try:
            bare.append(by_hand(cluster))
            started = cluster.start()
            assert started.returncode == 0, started.stdout + started.stderr
            time.sleep(rng.uniform(0, 5))
            healed.append(by_keeper(cluster))
            if run == args.runs - 1:
                share, memory_mb = at_rest(cluster, args.rest)
        finally:
            cluster.close()
        print(f"run {run + 1}: bare {bare[-1]:.1f} s, keeper {healed[-1]:.1f} s", flush=True)
    report(bare, healed, share, memory_mb, seed)


def by_keeper(cluster: Cluster) -> float:
    """Seconds from the kill of everything on the head to the first pass."""
    until(cluster.passes, 120)
    begun = time.monotonic()
    cluster.kill_head()
    until(lambda: passes(cluster), 240, 0.05)
    return time.monotonic() - begun


def passes(cluster: Cluster) -> bool:
    """Whether the agent says pass, head and worker ALIVE."""
    return bool(cluster.health()["status"] == "pass")


def by_hand(cluster: Cluster) -> float:
    """Seconds for the bare commands, on a head of their own beside the cluster."""
    port, dashboard, http = free_port(), free_port(), free_port()
    folder = cluster.home / "bare"
    folder.mkdir()
    (folder / "nothing.py").write_text(NOTHING)
    config = {
        "http_options": {"host": "127.0.0.1", "port": http},
        "applications": [{"name": "nothing", "route_prefix": "/", "import_path": "nothing:app"}],
    }
    config["applications"][0]["runtime_env"] = {"working_dir": f"local://{folder}"}  # type: ignore[index]
    (folder / "app.yaml").write_text(json.dumps(config))
    head = [str(BIN / "ray"), "start", "--head", f"--port={port}", f"--dashboard-port={dashboard}"]
    head += ["--num-cpus=0", "--num-gpus=0", "--object-store-memory=83886080", "--disable-usage-stats"]
    head += [f"--temp-dir={folder / 'r'}", "--dashboard-agent-listen-port=0", "--no-monitor"]
    head += ["--ray-client-server-port=21007", "--labels=grid-agent/role=head"]
    deploy = [str(BIN / "serve"), "deploy", "-a", f"http://127.0.0.1:{dashboard}", str(folder / "app.yaml")]
    env = {key: value for key, value in cluster.environ().items() if key != "PYTHONPATH"}
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "env": env, "cwd": folder}
    begun = time.monotonic()
    try:
        subprocess.run(head, check=True, **quiet)  # type: ignore[call-overload]
        subprocess.run(deploy, check=True, **quiet)  # type: ignore[call-overload]
        url = f"http://127.0.0.1:{http}/"
        until(lambda: httpx.get(url, timeout=2, trust_env=False).status_code == 200, 180, 0.05)
        return time.monotonic() - begun
    finally:
        end(port, folder)


def end(port: int, folder: Path) -> None:
    """End the bare head, by the address that its raylet names."""
    for raylet in program.handle({"op": "look", "gcs_port": port})["raylets"]:
        request = {"op": "end_cluster", "gcs_address": raylet["gcs_address"], "temp_dir": str(folder / "r")}
        program.handle(request)


def at_rest(cluster: Cluster, seconds: float) -> tuple[float, float]:
    """The keeper's share of a core over so many seconds, and its memory in MB."""
    until(cluster.passes, 120)
    pid = cluster.keeper()
    assert pid is not None
    before = ticks(pid)
    time.sleep(seconds)
    share = (ticks(pid) - before) / os.sysconf("SC_CLK_TCK") / seconds
    rss_kb = int(Path(f"/proc/{pid}/status").read_text().partition("VmRSS:")[2].split()[0])
    return share, rss_kb / 1000


def ticks(pid: int) -> int:
    """Its time on a CPU so far, in clock ticks."""
    words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(words[11]) + int(words[12])


def report(bare: list[float], healed: list[float], share: float, memory_mb: float, seed: int) -> None:
    """Ratio first, then the medians and extremes."""
    b, h = statistics.median(bare), statistics.median(healed)
    print(f"\nkill to pass / bare head and application = {h / b:.2f}   ({GOAL})")
    for name, values in (("bare commands", bare), ("kill to pass", healed)):
        low, mid, high = min(values), statistics.median(values), max(values)
        print(f"{name:14} min {low:6.2f}  median {mid:6.2f}  max {high:6.2f} s  n={len(values)}")
    print(f"the keeper at rest: {share:.2%} of a core, {memory_mb:.1f} MB   (goal: < 0.2 %, < 40 MB)")
    print(f"seed {seed}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    results = Path(__file__).parent / "results"
    results.mkdir(exist_ok=True)
    body = {"seed": seed, "bare_s": bare, "healed_s": healed, "share": share, "memory_mb": memory_mb}
    (results / "head.json").write_text(json.dumps(body))


if __name__ == "__main__":
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    main()
