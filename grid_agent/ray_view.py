"""What a cluster's own head says, seen from here: node table, settings in force, and what could not be read.

Asks only; needs no agent. Ray is loaded late and only where a GCS answers, because loading it takes seconds,
and ends the process where a RAY_ variable is malformed (`tuning.malformed` is asked before).
"""

import asyncio
import contextlib
import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass

from config.settings import Settings
from grid_agent.core import effective, messages, variables
from grid_agent.edges import gcs_process, ray_install

CONNECT_S = 2.0
ANSWER_S = 5.0


@dataclass(frozen=True, slots=True)
class RayView:
    """One look. `rows` are Ray's node table, dead ones included; None, and why, where nobody told it.

    `dashboard` is where Ray's dashboard says that it listens, "host:port"; None where nobody told.
    """

    head: effective.Head
    installed: effective.Installed
    rows: tuple[messages.NodeRow, ...] | None
    error: str = ""
    dashboard: str | None = None


async def look(address: str, settings: Settings | None, environ: Mapping[str, str]) -> RayView:
    """Ask the head at `address` ("host:port").

    Args:
        address: Of the GCS.
        settings: The cluster file, None for a cluster of which there is none here.
        environ: This process's environment; in token mode with RAY_AUTH_MODE and RAY_AUTH_TOKEN_PATH.
    """
    host, port = split(address)
    process = await asyncio.to_thread(gcs_process.find, port) if is_here(host) else None
    said = await ask(address, environ)
    config = said.config
    if config is None and process is not None:
        config = process.config
    running = process is not None or said.accepted
    head = effective.Head(running, config, process.environ if process else None)
    installed = await _installed(settings, environ, head)
    return RayView(head, installed, said.rows, said.error, said.dashboard)


@dataclass(frozen=True, slots=True)
class Said:
    """What a GCS said; None where it did not, and why. `accepted`: somebody accepts connections there."""

    rows: tuple[messages.NodeRow, ...] | None = None
    config: Mapping[str, object] | None = None
    dashboard: str | None = None
    error: str = ""
    accepted: bool = True


async def ask(address: str, environ: Mapping[str, str]) -> Said:
    """Ask the GCS at `address` alone; `environ` as for `look`."""
    refused = await _refused(*split(address))
    if refused:
        return Said(error=refused, accepted=False)
    auth = {name: environ[name] for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN_PATH") if name in environ}
    os.environ.update({"RAY_USAGE_STATS_ENABLED": "0", **auth})

    def load() -> type:
        from grid_agent.edges.gcs import Gcs  # noqa: PLC0415 - it loads Ray

        return Gcs

    gcs = (await asyncio.to_thread(load))(address, ANSWER_S)
    try:
        listed, config, dashboard = await asyncio.gather(
            gcs.list_nodes(), gcs.system_config(), gcs.dashboard()
        )
    finally:
        await gcs.close()
    if isinstance(listed, messages.NodesListed):
        return Said(listed.rows, config, dashboard)
    return Said(None, config, dashboard, listed.detail)


async def _installed(
    settings: Settings | None, environ: Mapping[str, str], head: effective.Head
) -> effective.Installed:
    names = variables.names(settings, environ, head)
    readers = await asyncio.to_thread(ray_install.readers, names)
    defaults = await ray_install.defaults() if effective.needs_defaults(head) else {}
    return effective.Installed(ray_install.version(), defaults, readers)


async def _refused(host: str, port: int) -> str | None:
    """Why nobody can be asked there, None when somebody accepts a connection."""
    try:
        async with asyncio.timeout(CONNECT_S):
            _, writer = await asyncio.open_connection(host, port)
    except TimeoutError:
        return f"no answer to a connect in {CONNECT_S:g} s"
    except OSError as error:
        return error.strerror or str(error)
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()
    return None


def split(address: str) -> tuple[str, int]:
    """Host, without brackets, and port."""
    host, _, port = address.rpartition(":")
    return host.strip("[]"), int(port)


def is_here(host: str) -> bool:
    """Whether an address is this machine's: only its own can be bound."""
    with contextlib.suppress(OSError):
        for family, kind, protocol, _, where in socket.getaddrinfo(host, None, type=socket.SOCK_DGRAM):
            with contextlib.suppress(OSError), socket.socket(family, kind, protocol) as probe:
                probe.bind((where[0], 0))
                return True
    return False
