"""Each refusal, provoked by name; and what Ray may be told."""

from dataclasses import replace
from pathlib import Path

import pytest

from grid_agent.core import guard
from grid_agent.core import messages as m
from grid_agent.core.model import Attempt, Observer
from grid_agent.core.resume import resume
from grid_agent.core.seen import LiveWork
from grid_agent.core.terms import Cause, Miss, Refusal, State
from tests.core.situations import (
    Story,
    answered,
    no_process,
    not_reached,
    peer_says,
    pid_there,
    refused,
    repair_failed,
    repaired,
    row,
    task_ran,
    timed_out,
    unreachable,
)


def asked(story: Story, name: str = "gpu1") -> Refusal | None:
    return guard.refusal(story.belief, story.node(name), story.now, story.policy)


def dead_node(story: Story) -> Story:
    """gpu1 is proven dead, and the step that would have repaired it is undone."""
    before = story.belief
    story.die("gpu1")
    after = replace(story.node("gpu1"), state=State.DEAD, attempts=(), next_attempt_at=None, refusal=None)
    story.belief = replace(before, nodes={**before.nodes, "gpu1": after})
    return story


def test_a_proven_death_is_permitted() -> None:
    assert asked(dead_node(Story())) is None


def test_head() -> None:
    story = dead_node(Story())
    story.change("gpu1", role="head")
    assert asked(story) is Refusal.HEAD


def test_stopped_by_person() -> None:
    story = dead_node(Story())
    story.change("gpu1", stopped=True)
    assert asked(story) is Refusal.STOPPED_BY_PERSON


def test_observing() -> None:
    story = Story(mode="observe")
    story.die("gpu1")
    assert story.refusal("gpu1") is Refusal.OBSERVING


def test_gcs_silent() -> None:
    story = Story()
    story.see(m.GcsWentSilent("x"))
    story.see(m.GcsWentSilent("x"), after=3)
    story.die("gpu1")
    assert story.refusal("gpu1") is Refusal.GCS_SILENT


def test_gcs_never_answered() -> None:
    story = dead_node(Story())
    story.belief = replace(story.belief, observer=replace(story.belief.observer, gcs_answered_at=None))
    assert asked(story) is Refusal.GCS_SILENT


def test_observer_sick() -> None:
    story = Story()
    story.see(m.LoopLagged(1000.0))
    story.die("gpu1")
    assert story.refusal("gpu1") is Refusal.OBSERVER_SICK
    story.see(m.LoopLagged(0.0), after=1)
    assert story.refusal("gpu1") is Refusal.OBSERVER_SICK  # one good moment is no recovery
    assert story.see(m.LoopLagged(0.0), refused("gpu1"), no_process("gpu1"), after=1)


def test_mass_failure() -> None:
    story = Story(2)
    story.die("gpu1", "gpu2")
    assert story.refusal("gpu1") is Refusal.MASS_FAILURE


def test_one_witness_when_the_verdict_no_longer_stands() -> None:
    story = Story()
    story.see(m.LoopLagged(5000.0))  # something else holds the repair meanwhile
    story.die("gpu1")
    story.see(m.LoopLagged(0.0), story.listing(row("gpu1", "b")), after=10)
    assert story.refusal("gpu1") is Refusal.ONE_WITNESS


def test_one_witness_when_the_facts_are_few() -> None:
    story = dead_node(Story())
    story.change("gpu1", host_view=None)
    assert asked(story) is Refusal.ONE_WITNESS


def test_host_unreachable() -> None:
    story = Story()
    story.see(unreachable("gpu1"))
    nobody = (unreachable("gpu1"), not_reached("gpu1"), peer_says("gpu1", Miss.UNREACHABLE))
    story.see(*nobody, after=1)
    story.pass_time(122, *nobody)
    assert (story.state("gpu1"), story.refusal("gpu1")) == (State.DEAD, Refusal.HOST_UNREACHABLE)


def test_not_curable() -> None:
    story = dead_node(Story())
    story.change("gpu1", attempts=(Attempt(1, story.now, "head", story.now, ok=False, curable=False),))
    assert asked(story) is Refusal.NOT_CURABLE


def test_a_node_that_cannot_join_is_handed_over_by_an_agent_that_has_not_seen_it_yet() -> None:
    story = dead_node(Story())
    story.see(m.PersonSaid(m.Verb.PAUSE, "ops", "maintenance", for_s=60.0))
    attempt = Attempt(1, story.now, "head", story.now, ok=False, curable=False)
    story.change("gpu1", cause=Cause.CANNOT_JOIN, attempts=(attempt,))
    story.belief = replace(resume(story.belief, story.now), observer=Observer())
    story.change("gpu1", verdict_stands=False, host_view=None)
    story.see(story.listing(), m.PersonSaid(m.Verb.RESUME, "ops", "done"), after=1)
    assert (story.state("gpu1"), story.node("gpu1").cause) == (State.GAVE_UP, Cause.CANNOT_JOIN)


def test_node_budget() -> None:
    story = dead_node(Story())
    spent = tuple(Attempt(n, story.now - n, "head", story.now, ok=True) for n in (1, 2, 3, 4))
    story.change("gpu1", attempts=spent)
    assert asked(story) is Refusal.NODE_BUDGET
    story.now += story.policy.node_window_s
    assert asked(story) is None


def test_in_flight() -> None:
    story = Story(5)
    story.die("gpu1", "gpu2")
    assert story.state("gpu1") is State.REPAIRING
    assert story.refusal("gpu2") is Refusal.IN_FLIGHT


def test_cluster_budget() -> None:
    story = dead_node(Story(8))
    for name in ("gpu2", "gpu3", "gpu4", "gpu5", "gpu6"):
        two = tuple(Attempt(n, story.now - 10, "head", story.now, ok=True) for n in (1, 2))
        story.change(name, attempts=two)
    assert asked(story) is Refusal.CLUSTER_BUDGET
    story.now += story.policy.cluster_window_s
    assert asked(story) is None


def test_backing_off() -> None:
    story = Story()
    story.die("gpu1")
    story.see(repair_failed("gpu1"), after=1)
    assert story.refusal("gpu1") is Refusal.BACKING_OFF


def test_no_repairer() -> None:
    story = Story()
    story.see(refused("head"))
    story.die("gpu1")
    assert story.refusal("gpu1") is Refusal.NO_REPAIRER


def person(verb: m.Verb, node: str | None = None, for_s: float | None = None) -> m.PersonSaid:
    return m.PersonSaid(verb, "alice", "new switches", node, for_s)


def test_paused_until_the_time_said_or_resumed() -> None:
    story = Story()
    story.see(person(m.Verb.PAUSE, for_s=60))
    story.die("gpu1")
    assert story.refusal("gpu1") is Refusal.PAUSED
    assert "alice until 1970-01-01 00:17 UTC: new switches" in story.incidents[0].steps[-1].text
    assert story.given(m.TellRay) == []
    story.pass_time(58, refused("gpu1"), no_process("gpu1"))
    assert story.given(m.RestartWorker) == []
    story.see(after=2)
    assert len(story.given(m.RestartWorker)) == 1


def test_cordoned_nodes_are_left_alone_and_their_restart_waits_for_uncordon() -> None:
    story = dead_node(Story())
    story.orders.clear()
    story.see(person(m.Verb.CORDON, "gpu1"))
    assert asked(story) is Refusal.CORDONED
    assert story.state("gpu1") is State.CORDONED
    story.pass_time(100, refused("gpu1"), no_process("gpu1"))
    assert story.given(m.RestartWorker) == []


def test_breaker() -> None:
    story = dead_node(Story())
    opened = replace(story.belief.breaker, opened_at=story.now, why="gpu2, gpu3")
    story.belief = replace(story.belief, breaker=opened)
    assert asked(story) is Refusal.BREAKER


@pytest.mark.parametrize(
    ("hours", "minute", "until"),
    [
        ((1320, 360), 1319, None),
        ((1320, 360), 1320, 1440 + 360),
        ((1320, 360), 0, 360),
        ((1320, 360), 359, 360),
        ((1320, 360), 360, None),
        ((480, 1080), 500, 1080),
        ((480, 480), 480, None),
    ],
)
def test_do_not_disturb(hours: tuple[int, int], minute: int, until: int | None) -> None:
    story = dead_node(Story(do_not_disturb=(hours,)))
    day = 86_400.0 * 3
    story.now = day + 60 * minute + 30
    assert asked(story) is (None if until is None else Refusal.DO_NOT_DISTURB)
    assert guard.quiet_until(story.now, story.policy) == (None if until is None else day + 60 * until)


def test_flapping_from_the_fourth_death_and_one_incident_for_what_follows() -> None:
    story = Story()
    for number, (life, following) in enumerate(("ab", "bc", "cd"), start=1):
        story.die("gpu1", life=life)
        story.pass_time(3)
        story.see(repaired("gpu1", number), after=1)
        story.come_back("gpu1", following)
    assert len(story.given(m.RestartWorker)) == 3
    story.die("gpu1", life="d")
    assert (story.state("gpu1"), story.refusal("gpu1")) == (State.GAVE_UP, Refusal.FLAPPING)
    assert [i.open for i in story.incidents] == [False, False, True]
    assert "4 deaths within 600 s" in story.incidents[-1].steps[-1].text
    story.come_back("gpu1", "e")  # by itself
    story.die("gpu1", life="e")
    assert len(story.incidents) == 3
    assert len(story.given(m.RestartWorker)) == 3


def test_live_work_holds_the_restart_of_a_node_that_runs() -> None:
    story = Story()
    story.change("gpu1", work=LiveWork(story.now, "gpu1-a", {"tasks": 2}, ("train",)))
    node = story.node("gpu1")
    named = guard.refusals(story.belief, node, story.now, story.policy)
    assert Refusal.LIVE_WORK in named
    text = guard.explain(Refusal.LIVE_WORK, story.belief, node, story.now, story.policy)
    assert "2 tasks (train); grid-agent repair gpu1 --disrupt" in text


def test_every_guard_says_what_sets_it_and_the_page_is_printed_from_that() -> None:
    assert set(guard.SETTINGS) == set(Refusal)
    page = (Path(__file__).parents[2] / "docs" / "guards.md").read_text()
    assert guard.markdown() in page


def test_all_the_guards_that_would_refuse_are_named_and_not_only_the_first() -> None:
    story = dead_node(Story())
    assert guard.refusals(story.belief, story.node("gpu1"), story.now, story.policy) == []
    story.change("gpu1", next_attempt_at=story.now + 9, tries=4)
    story.see(person(m.Verb.PAUSE), m.SelfChecked(0, None))
    named = guard.refusals(story.belief, story.node("gpu1"), story.now, story.policy)
    assert named == [Refusal.PAUSED, Refusal.OBSERVER_SICK, Refusal.NODE_BUDGET, Refusal.BACKING_OFF]


def test_every_refusal_has_a_test_here() -> None:
    names = {name for name in globals() if name.startswith("test_")}
    missing = [r.name for r in Refusal if not any(r.name.lower() in name for name in names)]
    assert missing == []


# --- telling Ray ---------------------------------------------------------------------------------


def may_tell(story: Story, *, fenced: bool = False) -> bool:
    return guard.may_tell(story.belief, story.node("gpu1"), story.now, story.policy, fenced=fenced)


def test_ray_is_told_of_a_proven_death_and_not_of_a_lonely_suspicion() -> None:
    assert may_tell(dead_node(Story()))
    story = Story()
    story.see(refused("gpu1"))
    assert not may_tell(story)
    assert may_tell(story, fenced=True)


@pytest.mark.parametrize(
    "trouble", [m.LoopLagged(9999.0), m.PeopleStopped(frozenset({"gpu1"})), m.GcsWentSilent("x")]
)
def test_ray_is_not_told_while_we_are_in_doubt_or_a_person_acts(trouble: m.Event) -> None:
    story = dead_node(Story())
    story.see(trouble)
    story.now += 3
    assert not may_tell(story)
    assert not may_tell(story, fenced=True)


def test_ray_is_not_told_in_observe_mode() -> None:
    story = dead_node(Story())
    story.policy = replace(story.policy, mode="observe")
    assert not may_tell(story, fenced=True)


def test_while_holding_ray_is_told_of_processes_proven_gone_only() -> None:
    story = dead_node(Story())
    story.belief = replace(story.belief, holding_since=story.now)
    assert may_tell(story)
    story.change("gpu1", cause=Cause.HOST_DOWN)
    assert not may_tell(story)


# --- mass failure ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("workers", "lost", "mass"),
    [(1, 1, False), (2, 1, False), (2, 2, True), (4, 1, False), (4, 2, True), (5, 2, False), (5, 3, True)],
)
def test_half_of_the_workers_and_at_least_two(workers: int, lost: int, mass: bool) -> None:
    story = Story(workers)
    story.see(*(refused(f"gpu{i}") for i in range(1, lost + 1)))
    assert guard.mass_failure(story.belief, story.now, story.policy) is mass


def test_a_death_leaves_the_count_after_the_window_and_a_host_out_of_reach_does_not() -> None:
    story = Story(2)
    story.see(refused("gpu1"), refused("gpu2"))
    story.see(no_process("gpu1"), not_reached("gpu2"), unreachable("gpu2"), after=0.1)
    story.now += story.policy.mass_window_s
    assert guard.failing(story.belief, story.now, story.policy) == ("gpu2",)


def test_the_time_in_which_many_failed_counts_against_nobody() -> None:
    story = Story(2, unreachable_s=30.0)
    lost = [(unreachable(n), not_reached(n)) for n in ("gpu1", "gpu2")]
    story.pass_time(100, *lost[0], *lost[1])
    assert story.belief.holding_since is not None
    back = (answered("gpu1"), task_ran("gpu1"))
    story.see(*back, *lost[1], after=1)  # the first one is back; now the other one fails alone
    assert story.belief.holding_since is None
    cut_off = (*lost[1], peer_says("gpu2", Miss.UNREACHABLE, by="gpu1"))
    story.pass_time(20, *back, *cut_off)
    assert story.given(m.TellRay) == story.given(m.RestartWorker) == []
    assert not story.node("gpu2").verdict_stands
    story.pass_time(20, *back, *cut_off)
    assert [o.node for o in story.given(m.TellRay)] == ["gpu2"]


def test_two_holds_in_a_row_count_against_nobody_either() -> None:
    story = Story(2, unreachable_s=30.0)
    first, second = ((unreachable(n), not_reached(n)) for n in ("gpu1", "gpu2"))
    back = (answered("gpu2"), task_ran("gpu2"))
    for cut_s in (100, 70):
        story.pass_time(cut_s, *first, *second)
        story.pass_time(3, *back, *first)
        assert story.belief.holding_since is None
    story.pass_time(20, *back, *first, peer_says("gpu1", Miss.UNREACHABLE, by="gpu2"))
    assert story.given(m.TellRay) == story.given(m.RestartWorker) == []


def test_a_start_that_cannot_succeed_is_handed_over_after_a_hold() -> None:
    story = Story(3)
    story.die("gpu1")
    story.see(refused("gpu2"), refused("gpu3"), no_process("gpu2"), no_process("gpu3"), after=1)
    assert story.belief.holding_since is not None
    story.see(repair_failed("gpu1", curable=False), after=1)
    story.pass_time(story.policy.mass_window_s + 60, no_process("gpu1"))
    assert story.state("gpu1") is State.GAVE_UP


def test_the_head_and_healthy_nodes_do_not_count() -> None:
    story = Story(2)
    story.see(refused("head"), timed_out("gpu1"), answered("gpu2"), pid_there("gpu2"))
    assert guard.failing(story.belief, story.now, story.policy) == ()
    assert story.see(repaired("gpu1")) == ()
