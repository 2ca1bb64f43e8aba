"""What the agent believes: immutable values, one snapshot per step.

Nothing here decides anything. Times are seconds on the loop's clock (wall time that cannot jump);
durations carry their unit in the name. Read by every module of the core and by the shell. What the journal
keeps is every field that is not marked TRANSIENT: seen anew after a restart, or given by the cluster file.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Literal

from grid_agent.core.gpu_model import GpuBelief, Sweep

Role = Literal["head", "worker"]
Mode = Literal["observe", "heal"]
TRANSIENT = {"transient": True}  # metadata of a field that is not stored
CLOCK = {"clock": True}  # metadata of a field of clock times whose name does not end as such names do


class State(StrEnum):
    """Where a host is in its life. The edges between them are in `lifecycle`."""

    JOINING = "JOINING"
    ALIVE = "ALIVE"
    SUSPECT = "SUSPECT"
    DEAD = "DEAD"
    REPAIRING = "REPAIRING"
    GAVE_UP = "GAVE_UP"
    CORDONED = "CORDONED"


class Cause(StrEnum):
    """Why a node is not well, in the words people read."""

    PROCESS_GONE = "process gone"
    HUNG = "hung"
    HOST_DOWN = "host down"
    ZOMBIE = "marked dead, still running"
    CANNOT_RUN_TASKS = "cannot run tasks"
    NO_PATH = "head cannot reach it"
    PORT_BLOCKED = "port blocked"
    AGENT_DIED = "agent process died"
    OUT_OF_MEMORY = "out of memory"
    CANNOT_JOIN = "cannot join"
    OBSERVER_SICK = "observer sick"
    HEAD_DOWN = "head down"
    GPU_DIFFERS = "GPU differs"
    ASKED = "restart asked for by a person"
    GPU_UNWELL = "GPU unwell"  # it is there, and complains


GONE = frozenset({Cause.PROCESS_GONE, Cause.AGENT_DIED, Cause.OUT_OF_MEMORY})  # the process has ended
NOT_OURS = frozenset({Cause.NO_PATH, Cause.PORT_BLOCKED})  # a path is broken: nothing there is restarted


class Rung(StrEnum):
    """What is done about a cause, mildest first. The ladder of each cause is in `ladder`."""

    WAIT = "wait"
    RESTART = "restart"
    CLEAR = "clear its leftovers and restart"
    PERSON = "hand over to a person"


class Miss(StrEnum):
    """How a heartbeat failed to answer."""

    REFUSED = "refused"  # ECONNREFUSED from TCP itself: nobody listens on the port
    TIMED_OUT = "timed out"  # connected or connecting, no answer before the deadline
    UNREACHABLE = "unreachable"  # no route, host or network unreachable
    NOT_SERVING = "not serving"  # an answer, but not SERVING


class GpuAction(StrEnum):
    """What follows from a GPU finding."""

    REPORT = "report"
    HAND_OVER = "hand_over"  # reported as a matter for a person
    QUARANTINE = "quarantine"  # no new work goes to the node
    WITHOUT = "without"  # drained, and restarted without the GPU


class Refusal(StrEnum):
    """Why the agent may not act. `guard.explain` adds who, how many and until when to these texts."""

    OBSERVING = "mode is observe: the agent reports and never acts"
    PAUSED = "repairs are paused by a person"
    STOPPED_BY_PERSON = "stopped by a person with stop.py; start.py brings it back"
    CORDONED = "cordoned by a person"
    ONE_WITNESS = "only one witness so far; two independent ones are needed"
    IN_FLIGHT = "another repair is under way; one at a time"
    MASS_FAILURE = "half or more of the workers failed at once; holding until no more fail"
    GCS_SILENT = "the GCS does not answer; holding every repair"
    OBSERVER_SICK = "the agent's own loop is late; holding every repair"
    BREAKER = "the breaker is open: repairs in a row did not help; a person must look and close it"
    DO_NOT_DISTURB = "do-not-disturb hours"
    FLAPPING = "it dies again and again; restarting it does not help, and a person must look"
    BACKING_OFF = "the last attempt did not help; waiting before the next"
    NODE_BUDGET = "the attempts for this node are used up; a person must look"
    CLUSTER_BUDGET = "too many repairs in this cluster lately; waiting"
    NO_REPAIRER = "no other live node could carry out the repair"
    HEAD = "the head is not repaired from inside the cluster"
    NOT_CURABLE = "a restart does not cure this; a person must change something"
    HOST_UNREACHABLE = "nobody reaches the host; waiting until it answers"
    LIVE_WORK = "it still runs work, which a restart would end"


@dataclass(frozen=True, slots=True)
class Incarnation:
    """One life of a raylet. Ray makes a new `node_id` at each start."""

    node_id: str
    address: str = ""
    port: int = 0
    started_at_ms: int = 0


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """What the direct checks of one incarnation have shown so far.

    `first_missed_at` is held against the node, and moves on while we did not watch; `silent_since` does not.
    Until `stale_until` connections that are older than the last silence may still be silent, for TCP's sake.
    """

    answered_at: float | None = None
    rtt_ms: float | None = None
    misses: int = 0
    first_missed_at: float | None = None
    silent_since: float | None = None
    missed_at: float | None = None
    last_miss: Miss | None = None
    detail: str = ""
    last_rtt_ms: float | None = None
    stale_until: float | None = None


@dataclass(frozen=True, slots=True)
class Raylet:
    """One raylet process as its host shows it.

    `workers` counts the worker processes below it, `busy` names some of those that have an actor or a task.
    """

    pid: int
    node_id: str
    start_ticks: int = 0
    stat: str = "S"
    workers: int = 0
    busy: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class HostFacts:
    """How the host is, and what it says of the raylet that was asked about; None where it does not say.

    `pressure` is the share of time in percent that something waited for cpu, memory or io (avg10). `greets`:
    the raylet's port answers on the host itself. `death`, `oom`, `agent`: last words of the raylet's log, of
    the kernel about memory, of Ray's agent beside the raylet. `clock_ahead_s`: against the clock of the head.
    """

    load1: float | None = None
    cpus: int | None = None
    mem_available_mb: int | None = None
    mem_total_mb: int | None = None
    pressure: Mapping[str, float] = field(default_factory=dict)
    port: int | None = None
    listening: bool | None = None
    greets: bool | None = None
    death: tuple[str, ...] = ()
    oom: tuple[str, ...] = ()
    agent: tuple[str, ...] = ()
    clock_ahead_s: float | None = None


NO_FACTS = HostFacts()


@dataclass(frozen=True, slots=True)
class HostView:
    """A look at the host itself: the second witness. `reached` False: nobody could look."""

    at: float
    by: str
    reached: bool
    raylets: tuple[Raylet, ...] = ()
    detail: str = ""
    since: float | None = None  # since when every look has been reached, or has not
    starting: bool | None = None  # a start of this node is under way there (its lock is held); None: unknown
    facts: HostFacts = NO_FACTS


@dataclass(frozen=True, slots=True)
class PeerView:
    """What a live peer found when it was asked to check the node. `how` None: the node answered it."""

    at: float
    by: str
    how: Miss | None
    detail: str = ""


@dataclass(frozen=True, slots=True)
class PeerTask:
    """Whether a no-op that a live peer placed on the node has run there."""

    at: float
    by: str
    ran: bool
    detail: str = ""


@dataclass(frozen=True, slots=True)
class ProbeReport:
    """What the probe actor on a node saw. `gpus_seen` is 0 where NVML is absent, None while unknown."""

    at: float
    gpus_seen: int | None
    gpus: Sweep | None = None
    raylet_pid: int | None = None
    load1: float | None = None
    mem_available_mb: int | None = None
    disk_free_mb: int | None = None
    pressure: Mapping[str, float] = field(default_factory=dict)
    detail: str = ""


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
class LiveWork:
    """What runs on one incarnation: counts by kind (tasks, actors, ...), and some of the names.

    `trouble` says why it could not be listed; then nothing is known.
    """

    at: float
    node_id: str
    counts: Mapping[str, int] = field(default_factory=dict)
    names: tuple[str, ...] = ()
    trouble: str | None = None

    @property
    def nothing(self) -> bool:
        """It was listed, and nothing runs there."""
        return self.trouble is None and not any(self.counts.values())


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
    stopped_id: str | None = None  # the incarnation a person stopped: its dead row is no news
    # What the GCS row of `incarnation` says, and since when that is False.
    listed_alive: bool | None = field(default=None, metadata=TRANSIENT)
    unlisted_at: float | None = field(default=None, metadata=TRANSIENT)
    gcs_detail: str = field(default="", metadata=TRANSIENT)  # Ray's own death text
    registered_gpus: int | None = field(default=None, metadata=TRANSIENT)
    gpus: GpuBelief = field(default_factory=GpuBelief)
    heartbeat: Heartbeat = field(default=Heartbeat(), metadata=TRANSIENT)
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
    def in_flight(self) -> bool:
        """A repair of this node is under way."""
        return bool(self.attempts) and self.attempts[-1].ended_at is None


class Phase(StrEnum):
    """Where an incident is. Open until RESOLVED."""

    FIRING = "firing"
    REPAIRING = "repairing"
    NEEDS_PERSON = "needs a person"
    RESOLVED = "resolved"


@dataclass(frozen=True, slots=True)
class Step:
    """One line of an incident's story. `nodes` and `about`: what it was made of, so that others can join.

    `revision` is its incident's when it was added: once that has risen, people know the line as it is.
    """

    at: float
    text: str
    nodes: tuple[str, ...] = field(default=(), compare=False, metadata=TRANSIENT)
    about: str = field(default="", compare=False, metadata=TRANSIENT)
    revision: int = field(default=-1, compare=False, metadata=TRANSIENT)


@dataclass(frozen=True, slots=True)
class Outage:
    """A time without a whole head, by the keeper; `began_at` names it. `steps` are only ever added to.

    `store_lost` says why the GCS began with nothing; `channel_id` and `ts` are of the keeper's own message.
    """

    began_at: float
    cause: str
    steps: tuple[Step, ...] = ()
    restored_at: float | None = None
    store_lost: str | None = None
    channel_id: str | None = None
    ts: str | None = None


@dataclass(frozen=True, slots=True)
class Incident:
    """One thing that went wrong, from verdict to recovery; a mass failure has many `nodes`."""

    id: int
    nodes: tuple[str, ...]
    host: str
    cause: Cause
    phase: Phase
    opened_at: float
    failed_at: float
    evidence: tuple[str, ...] = ()
    steps: tuple[Step, ...] = ()
    resolved_at: float | None = None
    revision: int = 0  # counts the steps of the core that changed it
    rolled_into: int | None = None  # the incident that tells the story of this one, too
    next_attempt_at: float | None = None

    @property
    def open(self) -> bool:
        """Not resolved yet."""
        return self.phase is not Phase.RESOLVED


@dataclass(frozen=True, slots=True)
class Observer:
    """The agent's view of itself and of its sources."""

    loop_lag_ms: float = 0.0
    gcs_answered_at: float | None = None
    gcs_silent_since: float | None = None
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


@dataclass(frozen=True, slots=True)
class Policy:
    """The numbers the core decides by. Seconds. Defaults are the shipped ones.

    `join_s` after which a node that never joined is looked for on its host; `suspect_misses` and
    `suspect_s` must both be used up before a silent node is suspected; `hang_s` before a silent raylet
    whose process lives is given up; `unreachable_s` before Ray is told of a host nobody reaches. The
    wait after attempt k is `backoff_s` times 3^(k-1), at most `backoff_most_s`, plus a jitter. A node
    that was ALIVE for `probation_s` begins its ladder anew. `do_not_disturb` holds (from, to) in minutes
    after midnight UTC.
    `report_s` passes before people hear of a broken path. A raylet that the GCS has marked dead exits within
    2 s; one that still runs after `zombie_s` is a zombie. A node that is ALIVE is proved again every
    `prove_again_s`.
    """

    mode: Mode = "heal"
    heartbeat_every_s: float = 1.0
    suspect_misses: int = 2
    hang_s: float = 90.0
    unreachable_s: float = 120.0
    join_s: float = 60.0
    look_every_s: float = 2.0
    proof_every_s: float = 5.0
    prove_again_s: float = 180.0
    peer_every_s: float = 3.0
    report_s: float = 20.0
    zombie_s: float = 5.0
    repair_timeout_s: float = 90.0
    node_attempts: int = 4
    node_window_s: float = 1800.0
    cluster_attempts: int = 10
    cluster_window_s: float = 600.0
    tries_per_rung: int = 2
    backoff_s: float = 2.0
    backoff_most_s: float = 60.0
    probation_s: float = 300.0
    flap_deaths: int = 4
    flap_window_s: float = 600.0
    breaker_nodes: int = 3
    do_not_disturb: tuple[tuple[int, int], ...] = ()
    disrupt: bool = False
    drain_s: float = 30.0
    mass_window_s: float = 10.0
    mass_minimum: int = 2
    gcs_silent_s: float = 3.0
    lag_warn_ms: float = 1000.0
    gpu: Mapping[str, GpuAction] = field(default_factory=dict)  # by the key of gpu.policy; else report
    gpu_drain_s: float = 300.0
    gpu_return_s: float = 60.0
    max_incidents: int = 200
