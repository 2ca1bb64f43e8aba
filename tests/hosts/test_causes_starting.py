"""A node that cannot join: the output of its start says why, and there is no second try. Real Ray, slow."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.cluster import until
from tests.support.hosts import Lab
from tests.support.lab_cluster import LabCluster

pytestmark = [pytest.mark.hosts, pytest.mark.slow]
OTHER_RAY = """#!/bin/sh
echo "RuntimeError: Version mismatch: The cluster was started with:" >&2
echo "    Ray: 2.60.0" >&2
echo "This process on node 10.77.0.11 was started with:" >&2
echo "    Ray: 2.9.3" >&2
exit 1
"""


@pytest.fixture(scope="module")
def cluster(lab: Lab) -> Iterator[LabCluster]:
    made = LabCluster(lab, nodes={"gpu1": {"ray_bin": str(bin_of(lab))}})
    try:
        started = made.start()
        if started.returncode == 3:  # a busy machine: Ray gave up; again starts what is missing
            started = made.start()
        assert started.returncode == 0, started.stdout + started.stderr
        yield made
    finally:
        made.clean()


def bin_of(lab: Lab) -> Path:
    """A folder of its own with a `ray` that a test can replace, as an update of the system may."""
    folder = lab.folder / "other-ray"
    folder.mkdir(exist_ok=True)
    use(lab, f'#!/bin/sh\nexec {lab.worker_bin / "ray"} "$@"\n')
    return folder


def use(lab: Lab, script: str) -> None:
    command = lab.folder / "other-ray" / "ray"
    command.write_text(script)
    command.chmod(0o755)


def test_another_version_of_ray_is_the_cause_and_is_not_tried_again(cluster: LabCluster) -> None:
    old = cluster.raylet("gpu1")
    use(cluster.lab, OTHER_RAY)
    cluster.lab.hosts["gpu1"].kill(old)
    story = cluster.comes("gpu1", "GAVE_UP", "cannot join", 60)
    assert len(story["attempts"]) == 1
    incident = cluster.incidents()[0]
    assert (incident["cause"], incident["phase"]) == ("cannot join", "needs a person")
    assert any("version" in step["text"] for step in incident["steps"]), incident["steps"]


def test_a_token_that_is_not_the_clusters_is_the_cause(cluster: LabCluster) -> None:
    old = cluster.raylet("gpu2")
    head = cluster.lab.head.path("/root/.local/state/grid-agent/lab/ray_token")
    kept = head.read_text()
    # Ray on the head can start no process with that token; what repairs from there must be up.
    until(lambda: cluster.titled("gpu-master", "ray::GridAgentRepairer"), 30)
    head.write_text("another\n")  # what the repair copies to the node
    try:
        cluster.lab.hosts["gpu2"].kill(old)
        story = cluster.comes("gpu2", "GAVE_UP", "cannot join", 90)
        assert any("auth" in a["detail"] for a in story["attempts"]), story["attempts"]
    finally:
        head.write_text(kept)
