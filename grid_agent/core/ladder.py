"""What is tried for a cause, how often, how soon, and when to stop trying.

Pure arithmetic over a node's attempts and deaths; decides nothing about evidence. Called by `guard`,
`repair` and `step`.
"""

import zlib
from collections.abc import Mapping
from dataclasses import replace

from grid_agent.core.model import Attempt, Belief, NodeBelief
from grid_agent.core.policy import Policy
from grid_agent.core.terms import Cause, Rung, State

# Each rung is tried `tries_per_rung` times; the last one stays.
USUAL = (Rung.RESTART, Rung.CLEAR, Rung.PERSON)
LADDER: Mapping[Cause, tuple[Rung, ...]] = {
    Cause.HOST_DOWN: (Rung.WAIT,),  # nothing can be done there; it is judged anew when it answers
    Cause.NO_PATH: (Rung.WAIT,),
    Cause.OBSERVER_SICK: (Rung.WAIT,),
}
BACKOFF_FACTOR = 3.0
JITTER = 0.2  # of the wait, so that nodes that failed together do not come back together
OOM_TRIES = -2  # what ran out of memory does so again: its first restart waits as others' third
SPARED_TRIES = 1  # a node that dies again after its first restart is restarted at once


def rung(node: NodeBelief, policy: Policy) -> Rung:
    """Return what is to be tried next for the node's cause, after `tries` tries of this trouble."""
    ladder = USUAL if node.cause is None else LADDER.get(node.cause, USUAL)
    return ladder[min(node.tries // policy.tries_per_rung, len(ladder) - 1)]


def recent(node: NodeBelief, now: float, policy: Policy) -> tuple[Attempt, ...]:
    """The attempts that still count against the node's budget."""
    return tuple(a for a in node.attempts if now - a.started_at < policy.node_window_s)


def used_up(node: NodeBelief, now: float, policy: Policy) -> bool:
    """The node has had all the attempts it may have in the window, or its ladder has ended."""
    over = rung(node, policy) is Rung.PERSON
    return over or len(recent(node, now, policy)) >= policy.node_attempts


def in_cluster(belief: Belief, now: float, policy: Policy) -> int:
    """How many repairs of the whole cluster began within its window."""
    started = (a.started_at for n in belief.nodes.values() for a in n.attempts)
    return sum(now - at < policy.cluster_window_s for at in started)


def cluster_used_up(belief: Belief, now: float, policy: Policy) -> bool:
    """The cluster has had all the repairs it may have in the window."""
    return in_cluster(belief, now, policy) >= policy.cluster_attempts


def curable(node: NodeBelief) -> bool:
    """No port is blocked, and the last attempt at this failure did not show that another is pointless."""
    if node.cause is Cause.PORT_BLOCKED:
        return False
    if not node.attempts or node.attempts[-1].curable:
        return True
    return node.failed_at is not None and node.attempts[-1].started_at < node.failed_at


def flapping(node: NodeBelief, now: float, policy: Policy) -> bool:
    """It was found dead so often within the window that one more restart is pointless."""
    return sum(now - at < policy.flap_window_s for at in node.deaths) >= policy.flap_deaths


def wait_s(name: str, number: int, failures: int, policy: Policy) -> float:
    """Return the wait after this many failures in a row: exponential, less a jitter from name and number."""
    wait = policy.backoff_s
    for _ in range(failures - 1):
        wait = min(wait * BACKOFF_FACTOR, policy.backoff_most_s)
    return wait * (1.0 - JITTER * zlib.crc32(f"{name}/{number}".encode()) / 2**32)


def died(node: NodeBelief, now: float, policy: Policy) -> NodeBelief:
    """Return the node with one more death; one that dies again and again waits longer and longer."""
    deaths = (*(at for at in node.deaths if now - at < policy.flap_window_s), now)
    return put_off(replace(node, deaths=deaths), now, policy)


def put_off(node: NodeBelief, now: float, policy: Policy) -> NodeBelief:
    """Return the node with its next attempt when its tries and its cause, as it is known now, allow it."""
    again = node.tries - (SPARED_TRIES if node.cause is not Cause.OUT_OF_MEMORY else OOM_TRIES)
    wait = wait_s(node.name, node.attempts_begun, again, policy) if again > 0 else 0.0
    return replace(node, next_attempt_at=now + wait if wait else None)


def begin(node: NodeBelief, run_on: str, now: float, policy: Policy, alive: int = 0) -> NodeBelief:
    """Return the node with a new attempt under way; attempts out of every window are forgotten.

    `alive` is how many nodes are ALIVE as it begins.
    """
    number = node.attempts_begun + 1
    fence = node.incarnation.node_id if node.incarnation else None
    attempt = Attempt(
        number,
        now,
        run_on,
        fence_node_id=fence,
        cause=node.cause,
        told=fence is None or node.told_id == fence or not node.listed_alive,
        rung=rung(node, policy),
        alive_before=alive,
    )
    longest_s = max(policy.node_window_s, policy.cluster_window_s)
    kept = tuple(a for a in node.attempts if now - a.started_at < longest_s)
    return replace(
        node,
        attempts=(*kept, attempt),
        attempts_begun=number,
        tries=node.tries + 1,
        next_attempt_at=None,
    )


def withdraw(node: NodeBelief, now: float, policy: Policy) -> NodeBelief:
    """Return the node without its last attempt, which was never begun; the next may follow a little later."""
    tries, wait = max(0, node.tries - 1), now + policy.backoff_s
    return replace(node, attempts=node.attempts[:-1], tries=tries, next_attempt_at=wait)


def fail(node: NodeBelief, detail: str, now: float, policy: Policy) -> NodeBelief:
    """Return the node with its last attempt failed and the next one put off."""
    last = node.attempts[-1]
    done = replace(last, ended_at=last.ended_at or now, ok=False, detail=detail)
    wait = wait_s(node.name, last.number, node.tries, policy)
    return replace(node, attempts=(*node.attempts[:-1], done), next_attempt_at=now + wait)


def settle(node: NodeBelief, now: float, policy: Policy) -> NodeBelief:
    """Return the node with its ladder begun anew, once it was ALIVE for the whole probation."""
    if node.tries and node.state is State.ALIVE and now - node.since >= policy.probation_s:
        return replace(node, tries=0)
    return node
