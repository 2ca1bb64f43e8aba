"""How often, how soon, and when to stop trying.

Pure arithmetic over a node's attempts; decides nothing about evidence. Called by `guard` and `step`.
"""

from dataclasses import replace

from grid_agent.core.model import Attempt, Belief, NodeBelief, Policy


def recent(node: NodeBelief, now: float, policy: Policy) -> tuple[Attempt, ...]:
    """The attempts that still count against the node's budget."""
    return tuple(a for a in node.attempts if now - a.started_at < policy.node_window_s)


def used_up(node: NodeBelief, now: float, policy: Policy) -> bool:
    """The node has had all the attempts it may have in the window."""
    return len(recent(node, now, policy)) >= policy.node_attempts


def cluster_used_up(belief: Belief, now: float, policy: Policy) -> bool:
    """The cluster has had all the repairs it may have in the window."""
    started = (a.started_at for n in belief.nodes.values() for a in n.attempts)
    return sum(now - at < policy.cluster_window_s for at in started) >= policy.cluster_attempts


def curable(node: NodeBelief) -> bool:
    """The last attempt at this very failure did not show that another one is pointless."""
    if not node.attempts or node.attempts[-1].curable:
        return True
    return node.failed_at is not None and node.attempts[-1].started_at < node.failed_at


def begin(node: NodeBelief, run_on: str, now: float, policy: Policy) -> NodeBelief:
    """Return the node with a new attempt under way; attempts out of the window are forgotten."""
    number = node.attempts_begun + 1
    fence = node.incarnation.node_id if node.incarnation else None
    known = fence is None or node.told_id == fence or not node.listed_alive
    attempt = Attempt(number, now, run_on, fence_node_id=fence, cause=node.cause, told=known)
    attempts = (*recent(node, now, policy), attempt)
    return replace(node, attempts=attempts, attempts_begun=number, next_attempt_at=None)


def withdraw(node: NodeBelief, now: float, policy: Policy) -> NodeBelief:
    """Return the node without its last attempt, which was never begun; the next may follow a little later."""
    return replace(node, attempts=node.attempts[:-1], next_attempt_at=now + policy.backoff_s[0])


def fail(node: NodeBelief, detail: str, now: float, policy: Policy) -> NodeBelief:
    """Return the node with its last attempt failed and the next one put off.

    The wait is `backoff_s[k]` after the k-th failure in a row, the last value for all later ones.
    """
    last = node.attempts[-1]
    done = replace(last, ended_at=last.ended_at or now, ok=False, detail=detail)
    failures = 0
    for attempt in reversed(node.attempts[:-1]):
        if attempt.ok is not False or now - attempt.started_at >= policy.node_window_s:
            break
        failures += 1
    wait_s = policy.backoff_s[min(failures, len(policy.backoff_s) - 1)]
    return replace(node, attempts=(*node.attempts[:-1], done), next_attempt_at=now + wait_s)
