"""How often, how soon, and when to stop; and who carries it out."""

from dataclasses import replace

from grid_agent.core import ladder, placement
from grid_agent.core.model import Attempt, NodeBelief
from grid_agent.core.policy import Policy
from grid_agent.core.terms import Cause, Rung, State
from tests.core.situations import Story, configured, refused

POLICY = Policy()


def tried(*results: bool | None, started_at: float = 0.0) -> NodeBelief:
    """A node with one attempt per result, a second apart; None is under way."""
    attempts = tuple(
        Attempt(n + 1, started_at + n, "head", None if ok is None else started_at + n, ok)
        for n, ok in enumerate(results)
    )
    return replace(configured("gpu1"), attempts=attempts, attempts_begun=len(attempts))


def wait_after(failures: int, name: str = "gpu1", **policy: float) -> float:
    return ladder.wait_s(name, 1, failures, replace(POLICY, **policy))


def test_the_wait_grows_threefold_to_its_most_with_a_jitter_of_a_fifth() -> None:
    for failures, most in ((1, 2.0), (2, 6.0), (3, 18.0), (4, 54.0), (5, 60.0), (50, 60.0)):
        assert 0.8 * most < wait_after(failures) <= most, failures


def test_the_jitter_is_the_nodes_own_and_the_same_every_time() -> None:
    waits = {wait_after(1, f"gpu{i}") for i in range(20)}
    assert len(waits) == 20
    assert wait_after(1, "gpu7") == wait_after(1, "gpu7")


def test_a_failed_attempt_puts_the_next_one_off() -> None:
    node = ladder.begin(configured("gpu1"), "head", 90.0, POLICY)
    first = ladder.fail(node, "no", 100.0, POLICY)
    assert 101.6 < (first.next_attempt_at or 0.0) <= 102.0
    second = ladder.fail(ladder.begin(first, "head", 103.0, POLICY), "no", 110.0, POLICY)
    assert 114.8 < (second.next_attempt_at or 0.0) <= 116.0


def test_each_rung_has_its_tries_and_then_a_person_is_asked() -> None:
    rungs = [ladder.rung(replace(configured("gpu1"), tries=n), POLICY) for n in range(6)]
    assert rungs == [Rung.RESTART, Rung.RESTART, Rung.CLEAR, Rung.CLEAR, Rung.PERSON, Rung.PERSON]
    assert ladder.used_up(replace(configured("gpu1"), tries=4), 0.0, POLICY)
    waiting = replace(configured("gpu1"), cause=Cause.HOST_DOWN, tries=9)
    assert ladder.rung(waiting, POLICY) is Rung.WAIT


def test_after_the_probation_the_ladder_begins_anew_and_not_a_second_before() -> None:
    node = replace(configured("gpu1"), state=State.ALIVE, since=1000.0, tries=3)
    assert ladder.settle(node, 1299.0, POLICY) is node
    assert ladder.settle(node, 1300.0, POLICY).tries == 0
    assert ladder.settle(replace(node, state=State.SUSPECT), 1300.0, POLICY).tries == 3


def test_a_first_death_is_answered_at_once_and_the_third_after_a_wait() -> None:
    assert ladder.died(configured("gpu1"), 100.0, POLICY).next_attempt_at is None
    assert ladder.died(replace(configured("gpu1"), tries=1), 100.0, POLICY).next_attempt_at is None
    again = ladder.died(replace(configured("gpu1"), tries=2), 100.0, POLICY).next_attempt_at
    assert 101.6 < (again or 0.0) <= 102.0


def test_four_deaths_within_the_window_are_flapping() -> None:
    node = configured("gpu1")
    for at in (0.0, 200.0, 400.0):
        node = ladder.died(node, at, POLICY)
        assert not ladder.flapping(node, at, POLICY)
    assert ladder.flapping(ladder.died(node, 599.0, POLICY), 599.0, POLICY)
    late = ladder.died(node, 600.0, POLICY)
    assert not ladder.flapping(late, 600.0, POLICY)
    assert late.deaths == (200.0, 400.0, 600.0)


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
