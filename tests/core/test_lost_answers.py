"""The node that runs a repair dies: what became of it is looked at on the sick host, then it goes on."""

import pytest

from grid_agent.core import messages as m
from grid_agent.core.seen import Raylet
from grid_agent.core.terms import State
from tests.core.situations import Story, answered, looks, refused, repaired, row, task_ran


def lost(number: int = 1) -> m.RepairEnded:
    return m.RepairEnded("gpu1", number, ok=False, detail="NodeDiedError: gpu2 died", curable=None)


def shown(*raylets: Raylet, starting: bool | None = False) -> m.HostLooked:
    return m.HostLooked("gpu1", "head", raylets, asked_about="gpu1-a", starting=starting)


@pytest.fixture
def story() -> Story:
    """gpu1 is under repair, and the answer of the repair has just been lost."""
    story = Story()
    story.die("gpu1")
    story.orders.clear()
    story.see(lost(), after=3)
    return story


def test_its_host_is_looked_at_before_anything_else_happens(story: Story) -> None:
    assert looks(story.orders) == [("gpu1", "gpu1-a", "head")]
    assert story.state("gpu1") is State.REPAIRING
    assert story.node("gpu1").in_flight
    assert "no answer from head (NodeDiedError: gpu2 died)" in story.incidents[0].steps[-1].text
    story.pass_time(5)
    assert story.given(m.RestartWorker) == []


def test_what_was_seen_before_the_repair_does_not_count(story: Story) -> None:
    """The look that proved the death showed no raylet, and no start under way."""
    assert story.node("gpu1").host_view is None


def test_a_start_under_way_is_waited_for_and_its_raylet_taken(story: Story) -> None:
    for _ in range(4):
        story.see(shown(starting=True), after=2)
    assert story.node("gpu1").in_flight
    story.see(shown(Raylet(51, "gpu1-b"), starting=True), after=2)
    last = story.node("gpu1").attempts[-1]
    assert (last.ok, "its raylet runs, pid 51" in last.detail) == (True, True)
    story.see(story.listing(row("gpu1", "b")), after=1)
    story.see(answered("gpu1", "b"), task_ran("gpu1", "b"), after=0.1)
    assert story.state("gpu1") is State.ALIVE
    assert story.given(m.RestartWorker) == []


def test_where_nothing_was_started_the_next_attempt_follows(story: Story) -> None:
    story.see(shown(), after=0.5)
    assert story.state("gpu1") is State.DEAD
    detail = story.node("gpu1").attempts[-1].detail
    assert detail == "no answer came (NodeDiedError: gpu2 died); its host shows no raylet from it"
    story.pass_time(5)
    assert [order.attempt for order in story.given(m.RestartWorker)] == [2]


def test_nothing_is_restarted_blindly_and_nothing_waits_for_ever(story: Story) -> None:
    """Nobody can look for a long time: the attempt is over, and the next begins when somebody could."""
    story.pass_time(story.policy.repair_timeout_s + 5, m.LookFailed("gpu1", "head", "key_refused"))
    assert "no answer from the repair" in story.node("gpu1").attempts[0].detail
    assert (story.state("gpu1"), story.given(m.RestartWorker)) == (State.DEAD, [])
    story.see(shown(), refused("gpu1"), after=1)
    assert [order.attempt for order in story.given(m.RestartWorker)] == [2]


def test_an_answer_that_comes_all_the_same_counts(story: Story) -> None:
    story.see(repaired("gpu1"), after=1)
    assert story.node("gpu1").attempts[-1].ok


def test_of_a_node_that_came_back_meanwhile_nothing_is_asked() -> None:
    story = Story()
    story.die("gpu1")
    story.come_back("gpu1")
    story.orders.clear()
    story.see(lost(), after=1)
    assert story.state("gpu1") is State.ALIVE
    assert looks(story.orders) == []
    assert not story.node("gpu1").in_flight
