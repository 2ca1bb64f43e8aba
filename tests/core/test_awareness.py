"""Doubt of ourselves: it rises at once, falls slowly, stretches every timeout, and at last only watches."""

import pytest

from grid_agent.core import awareness, report
from grid_agent.core import messages as m
from grid_agent.core.terms import Cause, Refusal, State
from tests.core.situations import (
    Story,
    answered,
    no_process,
    peer_placed,
    pid_there,
    refused,
    task_missed,
    timed_out,
)

WELL = m.SelfChecked(0, 1.0, 10.0, 0.0)


def score(*events: m.Event) -> int:
    story = Story()
    story.see(*events)
    return story.belief.observer.score


@pytest.mark.parametrize(
    ("event", "points"),
    [
        (m.LoopLagged(249.0), 0),
        (m.LoopLagged(250.0), 1),
        (m.LoopLagged(1000.0), awareness.SICK),
        (m.LoopLagged(10_000.0), awareness.MOST),
        (WELL, 0),
        (m.SelfChecked(0, 1.0, 99.0, 0.0), 0),  # pressure alone slows nobody
        (m.SelfChecked(0, 150.0, 99.0, 0.0), 1),
        (m.SelfChecked(0, 300.0, None, 0.0), 1),
        (m.SelfChecked(0, None, None, 0.0), awareness.SICK),
        (m.SelfChecked(2, 1.0, None, 0.0), 0),
        (m.SelfChecked(3, 1.0, None, 0.0), 1),
        (m.SelfChecked(0, 1.0, None, -0.5), 0),
        (m.SelfChecked(0, 1.0, None, 2.0), 1),
        (m.SelfChecked(0, 1.0, None, -3600.0), awareness.SICK),
        (m.SelfChecked(5, 300.0, 95.0, 2.0), 4),
    ],
)
def test_what_each_sign_counts(event: m.Event, points: int) -> None:
    assert score(event) == points


def test_it_rises_at_once_and_falls_by_one_every_two_seconds_without_a_sign() -> None:
    story = Story()
    story.see(m.LoopLagged(20_000.0))
    seen = []
    for _ in range(20):
        story.see(m.LoopLagged(0.0), WELL, after=1)
        seen.append(story.belief.observer.score)
    assert seen[:6] == [8, 7, 7, 6, 6, 5]
    assert seen[-1] == 0
    assert story.belief.observer.doubts == ()


def test_every_timeout_is_stretched() -> None:
    story = Story(hang_s=10)
    story.see(m.SelfChecked(0, 300.0, None, 0.0))
    slow = (m.SelfChecked(0, 300.0, None, 0.0), timed_out("gpu1"), pid_there("gpu1"))
    story.pass_time(3, *slow)
    assert story.state("gpu1") is State.ALIVE, "two misses are four for one who is slow"
    story.pass_time(15, *slow)
    assert story.state("gpu1") is State.SUSPECT
    story.pass_time(12, *slow)
    assert story.node("gpu1").cause is Cause.HUNG
    assert story.given(m.RestartWorker)


def test_one_that_is_sick_only_watches_and_says_so() -> None:
    story = Story()
    lost = m.SelfChecked(0, None, None, 0.0)
    story.see(refused("gpu1"), no_process("gpu1"), lost)
    story.pass_time(30, refused("gpu1"), no_process("gpu1"), lost)
    assert story.refusal("gpu1") is Refusal.OBSERVER_SICK
    assert not story.given(m.RestartWorker)
    assert not story.given(m.TellRay)
    seen = report.observer(story.belief, story.now, story.policy)
    assert seen["status"] == "warn"
    assert "cannot reach itself on the loopback: it only watches" in seen["detail"]
    story.pass_time(3, refused("gpu1"), no_process("gpu1"), WELL)
    assert story.given(m.RestartWorker)


def test_a_silence_found_while_we_are_sick_is_laid_at_our_own_door() -> None:
    story = Story()
    story.pass_time(12, timed_out("gpu1"), m.SelfChecked(0, None, None, 0.0))
    assert (story.state("gpu1"), story.node("gpu1").cause) == (State.SUSPECT, Cause.OBSERVER_SICK)
    story.pass_time(20, timed_out("gpu1"), WELL)
    assert story.node("gpu1").cause is None


def test_time_in_which_we_stood_still_does_not_count() -> None:
    story = Story(hang_s=30)
    story.pass_time(10, timed_out("gpu1"), pid_there("gpu1"))
    story.see(m.LoopLagged(300_000.0), timed_out("gpu1"), pid_there("gpu1"), after=300)
    story.pass_time(16, timed_out("gpu1"), pid_there("gpu1"))  # until we trust ourselves again
    assert story.state("gpu1") is State.SUSPECT
    story.see(answered("gpu1"))
    assert story.state("gpu1") is State.ALIVE
    assert not story.given(m.RestartWorker)


def test_many_at_once_are_given_more_time() -> None:
    story = Story(8, hang_s=4)
    both = [e for n in ("gpu1", "gpu2", "gpu3") for e in (timed_out(n), pid_there(n))]
    story.pass_time(7, *both)
    assert not story.given(m.RestartWorker)


@pytest.mark.parametrize("stood_still_s", [0.0, 100.0])
def test_nor_does_it_against_a_node_that_is_still_alive_and_has_missed_something(
    stood_still_s: float,
) -> None:
    story = Story(prove_again_s=10.0)
    story.see(answered("gpu1"), task_missed("gpu1"), after=1)
    assert story.state("gpu1") is State.ALIVE
    story.see(m.LoopLagged(1000.0 * stood_still_s), after=stood_still_s)
    for _ in range(55):
        story.see(m.LoopLagged(0.0), answered("gpu1"), task_missed("gpu1"), peer_placed("gpu1"), after=1)
        assert story.state("gpu1") is not State.DEAD
