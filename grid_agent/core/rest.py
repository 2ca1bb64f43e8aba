"""Whom a step must think about: in a large cluster nearly every node is healthy, and nothing new is known.

Pure. A node at rest is ALIVE, proven, listed and without a miss, an incident or a repair; judging it again
changes nothing, and a thousand of them several times a second cost a tenth of a core. A rule that depends on
time alone for such a node, as the next proof does, is late by `EVERYONE_S` at most. Called by `step`.
"""

from collections.abc import Iterable
from dataclasses import replace

from grid_agent.core.model import Belief, NodeBelief
from grid_agent.core.terms import State

SMALL = 100  # nodes; up to here everybody is judged at every step
EVERYONE_S = 5.0


def awake(belief: Belief, before: Belief, now: float) -> tuple[Belief, list[str]]:
    """Return the belief and the names of the nodes to judge, in their order.

    Args:
        belief: With the events of this step folded in.
        before: As the last step left it.
        now: Seconds on the loop's clock.
    """
    waited = belief.everyone_at is None or now - belief.everyone_at >= EVERYONE_S
    if len(belief.nodes) <= SMALL or waited:
        return replace(belief, everyone_at=now), list(belief.nodes)
    old, busy = before.nodes, frozenset(before.busy)
    return belief, [k for k, n in belief.nodes.items() if n is not old.get(k) or k in busy]


def note(belief: Belief, judged: Iterable[str]) -> Belief:
    """Return the belief with the names of those that the next step must judge even if nothing new is seen."""
    return replace(belief, busy=tuple(k for k in judged if not at_rest(belief.nodes[k])))


def at_rest(node: NodeBelief) -> bool:
    """Nothing is wrong with the node, nothing is under way, and nothing is left to be said of it."""
    if node.state is not State.ALIVE or node.heartbeat.misses or not node.listed_alive:
        return False
    if node.stopped or node.asked is not None:
        return False
    if node.incarnation is None or node.proven_id != node.incarnation.node_id or node.proof_misses:
        return False
    if node.rows_alive > 1:
        return False
    if node.incident_id is not None or node.cordon is not None or node.tries:
        return False
    last = node.attempts[-1] if node.attempts else None
    return last is None or (last.ended_at is not None and last.told and last.helped is not None)
