"""What each event proves, and for how long."""

import pytest

from grid_agent.core import evidence, facts
from grid_agent.core import messages as m
from grid_agent.core.seen import ProbeReport
from grid_agent.core.terms import Cause, Miss, State
from tests.core.situations import (
    Story,
    answered,
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
)


def test_misses_add_up_and_one_answer_clears_them() -> None:
    story = Story()
    story.see(timed_out("gpu1"), after=1)
    first = story.now
    story.see(timed_out("gpu1"), refused("gpu1"), after=1)
    beat = story.node("gpu1").heartbeat
    assert (beat.misses, beat.first_missed_at, beat.last_miss) == (3, first, Miss.REFUSED)
    story.see(answered("gpu1"), after=1)
    beat = story.node("gpu1").heartbeat
    assert (beat.misses, beat.first_missed_at, beat.answered_at) == (0, None, story.now)
    assert (beat.rtt_ms, beat.last_rtt_ms) == (0.5, 0.7)


def silence(waited_s: float) -> m.HeartbeatMissed:
    return m.HeartbeatMissed("gpu1", "gpu1-a", Miss.TIMED_OUT, "", waited_s)


def test_silence_began_when_the_first_check_without_answer_was_sent() -> None:
    story = Story()
    story.see(answered("gpu1"), after=1)
    heard = story.now
    story.see(silence(0.8), after=2)
    story.see(silence(0.8), after=1)
    assert story.node("gpu1").heartbeat.first_missed_at == pytest.approx(heard + 2 - 0.8)


def test_silence_did_not_begin_before_the_last_answer() -> None:
    story = Story()
    story.see(answered("gpu1"), after=1)
    heard = story.now
    story.see(silence(0.8), after=0.3)  # another check, sent before the one that was answered
    assert story.node("gpu1").heartbeat.first_missed_at == heard


def test_a_refusal_after_silence_has_host_and_peer_asked_anew() -> None:
    story = Story()
    story.see(timed_out("gpu1"), timed_out("gpu1"), after=1)
    asked = story.node("gpu1")
    assert None not in (asked.look_asked_at, asked.peer_asked_at)
    back = evidence.fold(story.belief, refused("gpu1"), story.now).nodes["gpu1"]
    assert (back.look_asked_at, back.peer_asked_at) == (None, None)


@pytest.mark.parametrize(
    "event",
    [
        refused("gpu1", "z"),
        answered("gpu1", "z"),
        task_ran("gpu1", "z"),
        task_missed("gpu1", "z"),
        m.NodeProbed("gpu1", "gpu1-z", ProbeReport(1.0, 3)),
        refused("nobody"),
        m.RayTold("gpu1", "gpu1-z", accepted=True),
        repair_failed("gpu1", 99),
        m.LoopLagged(0.0),
    ],
)
def test_what_concerns_another_life_or_nobody_changes_no_belief(event: m.Event) -> None:
    story = Story()
    assert evidence.fold(story.belief, event, 2000.0).nodes == story.belief.nodes


def test_the_newest_row_of_a_name_is_its_incarnation() -> None:
    story = Story()
    rows = (row("gpu1", "c"), row("gpu1", "b"), *story.rows.values())
    story.see(m.NodesListed(rows))
    known = story.node("gpu1").incarnation
    assert known is not None
    assert known.node_id == "gpu1-c"


def two_lives(*, newer_alive: bool) -> m.NodesListed:
    head, first = row("head"), row("gpu1")
    return m.NodesListed((head, first, row("gpu1", "b", alive=newer_alive)))


def test_the_older_of_two_lives_is_taken_up_when_the_newer_has_ended() -> None:
    story = Story(1)
    story.see(two_lives(newer_alive=True), after=1)
    assert current(story) == "gpu1-b"
    story.see(refused("gpu1", "b"), pid_there("gpu1"), after=1)  # its host shows the older one only
    assert story.node("gpu1").state is State.REPAIRING
    story.see(repaired("gpu1"), two_lives(newer_alive=False), after=1)  # a raylet runs there already
    assert (current(story), story.node("gpu1").state) == ("gpu1-a", State.REPAIRING)
    story.see(answered("gpu1"), task_ran("gpu1"), after=1)
    story.see(two_lives(newer_alive=False), after=1)
    assert (current(story), story.node("gpu1").state) == ("gpu1-a", State.ALIVE)
    assert len(story.given(m.RestartWorker)) == 1
    story.see(refused("gpu1"), no_process("gpu1"), after=1)
    gone = m.NodesListed((row("head"), row("gpu1", alive=False), row("gpu1", "b", alive=False)))
    story.pass_time(60, refused("gpu1"), no_process("gpu1"), gone)
    assert current(story) == "gpu1-a"
    assert story.given(m.RestartWorker)[-1].fence_node_id == "gpu1-a"


@pytest.mark.parametrize("seen", [no_process("gpu1"), not_reached("gpu1")])
def test_an_older_life_that_its_host_does_not_show_is_not_taken_up(seen: m.Event) -> None:
    story = Story(1)
    story.see(two_lives(newer_alive=True), after=1)
    story.see(refused("gpu1", "b"), seen, two_lives(newer_alive=False), after=1)
    assert current(story) == "gpu1-b"


def test_an_older_life_that_the_gcs_calls_dead_is_not_taken_up() -> None:
    story = Story(1)
    story.see(two_lives(newer_alive=True), after=1)
    story.see(refused("gpu1", "b"), pid_there("gpu1"), after=1)
    dead = (row("gpu1", alive=False), row("gpu1", "b", alive=False))
    story.see(m.NodesListed((row("head"), *dead)), after=1)
    assert current(story) == "gpu1-b"


def current(story: Story) -> str:
    known = story.node("gpu1").incarnation
    assert known is not None
    return known.node_id


def test_a_new_life_starts_with_a_clean_sheet() -> None:
    story = Story()
    story.see(timed_out("gpu1"), m.NodeProbed("gpu1", "gpu1-a", ProbeReport(1.0, 3)), no_process("gpu1"))
    story.see(story.listing(row("gpu1", "b")), after=1)
    node = story.node("gpu1")
    assert (node.heartbeat.misses, node.probe, node.host_view, node.proof_misses) == (0, None, None, 0)
    assert node.listed_alive


def test_a_row_that_vanished_counts_as_dead_and_a_node_never_listed_stays_unknown() -> None:
    story = Story(1, joined=False)
    story.see(m.NodesListed((row("head"),)))
    assert story.node("gpu1").listed_alive is None
    story.see(story.listing())
    assert story.node("gpu1").listed_alive is True
    story.see(m.NodesListed((row("head"),)), after=1)
    assert (story.node("gpu1").listed_alive, story.node("gpu1").unlisted_at) == (False, story.now)


def test_registered_gpus_and_the_death_text_come_from_the_row() -> None:
    story = Story()
    story.see(story.listing(row("gpu1", gpus=2)))
    story.see(story.listing(row("gpu1", alive=False, death="raylet died")))
    node = story.node("gpu1")
    assert (node.registered_gpus, node.gcs_detail) == (2, "raylet died")
    assert facts.against(node)["gcs"] == "the GCS says DEAD (raylet died)"


def test_a_healthy_node_has_no_witness_against_it() -> None:
    assert facts.against(Story().node("gpu1")) == {}


def test_a_gcs_row_saying_alive_is_no_evidence() -> None:
    story = Story()
    story.see(timed_out("gpu1"), timed_out("gpu1"))
    assert set(facts.against(story.node("gpu1"))) == {"heartbeat"}


@pytest.mark.parametrize("view", [no_process("gpu1"), not_reached("gpu1"), pid_there("gpu1")])
def test_a_look_older_than_the_trouble_is_no_witness(view: m.Event) -> None:
    story = Story()
    story.see(view)
    story.see(refused("gpu1"), after=5)
    assert set(facts.against(story.node("gpu1"))) == {"heartbeat"}
    story.see(view, after=0.1)
    assert set(facts.against(story.node("gpu1"))) == {"heartbeat", "host"}


def test_a_look_older_than_the_row_that_says_dead_is_no_witness() -> None:
    story = Story()
    story.see(no_process("gpu1"))
    story.see(story.listing(row("gpu1", alive=False)), after=600)
    assert not facts.fresh(story.node("gpu1"))


def test_a_view_remembers_since_when_it_is_so() -> None:
    story = Story()
    story.see(refused("gpu1"), not_reached("gpu1"))
    began = story.now
    story.see(not_reached("gpu1"), after=5)
    view = story.node("gpu1").host_view
    assert view is not None
    assert (view.since, view.at) == (began, began)  # a look tells of the moment it began
    story.see(pid_there("gpu1"), after=5)
    view = story.node("gpu1").host_view
    assert view is not None
    assert (view.at, view.since) == (began + 5, began + 10)  # that it is reached, of the moment it ended


def test_a_task_that_a_peer_has_placed_and_that_ran_takes_back_what_peers_said() -> None:
    story = Story()
    story.see(timed_out("gpu1"), timed_out("gpu1"), after=1)
    story.see(peer_says("gpu1", Miss.REFUSED))
    assert story.node("gpu1").peer_view is not None
    story.see(peer_placed("gpu1", ran=False))
    assert story.node("gpu1").peer_view is not None
    story.see(peer_placed("gpu1", ran=True))
    assert story.node("gpu1").peer_view is None


def test_a_host_that_answers_so_soon_was_there_all_the_time() -> None:
    story = Story()
    story.see(timed_out("gpu1"), after=1)
    first = story.now
    story.see(timed_out("gpu1"), after=1)
    story.see(pid_there("gpu1"), after=0.5)
    view = story.node("gpu1").host_view
    assert view is not None
    assert view.since == first
    late = Story()
    late.see(timed_out("gpu1"), after=1)
    late.see(timed_out("gpu1"), after=1)
    late.see(pid_there("gpu1"), after=2.5)  # the login may have waited for the end of a cut
    view = late.node("gpu1").host_view
    assert view is not None
    assert view.since == late.now


def test_a_result_that_comes_twice_counts_once() -> None:
    story = Story()
    story.die("gpu1")
    story.see(repair_failed("gpu1"), after=1)
    once = story.node("gpu1").attempts
    story.see(m.RepairEnded("gpu1", 1, ok=True, detail="again"), after=0.5)
    assert story.node("gpu1").attempts == once


def test_the_observer_hears_of_itself() -> None:
    story = Story()
    story.see(m.GcsWentSilent("x"), m.LoopLagged(5.0), m.SlackChanged("invalid_auth"), after=1)
    since = story.now
    story.see(m.GcsWentSilent("x"), after=1)
    seen = story.belief.observer
    assert (seen.gcs_silent_since, seen.loop_lag_ms, seen.slack_stuck) == (since, 5.0, "invalid_auth")
    story.see(story.listing(), after=1)
    assert story.belief.observer.gcs_silent_since is None
    assert story.belief.observer.gcs_answered_at == story.now


def test_a_view_of_an_earlier_trouble_does_not_say_since_when_this_one_is_so() -> None:
    story = Story()
    story.see(timed_out("gpu1"), after=1)
    story.see(timed_out("gpu1"), after=1)
    story.see(pid_there("gpu1"), after=0.2)
    story.see(answered("gpu1"), after=1)
    story.pass_time(3600, answered("gpu1"), every=60)
    story.pass_time(95, timed_out("gpu1"), m.LookFailed("gpu1", "head", "login_timeout"))
    story.see(pid_there("gpu1"), after=0.1)
    assert story.node("gpu1").heartbeat.misses > 90
    assert (story.state("gpu1"), story.node("gpu1").cause) == (State.SUSPECT, Cause.HUNG)


def test_tasks_show_nothing_of_a_node_while_the_gcs_is_silent_nor_soon_after() -> None:
    story = Story()
    for _ in range(100):
        story.see(m.GcsWentSilent("x"), answered("gpu1"), task_missed("gpu1"), peer_placed("gpu1"), after=1)
    story.change("gpu1", proof_begun_at=story.now)
    story.see(story.listing(), answered("gpu1"), after=1)
    story.see(task_missed("gpu1"), after=9)
    node = story.node("gpu1")
    assert (node.state, node.proof_misses, node.peer_task) == (State.ALIVE, 0, None)
    story.see(task_missed("gpu1"), after=2)
    assert story.node("gpu1").proof_misses == 1
