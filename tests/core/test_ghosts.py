"""Earlier lives on the same port are told to Ray, and nothing else is."""

from dataclasses import replace

import pytest

from grid_agent.core import ghosts
from grid_agent.core import messages as m
from grid_agent.core.model import Belief, NodeBelief, Observer, Word
from grid_agent.core.policy import Policy
from grid_agent.core.seen import Incarnation
from grid_agent.core.terms import State

NOW = Incarnation("new", "10.0.0.2", 6701, 2000)
NODE = NodeBelief("w", "10.0.0.2", "worker", State.ALIVE, 0.0, incarnation=NOW, proven_id="new")


def row(node_id: str = "old", port: int = 6701, started: int = 1000, **more) -> m.NodeRow:
    made = m.NodeRow("w", node_id, "10.0.0.2", port, alive=True, started_at_ms=started)
    return replace(made, **more)


def told(*rows: m.NodeRow, node: NodeBelief = NODE, mode: str = "heal", **belief) -> list[str]:
    known = replace(Belief(0.0, 0.0, {"w": node}), **belief)
    return [order.node_id for order in ghosts.bury(known, [m.NodesListed(rows)], 100.0, Policy(mode=mode))]


def test_an_earlier_life_on_the_same_port_is_told() -> None:
    assert told(row(), row("new", started=2000)) == ["old"]


@pytest.mark.parametrize(
    "other",
    [
        row(port=7000),
        row(alive=False),
        row(started=3000),
        row(name="stranger"),
        row(address="10.0.0.3"),
        row("new", started=2000),
    ],
)
def test_what_is_not_proved_to_be_one_is_left(other: m.NodeRow) -> None:
    assert told(other) == []


def test_nothing_is_told_before_the_later_life_is_proven_or_where_a_person_said_so() -> None:
    assert told(row(), node=replace(NODE, proven_id=None)) == []
    assert told(row(), node=replace(NODE, state=State.JOINING)) == []
    assert told(row(), mode="observe") == []
    assert told(row(), paused=Word("me", "looking", 0.0)) == []
    assert told(row(), node=replace(NODE, cordon=Word("me", "looking", 0.0))) == []
    assert told(row(), node=replace(NODE, stopped=True)) == []


def test_nothing_is_told_while_we_doubt_ourselves_or_ray_has_just_refused() -> None:
    assert told(row(), observer=Observer(score=8)) == []
    assert told(row(), observer=Observer(gcs_silent_since=90.0)) == []
    assert told(row(), node=replace(NODE, tell_after=101.0)) == []
    assert told(row(), node=replace(NODE, tell_after=99.0)) == ["old"]
