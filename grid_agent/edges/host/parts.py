"""Which processes are Ray's own, and of which cluster and node. Never by a name pattern alone."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import socket
import threading
from pathlib import Path
from typing import Any

from grid_agent.edges.host.common import HostError, expanded
from grid_agent.edges.host.procs import Proc, process_table, uid_of, uptime_s, writes_to

RESOLVE_S = 1.0  # for one host name in another process's arguments
# Ray's own programs, as they stand in argv, and the titles they give themselves. Arguments alone do not make
# a process part of Ray: a driver or an editor may carry the same address or session directory.
SCRIPTS = (
    "/ray/_private/log_monitor.py",
    "/ray/autoscaler/_private/monitor.py",
    "/ray/dashboard/dashboard.py",
    "/ray/dashboard/agent.py",
    "/ray/_private/runtime_env/agent/main.py",
    "/ray/_private/workers/setup_worker.py",
    "/ray/_private/workers/default_worker.py",
)
TITLES = ("ray::", "ray-dashboard-")


def _addresses(host: str) -> set[str]:
    """The IP addresses of a host; none when its name says nothing here, or not in time."""
    with contextlib.suppress(ValueError):
        return {_plain(host)}
    found: set[str] = set()

    def ask() -> None:
        with contextlib.suppress(OSError, UnicodeError):
            found.update(_plain(str(row[4][0])) for row in socket.getaddrinfo(host, None))

    thread = threading.Thread(target=ask, daemon=True)  # a resolver without its servers waits for long
    thread.start()
    thread.join(RESOLVE_S)
    return set(found)


def _plain(address: str) -> str:
    """The one spelling of an IP address."""
    ip = ipaddress.ip_address(address.strip("[]").partition("%")[0])
    return str(getattr(ip, "ipv4_mapped", None) or ip)


def same_gcs(one: str | None, other: str) -> bool:
    """Whether both name the same port of the same host, however they spell the host."""
    if not one or one == other:
        return one == other
    (host, _, port), (host2, _, port2) = one.rpartition(":"), other.rpartition(":")
    return port == port2 and not _addresses(host).isdisjoint(_addresses(host2))


def raylets_of(table: dict[int, Proc], request: dict[str, Any]) -> list[Proc]:
    """Every live raylet of the cluster of this request."""
    address, port = request.get("gcs_address"), request.get("gcs_port")
    if not address and not port:
        raise HostError("bad_request", "The request names neither gcs_address nor gcs_port.")
    rows = [table[pid] for pid in sorted(live_raylets(table))]
    if address:
        return [proc for proc in rows if same_gcs(proc.option("gcs-address"), address)]
    return [proc for proc in rows if (proc.option("gcs-address") or "").endswith(f":{port}")]


def chosen(
    table: dict[int, Proc], request: dict[str, Any], name: str | None, node_id: str | None
) -> list[Proc]:
    """The cluster's raylets of this name, and the one of this node id; all when neither is given.

    Whole values: gpu1 is not gpu10. A node id is unique, so the address says nothing beside it.
    """
    own = raylets_of(table, request)
    if name is None and node_id is None:
        return own
    named = [proc for proc in own if name is not None and proc.option("node-name") == name]
    live = (table[pid] for pid in live_raylets(table) if node_id is not None)
    return [*named, *(proc for proc in live if proc.option("node_id") == node_id and proc not in named)]


def is_forked(table: dict[int, Proc], proc: Proc) -> bool:
    """It is its raylet's own child, about to become a worker: no second raylet."""
    above, mine = table.get(proc.ppid), proc.option("node_id")
    return (
        above is not None
        and above.program == "raylet"
        and mine is not None
        and above.option("node_id") == mine
    )


def hidden_raylets(table: dict[int, Proc]) -> list[Proc]:
    """Raylets whose arguments cannot be read, so that nobody can say whose they are."""
    return [proc for proc in table.values() if proc.comm == "raylet" and not proc.argv and not proc.ended]


def live_raylets(table: dict[int, Proc]) -> set[int]:
    """Raylets of any cluster on this host."""
    return {pid for pid, proc in table.items() if proc.program == "raylet" and not proc.ended}


def head_parts(gcs_address: str) -> dict[str, Proc]:
    """The parts of this cluster's head that run here: gcs, raylet, dashboard."""
    parts = [p for p in process_table().values() if not p.ended]
    return {
        name: proc
        for proc in parts
        for name, found in (
            ("gcs", proc.program == "gcs_server" and is_at(proc, gcs_address)),
            (
                "raylet",
                proc.program == "raylet"
                and "--head" in proc.argv
                and same_gcs(proc.option("gcs-address"), gcs_address),
            ),
            ("dashboard", proc.runs(SCRIPTS[2]) and proc.option("gcs-address") == gcs_address),
        )
        if found
    }


def row_of(proc: Proc) -> dict[str, Any]:
    """A raylet as an answer shows it."""
    return {
        "pid": proc.pid,
        "start_ticks": proc.start,
        "node_id": proc.option("node_id"),
        "node_name": proc.option("node-name"),
        "gcs_address": proc.option("gcs-address"),
        "node_ip": proc.option("node_ip_address"),
        "session_dir": proc.option("session_dir"),
        "head": "--head" in proc.argv,
        "uid": uid_of(proc.pid),
        "stat": proc.state,
        "age_s": round(max(0.0, uptime_s() - proc.start / os.sysconf("SC_CLK_TCK")), 2),
    }


def is_part(proc: Proc) -> bool:
    """Whether this is one of Ray's own programs."""
    if proc.program in ("raylet", "gcs_server") or proc.program.startswith(TITLES):
        return True
    return any(map(proc.runs, SCRIPTS)) or "ray.util.client.server" in proc.argv[1:5]


def is_at(proc: Proc, address: str | None) -> bool:
    """Whether a part of Ray belongs to the cluster whose GCS is at this address."""
    if not address:
        return False
    host, _, port = address.rpartition(":")
    if proc.program == "gcs_server":
        return proc.option("node-ip-address") == host and proc.option("gcs_server_port") == port
    if "ray.util.client.server" in proc.argv:
        return proc.option("address") == address
    return proc.option("gcs-address") == address


def session_dirs(table: dict[int, Proc], request: dict[str, Any]) -> set[str]:
    """Session directories of this cluster: the one given, and those that its processes here name."""
    own = [proc for proc in table.values() if is_part(proc) and is_at(proc, request.get("gcs_address"))]
    named = {proc.option("session_dir") or proc.option("session-dir") for proc in own}
    return {expanded(path).rstrip("/") for path in named | {request.get("session_dir")} if path}


def members(table: dict[int, Proc], request: dict[str, Any]) -> list[Proc]:
    """Ray's own live processes of this cluster, by its address and by its session directories."""
    parts = [proc for proc in table.values() if is_part(proc) and not proc.ended]
    folders = tuple(path + "/" for path in session_dirs(table, request))

    def inside(path: str) -> bool:
        return f"{path}/".startswith(folders)

    def in_session(proc: Proc) -> bool:
        if proc.option("gcs-address") not in (None, request["gcs_address"]):
            return False
        if any(inside(word.partition("=")[2]) for word in proc.argv if word.startswith("--")):
            return True
        # A dashboard module has lost its arguments and environment to its title, not its log file.
        return proc.program.startswith(TITLES) and writes_to(proc.pid, inside)

    at_address = (proc for proc in parts if is_at(proc, request["gcs_address"]))
    return [*at_address, *filter(in_session, parts if folders else ())]


def raylet_logs(session_dir: str, node_id: str) -> list[str]:
    """Output files of the raylet with this id: it writes the id into its first lines."""
    found = []
    for out in sorted(Path(expanded(session_dir), "logs").glob("raylet*.out")):
        with contextlib.suppress(OSError), out.open("rb") as file:
            if node_id.encode() in file.read(16384):
                found += [str(out), str(out.with_suffix(".err"))]
    return found
