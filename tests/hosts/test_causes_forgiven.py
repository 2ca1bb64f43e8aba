"""Ray never kills a slow node, and neither do we: a minute of each, with the shipped times. Real Ray."""

import sys
import time
from collections.abc import Iterator

import pytest

from tests.support.delay import delayed
from tests.support.hosts import Lab
from tests.support.lab_cluster import CPU, LabCluster
from tests.support.swap import paged_out, swap_file

pytestmark = [pytest.mark.hosts, pytest.mark.slow]
MINUTE_S = 60.0
LOST = ("DEAD", "REPAIRING", "GAVE_UP")


@pytest.fixture(scope="module")
def cluster(lab: Lab) -> Iterator[LabCluster]:
    made = LabCluster(lab)
    try:
        started = made.start()
        if started.returncode == 3:  # a busy machine: Ray gave up; again starts what is missing
            started = made.start()
        assert started.returncode == 0, started.stdout + started.stderr
        yield made
    finally:
        made.clean()


def lives(cluster: LabCluster) -> dict[str, tuple[int, str]]:
    """Pid and incarnation of every worker."""
    return {n: (cluster.raylet(n), str(cluster.why(n)["incarnation"])) for n in ("gpu1", "gpu2")}


def unharmed(cluster: LabCluster, before: dict[str, tuple[int, str]]) -> None:
    for name in before:
        cluster.comes(name, "ALIVE", None, 60)
    assert lives(cluster) == before
    assert not [i for i in cluster.incidents() if any("restarting" in s["text"] for s in i["steps"])]


KEPT = """
import os, sys
token = os.path.expanduser("~/.local/state/grid-agent/lab/ray_token")
os.environ.update(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN_PATH=token)
import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy as Pin
ray.init(f"{sys.argv[1]}:6379", namespace="users", log_to_driver=False, logging_level="ERROR")
class Counter:
    count = 0
    def add(self):
        self.count += 1
        return self.count
nodes = {n["NodeName"]: n["NodeID"] for n in ray.nodes() if n["Alive"]}
for name in sys.argv[2:]:
    options = {"name": f"kept-{name}", "lifetime": "detached", "get_if_exists": True, "num_cpus": 0}
    made = ray.remote(Counter).options(**options, scheduling_strategy=Pin(nodes[name], soft=False)).remote()
    print(name, ray.get(made.add.remote(), timeout=30))
"""


def counted(cluster: LabCluster, *names: str) -> list[str]:
    """Add one in the actor that lives on each of these workers, and is made where there is none."""
    said = cluster.python("-c", KEPT, cluster.lab.head.address, *names)
    assert said.returncode == 0, said.stderr[-2000:]
    return [line for line in said.stdout.splitlines() if line.startswith("gpu")]


def test_a_stopped_raylet_and_a_cut_link_at_the_same_time(cluster: LabCluster) -> None:
    before = lives(cluster)
    assert counted(cluster, "gpu1", "gpu2") == ["gpu1 1", "gpu2 1"]
    with cluster.paused("gpu1", before["gpu1"][0]), cluster.cut("gpu2"):
        began = time.monotonic()
        cluster.comes("gpu1", "SUSPECT", "hung", 20)
        cluster.comes("gpu2", "SUSPECT", "host down", 30)
        assert counted(cluster, "gpu1") == ["gpu1 2"]  # its raylet is stopped, and its actor answers
        time.sleep(max(0.0, began + MINUTE_S - time.monotonic()))
    cluster.comes("gpu2", "ALIVE", None, 10)  # though TCP sends on no old connection for another 40 s
    unharmed(cluster, before)
    assert counted(cluster, "gpu1", "gpu2") == ["gpu1 3", "gpu2 2"]


@pytest.mark.skipif(not (CPU / "cpu.cfs_quota_us").exists(), reason="CPU is limited by cgroup v1")
def test_a_starved_raylet(cluster: LabCluster) -> None:
    before = lives(cluster)
    with cluster.starved([before["gpu1"][0]], percent=0.2):
        seen = cluster.stays("gpu1", before["gpu1"][0], MINUTE_S)
    assert ("SUSPECT", "hung") in seen
    assert not [s for s, _ in seen if s in LOST]
    unharmed(cluster, before)


def test_a_raylet_that_swaps(cluster: LabCluster) -> None:
    before = lives(cluster)
    with swap_file(cluster.lab.folder / "swap"), paged_out(before["gpu2"][0]):
        seen = cluster.stays("gpu2", before["gpu2"][0], MINUTE_S)
    assert not [s for s, _ in seen if s in LOST]
    unharmed(cluster, before)


CONNECT = """
import socket, sys, time
began = time.monotonic()
socket.create_connection((sys.argv[1], 22), 10).close()
print(time.monotonic() - began)
"""


def test_a_cable_on_which_every_answer_takes_most_of_a_second(cluster: LabCluster) -> None:
    before, host = lives(cluster), cluster.lab.hosts["gpu1"]
    with delayed(cluster.lab, "gpu1", 0.3, jitter_s=0.2):
        took = cluster.lab.head.run([sys.executable, "-I", "-S", "-c", CONNECT, host.address]).stdout
        assert float(took) > 0.6, "the cable was as quick as ever"
        seen = cluster.stays("gpu1", before["gpu1"][0], MINUTE_S)
    assert not [s for s, _ in seen if s in LOST]
    unharmed(cluster, before)


def test_a_third_of_the_packets_lost(cluster: LabCluster) -> None:
    before = lives(cluster)
    rules = cluster.lab.loss("gpu1", 30)
    try:
        seen = cluster.stays("gpu1", before["gpu1"][0], MINUTE_S)
        assert not [s for s, _ in seen if s in LOST]
        assert {c for s, c in seen if s == "SUSPECT"} <= {None, "head cannot reach it", "host down", "hung"}
        lost = cluster.lab.nft("list", "chain", "bridge", "lab", "frames")
        assert "counter packets 0 " not in lost, "no frame was lost"
    finally:
        for rule in rules:
            rule.undo()
    unharmed(cluster, before)
