"""Starts exactly one raylet, under its lock, unless it runs already; names what went wrong."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from grid_agent.edges.host.common import POLL_S, TAIL_CHARS, HostError, expanded, last_lines
from grid_agent.edges.host.locks import Held, locked
from grid_agent.edges.host.parts import chosen, hidden_raylets, row_of
from grid_agent.edges.host.procs import Proc, process_table
from grid_agent.edges.host.starter import (
    Starter,
    check_versions,
    end_session,
    exit_code,
    reap,
)

SETTLE_S = 1.0  # for a raylet that is just beginning or just ending, and shows no arguments
FAILURE_LINES = 8  # of a failure that has a name
# What `ray start` says -> the name of the failure, and what to do. None of them goes away by trying again.
FAILURES = (
    (
        ("Version mismatch",),
        "version",
        "Ray and Python, to the last digit, must be those of the head: install them, or set ssh.ray_bin.",
    ),
    (
        (
            "UNAUTHENTICATED",
            "Unauthenticated",
            "InvalidAuthToken",
            "AuthenticationError",
            "uthentication token",
        ),
        "auth",
        "This host's Ray token is not the cluster's: stop.py, then start.py, gives every node the same.",
    ),
    (
        ("certificate is not yet valid", "certificate has expired"),
        "clock",
        "The clocks of this host and of the head differ: set them, with chrony or systemd-timesyncd.",
    ),
    (
        ("No space left on device", "Disk quota exceeded", "Read-only file system"),
        "disk",
        "Free some space there, or set temp_dir of this node to a folder on another disk.",
    ),
    (
        ("No such option", "Invalid value for", "unexpected extra argument", "invalid choice"),
        "config",
        "`ray start` does not take what the cluster file makes of this node: change that, or Ray's version.",
    ),
)


def _conclusion(lines: str, log: str) -> str:
    """What a traceback ends with, and where the rest is; other lines as they are."""
    rows = lines.splitlines()
    frames = [number for number, row in enumerate(rows) if row.lstrip().startswith('File "')]
    if not frames:
        return lines
    after = rows[frames[-1] + 1 :]
    words = next((after[number:] for number, row in enumerate(after) if row[:1] not in (" ", "")), after)
    return "\n".join([*words, f"(the whole of it: {log} on that host)"])


def _failed(lines: str, code: int | None, log: str) -> HostError:
    """The failure that the last lines of `ray start` name, with what they come to."""
    told = _conclusion(lines, log)
    for signs, error, advice in FAILURES:
        if any(sign in lines for sign in signs):
            said = "\n".join(told.splitlines()[-FAILURE_LINES:])
            return HostError(error, f"{advice}\n{said}"[:TAIL_CHARS], code=code)
    said = told or f"The command ended with code {code} and said nothing."
    return HostError("start_failed", said, code=code)


def _launch(starter: Starter, wanted: dict[str, Any], timeout_s: float) -> Proc:
    if starter.request.get("expect"):
        check_versions(starter.argv[0], starter.env, starter.request["expect"])
    child = starter.go()
    born: list[Proc] = []
    try:
        code = exit_code(child.pid, timeout_s)
        born = chosen(process_table(), wanted, wanted["node_name"], None) if code == 0 else []
        if born:
            return max(born, key=lambda proc: proc.start)
    finally:
        if not born:
            end_session(child.pid)
        reap(child)
    lines = last_lines(starter.log)
    if code is None:
        late = f"Not up within {timeout_s} s; what this start had brought up was ended."
        raise HostError("timeout", f"{late} {lines}".strip())
    if code == 0:
        lines = f"The command said that it had succeeded, but no such raylet runs. {lines}"
    raise _failed(lines, code, starter.log)


def refuse_stopped(path: str) -> None:
    """Raises HostError when the file is there that says a person stopped the node."""
    if Path(expanded(path)).exists():
        detail = f"A person stopped this node ({path}); nothing was started. start.py brings it back."
        raise HostError("stopped", detail)


def _settled() -> dict[int, Proc]:
    """The processes, as soon as every raylet among them shows its arguments, at the latest after SETTLE_S."""
    until = time.monotonic() + SETTLE_S
    table = process_table()
    while hidden_raylets(table) and time.monotonic() < until:
        time.sleep(POLL_S)
        table = process_table()
    return table


def _refuse_second(wanted: dict[str, Any]) -> None:
    """Raises HostError when a raylet of this name runs, or one runs that may be it."""
    table = _settled()
    name, running = wanted["node_name"], chosen(table, wanted, wanted["node_name"], None)
    if running:
        words = f"A raylet named {name} of {wanted['gcs_address']} runs here already"
        raise HostError("already_running", f"{words}, pid {running[0].pid}.", raylet=row_of(running[0]))
    unsure = ", ".join(str(proc.pid) for proc in hidden_raylets(table))
    if unsure:
        words = f"A raylet runs here that does not show whose it is (pid {unsure})"
        raise HostError(
            "unsure", f"{words}: it may be {name}, so none was started. End it if it is not needed."
        )


def start(request: dict[str, Any], held: Held = (), starter: Starter | None = None) -> dict[str, Any]:
    """Starts one raylet with exactly this command and environment, under a lock, unless it runs already.

    Request: argv, env, log and lock (paths), timeout_s, node_name, gcs_address; optional lock_wait_s (5),
    inherit (names of variables taken from this login where env does not give them), expect {ray, python} (the
    head's versions), unless (a file: where it exists a person stopped the node), program (`ray_start`, run in
    place of the command where that is Ray's own entry point). A leading `~/` is this host's home folder in
    paths, argv[0], --temp-dir and the values of env. Answer: raylet (as in `look`), took_s. Errors: busy,
    stopped, already_running (with raylet), unsure (a raylet hides whose it is), no_ray, version, auth, disk,
    timeout, start_failed (the last lines of its output, and code). After an error nothing of this start is
    left.
    """
    began, timeout_s = time.monotonic(), float(request["timeout_s"])
    wanted = {"gcs_address": request["gcs_address"], "node_name": request["node_name"]}
    if not request["lock"]:
        raise HostError("bad_request", "To start a raylet, give its lock.")
    with locked(request, held, needed=True) as locks:
        if request.get("unless"):
            refuse_stopped(request["unless"])
        _refuse_second(wanted)
        own = starter if starter is not None and starter.request is request else Starter(request, locks)
        raylet = _launch(own, wanted, timeout_s)
        return {"ok": True, "raylet": row_of(raylet), "took_s": round(time.monotonic() - began, 3)}
