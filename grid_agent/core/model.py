"""What the agent believes: immutable values, one snapshot per step.

Nothing here decides anything. Times are seconds on the loop's clock (wall time that cannot jump);
durations carry their unit in the name. Read by every module of the core and by the shell. What the journal
keeps is every field that is not marked TRANSIENT: seen anew after a restart, or given by the cluster file.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from grid_agent.core.gpu_model import GpuBelief
from grid_agent.core.incident_model import Incident, Outage
from grid_agent.core.seen import (
    Heartbeat,
    HostView,
    Incarnation,
    LiveWork,
    PeerTask,
    PeerView,
    ProbeReport,
    Raylet,
)
from grid_agent.core.terms import CLOCK, TRANSIENT, Cause, Refusal, Role, Rung, State


@dataclass(frozen=True, slots=True)
class Word:
    """What a person said, and why. `until_at` None: until a person says otherwise."""

    by: str
    reason: str
    at: float
    until_at: float | None = None


@dataclass(frozen=True, slots=True)
class Ask:
    """A person wants a node restarted. `disrupt`: although work on it may be lost."""

    by: str
    reason: str
    at: float
    disrupt: bool = False


@dataclass(frozen=True, slots=True)
class Attempt:
    """One repair of one node. `ended_at` None: under way."""

    number: int
    started_at: float
    run_on: str
    ended_at: float | None = None
    ok: bool | None = None
    detail: str = ""
    curable: bool | None = True  # None: its answer was lost; `resume` then has the host looked at
    begun: bool = True  # False: refused before anything was done; it does not count
    fence_node_id: str | None = None
    cause: Cause | None = None
    told: bool = False  # Ray knows that the fenced incarnation is dead, or there was none
    rung: Rung = Rung.RESTART
    helped: bool | None = None  # None: too early to tell
    alive_before: int = 0  # nodes ALIVE when it began: fewer afterwards, and it made things worse
    unheard: bool = False  # the agent or the node that ran it is gone, and with it the answer


@dataclass(frozen=True, slots=True)
class NodeBelief:
    """All that is believed of one configured host. `name` is its key for ever."""

    name: str
    host: str = field(metadata=TRANSIENT)
    role: Role = field(metadata=TRANSIENT)
    state: State
    since: float
    expected_gpus: int | None = field(default=None, metadata=TRANSIENT)
    labels: Mapping[str, str] = field(default_factory=dict, metadata=TRANSIENT)
    # May look at and repair a host that the head cannot reach.
    can_repair: bool = field(default=False, metadata=TRANSIENT)
    cause: Cause | None = None
    cause_since: float | None = None
    evidence: tuple[str, ...] = ()
    incarnation: Incarnation | None = None
    former_id: str | None = None  # the incarnation before
    proven_id: str | None = None  # the incarnation on which a pinned task has run
    answered_id: str | None = None  # the incarnation that has answered a heartbeat
    stopped_id: str | None = None  # the incarnation a person stopped: its dead row is no news
    # What the GCS row of `incarnation` says, and since when that is False.
    listed_alive: bool | None = field(default=None, metadata=TRANSIENT)
    unlisted_at: float | None = field(default=None, metadata=TRANSIENT)
    gcs_detail: str = field(default="", metadata=TRANSIENT)  # Ray's own death text
    registered_gpus: int | None = field(default=None, metadata=TRANSIENT)
    gpus: GpuBelief = field(default_factory=GpuBelief)
    heartbeat: Heartbeat = field(default=Heartbeat(), metadata=TRANSIENT)
    # Until then connections that are older than its last silence may still be silent, for TCP's sake.
    stale_until: float | None = None
    host_view: HostView | None = field(default=None, metadata=TRANSIENT)
    peer_view: PeerView | None = field(default=None, metadata=TRANSIENT)
    peer_task: PeerTask | None = field(default=None, metadata=TRANSIENT)
    # When somebody else than the head last got an answer from the raylet: a peer, or its own host.
    reached_at: float | None = field(default=None, metadata=TRANSIENT)
    # How many rows of this name the GCS lists as ALIVE, and the raylets of it where its host shows more than
    # one; and live rows of this host under names that are not in the file.
    rows_alive: int = field(default=0, metadata=TRANSIENT)
    doubles: tuple[Raylet, ...] = field(default=(), metadata=TRANSIENT)
    strangers: tuple[str, ...] = field(default=(), metadata=TRANSIENT)
    probe: ProbeReport | None = field(default=None, metadata=TRANSIENT)
    failed_at: float | None = None  # when it last left ALIVE
    look_asked_at: float | None = field(default=None, metadata=TRANSIENT)
    look_begun_at: float | None = field(default=None, metadata=TRANSIENT)  # a look under way; None: none is
    # Who could not look last, and why.
    look_trouble: tuple[str, str] | None = field(default=None, metadata=TRANSIENT)
    # A peer was asked; a check by it is under way; which one could not be asked last, and why.
    peer_asked_at: float | None = field(default=None, metadata=TRANSIENT)
    peer_begun_at: float | None = field(default=None, metadata=TRANSIENT)
    peer_trouble: tuple[str, str] | None = field(default=None, metadata=TRANSIENT)
    # A proof was asked for; one is under way; how many were missed, and the first of them.
    proof_asked_at: float | None = field(default=None, metadata=TRANSIENT)
    proof_begun_at: float | None = field(default=None, metadata=TRANSIENT)
    proof_misses: int = field(default=0, metadata=TRANSIENT)
    proof_missed_at: float | None = field(default=None, metadata=TRANSIENT)
    # Ray refused our word; not again before.
    tell_after: float | None = field(default=None, metadata=TRANSIENT)
    told_id: str | None = None  # the incarnation Ray has been told about
    # DEAD, and the facts of this very step still say so.
    verdict_stands: bool = field(default=False, metadata=TRANSIENT)
    attempts: tuple[Attempt, ...] = ()
    attempts_begun: int = 0  # ever; numbers are never used twice
    tries: int = 0  # of the present trouble: since it last was ALIVE for the whole probation
    # When it was found dead, within the flapping window.
    deaths: tuple[float, ...] = field(default=(), metadata=CLOCK)
    cordon: Word | None = None
    asked: Ask | None = None
    ask_refused: str | None = None  # why nothing was done about the last one
    work: LiveWork | None = None
    work_asked_at: float | None = None
    drain_ends_at: float | None = None  # Ray was asked to drain it until then
    next_attempt_at: float | None = None
    refusal: Refusal | None = None
    incident_id: int | None = None
    stopped: bool = field(default=False, metadata=TRANSIENT)  # a person stopped it

    @property
    def ever_answered(self) -> bool:
        """Its present incarnation has answered us, or an agent before us."""
        return self.incarnation is not None and self.answered_id == self.incarnation.node_id

    @property
    def drained(self) -> bool:
        """Its present incarnation was told, as the file says for its GPUs, to take no new work."""
        return self.incarnation is not None and self.gpus.drained_id == self.incarnation.node_id

    @property
    def in_flight(self) -> bool:
        """A repair of this node is under way."""
        return bool(self.attempts) and self.attempts[-1].ended_at is None


@dataclass(frozen=True, slots=True)
class Observer:
    """The agent's view of itself and of its sources."""

    loop_lag_ms: float = 0.0
    gcs_answered_at: float | None = None
    gcs_silent_since: float | None = None
    gcs_back_at: float | None = None  # the end of its last silence
    slack_stuck: str | None = None
    rotation_s: float | None = None  # until each raylet has been checked once; None: not known yet
    score: int = 0  # how much we doubt ourselves; since when, and why
    scored_at: float = 0.0
    doubts: tuple[str, ...] = ()
    journal_trouble: str | None = None  # why what happens now would be forgotten by a restart


@dataclass(frozen=True, slots=True)
class Repairs:
    """How many repairs this agent has started, how many failed, and how many were held by which guard."""

    started: int = 0
    failed: int = 0
    refused: Mapping[str, int] = field(default_factory=dict)  # guard -> how often it held a repair


@dataclass(frozen=True, slots=True)
class Breaker:
    """Stops every repair when repairs do not help. Only a person closes it.

    `unhelpful` are the nodes whose repairs, one after the other, did not help since one last did.
    """

    unhelpful: tuple[str, ...] = ()
    opened_at: float | None = None
    why: str = ""
    closed: Word | None = None  # who closed it last


@dataclass(frozen=True, slots=True)
class Belief:
    """The whole snapshot that `step` takes and gives back."""

    started_at: float = field(metadata=TRANSIENT)
    stepped_at: float = field(metadata=TRANSIENT)
    nodes: Mapping[str, NodeBelief] = field(metadata=TRANSIENT)  # stored one by one, as the incidents are
    incidents: Mapping[int, Incident] = field(default_factory=dict, metadata=TRANSIENT)
    next_incident_id: int = 1
    observer: Observer = field(default=Observer(), metadata=TRANSIENT)
    holding_since: float | None = None  # mass-failure hold
    # Up to when the time for proofs of nodes that are well is spent.
    proofs_spent_at: float | None = field(default=None, metadata=TRANSIENT)
    repairs: Repairs = Repairs()
    # When every node was last judged, those at rest too.
    everyone_at: float | None = field(default=None, metadata=TRANSIENT)
    breaker: Breaker = Breaker()
    paused: Word | None = None
    busy: tuple[str, ...] = field(default=(), metadata=TRANSIENT)
    head_outage: Outage | None = None  # the last one that the keeper told of
    head_incident_id: int | None = None
