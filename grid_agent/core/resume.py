"""What a restarted agent may still believe of what it wrote down, and what it must see again first.

Whatever could have changed while nobody looked is doubted: a node that was not well must be proven by a
task anew, a verdict needs new witnesses, and a repair that was under way is neither done again nor
forgotten until its host has been looked at. So is one whose answer was lost with the node that ran it. Pure;
called by `compose` with what the journal gave, and by `repair`.
"""

from dataclasses import replace

from grid_agent.core import planned
from grid_agent.core.incident_model import Incident, Phase, Step
from grid_agent.core.model import Attempt, Belief, NodeBelief
from grid_agent.core.seen import Heartbeat
from grid_agent.core.terms import Cause, State

GONE_FROM_FILE = "no node of it is in the cluster file any more"
STOPPED = "the cluster was stopped by a person with stop.py"
RESTARTED = "the agent was restarted during this attempt"
# With these the raylet may be silent; it has been, as far as is known, since it was no longer ALIVE.
SILENT = frozenset({None, Cause.HUNG, Cause.HOST_DOWN, Cause.NO_PATH, Cause.OBSERVER_SICK})


def resume(belief: Belief, now: float) -> Belief:
    """The belief of an earlier agent, as one that has seen nothing yet may hold it."""
    nodes = {name: _doubted(node) for name, node in belief.nodes.items()}
    belief = replace(belief, nodes=nodes)
    # That of the head hangs on no node: the keeper's word ends it, and the head may take agents with it.
    held = {
        belief.head_incident_id,
        *(i for n in nodes.values() for i in (n.incident_id, n.gpus.incident_id)),
    }
    lost = [i for i in belief.incidents.values() if i.open and i.id not in held]
    return replace(
        belief, incidents={**belief.incidents, **{i.id: _closed(i, GONE_FROM_FILE, now) for i in lost}}
    )


def after_stop(fresh: Belief, old: Belief, now: float) -> Belief:
    """After stop.py the next start is fresh; the story of earlier incidents stays readable."""
    told = {k: _closed(i, STOPPED, now) if i.open else i for k, i in old.incidents.items()}
    return replace(fresh, incidents=told, next_incident_id=old.next_incident_id)


def lost(node: NodeBelief) -> NodeBelief:
    """Put a repair whose answer was lost under way again, until its host has been looked at."""
    last = node.attempts[-1]
    if last.curable is not None:
        return node
    last = replace(last, curable=True)
    if last.ok or not last.begun or node.state is not State.REPAIRING:  # nothing depends on it
        return _ended(node, last)
    last = replace(last, ok=None)
    node = _ended(node, replace(last, ended_at=None, unheard=True))
    # What was seen of the host before the repair says nothing of what that did.
    return replace(node, host_view=None, look_asked_at=None, look_begun_at=None)


def looked(node: NodeBelief, now: float) -> NodeBelief:
    """Settle a repair whose answer will never come, by what its host shows, if that is clear."""
    view, last = node.host_view, node.attempts[-1] if node.attempts else None
    if last is None or not interrupted(node) or view is None or not view.reached:
        return node
    why = f"no answer came ({last.detail})" if last.detail else RESTARTED
    born = [r for r in view.raylets if r.node_id != last.fence_node_id]
    if born:
        detail = f"{why}; its raylet runs, pid {born[0].pid}"
        return _ended(node, replace(last, ended_at=now, ok=True, detail=detail))
    if view.starting is False:
        detail = f"{why}; its host shows no raylet from it"
        return _ended(node, replace(last, ended_at=now, ok=False, detail=detail))
    return node


def interrupted(node: NodeBelief) -> bool:
    """A repair of this node is under way whose answer nobody will hear."""
    return node.in_flight and node.attempts[-1].unheard


def _doubted(node: NodeBelief) -> NodeBelief:
    if node.in_flight:
        node = _ended(node, replace(node.attempts[-1], unheard=True))
    node = planned.over(node)  # it is listed and drained anew
    if node.state is State.ALIVE:
        return node
    if node.cause in SILENT:
        node = replace(node, heartbeat=Heartbeat(silent_since=node.failed_at))
    # The word to Ray may never have been sent; sent twice it does nothing.
    # One that Ray drains gets no task, and could never be proven.
    return replace(node, proven_id=node.proven_id if node.drained else None, told_id=None)


def _ended(node: NodeBelief, attempt: Attempt) -> NodeBelief:
    return replace(node, attempts=(*node.attempts[:-1], attempt))


def _closed(incident: Incident, why: str, now: float) -> Incident:
    steps = (*incident.steps, Step(now, why))
    return replace(
        incident, phase=Phase.RESOLVED, resolved_at=now, steps=steps, revision=incident.revision + 1
    )
