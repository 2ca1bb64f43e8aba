"""What one sweep of a node's GPUs shows, and what is believed of them: immutable values, part of `model`.

Vendor-neutral. Decides nothing; `gpus` does.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any


class Reading(StrEnum):
    """How the last attempt to read the GPUs went."""

    OFF = "off"
    WAITING = "waiting"  # not asked yet, or the first answer is under way
    OK = "ok"
    FAILED = "failed"  # the reader crashed
    HANGS = "hangs"  # no answer before the deadline; the reader was ended
    STUCK = "stuck"  # the reader cannot even be ended


class Library(StrEnum):
    """What the vendor's library said when it was opened."""

    OK = "ok"
    ABSENT = "absent"  # no such software: a CPU node
    NOT_LOADED = "not loaded"  # the library is there, the driver is not
    MISMATCH = "mismatch"  # they are of different versions
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU as its driver shows it. `error` says why it does not answer; None: not told by this GPU."""

    index: int
    uuid: str
    name: str = ""
    bus_id: str = ""
    memory_mb: int = 0
    error: str = ""
    temperature_c: int | None = None
    slowdown_c: int | None = None  # the temperature at which it slows down
    throttled: tuple[str, ...] = ()
    ecc_uncorrectable: int | None = None  # since the driver was loaded or the GPU reset
    remap_pending: bool = False  # rows to remap, or pages to retire, at the next reset
    remap_failed: bool = False
    unusable: str = ""  # why no CUDA context could be made; "" also where nobody tried


@dataclass(frozen=True, slots=True)
class GpuEvent:
    """The newest error event of one kind on one GPU in one boot, for NVIDIA an XID; `text` as last logged.

    A fault is often a hundred lines. `times` says when each burst of them began, oldest first.
    """

    bus_id: str
    number: int
    at: float
    text: str = ""
    boot_id: str = ""
    times: tuple[float, ...] = ()

    @property
    def kind(self) -> tuple[str, str, int]:
        """What is kept once, however often it comes."""
        return self.boot_id, self.bus_id, self.number


@dataclass(frozen=True, slots=True)
class Holder:
    """A process that holds GPU memory. `why`: nobody is in charge of it, because."""

    pid: int
    uuid: str
    memory_mb: int
    name: str = ""
    owner: str = ""
    age_s: float = 0.0
    start_ticks: int = 0
    node_id: str = ""  # of the raylet that it belongs or belonged to
    why: str = ""


@dataclass(frozen=True, slots=True)
class Sweep:
    """One look at all GPUs of a node."""

    number: int = 0
    state: Reading = Reading.WAITING
    detail: str = ""
    library: Library = Library.ABSENT
    driver: str = ""
    boot_id: str = ""
    took_ms: float = 0.0
    gpus: tuple[Gpu, ...] = ()
    usable: int | None = None  # on how many a CUDA context could be made; None: not tried
    events: tuple[GpuEvent, ...] = ()
    holders: tuple[Holder, ...] = ()
    kernel_log: str = ""  # why it could not be read
    hardware: tuple[str, ...] = ()  # whose accelerators the PCI bus shows

    @property
    def seen(self) -> int | None:
        """How many GPUs answer; None while unknown."""
        if self.state is not Reading.OK:
            return None
        return sum(not gpu.error for gpu in self.gpus)


class Finding(StrEnum):
    """What can be wrong with a node's GPUs, in the words people read."""

    MISSING = "missing"
    APPEARED = "appeared"
    REPLACED = "replaced"
    NOT_REGISTERED = "not registered"
    NOT_SEEN = "registered but not seen"
    NOT_LOADED = "driver not loaded"
    MISMATCH = "driver/library mismatch"
    FAILED = "cannot be read"
    HANGS = "driver hangs"
    STUCK = "driver stuck in the kernel"
    UNUSABLE = "unusable"
    EVENT = "driver error"
    ECC = "uncorrectable memory errors"
    REMAP_PENDING = "memory repair waits for a reset"
    REMAP_FAILED = "memory repair failed"
    HOT = "too hot"
    THROTTLED = "throttled by the hardware"
    ORPHAN = "memory held by an orphan"
    DEGRADED = "degraded"


@dataclass(frozen=True, slots=True)
class Found:
    """One finding. `key` stays the same while it stands, whatever its text; `help` is what cures it."""

    what: Finding
    key: str
    text: str
    uuid: str = ""  # "" for the node as a whole
    help: str = ""


@dataclass(frozen=True, slots=True)
class Recurrence:
    """When the finding with this key began, each time, oldest first."""

    key: str
    times: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class GpuBelief:
    """What is believed of a node's GPUs, over all its incarnations.

    `accepted` is the inventory with which its raylet was started; what differs from it is a finding.
    """

    accepted: tuple[Gpu, ...] = ()
    accepted_by: str = ""  # the node id of that raylet
    changed: tuple[Found, ...] = ()  # how it differs from the inventory before: told once
    events: tuple[GpuEvent, ...] = ()
    recurred: tuple[Recurrence, ...] = ()
    forgiven_at: float = 0.0  # a person had the node in hand then: earlier events are dealt with
    # One entry a sweep in a row for each GPU throttled; orphans and name of the last sweep. Not stored.
    throttled: tuple[str, ...] = field(default=(), compare=False, metadata={"transient": True})
    orphans: tuple[int, ...] = field(default=(), compare=False, metadata={"transient": True})
    swept: str = field(default="", compare=False, metadata={"transient": True})
    excluded: tuple[str, ...] = ()  # UUIDs that the next start leaves out
    drained_id: str = ""  # the incarnation that was told to take no new work
    drained_at: float | None = None
    before_drain: tuple[str, ...] = ()  # what was left out until then, should Ray refuse
    well_since_at: float | None = None  # since when a GPU left out may come back
    refused: str = ""  # why the policy could not be carried out, as last said
    found: tuple[Found, ...] = ()
    shown: tuple[Found, ...] = ()  # what the incident tells of
    incident_id: int | None = None


def sweep_of(raw: Mapping[str, Any]) -> Sweep:
    """The report of the probe as a Sweep. Raises KeyError, TypeError or ValueError on another shape."""
    boot_id = str(raw.get("boot_id", ""))
    gpus = ({**g, "throttled": tuple(g.get("throttled", ()))} for g in raw.get("gpus", ()))
    return Sweep(
        number=int(raw.get("number", 0)),
        state=Reading(raw["state"]),
        detail=str(raw.get("detail", "")),
        library=Library(raw.get("library", "absent")),
        driver=str(raw.get("driver", "")),
        boot_id=boot_id,
        took_ms=float(raw.get("took_ms", 0.0)),
        gpus=tuple(Gpu(**g) for g in gpus),
        usable=None if raw.get("usable") is None else int(raw["usable"]),
        events=tuple(
            GpuEvent(**{**e, "times": tuple(e["times"])}, boot_id=boot_id) for e in raw.get("events", ())
        ),
        holders=tuple(Holder(**h) for h in raw.get("holders", ())),
        kernel_log=str(raw.get("kernel_log", "")),
        hardware=tuple(raw.get("hardware", ())),
    )
