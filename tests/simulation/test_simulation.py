"""Nights of random harm on a virtual clock. A failure names its seed; `tests.simulation.run` replays it."""

from collections import Counter

import pytest

from grid_agent.core import messages as m
from grid_agent.core.model import Phase, Policy, Refusal, State
from grid_agent.testing import SimulatedCluster
from tests.core.invariants import believed, check_log
from tests.simulation.run import NOISE, night


def check(cluster: SimulatedCluster, seed: int) -> None:
    """What must be true of any night, when the dust has settled."""
    said = f"seed {seed}"
    assert cluster.false_repairs == [], said
    assert cluster.doubles == [], said
    check_log(cluster.log, policy=cluster.policy, names=cluster.hosts, head="head")
    believed(cluster.belief)
    for node in cluster.belief.nodes.values():
        if node.state is State.DEAD and node.refusal is Refusal.BREAKER:
            continue  # nothing is repaired until a person has looked
        assert node.state in (State.ALIVE, State.CORDONED, State.GAVE_UP), f"{said}: {node}"
        if node.state is State.GAVE_UP:
            assert node.incident_id is not None, said
            assert cluster.belief.incidents[node.incident_id].phase is Phase.NEEDS_PERSON, said
        else:
            assert node.incident_id is None, said
        if node.state is State.ALIVE:
            assert [p.listed for p in cluster.hosts[node.name].raylets] == [True], f"{said}: {node.name}"
    messages = Counter(o.incident.id for _, o in cluster.log if isinstance(o, m.Notify))
    for incident in cluster.belief.incidents.values():
        assert messages[incident.id] <= 25 * len(incident.nodes), f"{said}: incident {incident.id}"


@pytest.mark.parametrize("seed", range(30))
def test_a_night_of_harm(seed: int) -> None:
    check(night(seed, 3 + seed % 4, 0.3, every_s=15.0), seed)


def test_a_long_night_with_many_nodes() -> None:
    cluster = night(6, 50, 0.1, every_s=20.0)
    check(cluster, 6)
    assert len(cluster.detections) >= 5


@pytest.mark.parametrize("seed", range(5))
def test_slow_nodes_and_lost_heartbeats_restart_nobody(seed: int) -> None:
    cluster = SimulatedCluster(seed, 4, Policy(heartbeat_every_s=2.0), NOISE)
    for _ in range(10):
        cluster.run(cluster.rng.uniform(90, 200))  # one after the other: two in a row may exceed hang_s
        name = cluster.rng.choice(cluster.workers)
        if cluster.rng.random() < 0.5:
            cluster.slow(name, cluster.rng.uniform(1, 80))
        else:
            cluster.hang(name, cluster.rng.uniform(1, 80))
    cluster.run(200)
    check(cluster, seed)
    acted = [o for _, o in cluster.log if isinstance(o, m.RestartWorker | m.TellRay | m.Notify)]
    assert acted == [], f"seed {seed}"
    assert {cluster.state(n) for n in cluster.hosts} == {State.ALIVE}


def test_kills_are_found_within_a_second_one_after_the_other() -> None:
    cluster = SimulatedCluster(1, 5)
    cluster.run(30)
    for name in cluster.workers:
        cluster.kill(name)
        cluster.run(60)
    assert [name for name, _ in cluster.detections] == list(cluster.workers)
    assert all(seconds < 1 for _, seconds in cluster.detections)
    check(cluster, 14)
