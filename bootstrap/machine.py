"""Which machine is this: its address as Ray will see it, and whether a host of the file is this one."""

import os
import socket
import sys
from collections.abc import Mapping
from pathlib import Path

from bootstrap.plan import Here
from config import checks
from config.paths import StatePaths
from config.settings import Settings
from grid_agent.core import raystart

PROJECT = Path(__file__).resolve().parents[1]
# Nothing is sent there: connecting a datagram socket only asks the kernel which address of ours it would use.
OUTSIDE = ((socket.AF_INET, "8.8.8.8"), (socket.AF_INET6, "2001:4860:4860::8888"))


def outward_address() -> str:
    """The address by which this machine reaches others, as Ray finds it; loopback when there is none."""
    for family, host in OUTSIDE:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            try:
                probe.connect((host, 53))
                return str(probe.getsockname()[0])
            except OSError:
                continue  # no route of this family
    return "127.0.0.1"


def is_here(host: str) -> bool:
    """Whether a host, by name or address, is this machine: only its own addresses can be bound."""
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_DGRAM)
    except OSError:
        return False
    for family, kind, protocol, _, address in found:
        with socket.socket(family, kind, protocol) as probe:
            try:
                probe.bind((address[0], 0))
            except OSError:
                continue  # the address of another machine
            return True
    return False


def own_address(host: str) -> str:
    """The address of this machine that a host name stands for; never loopback, where there is another."""
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_DGRAM)
    except OSError:
        return outward_address()
    addresses = [str(address[0]) for *_, address in found]
    usable = (address for address in addresses if not checks.is_loopback(address) and is_here(address))
    return next(usable, None) or outward_address()


def here(settings: Settings, environ: Mapping[str, str], gcs_address: str | None = None) -> Here:
    """What the plan needs to know of this machine and this person."""
    host = settings.head.host
    node_ip = host if raystart.is_address(host) and not checks.is_loopback(host) else own_address(host)
    return Here(
        state=StatePaths.of(settings.cluster, environ),
        uid=os.getuid(),
        node_ip=node_ip,
        gcs_address=gcs_address or raystart.address(node_ip, settings.ray.port),
        environ=environ,
        python=sys.executable,
        project=str(PROJECT),
    )


def wrong_host(settings: Settings, script: str) -> str | None:
    """Why this is not the place to run a script, or None."""
    head = settings.head
    if settings.ssh is None or is_here(head.host):
        return None
    return f"{script} must run on the head host {head.name} ({head.host})"
