"""From facts to a cause. The table of the whole product, as one function.

It looks at one node and answers what is wrong with it, how sure that is, and why. It never changes
anything and knows nothing of guards or repairs. Called by `step` for every node at every step.
"""

from dataclasses import dataclass
from enum import Enum

from grid_agent.core import evidence
from grid_agent.core.model import Cause, Miss, NodeBelief, Policy, State

ZOMBIE_S = 5.0  # a raylet that learns of its death exits within 2 s; longer is a zombie


class Grade(Enum):
    """How much is known: nothing wrong, something wrong, given up."""

    WELL = "well"
    UNKNOWN = "unknown"  # neither an answer nor a proof of death: keep the present state
    SUSPECT = "suspect"
    DEAD = "dead"


@dataclass(frozen=True, slots=True)
class Verdict:
    """What is wrong, and the facts it rests on (one line each)."""

    grade: Grade
    cause: Cause | None = None
    evidence: tuple[str, ...] = ()


WELL = Verdict(Grade.WELL)
UNKNOWN = Verdict(Grade.UNKNOWN)


def judge(node: NodeBelief, now: float, policy: Policy, head: str = "head") -> Verdict:
    """Return the verdict on this node at this time; `head` is the name of the node we look from."""
    if node.incarnation is None:
        return _never_joined(node, now, policy)
    lines = tuple(evidence.against(node).values())
    seen = evidence.fresh(node) and node.host_view is not None and node.host_view.reached
    alive = evidence.running(node) if seen else None
    if seen and alive is None and (_refused(node) or node.listed_alive is False):
        return Verdict(Grade.DEAD, Cause.PROCESS_GONE, lines)
    if node.listed_alive is False:
        return _marked_dead(node, now, lines, alive=alive is not None, policy=policy)
    if node.heartbeat.misses:
        return _silent(node, now, lines, alive=alive is not None, policy=policy, head=head)
    if node.proof_misses >= policy.suspect_misses and node.proven_id != node.incarnation.node_id:
        tried_s = now - (node.since if node.failed_at is None else node.failed_at)
        given_up = node.state is State.DEAD and node.cause is Cause.CANNOT_RUN_TASKS
        late = given_up or tried_s >= policy.join_s
        return Verdict(Grade.DEAD if late else Grade.SUSPECT, Cause.CANNOT_RUN_TASKS, lines)
    return WELL if node.heartbeat.answered_at is not None else UNKNOWN


def _refused(node: NodeBelief) -> bool:
    return node.heartbeat.last_miss is Miss.REFUSED


def _never_joined(node: NodeBelief, now: float, policy: Policy) -> Verdict:
    """No GCS row at all. Absence alone proves nothing: its host must have been looked at."""
    waited_s = now - node.since
    view = node.host_view
    if view is None:
        return UNKNOWN
    if node.state is State.JOINING and (waited_s < policy.join_s or view.at < node.since):
        return UNKNOWN
    lines: tuple[str, ...] = (f"not in the GCS node table {policy.join_s:.0f} s after it was expected",)
    lines += tuple(text for who, text in evidence.against(node).items() if who == "host")
    if not view.reached:
        return Verdict(Grade.DEAD, Cause.HOST_DOWN, lines)
    return Verdict(Grade.DEAD, Cause.CANNOT_JOIN if view.raylets else Cause.PROCESS_GONE, lines)


def _marked_dead(
    node: NodeBelief, now: float, lines: tuple[str, ...], *, alive: bool, policy: Policy
) -> Verdict:
    """The GCS says DEAD; the host was asked, or will be."""
    suspected_s = now - node.failed_at if node.failed_at is not None else 0.0
    view = node.host_view
    if alive:
        grade = Grade.DEAD if suspected_s >= ZOMBIE_S else Grade.SUSPECT
        return Verdict(grade, Cause.ZOMBIE, lines)
    if view is not None and not view.reached and evidence.fresh(node):
        grade = Grade.DEAD if suspected_s >= policy.unreachable_s else Grade.SUSPECT
        return Verdict(grade, Cause.HOST_DOWN, lines)
    return Verdict(Grade.SUSPECT, node.cause, lines)


def _silent(
    node: NodeBelief, now: float, lines: tuple[str, ...], *, alive: bool, policy: Policy, head: str
) -> Verdict:
    """Heartbeats fail. One refused is enough to suspect; silence needs several."""
    beat, view = node.heartbeat, node.host_view
    if not _refused(node) and beat.misses < policy.suspect_misses:
        return UNKNOWN
    enough = beat.misses >= policy.suspect_misses
    if view is None or not evidence.fresh(node):
        return Verdict(Grade.SUSPECT, node.cause, lines)
    # Counted from when the host, too, was seen so: after a cut the first look is no proof of a hang.
    silent_s = now - max(beat.first_missed_at or view.at, view.at if view.since is None else view.since)
    if not view.reached:
        given_up = enough and silent_s >= policy.unreachable_s
        return Verdict(Grade.DEAD if given_up else Grade.SUSPECT, Cause.HOST_DOWN, lines)
    if alive and view.by != head:
        # A peer reaches the host and sees the raylet run: it is the way from the head that is broken.
        return Verdict(Grade.SUSPECT, Cause.NO_PATH, lines)
    if alive:
        given_up = enough and silent_s >= policy.hang_s
        return Verdict(Grade.DEAD if given_up else Grade.SUSPECT, Cause.HUNG, lines)
    # Silent, not refused, and no such process in the list: one of the two must be mistaken. Wait for more.
    given_up = enough and silent_s >= policy.hang_s
    return Verdict(Grade.DEAD if given_up else Grade.SUSPECT, Cause.PROCESS_GONE, lines)
