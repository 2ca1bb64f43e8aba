"""Silence, and what it leaves behind: connections of Ray that are silent although the node is well."""

from dataclasses import replace
from typing import Any

import pytest

from grid_agent.core import codec, report
from grid_agent.core import messages as m
from grid_agent.core.model import NodeBelief
from grid_agent.core.resume import resume
from grid_agent.core.seen import HostFacts, Raylet
from grid_agent.core.step import begin
from grid_agent.core.terms import Cause, State
from tests.core.situations import (
    Story,
    answered,
    configured,
    peer_placed,
    row,
    task_missed,
    task_ran,
    timed_out,
)

HOST = HostFacts(port=1, listening=True, greets=False)


def silent(story: Story, seconds: float) -> None:
    """gpu1 gives no answer for so long, then it does."""
    story.pass_time(seconds, timed_out("gpu1"))
    story.see(answered("gpu1"), after=1)


def stale_for_s(story: Story) -> float:
    until = story.node("gpu1").stale_until
    return 0.0 if until is None else until - story.now


@pytest.mark.parametrize(
    ("silent_s", "stale_s"), [(1, 0.0), (3, 0.0), (4, 5.0), (40, 50.0), (96, 120.0), (300, 120.0)]
)
def test_connections_are_stale_for_a_quarter_longer_than_the_silence_was(
    silent_s: float, stale_s: float
) -> None:
    story = Story()
    silent(story, silent_s)
    assert stale_for_s(story) == stale_s


def test_why_says_that_connections_may_be_silent_and_for_how_long() -> None:
    story = Story()
    silent(story, 40)
    told = [fact for fact in why(story)["facts"] if fact["witness"] == "connections"]
    assert [fact["text"] for fact in told] == [
        "it was silent: Ray's connections from before may stay so for 50 s more (TCP)"
    ]
    story.pass_time(50, answered("gpu1"))
    assert "connections" not in {fact["witness"] for fact in why(story)["facts"]}


def why(story: Story) -> dict[str, Any]:
    return report.why(story.belief, story.node("gpu1"), story.now, story.policy)


def restarted(story: Story) -> None:
    """The agent is: what it wrote down is all that it still knows."""
    fresh = begin((configured(name) for name in story.names), story.now)
    known = {n.name: codec.encode(n) for n in story.belief.nodes.values()}
    nodes = {n: codec.decode(NodeBelief, known[n], onto=fresh.nodes[n]) for n in story.names}
    story.belief = resume(replace(fresh, nodes=nodes), story.now)


def test_an_agent_that_was_restarted_after_a_silence_still_knows_of_it() -> None:
    story = Story()
    silent(story, 40)
    restarted(story)
    story.see(story.listing(), answered("gpu1"))
    assert stale_for_s(story) == 50.0


def test_a_silence_that_began_before_the_agent_was_restarted_is_not_taken_for_a_shorter_one() -> None:
    story = Story()
    story.pass_time(36, timed_out("gpu1"))
    restarted(story)
    story.pass_time(4, story.listing(), timed_out("gpu1"), task_missed("gpu1"))
    assert story.node("gpu1").proof_misses == 0
    story.see(answered("gpu1"), after=1)
    assert stale_for_s(story) >= 1.25 * 36


def test_a_short_silence_does_not_end_the_effect_of_a_long_one() -> None:
    story = Story()
    silent(story, 40)
    silent(story, 6)
    assert stale_for_s(story) == 50.0 - 7.0


def test_time_in_which_we_did_not_watch_is_silence_all_the_same() -> None:
    story = Story()
    story.pass_time(40, timed_out("gpu1"))
    story.see(m.LoopLagged(40_000.0), after=0)
    story.see(answered("gpu1"), after=1)
    assert stale_for_s(story) == 50.0


def test_a_task_asked_while_connections_were_stale_shows_nothing_whenever_it_is_missed() -> None:
    story = Story()
    silent(story, 40)
    story.pass_time(48, answered("gpu1"), task_missed("gpu1"))
    story.change("gpu1", proof_begun_at=story.now)
    story.see(task_missed("gpu1"), after=10)
    assert story.node("gpu1").proof_misses == 0
    story.change("gpu1", proof_begun_at=story.now)
    story.see(task_missed("gpu1"), after=10)
    assert story.node("gpu1").proof_misses == 1


def test_a_task_missed_during_a_silence_shows_nothing_and_during_a_single_miss_it_does() -> None:
    story = Story()
    story.see(timed_out("gpu1"), task_missed("gpu1"))
    assert story.node("gpu1").proof_misses == 1
    story.pass_time(4, timed_out("gpu1"))
    story.see(task_missed("gpu1"))
    assert story.node("gpu1").proof_misses == 1


def test_a_raylet_that_runs_nothing_is_found_although_it_misses_a_check_now_and_then() -> None:
    story = Story(prove_again_s=20.0)
    for second in range(300):
        beat = timed_out("gpu1") if second % 8 == 0 else answered("gpu1")
        story.see(beat, *unable(story), after=1)
    assert (story.state("gpu1"), story.node("gpu1").cause) == (State.DEAD, Cause.CANNOT_RUN_TASKS)


def unable(story: Story) -> list[m.Event]:
    """What tasks for gpu1 come to that were asked 10 s ago: nothing."""
    node, late = story.node("gpu1"), story.now - 10
    proof, peer = node.proof_begun_at, node.peer_begun_at
    missed: list[m.Event] = [task_missed("gpu1")] if proof is not None and proof <= late else []
    return missed + ([peer_placed("gpu1")] if peer is not None and peer <= late else [])


def test_misses_before_a_cut_and_stale_connections_after_it_are_no_reason_to_restart() -> None:
    story = Story(prove_again_s=10.0)
    for _ in range(45):
        story.see(answered("gpu1"), *unable(story), after=1)
    assert story.node("gpu1").cause is Cause.CANNOT_RUN_TASKS
    silent(story, 50)
    for _ in range(60):
        story.see(answered("gpu1"), *unable(story), after=1)
        assert story.state("gpu1") is not State.DEAD
    story.see(task_ran("gpu1"), after=1)
    assert story.state("gpu1") is State.ALIVE


def test_a_cut_that_leaves_a_raylet_unable_is_found_as_soon_as_its_tasks_count_again() -> None:
    story = Story(prove_again_s=180.0)
    silent(story, 40)
    for _ in range(50 + 60 + 40):
        story.see(answered("gpu1"), *unable(story), after=1)
    assert (story.state("gpu1"), story.node("gpu1").cause) == (State.DEAD, Cause.CANNOT_RUN_TASKS)


def test_a_peer_whose_own_connections_are_stale_places_no_task() -> None:
    story = Story(3, prove_again_s=10.0)
    story.pass_time(40, timed_out("gpu2"))
    story.see(answered("gpu2"), after=1)
    for _ in range(40):
        story.see(*(answered(n) for n in ("gpu1", "gpu2", "gpu3")), *unable(story), after=1)
    assert {o.by for o in story.given(m.ProveFromPeer)} == {"gpu3"}


def test_what_a_peer_placed_in_vain_over_its_own_stale_connections_shows_nothing() -> None:
    story = Story()
    story.pass_time(6, timed_out("gpu2"))
    story.change("gpu1", peer_begun_at=story.now)
    story.see(answered("gpu2"), peer_placed("gpu1", by="gpu2"), after=1)
    assert story.node("gpu1").peer_task is None
    story.see(answered("gpu1"), peer_placed("gpu1", by="gpu3"), after=1)
    assert story.node("gpu1").peer_task is not None


def test_the_row_of_a_life_that_was_taken_up_and_stopped_is_no_news() -> None:
    story = Story(1)
    lives = [row("gpu1", alive=True), row("gpu1", "b", alive=False)]
    story.change("gpu1", former_id="gpu1-b")
    story.see(m.NodesListed((row("head"), *lives)), after=1)
    known = story.node("gpu1").incarnation
    assert known is not None
    assert known.node_id == "gpu1-a"
    story.see(m.PeopleStopped(frozenset({"gpu1"})), after=1)
    story.see(m.PeopleStopped(frozenset()), after=1)
    dead = (row("gpu1", alive=False), row("gpu1", "b", alive=False))
    story.see(m.NodesListed((row("head"), *dead)), after=1)
    node = story.node("gpu1")
    assert (node.incarnation, node.state) == (None, State.JOINING)


def hung() -> tuple[m.Event, m.Event]:
    """gpu1 is stopped: its host sees the process, and gets no answer from it either."""
    seen = m.HostLooked("gpu1", "head", (Raylet(42, "gpu1-a", 7, "T"),), facts=HOST, asked_about="gpu1-a")
    return timed_out("gpu1"), seen


def test_a_hung_raylet_is_no_blocked_port_to_an_agent_that_has_never_heard_it() -> None:
    story = Story()
    story.pass_time(10, *hung())
    restarted(story)
    story.pass_time(120, story.listing(), *hung())
    (restart,) = story.given(m.RestartWorker)
    assert restart.fence_node_id == "gpu1-a"
    assert [i.cause for i in story.incidents] == [Cause.HUNG]
