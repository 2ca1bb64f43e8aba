"""Values become JSON and the same values again, whatever another version wrote."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grid_agent.core import codec
from grid_agent.core.codec import CodecError
from grid_agent.core.incident_model import Incident, Phase, Step
from grid_agent.core.model import Attempt, Belief, NodeBelief
from grid_agent.core.seen import Heartbeat, Incarnation
from grid_agent.core.step import begin
from grid_agent.core.terms import CLOCK, TRANSIENT, Cause, Refusal, State


class Colour(StrEnum):
    RED = "red"


@dataclass(frozen=True)
class Inner:
    at: float
    seconds: float = 1.5


@dataclass(frozen=True)
class Everything:
    name: str
    colour: Colour | None = None
    names: tuple[str, ...] = ()
    pair: tuple[int, str] = (0, "")
    inner: tuple[Inner, ...] = ()
    by_colour: Mapping[Colour, Inner] = field(default_factory=dict)
    by_number: Mapping[int, bool] = field(default_factory=dict)
    some: frozenset[str] = frozenset()
    mode: Literal["a", "b"] = "a"
    ended_at: float | None = None
    times_at: tuple[float, ...] = ()
    falls: tuple[float, ...] = field(default=(), metadata=CLOCK)
    seen: int = field(default=0, metadata=TRANSIENT)


FULL = Everything(
    "x",
    Colour.RED,
    ("a", "b"),
    (1, "c"),
    (Inner(1.0), Inner(2.0, 3.0)),
    {Colour.RED: Inner(4.0)},
    {7: True},
    frozenset({"n", "m"}),
    "b",
    9.0,
    (1.0, 2.0),
    (3.0,),
    seen=3,
)


def through_json(value: object) -> object:
    return json.loads(json.dumps(codec.encode(value)))


def test_everything_comes_back_but_what_is_seen_anew() -> None:
    assert codec.decode(Everything, through_json(FULL)) == replace(FULL, seen=0)
    assert codec.decode(Everything, through_json(FULL), onto=replace(FULL, seen=5)).seen == 5


def test_times_move_and_durations_do_not() -> None:
    moved = codec.decode(Everything, through_json(FULL), shift_s=10.0)
    assert moved.inner == (Inner(11.0), Inner(12.0, 3.0))
    assert (moved.ended_at, moved.times_at) == (19.0, (11.0, 12.0))
    assert moved.falls == (13.0,)
    assert moved.by_colour == {Colour.RED: Inner(14.0)}


def test_what_another_version_wrote_is_read_as_far_as_it_is_understood() -> None:
    assert codec.decode(Everything, {"name": "x", "no longer": 1}) == Everything("x")
    assert codec.decode(Everything, {"name": "x", "colour": "blue", "pair": [1]}) == Everything("x")


@pytest.mark.parametrize(
    "plain", [{}, [], {"name": 5}, None, {"name": None}], ids=["missing", "list", "number", "none", "null"]
)
def test_what_cannot_be_understood_is_said(plain: object) -> None:
    with pytest.raises(CodecError, match=r"Everything"):
        codec.decode(Everything, plain)


def test_what_cannot_be_stored_is_said() -> None:
    with pytest.raises(CodecError, match="object cannot be stored"):
        codec.encode(object())


def test_alike_is_what_would_be_stored_alike() -> None:
    assert codec.same(FULL, replace(FULL, seen=9))
    assert not codec.same(FULL, replace(FULL, name="y"))
    assert not codec.same(FULL, None)


times = st.floats(0, 2e9)
texts = st.text(max_size=20)
attempts = st.builds(
    Attempt,
    number=st.integers(1, 9),
    started_at=times,
    run_on=texts,
    ended_at=st.none() | times,
    ok=st.none() | st.booleans(),
    detail=texts,
    cause=st.none() | st.sampled_from(Cause),
)
nodes = st.builds(
    NodeBelief,
    name=st.just("n"),
    host=st.just("h"),
    role=st.just("worker"),
    state=st.sampled_from(State),
    since=times,
    cause=st.none() | st.sampled_from(Cause),
    evidence=st.lists(texts, max_size=3).map(tuple),
    incarnation=st.none() | st.builds(Incarnation, node_id=texts, port=st.integers(0, 65535)),
    attempts=st.lists(attempts, max_size=3).map(tuple),
    refusal=st.none() | st.sampled_from(Refusal),
    failed_at=st.none() | times,
)
incidents = st.builds(
    Incident,
    id=st.integers(1, 99),
    nodes=st.lists(texts, max_size=3).map(tuple),
    host=texts,
    cause=st.sampled_from(Cause),
    phase=st.sampled_from(Phase),
    opened_at=times,
    failed_at=times,
    steps=st.lists(st.builds(Step, at=times, text=texts), max_size=4).map(tuple),
    resolved_at=st.none() | times,
)


@given(nodes)
def test_a_node_comes_back(node: NodeBelief) -> None:
    fresh = NodeBelief("n", "other host", "worker", State.JOINING, 0.0, heartbeat=Heartbeat(misses=2))
    found = codec.decode(NodeBelief, through_json(node), onto=fresh)
    assert codec.same(found, node)
    assert (found.host, found.heartbeat) == ("other host", Heartbeat(misses=2))


@given(incidents)
def test_an_incident_comes_back(incident: Incident) -> None:
    assert codec.decode(Incident, through_json(incident)) == incident


def test_every_value_of_the_belief_can_be_stored() -> None:
    node = NodeBelief("n", "h", "worker", State.DEAD, 1.0, attempts=(Attempt(1, 2.0, "head"),))
    belief = begin([node], 5.0)
    assert codec.same(codec.decode(Belief, through_json(belief), onto=begin([], 0.0)), belief)
