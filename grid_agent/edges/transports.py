"""Which way leads to which node: this machine's own processes, or SSH as the cluster file says.

Chooses only; the ways themselves are in `hosts`. Called by `bootstrap`, which asks from the head, and by
`compose` for looks and repairs, which may be sent from another node.
"""

import asyncio
import functools
import importlib.metadata
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

from config.paths import StatePaths
from config.settings import Node, Settings
from grid_agent.core import raystart
from grid_agent.edges import ray_start
from grid_agent.edges.host import program as host_program
from grid_agent.edges.hosts import LocalHost, SshHost, source_of
from grid_agent.edges.ssh_client import SshTarget

# Ways open at once. A host that hangs keeps its place for a timeout: with fewer, the others would wait.
FAN_OUT = 128
KEPT_AT_ONCE = 8  # connections that are opened side by side when nobody waits for them


class Transport(Protocol):
    """Runs one request of a program such as `host.program` on a host."""

    async def call(self, request: dict[str, Any], timeout_s: float) -> dict[str, Any]:
        """The program's answer, or one with `ok` False."""
        ...


def target(settings: Settings, node: Node) -> SshTarget:
    """Where and as whom to log in to reach this node.

    Raises:
        ValueError: The file has no `ssh` section.
    """
    ssh = settings.ssh
    if ssh is None:
        raise ValueError("a node of a cluster without ssh is on this machine")
    return SshTarget(
        host=node.host,
        user=node.ssh_user or ssh.user,
        port=node.ssh_port or ssh.port,
        key_file=ssh.key_file,
        known_hosts_file=ssh.known_hosts_file,
        connect_timeout_s=ssh.connect_timeout_s,
    )


class Transports:
    """The way to every node of one cluster, for a program such as `host.program`.

    The head keeps its connections where it has a state folder.
    """

    def __init__(self, settings: Settings, state: StatePaths, program: ModuleType = host_program) -> None:
        self._settings = settings
        self._program = program
        self._control_dir = state.ssh_control(os.getuid()) if state.root.is_dir() else None
        self._known: dict[str, Transport] = {}
        self._room = asyncio.Semaphore(FAN_OUT)

    def __call__(self, node: str) -> Transport:
        """The way from the head."""
        if node not in self._known:
            self._known[node] = self._make(node, self._control_dir)
        return self._known[node]

    async def call(self, node: str, request: dict[str, Any], timeout_s: float) -> dict[str, Any]:
        """The answer of this node's host, asked when there is room; `timeout_s` counts from then on."""
        async with self._room:
            return await self(node).call(request, timeout_s)

    def seen_from(self, by: str, node: str) -> Transport:
        """The way from the node `by`: with its own keys and known hosts, at the paths of the file."""
        if by == self._settings.head.name:
            return self(node)
        return self._make(node, None)

    async def keep_ready(self) -> None:
        """Have a connection to every other host open."""
        room = asyncio.Semaphore(KEPT_AT_ONCE)

        async def keep(name: str) -> None:
            way = self(name)
            if isinstance(way, SshHost):
                async with room:
                    await way.keep_ready()

        await asyncio.gather(*(keep(node.name) for node in self._settings.nodes))

    @functools.cached_property
    def _text(self) -> str:
        """The program, read once for however many hosts."""
        return source_of(self._program)

    def _make(self, name: str, control_dir: str | None) -> Transport:
        node = next(node for node in self._settings.nodes if node.name == name)
        if raystart.is_local(self._settings, node):
            return LocalHost(self._program.handle)
        return SshHost(target(self._settings, node), control_dir, text=self._text)


def versions_here() -> Mapping[str, str]:
    """Ray and Python of the head: what a worker must have, too."""
    return {"ray": importlib.metadata.version("ray"), "python": ".".join(map(str, sys.version_info[:3]))}


@functools.cache
def start_program() -> str:
    """What a worker's host runs in place of `ray start`."""
    return Path(ray_start.__file__).read_text(encoding="utf-8")
