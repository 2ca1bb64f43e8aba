"""What people say holds, until they say otherwise or the time they gave is over."""

import pytest

from grid_agent.core import messages as m
from grid_agent.core import people, report
from grid_agent.core.incident_model import Phase
from grid_agent.core.model import Word
from grid_agent.core.terms import State
from tests.core.situations import Story, answered, no_process, refused, row, task_ran

V = m.Verb


def test_a_pause_in_the_middle_of_an_incident_is_told_in_it() -> None:
    story = Story(3)
    story.die("gpu1")
    story.see(said(V.PAUSE, for_s=60), after=1)
    story.see(said(V.RESUME), after=1)
    story.see(said(V.PAUSE, for_s=60), after=1)
    story.see(after=61)
    (only,) = story.incidents
    told = [s.text for s in only.steps if "pause" in s.text or "resume" in s.text]
    assert [t.split(" until")[0].split(":")[0] for t in told] == [
        "repairs are paused by alice",
        "alice resumed repairs",
        "repairs are paused by alice",
        "the time is over for which alice had paused repairs",
    ]


def said(verb: m.Verb, node: str | None = None, for_s: float | None = None) -> m.PersonSaid:
    return m.PersonSaid(verb, "alice", "because", node, for_s)


@pytest.mark.parametrize(
    ("verb", "node", "words"),
    [
        (V.UNCORDON, "gpu1", "gpu1 is not cordoned"),
        (V.CORDON, "head", "pause instead"),
        (V.RESUME, None, "repairs are not paused"),
        (V.CLOSE_BREAKER, None, "the breaker is closed"),
    ],
)
def test_what_makes_no_sense_is_said_and_changes_nothing(verb: m.Verb, node: str | None, words: str) -> None:
    story = Story()
    before = story.belief
    assert words in (people.objection(before, said(verb, node)) or "")
    story.see(said(verb, node))
    assert (story.belief.paused, story.belief.nodes) == (before.paused, before.nodes)


def test_a_pause_is_in_the_report_with_who_why_and_until_when() -> None:
    story = Story()
    story.see(said(V.PAUSE, for_s=3600))
    body = report.health(story.belief, story.now, story.policy)
    assert body["status"] == "warn"
    assert body["paused"] == {
        "by": "alice",
        "reason": "because",
        "since": "1970-01-01T00:16:40.000Z",
        "until": "1970-01-01T01:16:40.000Z",
    }
    story.see(said(V.RESUME))
    assert report.health(story.belief, story.now, story.policy)["status"] == "pass"


def test_a_later_pause_replaces_an_earlier_one() -> None:
    story = Story()
    story.see(said(V.PAUSE, for_s=10), said(V.PAUSE, for_s=1000))
    story.see(after=11)
    assert story.belief.paused == Word("alice", "because", 1000.0, 2000.0)


def test_a_cordoned_node_is_watched_and_not_touched_whatever_becomes_of_it() -> None:
    story = Story()
    story.see(said(V.CORDON, "gpu1"))
    body = next(
        n for n in report.health(story.belief, story.now, story.policy)["nodes"] if n["name"] == "gpu1"
    )
    assert (body["state"], body["action"]) == ("CORDONED", "left alone: cordoned by alice: because")
    story.pass_time(200, refused("gpu1"), no_process("gpu1"))
    assert story.orders == []
    story.see(said(V.UNCORDON, "gpu1"), story.listing(row("gpu1", alive=False)))
    assert story.state("gpu1") is State.JOINING
    story.pass_time(70, story.listing(), no_process("gpu1"))
    assert len(story.given(m.RestartWorker)) == 1  # let go, and found to be dead


def test_a_cordon_with_an_end_ends_and_the_living_node_is_proven_anew() -> None:
    story = Story()
    story.see(said(V.CORDON, "gpu1", for_s=30))
    story.see(after=31)
    assert story.state("gpu1") is State.JOINING
    story.see(story.listing(), after=1)
    story.see(answered("gpu1"), task_ran("gpu1"), after=1)
    assert story.state("gpu1") is State.ALIVE


def test_cordoning_a_dead_node_ends_its_incident_and_says_who() -> None:
    story = Story()
    story.see(said(V.PAUSE, for_s=60))
    story.die("gpu1")
    story.see(said(V.CORDON, "gpu1"))
    (only,) = story.incidents
    assert only.phase is Phase.RESOLVED
    assert only.steps[-1].text == "cordoned gpu1 (alice: because)"


def test_a_node_both_stopped_and_cordoned_is_free_only_when_both_are_taken_back() -> None:
    story = Story()
    story.see(said(V.CORDON, "gpu1"), m.PeopleStopped(frozenset({"gpu1"})))
    story.see(said(V.UNCORDON, "gpu1"))
    assert story.state("gpu1") is State.CORDONED
    story.see(m.PeopleStopped(frozenset()))
    assert story.state("gpu1") is State.JOINING
