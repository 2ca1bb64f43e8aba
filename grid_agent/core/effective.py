"""What somebody asked of Ray -> what is in force: the name Ray reads, its value, where that came from.

Pure. Ray takes a setting from `--system-config` of the head, which every node of the cluster takes over, else
from the RAY_ variable of the process itself, else its default (ray/_private/node.py, `_resolve_ray_config`).
"""

import difflib
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from config import ray_names, tuning
from config.paths import StatePaths
from config.ray_settings import FOR_CLIENTS, HEAD, KNOWN, SET_BY_RAY
from config.settings import Node, RayConfig, Settings
from grid_agent.core import raystart

Status = Literal["pass", "warn", "fail"]
Source = Literal["system-config", "env", "default", "unknown"]
PREFIX = "RAY_"
_SECRET = re.compile("TOKEN|PASSWORD|SECRET|KEY", re.IGNORECASE)
ENVIRONMENT = "environment"
OF_THE_GCS = "environment of the GCS"


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
        found.append(_row(Ask(name, None, "nobody"), name, (value, source), "pass", text))
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
    made = _row(Ask(name, row.asked_value, "file"), row.reads, (value, source), status, text)
    return replace(made, effect=row.effect)


def of_variables(
    settings: Settings | None, environ: Mapping[str, str], head: Head, installed: Installed
) -> list[Setting]:
    """Every RAY_ variable of this environment, of the nodes' `env` and of the running GCS.

    Left out are those that drivers and Ray's tools read here: they are in force where they stand.
    """
    found = [_of_shell(ask, head, installed) for ask in _asked(environ, ENVIRONMENT)]
    for node in settings.nodes if settings else ():
        found += [_of_node(ask, node, head, installed) for ask in _asked(node.env, f"env of {node.name}")]
    ours = _given_by_us(settings)
    gcs = (ask for ask in _asked(head.environ or {}, OF_THE_GCS) if ask.name not in ours)
    found += [_of_gcs(ask, head, installed) for ask in gcs]
    return [setting for setting in found if setting is not None]


def names(settings: Settings | None, environ: Mapping[str, str], head: Head) -> set[str]:
    """The variables of which `Installed.readers` must say who reads them."""
    nodes = (node.env for node in (settings.nodes if settings else ()))
    return {ask.name for where in (environ, *nodes, head.environ or {}) for ask in _asked(where, "")}


def _asked(environ: Mapping[str, str], where: str) -> list[Ask]:
    return [
        Ask(name, "(not shown)" if _SECRET.search(name) else value, where)
        for name, value in sorted(environ.items())
        if name.startswith(PREFIX) and name not in FOR_CLIENTS
    ]


def _given_by_us(settings: Settings | None) -> set[str]:
    """Variables of the head that nobody asked for, or that are reported with the file."""
    if settings is None:
        return set(SET_BY_RAY)
    nowhere = StatePaths(Path("/"))
    return {*SET_BY_RAY, *raystart.head_env(settings, {}, nowhere), *settings.head.env}


def _of_shell(ask: Ask, head: Head, installed: Installed) -> Setting | None:
    if _read_by_nobody(ask, installed):
        return _unread(ask, installed)
    if installed.readers[ask.name] == "Python":
        return None  # of a driver, and in force there
    now = in_force(ask.key, head, installed)
    how = "" if now[1] == "unknown" else f"; {now[0]} ({now[1]}) is in force"
    text = f"start.py hands no {PREFIX}* of the shell on{how}; set it under ray: or in env of a node"
    return _row(ask, ask.key, now, "warn", text)


def _of_node(ask: Ask, node: Node, head: Head, installed: Installed) -> Setting:
    if _read_by_nobody(ask, installed):
        return _unread(ask, installed)
    own = tuning.plan(RayConfig()).system_config
    if ask.key in (own if head.system_config is None else head.system_config):
        text = "has no effect: --system-config of the head wins; set it under ray:"
        return _row(ask, ask.key, in_force(ask.key, head, installed), "warn", text)
    if ask.key in KNOWN and KNOWN[ask.key].read_by == HEAD and node.role != "head":
        text = "has no effect: only the GCS reads it, which runs on the head"
        return _row(ask, ask.key, in_force(ask.key, head, installed), "warn", text)
    text = f"for the processes of {node.name}"
    return _row(ask, ask.key, (ask.value, "env"), "pass", text)


def _of_gcs(ask: Ask, head: Head, installed: Installed) -> Setting:
    if _read_by_nobody(ask, installed):
        return _unread(ask, installed)
    now = in_force(ask.key, head, installed)
    if now[1] == "system-config":
        text = f"has no effect: --system-config says {now[0]}, and wins"
        return _row(ask, ask.key, now, "warn", text)
    return _row(ask, ask.key, now, "pass", "in force in the GCS")


def _read_by_nobody(ask: Ask, installed: Installed) -> bool:
    return ask.name in ray_names.DEAD or installed.readers.get(ask.name) is None


def _unread(ask: Ask, installed: Installed) -> Setting:
    text = f"set in {ask.where}, but Ray {installed.version or 'here'} reads no such name"
    modern = ray_names.DEAD.get(ask.name)
    near = None if modern else next(iter(difflib.get_close_matches(ask.name, _KNOWN_NAMES, 1, 0.85)), None)
    advice = f"the setting of today is {modern}" if modern else "unset it"
    text += f"; did you mean {near}?" if near else f"; {advice}"
    return Setting(ask.name, ask.value, ask.where, None, None, "unknown", "nothing", "none", "warn", text)


_KNOWN_NAMES = sorted(f"{PREFIX}{key}" for key in {*KNOWN, *ray_names.INTEGERS, *ray_names.FLOATS})


def _row(ask: Ask, reads: str, now: tuple[int | str | None, Source], status: Status, detail: str) -> Setting:
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
