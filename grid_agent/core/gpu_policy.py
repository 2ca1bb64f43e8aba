"""What follows from a GPU finding, by the file's `gpu.policy`: nothing, a quarantine, a restart without it.

A planned restart drains first: Ray gives the node no new work, and its raylet leaves when it is idle, or is
told to at the end of `gpu.drain_s`. What starts it again is the ordinary repair, whose request leaves out the
GPUs in `gpus.excluded`. One node at a time, never the last worker, never against a guard.
Pure; called by `step`.
"""

from collections.abc import Iterable
from dataclasses import replace

from grid_agent.core import evidence, gpu_incidents, guard
from grid_agent.core import messages as m
from grid_agent.core.gpu_incidents import action
from grid_agent.core.gpu_model import Found, GpuBelief, Reading
from grid_agent.core.incident_model import Phase
from grid_agent.core.model import Belief, NodeBelief, Word
from grid_agent.core.policy import Policy
from grid_agent.core.terms import Cause, GpuAction, Refusal, State

BY = "grid-agent (gpu.policy)"
AGAIN_S = 30.0  # after Ray refused a drain
# What is asked of a death and not of a restart that is planned.
OF_DEATHS = (Refusal.ONE_WITNESS, Refusal.HOST_UNREACHABLE, Refusal.NOT_CURABLE, Refusal.BACKING_OFF)


def act(
    belief: Belief, names: Iterable[str], now: float, policy: Policy
) -> tuple[Belief, tuple[m.Order, ...]]:
    """Carry out the policy on these nodes; what may not be done now is said in the incident."""
    orders: list[m.Order] = []
    for name in names:
        node = belief.nodes[name]
        if node.gpus.found or node.gpus.excluded:
            belief, more = _act(belief, node, now, policy)
            orders += more
    return belief, tuple(orders)


def sick_in_quarantine(node: NodeBelief) -> bool:
    """It was put into quarantine, its raylet is still there, and its last sweep was not clean."""
    ours = node.cordon is not None and node.cordon.by == BY
    there = bool(node.listed_alive) and node.heartbeat.misses == 0
    return ours and there and node.drained and bool(node.gpus.found)


def _act(belief: Belief, node: NodeBelief, now: float, policy: Policy) -> tuple[Belief, tuple[m.Order, ...]]:
    if node.state is not State.ALIVE or node.incarnation is None or node.probe is None:
        return belief, ()  # what was found on an earlier incarnation has to be seen on this one
    for found in node.gpus.found:
        if action(found, policy) is GpuAction.QUARANTINE:
            return _quarantine(belief, node, found, now, policy)
    excluded = _excluded(node, policy)
    known = node.gpus
    if node.drained:
        return _hurry(belief, node, now, policy)
    if excluded == known.excluded:
        belief = evidence.put(belief, _well(node, None)) if known.well_since_at is not None else belief
        return belief, ()
    if set(excluded) < set(known.excluded):  # a GPU is well again: not at once, it may be so for a moment
        if node.probe.gpus is None or node.probe.gpus.state is not Reading.OK:
            return belief, ()  # nobody has looked
        if known.well_since_at is None:
            return evidence.put(belief, _well(node, now)), ()
        if now - known.well_since_at < policy.gpu_return_s:
            return belief, ()
    return _drain(belief, node, excluded, now, policy)


def _well(node: NodeBelief, since_at: float | None) -> NodeBelief:
    return replace(node, gpus=replace(node.gpus, well_since_at=since_at))


def _excluded(node: NodeBelief, policy: Policy) -> tuple[str, ...]:
    """The GPUs of the inventory that the node should do without."""
    known = {gpu.uuid for gpu in node.gpus.accepted}
    bad = {f.uuid for f in node.gpus.found if action(f, policy) is GpuAction.WITHOUT}
    return tuple(sorted(bad & known))


def _drain(
    belief: Belief, node: NodeBelief, excluded: tuple[str, ...], now: float, policy: Policy
) -> tuple[Belief, tuple[m.Order, ...]]:
    assert node.incarnation is not None
    asked_at = node.gpus.drained_at
    if asked_at is not None and now - asked_at < AGAIN_S:
        return belief, ()
    names = ", ".join(excluded)
    what = f"a restart without {names}" if excluded else "a restart with all its GPUs"
    no = refusal(belief, node, now, policy)
    if no is not None:
        return _refused(belief, node, f"{node.name}: {what} has to wait: {no}", now), ()
    known = replace(
        node.gpus,
        excluded=excluded,
        before_drain=node.gpus.excluded,
        drained_id=node.incarnation.node_id,
        drained_at=now,
        well_since_at=None,
        refused="",
    )
    belief = evidence.put(belief, replace(node, gpus=known))
    text = f"{node.name} is drained before {what}, within {policy.gpu_drain_s:.0f} s"
    belief = gpu_incidents.add(belief, node.name, text, now, Phase.REPAIRING)
    return belief, (m.DrainNode(node.name, node.incarnation.node_id, text, now + policy.gpu_drain_s),)


def _hurry(
    belief: Belief, node: NodeBelief, now: float, policy: Policy
) -> tuple[Belief, tuple[m.Order, ...]]:
    """A raylet that is still busy at the end of its drain is told to leave: so the file wants it."""
    known = node.gpus
    assert node.incarnation is not None
    if known.drained_at is None or now - known.drained_at < policy.gpu_drain_s:
        return belief, ()
    if refusal(belief, node, now, policy) is not None or node.told_id == node.incarnation.node_id:
        return belief, ()
    belief = evidence.put(belief, replace(node, told_id=node.incarnation.node_id))
    text = f"{node.name} is still busy at the end of its drain and is told to leave"
    belief = gpu_incidents.add(belief, node.name, text, now)
    why = f"grid-agent: {Cause.GPU_DIFFERS}: drained, and restarted as gpu.policy says"
    return belief, (m.TellRay(node.name, node.incarnation.node_id, Cause.GPU_DIFFERS, why),)


def _quarantine(
    belief: Belief, node: NodeBelief, found: Found, now: float, policy: Policy
) -> tuple[Belief, tuple[m.Order, ...]]:
    """Cordon the node as a person would; whoever has mended it says so with `uncordon`."""
    assert node.incarnation is not None
    no = refusal(belief, node, now, policy)
    if no is not None:
        return _refused(belief, node, f"{node.name}: its quarantine has to wait: {no}", now), ()
    word = Word(BY, found.text, now, None)
    known = replace(node.gpus, drained_id=node.incarnation.node_id, drained_at=now, refused="")
    belief = evidence.put(belief, replace(node, cordon=word, gpus=known))
    text = (
        f"{node.name} is in quarantine: Ray gives it no new work and it leaves when it is idle; "
        f"once it has left and is mended, grid-agent uncordon {node.name} brings it back"
    )
    belief = gpu_incidents.add(belief, node.name, text, now, Phase.NEEDS_PERSON)
    return belief, (m.DrainNode(node.name, node.incarnation.node_id, text, None),)


def _refused(belief: Belief, node: NodeBelief, text: str, now: float) -> Belief:
    if node.gpus.refused == text:
        return belief
    belief = evidence.put(belief, replace(node, gpus=replace(node.gpus, refused=text)))
    return gpu_incidents.add(belief, node.name, text, now)


def refusal(belief: Belief, node: NodeBelief, now: float, policy: Policy) -> str | None:
    """Why the node may not be taken out of service now, or None."""
    for no in guard.refusals(belief, node, now, policy):
        if no not in OF_DEATHS:
            return guard.explain(no, belief, node, now, policy)
    others = [n for n in belief.nodes.values() if n.role == "worker" and n is not node]
    if any(n.drained and n.state is not State.CORDONED for n in others):
        return "another node is being drained; one at a time"
    if not any(n.state is State.ALIVE and not n.drained for n in others):
        return "no other worker is ALIVE"
    return None


def told(belief: Belief, event: m.Event, now: float) -> Belief:
    """Fold in what Ray said to a drain: a refused one is asked for again later."""
    if not isinstance(event, m.DrainAnswered) or event.accepted:
        return belief
    node = belief.nodes.get(event.node)
    if node is None or node.gpus.drained_id != event.node_id:
        return belief
    # The time of asking stays: it is not asked at every step.
    again: GpuBelief = replace(node.gpus, drained_id="", excluded=node.gpus.before_drain)
    belief = evidence.put(belief, replace(node, gpus=again))
    return gpu_incidents.add(belief, node.name, f"Ray did not drain {node.name}: {event.detail}", now)
