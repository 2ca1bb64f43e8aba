"""One worker that cannot start does not stop the others; what is broken is named."""

import socket
from collections.abc import Iterator

import pytest

from tests.support.cluster import Cluster, until

pytestmark = pytest.mark.ray


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    made = Cluster()
    yield made
    made.close()


def test_a_worker_that_cannot_start_is_named_and_the_rest_runs(cluster: Cluster) -> None:
    cluster.spec["nodes"][2]["ray_bin"] = "/nowhere/bin"
    cluster.spec["agent"] = {"join_s": 5}
    cluster.save()
    started = cluster.start()
    assert started.returncode == 3, started.stdout + started.stderr
    said = started.stdout + started.stderr
    assert "w2" in said
    assert "/nowhere/bin/ray" in said
    assert "Traceback" not in said
    assert set(cluster.raylets()) == {"head", "w1"}
    assert cluster.state("w1") == "ALIVE"
    until(lambda: cluster.state("w2") == "GAVE_UP", 30)  # no ray there: trying again cannot help
    assert cluster.cli("status").returncode == 1


def test_a_taken_port_is_named_with_its_owner(cluster: Cluster) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", cluster.port))
        taken.listen()
        started = cluster.start()
    assert started.returncode == 3
    assert str(cluster.port) in started.stderr
    assert "python" in started.stderr or "pytest" in started.stderr
    assert cluster.raylets() == {}
