"""The words of the core: states, causes, what is done about them, and why nothing is done."""

from enum import StrEnum
from typing import Literal

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
    NOT_CLEAR = "not clear"  # not well for long, and nobody can find out why


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
