"""The repair of one node: ask the guards, begin an attempt, see what became of it, give up.

Every refusal and every attempt becomes a line of the node's incident. Pure; called by `step`.
"""

from dataclasses import replace

from grid_agent.core import (
    breaker,
    evidence,
    guard,
    incidents,
    inquiry,
    ladder,
    lifecycle,
    placement,
    planned,
    resume,
    withdrawal,
)
from grid_agent.core import messages as m
from grid_agent.core.incident_model import Phase
from grid_agent.core.model import Belief, NodeBelief
from grid_agent.core.policy import Policy
from grid_agent.core.terms import Cause, Refusal, Rung, State

PROVEN_WAIT_S = 30.0  # after a start succeeded: how long until a pinned task must have run


def settle(belief: Belief, node: NodeBelief, now: float, policy: Policy) -> Belief:
    """A repair that failed, or whose result never became usable, counts as failed: back to DEAD.

    One that succeeded is watched: whether it helped, and when its probation is over.
    """
    if not node.attempts:
        return belief
    if node.state is State.ALIVE and node.attempts[-1].ok:
        belief = breaker.observe(belief, node, now, policy)
        return evidence.put(belief, ladder.settle(belief.nodes[node.name], now, policy))
    belief, node = _looked_for(belief, node, now)
    last = node.attempts[-1]
    if last.ended_at is None and now - last.started_at < policy.repair_timeout_s:
        return belief
    belief = evidence.put(belief, node)
    if not last.begun:
        return withdrawal.settle(belief, node, now, policy)
    if node.state is not State.REPAIRING:  # it came back, or a person stopped it, before the repair's answer
        ended = replace(last, ended_at=now, detail="no answer from the repair")
        unheard = replace(node, attempts=(*node.attempts[:-1], ended))
        return evidence.put(belief, unheard) if last.ended_at is None else belief
    if last.ended_at is None:
        detail = f"no answer from the repair after {policy.repair_timeout_s:.0f} s"
    elif not last.ok:
        detail = last.detail
    elif now - last.ended_at < PROVEN_WAIT_S:
        return belief
    else:
        detail = f"the raylet was started, but no task ran on it within {PROVEN_WAIT_S:.0f} s"
    failed = ladder.fail(node, detail, now, policy)
    cause = failed.cause if failed.attempts[-1].curable else Cause.CANNOT_JOIN
    failed = lifecycle.move(failed, State.DEAD, now, cause)
    repairs = replace(belief.repairs, failed=belief.repairs.failed + 1)
    belief = incidents.recast(replace(evidence.put(belief, failed), repairs=repairs), failed)
    belief = incidents.add(belief, failed, f"attempt {last.number} failed: {detail}", now, Phase.FIRING)
    return breaker.in_vain(belief, failed, now, policy)


def _looked_for(belief: Belief, node: NodeBelief, now: float) -> tuple[Belief, NodeBelief]:
    """The node; a repair whose answer will never come is settled by its host, once that shows it clearly."""
    unknown = resume.lost(node)
    if resume.interrupted(unknown) and not resume.interrupted(node):
        last = unknown.attempts[-1]
        text = f"attempt {last.number}: no answer from {last.run_on} ({last.detail}); looking at the host"
        belief = incidents.add(evidence.put(belief, unknown), unknown, text, now)
        unknown = belief.nodes[node.name]
    return belief, resume.looked(unknown, now)


def what_helped(node: NodeBelief) -> str:
    """Why a node that was lost can be used again."""
    last, known = node.attempts[-1] if node.attempts else None, node.incarnation
    failed_at = node.since if node.failed_at is None else node.failed_at
    if last is not None and last.started_at >= failed_at and last.ok is not False:
        return f"attempt {last.number}, a restart by a task on {last.run_on}, helped; a task has run on it"
    if known is not None and known.started_at_ms / 1000.0 < failed_at:
        return "it can be used again, without a repair"  # the same raylet as before
    return "it came back without a repair, and a task has run on it"


def died(belief: Belief, node: NodeBelief, now: float, policy: Policy) -> Belief:
    """A node has just been found dead: open its incident, and count what that says of earlier repairs."""
    if node.asked is None:  # a node that is drained ends by itself
        node = ladder.died(node, now, policy)
    belief = evidence.put(belief, node)
    if ladder.flapping(node, now, policy):
        belief = incidents.reopen(belief, node, now, policy.flap_window_s)
    belief = incidents.open_for(belief, belief.nodes[node.name], now, policy.mass_window_s)
    last = node.attempts[-1] if node.attempts else None
    if last is not None and last.ok and last.helped is None:  # so soon
        belief = breaker.in_vain(belief, belief.nodes[node.name], now, policy)
    blocked = node.cause is Cause.PORT_BLOCKED
    return hand_over(belief, belief.nodes[node.name], now, policy) if blocked else belief


def consider(
    belief: Belief, node: NodeBelief, now: float, policy: Policy
) -> tuple[Belief, tuple[m.Order, ...]]:
    """Ask the guards; restart, give up, or say why not. Its host may tell first what ended the raylet."""
    if not planned.may_begin(node) or inquiry.pending(node, now):
        return belief, ()
    no = guard.refusal(belief, node, now, policy)
    if node.asked is not None and planned.declined(node, no, now, policy):
        return _decline(belief, node, no, now, policy), ()
    if node.asked is not None and no is not None:
        return belief, ()  # it is being drained already: there is no way back
    if no in guard.FINAL:
        return _give_up(_refuse(belief, node, no, now, policy), node, no, now, policy), ()
    run_on = placement.choose(belief, node) if no is None else None
    if run_on is None:
        belief = _refuse(belief, node, no, now, policy)
        in_the_way = no is Refusal.LIVE_WORK
        return planned.look_again(belief, belief.nodes[node.name], now) if in_the_way else (belief, ())
    belief, first, ready = planned.prepare(belief, node, now, policy)
    if not ready:
        return belief, first
    return _begin(belief, node, run_on, now, policy)


def _begin(
    belief: Belief, node: NodeBelief, run_on: str, now: float, policy: Policy
) -> tuple[Belief, tuple[m.Order, ...]]:
    """Every guard permits, and no work is in the way."""
    by_person = node.asked
    if by_person is not None:
        node = planned.forget(replace(node, cause=node.cause or Cause.ASKED))
        belief = evidence.put(belief, node)
        belief = belief if node.incident_id is not None else incidents.open_for(belief, node, now, 0.0)
        node = belief.nodes[node.name]
        said = f"{by_person.by} asked for a restart of {node.name}: {by_person.reason}"
        belief = incidents.add(belief, node, said, now)
    alive = sum(n.state is State.ALIVE for n in belief.nodes.values())
    begun = replace(ladder.begin(node, run_on, now, policy, alive), refusal=None)
    begun = planned.forget(lifecycle.move(begun, State.REPAIRING, now, node.cause))
    belief = replace(belief, repairs=replace(belief.repairs, started=belief.repairs.started + 1))
    last = begun.attempts[-1]
    more = "clearing the leftovers of and " if last.rung is Rung.CLEAR else ""
    text = f"{more}restarting {node.name} by a task on {run_on} (attempt {last.number})"
    belief = incidents.add(evidence.put(belief, begun), begun, text, now, Phase.REPAIRING)
    restart = m.RestartWorker(
        node.name, run_on, last.number, last.fence_node_id, last.rung, by_person=by_person is not None
    )
    return belief, (restart,)


def _decline(belief: Belief, node: NodeBelief, no: Refusal | None, now: float, policy: Policy) -> Belief:
    """What a person asked for is not done, and the person is told why; asking again is free."""
    why = "it could not be begun in time" if no is None else guard.explain(no, belief, node, now, policy)
    declined = planned.forget(node, why)
    return incidents.add(evidence.put(belief, declined), declined, f"not restarting {node.name}: {why}", now)


def hand_over(belief: Belief, node: NodeBelief, now: float, policy: Policy) -> Belief:
    """What is wrong with a dead node is known now, and no restart cures it: it is a person's."""
    return _give_up(incidents.recast(belief, node), node, Refusal.NOT_CURABLE, now, policy)


def _refuse(belief: Belief, node: NodeBelief, no: Refusal | None, now: float, policy: Policy) -> Belief:
    if no is node.refusal or no is None:
        return evidence.put(belief, replace(node, refusal=no))
    count = dict(belief.repairs.refused)
    count[no.name.lower()] = count.get(no.name.lower(), 0) + 1
    belief = replace(belief, repairs=replace(belief.repairs, refused=count))
    refused = replace(node, refusal=no)
    if no in guard.FINAL:
        return evidence.put(belief, refused)  # the line that says so is the one of giving up
    why = guard.explain(no, belief, node, now, policy)
    return incidents.add(evidence.put(belief, refused), refused, f"not restarting {node.name}: {why}", now)


def _give_up(belief: Belief, node: NodeBelief, no: Refusal, now: float, policy: Policy) -> Belief:
    gone = lifecycle.move(belief.nodes[node.name], State.GAVE_UP, now, node.cause)
    why = guard.explain(no, belief, node, now, policy)
    last = node.attempts[-1].detail if node.attempts and not node.attempts[-1].ok else ""
    text = f"gave up on {node.name}: {why}" + (f"; last error: {last}" if last else "")
    return incidents.add(evidence.put(belief, gone), gone, text, now, Phase.NEEDS_PERSON)
