"""From facts to a cause. The table of the whole product: a list of rules, the first that knows decides.

It looks at one node and answers what is wrong with it, how sure that is, and why. Only a process proven gone
is given up at once; everything else has used up its misses and its seconds, and two independent witnesses
agree. It never changes anything and knows nothing of guards or repairs. Called by `step` for every node.
"""

from dataclasses import dataclass
from enum import Enum

from grid_agent.core import facts, silence
from grid_agent.core.model import NodeBelief
from grid_agent.core.policy import Policy
from grid_agent.core.seen import NO_FACTS, HostFacts, PeerView, Raylet
from grid_agent.core.terms import Cause, Miss, State

PATIENCE = 3.0  # times as long is a silent raylet forgiven whose host is under strain
STOPPED = ("T", "t")  # of /proc/<pid>/stat: no load excuses a stopped process
# Ray's own words for it: in the GCS, and in the raylet's log.
AGENT_DIED = ("raylet fate-shares with it", "because one Ray agent failed")


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


@dataclass(frozen=True, slots=True)
class Case:
    """One node as the rules ask about it. `alive`: its process, on a host that was `looked` at in time.

    `peer` is what a peer found, if that counts now; `peers`: there is one that could be asked.
    """

    node: NodeBelief
    now: float
    policy: Policy
    head: str
    looked: bool
    unreached: bool
    alive: Raylet | None
    peer: PeerView | None
    peers: bool

    @property
    def seen(self) -> HostFacts:
        """What the host says of itself."""
        view = self.node.host_view
        return view.facts if view is not None and self.looked else NO_FACTS

    @property
    def refused(self) -> bool:
        """The head's own connect was refused, by the host's kernel."""
        return self.node.heartbeat.last_miss is Miss.REFUSED

    @property
    def peer_refused(self) -> bool:
        """So was a peer's."""
        return self.peer is not None and self.peer.how is Miss.REFUSED

    @property
    def reached(self) -> bool:
        """Somebody else gets an answer from the raylet, or sees it run from elsewhere."""
        by_peer = self.peer is not None and self.peer.how is None
        view = self.node.host_view
        from_elsewhere = self.alive is not None and view is not None and view.by != self.head
        return by_peer or from_elsewhere or bool(self.alive is not None and self.seen.greets)

    @property
    def enough(self) -> bool:
        """The misses are used up."""
        return self.node.heartbeat.misses >= self.policy.suspect_misses

    @property
    def silent_s(self) -> float:
        """How long nobody has got an answer: not the head, no peer, and its host, too, was seen so.

        After a cut, one look proves no hang; nor does one after somebody else was answered until then.
        """
        view, first = self.node.host_view, self.node.heartbeat.first_missed_at
        if view is None or first is None:
            return 0.0
        since = view.at if view.since is None else view.since
        return self.now - max(first, since, self.node.reached_at or first)

    @property
    def patience(self) -> float:
        """A host under strain explains silence for a while, unless the process is stopped."""
        stopped = self.alive is not None and self.alive.stat in STOPPED
        return PATIENCE if not stopped and facts.straining(self.seen) else 1.0

    def suspect(self, cause: Cause | None) -> Verdict:
        """Something is wrong; nothing follows from it yet."""
        return self._verdict(Grade.SUSPECT, cause)

    def given_up(self, cause: Cause | None, *, when: bool = True) -> Verdict:
        """DEAD when that has come, until then SUSPECT."""
        return self._verdict(Grade.DEAD if when else Grade.SUSPECT, cause)

    def _verdict(self, grade: Grade, cause: Cause | None) -> Verdict:
        return Verdict(grade, cause, tuple(fact.text for fact in facts.facts(self.node)))


def judge(
    node: NodeBelief, now: float, policy: Policy, head: str = "head", *, peers: bool = False
) -> Verdict:
    """Return the verdict on this node at this time.

    `head` is the name of the node we look from; `peers` says whether a live peer could be asked.
    """
    if node.incarnation is None:
        return _never_joined(node, now, policy)
    fresh, view = facts.fresh(node), node.host_view
    looked = fresh and view is not None and view.reached
    alive = facts.running(node) if looked else None
    unreached = fresh and view is not None and not view.reached
    case = Case(node, now, policy, head, looked, unreached, alive, facts.peer(node), peers)
    rules = (_gone, _marked_dead, _path, _host_down, _hung, _contradiction, _cannot_run_tasks)
    found = next((verdict for rule in rules if (verdict := rule(case)) is not None), None)
    if found is not None:
        return found
    return WELL if node.heartbeat.answered_at is not None and not node.heartbeat.misses else UNKNOWN


def _gone(case: Case) -> Verdict | None:
    """The process has ended: the host shows no such pid, or its kernel refuses the head and a peer alike."""
    node = case.node
    marked = node.listed_alive is False
    if case.alive is not None:
        return None  # the host knows best
    if case.looked:
        proven = case.refused or case.peer_refused or marked
    else:
        # A firewall refuses, too. Only where the raylet has answered before is refusal news of its end.
        proven = case.peer_refused and node.ever_answered and (case.refused or marked)
    return case.given_up(_why_gone(case)) if proven else None


def _why_gone(case: Case) -> Cause:
    """What ended it, by the words it left behind."""
    if _was_blocked(case.node):
        return Cause.PORT_BLOCKED  # Ray has ended what it could not reach, and would again
    if case.seen.oom:
        return Cause.OUT_OF_MEMORY
    if any(sign in line for sign in AGENT_DIED for line in (case.node.gcs_detail, *case.seen.death)):
        return Cause.AGENT_DIED
    return Cause.PROCESS_GONE


def _marked_dead(case: Case) -> Verdict | None:
    """The GCS says DEAD; the host was asked, or will be."""
    node = case.node
    if node.listed_alive is not False:
        return None
    suspected_s = case.now - node.failed_at if node.failed_at is not None else 0.0
    marked_s = case.now - node.unlisted_at if node.unlisted_at is not None else 0.0
    if case.alive is not None:
        cause = Cause.PORT_BLOCKED if _was_blocked(node) else Cause.ZOMBIE
        return case.given_up(cause, when=min(suspected_s, marked_s) >= case.policy.zombie_s)
    if case.unreached:
        return case.given_up(Cause.HOST_DOWN, when=suspected_s >= case.policy.unreachable_s)
    return case.suspect(_known(node))


def _path(case: Case) -> Verdict | None:
    """The head gets no answer, and the raylet is well: it is the way that is broken."""
    if not _silent(case):
        return None
    # Where not even its own host gets an answer, nothing is in the way: it has none to give.
    blocked = case.seen.listening and case.seen.greets is not False
    if case.alive is not None and not case.node.ever_answered and blocked:
        return case.suspect(Cause.PORT_BLOCKED)
    return case.suspect(Cause.NO_PATH) if case.reached else None


def _host_down(case: Case) -> Verdict | None:
    """Nobody reaches it: not the head, no login, and no peer where there is one to ask."""
    if not _silent(case) or not case.unreached:
        return None
    agreed = case.peer is not None or not case.peers
    late = case.enough and case.silent_s >= case.policy.unreachable_s
    return case.given_up(Cause.HOST_DOWN, when=late and agreed)


def _hung(case: Case) -> Verdict | None:
    """The process is there and says nothing."""
    if not _silent(case) or case.alive is None:
        return None
    return case.given_up(Cause.HUNG, when=case.enough and case.silent_s >= case.policy.hang_s * case.patience)


def _contradiction(case: Case) -> Verdict | None:
    """Silent, and not enough known; or no such process although nobody refuses: wait for more."""
    if not _silent(case):
        return None
    if not case.looked:
        return case.suspect(_known(case.node))
    return case.given_up(Cause.PROCESS_GONE, when=case.enough and case.silent_s >= case.policy.hang_s)


def _cannot_run_tasks(case: Case) -> Verdict | None:
    """It answers, and runs nothing: a second task, placed by a peer, decides, on a host that is at ease."""
    node = case.node
    if node.heartbeat.misses or node.proof_misses < case.policy.suspect_misses:
        return None
    since = silence.tried_since(node)
    tried_s = 0.0 if since is None else case.now - since
    late = tried_s >= case.policy.join_s * case.patience
    given_up = node.state is State.DEAD and node.verdict_stands and node.cause is Cause.CANNOT_RUN_TASKS
    return case.given_up(Cause.CANNOT_RUN_TASKS, when=late or given_up)


def _silent(case: Case) -> bool:
    """One refusal is news; one silence is nothing."""
    return bool(case.node.heartbeat.misses) and (case.refused or case.enough)


def _known(node: NodeBelief) -> Cause | None:
    """The cause as far as it was known; that we ourselves were sick says nothing of the node."""
    return None if node.cause is Cause.OBSERVER_SICK else node.cause


def _was_blocked(node: NodeBelief) -> bool:
    return not node.ever_answered and node.cause is Cause.PORT_BLOCKED


def _never_joined(node: NodeBelief, now: float, policy: Policy) -> Verdict:
    """No GCS row at all. Absence alone proves nothing: its host must have been looked at."""
    waited_s = now - node.since
    view = node.host_view
    if view is None:
        return UNKNOWN
    if node.state is State.JOINING and (waited_s < policy.join_s or view.at < node.since):
        return UNKNOWN
    lines: tuple[str, ...] = (f"not in the GCS node table {policy.join_s:.0f} s after it was expected",)
    lines += tuple(fact.text for fact in facts.facts(node) if fact.witness == "host")
    if not view.reached:
        return Verdict(Grade.DEAD, Cause.HOST_DOWN, lines)
    return Verdict(Grade.DEAD, Cause.CANNOT_JOIN if view.raylets else Cause.PROCESS_GONE, lines)
