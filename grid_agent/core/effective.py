"""What somebody asked of Ray -> what is in force: the name Ray reads, its value, where that came from.

Pure. Ray takes a setting from `--system-config` of the head, which every node of the cluster takes over, else
from the RAY_ variable of the process itself, else its default (ray/_private/node.py, `_resolve_ray_config`).
"""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from config import ray_names, tuning
from config.ray_settings import KNOWN
from config.settings import Settings

Status = Literal["pass", "warn", "fail"]
Source = Literal["system-config", "env", "default", "unknown"]
PREFIX = "RAY_"


@dataclass(frozen=True, slots=True)
class Head:
    """What could be read of the running head; None where it could not.

    `system_config` and `environ` are what its GCS was given; `running` whether one answers at all.
    """

    running: bool
    system_config: Mapping[str, Any] | None = None
    environ: Mapping[str, str] | None = None


@dataclass(frozen=True, slots=True)
class Installed:
    """The Ray of this machine: version, defaults its binary told, who reads a variable (None: nobody)."""

    version: str | None = None
    defaults: Mapping[str, int] = field(default_factory=dict)
    readers: Mapping[str, str | None] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Setting:
    """One thing asked for (`asked` None: nobody asked), and what became of it; `in_force` None: unknown."""

    name: str
    asked: int | str | None
    asked_in: str
    reads: str | None
    in_force: int | str | None
    source: Source
    read_by: str
    effect: str
    status: Status
    detail: str

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def in_force(name: str, head: Head, installed: Installed) -> tuple[int | str | None, Source]:
    """The value of one setting in the running head, and where it came from."""
    if not head.running:
        return None, "unknown"
    if head.system_config is not None and name in head.system_config:
        return head.system_config[name], "system-config"
    if head.system_config is None or head.environ is None:
        return None, "unknown"
    if PREFIX + name in head.environ:
        text = head.environ[PREFIX + name]
        return int(text) if name in ray_names.INTEGERS and text.strip().lstrip(
            "+-"
        ).isdigit() else text, "env"
    if name in installed.defaults:
        return installed.defaults[name], "default"
    return (KNOWN[name].default, "default") if name in KNOWN else (None, "unknown")


@dataclass(frozen=True, slots=True)
class Ask:
    """What was asked: a RAY_ variable (or a key of the file), its value, and where it stands."""

    name: str
    value: int | str | None
    where: str

    @property
    def key(self) -> str:
        """The setting's name without RAY_."""
        return self.name.removeprefix(PREFIX)


def of_file(settings: Settings, head: Head, installed: Installed) -> list[Setting]:
    """The seven timeouts of `ray`, in the order of the file."""
    return [_mapped(row, head, installed) for row in tuning.plan(settings.ray).rows]


def of_cluster(head: Head, installed: Installed) -> list[Setting]:
    """What is in force of the settings that decide about a death, where no file asks for anything."""
    found = []
    for name in dict.fromkeys(tuning.READS.values()):
        value, source = in_force(name, head, installed)
        text = "could not be read" if source == "unknown" else f"{value} ({source}): {KNOWN[name].effect}"
        found.append(setting_of(Ask(name, None, "nobody"), name, (value, source), "pass", text))
    return found


def _mapped(row: tuning.Row, head: Head, installed: Installed) -> Setting:
    text, name = f"mapped to {row.reads} = {row.in_force}", f"ray.{row.asked}"
    value, source = in_force(row.reads, head, installed)
    status: Status = "pass"
    if not head.running:
        text += ", when the cluster starts; nothing runs now"
    elif source == "unknown":
        text += "; what the running head has could not be read"
    elif value == row.in_force:
        text += f" ({source}): {row.effect}"
    else:
        status = "fail"
        text += f", but {value} ({source}) is in force: stop.py, then start.py brings it to the file"
    made = setting_of(Ask(name, row.asked_value, "file"), row.reads, (value, source), status, text)
    return replace(made, effect=row.effect)


def setting_of(
    ask: Ask, reads: str, now: tuple[int | str | None, Source], status: Status, detail: str
) -> Setting:
    """What became of one ask; `now` is the value in force and where it came from."""
    about = KNOWN.get(reads)
    read_by = about.read_by if about else "the processes that have a use for it"
    effect = about.effect if about else "see Ray's ray_config_def.h"
    return Setting(ask.name, ask.value, ask.where, reads, *now, read_by, effect, status, detail)


def detection(head: Head, installed: Installed, settings: Settings | None) -> tuning.Detection | None:
    """The detection times of what is in force; of the file's plan where nothing runs; None where unknown."""
    if not head.running and settings is not None:
        return tuning.detection(*_three(tuning.plan(settings.ray).system_config))
    keys = ("health_check_period_ms", "health_check_timeout_ms", "health_check_failure_threshold")
    values = {key: in_force(key, head, installed)[0] for key in keys}
    if not all(isinstance(value, int) for value in values.values()):
        return None
    return tuning.detection(*_three(values))


def _three(values: Mapping[str, Any]) -> Iterator[int]:
    for key in ("health_check_period_ms", "health_check_timeout_ms", "health_check_failure_threshold"):
        yield int(values[key])


def needs_defaults(head: Head) -> bool:
    """Whether the binary has to be asked for its defaults: the head was not given all that decides."""
    return head.running and any(name not in (head.system_config or {}) for name in tuning.READS.values())
