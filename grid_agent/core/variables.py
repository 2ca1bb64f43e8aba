"""Every RAY_ variable that somebody set -> whether anything reads it, and what is in force instead.

Pure. Three places: the shell of whoever asks, the `env` of the file's nodes, the environment of the GCS.
"""

import difflib
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from config import ray_names, tuning
from config.paths import StatePaths
from config.ray_settings import FOR_CLIENTS, HEAD, KNOWN, SET_BY_RAY
from config.settings import Node, RayConfig, Settings
from grid_agent.core import effective, raystart
from grid_agent.core.effective import PREFIX, Ask, Head, Installed, Setting, Source

ENVIRONMENT = "environment"
OF_THE_GCS = "environment of the GCS"
_SECRET = re.compile("TOKEN|PASSWORD|SECRET|KEY|HEADERS", re.IGNORECASE)
_STORE = ("RAY_gcs_storage", "RAY_gcs_storage_path")  # what `raystart.head_env` sets last


def of_variables(
    settings: Settings | None, environ: Mapping[str, str], head: Head, installed: Installed
) -> list[Setting]:
    """Every RAY_ variable of this environment, of the nodes' `env` and of the running GCS.

    Of the GCS those are left out that Ray or `start.py` put there, and those that are told with the file.
    """
    found = [_of_shell(ask, head, installed) for ask in _asked(environ, ENVIRONMENT)]
    for node in settings.nodes if settings else ():
        found += [_of_node(ask, node, head, installed) for ask in _asked(node.env, f"env of {node.name}")]
    others = _by_others(head.environ or {}, settings)
    found += [_of_gcs(ask, head, installed) for ask in _asked(others, OF_THE_GCS)]
    return found


def names(settings: Settings | None, environ: Mapping[str, str], head: Head) -> set[str]:
    """The variables of which `Installed.readers` must say who reads them."""
    nodes = (node.env for node in (settings.nodes if settings else ()))
    asked = {ask.name for where in (environ, *nodes, head.environ or {}) for ask in _asked(where, "")}
    return asked - FOR_CLIENTS


def _asked(environ: Mapping[str, str], where: str) -> list[Ask]:
    return [
        Ask(name, _shown(name, value), where)
        for name, value in sorted(environ.items())
        if name.startswith(PREFIX)
    ]


def _shown(name: str, value: str) -> str:
    return "(not shown)" if _SECRET.search(name) else value


def _now(ask: Ask, head: Head, installed: Installed) -> tuple[int | str | None, Source]:
    """What is in force of it in the head, and where that came from; no secret."""
    value, source = effective.in_force(ask.key, head, installed)
    return (_shown(ask.name, value) if isinstance(value, str) else value), source


def _by_others(environ: Mapping[str, str], settings: Settings | None) -> dict[str, str]:
    """What the GCS has beside the `env` of the file, and what Ray and `start.py` give to every head."""
    ours: dict[str, str] = raystart.head_env(settings, {}, StatePaths(Path("/"))) if settings else {}
    told = {*SET_BY_RAY, *FOR_CLIENTS, *_STORE, *(settings.head.env if settings else ())}
    return {name: value for name, value in environ.items() if name not in told and ours.get(name) != value}


def _of_shell(ask: Ask, head: Head, installed: Installed) -> Setting:
    if ask.name in FOR_CLIENTS:
        return _of_drivers(ask)
    if _read_by_nobody(ask, installed):
        return _unread(ask, installed)
    if installed.readers[ask.name] == "Python":
        return _of_drivers(ask)
    now = _now(ask, head, installed)
    how = "" if now[1] == "unknown" else f"; {now[0]} ({now[1]}) is in force"
    text = f"start.py hands no {PREFIX}* of the shell on{how}; set it under ray: or in env of a node"
    return effective.setting_of(ask, ask.key, now, "warn", text)


def _of_drivers(ask: Ask) -> Setting:
    """Read by the Python of whoever is started from this shell: in force where it stands."""
    made = effective.setting_of(
        ask, ask.key, (ask.value, "env"), "pass", "for drivers and Ray's tools that are started here"
    )
    return replace(made, read_by="drivers and Ray's tools", effect="see Ray's documentation")


def _of_node(ask: Ask, node: Node, head: Head, installed: Installed) -> Setting:
    if ask.name not in FOR_CLIENTS and _read_by_nobody(ask, installed):
        return _unread(ask, installed)
    own = tuning.plan(RayConfig()).system_config
    if ask.key in (own if head.system_config is None else head.system_config):
        text = "has no effect: --system-config of the head wins; set it under ray:"
        return effective.setting_of(ask, ask.key, _now(ask, head, installed), "warn", text)
    if ask.key in KNOWN and KNOWN[ask.key].read_by == HEAD and node.role != "head":
        text = "has no effect: only the GCS reads it, which runs on the head"
        return effective.setting_of(ask, ask.key, _now(ask, head, installed), "warn", text)
    if node.role == "head" and ask.name in _STORE:
        text = "has no effect: start.py sets it, to a store in the state folder"
        return effective.setting_of(ask, ask.key, _now(ask, head, installed), "warn", text)
    if node.role == "head" and head.running and head.environ is not None:
        return _of_running_head(ask, node, head.environ, head, installed)
    text = f"given to the processes of {node.name} when they start"
    text += "; what they have now could not be read" if head.running else "; nothing runs now"
    return effective.setting_of(ask, ask.key, (None, "unknown"), "pass", text)


def _of_running_head(
    ask: Ask, node: Node, environ: Mapping[str, str], head: Head, installed: Installed
) -> Setting:
    """A variable of the head's `env` beside the one that its GCS really has."""
    has = environ.get(ask.name)
    if has is None:
        now, text = _now(ask, head, installed), "the running head was started without it"
    else:
        value = _shown(ask.name, has)
        now, text = (value, "env"), f"the running head was started with {value}"
    if has == node.env[ask.name]:
        return effective.setting_of(
            ask, ask.key, now, "pass", f"in the environment of the GCS on {node.name}"
        )
    return effective.setting_of(
        ask, ask.key, now, "fail", f"{text}: stop.py, then start.py brings it to the file"
    )


def _of_gcs(ask: Ask, head: Head, installed: Installed) -> Setting:
    if _read_by_nobody(ask, installed):
        return _unread(ask, installed)
    now = _now(ask, head, installed)
    if now[1] == "system-config":
        text = f"has no effect: --system-config says {now[0]}, and wins"
        return effective.setting_of(ask, ask.key, now, "warn", text)
    return effective.setting_of(ask, ask.key, now, "pass", "in force in the GCS")


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
