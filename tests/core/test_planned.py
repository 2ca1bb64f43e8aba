"""A restart that a person asks for: what runs is asked first, then drained, and never lost in silence."""

from dataclasses import replace

import pytest

from grid_agent.core import messages as m
from grid_agent.core import people, planned, report
from grid_agent.core.incident_model import Phase
from grid_agent.core.seen import LiveWork
from grid_agent.core.terms import Cause, State
from tests.core.situations import (
    Story,
    answered,
    no_process,
    peer_placed,
    pid_there,
    refused,
    repair_failed,
    repaired,
    row,
    task_missed,
    task_ran,
    timed_out,
)

BUSY = {"tasks": 1, "actors": 2}


def ask(name: str = "gpu1", *, disrupt: bool = False) -> m.PersonSaid:
    return m.PersonSaid(m.Verb.REPAIR, "alice", "new driver", name, disrupt=disrupt)


def listed(counts: dict[str, int] | None = None, *, trouble: str | None = None) -> m.WorkListed:
    return m.WorkListed("gpu1", "gpu1-a", LiveWork(0.0, "gpu1-a", counts or {}, ("train",), trouble))


def kinds(orders: tuple[m.Order, ...]) -> list[str]:
    return [type(o).__name__ for o in orders]


def test_an_idle_node_is_drained_and_restarted_and_the_story_is_told() -> None:
    story = Story()
    assert kinds(story.see(ask())) == ["ListWork"]
    assert story.state("gpu1") is State.ALIVE
    (drain,) = story.see(listed(), after=1)
    assert drain == m.DrainNode(
        "gpu1", "gpu1-a", "grid-agent: restart asked by alice: new driver", story.now + 30
    )
    said = m.DrainAnswered("gpu1", "gpu1-a", accepted=True)
    (restart,) = (o for o in story.see(said, after=1) if isinstance(o, m.RestartWorker))
    assert restart == m.RestartWorker("gpu1", "head", 1, "gpu1-a", by_person=True)
    assert (story.state("gpu1"), story.node("gpu1").cause) == (State.REPAIRING, Cause.ASKED)
    story.see(repaired("gpu1"), after=3)
    story.come_back("gpu1")
    (only,) = story.incidents
    assert (only.cause, only.phase) == (Cause.ASKED, Phase.RESOLVED)
    assert any("alice asked for a restart of gpu1: new driver" in s.text for s in only.steps)


def test_a_node_with_work_is_left_alone_and_the_person_is_told_what_runs() -> None:
    story = Story()
    story.see(ask())
    assert story.see(listed(BUSY), after=1) == ()
    node = story.node("gpu1")
    assert (node.state, node.asked) == (State.ALIVE, None)
    assert node.ask_refused is not None
    assert "1 tasks, 2 actors (train)" in node.ask_refused
    story.pass_time(100)
    assert story.given(m.RestartWorker) == story.given(m.DrainNode) == []
    assert story.incidents == []


def test_what_cannot_be_listed_is_in_the_way_too() -> None:
    story = Story()
    story.see(ask())
    story.see(listed(trouble="the dashboard does not answer"), after=1)
    assert "could not be listed (the dashboard does not answer)" in (story.node("gpu1").ask_refused or "")
    assert story.given(m.RestartWorker) == []


def test_with_leave_the_work_has_until_the_deadline_and_no_longer() -> None:
    story = Story()
    story.see(ask(disrupt=True))
    assert "DrainNode" in kinds(story.see(listed(BUSY), after=1))
    assert report.health(story.belief, story.now, story.policy)["nodes"][1]["action"].startswith(
        "alice asked"
    )
    for _ in range(28):
        story.see(listed(BUSY), after=1)
    assert story.given(m.RestartWorker) == []
    story.see(after=2)
    assert len(story.given(m.RestartWorker)) == 1
    assert len(story.given(m.DrainNode)) == 1


def test_work_that_ends_earlier_is_not_waited_for() -> None:
    story = Story()
    story.see(ask(disrupt=True))
    story.see(listed(BUSY), after=1)
    assert "ListWork" in kinds(story.see(after=2))
    assert "RestartWorker" in kinds(story.see(listed(), after=1))


def test_a_drained_raylet_that_leaves_by_itself_is_no_death_of_the_node() -> None:
    story = Story()
    story.see(ask())
    story.see(listed(), after=1)
    story.change("gpu1", work=None)
    story.see(story.listing(row("gpu1", alive=False)), refused("gpu1"), after=1)
    story.see(no_process("gpu1"), after=0.1)
    assert len(story.given(m.RestartWorker)) == 1
    assert story.node("gpu1").deaths == ()


@pytest.mark.parametrize(
    ("before", "words"),
    [
        (m.PersonSaid(m.Verb.PAUSE, "bob", "switches", for_s=600), "paused by a person (bob"),
        (m.GcsWentSilent("x"), "the GCS does not answer"),
        (m.LoopLagged(60_000.0), ""),
    ],
)
def test_a_guard_that_refuses_is_named_to_the_person(before: m.Event, words: str) -> None:
    story = Story()
    story.see(before)
    story.see(before, ask(), after=3)
    assert words in (story.node("gpu1").ask_refused or "nothing was said")
    assert story.given(m.RestartWorker) == story.given(m.ListWork) == []


def test_what_makes_no_sense_is_refused_at_once() -> None:
    story = Story()
    assert "the head" in (people.objection(story.belief, ask("head")) or "")
    story.see(m.PersonSaid(m.Verb.CORDON, "bob", "fan", "gpu1"))
    assert "let go of it first" in (people.objection(story.belief, ask()) or "")
    story.die("gpu2")
    assert "being repaired already" in (people.objection(story.belief, ask("gpu2")) or "")


def test_a_node_that_was_given_up_gets_one_more_restart_and_then_its_own_ladder() -> None:
    story = Story()
    story.die("gpu1")
    for number in (1, 2, 3, 4):
        story.see(repair_failed("gpu1", number), after=1)
        story.see(after=60)
    assert story.state("gpu1") is State.GAVE_UP
    story.see(ask())
    assert (story.state("gpu1"), len(story.given(m.RestartWorker))) == (State.REPAIRING, 5)
    story.see(repair_failed("gpu1", 5), after=1)
    story.see(after=70)
    assert story.state("gpu1") is State.GAVE_UP  # the window's budget binds what nobody asks for
    assert len(story.given(m.RestartWorker)) == 5


def test_what_cannot_be_begun_is_dropped_after_a_while() -> None:
    story = Story()
    story.see(ask())
    story.pass_time(planned.ASK_S + 31)
    assert story.node("gpu1").asked is None
    assert "in time" in (story.node("gpu1").ask_refused or "")
    assert story.given(m.RestartWorker) == []


def test_a_file_that_allows_it_needs_no_leave() -> None:
    story = Story(disrupt=True)
    story.see(ask())
    assert "DrainNode" in kinds(story.see(listed(BUSY), after=1))


def test_news_of_an_older_life_is_no_news() -> None:
    story = Story()
    story.change("gpu1", work=LiveWork(1.0, "gpu1-z", BUSY))
    assert planned.known(story.node("gpu1")) is None
    story.see(ask(), replace(listed(BUSY), node_id="gpu1-z"))
    assert story.node("gpu1").asked is not None


def test_a_node_that_was_let_go_of_a_moment_ago_is_asked_what_it_runs_all_the_same() -> None:
    story = Story()
    story.see(m.PersonSaid(m.Verb.CORDON, "alice", "fan", "gpu1"))
    story.see(m.PersonSaid(m.Verb.UNCORDON, "alice", "done", "gpu1"), after=60)
    assert story.see(ask(), after=0.4) == ()
    assert "ListWork" in kinds(story.see(story.listing(), after=0.4))
    story.see(listed(BUSY), after=0.4)
    assert story.given(m.RestartWorker) == []


def test_a_node_that_never_came_is_restarted_when_the_gcs_does_not_list_it() -> None:
    story = Story(joined=False)
    del story.rows["gpu1"]
    others = [n for n in story.names if n != "gpu1"]
    story.see(story.listing(), after=1)
    story.see(*(answered(n) for n in others), *(task_ran(n) for n in others), after=1)
    assert "RestartWorker" in kinds(story.see(ask(), after=1))


def test_a_suspicion_is_no_verdict_what_runs_is_asked_first() -> None:
    story = Story()
    story.see(timed_out("gpu1"), after=1)
    story.see(timed_out("gpu1"), pid_there("gpu1"), after=1)
    story.see(pid_there("gpu1"), after=0.1)
    assert (story.state("gpu1"), story.node("gpu1").cause) == (State.SUSPECT, Cause.HUNG)
    assert kinds(story.see(ask(), after=0.5)) == ["ListWork"]
    story.see(listed(BUSY), after=0.1)
    assert story.given(m.RestartWorker) == []


def unable(story: Story) -> None:
    """gpu1 answers and runs no task, until that is a verdict; then it is asked what it runs."""
    life = story.rows["gpu1"].node_id[-1]
    bad = (answered("gpu1", life), task_missed("gpu1", life), peer_placed("gpu1", life))
    story.pass_time(64, *bad)
    assert (story.state("gpu1"), story.node("gpu1").cause) == (State.DEAD, Cause.CANNOT_RUN_TASKS)
    assert kinds(tuple(story.orders)).count("ListWork") == 1
    assert story.given(m.RestartWorker) == []


def test_a_node_that_runs_tasks_again_before_its_drain_is_over_is_not_restarted() -> None:
    story = Story(prove_again_s=180.0)
    unable(story)
    story.see(listed(), answered("gpu1"), after=0.3)
    story.see(m.DrainAnswered("gpu1", "gpu1-a", accepted=False, detail="busy"), listed(BUSY), after=0.1)
    story.orders.clear()
    story.pass_time(8, answered("gpu1"), task_missed("gpu1"))
    assert story.given(m.ProveNode)
    story.see(task_ran("gpu1"), after=1)
    story.pass_time(60, answered("gpu1"))
    assert story.state("gpu1") is State.ALIVE
    assert story.given(m.RestartWorker) == []


@pytest.mark.parametrize("life", ["a", "b"])
def test_a_drain_of_an_earlier_trouble_is_none_of_this_one(life: str) -> None:
    story = Story(prove_again_s=180.0)
    unable(story)
    story.see(listed(), answered("gpu1"), after=0.3)
    assert story.given(m.DrainNode)
    if life == "b":
        story.see(m.PersonSaid(m.Verb.PAUSE, "alice", "looking"), after=0.1)
        story.see(story.listing(row("gpu1", life)), after=10)
    story.see(answered("gpu1", life), task_ran("gpu1", life), after=0.1)
    story.see(m.PersonSaid(m.Verb.RESUME, "alice", "done"), after=0.1)
    assert story.state("gpu1") is State.ALIVE
    story.pass_time(600, answered("gpu1", life), every=60)
    story.orders.clear()
    unable(story)


def test_tasks_that_do_not_run_on_a_drained_node_show_nothing_for_ray_gives_it_none() -> None:
    story = Story(prove_again_s=10.0)
    story.change("gpu1", gpus=replace(story.node("gpu1").gpus, drained_id="gpu1-a"))
    story.pass_time(300, *(answered(n) for n in story.names), task_missed("gpu1"))
    assert (story.state("gpu1"), story.node("gpu1").proof_misses) == (State.ALIVE, 0)


def test_a_list_that_comes_when_nobody_wants_it_any_more_is_not_kept() -> None:
    story = Story(prove_again_s=180.0)
    unable(story)
    story.see(answered("gpu1"), task_ran("gpu1"), after=0.1)
    story.see(listed(), after=1)
    assert story.node("gpu1").work is None
