"""One incident per node at a time; one for all in a mass failure; told step by step."""

from dataclasses import replace

import pytest

from grid_agent.core import incidents, report
from grid_agent.core import messages as m
from grid_agent.core.incident_model import Incident, Phase
from grid_agent.core.terms import Cause, State
from tests.core.situations import (
    Story,
    answered,
    no_process,
    pid_there,
    refused,
    repair_failed,
    repaired,
    row,
    task_ran,
    timed_out,
)


def texts(incident: Incident) -> str:
    return "\n".join(s.text for s in incident.steps)


def test_a_death_opens_one_that_says_what_was_seen() -> None:
    story = Story()
    story.die("gpu1")
    (only,) = story.incidents
    assert (only.id, only.nodes, only.host, only.cause) == (1, ("gpu1",), "host-of-gpu1", Cause.PROCESS_GONE)
    assert only.phase is Phase.REPAIRING
    assert len(only.evidence) == 2
    assert "gpu1 is dead: process gone" in texts(only)
    assert "by a task on head (attempt 1)" in texts(only)
    assert only.failed_at < only.opened_at


def test_what_happens_next_is_told_once() -> None:
    story = Story()
    story.die("gpu1")
    told = m.RayTold("gpu1", "gpu1-a", accepted=True)
    story.see(told, told)
    story.see(repaired("gpu1"), repaired("gpu1"), repaired("gpu1", 7), after=1)
    assert texts(story.incidents[0]).count("Ray was told") == 1
    assert texts(story.incidents[0]).count("the raylet was started") == 1


def test_ray_that_could_not_be_told_is_told_to_people() -> None:
    story = Story()
    story.die("gpu1")
    story.see(m.RayTold("gpu1", "gpu1-a", accepted=False, detail="no answer"))
    assert "Ray could not be told (no answer)" in texts(story.incidents[0])


def test_resolved_with_the_duration_and_the_next_death_is_a_new_one() -> None:
    story = Story()
    story.die("gpu1")
    story.come_back("gpu1")
    (first,) = story.incidents
    assert (first.phase, first.resolved_at) == (Phase.RESOLVED, story.now)
    assert "gpu1 is ALIVE: attempt 1, a restart by a task on head, helped" in texts(first)
    story.see(repaired("gpu1"))
    story.die("gpu1", life="b")
    assert [i.id for i in story.incidents] == [1, 2]


def test_how_it_came_back_is_told_as_it_was() -> None:
    story = Story(mode="observe")
    story.die("gpu1", "gpu2")
    story.see(answered("gpu1"), after=1)
    anew = replace(row("gpu2", "b"), started_at_ms=int(story.now * 1000))
    story.see(story.listing(anew), answered("gpu2", "b"), task_ran("gpu2", "b"), after=1)
    told = "".join(map(texts, story.incidents))
    assert "gpu1 is ALIVE: it can be used again, without a repair" in told
    assert "gpu2 is ALIVE: it came back without a repair, and a task has run on it" in told


def test_a_mass_failure_makes_one_for_all_and_resolves_with_the_last() -> None:
    story = Story(4)
    story.die("gpu1", "gpu2", "gpu3")
    (only,) = story.incidents
    assert set(only.nodes) == {"gpu1", "gpu2", "gpu3"}
    story.come_back("gpu1")
    story.come_back("gpu2")
    assert story.incidents[0].open
    story.come_back("gpu3")
    assert not story.incidents[0].open


def test_incidents_already_open_are_rolled_up_and_nobody_is_left_behind() -> None:
    story = Story(4)
    story.see(m.LoopLagged(9999.0))
    story.die("gpu1")
    story.now += 5
    story.die("gpu2")
    still_open = [i for i in story.incidents if i.open]
    assert [i.id for i in still_open] == [1]
    assert set(still_open[0].nodes) == {"gpu1", "gpu2"}
    assert "holding: many nodes at once" in texts(still_open[0])
    assert all(story.node(n).incident_id == 1 for n in ("gpu1", "gpu2"))


def test_rolling_up_takes_along_the_other_nodes_of_an_older_incident() -> None:
    story = Story(4)
    story.see(m.LoopLagged(9999.0))
    for name in ("gpu1", "gpu2"):
        story.die(name)
        story.now += 20
    story.change("gpu3", incident_id=2, state=State.DEAD)
    merged = incidents.merge(story.belief, ("gpu1", "gpu2"), story.now, "many at once")
    assert {n.incident_id for n in merged.nodes.values()} == {None, 1}
    assert [i.open for i in merged.incidents.values()] == [True, False]
    assert "rolled up into incident 1" in texts(merged.incidents[2])
    assert [i.rolled_into for i in merged.incidents.values()] == [None, 1]


def test_a_node_given_up_keeps_the_whole_incident_with_a_person() -> None:
    story = Story(4)
    story.die("gpu1", "gpu2")
    story.pass_time(11)
    story.see(repair_failed("gpu1", curable=False))
    assert story.state("gpu1") is State.GAVE_UP
    story.see(after=1)
    assert story.state("gpu2") is State.REPAIRING
    assert story.incidents[0].phase is Phase.NEEDS_PERSON
    story.come_back("gpu2")
    assert story.incidents[0].phase is Phase.NEEDS_PERSON
    story.come_back("gpu1")
    assert story.incidents[0].phase is Phase.RESOLVED


def test_once_the_given_up_node_is_back_the_others_are_firing_again() -> None:
    story = Story(4)
    story.die("gpu1", "gpu2")
    story.pass_time(11)
    story.see(repair_failed("gpu1", curable=False))
    story.come_back("gpu1")
    assert story.incidents[0].phase is not Phase.NEEDS_PERSON
    assert story.incidents[0].open


def test_the_oldest_resolved_are_forgotten_and_open_ones_never() -> None:
    story = Story(3, max_incidents=2)
    for life, following in ("ab", "bc", "cd"):
        story.die("gpu1", life=life)
        story.come_back("gpu1", following)
        story.see(repaired("gpu1", len(story.given(m.RestartWorker))))
    assert [i.id for i in story.incidents] == [2, 3]
    kept = incidents.trim(story.belief, 0)
    assert incidents.opened(kept) == 0
    first = replace(story.incidents[0], phase=Phase.FIRING)
    still = incidents.trim(replace(story.belief, incidents={2: first, 3: story.incidents[1]}), 0)
    assert list(still.incidents) == [2]


def test_what_is_said_of_many_at_one_moment_is_one_step() -> None:
    story = Story(100)
    names = [f"gpu{i}" for i in range(1, 101)]
    story.die(*names)
    story.pass_time(3)
    (only,) = story.incidents
    assert set(only.nodes) == set(names)
    assert len(only.steps) < 8
    assert "gpu[1-100]: dead: process gone" in texts(only)


def test_a_storm_of_less_than_half_is_one_incident_and_nothing_is_held() -> None:
    story = Story(100)
    names = [f"gpu{i}" for i in range(1, 41)]
    story.die(*names)
    (only,) = (i for i in story.incidents if i.open)
    assert set(only.nodes) == set(names)
    assert all(i.rolled_into == only.id for i in story.incidents if not i.open)
    assert story.belief.holding_since is None
    assert len(story.given(m.RestartWorker)) == 1
    for name in names:
        story.come_back(name)
    assert only.id not in {i.id for i in story.incidents if i.open}


def test_a_node_that_has_left_the_file_is_no_part_of_a_storm() -> None:
    story = Story(100)
    story.die("gpu1", "gpu2", "gpu3")
    (first, *_) = story.incidents
    with_gone = replace(first, nodes=(*first.nodes, "left"))
    story.belief = replace(story.belief, incidents={**story.belief.incidents, first.id: with_gone})
    story.die("gpu4")
    assert len([i for i in story.incidents if i.open]) == 4


def test_a_few_that_die_together_and_many_one_after_the_other_are_told_apart() -> None:
    story = Story(100)
    story.die(*(f"gpu{i}" for i in range(1, incidents.STORM)))
    assert len([i for i in story.incidents if i.open]) == incidents.STORM - 1
    for i in range(11, 21):
        story.pass_time(11)
        story.die(f"gpu{i}")
    assert len([i for i in story.incidents if i.open]) == incidents.STORM - 1 + 10


def test_the_story_of_an_incident_has_an_end() -> None:
    story = Story()
    story.die("gpu1")
    for number in range(incidents.MAX_STEPS + 10):
        story.belief = incidents.add(story.belief, story.node("gpu1"), f"line {number}", story.now + number)
    assert len(story.incidents[0].steps) == incidents.MAX_STEPS


def test_an_incident_tells_when_the_next_attempt_is_due() -> None:
    story = Story()
    story.die("gpu1")
    assert story.incidents[0].next_attempt_at is None
    story.see(repair_failed("gpu1"), after=1)
    assert story.incidents[0].next_attempt_at == story.node("gpu1").next_attempt_at
    assert story.incidents[0].next_attempt_at is not None


def test_a_step_that_people_know_is_joined_by_no_other_node() -> None:
    """Even when the clock stood still in between: its line in Slack's thread is not written again."""
    story = Story(4)
    story.see(*(refused(f"gpu{i}") for i in (1, 2, 3, 4)))
    story.see(no_process("gpu1"), no_process("gpu2"), after=0.1)
    (known,) = story.incidents
    story.see(no_process("gpu3"), no_process("gpu4"))
    (after,) = story.incidents
    assert after.steps[: len(known.steps)] == known.steps
    assert "gpu[1-2]: dead: process gone" in texts(known)
    assert "gpu[3-4]: dead: process gone" in texts(after)


@pytest.mark.parametrize("beat", [refused("gpu1"), timed_out("gpu1")])
def test_a_node_of_which_no_verdict_comes_is_told_ten_minutes_after_the_longest_budget(beat: m.Event) -> None:
    story = Story(1)  # no peer, and its host takes no login
    nobody = (beat, m.LookFailed("gpu1", "head", "key_refused"), story.listing(row("gpu1", alive=False)))
    story.pass_time(715, *nobody, every=5)
    assert story.incidents == []
    story.pass_time(600, *nobody, every=5)
    (only,) = story.incidents
    assert (only.cause, only.phase) == (Cause.NOT_CLEAR, Phase.NEEDS_PERSON)
    assert "key_refused" in only.steps[0].text
    assert story.given(m.RestartWorker) == []
    story.see(story.listing(row("gpu1")), answered("gpu1"), task_ran("gpu1"), after=1)
    assert story.incidents[0].phase is Phase.RESOLVED


def test_a_node_that_never_came_and_takes_no_login_is_told() -> None:
    story = Story(2, joined=False)
    del story.rows["gpu1"]
    others = [n for n in story.names if n != "gpu1"]
    well = [event for n in others for event in (answered(n), task_ran(n))]
    story.pass_time(740, story.listing(), *well, m.LookFailed("gpu1", "head", "login_timeout"), every=2)
    (only,) = story.incidents
    assert (only.nodes, only.cause, only.phase) == (("gpu1",), Cause.NOT_CLEAR, Phase.NEEDS_PERSON)
    assert "login_timeout" in only.steps[0].text


def test_many_of_which_no_verdict_comes_are_one_incident() -> None:
    story = Story(12, joined=False)
    story.rows = {"head": story.rows["head"]}
    locked = [m.LookFailed(n, "head", "key_refused") for n in story.names[1:]]
    story.pass_time(800, story.listing(), answered("head"), task_ran("head"), *locked, every=2)
    (only,) = story.incidents
    assert (set(only.nodes), only.cause) == (set(story.names[1:]), Cause.NOT_CLEAR)
    assert story.belief.nodes["gpu12"].incident_id == only.id
    nodes = report.health(story.belief, story.now, story.policy)["nodes"]
    assert [n["action"][:14] for n in nodes if n["name"] == "gpu3"] == ["needs a person"]


def test_what_is_suspected_meanwhile_makes_nothing_clear() -> None:
    story = Story(1)
    silent = (timed_out("gpu1"), m.LookFailed("gpu1", "head", "key_refused"))
    story.pass_time(800, *silent)
    story.see(m.LoopLagged(1500.0), *silent, after=1)
    story.pass_time(30, m.LoopLagged(0.0), *silent)
    (only,) = story.incidents
    assert (only.cause, only.phase) == (Cause.NOT_CLEAR, Phase.NEEDS_PERSON)
    story.see(pid_there("gpu1"), after=1)
    assert story.node("gpu1").cause is Cause.HUNG
    assert story.incidents[0].cause is Cause.NOT_CLEAR
    story.pass_time(120, timed_out("gpu1"), pid_there("gpu1"))
    (only,) = story.incidents
    assert (only.cause, only.phase) == (Cause.HUNG, Phase.REPAIRING)


def test_time_in_which_nobody_could_know_better_does_not_count() -> None:
    story = Story(1)
    story.pass_time(10, timed_out("gpu1"))
    story.pass_time(900, m.GcsWentSilent("x"), timed_out("gpu1"), every=5)
    story.see(story.listing(), timed_out("gpu1"), after=1)
    assert story.incidents == []
