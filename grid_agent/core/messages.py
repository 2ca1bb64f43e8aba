"""What goes into `step` and what comes out.

Events are past tense: an edge saw this, or an order ended so. Orders are imperative: the shell carries
them out and feeds the result back as one more event. Nothing here acts.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from grid_agent.core.incident_model import Incident, Outage
from grid_agent.core.seen import NO_FACTS, HostFacts, LiveWork, ProbeReport, Raylet
from grid_agent.core.terms import Cause, Miss, Rung


@dataclass(frozen=True, slots=True)
class HeartbeatAnswered:
    """The raylet's own health service said SERVING.

    `rtt_ms` is the shortest of the last few round trips, `last_rtt_ms` that of this answer.
    """

    node: str
    node_id: str
    rtt_ms: float
    last_rtt_ms: float | None = None


@dataclass(frozen=True, slots=True)
class HeartbeatMissed:
    """The raylet did not answer; `how` says what was seen on the wire.

    It was asked `waited_s` ago: by the deadline of the check, not by a clock that may have stood still.
    """

    node: str
    node_id: str
    how: Miss
    detail: str = ""
    waited_s: float = 0.0


@dataclass(frozen=True, slots=True)
class NodeRow:
    """One row of the GCS node table. `started_at_ms` is the GCS's own clock."""

    name: str
    node_id: str
    address: str
    port: int
    alive: bool
    started_at_ms: int
    is_head: bool = False
    gpus: int = 0
    death: str = ""


@dataclass(frozen=True, slots=True)
class NodesListed:
    """The GCS answered with its node table (dead rows too)."""

    rows: tuple[NodeRow, ...]


@dataclass(frozen=True, slots=True)
class GcsWentSilent:
    """The GCS did not answer. What it would have said is unknown, not "all dead"."""

    detail: str


@dataclass(frozen=True, slots=True)
class HostLooked:
    """A look at the host's own process list: every live raylet of this name and cluster.

    `asked_about`: the incarnation that made us look; the answer says nothing about a newer one. `starting`:
    a start or stop of this node is under way there; None: not known. `bundle`: ends of logs, for people.
    """

    node: str
    by: str
    raylets: tuple[Raylet, ...]
    detail: str = ""
    asked_about: str | None = None
    facts: HostFacts = NO_FACTS
    starting: bool | None = None
    bundle: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class HostUnreachable:
    """The host cannot be reached: no route, or nothing answers there at all."""

    node: str
    by: str
    detail: str
    asked_about: str | None = None


@dataclass(frozen=True, slots=True)
class LookFailed:
    """The look itself failed (key refused, no answer in time, ...): it says nothing about the host."""

    node: str
    by: str
    detail: str


@dataclass(frozen=True, slots=True)
class PeerChecked:
    """A live peer checked this incarnation's port; `how` None: it answered there."""

    node: str
    node_id: str
    by: str
    how: Miss | None
    detail: str = ""


@dataclass(frozen=True, slots=True)
class PeerPlaced:
    """A live peer placed a no-op on this incarnation; `ran` False: it missed its deadline."""

    node: str
    node_id: str
    by: str
    ran: bool
    detail: str = ""


@dataclass(frozen=True, slots=True)
class PeerFailed:
    """The peer itself could not be asked, or not in time: it says nothing about the node."""

    node: str
    by: str
    detail: str


@dataclass(frozen=True, slots=True)
class TaskRan:
    """A no-op task pinned to this incarnation has run there."""

    node: str
    node_id: str


@dataclass(frozen=True, slots=True)
class TaskMissed:
    """The pinned no-op task missed its deadline or could not be placed."""

    node: str
    node_id: str
    detail: str


@dataclass(frozen=True, slots=True)
class NodeProbed:
    """The probe actor on the node reported."""

    node: str
    node_id: str
    report: ProbeReport


@dataclass(frozen=True, slots=True)
class RayTold:
    """The GCS took (or refused) our word that an incarnation is dead."""

    node: str
    node_id: str
    accepted: bool
    detail: str = ""


@dataclass(frozen=True, slots=True)
class DrainAnswered:
    """Ray took (or refused) the request to give this incarnation no new work."""

    node: str
    node_id: str
    accepted: bool
    detail: str = ""


@dataclass(frozen=True, slots=True)
class RepairEnded:
    """A repair task ended. `ok` says the raylet was started, not yet that the node is usable.

    `curable` False: the output shows that trying again cannot help (version, auth, disk); None: what ran it
    died or did not answer, and only the host itself knows what was done. `begun` False: it was refused before
    anything was done, and does not count as an attempt.
    """

    node: str
    attempt: int
    ok: bool
    detail: str
    curable: bool | None = True
    begun: bool = True


@dataclass(frozen=True, slots=True)
class LoopLagged:
    """How late the agent's own loop ran, in milliseconds (0 when on time)."""

    lag_ms: float


@dataclass(frozen=True, slots=True)
class SelfChecked:
    """How the agent itself is: rounds it skipped, its loopback (None: no answer), CPU pressure in percent.

    `clock_step_s`: by how much the wall clock has moved against the monotonic one since the last check.
    """

    missed_jobs: int
    loopback_ms: float | None
    cpu_pressure: float | None = None
    clock_step_s: float = 0.0


@dataclass(frozen=True, slots=True)
class HeartbeatsSwept:
    """A round of checks is over; `rotation_s` until each raylet has had its turn, as things are now."""

    rotation_s: float


@dataclass(frozen=True, slots=True)
class PeopleStopped:
    """The complete set of nodes that people have stopped and not started again."""

    nodes: frozenset[str]


class Verb(StrEnum):
    """What a person may ask of the agent."""

    PAUSE = "pause"
    RESUME = "resume"
    CORDON = "cordon"
    UNCORDON = "uncordon"
    CLOSE_BREAKER = "close the breaker"
    REPAIR = "repair"


@dataclass(frozen=True, slots=True)
class PersonSaid:
    """A person asked for this, with a reason. `for_s`: how long it shall hold, None: until taken back."""

    verb: Verb
    by: str
    reason: str
    node: str | None = None
    for_s: float | None = None
    disrupt: bool = False  # a repair may end work that still runs there


@dataclass(frozen=True, slots=True)
class WorkListed:
    """What runs on this incarnation, or why that could not be listed."""

    node: str
    node_id: str
    work: LiveWork


@dataclass(frozen=True, slots=True)
class SlackChanged:
    """Slack refuses our messages (why), or takes them again (None)."""

    stuck: str | None


@dataclass(frozen=True, slots=True)
class JournalChanged:
    """The journal cannot be written (why), or takes everything again (None)."""

    trouble: str | None


@dataclass(frozen=True, slots=True)
class HeadOutage:
    """What the keeper has written down of a time without a whole head, complete as of now."""

    outage: Outage


Event = (
    HeadOutage
    | HeartbeatAnswered
    | HeartbeatMissed
    | NodesListed
    | GcsWentSilent
    | HostLooked
    | HostUnreachable
    | LookFailed
    | PeerChecked
    | PeerPlaced
    | PeerFailed
    | TaskRan
    | TaskMissed
    | NodeProbed
    | RayTold
    | DrainAnswered
    | RepairEnded
    | LoopLagged
    | SelfChecked
    | HeartbeatsSwept
    | PeopleStopped
    | PersonSaid
    | WorkListed
    | SlackChanged
    | JournalChanged
)


@dataclass(frozen=True, slots=True)
class LookAtHost:
    """Ask the host itself for its raylets, from the node `by`.

    `address`, `port`: where the raylet of `node_id` listened; `pid`: its own, where it was seen;
    `quiet_s`: for how long nothing has been heard of it. Ends in HostLooked, HostUnreachable or LookFailed.
    """

    node: str
    node_id: str | None
    by: str
    address: str = ""
    port: int = 0
    pid: int | None = None
    quiet_s: float = 0.0


@dataclass(frozen=True, slots=True)
class AskPeer:
    """Have the live node `by` check the suspect's port. Ends in PeerChecked or PeerFailed."""

    node: str
    node_id: str
    by: str
    address: str
    port: int


@dataclass(frozen=True, slots=True)
class ProveFromPeer:
    """Have the live node `by` place a no-op on this incarnation. Ends in PeerPlaced or PeerFailed."""

    node: str
    node_id: str
    by: str


@dataclass(frozen=True, slots=True)
class ProveNode:
    """Run a no-op task pinned to this incarnation. Ends in TaskRan or TaskMissed."""

    node: str
    node_id: str


@dataclass(frozen=True, slots=True)
class TellRay:
    """Report exactly this incarnation as dead to the GCS. Ends in RayTold."""

    node: str
    node_id: str
    cause: Cause
    text: str


@dataclass(frozen=True, slots=True)
class ListWork:
    """Ask Ray what runs on this incarnation. Ends in WorkListed."""

    node: str
    node_id: str


@dataclass(frozen=True, slots=True)
class DrainNode:
    """Have Ray give this incarnation no new work; it leaves when it is idle. Ends in DrainAnswered."""

    node: str
    node_id: str
    text: str
    until_at: float | None  # by when its work should be over; None: it may take its time


@dataclass(frozen=True, slots=True)
class RestartWorker:
    """Fence the old raylet and start a new one, by a task placed on `run_on`. Ends in RepairEnded."""

    node: str
    run_on: str
    attempt: int
    fence_node_id: str | None
    rung: Rung = Rung.RESTART
    by_person: bool = False  # a person asked for it: the limits of rate do not bind it


@dataclass(frozen=True, slots=True)
class Notify:
    """Show this incident, as it is now, to people. One message per incident, edited."""

    incident: Incident


Order = (
    LookAtHost | AskPeer | ProveFromPeer | ProveNode | TellRay | ListWork | DrainNode | RestartWorker | Notify
)
