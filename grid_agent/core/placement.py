"""Who looks at a sick host, who bears witness and who repairs: the head, or a peer that reaches it.

Never the sick node itself. Pure; called by `step` and `guard`.
"""

from grid_agent.core import silence
from grid_agent.core.model import Belief, NodeBelief
from grid_agent.core.terms import State


def choose(belief: Belief, sick: NodeBelief) -> str | None:
    """Return the name of the node whose task shall repair `sick`, or None.

    A peer repairs only what it has itself just reached; the head comes first in everything else.
    """
    view = sick.host_view
    if view is not None and view.reached and view.by in peers(belief, sick):
        return view.by
    return next((n.name for n in _live(belief, sick) if n.role == "head"), None)


def looker(belief: Belief, sick: NodeBelief) -> str:
    """Return who looks at the host next: whoever reached it last, else the next in turn, the head first."""
    turns = [head(belief), *peers(belief, sick)]
    view, trouble = sick.host_view, sick.look_trouble
    last = trouble[0] if trouble is not None else view.by if view is not None else None
    if last is None or last not in turns:
        return turns[0]
    if trouble is None and view is not None and view.reached:
        return last
    return turns[(turns.index(last) + 1) % len(turns)]


def witness(belief: Belief, sick: NodeBelief, *, for_task: bool = False) -> str | None:
    """Return the worker that shall check `sick` next, or None: live, beyond doubt itself, each in turn.

    A task for `sick` is placed by none whose own connections may be silent after a cut.
    """
    able = [
        n
        for n in _live(belief, sick)
        if n.role == "worker" and n.incarnation is not None and not n.heartbeat.misses and not n.proof_misses
    ]
    if for_task:
        able = [n for n in able if not silence.stale(n, belief.stepped_at, belief.stepped_at)]
    names = [n.name for n in sorted(able, key=lambda n: -len(n.labels.items() & sick.labels.items()))]
    view, task, trouble = sick.peer_view, sick.peer_task, sick.peer_trouble
    last = trouble[0] if trouble is not None else view.by if view is not None else task.by if task else None
    if last is None or last not in names:
        return names[0] if names else None
    return names[(names.index(last) + 1) % len(names)]


def head(belief: Belief) -> str:
    """Return the name of the head, from which heartbeats go out."""
    return next((n.name for n in belief.nodes.values() if n.role == "head"), "head")


def peers(belief: Belief, sick: NodeBelief) -> list[str]:
    """The live workers that may repair `sick`, those with the most labels in common first."""
    able = [n for n in _live(belief, sick) if n.role == "worker" and n.can_repair]
    return [n.name for n in sorted(able, key=lambda n: -len(n.labels.items() & sick.labels.items()))]


def _live(belief: Belief, sick: NodeBelief) -> list[NodeBelief]:
    return [n for n in belief.nodes.values() if n.state is State.ALIVE and n.name != sick.name]
