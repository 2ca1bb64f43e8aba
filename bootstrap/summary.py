"""What `start` says at its end: the tuning in force, the nodes, and what to try next.

Reads the running head's own command line, because only that proves what Ray was given.
"""

import shlex
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bootstrap import health
from bootstrap.progress import Output
from config import tuning
from config.paths import StatePaths
from config.settings import Settings


@dataclass(frozen=True, slots=True)
class NodeLine:
    """One node in the table at the end."""

    name: str
    host: str
    role: str
    state: str
    gpus: str
    note: str


def show_tuning(output: Output, settings: Settings, in_force: Mapping[str, Any] | None) -> bool:
    """The table of the tuning.

    Returns:
        Whether what is in force is what was asked for.
    """
    plan = tuning.plan(settings.ray)
    got = in_force or {}
    rows = [
        (f"{row.asked} = {row.asked_value}", row.reads, str(got.get(row.reads, "?")), row.effect)
        for row in plan.rows
    ]
    output.table("Tuning", ("asked", "what Ray reads", "in force", "effect"), rows)
    output.line(
        f"By itself Ray then notices a killed raylet after {_window(plan.killed)} and a silent node after "
        f"{_window(plan.silent)}; the agent needs about a second for the first and "
        f"{settings.agent.hang_s:g} s for a hung one."
    )
    if in_force is None:
        output.error("the tuning in force could not be read from the running GCS")
        return False
    wrong = {name: value for name, value in plan.system_config.items() if got.get(name) != value}
    for name, value in wrong.items():
        output.error(f"{name} is {got.get(name, 'not set')} in the running cluster, {value} was asked for")
    return not wrong


def node_lines(
    settings: Settings, body: Mapping[str, Any] | None, notes: Mapping[str, str]
) -> list[NodeLine]:
    """One line for each node of the file; `notes` says what this start did or could not do there."""
    seen = {node["name"]: node for node in (body or {}).get("nodes", [])}
    lines = []
    for node in settings.nodes:
        known = seen.get(node.name, {})
        gpus = known.get("gpus") or {}
        count = "-" if gpus.get("registered") is None else str(gpus["registered"])
        state = known.get("state", "?")
        lines.append(NodeLine(node.name, node.host, node.role, state, count, notes.get(node.name, "")))
    return lines


def show_nodes(output: Output, lines: Iterable[NodeLine]) -> None:
    """The table of the nodes."""
    output.table(
        "Nodes",
        ("name", "host", "role", "state", "GPUs", "this start"),
        [(line.name, line.host, line.role, line.state, line.gpus, line.note) for line in lines],
    )


def show_next(
    output: Output,
    settings: Settings,
    state: StatePaths,
    *,
    config: str | None,
    project: Path,
    pids: Mapping[str, int],
) -> None:
    """Commands to try next, with the paths of this installation and the raylets' own pids."""
    bin_folder = Path(sys.executable).parent
    flags = ["-c", config] if config else []
    grid_agent = str(bin_folder / "grid-agent")
    victim = next((node.name for node in settings.workers if node.name in pids), None)
    script = project / "bootstrap" / "stop.py"
    stop = [sys.executable, str(script)] if script.is_file() else [sys.executable, "-m", "bootstrap.stop"]
    rows = [
        ("the application", _command(bin_folder / "serve", "status", "-a", dashboard(settings))),
        ("the nodes", _command(grid_agent, "status")),
        ("the same as JSON", _command("curl", "-s", f"{health.url(settings)}/health")),
    ]
    if settings.auth == "token":
        rows.insert(0, ("first, for Ray's own tools", f'eval "$({_command(grid_agent, "env", *flags)})"'))
    if victim:
        rows.append(
            (f"kill {victim} and see it heal", _on_host(settings, victim, "kill", "-9", pids[victim]))
        )
    rows += [
        ("stop one node and keep it so", _command(*stop, *flags, "--node", victim or "NAME")),
        ("stop everything", _command(*stop, *flags)),
        ("logs", str(state.logs)),
    ]
    output.table("Try next", ("", ""), rows)


def dashboard(settings: Settings) -> str:
    """Where Ray's dashboard answers on this machine."""
    return f"http://127.0.0.1:{settings.ray.dashboard_port}"


def tail(path: Path, count: int = 12) -> Sequence[str]:
    """The last lines of a log that say something."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ()
    return [line.rstrip() for line in text.splitlines() if line.strip()][-count:]


def _command(*parts: object) -> str:
    return shlex.join([str(part) for part in parts])


def _on_host(settings: Settings, name: str, *command: object) -> str:
    """A command as a person here runs it on a worker's host."""
    node = next(node for node in settings.nodes if node.name == name)
    if settings.ssh is None:
        return _command(*command)
    user, port = node.ssh_user or settings.ssh.user, node.ssh_port or settings.ssh.port
    key = ["-i", settings.ssh.key_file] if settings.ssh.key_file else []
    known = ["-o", f"UserKnownHostsFile={settings.ssh.known_hosts_file}"]
    return _command("ssh", *key, *known, "-p", port, f"{user}@{node.host}", *command)


def _window(window: tuning.Window) -> str:
    return f"{window.earliest_s:g} to {window.latest_s:g} s"
