"""Who listens on which TCP port, and whether a gRPC server answers there."""

from __future__ import annotations

import contextlib
import ipaddress
import pwd
import socket
import sys
import time
from typing import Any

from grid_agent.edges.host.common import read_bytes_of
from grid_agent.edges.host.procs import all_pids, open_files, read_proc, uid_of

# RFC 9113, 3.4: a client says this and SETTINGS; a server's first frame is SETTINGS: so gRPC greets.
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes((0, 0, 0, 4, 0, 0, 0, 0, 0))
SETTINGS = 4


def ports_of(pid: int) -> list[int]:
    """The TCP ports on which a process listens, lowest first."""
    own = {target for _, target in open_files(pid)}
    return sorted(port for port, socket in listening_sockets(None).items() if socket in own)


def greet(address: str, port: int, timeout_s: float) -> tuple[str | None, str]:
    """Connects and waits for the first frame of an HTTP/2 server, as every gRPC server is.

    A stopped process has its connections accepted by the kernel, and says nothing. Answer: how it failed, in
    the words of `Miss` (None: it greeted), and a detail.
    """
    until = time.monotonic() + timeout_s
    got = b""
    try:
        with socket.create_connection((address, port), timeout_s) as line:
            line.sendall(PREFACE)
            while len(got) < 9:
                line.settimeout(max(0.001, until - time.monotonic()))
                more = line.recv(64)
                if not more:
                    return "not serving", f"port {port} hung up"
                got += more
    except ConnectionRefusedError:
        return "refused", f"port {port} refused"
    except TimeoutError:
        return "timed out", f"port {port} said nothing in {timeout_s:g} s"
    except ConnectionError as error:
        return "not serving", f"port {port}: {error.strerror}"
    except OSError as error:
        return "unreachable", f"{error.strerror or error} (port {port})"
    return (None, "") if got[3] == SETTINGS else ("not serving", f"port {port} speaks something else")


def _ip(text: str) -> str:
    """`0100007F` of /proc/net/tcp to `127.0.0.1`: words of four bytes in the host's byte order."""
    raw = bytes.fromhex(text)
    words = [raw[at : at + 4] for at in range(0, len(raw), 4)]
    address = ipaddress.ip_address(b"".join(w[::-1] if sys.byteorder == "little" else w for w in words))
    return str(getattr(address, "ipv4_mapped", None) or address)


def listening_sockets(host: str | None) -> dict[int, str]:
    """Port -> socket of every TCP listener (with `host`: of this address or of all addresses)."""
    found: dict[int, str] = {}
    for line in [
        row for name in ("tcp", "tcp6") for row in read_bytes_of(f"/proc/net/{name}").decode().splitlines()
    ]:
        fields = line.split()
        if fields[3] == "0A":
            address, _, port = fields[1].partition(":")
            if host is None or _ip(address) in (host, "0.0.0.0", "::"):  # noqa: S104
                found.setdefault(int(port, 16), f"socket:[{fields[9]}]")
    return found


def _owner(sockets: dict[str, int], socket: str) -> dict[str, Any]:
    proc = read_proc(sockets[socket]) if socket in sockets else None
    if proc is None:
        return {"pid": None}
    user: Any = uid_of(proc.pid)
    with contextlib.suppress(KeyError, TypeError):
        user = pwd.getpwuid(user).pw_name
    return {"pid": proc.pid, "name": proc.name, "cmdline": " ".join(proc.argv)[:120], "user": user}


def port_owner(request: dict[str, Any]) -> dict[str, Any]:
    """Who listens on each TCP port.

    Request: ports; optional host, an address. Answer: ports {"6379": {pid, name, cmdline, user}}, where a
    listener that another user hides is {pid: null}, and null says that nobody listens.
    """
    listeners = listening_sockets(request.get("host"))
    wanted = {int(port): listeners.get(int(port)) for port in request["ports"]}
    sought = {socket for socket in wanted.values() if socket}
    pids = all_pids() if sought else []
    sockets = {target: pid for pid in pids for _, target in open_files(pid) if target in sought}
    return {
        "ok": True,
        "ports": {str(port): socket and _owner(sockets, socket) for port, socket in wanted.items()},
    }
