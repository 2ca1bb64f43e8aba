"""The keeper as a systemd service, so that the head comes back after a reboot.

`render` is pure; `install` writes one file and calls systemctl. Called by `start` with `--systemd`, and by
whoever starts the keeper where that file is there.
"""

import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

TEMPLATE = Path(__file__).parent / "systemd" / "grid-agent-keeper.service"
RUNNING = Path("/run/systemd/system")  # there exactly while systemd is the init (sd_booted(3))
SYSTEM = Path("/etc/systemd/system")
CALL_S = 30.0


class UnitError(Exception):
    """The unit cannot be installed; the text says what to do."""


def absent() -> str | None:
    """Why there can be no unit here, None where there can."""
    if RUNNING.is_dir():
        return None
    return (
        "--systemd: systemd does not run on this machine, so nothing would start the keeper after a reboot; "
        "leave --systemd out, and start start.py from what starts services here"
    )


def name(cluster: str) -> str:
    """The unit of a cluster's keeper."""
    return f"grid-agent-keeper-{cluster}.service"


def path(cluster: str, uid: int, environ: Mapping[str, str]) -> Path:
    """Where the unit's file is: the system's for root, else the user's own."""
    if uid == 0:
        return SYSTEM / name(cluster)
    base = environ.get("XDG_CONFIG_HOME") or str(Path(environ.get("HOME", "/"), ".config"))
    return Path(base, "systemd", "user", name(cluster))


def render(plan: Mapping[str, Any], plan_file: Path, *, system: bool) -> str:
    """The unit's text.

    Args:
        plan: The keeper's plan (`keeper_plan.make`).
        plan_file: Where that plan is.
        system: For the system's manager, not a user's.
    """
    how = plan["keeper"]
    environment = "\n".join(
        f"Environment={_quoted(f'{key}={value}')}" for key, value in sorted(how["env"].items())
    )
    values = {
        "CLUSTER": plan["cluster"],
        "PLAN": str(plan_file).replace("%", "%%"),
        "COMMAND": " ".join(_quoted(word, command=True) for word in how["argv"]),
        "ENVIRONMENT": environment,
        "TARGET": "multi-user.target" if system else "default.target",
    }
    text = TEMPLATE.read_text(encoding="utf-8")
    for key, value in values.items():
        text = text.replace(f"@{key}@", value)
    return text


def _quoted(word: str, *, command: bool = False) -> str:
    """One word as systemd reads it (systemd.syntax(7), systemd.service(5): % and, in commands, $)."""
    escaped = word.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%")
    return f'"{escaped.replace("$", "$$") if command else escaped}"'


def install(plan: Mapping[str, Any], plan_file: Path, environ: Mapping[str, str]) -> Path:
    """Write the unit and enable it for the next boot.

    Raises:
        UnitError: It cannot be written, or systemctl refuses.
    """
    uid = os.getuid()
    file = path(plan["cluster"], uid, environ)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(render(plan, plan_file, system=uid == 0), encoding="utf-8")
        file.chmod(0o644)
    except OSError as error:
        raise UnitError(f"cannot write {file}: {error.strerror}") from None
    _systemctl(uid, ["daemon-reload"])
    _systemctl(uid, ["enable", file.name])
    return file


def start(cluster: str, environ: Mapping[str, str]) -> bool:
    """Start the keeper by its unit, where one is installed and systemd runs; whether it was."""
    uid = os.getuid()
    if absent() or not path(cluster, uid, environ).is_file():
        return False
    try:
        _systemctl(uid, ["start", name(cluster)])
    except UnitError:
        return False
    return True


def _systemctl(uid: int, words: Sequence[str]) -> None:
    argv = ["systemctl", *([] if uid == 0 else ["--user"]), *words]
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=CALL_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UnitError(f"cannot run {' '.join(argv)}: {error}") from None
    if done.returncode:
        raise UnitError(f"{' '.join(argv)} failed: {done.stderr.strip()[-300:]}")
