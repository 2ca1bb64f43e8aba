"""May we act? A list of questions; the first that says no is the answer, with its name.

Pure. It is asked before every repair and for every report, so that what is refused is always shown.
Called by `step`.
"""

from collections.abc import Iterator

from grid_agent.core import evidence, ladder, placement
from grid_agent.core.model import Belief, Cause, NodeBelief, Policy, Refusal, State

WITNESSES = 2
FINAL = frozenset({Refusal.NODE_BUDGET, Refusal.NOT_CURABLE})  # these hand the node to a person


def refusal(belief: Belief, node: NodeBelief, now: float, policy: Policy) -> Refusal | None:
    """Return why `node` may not be restarted now, or None: permitted."""
    return next((why for no, why in _questions(belief, node, now, policy) if no), None)


def _questions(
    belief: Belief, node: NodeBelief, now: float, policy: Policy
) -> Iterator[tuple[bool, Refusal]]:
    """One question at a time, the dearest last; nobody asks on after the first no."""
    silent = belief.observer.gcs_silent_since
    yield node.role == "head", Refusal.HEAD
    yield node.stopped, Refusal.STOPPED_BY_PERSON
    yield policy.mode == "observe", Refusal.OBSERVING
    yield silent is not None or belief.observer.gcs_answered_at is None, Refusal.GCS_SILENT
    yield belief.observer.loop_lag_ms >= policy.lag_warn_ms, Refusal.OBSERVER_SICK
    yield belief.holding_since is not None, Refusal.MASS_FAILURE
    yield node.cause is Cause.HOST_DOWN, Refusal.HOST_UNREACHABLE
    yield not node.verdict_stands or len(evidence.against(node)) < WITNESSES, Refusal.ONE_WITNESS
    yield not ladder.curable(node), Refusal.NOT_CURABLE
    yield ladder.used_up(node, now, policy), Refusal.NODE_BUDGET
    yield node.next_attempt_at is not None and now < node.next_attempt_at, Refusal.BACKING_OFF
    yield any(n.in_flight or n.state is State.REPAIRING for n in belief.nodes.values()), Refusal.IN_FLIGHT
    yield ladder.cluster_used_up(belief, now, policy), Refusal.CLUSTER_BUDGET
    yield placement.choose(belief, node) is None, Refusal.NO_REPAIRER


def may_tell(belief: Belief, node: NodeBelief, now: float, policy: Policy, *, fenced: bool) -> bool:
    """Whether Ray may be told that an incarnation is dead: telling ends a raylet that lives.

    One that a repair has `fenced` is gone for certain; any other needs a verdict that stands.
    """
    observer = belief.observer
    silent = observer.gcs_silent_since
    if policy.mode == "observe" or node.stopped or observer.loop_lag_ms >= policy.lag_warn_ms:
        return False
    if silent is not None or (node.tell_after is not None and now < node.tell_after):
        return False
    proven = node.verdict_stands and len(evidence.against(node)) >= WITNESSES
    return fenced or (proven and (belief.holding_since is None or node.cause is Cause.PROCESS_GONE))


def failing(belief: Belief, now: float, policy: Policy) -> tuple[str, ...]:
    """The workers that left ALIVE within the mass-failure window, or whose host nobody reaches.

    A death proven on its host leaves the count after the window; a host out of reach never does,
    because it may be us that are cut off.
    """
    return tuple(
        n.name
        for n in belief.nodes.values()
        if n.failed_at is not None  # first: it is None for nearly every node
        and n.role == "worker"
        and n.state in (State.SUSPECT, State.DEAD, State.REPAIRING, State.GAVE_UP)
        and (now - n.failed_at < policy.mass_window_s or n.cause is Cause.HOST_DOWN)
    )


def mass_failure(belief: Belief, now: float, policy: Policy) -> bool:
    """Half or more of the workers, and at least `mass_minimum`, are failing."""
    lost = len(failing(belief, now, policy))
    if lost < policy.mass_minimum:
        return False
    return 2 * lost >= sum(n.role == "worker" for n in belief.nodes.values())
