"""The heart: what was seen goes in, what should be done comes out. Read this file first.

Rule 1: everything that changes the belief happens in here, in this order: reflect (facts), judge
(passive moves), act (orders). Rule 2: no network, no clock, no randomness; `now` is an argument.
Rule 3: an order's result is one more event, so that nothing is done twice because nobody listened.
Called by the loop only, with every event since the last call.
"""

from collections.abc import Iterable
from dataclasses import replace

from grid_agent.core import (
    awareness,
    evidence,
    facts,
    ghosts,
    gpu_incidents,
    gpu_policy,
    guard,
    head,
    incidents,
    inquiry,
    ladder,
    lifecycle,
    people,
    placement,
    planned,
    repair,
    rest,
    suspects,
    verdict,
)
from grid_agent.core import messages as m
from grid_agent.core.model import Attempt, Belief, NodeBelief
from grid_agent.core.policy import Policy
from grid_agent.core.terms import GONE, Cause, State
from grid_agent.core.verdict import Grade


def begin(nodes: Iterable[NodeBelief], now: float) -> Belief:
    """The first belief: every configured node JOINING, nothing known."""
    return Belief(started_at=now, stepped_at=now, nodes={n.name: n for n in nodes})


def step(
    belief: Belief, events: Iterable[m.Event], now: float, policy: Policy
) -> tuple[Belief, tuple[m.Order, ...]]:
    """Fold the events in, judge every node, and say what to do now.

    Returns the new belief and the orders, in the order in which they should be started.
    """
    before, belief, events = belief, evidence.own_table(belief), tuple(events)
    for event in events:
        belief = head.fold(_tell_story(belief, event, now), event)
        belief = people.hear(evidence.fold(belief, event, now), event, now)
        belief = gpu_policy.told(belief, event, now)
    belief = people.expire(replace(belief, stepped_at=now), now)
    belief, awake = rest.awake(belief, before, now)
    policy = awareness.stretched(belief, policy)
    for name in awake:
        belief = repair.settle(belief, belief.nodes[name], now, policy)
    for name in awake:
        belief = _judge(belief, belief.nodes[name], now, policy)
    belief = gpu_incidents.tell(_hold(belief, now, policy), awake, now, policy)
    belief = head.settle(belief, now)
    belief, drains = gpu_policy.act(belief, awake, now, policy)
    orders: list[m.Order] = [*drains, *ghosts.bury(belief, events, now, policy)]
    for name in awake:
        belief, more = _act(belief, belief.nodes[name], now, policy)
        orders += more
    if any(isinstance(order, m.RestartWorker) for order in orders):  # those before it must know of it, too
        for name in awake:
            belief, more = repair.consider(belief, belief.nodes[name], now, policy)
            orders += more
    belief, changed = incidents.revise(incidents.rephase(belief), before.incidents)
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
        case m.DrainAnswered(_, _, accepted, detail) if node.drain_ends_at is not None:
            text = f"Ray drains {node.name}" if accepted else f"Ray does not drain {node.name} ({detail})"
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
    if node.incarnation is None and not evidence.listed(belief, node):
        return belief  # that the GCS does not list it is only known while the GCS answers
    if node.state is State.ALIVE and not _proven(node):
        belief = evidence.put(belief, replace(lifecycle.move(node, State.JOINING, now, None), evidence=()))
        node = belief.nodes[node.name]
    if node.state in (State.REPAIRING, State.GAVE_UP) or _hopeless(node):
        return belief
    found = _found(belief, node, now, policy)
    if node.state is State.DEAD:
        return _judge_again(belief, node, found, now, policy)
    if found.grade is Grade.DEAD and node.role != "head":
        return _died(belief, node, found, now, policy)
    if found.grade in (Grade.DEAD, Grade.SUSPECT):
        ours = found.cause is None and awareness.sick(belief.observer)
        moved = lifecycle.move(node, State.SUSPECT, now, Cause.OBSERVER_SICK if ours else found.cause)
        moved = moved if moved.evidence == found.evidence else replace(moved, evidence=found.evidence)
        return suspects.report(evidence.put(belief, moved), moved, now, policy)
    never_came = node.state is State.JOINING and node.incarnation is None
    return suspects.report(belief, _described(node), now, policy) if never_came else belief


def _died(belief: Belief, node: NodeBelief, found: verdict.Verdict, now: float, policy: Policy) -> Belief:
    if node.state is State.ALIVE:
        node = lifecycle.move(node, State.SUSPECT, now, found.cause)
    dead = lifecycle.move(node, State.DEAD, now, found.cause)
    dead = replace(dead, evidence=found.evidence, verdict_stands=True)
    return repair.died(belief, dead, now, policy)


def _described(node: NodeBelief) -> NodeBelief:
    """With what is known of it, for whoever hears of it although there is no verdict."""
    return replace(node, evidence=tuple(fact.text for fact in facts.facts(node)))


def _found(belief: Belief, node: NodeBelief, now: float, policy: Policy) -> verdict.Verdict:
    """The verdict; whether a peer could be asked matters only where no login reaches the host."""
    unreached = node.host_view is not None and not node.host_view.reached
    peers = unreached and placement.witness(belief, node) is not None
    return verdict.judge(node, now, policy, placement.head(belief), peers=peers)


def _hopeless(node: NodeBelief) -> bool:
    """The start itself has shown why it cannot join: that is the cause, whatever its host shows now."""
    return node.state is State.DEAD and node.cause is Cause.CANNOT_JOIN and not ladder.curable(node)


def _judge_again(
    belief: Belief, node: NodeBelief, found: verdict.Verdict, now: float, policy: Policy
) -> Belief:
    """A verdict lasts as long as its facts: a new incarnation, an answer or a host back in reach void it."""
    if found.cause is Cause.PORT_BLOCKED:  # the raylet that a repair started runs, and nobody gets to it
        blocked = replace(lifecycle.move(node, State.DEAD, now, found.cause), evidence=found.evidence)
        return repair.hand_over(evidence.put(belief, blocked), blocked, now, policy)
    if found.grade is not Grade.DEAD:
        return evidence.put(belief, replace(node, verdict_stands=False)) if node.verdict_stands else belief
    if node.verdict_stands and (node.cause, node.evidence) == (found.cause, found.evidence):
        return belief
    known = lifecycle.move(node, State.DEAD, now, found.cause)
    known = replace(known, evidence=found.evidence, verdict_stands=True)
    if found.cause is node.cause:
        return evidence.put(belief, known)
    known = ladder.put_off(known, now, policy) if known.next_attempt_at is None else known
    belief = incidents.recast(evidence.put(belief, known), known)
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
    if node.proof_misses >= facts.ENOUGH:
        return False
    return node.state is not State.REPAIRING or node.proven_id != node.attempts[-1].fence_node_id


def _back(belief: Belief, node: NodeBelief, now: float) -> Belief:
    if node.state is State.ALIVE:
        return belief
    was_open = node.incident_id is not None
    alive = lifecycle.move(planned.over(node), State.ALIVE, now, None)
    alive = replace(alive, evidence=(), refusal=None, next_attempt_at=None)
    belief = evidence.put(belief, alive)
    if not was_open:
        return belief
    return incidents.resolve(belief, alive, f"{node.name} is ALIVE: {repair.what_helped(node)}", now)


def _hold(belief: Belief, now: float, policy: Policy) -> Belief:
    """Many nodes at once: more likely the observer or the network than the nodes. Hold every repair."""
    mass = guard.mass_failure(belief, now, policy)
    if mass and belief.holding_since is None:
        belief = replace(belief, holding_since=now)
        return incidents.merge(belief, guard.failing(belief, now, policy), now, "holding: many nodes at once")
    if not mass and belief.holding_since is not None:
        return replace(awareness.released(belief, belief.holding_since, now), holding_since=None)
    return belief


# --- act: orders -------------------------------------------------------------------------------


def _act(belief: Belief, node: NodeBelief, now: float, policy: Policy) -> tuple[Belief, tuple[m.Order, ...]]:
    belief, asked = inquiry.ask(belief, node, now, policy)
    node = belief.nodes[node.name]
    belief, told = _tell_ray(belief, node, now, policy)
    belief, repairs = repair.consider(belief, belief.nodes[node.name], now, policy)
    return belief, (*asked, *told, *repairs)


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
    if node.state is not State.DEAD or node.cause not in (*GONE, Cause.HOST_DOWN):
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
