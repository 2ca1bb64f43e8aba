"""Nights of random harm on a virtual clock. A failure names its seed; `tests.simulation.run` replays it."""

from collections import Counter

import pytest

from grid_agent.core import messages as m
from grid_agent.core.incident_model import Phase
from grid_agent.core.policy import Policy
from grid_agent.core.terms import Refusal, State
from grid_agent.testing import SimulatedCluster
from tests.core.invariants import believed, check_log
from tests.simulation.run import LIARS, NOISE, disturbed, night


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


@pytest.mark.parametrize("seed", range(12))
def test_a_night_of_harm(seed: int) -> None:
    check(night(seed, 3 + seed % 4, 0.3, every_s=15.0), seed)


def test_a_long_night_with_many_nodes() -> None:
    cluster = night(3, 50, 1.0, every_s=20.0)
    check(cluster, 3)
    assert len(cluster.found) > 5


@pytest.mark.slow
@pytest.mark.parametrize(
    "seed", [2, 3, 6]
)  # nights in which hundreds fail at once take very long to simulate
def test_a_night_of_harm_with_a_thousand_nodes(seed: int) -> None:
    cluster = night(seed, 999, 0.15, every_s=10.0)
    check(cluster, seed)
    assert cluster.found, f"seed {seed}"
    assert cluster.false_verdicts == [], f"seed {seed}"


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
    while any(node.state is State.SUSPECT for node in cluster.belief.nodes.values()):
        cluster.run(5)  # heartbeats are lost to the very end: two in a row may just have been
    check(cluster, seed)
    acted = [o for _, o in cluster.log if isinstance(o, m.RestartWorker | m.TellRay | m.Notify)]
    assert acted == [], f"seed {seed}"
    assert {cluster.state(n) for n in cluster.hosts} == {State.ALIVE}


@pytest.mark.parametrize("seed", range(20))
def test_all_workers_cut_off_come_back_one_after_the_other_and_nobody_is_restarted(seed: int) -> None:
    cluster = SimulatedCluster(seed, 2 + seed % 5)
    cluster.run(30)
    cluster.cut(cluster.workers, cluster.rng.uniform(10, 150))
    cluster.run(600)
    check(cluster, seed)
    acted = [o for _, o in cluster.log if isinstance(o, m.RestartWorker | m.TellRay)]
    assert acted == [], f"seed {seed}"


@pytest.mark.slow
def test_all_links_of_a_large_cluster_cut_where_checks_take_turns() -> None:
    cluster = SimulatedCluster(5, 200, Policy(heartbeat_every_s=2.0))
    cluster.run(30)
    cluster.cut(cluster.workers, 140)
    cluster.run(400)
    assert [o for _, o in cluster.log if isinstance(o, m.RestartWorker | m.TellRay)] == []
    assert {cluster.state(n) for n in cluster.hosts} == {State.ALIVE}


@pytest.mark.parametrize("seed", range(3))
def test_whatever_only_disturbs_harms_nobody(seed: int) -> None:
    benign(seed, 6, 50, every_s=5.0)


@pytest.mark.slow
def test_a_thousand_disturbances_harm_nobody() -> None:
    benign(1, 20, 1000, every_s=1.0)


def benign(seed: int, workers: int, count: int, *, every_s: float) -> None:
    """So many disturbances: no verdict, no act, everybody ALIVE."""
    cluster, done = disturbed(seed, workers, count, every_s=every_s)
    said = f"seed {seed}, after {dict(done)}"
    assert sum(done.values()) == count
    assert cluster.false_verdicts == [], said
    assert cluster.found == [], said
    acted = [o for _, o in cluster.log if isinstance(o, m.RestartWorker | m.TellRay)]
    assert acted == [], said
    assert {cluster.state(n) for n in cluster.hosts} == {State.ALIVE}, said


@pytest.mark.parametrize("seed", range(4))
def test_looks_and_repairs_that_come_late_twice_or_lie_restart_nobody_who_is_well(seed: int) -> None:
    check(night(seed, 4, 0.3, every_s=15.0, chances=LIARS), seed)


def test_of_a_thousand_nodes_the_killed_are_found_at_once_and_nobody_else() -> None:
    cluster = SimulatedCluster(3, 999, Policy(heartbeat_every_s=5.0))
    cluster.run(11)
    victims = cluster.rng.sample(cluster.workers, 10)
    for name in victims:
        cluster.kill(name)
    cluster.hang(cluster.workers[500], 40)
    cluster.run(30)
    assert {found.node for found in cluster.found} == set(victims), "seed 3"
    assert all(found.took_s < 1 for found in cluster.found), "seed 3"
    assert cluster.false_verdicts == cluster.false_repairs == []


def test_kills_are_found_within_a_second_one_after_the_other() -> None:
    cluster = SimulatedCluster(1, 5)
    cluster.run(30)
    for name in cluster.workers:
        cluster.kill(name)
        cluster.run(60)
    assert [found.node for found in cluster.found] == list(cluster.workers)
    assert all(found.took_s < 1 for found in cluster.found)
    check(cluster, 14)
