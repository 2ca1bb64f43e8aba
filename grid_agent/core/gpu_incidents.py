"""GPU findings as incidents: one a node, opened at the first finding, resolved when the contract holds again.

Beside the incident of a node's death, which it may outlive. Pure; called by `step`.
"""

from collections.abc import Iterable
from dataclasses import replace

from grid_agent.core import evidence
from grid_agent.core.gpu_model import Finding, Found, Reading
from grid_agent.core.incident_model import Incident, Phase, Step
from grid_agent.core.model import Belief, NodeBelief
from grid_agent.core.policy import Policy
from grid_agent.core.terms import Cause, GpuAction

INVENTORY = frozenset(
    {
        Finding.MISSING,
        Finding.APPEARED,
        Finding.REPLACED,
        Finding.NOT_REGISTERED,
        Finding.NOT_SEEN,
        Finding.DEGRADED,
        Finding.NOT_LOADED,
        Finding.MISMATCH,
    }
)


# The key of `gpu.policy` that decides; what is not here is only ever reported.
KEYS = {
    Finding.MISSING: "inventory",
    Finding.NOT_SEEN: "inventory",
    Finding.NOT_LOADED: "driver",
    Finding.MISMATCH: "driver",
    Finding.FAILED: "driver",
    Finding.HANGS: "hang",
    Finding.STUCK: "hang",
    Finding.EVENT: "xid",
    Finding.ECC: "memory",
    Finding.REMAP_PENDING: "memory",
    Finding.REMAP_FAILED: "memory",
    Finding.HOT: "thermal",
    Finding.THROTTLED: "thermal",
    Finding.UNUSABLE: "unusable",
}


def action(found: Found, policy: Policy) -> GpuAction:
    """What the file wants done about this finding."""
    return policy.gpu.get(KEYS.get(found.what, ""), GpuAction.REPORT)


def tell(belief: Belief, names: Iterable[str], now: float, policy: Policy) -> Belief:
    """Return the belief with every change of these nodes' findings told in the incident of its node."""
    for name in names:
        known = belief.nodes[name].gpus
        if known.changed or known.found is not known.shown:
            belief = _told(belief, belief.nodes[name], now, policy)
    return belief


def _told(belief: Belief, node: NodeBelief, now: float, policy: Policy) -> Belief:
    known = node.gpus
    before = {found.key for found in known.shown}
    fresh = [found for found in known.found if found.key not in before]
    keys = {found.key for found in known.found}
    over = [found for found in known.shown if found.key not in keys]
    told = replace(node, gpus=replace(known, shown=known.found, changed=()))
    belief = evidence.put(belief, told)
    if known.changed and known.incident_id is None:
        belief = _open(belief, told, known.changed, now)
        told = belief.nodes[node.name]
    elif fresh and known.incident_id is None:
        belief = _open(belief, told, fresh, now)
        fresh, told = [], belief.nodes[node.name]
    lines = [f"{node.name}: {line(found)}" for found in fresh]
    lines += [f"{node.name}: no more: {found.what}" for found in over] if known.found else []
    belief = _add(belief, belief.nodes[node.name], lines, now)
    if not known.found:
        return _resolve(belief, belief.nodes[node.name], now)
    handed = any(action(f, policy) is GpuAction.HAND_OVER for f in known.found)
    return add(belief, node.name, None, now, Phase.NEEDS_PERSON if handed else None)


def add(belief: Belief, name: str, text: str | None, now: float, phase: Phase | None = None) -> Belief:
    """Add a line to the open incident of this node's GPUs, and set its phase where given."""
    known = belief.incidents.get(belief.nodes[name].gpus.incident_id or 0)
    if known is None or not known.open or (text is None and phase in (None, known.phase)):
        return belief
    steps = known.steps if text is None else (*known.steps, Step(now, text))
    told = replace(known, steps=steps, phase=phase or known.phase)
    return replace(belief, incidents={**belief.incidents, told.id: told})


def line(found: Found) -> str:
    """One finding in one line, with what helps."""
    return f"{found.text}; {found.help}" if found.help else found.text


def cause(found: Iterable[Found]) -> Cause:
    """GPU differs, or a GPU that is there and not well."""
    return Cause.GPU_DIFFERS if any(f.what in INVENTORY for f in found) else Cause.GPU_UNWELL


def _open(belief: Belief, node: NodeBelief, found: Iterable[Found], now: float) -> Belief:
    lines = tuple(line(f) for f in found)
    incident = Incident(
        id=belief.next_incident_id,
        nodes=(node.name,),
        host=node.host,
        cause=cause(found),
        phase=Phase.FIRING,
        opened_at=now,
        failed_at=now,
        evidence=lines,
        steps=tuple(Step(now, f"{node.name}: {text}") for text in lines),
    )
    node = replace(node, gpus=replace(node.gpus, incident_id=incident.id))
    known = {**belief.incidents, incident.id: incident}
    return evidence.put(replace(belief, incidents=known, next_incident_id=incident.id + 1), node)


def _add(belief: Belief, node: NodeBelief, lines: list[str], now: float) -> Belief:
    incident = belief.incidents.get(node.gpus.incident_id) if node.gpus.incident_id is not None else None
    if incident is None or not lines:
        return belief
    found = node.gpus.found
    told = replace(
        incident,
        cause=cause(found) if found else incident.cause,
        evidence=tuple(line(f) for f in found) or incident.evidence,
        steps=(*incident.steps, *(Step(now, text) for text in lines)),
    )
    return replace(belief, incidents={**belief.incidents, told.id: told})


def _resolve(belief: Belief, node: NodeBelief, now: float) -> Belief:
    incident = belief.incidents.get(node.gpus.incident_id) if node.gpus.incident_id is not None else None
    belief = evidence.put(belief, replace(node, gpus=replace(node.gpus, incident_id=None)))
    if incident is None or not incident.open:
        return belief
    sweep = node.probe.gpus if node.probe is not None else None
    seen = sweep.seen if sweep is not None else None
    text = f"the GPUs of {node.name} are as they should be" + ("" if seen is None else f": {seen} seen")
    if sweep is not None and sweep.state is Reading.OFF:
        text = f"the GPUs of {node.name} are not read any more"
    done = replace(incident, phase=Phase.RESOLVED, resolved_at=now, steps=(*incident.steps, Step(now, text)))
    return replace(belief, incidents={**belief.incidents, done.id: done})
