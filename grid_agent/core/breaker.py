"""Repairs that do not help stop every repair, until a person has looked.

A repair has helped when its node stayed ALIVE for `HELPED_S` and no fewer nodes are ALIVE than before. It has
not when it failed, when its node died before that, or when fewer nodes are ALIVE. Nodes in a row
are counted, not attempts: one hopeless node uses up its own budget and stops nobody else's repairs.
Pure; called by `repair` and `step`.
"""

from dataclasses import replace

from grid_agent.core import evidence, incidents
from grid_agent.core.model import Belief, Breaker, NodeBelief, Word
from grid_agent.core.policy import Policy
from grid_agent.core.terms import State

HELPED_S = 30.0


def in_vain(belief: Belief, node: NodeBelief, now: float, policy: Policy) -> Belief:
    """The last repair of `node` did not help: count it, and open the breaker when there are enough."""
    breaker = belief.breaker
    if breaker.opened_at is not None or node.name in breaker.unhelpful:
        return belief
    names = (*breaker.unhelpful, node.name)
    if len(names) < policy.breaker_nodes:
        return replace(belief, breaker=replace(breaker, unhelpful=names))
    why = f"the repairs of {', '.join(names)}, one after the other, did not help"
    belief = replace(belief, breaker=replace(breaker, unhelpful=names, opened_at=now, why=why))
    text = f"the breaker opened: {why}; nothing is restarted until a person closes it"
    for name in names:
        belief = incidents.add(belief, belief.nodes[name], text, now)
    return belief


def observe(belief: Belief, node: NodeBelief, now: float, policy: Policy) -> Belief:
    """Judge the last repair of an ALIVE node, once: did it last, and is the cluster no worse off?"""
    last = node.attempts[-1] if node.attempts else None
    if last is None or not last.ok or last.helped is not None or now - node.since < HELPED_S:
        return belief
    alive = sum(n.state is State.ALIVE for n in belief.nodes.values())
    helped = alive >= last.alive_before
    judged = replace(node, attempts=(*node.attempts[:-1], replace(last, helped=helped)))
    belief = evidence.put(belief, judged)
    if not helped:
        return in_vain(belief, judged, now, policy)
    if belief.breaker.opened_at is None and belief.breaker.unhelpful:
        belief = replace(belief, breaker=replace(belief.breaker, unhelpful=()))
    return belief


def close(belief: Belief, word: Word) -> Belief:
    """A person has looked: begin to count anew. Nothing that waited meanwhile is remembered."""
    return replace(belief, breaker=Breaker(closed=word))
