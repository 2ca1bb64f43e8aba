"""The heart: what was seen goes in, what should be done comes out. Read this file first.

Rule 1: everything that changes the belief happens in here, in this order: reflect (facts), judge
(passive moves), act (orders). Rule 2: no network, no clock, no randomness; `now` is an argument.
Rule 3: an order's result is one more event, so that nothing is done twice because nobody listened.
Called by the loop only, with every event since the last call.
"""

from collections.abc import Iterable
from dataclasses import replace

from grid_agent.core import (
    evidence,
    guard,
    incidents,
    lifecycle,
    people,
    placement,
    repair,
    rest,
    resume,
    verdict,
)
from grid_agent.core import messages as m
from grid_agent.core.model import Attempt, Belief, Cause, NodeBelief, Policy, State
from grid_agent.core.verdict import Grade

LOOK_LOST_S = 30.0  # a look that has not come back by then never will


def begin(nodes: Iterable[NodeBelief], now: float) -> Belief:
    """The first belief: every configured node JOINING, nothing known."""
    return Belief(started_at=now, stepped_at=now, nodes={n.name: n for n in nodes})


def step(
    belief: Belief, events: Iterable[m.Event], now: float, policy: Policy
) -> tuple[Belief, tuple[m.Order, ...]]:
    """Fold the events in, judge every node, and say what to do now.

    Returns the new belief and the orders, in the order in which they should be started.
    """
    before, belief = belief, evidence.own_table(belief)
    for event in events:
        belief = _tell_story(belief, event, now)
        belief = people.hear(evidence.fold(belief, event, now), event, now)
    belief = people.expire(replace(belief, stepped_at=now), now)
    belief, awake = rest.awake(belief, before, now)
    for name in awake:
        belief = repair.settle(belief, belief.nodes[name], now, policy)
    for name in awake:
        belief = _judge(belief, belief.nodes[name], now, policy)
    belief = _hold(belief, now, policy)
    orders: list[m.Order] = []
    for name in awake:
        belief, more = _act(belief, belief.nodes[name], now, policy)
        orders += more
    belief, changed = incidents.revise(belief, before.incidents)
    belief = rest.note(incidents.trim(belief, policy.max_incidents), awake)
    belief = evidence.shared_table(belief)
    return belief, (*orders, *(m.Notify(i) for i in changed))


# --- reflect: the story people read ------------------------------------------------------------


def _tell_story(belief: Belief, event: m.Event, now: float) -> Belief:
    """Lines that an event adds to an open incident; asked before the event is folded in."""
    node = belief.nodes.get(getattr(event, "node", ""))
    if node is None:
        return belief
    match event:
        case m.RayTold(_, node_id, accepted, detail):
            said = "Ray was told that it is dead" if accepted else f"Ray could not be told ({detail})"
            text = f"{said} (incarnation {node_id[:8]})"
        case m.RepairEnded(_, number, True, detail) if node.in_flight and node.attempts[-1].number == number:
            text = f"attempt {number}: {detail}; waiting for a task to run there"
        case _:
            return belief
    return incidents.add(belief, node, text, now)


# --- judge: passive moves ----------------------------------------------------------------------


def _judge(belief: Belief, node: NodeBelief, now: float, policy: Policy) -> Belief:
    """Move one node along the edges that facts alone decide."""
    if people.held(node):
        return people.cordon(belief, node, now)
    if _usable(node):
        return _back(belief, node, now)
    if node.incarnation is None and belief.observer.gcs_silent_since is not None:
        return belief  # that the GCS does not list it is only known while the GCS answers
    if node.state is State.ALIVE and not _proven(node):
        belief = evidence.put(belief, replace(lifecycle.move(node, State.JOINING, now, None), evidence=()))
        node = belief.nodes[node.name]
    if node.state in (State.REPAIRING, State.GAVE_UP):
        return belief
    found = verdict.judge(node, now, policy, placement.head(belief))
    if node.state is State.DEAD:
        return _judge_again(belief, node, found, now)
    if found.grade is Grade.SUSPECT or (found.grade is Grade.DEAD and node.role == "head"):
        moved = lifecycle.move(node, State.SUSPECT, now, found.cause)
        known = moved.evidence == found.evidence
        return evidence.put(belief, moved if known else replace(moved, evidence=found.evidence))
    if found.grade is Grade.DEAD:
        if node.state is State.ALIVE:
            node = lifecycle.move(node, State.SUSPECT, now, found.cause)
        dead = lifecycle.move(node, State.DEAD, now, found.cause)
        dead = replace(dead, evidence=found.evidence, verdict_stands=True)
        return repair.died(belief, dead, now, policy)
    return belief


def _judge_again(belief: Belief, node: NodeBelief, found: verdict.Verdict, now: float) -> Belief:
    """A verdict lasts as long as its facts: a new incarnation, an answer or a host back in reach void it."""
    if found.grade is not Grade.DEAD:
        return evidence.put(belief, replace(node, verdict_stands=False)) if node.verdict_stands else belief
    if node.verdict_stands and (node.cause, node.evidence) == (found.cause, found.evidence):
        return belief
    known = lifecycle.move(node, State.DEAD, now, found.cause)
    known = replace(known, evidence=found.evidence, verdict_stands=True)
    belief = evidence.put(belief, known)
    if found.cause is node.cause:
        return belief
    again = "the host answers again" if node.cause is Cause.HOST_DOWN else "looked at again"
    return incidents.add(belief, known, f"{node.name}, {again}: {found.cause}", now)


def _proven(node: NodeBelief) -> bool:
    return node.incarnation is not None and node.proven_id == node.incarnation.node_id


def _usable(node: NodeBelief) -> bool:
    """A pinned task has run on the newest incarnation, and nothing speaks against it since.

    Under repair only a new incarnation counts: the old one may answer until the fence ends it.
    """
    if not _proven(node) or node.listed_alive is False or node.heartbeat.misses:
        return False
    return node.state is not State.REPAIRING or node.proven_id != node.attempts[-1].fence_node_id


def _back(belief: Belief, node: NodeBelief, now: float) -> Belief:
    if node.state is State.ALIVE:
        return belief
    was_open = node.incident_id is not None
    alive = replace(
        lifecycle.move(node, State.ALIVE, now, None), evidence=(), refusal=None, next_attempt_at=None
    )
    belief = evidence.put(belief, alive)
    if not was_open:
        return belief
    return incidents.resolve(belief, alive, f"{node.name} is ALIVE: {repair.what_helped(node)}", now)


def _hold(belief: Belief, now: float, policy: Policy) -> Belief:
    """Many nodes at once: more likely the observer or the network than the nodes. Hold every repair."""
    mass = guard.mass_failure(belief, now, policy)
    if mass and belief.holding_since is None:
        belief = replace(belief, holding_since=now)
        return incidents.merge(belief, guard.failing(belief, now, policy), now)
    if not mass and belief.holding_since is not None:
        return replace(belief, holding_since=None)
    return belief


# --- act: orders -------------------------------------------------------------------------------


def _act(belief: Belief, node: NodeBelief, now: float, policy: Policy) -> tuple[Belief, tuple[m.Order, ...]]:
    orders: list[m.Order] = []
    if _should_look(node, now, policy):
        node = replace(node, look_asked_at=now, look_begun_at=now)
        known = node.incarnation
        by = placement.looker(belief, node)
        orders.append(m.LookAtHost(node.name, known.node_id if known else None, by))
    unproven = node.incarnation
    if unproven is not None and _should_prove(node, now, policy):
        node = replace(node, proof_asked_at=now)
        orders.append(m.ProveNode(node.name, unproven.node_id))
    belief = evidence.put(belief, node)
    belief, told = _tell_ray(belief, node, now, policy)
    belief, repairs = repair.consider(belief, belief.nodes[node.name], now, policy)
    return belief, (*orders, *told, *repairs)


def _should_look(node: NodeBelief, now: float, policy: Policy) -> bool:
    """A suspect's host is looked at, at once and then every `look_every_s`; so is a node that never came."""
    if node.state is State.JOINING:
        if node.incarnation is not None or now - node.since < policy.join_s:
            return False
    elif node.state is State.DEAD:
        if node.verdict_stands and node.cause is not Cause.HOST_DOWN and evidence.fresh(node):
            return False
    elif node.state is not State.SUSPECT and not resume.interrupted(node):
        return False
    if node.look_begun_at is not None and now - node.look_begun_at < LOOK_LOST_S:
        return False  # one at a time: a host that answers slowly is not asked more
    return node.look_asked_at is None or now - node.look_asked_at >= policy.look_every_s


def _should_prove(node: NodeBelief, now: float, policy: Policy) -> bool:
    """A new incarnation that the GCS lists is proven by a task, whatever brought it up."""
    if node.incarnation is None or not node.listed_alive or _proven(node) or node.stopped:
        return False
    if node.heartbeat.misses:
        return False
    return node.proof_asked_at is None or now - node.proof_asked_at >= policy.proof_every_s


def _tell_ray(
    belief: Belief, node: NodeBelief, now: float, policy: Policy
) -> tuple[Belief, tuple[m.Order, ...]]:
    """Ray learns of a death that is proven; of a hang only after the fence ended the raylet."""
    last = node.attempts[-1] if node.attempts else None
    if last is not None and last.ok and not last.told:
        return _tell_fenced(belief, node, last, now, policy)
    known = node.incarnation
    if known is None or not node.listed_alive or node.told_id == known.node_id:
        return belief, ()
    if node.state is not State.DEAD or node.cause not in (Cause.PROCESS_GONE, Cause.HOST_DOWN):
        return belief, ()
    if not guard.may_tell(belief, node, now, policy, fenced=False):
        return belief, ()
    told = replace(node, told_id=known.node_id)
    text = f"grid-agent: {node.cause}: " + "; ".join(node.evidence)
    return evidence.put(belief, told), (m.TellRay(node.name, known.node_id, node.cause, text),)


def _tell_fenced(
    belief: Belief, node: NodeBelief, last: Attempt, now: float, policy: Policy
) -> tuple[Belief, tuple[m.Order, ...]]:
    """The repair ended the old raylet. Its row may say ALIVE beside the new one's for minutes: say so now."""
    if last.fence_node_id is None or last.cause is None:
        return belief, ()
    if not guard.may_tell(belief, node, now, policy, fenced=True):
        return belief, ()
    told = replace(node, attempts=(*node.attempts[:-1], replace(last, told=True)), told_id=last.fence_node_id)
    text = f"grid-agent: {last.cause}: ended by the repair from {last.run_on}"
    return evidence.put(belief, told), (m.TellRay(node.name, last.fence_node_id, last.cause, text),)
