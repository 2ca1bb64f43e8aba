"""An incident as it is kept and shown: immutable values. `incidents` makes them, the journal stores them."""

from dataclasses import dataclass, field
from enum import StrEnum

from grid_agent.core.terms import TRANSIENT, Cause


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
