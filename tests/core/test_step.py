"""Stories: what happens to a cluster, told in events and asserts."""

from dataclasses import replace

import pytest

from grid_agent.core import messages as m
from grid_agent.core import report
from grid_agent.core.incident_model import Phase
from grid_agent.core.seen import HostFacts, LiveWork, Raylet
from grid_agent.core.terms import Cause, Miss, Refusal, Rung, State
from tests.core.situations import (
    Story,
    answered,
    looks,
    no_process,
    not_reached,
    peer_placed,
    peer_says,
    pid_there,
    refused,
    repair_failed,
    repaired,
    row,
    task_missed,
    task_ran,
    timed_out,
    unreachable,
)


def kinds(orders: tuple[m.Order, ...]) -> list[str]:
    return [type(o).__name__ for o in orders]


# --- a peer as the second witness -----------------------------------------------------------------


def test_two_refusals_are_a_death_told_at_once_and_the_restart_waits_for_the_host() -> None:
    story = Story()
    story.see(answered("gpu1"))
    story.see(refused("gpu1"), after=1)
    assert kinds(story.see(peer_says("gpu1", Miss.REFUSED), after=0.01)) == ["TellRay"]
    assert (story.state("gpu1"), story.node("gpu1").cause) == (State.DEAD, Cause.PROCESS_GONE)
    oom = m.HostLooked("gpu1", "head", (), facts=HostFacts(oom=("Killed process 42 (raylet)",)))
    assert kinds(story.see(oom, after=0.1)) == []
    assert story.node("gpu1").cause is Cause.OUT_OF_MEMORY
    assert story.refusal("gpu1") is Refusal.BACKING_OFF
    assert story.incidents[0].cause is Cause.OUT_OF_MEMORY
    assert kinds(story.see(after=10)) == ["RestartWorker"]


def test_two_refusals_restart_without_the_host_when_nobody_can_look_at_it() -> None:
    story = Story()
    story.see(answered("gpu1"))
    story.see(refused("gpu1"), after=1)
    story.see(peer_says("gpu1", Miss.REFUSED), after=0.01)
    assert "RestartWorker" in kinds(story.see(m.LookFailed("gpu1", "head", "key_refused"), after=0.5))


def test_refusals_of_a_port_that_never_answered_wait_for_the_host() -> None:
    story = Story()
    story.see(story.listing(row("gpu1", "b")), after=1)
    story.see(refused("gpu1", "b"), peer_says("gpu1", Miss.REFUSED, "b"), after=1)
    assert story.state("gpu1") is State.SUSPECT


def test_what_only_the_head_does_not_reach_is_left_alone_and_a_person_hears_of_it() -> None:
    story = Story()
    for _ in range(300):
        story.see(timed_out("gpu1"), pid_there("gpu1"), peer_says("gpu1", None), after=1)
    assert (story.state("gpu1"), story.node("gpu1").cause) == (State.SUSPECT, Cause.NO_PATH)
    assert not story.given(m.RestartWorker)
    assert not story.given(m.TellRay)
    (incident,) = story.incidents
    assert (incident.cause, incident.phase) == (Cause.NO_PATH, Phase.NEEDS_PERSON)
    story.see(answered("gpu1"), after=1)
    assert story.state("gpu1") is State.ALIVE
    assert story.incidents[0].phase is Phase.RESOLVED


def test_a_short_break_of_the_path_pages_nobody() -> None:
    story = Story()
    story.pass_time(15, timed_out("gpu1"), pid_there("gpu1"), peer_says("gpu1", None))
    story.see(answered("gpu1"), after=1)
    assert story.state("gpu1") is State.ALIVE
    assert story.incidents == []


def test_a_port_that_was_closed_from_the_first_second_is_named_and_never_restarted() -> None:
    story = Story()
    story.see(story.listing(row("gpu1", "b")), after=1)
    there = (Raylet(42, "gpu1-b", 7),)
    open_there = m.HostLooked("gpu1", "head", there, facts=HostFacts(port=4711, listening=True, greets=True))
    for _ in range(160):
        story.see(timed_out("gpu1", "b"), open_there, after=1)
    assert (story.state("gpu1"), story.node("gpu1").cause) == (State.SUSPECT, Cause.PORT_BLOCKED)
    assert "4711" in " ".join(story.node("gpu1").evidence)
    assert story.incidents[0].phase is Phase.NEEDS_PERSON
    story.see(story.listing(row("gpu1", "b", alive=False)), after=1)  # Ray gives up on it, and it exits
    story.see(refused("gpu1", "b"), no_process("gpu1"), after=2)
    assert (story.state("gpu1"), story.node("gpu1").cause) == (State.GAVE_UP, Cause.PORT_BLOCKED)
    assert not story.given(m.RestartWorker)


def test_a_suspect_is_no_witness_and_each_peer_has_its_turn() -> None:
    story = Story(4)
    story.see(timed_out("gpu2"))
    asked = story.see(refused("gpu1"), after=1)
    assert [o.by for o in asked if isinstance(o, m.AskPeer)] == ["gpu3"]
    asked = story.see(refused("gpu1"), timed_out("gpu2"), peer_says("gpu1", None, by="gpu3"), after=4)
    assert [o.by for o in asked if isinstance(o, m.AskPeer) and o.node == "gpu1"] == ["gpu4"]
    for _ in range(20):  # it does not answer: nobody else is asked meanwhile
        asked = story.see(refused("gpu1"), after=1)
        assert not [o for o in asked if isinstance(o, m.AskPeer)]


def test_a_node_that_stops_running_tasks_is_restarted_on_the_word_of_a_peer() -> None:
    story = Story()
    story.see(answered("gpu1"), task_missed("gpu1"), task_missed("gpu1"))
    assert (story.state("gpu1"), story.node("gpu1").cause) == (State.SUSPECT, Cause.CANNOT_RUN_TASKS)
    assert m.ProveFromPeer("gpu1", "gpu1-a", "gpu2") in story.orders
    well = (answered("gpu1"), pid_there("gpu1"), task_missed("gpu1"), peer_placed("gpu1"))
    story.pass_time(60, *well)
    assert story.given(m.ListWork)
    assert not story.given(m.RestartWorker), "what runs there is asked for first"
    runs = m.WorkListed("gpu1", "gpu1-a", LiveWork(0.0, "gpu1-a", {"actors": 1}))
    story.pass_time(12, *well, runs)
    assert story.refusal("gpu1") is Refusal.LIVE_WORK
    assert len(story.given(m.ListWork)) == 2, "it may end by itself"
    story.pass_time(3, *well, m.WorkListed("gpu1", "gpu1-a", LiveWork(0.0, "gpu1-a")))
    assert story.given(m.DrainNode)
    assert story.given(m.RestartWorker)
    assert not story.given(m.TellRay), "the fence comes first"


def test_tasks_that_are_late_under_strain_are_waited_for() -> None:
    story = Story()
    story.see(answered("gpu1"), task_missed("gpu1"), task_missed("gpu1"))
    strained = HostFacts(pressure={"cpu": 97.0}, load1=30.0, cpus=2)
    there = m.HostLooked("gpu1", "head", (Raylet(42, "gpu1-a", 7),), facts=strained)
    story.pass_time(120, answered("gpu1"), there, task_missed("gpu1"), peer_placed("gpu1"))
    assert not story.given(m.RestartWorker)
    story.see(answered("gpu1"), task_ran("gpu1"))
    assert story.state("gpu1") is State.ALIVE


def test_a_start_that_says_why_it_cannot_join_is_the_cause_and_no_loop() -> None:
    story = Story()
    story.die("gpu1")
    story.see(repair_failed("gpu1", curable=False), after=1)
    assert (story.state("gpu1"), story.node("gpu1").cause) == (State.GAVE_UP, Cause.CANNOT_JOIN)
    assert story.incidents[0].cause is Cause.CANNOT_JOIN
    story.pass_time(100, refused("gpu1"), no_process("gpu1"))
    assert len(story.given(m.RestartWorker)) == 1


def test_the_agent_that_took_the_raylet_along_is_the_cause() -> None:
    story = Story()
    story.see(refused("gpu1"))
    words = "dashboard_agent failed and raylet fate-shares with it."
    story.see(m.HostLooked("gpu1", "head", (), facts=HostFacts(death=(words,), agent=("ImportError: x",))))
    assert story.node("gpu1").cause is Cause.AGENT_DIED
    assert any("ImportError: x" in line for line in story.node("gpu1").evidence)
    assert story.given(m.RestartWorker)


def test_two_live_raylets_of_one_name_are_looked_for_and_named() -> None:
    story = Story()
    old = row("gpu1", "a")
    story.see(m.NodesListed((*(row(n) for n in story.names if n != "gpu1"), old, row("gpu1", "b"))))
    assert looks(story.orders) == []  # joining: nothing is asked yet
    story.see(answered("gpu1", "b"), task_ran("gpu1", "b"), after=1)
    assert looks(story.orders) == [("gpu1", "gpu1-b", "head")]
    story.see(m.HostLooked("gpu1", "head", (Raylet(1, "gpu1-a"), Raylet(2, "gpu1-b"))), after=1)
    assert [r.pid for r in story.node("gpu1").doubles] == [1, 2]
    health = report.health(story.belief, story.now, story.policy)
    assert health["status"] == "warn"
    assert "2 raylets of this name run on its host, pid 1 and pid 2" in health["nodes"][1]["action"]
    assert story.state("gpu1") is State.ALIVE
    assert not story.given(m.RestartWorker)
    story.see(story.listing(row("gpu1", "b")), after=1)
    assert story.node("gpu1").doubles, "a row that is gone proves nothing of the process"
    story.orders.clear()
    story.pass_time(31, answered("gpu1", "b"))
    assert looks(story.orders) == [("gpu1", "gpu1-b", "head")]
    story.see(pid_there("gpu1", "b"))
    assert story.node("gpu1").doubles == ()
    assert report.health(story.belief, story.now, story.policy)["status"] == "pass"


def test_a_raylet_that_outlived_its_own_death_is_found_beside_its_successor() -> None:
    """No row tells of it any more; a node that came back has its host looked at once."""
    story = Story()
    story.die("gpu1")
    story.see(story.listing(row("gpu1", "b")), repaired("gpu1"), after=1)
    story.see(answered("gpu1", "b"), task_ran("gpu1", "b"), after=1)
    story.orders.clear()
    story.pass_time(30, answered("gpu1", "b"))
    assert looks(story.orders) == [("gpu1", "gpu1-b", "head")]
    story.see(m.HostLooked("gpu1", "head", (Raylet(1, "gpu1-a"), Raylet(2, "gpu1-b"))))
    story.pass_time(5, story.listing())
    health = report.health(story.belief, story.now, story.policy)
    assert (health["status"], story.state("gpu1")) == ("warn", State.ALIVE)
    assert "pid 1 and pid 2: end all but one" in health["nodes"][1]["action"]
    assert len(story.given(m.RestartWorker)) == 0


def test_a_raylet_under_a_name_of_its_own_on_the_host_of_another_is_named() -> None:
    story = Story()
    stranger = m.NodeRow("10.0.0.11", "x", "gpu1", 1, True, 5000)  # the address of gpu1
    story.see(m.NodesListed((*story.rows.values(), stranger)))
    health = report.health(story.belief, story.now, story.policy)
    assert health["status"] == "warn"
    assert "also runs a raylet that is not in the file: 10.0.0.11" in health["nodes"][1]["action"]
    story.see(story.listing(), after=1)
    assert report.health(story.belief, story.now, story.policy)["status"] == "pass"


def test_where_ray_does_not_take_our_word_the_node_is_healed_all_the_same() -> None:
    story = Story()
    assert kinds(story.die("gpu1")) == ["TellRay", "RestartWorker"]
    story.see(m.RayTold("gpu1", "gpu1-a", accepted=False, detail="Ray 2.61.0 was not proved"))
    story.see(repaired("gpu1"), story.listing(row("gpu1", "b")), after=3)
    story.see(answered("gpu1", "b"), task_ran("gpu1", "b"), after=1)
    assert story.state("gpu1") is State.ALIVE
    assert any("Ray could not be told" in step.text for step in story.incidents[0].steps)


# --- joining -----------------------------------------------------------------------------------


def test_a_node_joins_when_a_pinned_task_has_run() -> None:
    story = Story(1, joined=False)
    orders = story.see(story.listing())
    assert orders == (m.ProveNode("head", "head-a"), m.ProveNode("gpu1", "gpu1-a"))
    story.see(answered("gpu1"))
    assert story.state("gpu1") is State.JOINING
    story.see(task_ran("gpu1"))
    assert story.state("gpu1") is State.ALIVE
    assert story.incidents == []


def test_a_node_that_never_joins_is_looked_for_and_started() -> None:
    story = Story(3, joined=False)
    rows = m.NodesListed((row("head"), row("gpu2"), row("gpu3")))
    story.see(rows, *(task_ran(n) for n in ("head", "gpu2", "gpu3")))
    story.pass_time(59, rows)
    assert story.given(m.LookAtHost) == []
    assert looks(story.see(rows, after=1)) == [("gpu1", None, "head")]
    orders = story.see(no_process("gpu1"), after=0.1)
    assert orders == (m.RestartWorker("gpu1", "head", 1, None),)


def test_a_node_that_never_joins_is_not_judged_while_the_gcs_is_silent() -> None:
    story = Story(1, joined=False)
    story.pass_time(100, m.GcsWentSilent("x"), no_process("gpu1"))
    assert story.state("gpu1") is State.JOINING
    assert story.incidents == []


def test_a_host_that_was_down_at_the_start_is_started_when_it_answers() -> None:
    story = Story(3, joined=False)
    rows = m.NodesListed((row("head"), row("gpu2"), row("gpu3")))
    story.see(rows, *(task_ran(n) for n in ("head", "gpu2", "gpu3")))
    story.pass_time(60, rows)
    story.see(not_reached("gpu1"))
    assert (story.state("gpu1"), story.node("gpu1").cause) == (State.DEAD, Cause.HOST_DOWN)
    assert story.see(no_process("gpu1"), after=2) == (m.RestartWorker("gpu1", "head", 1, None),)


# --- a death ------------------------------------------------------------------------------------


def test_killed_told_restarted_healed() -> None:
    story = Story()
    asked = story.see(refused("gpu1"))
    assert looks(asked) == [("gpu1", "gpu1-a", "head")]
    assert asked[1:] == (m.AskPeer("gpu1", "gpu1-a", "gpu2", "gpu1", 1),)
    assert (story.state("gpu1"), story.node("gpu1").cause) == (State.SUSPECT, None)
    tell, restart = story.see(no_process("gpu1"), after=0.1)
    assert isinstance(tell, m.TellRay)
    assert (tell.node_id, tell.cause) == ("gpu1-a", Cause.PROCESS_GONE)
    assert tell.text.startswith("grid-agent: process gone: heartbeat from the head refused")
    assert restart == m.RestartWorker("gpu1", "head", 1, "gpu1-a")
    story.see(story.listing(row("gpu1", alive=False)), after=1)
    assert story.see(repaired("gpu1"), after=3) == ()
    assert story.state("gpu1") is State.REPAIRING
    assert story.see(story.listing(row("gpu1", "b")), after=1) == (m.ProveNode("gpu1", "gpu1-b"),)
    story.see(task_ran("gpu1", "b"), after=0.2)
    assert story.state("gpu1") is State.ALIVE
    assert [i.phase for i in story.incidents] == [Phase.RESOLVED]


def test_a_refused_heartbeat_alone_restarts_nothing() -> None:
    story = Story()
    story.pass_time(600, refused("gpu1"))
    assert story.state("gpu1") is State.SUSPECT
    assert story.given(m.RestartWorker) == story.given(m.TellRay) == []


def test_marked_dead_by_ray_alone_restarts_nothing_until_the_host_is_seen() -> None:
    story = Story()
    dead = story.listing(row("gpu1", alive=False))
    story.pass_time(60, dead)
    assert story.state("gpu1") is State.SUSPECT
    assert kinds(story.see(dead, no_process("gpu1"), after=1)) == ["RestartWorker"]


def test_a_zombie_is_fenced_and_restarted_after_its_time_to_exit() -> None:
    story = Story()
    dead = story.listing(row("gpu1", alive=False))
    story.see(dead)
    story.see(pid_there("gpu1"), answered("gpu1"), after=1)
    assert story.state("gpu1") is State.SUSPECT
    orders = story.see(pid_there("gpu1"), answered("gpu1"), after=5)
    assert orders == (m.RestartWorker("gpu1", "head", 1, "gpu1-a"),)
    assert story.node("gpu1").cause is Cause.ZOMBIE


def test_a_node_that_runs_no_tasks_while_all_else_is_well_is_held_for_a_person() -> None:
    story = Story()
    story.see(story.listing(row("gpu1", "b")))
    story.pass_time(60, answered("gpu1", "b"), task_missed("gpu1", "b"), every=5)
    story.pass_time(70, answered("gpu1", "b"), pid_there("gpu1", "b"), every=2)
    assert story.given(m.RestartWorker) == []
    assert story.refusal("gpu1") is Refusal.ONE_WITNESS
    assert story.incidents[0].cause is Cause.CANNOT_RUN_TASKS


def test_a_node_that_joins_late_and_runs_no_tasks_is_looked_at_at_once() -> None:
    story = Story(3, joined=False)
    story.see(story.listing(), *(task_ran(n) for n in ("head", "gpu2", "gpu3")))
    story.see(answered("gpu1"), task_missed("gpu1"), task_missed("gpu1"), after=61)
    assert looks(story.given(m.LookAtHost)) == [("gpu1", "gpu1-a", "head")]
    assert kinds(story.see(pid_there("gpu1"), after=0.1)) == []
    assert story.state("gpu1") is State.SUSPECT
    story.pass_time(60, answered("gpu1"), pid_there("gpu1"), every=5)
    assert story.refusal("gpu1") is Refusal.ONE_WITNESS
    assert kinds(story.see(peer_placed("gpu1"), after=1)) == ["ListWork"]  # and, when it is idle, a restart


# --- repairs that fail ---------------------------------------------------------------------------


def test_attempts_fail_back_off_and_end_with_a_person() -> None:
    story = Story()
    story.die("gpu1")
    began = [story.now]
    rungs = (Rung.RESTART, Rung.CLEAR, Rung.CLEAR)
    for number, wait_s, rung in zip((1, 2, 3), (2.0, 6.0, 18.0), rungs, strict=True):
        assert story.see(repair_failed("gpu1", number), after=3) == ()
        assert (story.state("gpu1"), story.refusal("gpu1")) == (State.DEAD, Refusal.BACKING_OFF)
        assert story.see(after=0.79 * wait_s) == ()
        assert story.see(after=0.21 * wait_s) == (
            m.RestartWorker("gpu1", "head", number + 1, "gpu1-a", rung),
        )
        began.append(story.now)
    story.see(repair_failed("gpu1", 4), after=3)
    assert story.state("gpu1") is State.GAVE_UP
    story.pass_time(100)
    assert len(story.given(m.RestartWorker)) == story.policy.node_attempts
    (only,) = story.incidents
    assert only.phase is Phase.NEEDS_PERSON
    assert only.steps[-1].text.endswith("last error: ray start failed")


def test_what_a_restart_cannot_cure_is_given_up_at_once() -> None:
    story = Story()
    story.die("gpu1")
    story.see(repair_failed("gpu1", curable=False), after=3)
    assert story.state("gpu1") is State.GAVE_UP
    assert len(story.given(m.RestartWorker)) == 1
    assert story.incidents[0].phase is Phase.NEEDS_PERSON


def test_a_person_cures_it_and_the_next_death_is_repaired_as_any_other() -> None:
    story = Story()
    story.die("gpu1")
    story.see(repair_failed("gpu1", curable=False), after=3)
    story.come_back("gpu1")
    assert (story.state("gpu1"), story.incidents[0].phase) == (State.ALIVE, Phase.RESOLVED)
    story.now += 3600
    assert kinds(story.die("gpu1", life="b")) == ["TellRay", "RestartWorker"]


def test_a_repair_whose_result_never_comes_is_timed_out() -> None:
    story = Story()
    story.die("gpu1")
    story.pass_time(89)
    assert story.state("gpu1") is State.REPAIRING
    story.see(after=1.1)
    assert story.state("gpu1") is State.DEAD
    assert "no answer from the repair after 90 s" in story.incidents[0].steps[-2].text
    assert kinds(story.see(after=2)) == ["RestartWorker"]
    story.see(m.RepairEnded("gpu1", 1, ok=False, detail="late"))
    assert story.state("gpu1") is State.REPAIRING


def test_a_repair_that_was_never_begun_is_no_attempt() -> None:
    story = Story()
    story.die("gpu1")
    for number in range(1, 9):
        refused = m.RepairEnded("gpu1", number, ok=False, detail="stopped: by a person", begun=False)
        story.see(refused, after=3)
        assert (story.state("gpu1"), story.node("gpu1").attempts) == (State.DEAD, ())
        assert kinds(story.see(after=2)) == ["RestartWorker"]
    assert "nothing was done for gpu1: stopped" in story.incidents[0].steps[-3].text
    assert story.belief.repairs.failed == 0


def test_a_repair_that_says_ok_but_never_becomes_usable_counts_as_failed() -> None:
    story = Story()
    story.die("gpu1")
    story.see(repaired("gpu1"), story.listing(row("gpu1", "b")), after=3)
    story.pass_time(25, answered("gpu1", "b"), task_missed("gpu1", "b"), every=5)
    assert story.state("gpu1") is State.REPAIRING
    story.see(after=5.1)
    assert story.state("gpu1") is State.DEAD
    assert story.given(m.LookAtHost)[-1].node_id == "gpu1-b"
    story.pass_time(40, answered("gpu1", "b"), pid_there("gpu1", "b"))
    assert story.node("gpu1").cause is Cause.CANNOT_RUN_TASKS
    assert story.refusal("gpu1") is Refusal.ONE_WITNESS


def test_a_repair_that_says_ok_but_whose_raylet_is_never_listed_counts_as_failed() -> None:
    story = Story()
    story.die("gpu1")
    story.see(repaired("gpu1"), after=3)
    story.pass_time(33, refused("gpu1"))
    story.see(refused("gpu1"), no_process("gpu1"))
    assert story.given(m.RestartWorker)[-1] == m.RestartWorker("gpu1", "head", 2, "gpu1-a")


def test_a_new_life_is_not_ended_on_what_was_seen_of_the_old_one() -> None:
    story = Story()
    story.die("gpu1")
    story.see(story.listing(row("gpu1", "b")), after=2)
    story.see(repair_failed("gpu1"), after=1)  # the repair failed, and yet a raylet is listed
    assert story.see(timed_out("gpu1", "b"), after=10) == ()  # one look at a time, and one is under way
    assert story.given(m.LookAtHost)[-1].node_id == "gpu1-b"
    assert story.refusal("gpu1") is Refusal.ONE_WITNESS
    story.see(pid_there("gpu1", "b"), answered("gpu1", "b"), task_ran("gpu1", "b"), after=0.1)
    assert story.state("gpu1") is State.ALIVE
    assert len(story.given(m.TellRay)) == 1


def test_a_repaired_raylet_that_dies_at_once_is_seen_dead_by_itself() -> None:
    story = Story()
    story.die("gpu1")
    story.see(story.listing(row("gpu1", "b")), after=2)
    story.see(repair_failed("gpu1"), refused("gpu1", "b"), after=1)
    orders = story.see(no_process("gpu1"), after=2)
    assert kinds(orders) == ["TellRay", "RestartWorker"]
    assert orders[-1] == m.RestartWorker("gpu1", "head", 2, "gpu1-b")


def test_the_next_node_waits_until_a_lost_repair_is_over_even_of_a_stopped_node() -> None:
    story = Story(5)
    story.die("gpu1")
    story.see(m.PeopleStopped(frozenset({"gpu1"})), after=1)
    story.die("gpu2")
    assert story.refusal("gpu2") is Refusal.IN_FLIGHT
    story.pass_time(90)
    assert story.given(m.RestartWorker)[-1].node == "gpu2"


def test_a_node_back_before_its_repair_answered_still_keeps_the_turn() -> None:
    story = Story(5)
    story.die("gpu1")
    story.come_back("gpu1")
    assert story.state("gpu1") is State.ALIVE
    story.die("gpu2")
    assert story.refusal("gpu2") is Refusal.IN_FLIGHT
    assert kinds(story.see(repaired("gpu1"), after=1)) == ["RestartWorker"]


# --- many at once ------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [2, 4])
def test_half_of_the_workers_at_once_are_held_then_repaired_one_at_a_time(workers: int) -> None:
    story = Story(workers)
    story.see(refused("gpu1"), refused("gpu2"))
    failed_at = story.now
    story.see(no_process("gpu1"), no_process("gpu2"), after=0.1)
    assert [o.node for o in story.given(m.TellRay)] == ["gpu1", "gpu2"]
    while story.now < failed_at + 9.5:
        story.see(after=0.5)
        assert story.given(m.RestartWorker) == []
    story.see(after=0.5)
    assert [o.node for o in story.given(m.RestartWorker)] == ["gpu1"]
    story.pass_time(5)
    assert story.refusal("gpu2") is Refusal.IN_FLIGHT
    story.see(repaired("gpu1"))
    story.come_back("gpu1")
    assert [o.node for o in story.given(m.RestartWorker)] == ["gpu1", "gpu2"]
    story.see(repaired("gpu2"))
    story.come_back("gpu2")
    assert [i.phase for i in story.incidents] == [Phase.RESOLVED]


def test_one_of_two_is_repaired_at_once() -> None:
    story = Story(2)
    assert kinds(story.die("gpu1")) == ["TellRay", "RestartWorker"]


def test_all_hosts_out_of_reach_is_our_own_trouble_and_nobody_is_told_or_restarted() -> None:
    story = Story(3)
    everyone = ("gpu1", "gpu2", "gpu3")
    story.pass_time(300, *(unreachable(n) for n in everyone), *(not_reached(n) for n in everyone))
    assert story.given(m.TellRay) == story.given(m.RestartWorker) == []
    assert len([i for i in story.incidents if i.open]) == 1
    story.see(*(pid_there(n) for n in everyone), after=1)  # the looks are back before the heartbeats
    story.see(*(answered(n) for n in everyone), after=1)
    assert {story.state(n) for n in everyone} == {State.ALIVE}
    assert story.given(m.TellRay) == story.given(m.RestartWorker) == []
    assert [i.phase for i in story.incidents] == [Phase.RESOLVED]


def test_one_host_out_of_reach_is_told_after_its_time_and_restarted_when_it_answers() -> None:
    story = Story(3)
    nobody = (unreachable("gpu1"), not_reached("gpu1"), peer_says("gpu1", Miss.UNREACHABLE))
    story.pass_time(120, *nobody)
    assert story.given(m.TellRay) == []
    story.pass_time(3, *nobody)
    assert [o.cause for o in story.given(m.TellRay)] == [Cause.HOST_DOWN]
    dead = story.listing(row("gpu1", alive=False))
    story.pass_time(600, dead, unreachable("gpu1"), not_reached("gpu1"))
    assert story.given(m.RestartWorker) == []
    assert kinds(story.see(dead, no_process("gpu1"), after=1)) == ["RestartWorker"]
    assert "the host answers again: process gone" in "".join(s.text for s in story.incidents[0].steps)


# --- reasons to do nothing -------------------------------------------------------------------------


def test_a_silent_gcs_holds_and_its_answer_releases() -> None:
    story = Story()
    story.see(m.GcsWentSilent("x"))
    story.pass_time(5, m.GcsWentSilent("x"))
    assert story.die("gpu1") == ()
    assert story.refusal("gpu1") is Refusal.GCS_SILENT
    assert kinds(story.see(story.listing(), after=1)) == ["TellRay", "RestartWorker"]


def test_observe_reports_and_never_acts() -> None:
    story = Story(mode="observe")
    story.die("gpu1")
    story.pass_time(600, refused("gpu1"), no_process("gpu1"))
    story.pass_time(300, timed_out("gpu2"), pid_there("gpu2"))
    assert story.given(m.TellRay) == story.given(m.RestartWorker) == []
    assert {i.cause for i in story.incidents} == {Cause.PROCESS_GONE, Cause.HUNG}


def test_what_a_person_stopped_stays_stopped_until_let_go() -> None:
    story = Story()
    story.see(m.PeopleStopped(frozenset({"gpu1"})))
    assert story.state("gpu1") is State.CORDONED
    dead = story.listing(row("gpu1", alive=False))
    story.pass_time(600, dead, refused("gpu1"), no_process("gpu1"))
    assert story.given(m.RestartWorker) == story.given(m.LookAtHost) == []
    story.see(m.PeopleStopped(frozenset()))
    assert story.state("gpu1") is State.JOINING
    story.pass_time(20, dead, refused("gpu1"))
    assert story.state("gpu1") is State.JOINING, "start.py needs its time; the old row is no news"
    story.come_back("gpu1")
    assert story.state("gpu1") is State.ALIVE
    assert story.incidents == []
    assert story.given(m.RestartWorker) == []


def test_a_node_let_go_that_nobody_starts_is_started() -> None:
    story = Story()
    story.see(m.PeopleStopped(frozenset({"gpu1"})))
    dead = story.listing(row("gpu1", alive=False))
    story.see(dead, after=5)
    story.see(m.PeopleStopped(frozenset()), after=5)
    story.pass_time(61, dead)
    assert kinds(story.see(no_process("gpu1"))) == ["RestartWorker"]


def test_stopping_a_dead_node_resolves_its_incident_and_forgives_its_attempts() -> None:
    story = Story()
    story.die("gpu1")
    story.see(repair_failed("gpu1", curable=False))
    story.see(m.PeopleStopped(frozenset({"gpu1"})))
    assert story.incidents[0].phase is Phase.RESOLVED
    story.see(m.PeopleStopped(frozenset()))
    assert story.node("gpu1").attempts == ()
    story.come_back("gpu1")
    orders = story.die("gpu1", life="b")
    assert orders[-1] == m.RestartWorker("gpu1", "head", 2, "gpu1-b")


def test_a_dead_head_is_never_repaired_from_inside() -> None:
    story = Story()
    story.see(refused("head"), no_process("head"))
    assert story.state("head") is State.SUSPECT
    story.pass_time(300, refused("head"), no_process("head"))
    assert story.given(m.RestartWorker) == story.given(m.TellRay) == []


# --- hung and slow ---------------------------------------------------------------------------------


def hang(story: Story, seconds: float) -> None:
    story.pass_time(seconds, timed_out("gpu1"), pid_there("gpu1"))


def test_hung_is_suspected_with_its_cause_and_ended_after_its_time_only() -> None:
    story = Story()
    story.see(timed_out("gpu1"), after=1)
    assert story.state("gpu1") is State.ALIVE
    hang(story, 5)
    assert (story.state("gpu1"), story.node("gpu1").cause) == (State.SUSPECT, Cause.HUNG)
    hang(story, 84)
    assert story.state("gpu1") is State.SUSPECT
    hang(story, 4)
    assert story.given(m.RestartWorker) == [m.RestartWorker("gpu1", "head", 1, "gpu1-a")]
    assert story.given(m.TellRay) == [], "a hung raylet lives; Ray is told after the fence"
    (tell,) = story.see(repaired("gpu1"), after=5)
    assert isinstance(tell, m.TellRay)
    assert (tell.node_id, tell.cause) == ("gpu1-a", Cause.HUNG)


def test_ray_is_told_of_the_fenced_one_though_the_new_one_is_listed_already() -> None:
    story = Story()
    hang(story, 100)
    story.come_back("gpu1")
    assert story.given(m.TellRay) == []
    (tell,) = story.see(repaired("gpu1"), after=1)
    assert isinstance(tell, m.TellRay)
    assert tell.node_id == "gpu1-a"
    story.pass_time(10, answered("gpu1", "b"))
    assert len(story.given(m.TellRay)) == 1


def test_a_hung_node_that_answers_while_its_repair_runs_is_not_called_healthy() -> None:
    story = Story()
    hang(story, 100)
    story.see(answered("gpu1"), after=0.5)
    assert story.state("gpu1") is State.REPAIRING


def test_a_slow_node_that_answers_again_leaves_no_trace() -> None:
    story = Story()
    hang(story, 60)
    assert story.state("gpu1") is State.SUSPECT
    story.see(answered("gpu1"), after=1)
    assert (story.state("gpu1"), story.node("gpu1").cause) == (State.ALIVE, None)
    assert story.incidents == []
    assert story.given(m.Notify) == []


def test_one_bad_look_after_a_long_cut_of_the_head_alone_ends_nothing() -> None:
    """Until a moment ago the raylet answered on its own host: its time begins then."""
    story = Story()
    well = replace(pid_there("gpu1"), facts=HostFacts(greets=True))
    story.pass_time(300, timed_out("gpu1"), well)
    assert (story.state("gpu1"), story.node("gpu1").cause) == (State.SUSPECT, Cause.NO_PATH)
    hang(story, 86)
    assert story.given(m.RestartWorker) == []
    hang(story, 6)
    assert story.given(m.RestartWorker) == [m.RestartWorker("gpu1", "head", 1, "gpu1-a")]


def test_one_bad_check_of_a_peer_after_a_long_cut_of_the_head_alone_ends_nothing() -> None:
    story = Story(3)
    cut = (timed_out("gpu1"), not_reached("gpu1"))
    story.pass_time(300, *cut, peer_says("gpu1", None))
    story.pass_time(116, *cut, peer_says("gpu1", Miss.TIMED_OUT))
    assert story.given(m.TellRay) == []
    story.pass_time(6, *cut, peer_says("gpu1", Miss.TIMED_OUT))
    assert [o.cause for o in story.given(m.TellRay)] == [Cause.HOST_DOWN]


def test_a_host_that_is_back_is_looked_at_at_once_though_a_login_still_hangs() -> None:
    story = Story(3)
    story.pass_time(5, timed_out("gpu1"))
    story.orders.clear()
    story.see(timed_out("gpu1"), after=1)
    assert looks(story.orders) == []  # one is under way
    story.see(refused("gpu1"), after=0.2)
    assert looks(story.orders) == [("gpu1", "gpu1-a", "head")]
    story.see(no_process("gpu1"), after=0.3)
    assert story.given(m.RestartWorker) == [m.RestartWorker("gpu1", "head", 1, "gpu1-a")]


def test_a_host_that_no_peer_was_asked_about_is_not_down() -> None:
    """The head's check and the head's login take one way; another host must agree, where there is one."""
    story = Story(3)
    failed = m.PeerFailed("gpu1", "gpu2", "the probe there did not answer")
    story.pass_time(300, timed_out("gpu1"), not_reached("gpu1"), failed)
    assert (story.state("gpu1"), story.given(m.TellRay)) == (State.SUSPECT, [])
    alone = Story(1)
    alone.pass_time(125, timed_out("gpu1"), not_reached("gpu1"))
    assert [o.cause for o in alone.given(m.TellRay)] == [Cause.HOST_DOWN]


def test_a_host_seen_again_gets_the_whole_time_of_a_hang() -> None:
    story = Story()
    story.pass_time(100, unreachable("gpu1"), not_reached("gpu1"))
    hang(story, 89)
    assert story.given(m.RestartWorker) == []


# --- other lives ---------------------------------------------------------------------------------


def test_a_new_incarnation_by_hand_joins_and_is_alive() -> None:
    story = Story()
    assert story.see(story.listing(row("gpu1", "b"))) == (m.ProveNode("gpu1", "gpu1-b"),)
    assert story.state("gpu1") is State.JOINING
    story.see(task_ran("gpu1", "b"))
    assert story.state("gpu1") is State.ALIVE
    assert story.incidents == []


def test_late_news_of_an_old_life_does_not_matter() -> None:
    story = Story()
    story.come_back("gpu1")
    before = story.belief
    late = (refused("gpu1"), timed_out("gpu1"), task_missed("gpu1"), answered("gpu1"), task_ran("gpu1"))
    assert story.see(*late) == ()
    assert story.belief == before


def test_a_late_look_does_not_matter_hours_later() -> None:
    story = Story()
    story.see(no_process("gpu1"))
    story.now += 7200
    orders = story.see(story.listing(row("gpu1", alive=False)))
    assert looks(orders) == [("gpu1", "gpu1-a", "head")]
    assert story.state("gpu1") is State.SUSPECT


def test_unknown_nodes_are_ignored() -> None:
    story = Story()
    events = (refused("x"), no_process("x"), repaired("x"), m.PeopleStopped(frozenset({"x"})))
    assert story.see(*events, m.NodesListed((*story.rows.values(), row("x")))) == ()
    assert set(story.belief.nodes) == set(story.names)


# --- the rhythm ------------------------------------------------------------------------------------


def test_nothing_is_ordered_twice() -> None:
    story = Story(5)
    story.die("gpu1", "gpu2")
    count = len(story.orders)
    for _ in range(5):
        assert story.see() == ()
    assert len(story.orders) == count


def test_a_suspect_is_looked_at_every_two_seconds() -> None:
    story = Story()
    story.pass_time(10, refused("gpu1"), pid_there("gpu1"))
    assert len(story.given(m.LookAtHost)) == 5


def test_a_host_that_answers_slowly_is_not_asked_more() -> None:
    story = Story()
    story.pass_time(29, refused("gpu1"))
    assert len(story.given(m.LookAtHost)) == 1
    story.pass_time(3, refused("gpu1"))  # that look will not come back
    assert len(story.given(m.LookAtHost)) == 2


def test_a_look_that_failed_says_nothing_of_the_host() -> None:
    story = Story(unreachable_s=5.0, hang_s=5.0)
    for _ in range(200):
        story.see(refused("gpu1"), m.LookFailed("gpu1", "head", "key_refused: add the key"), after=1)
    assert story.state("gpu1") is State.SUSPECT
    assert not story.given(m.TellRay)
    assert not story.given(m.RestartWorker)


def test_an_answer_about_an_older_life_is_not_held_against_the_new_one() -> None:
    story = Story()
    story.see(refused("gpu1"))
    story.see(story.listing(row("gpu1", "b")), after=1)
    story.see(refused("gpu1", "b"), m.HostLooked("gpu1", "head", (), asked_about="gpu1-a"), after=1)
    assert story.state("gpu1") is not State.DEAD
    assert not story.given(m.RestartWorker)


def test_what_ray_did_not_take_is_said_again_later() -> None:
    story = Story()
    story.die("gpu1")
    story.see(m.RayTold("gpu1", "gpu1-a", accepted=False, detail="UNAVAILABLE"))
    assert len(story.given(m.TellRay)) == 1
    story.see(repair_failed("gpu1"), refused("gpu1"), no_process("gpu1"), after=6)
    assert len(story.given(m.TellRay)) == 2


def test_proofs_are_asked_for_every_five_seconds() -> None:
    story = Story()
    story.see(story.listing(row("gpu1", "b")))
    story.pass_time(14, answered("gpu1", "b"))
    assert len(story.given(m.ProveNode)) == 1, "one at a time"
    story.see(task_missed("gpu1", "b"))
    story.pass_time(9, answered("gpu1", "b"), task_missed("gpu1", "b"))
    assert len(story.given(m.ProveNode)) == 3


def test_workers_that_are_well_prove_themselves_again_and_never_all_at_once() -> None:
    story = Story(40, prove_again_s=180.0)
    listing = story.listing()
    story.pass_time(179, listing)
    assert story.given(m.ProveNode) == []
    story.see(listing, after=1.5)
    first = len(story.given(m.ProveNode))
    assert 1 <= first <= 26, "a few seconds' worth at most"
    story.pass_time(20, listing)
    asked = [o.node for o in story.given(m.ProveNode)]
    assert sorted(set(asked)) == sorted(set(story.names) - {"head"})


def test_who_has_not_joined_is_not_known_before_the_gcs_has_answered_once() -> None:
    story = Story(joined=False)
    story.now += 70
    story.see(*(pid_there(n) for n in story.names), after=1)
    assert {story.state(n) for n in story.names} == {State.JOINING}
    assert story.incidents == []
