"""Ray never kills a slow node, and neither do we: a minute of each, with the shipped times. Real Ray."""

import time
from collections.abc import Iterator

import pytest

from tests.support.cluster import until
from tests.support.hosts import Lab
from tests.support.lab_cluster import LabCluster

pytestmark = [pytest.mark.hosts, pytest.mark.slow]
MINUTE_S = 60.0


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


def test_a_stopped_raylet_and_a_cut_link_at_the_same_time(cluster: LabCluster) -> None:
    before = lives(cluster)
    with cluster.paused("gpu1", before["gpu1"][0]), cluster.cut("gpu2"):
        began = time.monotonic()
        cluster.comes("gpu1", "SUSPECT", "hung", 20)
        cluster.comes("gpu2", "SUSPECT", "host down", 30)
        time.sleep(max(0.0, began + MINUTE_S - time.monotonic()))
    unharmed(cluster, before)


def test_a_starved_raylet(cluster: LabCluster) -> None:
    before = lives(cluster)
    with cluster.starved([before["gpu1"][0]], percent=0.2):
        seen = cluster.stays("gpu1", before["gpu1"][0], MINUTE_S)
        assert ("DEAD", "hung") not in seen
    unharmed(cluster, before)


def test_a_third_of_the_packets_lost(cluster: LabCluster) -> None:
    before = lives(cluster)
    rules = cluster.lab.loss("gpu1", 30)
    try:
        seen = cluster.stays("gpu1", before["gpu1"][0], MINUTE_S)
        assert not [s for s, _ in seen if s in ("DEAD", "REPAIRING", "GAVE_UP")]
        lost = cluster.lab.nft("list", "chain", "bridge", "lab", "frames")
        assert "counter packets 0 " not in lost, "no frame was lost"
    finally:
        for rule in rules:
            rule.undo()
    unharmed(cluster, before)


def test_an_actor_behind_a_cut_link_answers_again(cluster: LabCluster) -> None:
    before = lives(cluster)
    with cluster.cut("gpu1"):
        time.sleep(20)
    until(lambda: cluster.state("gpu1") == ("ALIVE", None), 60, 0.5)
    unharmed(cluster, before)
