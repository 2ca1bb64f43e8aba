"""Every edge of the table works, and nothing else does."""

from itertools import product
from pathlib import Path

import pytest

from grid_agent.core.lifecycle import TRANSITIONS, IllegalTransitionError, mermaid, move
from grid_agent.core.model import NodeBelief
from grid_agent.core.terms import Cause, State

UNLISTED = [(a, b) for a, b in product(State, State) if a is not b and (a, b) not in TRANSITIONS]


def in_state(state: State) -> NodeBelief:
    return NodeBelief("gpu1", "h", "worker", state, 10.0, failed_at=9.0, look_asked_at=11.0)


@pytest.mark.parametrize(("before", "after"), TRANSITIONS)
def test_a_listed_edge_moves_and_stamps(before: State, after: State) -> None:
    moved = move(in_state(before), after, 20.0, Cause.HUNG)
    assert (moved.state, moved.since, moved.cause, moved.look_asked_at) == (after, 20.0, Cause.HUNG, None)


@pytest.mark.parametrize(("before", "after"), UNLISTED)
def test_an_unlisted_edge_raises_and_changes_nothing(before: State, after: State) -> None:
    node = in_state(before)
    with pytest.raises(IllegalTransitionError, match=f"gpu1: {before} -> {after}"):
        move(node, after, 20.0, None)
    assert node == in_state(before)


@pytest.mark.parametrize("state", State)
def test_the_same_state_changes_the_cause_only(state: State) -> None:
    node = in_state(state)
    assert move(node, state, 20.0, None) is node
    moved = move(node, state, 20.0, Cause.HUNG)
    assert (moved.since, moved.cause, moved.failed_at) == (10.0, Cause.HUNG, 9.0)


def test_failed_at_is_when_it_left_alive_and_lasts_until_it_is_back() -> None:
    suspect = move(in_state(State.ALIVE), State.SUSPECT, 20.0, None)
    dead = move(suspect, State.DEAD, 25.0, Cause.HUNG)
    assert (suspect.failed_at, dead.failed_at) == (20.0, 20.0)
    assert move(dead, State.ALIVE, 30.0, None).failed_at is None


def test_every_state_is_reached_and_left_but_for_none() -> None:
    assert {a for a, _ in TRANSITIONS} == set(State)
    assert {b for _, b in TRANSITIONS} == set(State)


def test_the_diagram_has_one_line_per_edge() -> None:
    lines = mermaid().splitlines()
    assert lines[0] == "stateDiagram-v2"
    assert len(lines) == 1 + len(TRANSITIONS)
    assert "    SUSPECT --> ALIVE: it answers again" in lines


def test_the_page_is_printed_from_the_table() -> None:
    page = (Path(__file__).parents[2] / "docs" / "lifecycle.md").read_text()
    assert f"```mermaid\n{mermaid()}```\n" in page
