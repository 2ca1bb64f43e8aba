"""Incidents: opened at a verdict, told step by step, resolved when the nodes are back.

One incident per node at a time; a mass failure makes one for all its nodes. Pure; called by `step`.
"""

from collections.abc import Mapping
from dataclasses import replace

from grid_agent.core import evidence, names
from grid_agent.core.incident_model import Incident, Phase, Step
from grid_agent.core.model import Belief, NodeBelief
from grid_agent.core.terms import NOT_OURS, Cause, State

MAX_STEPS = 2_000
STORM = 5  # nodes given up within the window of a mass failure: told as one, though nothing is held
ALONE = frozenset({Cause.GPU_DIFFERS, Cause.GPU_UNWELL, Cause.HEAD_DOWN, Cause.ASKED})  # never part of one


def open_for(belief: Belief, node: NodeBelief, now: float, window_s: float) -> Belief:
    """Open an incident for a node with a verdict, or join the one of the mass failure under way."""
    if node.incident_id is not None:  # people know of it already, by another name
        return add(recast(belief, node), node, _found(node), now, Phase.FIRING)
    shared = _mass_incident(belief, window_s)
    if shared is None:
        belief, shared = _storm(belief, now, window_s)
    if shared is not None:
        return join(belief, shared, node, now)
    return begin(belief, node, now, Phase.FIRING)


def of(belief: Belief, node: NodeBelief) -> Incident | None:
    """The incident that this node is part of, if any; that of its GPUs is another one."""
    return belief.incidents.get(node.incident_id) if node.incident_id is not None else None


def begin(belief: Belief, node: NodeBelief, now: float, phase: Phase, cause: Cause | None = None) -> Belief:
    """Open an incident for this node alone, under its own cause or under `cause`."""
    incident = Incident(
        id=belief.next_incident_id,
        nodes=(node.name,),
        host=node.host,
        cause=cause or node.cause or Cause.NOT_CLEAR,
        phase=phase,
        opened_at=now,
        failed_at=node.failed_at if node.failed_at is not None else now,
        evidence=node.evidence,
    )
    incident = replace(incident, steps=_with(incident, now, _found(node), node.name))
    return _attach(replace(belief, next_incident_id=incident.id + 1), incident, node)


def join(belief: Belief, shared: Incident, node: NodeBelief, now: float) -> Belief:
    """The node becomes one of those of an open incident."""
    everyone = tuple(dict.fromkeys((*shared.nodes, node.name)))
    joined = replace(shared, nodes=everyone, steps=_with(shared, now, _found(node), node.name))
    return _attach(belief, joined, node)


def reopen(belief: Belief, node: NodeBelief, now: float, window_s: float) -> Belief:
    """A node that dies again and again goes on with its own last incident, if that is not long resolved."""
    past = [i for i in belief.incidents.values() if i.nodes == (node.name,) and i.resolved_at is not None]
    last = max(past, key=lambda i: i.id) if past else None
    if node.incident_id is not None or last is None or now - (last.resolved_at or 0.0) >= window_s:
        return belief
    steps = _with(last, now, _found(node))
    again = replace(last, phase=Phase.FIRING, resolved_at=None, steps=steps, evidence=node.evidence)
    return _attach(belief, again, node)


def rephase(belief: Belief) -> Belief:
    """What became of all its nodes in this step says whether an open incident needs a person.

    One does as long as one of its nodes needs one, whatever becomes of the others. Who is needed for a GPU,
    `gpu_incidents` knows.
    """
    still = [i for i in belief.incidents.values() if i.open]
    if not still:
        return belief
    unclear = {i.id for i in still if i.cause is Cause.NOT_CLEAR}
    told_of = [n for n in belief.nodes.values() if n.incident_id is not None]
    helpless = {n.incident_id for n in told_of if _helpless(n, unclear=n.incident_id in unclear)}
    of_gpus = {n.gpus.incident_id for n in belief.nodes.values()}
    told = {}
    for incident in (i for i in still if i.id not in of_gpus):
        phase: Phase = Phase.FIRING if incident.phase is Phase.NEEDS_PERSON else incident.phase
        phase = Phase.NEEDS_PERSON if incident.id in helpless else phase
        if phase is not incident.phase:
            told[incident.id] = replace(incident, phase=phase)
    return replace(belief, incidents={**belief.incidents, **told}) if told else belief


def recast(belief: Belief, node: NodeBelief) -> Belief:
    """More is known now: the node's own open incident takes its present cause and evidence."""
    incident = of(belief, node)
    if incident is None or not incident.open or incident.nodes != (node.name,) or node.cause is None:
        return belief
    if incident.cause is node.cause:
        return belief
    told = replace(incident, cause=node.cause, evidence=node.evidence)
    return replace(belief, incidents={**belief.incidents, told.id: told})


def add(belief: Belief, node: NodeBelief, text: str, now: float, phase: Phase | None = None) -> Belief:
    """Add a line to the node's open incident (if any), and set its phase where given."""
    incident = of(belief, node)
    if incident is None or not incident.open:
        return belief
    steps = _with(incident, now, text, node.name)
    told = replace(incident, steps=steps, phase=phase or incident.phase, next_attempt_at=node.next_attempt_at)
    return replace(belief, incidents={**belief.incidents, told.id: told})


def resolve(belief: Belief, node: NodeBelief, text: str, now: float) -> Belief:
    """The node is back: detach it, and resolve its incident when it was the last one."""
    incident = of(belief, node)
    belief = evidence.put(belief, replace(node, incident_id=None))
    if incident is None or not incident.open:
        return belief
    told = replace(incident, steps=_with(incident, now, text, node.name), next_attempt_at=None)
    if not any(n.incident_id == incident.id for n in belief.nodes.values()):
        told = replace(told, phase=Phase.RESOLVED, resolved_at=now)
    return replace(belief, incidents={**belief.incidents, told.id: told})


def merge(belief: Belief, failing: tuple[str, ...], now: float, why: str) -> Belief:
    """Many nodes failed at once: their open incidents become one, the oldest, which goes on with `why`."""
    ids = sorted({i for i in (belief.nodes[name].incident_id for name in failing) if i is not None})
    if not ids:
        return belief
    held = [n for n in belief.nodes.values() if n.incident_id in ids]
    first = belief.incidents[ids[0]]
    incidents = dict(belief.incidents)
    for old in ids[1:]:
        gone = incidents[old]
        text = f"rolled up into incident {first.id}: many nodes at once"
        incidents[old] = replace(
            gone, phase=Phase.RESOLVED, resolved_at=now, steps=_with(gone, now, text), rolled_into=first.id
        )
    belief = evidence.put_all(belief, [replace(node, incident_id=first.id) for node in held])
    everyone = tuple(dict.fromkeys((*first.nodes, *(n.name for n in held))))
    incidents[first.id] = replace(first, nodes=everyone)
    merged = replace(belief, incidents=incidents)
    return add(merged, merged.nodes[held[0].name], why, now)


def revise(belief: Belief, before: Mapping[int, Incident]) -> tuple[Belief, list[Incident]]:
    """Count a revision of every incident that is not as it was `before`; the belief and those incidents."""
    changed = {
        k: replace(i, revision=i.revision + 1, steps=_told(i))
        for k, i in belief.incidents.items()
        if before.get(k) is not i
    }
    if not changed:
        return belief, []
    return replace(belief, incidents={**belief.incidents, **changed}), list(changed.values())


def trim(belief: Belief, keep: int) -> Belief:
    """Forget the oldest resolved incidents beyond `keep`."""
    done = [i for i in sorted(belief.incidents) if not belief.incidents[i].open]
    drop = set(done[: max(0, len(belief.incidents) - keep)])
    if not drop:
        return belief
    return replace(belief, incidents={k: v for k, v in belief.incidents.items() if k not in drop})


def opened(belief: Belief) -> int:
    """How many incidents are not resolved."""
    return sum(i.open for i in belief.incidents.values())


def _mass_incident(belief: Belief, window_s: float) -> Incident | None:
    """The open incident of the mass failure under way, if one of its nodes has a verdict already."""
    since = belief.holding_since
    if since is None:
        return None
    ids = sorted(
        n.incident_id
        for n in belief.nodes.values()
        if n.incident_id is not None and n.failed_at is not None and n.failed_at >= since - window_s
    )
    return belief.incidents[ids[0]] if ids else None


def _storm(belief: Belief, now: float, window_s: float) -> tuple[Belief, Incident | None]:
    """The one incident of many that were opened within the window, made of theirs where that is not done."""
    recent = {
        k: i
        for k, i in belief.incidents.items()
        if i.open and now - i.opened_at < window_s and i.cause not in ALONE
    }
    known = (belief.nodes.get(name) for incident in recent.values() for name in incident.nodes)
    failed = tuple(n.name for n in known if n is not None and n.incident_id in recent)
    if len(failed) + 1 < STORM:
        return belief, None
    if len(recent) > 1:
        belief = merge(belief, failed, now, "many nodes within seconds, told as one")
    return belief, belief.incidents[min(recent)]


def _helpless(node: NodeBelief, *, unclear: bool) -> bool:
    """Nothing that the agent may do helps this node: given up, a broken path, or nobody can find out more."""
    undecided = unclear and node.state in (State.SUSPECT, State.JOINING)
    broken = node.state is State.SUSPECT and node.cause in NOT_OURS
    return node.state is State.GAVE_UP or undecided or broken


def _attach(belief: Belief, incident: Incident, node: NodeBelief) -> Belief:
    belief = evidence.put(belief, replace(node, incident_id=incident.id))
    return replace(belief, incidents={**belief.incidents, incident.id: incident})


def _with(incident: Incident, now: float, text: str, name: str = "") -> tuple[Step, ...]:
    """The steps and this one; the same said of several nodes at once is one step, until it was announced.

    Its text is made when they are all known, by `_told`.
    """
    steps = incident.steps
    about = " ".join(text.replace(name, "", 1).replace(" :", ":").split()) if name else ""
    last = steps[-1] if steps else None
    if last is not None and last.text == text:
        return steps
    if last is not None and about and (last.revision, last.about) == (incident.revision, about):
        return (*steps[:-1], replace(last, nodes=(*last.nodes, name)))
    if len(steps) >= MAX_STEPS:
        return steps  # the journal's history goes on
    return (*steps, Step(now, text, (name,), about, incident.revision))


def _told(incident: Incident) -> tuple[Step, ...]:
    """The steps, and in those that were added since the last revision the names of all their nodes."""
    first = len(incident.steps)
    while first and incident.steps[first - 1].revision == incident.revision:
        first -= 1
    return (*incident.steps[:first], *map(_of_all, incident.steps[first:]))


def _of_all(step: Step) -> Step:
    if len(step.nodes) < 2:
        return step
    return replace(step, text=f"{names.fold(step.nodes)}: {step.about.removeprefix('is ')}")


def _found(node: NodeBelief) -> str:
    if node.cause is Cause.ASKED:
        return f"{node.name}: {node.cause}"
    why = "; ".join(node.evidence)
    what = "is dead" if node.state is State.DEAD else "is not well"
    return f"{node.name} {what}: {node.cause or Cause.NOT_CLEAR}" + (f" ({why})" if why else "")
