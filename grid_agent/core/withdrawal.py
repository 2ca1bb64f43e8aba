"""A repair that was refused before anything was done: it was no attempt.

Pure. Called by `step` in place of the settling of an attempt.
"""

from grid_agent.core import evidence, incidents, ladder, lifecycle
from grid_agent.core.incident_model import Phase
from grid_agent.core.model import Belief, NodeBelief
from grid_agent.core.policy import Policy
from grid_agent.core.terms import State


def settle(belief: Belief, node: NodeBelief, now: float, policy: Policy) -> Belief:
    """Forget the last attempt of `node`, which was never begun; a node under repair is DEAD again."""
    detail = node.attempts[-1].detail
    node = ladder.withdraw(node, now, policy)
    if node.state is not State.REPAIRING:
        return evidence.put(belief, node)
    waiting = lifecycle.move(node, State.DEAD, now, node.cause)
    text = f"nothing was done for {node.name}: {detail}"
    return incidents.add(evidence.put(belief, waiting), waiting, text, now, Phase.FIRING)
