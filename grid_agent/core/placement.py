"""Who carries out a repair: a live node that is not the sick one; the head where it can. Pure."""

from grid_agent.core.model import Belief, NodeBelief, State


def choose(belief: Belief, sick: NodeBelief) -> str | None:
    """Return the name of the node whose task shall repair `sick`, or None."""
    live = [n for n in belief.nodes.values() if n.state is State.ALIVE and n.name != sick.name]
    return next((n.name for n in live if n.role == "head"), None)
