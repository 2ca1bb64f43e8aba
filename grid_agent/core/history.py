"""What one step changed, as lines for the journal: moves, refusals, orders begun and orders ended.

Pure: the belief before and after, the events that went in and the orders that came out. Looks, proofs and
heartbeats are no lines: they change nothing outside. Called by `edges.journal`.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from grid_agent.core import codec
from grid_agent.core import messages as m
from grid_agent.core.model import Belief, NodeBelief

LOOKING = (m.ListWork, m.LookAtHost, m.ProveNode, m.AskPeer, m.ProveFromPeer, m.Notify)


@dataclass(frozen=True, slots=True)
class Line:
    """One line of the history. `kind`: said, moved, refused, ordered or ended; `body` is plain JSON."""

    at: float
    kind: str
    node: str
    incident_id: int | None
    body: dict[str, Any]


def lines(
    before: Belief, after: Belief, events: Iterable[m.Event], orders: Iterable[m.Order], now: float
) -> tuple[Line, ...]:
    """The lines of one step, in the order in which things happened."""
    return (
        *_said(events, now),
        *_ended(before, events, now),
        *_moved(before, after, now),
        *_ordered(after, orders, now),
    )


def _said(events: Iterable[m.Event], now: float) -> Iterator[Line]:
    for event in events:
        if isinstance(event, m.PersonSaid):
            yield Line(now, "said", event.node or "", None, _named(event))


def _ended(before: Belief, events: Iterable[m.Event], now: float) -> Iterator[Line]:
    for event in events:
        if isinstance(event, m.RepairEnded | m.RayTold) and event.node in before.nodes:
            yield Line(now, "ended", event.node, before.nodes[event.node].incident_id, _named(event))


def _moved(before: Belief, after: Belief, now: float) -> Iterator[Line]:
    for name, node in after.nodes.items():
        old = before.nodes.get(name)
        if old is node or old is None:
            continue
        about = node.incident_id if node.incident_id is not None else old.incident_id
        if old.state is not node.state:
            body = {"from": str(old.state), "to": str(node.state), "cause": _text(node.cause)}
            yield Line(now, "moved", name, about, {**body, "evidence": list(node.evidence)})
        if _refusal(node) not in (None, _refusal(old)):
            yield Line(now, "refused", name, about, {"by": _refusal(node), "text": str(node.refusal)})


def _ordered(after: Belief, orders: Iterable[m.Order], now: float) -> Iterator[Line]:
    for order in orders:
        if not isinstance(order, LOOKING):
            node = after.nodes.get(order.node)
            yield Line(now, "ordered", order.node, node.incident_id if node else None, _named(order))


def _named(value: Any) -> dict[str, Any]:
    return {"what": type(value).__name__, **codec.encode(value)}


def _refusal(node: NodeBelief) -> str | None:
    return None if node.refusal is None else node.refusal.name


def _text(value: Any) -> str | None:
    return None if value is None else str(value)
