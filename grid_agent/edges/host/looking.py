"""A look at a host: the raylets there, what dead ones have left, and how the host is."""

from __future__ import annotations

import os
import re
import time
from typing import Any

from grid_agent.edges.host.common import WORDS, expanded, read_bytes_of, size_of
from grid_agent.edges.host.last_words import bundle_of, within, words_of
from grid_agent.edges.host.locks import is_held
from grid_agent.edges.host.parts import chosen, hidden_raylets, is_forked, is_part, live_raylets, row_of
from grid_agent.edges.host.ports import greet, listening_sockets
from grid_agent.edges.host.procs import Proc, descendants, process_table, uptime_s
from grid_agent.edges.host.remains import Marks, log_monitors, marks_of, remains_of

LOOK_BYTES = 48 * 1024  # of a look's answer; whoever asks over SSH reads no more than 64 KiB
MOST_REMAINS = 100  # listed; that there are any is what counts
AGENT_TITLES = ("ray::DashboardAgent", "ray::RuntimeEnvAgent")  # beside the workers
NOT_BUSY = ("ray::IDLE", "ray::GridAgent", "ray::grid-agent: ")  # what waits, and what is the agent's own
GREET_S = 0.5


def _pressure(kind: str) -> float | None:
    found = re.search(rb"some avg10=([\d.]+)", read_bytes_of(f"/proc/pressure/{kind}"))
    return float(found.group(1)) if found else None


def _host() -> dict[str, Any]:
    memory = dict(re.findall(r"(MemTotal|MemAvailable):\s+(\d+) kB", read_bytes_of("/proc/meminfo").decode()))
    return {
        "load1": round(os.getloadavg()[0], 2),
        "cpus": os.cpu_count(),
        "mem_total_mb": int(memory.get("MemTotal", 0)) // 1024,
        "mem_available_mb": int(memory.get("MemAvailable", 0)) // 1024,
        "psi": {kind: _pressure(kind) for kind in ("cpu", "memory", "io")},
        "uptime_s": uptime_s(),
        "time": time.time(),
        "boot_id": read_bytes_of("/proc/sys/kernel/random/boot_id").decode().strip(),
    }


def _port(request: dict[str, Any]) -> dict[str, Any]:
    """Whether anybody listens on the raylet's port, and answers there, seen from its own host."""
    address, port = request.get("address"), request.get("port")
    if not address or not port:
        return {}
    listening = port in listening_sockets(None)
    how, _ = greet(address, port, GREET_S) if listening else ("refused", "")
    return {"port": {"port": port, "listening": listening, "greets": how is None}}


def _below(table: dict[int, Proc], raylet: Proc) -> dict[str, Any]:
    """Worker processes of a raylet, and the titles of those that have an actor or a task."""
    titles = [table[pid].argv[0] for pid in descendants(table, [raylet.pid]) if table[pid].argv]
    workers = sorted(title for title in titles if title.startswith("ray::") and title not in AGENT_TITLES)
    busy = [title[:40] for title in workers if not title.startswith(NOT_BUSY)]
    return {"workers": len(workers), "busy": busy[:WORDS]}


def look(request: dict[str, Any]) -> dict[str, Any]:
    """Raylets of one cluster on this host, what a dead one left behind, and how the host is.

    Request: gcs_address or gcs_port; node_name, node_id (either selects; neither: all); optional raylet_pid
    and session_dir of a raylet that may be gone, quiet_s (for how long nothing has been heard of it), address
    and port where it listened, log_monitor. Answer beside the lists and `host`: `port` {port, listening,
    greets}, and of a raylet that is gone `death`, `agent` and `oom`: the last words of its log, of its
    agent's and of the kernel's. A zombie is listed apart: it does not live, and it has no arguments left to
    tell whose it was. `unreadable` counts Ray processes that another user hides, `unsure` the raylets that do
    not show whose they are: one of them may be the one sought. With `lock` (of the node's start), `starting`
    tells whether a start or stop of it is under way; with `bundle`, `bundle` {files [{path, tail}], kernel}
    holds the ends of the logs.
    """
    starting = {"starting": is_held(expanded(request["lock"]))} if request.get("lock") else {}
    table = process_table()
    raylets = chosen(table, request, request.get("node_name"), request.get("node_id"))
    lives = any(proc.option("node_id") == request.get("node_id") for proc in raylets)
    gone = Marks(set(), set(), set()) if lives else marks_of(table, request, [])
    remains = [*remains_of(table, gone, live_raylets(table)), *log_monitors(table, request)]
    zombies = [proc for proc in table.values() if proc.comm == "raylet" and proc.ended]
    parts = [proc for proc in table.values() if is_part(proc)]
    hidden = [proc for proc in parts if not os.access(f"/proc/{proc.pid}/fd", os.R_OK)]
    answer = {
        "ok": True,
        "raylets": [
            {**row_of(proc), **_below(table, proc)} for proc in raylets if not is_forked(table, proc)
        ],
        "remains": [
            {"pid": p.pid, "start_ticks": p.start, "name": p.name, "why": why}
            for p, why in remains[:MOST_REMAINS]
        ],
        **starting,
        "zombies": [{"pid": p.pid, "start_ticks": p.start, "name": p.comm} for p in zombies],
        "host": _host(),
        **_port(request),
        **({} if lives else words_of(request)),
    }
    if request.get("bundle"):
        answer["bundle"] = within(LOOK_BYTES - size_of(answer), bundle_of(request))
    counts = {"unreadable": len(hidden), "unsure": len(hidden_raylets(table))}
    return {**answer, **{name: count for name, count in counts.items() if count}}
