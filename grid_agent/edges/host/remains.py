"""What belonged to a raylet that is gone: by its environment, arguments and open logs."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any, NamedTuple

from grid_agent.edges.host.parts import SCRIPTS, is_part, raylet_logs, raylets_of, session_dirs
from grid_agent.edges.host.procs import Proc, descendants, environ, writes_to


class Marks(NamedTuple):
    """By what the processes of a raylet are known once it is gone."""

    node_ids: set[str]
    pids: set[int]
    logs: set[str]


def marks_of(table: dict[int, Proc], request: dict[str, Any], raylets: Iterable[Proc]) -> Marks:
    """Marks of the raylets given, and of the one that the request names by node id and pid."""
    node_id, pid = request.get("node_id"), request.get("raylet_pid")
    marks = Marks({node_id} if node_id else set(), {pid} if pid else set(), set())
    for folder in session_dirs(table, request) if node_id else ():
        marks.logs.update(raylet_logs(folder, str(node_id)))
    for proc in raylets:
        marks.pids.add(proc.pid)
        marks.node_ids.update(filter(None, [proc.option("node_id")]))
        marks.logs.update(filter(None, map(proc.option, ("stdout_filepath", "stderr_filepath"))))
    return marks


def _why_remains(proc: Proc, marks: Marks) -> str | None:
    """Why this process belonged to one of those raylets, or None."""
    given = environ(proc.pid)
    if given.get("RAY_NODE_ID") in marks.node_ids:
        return "RAY_NODE_ID in its environment"
    if given.get("RAY_RAYLET_PID") in {str(pid) for pid in marks.pids}:
        return "RAY_RAYLET_PID in its environment"
    if proc.option("node-id") in marks.node_ids:
        return "--node-id among its arguments"
    # Ray's agents lose their environment to their new titles, but keep the raylet's output open.
    if marks.logs and is_part(proc) and writes_to(proc.pid, marks.logs.__contains__):
        return "writes to the raylet's log"
    return None


def remains_of(table: dict[int, Proc], marks: Marks, spared: set[int]) -> list[tuple[Proc, str]]:
    """Live processes of those raylets, except what descends from a raylet that is to live (`spared`)."""
    if not any(marks):
        return []
    kept = descendants(table, spared) | spared | {os.getpid()}
    marks = marks._replace(pids=marks.pids - spared)  # a pid used again by another raylet
    rows = [
        proc
        for pid, proc in table.items()
        if pid not in kept and not proc.ended and proc.program not in ("raylet", "gcs_server")
    ]
    return [(proc, why) for proc, why in ((proc, _why_remains(proc, marks)) for proc in rows) if why]


def holders_of(table: dict[int, Proc], request: dict[str, Any], spared: set[int]) -> list[Proc]:
    """What was seen to hold GPU memory while its raylet lived; it may have no marks, so by pid and start."""
    named = {(row["pid"], row["start_ticks"]) for row in request.get("holders", ())}
    kept = descendants(table, spared) | spared | {os.getpid()}
    return [p for p in table.values() if (p.pid, p.start) in named and p.pid not in kept and not p.ended]


def log_monitors(table: dict[int, Proc], request: dict[str, Any]) -> list[tuple[Proc, str]]:
    """This cluster's log monitors, if asked for and none of its raylets is left here to need one."""
    if not request.get("log_monitor") or raylets_of(table, request):
        return []
    rows = [proc for proc in table.values() if proc.runs(SCRIPTS[0]) and not proc.ended]
    why = "log monitor of this cluster, which has no raylet here"
    return [(proc, why) for proc in rows if proc.option("gcs-address") == request.get("gcs_address")]
