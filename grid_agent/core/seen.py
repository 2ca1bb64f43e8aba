"""What was seen of a node: by heartbeats, looks at its host, peers, its own probe. Immutable values.

Times are seconds on the loop's clock. `model` keeps them in a belief; what they weigh is in `facts`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from grid_agent.core.gpu_model import Sweep
from grid_agent.core.terms import Miss


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
