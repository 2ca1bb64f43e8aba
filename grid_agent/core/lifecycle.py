"""The life of a host as a table. An edge that is not listed raises.

It moves one node from one state to another and stamps the time; it never decides whether to.
Called by `step` only. The diagram in the docs is printed from TRANSITIONS.
"""

from dataclasses import replace

from grid_agent.core.model import NodeBelief
from grid_agent.core.terms import Cause, State

TRANSITIONS: dict[tuple[State, State], str] = {
    (State.JOINING, State.ALIVE): "a task pinned to it has run",
    (State.JOINING, State.SUSPECT): "the GCS listed it, then it stopped answering before a task ran",
    (State.JOINING, State.DEAD): "it did not join in time and its host shows why",
    (State.JOINING, State.CORDONED): "a person stopped it",
    (State.ALIVE, State.SUSPECT): "a heartbeat was refused, several were missed, or the GCS says DEAD",
    (State.ALIVE, State.JOINING): "a new incarnation appeared; no task has run on it yet",
    (State.ALIVE, State.CORDONED): "a person stopped it",
    (State.SUSPECT, State.ALIVE): "it answers again",
    (State.SUSPECT, State.DEAD): "two independent witnesses agree on a cause",
    (State.SUSPECT, State.CORDONED): "a person stopped it",
    (State.DEAD, State.ALIVE): "it came back without us and a pinned task has run",
    (State.DEAD, State.REPAIRING): "every guard permits a restart",
    (State.DEAD, State.GAVE_UP): "the attempts are used up, or a restart cannot cure the cause",
    (State.DEAD, State.CORDONED): "a person stopped it",
    (State.REPAIRING, State.ALIVE): "a task pinned to the new incarnation has run",
    (State.REPAIRING, State.DEAD): "the attempt failed; the next one waits for its turn",
    (State.REPAIRING, State.GAVE_UP): "the last attempt failed, or the cause is not curable",
    (State.REPAIRING, State.CORDONED): "a person stopped it",
    (State.GAVE_UP, State.ALIVE): "a person brought it back and a pinned task has run",
    (State.GAVE_UP, State.CORDONED): "a person stopped it",
    (State.JOINING, State.REPAIRING): "a person asked for a restart",
    (State.ALIVE, State.REPAIRING): "a person asked for a restart, and no work is in the way",
    (State.SUSPECT, State.REPAIRING): "a person asked for a restart",
    (State.GAVE_UP, State.REPAIRING): "a person asked for one more restart",
    (State.CORDONED, State.JOINING): "a person let it go on",
}


class IllegalTransitionError(Exception):
    """The core tried an edge that TRANSITIONS does not list: a bug, never an input."""


def move(node: NodeBelief, to: State, now: float, cause: Cause | None) -> NodeBelief:
    """Return the node in state `to` since `now` with `cause`; the same state only changes the cause.

    Raises:
        IllegalTransitionError: the edge is not in the table; nothing was changed.
    """
    if node.state is to:
        return node if node.cause is cause else replace(node, cause=cause, cause_since=now)
    if (node.state, to) not in TRANSITIONS:
        message = f"{node.name}: {node.state} -> {to} is not an edge of the life cycle"
        raise IllegalTransitionError(message)
    left_alive = now if node.state in (State.ALIVE, State.JOINING) else node.failed_at
    failed_at = None if to in (State.ALIVE, State.JOINING, State.CORDONED) else left_alive
    cause_since = node.cause_since if node.cause is cause else now
    moved = replace(node, state=to, since=now, cause=cause, cause_since=cause_since, failed_at=failed_at)
    return replace(moved, look_asked_at=None, peer_asked_at=None)


def mermaid() -> str:
    """The table as a Mermaid state diagram, for the docs."""
    lines = ["stateDiagram-v2"]
    lines += [f"    {a} --> {b}: {why}" for (a, b), why in TRANSITIONS.items()]
    return "\n".join(lines) + "\n"
