"""How often, how soon, and when to stop; and who carries it out."""

from dataclasses import replace

from grid_agent.core import ladder, placement
from grid_agent.core.model import Attempt, NodeBelief, Policy, State
from tests.core.situations import Story, configured, refused

POLICY = Policy()


def tried(*results: bool | None, started_at: float = 0.0) -> NodeBelief:
    """A node with one attempt per result, a second apart; None is under way."""
    attempts = tuple(
        Attempt(n + 1, started_at + n, "head", None if ok is None else started_at + n, ok)
        for n, ok in enumerate(results)
    )
    return replace(configured("gpu1"), attempts=attempts, attempts_begun=len(attempts))


def wait_after(*results: bool | None) -> float | None:
    return ladder.fail(tried(*results), "no", 100.0, POLICY).next_attempt_at


def test_the_wait_grows_with_failures_in_a_row_and_its_last_value_stays() -> None:
    assert wait_after(None) == 102.0
    assert wait_after(False, None) == 110.0
    assert wait_after(False, False, None) == 130.0
    assert wait_after(False, False, False, None) == 130.0


def test_a_success_ends_the_row() -> None:
    assert wait_after(False, False, True, None) == 102.0


def test_failures_out_of_the_window_are_forgotten() -> None:
    node = tried(False, False, None)
    later = replace(node, attempts=(*node.attempts[:2], replace(node.attempts[2], started_at=5000.0)))
    assert ladder.fail(later, "no", 5001.0, POLICY).next_attempt_at == 5003.0


def test_failing_closes_the_attempt_with_its_reason() -> None:
    last = ladder.fail(tried(None), "no answer", 100.0, POLICY).attempts[-1]
    assert (last.ended_at, last.ok, last.detail) == (100.0, False, "no answer")


def test_beginning_numbers_on_and_never_uses_a_number_twice() -> None:
    node = ladder.begin(tried(False, False), "head", 100.0, POLICY)
    assert [a.number for a in node.attempts] == [1, 2, 3]
    assert node.in_flight
    released = replace(node, attempts=())
    assert ladder.begin(released, "head", 200.0, POLICY).attempts[-1].number == 4


def test_beginning_forgets_what_is_out_of_the_window() -> None:
    node = ladder.begin(tried(False, False), "head", POLICY.node_window_s + 0.5, POLICY)
    assert [a.number for a in node.attempts] == [2, 3]


def test_the_budgets_are_used_up_exactly_at_their_number() -> None:
    assert not ladder.used_up(tried(False, False, False), 10.0, POLICY)
    assert ladder.used_up(tried(False, False, False, False), 10.0, POLICY)
    story = Story(3)
    for name, count in (("gpu1", 4), ("gpu2", 3), ("gpu3", 2)):
        story.change(name, attempts=tried(*[True] * count, started_at=story.now).attempts)
    assert not ladder.cluster_used_up(story.belief, story.now, POLICY)
    story.change("gpu3", attempts=tried(True, True, True, started_at=story.now).attempts)
    assert ladder.cluster_used_up(story.belief, story.now, POLICY)


def test_not_curable_is_said_of_one_failure_and_not_for_ever() -> None:
    node = tried(False)
    hopeless = replace(node, attempts=(replace(node.attempts[0], curable=False),), failed_at=-1.0)
    assert not ladder.curable(hopeless)
    assert ladder.curable(replace(hopeless, failed_at=50.0))
    assert ladder.curable(tried(False))
    assert ladder.curable(tried())


def test_the_head_repairs_while_it_lives_and_never_itself() -> None:
    story = Story()
    assert placement.choose(story.belief, story.node("gpu1")) == "head"
    assert placement.choose(story.belief, story.node("head")) is None
    story.see(refused("head"))
    assert story.state("head") is State.SUSPECT
    assert placement.choose(story.belief, story.node("gpu1")) is None
