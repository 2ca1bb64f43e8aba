"""The GCS as a process of this machine: what it was given as settings, and its own environment.

Reads /proc only. Of another user's process only the command line can be read.
"""

import base64
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CONFIG_LIST = "--config_list="


@dataclass(frozen=True, slots=True)
class GcsProcess:
    """One running gcs_server: what `--system-config` gave it, and its RAY_ variables; None: not readable."""

    pid: int
    config: Mapping[str, Any] | None
    environ: Mapping[str, str] | None


def config_list(cmdline: bytes) -> dict[str, Any] | None:
    """What a GCS was given as its settings.

    Args:
        cmdline: The content of `/proc/<pid>/cmdline`.

    Returns:
        Names and values, None when the command line does not hold them.
    """
    for part in cmdline.decode(errors="replace").split("\0"):
        if part.startswith(CONFIG_LIST):
            try:
                found = json.loads(base64.b64decode(part.removeprefix(CONFIG_LIST)))
            except ValueError:
                return None
            return found if isinstance(found, dict) else None
    return None


def find(port: int, proc: Path = Path("/proc")) -> GcsProcess | None:
    """The GCS on this machine that serves `port`; None when there is none."""
    for folder in proc.iterdir():
        if not folder.name.isdigit():
            continue
        try:
            cmdline = (folder / "cmdline").read_bytes()
        except OSError:
            continue  # it has ended meanwhile
        parts = cmdline.split(b"\0")
        if Path(parts[0].decode(errors="replace")).name == "gcs_server" and (
            f"--gcs_server_port={port}".encode() in parts
        ):
            return GcsProcess(int(folder.name), config_list(cmdline), _environ(folder))
    return None


def _environ(folder: Path) -> dict[str, str] | None:
    try:
        rows = (folder / "environ").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return None
    pairs = (row.partition("=") for row in rows if row.startswith("RAY_"))
    return {name: value for name, _, value in pairs}
