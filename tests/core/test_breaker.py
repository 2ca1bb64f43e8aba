"""Repairs that do not help stop every repair; one hopeless node alone does not; a person closes it."""

from grid_agent.core import breaker, guard
from grid_agent.core import messages as m
from grid_agent.core.terms import Refusal, State
from tests.core.situations import Story, pid_there, repair_failed, repaired

CLOSE = m.PersonSaid(m.Verb.CLOSE_BREAKER, "alice", "replaced the switch")


def fail_once(story: Story, name: str) -> None:
    """The node dies, its only attempt fails, and the node is out of the window of a mass failure."""
    story.die(name)
    story.see(repair_failed(name), after=1)
    story.change(name, next_attempt_at=story.now + 10_000)
    story.see(after=20)


def tripped(workers: int = 8) -> Story:
    story = Story(workers)
    for name in ("gpu1", "gpu2", "gpu3"):
        fail_once(story, name)
    return story


def test_the_third_node_in_a_row_opens_it_and_everybody_is_told() -> None:
    story = tripped()
    state = story.belief.breaker
    assert state.unhelpful == ("gpu1", "gpu2", "gpu3")
    assert state.opened_at is not None
    assert all("the breaker opened" in " ".join(s.text for s in i.steps) for i in story.incidents)
    story.die("gpu4")
    assert (story.state("gpu4"), story.refusal("gpu4")) == (State.DEAD, Refusal.BREAKER)
    assert "grid-agent breaker close --reason" in story.incidents[-1].steps[-1].text


def test_one_hopeless_node_uses_up_its_own_budget_only() -> None:
    story = Story(8)
    story.die("gpu1")
    for number in (1, 2, 3, 4):
        story.see(repair_failed("gpu1", number), after=1)
        story.see(after=70)
    assert story.state("gpu1") is State.GAVE_UP
    assert len(story.given(m.RestartWorker)) == 4
    assert story.belief.breaker.opened_at is None
    story.die("gpu2")
    assert story.state("gpu2") is State.REPAIRING


def test_a_repair_that_lasts_ends_the_row_and_one_that_does_not_joins_it() -> None:
    story = Story(8)
    fail_once(story, "gpu1")
    fail_once(story, "gpu2")
    story.die("gpu3")
    story.see(repaired("gpu3"))
    story.come_back("gpu3")
    story.see(after=breaker.HELPED_S - 1)
    assert story.belief.breaker.unhelpful == ("gpu1", "gpu2")
    story.see(pid_there("gpu3", "b"), after=1)  # it came back, so its host was looked at
    assert story.belief.breaker.unhelpful == ()
    story.die("gpu3", life="b")  # it had helped: this is a new death
    assert story.belief.breaker.unhelpful == ()
    story.see(repaired("gpu3", 2), after=3)
    story.come_back("gpu3", "c")
    story.die("gpu3", life="c")
    assert story.belief.breaker.unhelpful == ("gpu3",)


def test_a_repair_after_which_fewer_nodes_live_made_it_worse() -> None:
    story = Story(8)
    story.die("gpu1")
    story.see(repaired("gpu1"), after=1)
    story.come_back("gpu1")
    for name in ("gpu2", "gpu3"):
        story.change(name, state=State.GAVE_UP)
    story.see(after=breaker.HELPED_S)
    assert story.belief.breaker.unhelpful == ("gpu1",)


def test_only_a_person_closes_it_and_the_backlog_is_judged_anew() -> None:
    story = tripped()
    story.see(after=100_000)
    assert guard.refusal(story.belief, story.node("gpu1"), story.now, story.policy) is Refusal.BREAKER
    began = len(story.given(m.RestartWorker))
    story.see(CLOSE)
    assert story.belief.breaker.opened_at is None
    assert story.belief.breaker.closed is not None
    assert story.belief.breaker.closed.reason == "replaced the switch"
    assert len(story.given(m.RestartWorker)) == began + 1  # one at a time, and only what is still dead
    assert any("alice closed the breaker" in s.text for s in story.incidents[0].steps)


def test_words_that_make_no_sense_change_nothing() -> None:
    story = Story()
    before = story.belief.breaker
    story.see(CLOSE)
    assert story.belief.breaker == before
