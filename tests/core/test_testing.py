"""The little world itself: it must be true to what it stands for, and repeat itself."""

import pytest

from grid_agent.core import messages as m
from grid_agent.core.policy import Policy
from grid_agent.core.terms import Miss, State
from grid_agent.testing import Chances, SimulatedCluster, VirtualClock


def settled(workers: int = 3, **kwargs: object) -> SimulatedCluster:
    cluster = SimulatedCluster(7, workers, **kwargs)  # type: ignore[arg-type]
    cluster.run(5)
    return cluster


def test_the_clock_makes_calls_in_order_and_ends_where_it_was_told() -> None:
    clock, made = VirtualClock(100.0), []
    clock.call_later(5, lambda: made.append(("late", clock.now)))
    clock.call_later(1, lambda: made.append(("first", clock.now)))
    clock.call_later(1, lambda: made.append(("second", clock.now)))
    clock.call_later(9, lambda: made.append(("never", clock.now)))
    clock.run_until(106.0)
    assert made == [("first", 101.0), ("second", 101.0), ("late", 105.0)]
    assert clock.now == 106.0


def test_a_call_may_ask_for_another_within_the_same_run() -> None:
    clock, made = VirtualClock(), []
    clock.call_later(1, lambda: clock.call_later(1, lambda: made.append(clock.now)))
    clock.run_until(3.0)
    assert made == [2.0]


def test_everyone_is_alive_soon_and_stays_so() -> None:
    cluster = settled()
    cluster.run(60)
    assert {cluster.state(n) for n in cluster.hosts} == {State.ALIVE}
    assert not [o for _, o in cluster.log if isinstance(o, m.RestartWorker | m.TellRay | m.Notify)]


def test_the_same_seed_is_the_same_night_and_another_is_not() -> None:
    def night(seed: int) -> list[tuple[float, m.Event | m.Order]]:
        cluster = SimulatedCluster(seed, 4, chances=Chances(0.05, 0.3, 0.1, 0.05))
        cluster.run(5)
        cluster.kill("gpu2")
        cluster.run(120)
        return cluster.log

    assert night(1) == night(1)
    assert night(1) != night(2)


def test_a_kill_is_heard_at_once_on_the_held_channel() -> None:
    cluster = settled()
    cluster.run(0.4)
    cluster.kill("gpu1")
    cluster.run(0.01)
    at, event = [(at, e) for at, e in cluster.log if isinstance(e, m.HeartbeatMissed)][-1]
    assert isinstance(event, m.HeartbeatMissed)
    assert event.how is Miss.REFUSED
    assert at == pytest.approx(cluster.clock.now, abs=0.01)
    cluster.run(30)
    assert cluster.state("gpu1") is State.ALIVE
    assert cluster.found[0].took_s < 1


def test_a_hang_is_silence_and_a_resumed_raylet_answers_again() -> None:
    cluster = settled()
    cluster.hang("gpu1", seconds=30)
    cluster.run(20)
    assert cluster.state("gpu1") is State.SUSPECT
    cluster.run(15)
    assert cluster.state("gpu1") is State.ALIVE
    assert not [o for _, o in cluster.log if isinstance(o, m.RestartWorker)]


def test_a_cut_off_host_comes_back_with_its_process() -> None:
    cluster = settled()
    cluster.cut(["gpu1"], 20)
    cluster.run(10)
    assert cluster.belief.nodes["gpu1"].heartbeat.last_miss is Miss.UNREACHABLE
    cluster.run(15)
    assert cluster.state("gpu1") is State.ALIVE


def test_an_outage_of_the_gcs_is_silence_and_not_an_empty_table() -> None:
    cluster = settled()
    cluster.gcs_outage(10)
    cluster.run(5)
    assert cluster.belief.observer.gcs_silent_since is not None
    cluster.run(10)
    assert cluster.belief.observer.gcs_silent_since is None
    assert {cluster.state(n) for n in cluster.hosts} == {State.ALIVE}


def test_a_person_stops_and_starts() -> None:
    cluster = settled()
    cluster.stop("gpu1")
    cluster.run(300)
    assert cluster.state("gpu1") is State.CORDONED
    assert cluster.hosts["gpu1"].raylets == []
    cluster.start("gpu1")
    cluster.run(5)
    assert cluster.state("gpu1") is State.ALIVE
    assert cluster.doubles == []


def test_a_raylet_marked_dead_by_mistake_exits() -> None:
    cluster = settled(policy=Policy(mode="observe"))
    cluster._tell("gpu1", cluster.hosts["gpu1"].raylets[0].node_id)
    cluster.run(5)
    assert cluster.hosts["gpu1"].raylets == []


def test_ray_itself_notices_at_last() -> None:
    cluster = settled(policy=Policy(mode="observe"))
    cluster.kill("gpu1")
    cluster.run(150)
    assert cluster.belief.nodes["gpu1"].listed_alive
    cluster.run(10)
    assert cluster.belief.nodes["gpu1"].listed_alive is False


def test_starts_that_always_fail_end_with_a_person() -> None:
    cluster = settled(chances=Chances(start_fails=1.0))
    cluster.kill("gpu1")
    cluster.run(120)
    assert cluster.state("gpu1") is State.GAVE_UP
    assert sum(isinstance(o, m.RestartWorker) for _, o in cluster.log) == 4


def test_the_world_notices_two_raylets_of_one_name_and_a_restart_without_need() -> None:
    cluster = settled()
    cluster._spawn("gpu1")
    assert cluster.doubles == ["gpu1"]
    cluster._carry_out(m.RestartWorker("gpu2", "head", 1, cluster.hosts["gpu2"].raylets[0].node_id))
    assert cluster.false_repairs == ["gpu2"]


def test_an_agent_that_is_away_hears_nothing_and_its_successor_goes_on() -> None:
    cluster = settled()
    cluster.kill("gpu1")
    cluster.run(0.001)
    begun = cluster.clock.now
    cluster.restart_agent(20.0)
    cluster.run(19.9)
    assert not [at for at, _ in cluster.log if at > begun]
    assert cluster.state("gpu1") is State.ALIVE  # as far as anybody knows
    cluster.run(60)
    assert [found.node for found in cluster.found] == ["gpu1"]
    assert cluster.state("gpu1") is State.ALIVE
    assert cluster.belief.started_at == begun + 20.0


def test_a_host_whose_disk_stalls_takes_no_login_and_is_well_afterwards() -> None:
    cluster = settled()
    cluster.stall("gpu1", 40.0)
    cluster.run(39)
    assert cluster.belief.nodes["gpu1"].look_trouble == ("head", "login_timeout")
    assert cluster.state("gpu1") is State.SUSPECT
    cluster.run(20)
    assert cluster.state("gpu1") is State.ALIVE
    assert cluster.found == []


def test_no_task_runs_while_the_gcs_is_silent() -> None:
    cluster = settled()
    life = cluster.hosts["gpu1"].raylets[0].node_id
    cluster.gcs_outage(5.0)
    assert not cluster._runs_tasks("gpu1", life)
    cluster.run(6)
    assert cluster._runs_tasks("gpu1", life)
