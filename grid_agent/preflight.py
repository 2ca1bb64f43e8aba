"""Asks all hosts at once how they are and which ports they can open on each other; `core.preflight` judges.

Called by the `preflight` command and by `start.py`. A host that hangs costs one timeout, however
many there are, and is left out of the tries.
"""

import asyncio
import secrets
import time
from collections.abc import Awaitable, Callable, Collection, Mapping
from typing import Any

from config import paths
from config.settings import Node, Settings
from grid_agent.core import preflight, rayports, raystart
from grid_agent.core.preflight import Asked, Finding

FACTS_S = 20.0
MESH_S = 5.0
GRACE_S = 15.0
NEIGHBOURS = 8
Call = Callable[[str, dict[str, Any], float], Awaitable[dict[str, Any]]]


async def run(
    settings: Settings,
    call: Call,
    *,
    gcs_addresses: Collection[str],
    running: Collection[str],
    nodes: Collection[str],
    versions: Mapping[str, str],
    uid: int,
    ports: bool = True,
) -> list[Finding]:
    """Every check of every node, in the order of the file.

    Args:
        settings: The cluster.
        call: Sends one request of `preflight_program` to a node's host: (node, request, timeout_s) -> answer.
        gcs_addresses: The cluster's own GCS, however its processes spell it.
        running: The nodes whose raylet runs: their ports are tried, not listened on.
        nodes: The nodes to check; the others only answer for the ports.
        versions: Ray and Python of the head.
        uid: Of this user, for the temp dir.
        ports: Whether to try the ports, too.
    """
    one_machine = settings.ssh is None
    chosen = [settings.head] if one_machine else [n for n in settings.nodes if n.name in nodes]
    asked = await asyncio.gather(*(_facts(settings, node, call, gcs_addresses, uid) for node in chosen))
    found = {
        node.name: preflight.of_host(settings, node, answer, versions)
        for node, answer in zip(chosen, asked, strict=True)
    }
    reached = {n.name for n, a in zip(chosen, asked, strict=True) if a.answer.get("ok")} | set(running)
    if ports and not one_machine and len(reached) > 1:
        answers = await _mesh(settings, call, reached, frozenset(running))
        for finding in preflight.of_ports(settings, answers):
            if finding.node in found:
                found[finding.node].append(finding)
    return [finding for node in chosen for finding in found[node.name]]


async def _facts(
    settings: Settings, node: Node, call: Call, gcs_addresses: Collection[str], uid: int
) -> Asked:
    env = raystart.node_env(settings, node, {}, token_path="")
    request = {
        "op": "facts",
        "command": raystart.ray_command(settings, node),
        "path": env["PATH"],
        "temp_dir": paths.temp_dir(settings, node, uid),
        "gcs_addresses": sorted(gcs_addresses),
    }
    sent_at = time.time()
    answer = await call(node.name, request, FACTS_S)
    return Asked(answer, sent_at, time.time())


async def _mesh(
    settings: Settings, call: Call, reached: Collection[str], running: frozenset[str]
) -> dict[str, dict[str, Any]]:
    """Every host's answer to `mesh`: all of them at the same time, for they try each other."""
    hosts = [node for node in settings.nodes if node.name in reached]
    tries = {node.name: _partners(node, hosts) for node in hosts}
    nonce = secrets.token_hex(8)
    requests = {}
    for node in hosts:
        listens = node.name not in running
        mine = {
            other.name: rayports.sampled(settings, other, node)
            for other in hosts
            if listens and node in tries[other.name]
        }
        requests[node.name] = {
            "op": "mesh",
            "me": node.name,
            "nonce": nonce,
            "seconds": MESH_S,
            "listen": sorted({port for ports in mine.values() for port in ports}),
            "expect": mine,
            "peers": {
                other.name: {
                    "host": other.host,
                    "ports": _tried(settings, node, other, other.name in running),
                    "listens": other.name not in running,
                }
                for other in tries[node.name]
            },
        }
    answers = await asyncio.gather(
        *(call(name, request, MESH_S + GRACE_S) for name, request in requests.items())
    )
    found = dict(zip(requests, answers, strict=True))
    return {
        # Of a node that runs the raylet listens, so a refusal there speaks of something in between.
        name: {**a, "listening": {str(p): "ok" for p in _fixed(settings)}} if name in running else a
        for name, a in found.items()
    }


def _partners(node: Node, hosts: list[Node]) -> list[Node]:
    """Whom a host tries: everybody in a small cluster, else the head and the next few in the file's order."""
    others = [other for other in hosts if other is not node]
    if len(others) <= 2 * NEIGHBOURS:
        return others
    if node.role == "head":
        return others
    at = hosts.index(node)
    ring = [hosts[(at + step) % len(hosts)] for step in range(1, NEIGHBOURS + 1)]
    return [other for other in others if other.role == "head" or other in ring]


def _fixed(settings: Settings) -> list[int]:
    first = settings.first_node_port
    assert first is not None
    return [settings.ray.port, first + rayports.NODE_MANAGER, first + rayports.OBJECT_MANAGER]


def _tried(settings: Settings, source: Node, destination: Node, runs: bool) -> list[int]:
    """The ports to try; of a node that runs only those that surely have a listener."""
    ports = rayports.sampled(settings, source, destination)
    return [port for port in ports if not runs or port in _fixed(settings)]
