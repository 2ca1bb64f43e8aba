"""Are the ports this cluster needs free, and if not, who holds them?

Looks only; the owner of a port is found by the host's own look at its processes.
"""

import contextlib
import errno
import socket
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from config.settings import Settings

# Ray gives workers ports of 10002 to 19999 and refuses a Ray Client port among them.
CLIENT_PORT = 10_001
CLIENT_PORTS = range(20_001, 20_200)


@dataclass(frozen=True, slots=True)
class Need:
    """A port, the key that sets it, and the address it will be bound to."""

    port: int
    key: str
    address: str


def needs(settings: Settings, *, head_runs: bool, app_answers: bool) -> list[Need]:
    """The ports that have to be free before anything is started."""
    found = []
    if not head_runs:
        found.append(Need(settings.ray.port, "ray.port", "0.0.0.0"))  # noqa: S104 - where Ray's GCS listens
        found.append(Need(settings.ray.dashboard_port, "ray.dashboard_port", "127.0.0.1"))
    if not app_answers:
        found.append(Need(settings.http.port, "http.port", settings.http.host))
    return found


def is_free(address: str, port: int) -> bool:
    """Whether nobody listens there; an address that is not this machine's counts as free."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with contextlib.closing(socket.socket(family, socket.SOCK_STREAM)) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address, port))
            probe.listen(1)
        except OSError as error:
            return error.errno != errno.EADDRINUSE
    return True


def client_port() -> int:
    """A port for the Ray Client server: Ray's own choice, or another where some other Ray has that."""
    free = (port for port in (CLIENT_PORT, *CLIENT_PORTS) if is_free("0.0.0.0", port))  # noqa: S104
    return next(free, CLIENT_PORT)


def taken(
    wanted: list[Need],
    owner: Callable[[int], Mapping[str, Any] | None],
    *,
    ours: Callable[[Mapping[str, Any]], bool],
    left: Callable[[Mapping[str, Any]], bool],
) -> Iterator[str]:
    """A sentence for each port that something else holds.

    Args:
        wanted: The ports.
        owner: Who listens on a port of this machine: pid, name and user, or None.
        ours: Whether such an owner belongs to this very cluster, and need not be ended by a person.
        left: Whether it is what an interrupted start of this cluster left.
    """
    for need in wanted:
        if is_free(need.address, need.port):
            continue
        holder = owner(need.port)
        if holder is None:
            who = "a process that this user may not see"
        elif ours(holder):
            continue
        else:
            who = f"pid {holder['pid']} ({holder['name']}, user {holder['user']})"
        if holder is not None and left(holder):
            yield (
                f"port {need.port} ({need.key}) is taken by {who}, which an interrupted start "
                "of this cluster left: stop.py ends it"
            )
            continue
        if holder is not None and holder["name"] == "gcs_server":
            who += ", another Ray and not this cluster"
        yield f"port {need.port} ({need.key}) is taken by {who}: stop that, or set {need.key} to another port"
