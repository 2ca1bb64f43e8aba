"""What people hear of a node that is not well, and of which there is no verdict.

Nothing is done to such a node; so a person must hear of it once it has lasted. Pure; called by `step`.
"""

from grid_agent.core import incidents
from grid_agent.core.incident_model import Incident, Phase
from grid_agent.core.model import Belief, NodeBelief
from grid_agent.core.policy import Policy
from grid_agent.core.terms import NOT_OURS, Cause


def report(belief: Belief, node: NodeBelief, now: float, policy: Policy) -> Belief:
    """A way to a suspect is broken, or no verdict comes: a person must hear of it once it has lasted."""
    known = incidents.of(belief, node)
    if known is not None:
        return _seen_anew(belief, node, known, now)
    caused_s = 0.0 if node.cause_since is None else now - node.cause_since
    if node.cause in NOT_OURS and caused_s >= policy.report_s:
        return incidents.begin(belief, node, now, Phase.NEEDS_PERSON)
    if not _undecided(belief, node, now, policy):
        return belief
    shared = _unclear(belief, now, policy.mass_window_s)
    if shared is not None:
        return incidents.join(belief, shared, node, now)
    return incidents.begin(belief, node, now, Phase.NEEDS_PERSON, Cause.NOT_CLEAR)


def _undecided(belief: Belief, node: NodeBelief, now: float, policy: Policy) -> bool:
    """Whether a verdict should have come by now, had we been able to know."""
    seen = belief.observer
    if node.cause is Cause.OBSERVER_SICK or seen.gcs_silent_since is not None:
        return False
    since = max(node.since, belief.started_at, seen.gcs_back_at or 0.0)
    return now - since >= max(policy.join_s, policy.hang_s, policy.unreachable_s) + policy.undecided_s


def _seen_anew(belief: Belief, node: NodeBelief, known: Incident, now: float) -> Belief:
    """What is suspected now is told; but a suspicion makes nothing clear, and our own trouble is not its."""
    unclear = known.cause is Cause.NOT_CLEAR and node.cause not in NOT_OURS
    if known.nodes != (node.name,) or known.cause is node.cause or unclear:
        return belief
    if node.cause is None or node.cause is Cause.OBSERVER_SICK:
        return belief
    return incidents.add(
        incidents.recast(belief, node), node, f"{node.name}, looked at again: {node.cause}", now
    )


def _unclear(belief: Belief, now: float, window_s: float) -> Incident | None:
    """The incident of the others of which no verdict has come: many at once are told as one."""
    found = (i for i in belief.incidents.values() if i.open and i.cause is Cause.NOT_CLEAR)
    return next((i for i in found if now - i.opened_at < window_s), None)
