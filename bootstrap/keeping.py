"""What the keeper does next, from what it sees of the head. Pure: no process, no clock, no file.

The smallest remedy that can help comes first: one part of the head is started again where its raylet lives,
the whole head where it does not. Called by `keeper` at every look.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum

BACKOFF_S = (
    0.0,
    1.0,
    5.0,
    15.0,
    30.0,
    60.0,
    120.0,
    300.0,
)  # before the first, second, … remedy of one outage
PART_TRIES = 2  # a GCS that does not stay up by itself is started with all of the head
SETTLED_S = 30.0  # well for so long: the next trouble is a new one
POST_AFTER_S = 60.0


class Remedy(StrEnum):
    """What can be done."""

    GCS = "starting the GCS again"
    DASHBOARD = "starting the dashboard again"
    HEAD = "starting the head again"
    DEPLOY = "deploying the application again"


@dataclass(frozen=True, slots=True)
class Limits:
    """For how long something may be wrong before it is acted on, in seconds."""

    hang_s: float = 60.0
    ready_s: float = 60.0


@dataclass(frozen=True, slots=True)
class Seen:
    """One look at the head: which parts are there, which of them answer, and whether the agent is ready.

    An answer is None where nobody was asked, which proves nothing.
    """

    gcs: bool
    raylet: bool
    dashboard: bool
    gcs_answers: bool | None = None
    raylet_answers: bool | None = None
    ready: bool | None = None


@dataclass(frozen=True, slots=True)
class Memory:
    """What is kept from look to look; times are those of the looks."""

    silent_since: Mapping[str, float] = field(default_factory=dict)
    unready_since: float | None = None
    well_since: float | None = None
    tries: tuple[Remedy, ...] = ()
    next_at: float = 0.0
    dashboard_at: float = 0.0  # the wait of a dashboard that does not start holds nothing else up


@dataclass(frozen=True, slots=True)
class Next:
    """What to do now, if anything, and why."""

    remedy: Remedy | None = None
    why: str = ""


def look(memory: Memory, seen: Seen, now: float) -> Memory:
    """Fold one look in."""
    silent = dict(memory.silent_since)
    for part, there, answer in (
        ("gcs", seen.gcs, seen.gcs_answers),
        ("raylet", seen.raylet, seen.raylet_answers),
    ):
        if answer or not there:
            silent.pop(part, None)
        elif answer is False:
            silent.setdefault(part, now)
    unready = memory.unready_since
    if seen.ready is not None:
        unready = None if seen.ready else (now if unready is None else unready)
    here = well(seen) and not silent and unready is None
    well_since = (now if memory.well_since is None else memory.well_since) if here else None
    memory = replace(memory, silent_since=silent, unready_since=unready, well_since=well_since)
    if well_since is not None and now - well_since >= SETTLED_S and memory.tries:
        return replace(memory, tries=(), next_at=0.0, dashboard_at=0.0)
    return memory


def well(seen: Seen) -> bool:
    """Every part of the head is there."""
    return seen.gcs and seen.raylet and seen.dashboard


def decide(memory: Memory, seen: Seen, now: float, limits: Limits) -> Next:
    """What to do at this time."""
    found = _wanted(memory, seen, now, limits)
    at = memory.dashboard_at if found.remedy is Remedy.DASHBOARD else memory.next_at
    return found if found.remedy is not None and now >= at else Next(None, found.why)


def _wanted(memory: Memory, seen: Seen, now: float, limits: Limits) -> Next:
    if not seen.raylet:
        return Next(Remedy.HEAD, "the head's raylet is gone" if seen.gcs else "GCS and head raylet are gone")
    hung = [part for part, since in memory.silent_since.items() if now - since >= limits.hang_s]
    if "raylet" in hung:
        return Next(Remedy.HEAD, f"the head's raylet has not answered for {limits.hang_s:g} s")
    if not seen.gcs or "gcs" in hung:
        why = f"the GCS has not answered for {limits.hang_s:g} s" if seen.gcs else "the GCS is gone"
        again = memory.tries.count(Remedy.GCS) >= PART_TRIES or Remedy.HEAD in memory.tries
        return Next(Remedy.HEAD if again else Remedy.GCS, why)
    if not seen.dashboard:
        return Next(Remedy.DASHBOARD, "Ray's dashboard is gone")
    if memory.unready_since is not None and now - memory.unready_since >= limits.ready_s:
        return Next(Remedy.DEPLOY, f"the agent has not been ready for {limits.ready_s:g} s")
    return Next()


def tried(memory: Memory, remedy: Remedy, now: float, *, ok: bool) -> Memory:
    """A remedy has been tried: the next one waits for its turn, and the agent gets its time to come up."""
    tries = (*memory.tries, remedy)
    same = sum((other is Remedy.DASHBOARD) == (remedy is Remedy.DASHBOARD) for other in tries)
    wait_s = BACKOFF_S[min(same, len(BACKOFF_S) - 1)]
    if remedy is Remedy.DASHBOARD:  # nobody who does not answer was helped by it
        return replace(memory, tries=tries, dashboard_at=now + wait_s)
    if remedy is Remedy.DEPLOY:
        wait_s = max(wait_s, 15.0)
    unready = now if ok and remedy in (Remedy.HEAD, Remedy.DEPLOY) else memory.unready_since
    return replace(memory, tries=tries, next_at=now + wait_s, silent_since={}, unready_since=unready)
