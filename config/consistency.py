"""Rules between the keys of one cluster file: yields where each broken one is, and the rule as a sentence.

Must never look at anything outside the settings. Used by `settings` once every single value is right.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from config.checks import is_loopback, same_host

if TYPE_CHECKING:
    from config.settings import Settings

Problem = tuple[tuple[str | int, ...], str]

# `ray start` binds its workers to these ports, and refuses to start where another of its ports is among them.
NODE_PORTS = 6
_CLIENT_AND_WORKER_PORTS = range(10_001, 20_000)


def problems(settings: Settings) -> Iterator[Problem]:
    """Every broken rule as the key path where to change something, and a sentence."""
    yield from _roles(settings)
    yield from _names(settings)
    yield from _hosts(settings)
    yield from _ssh(settings)
    yield from _ports(settings)
    yield from _waits(settings)
    if not is_loopback(settings.http.host) and settings.http.token_file is None:
        yield ("http", "host"), "needs http.token_file, because others can reach this address"


def _roles(settings: Settings) -> Iterator[Problem]:
    heads = [index for index, node in enumerate(settings.nodes) if node.role == "head"]
    if not heads:
        yield ("nodes",), "needs exactly one node with role: head; there is none"
    for index in heads[1:]:
        first = settings.nodes[heads[0]].name
        yield ("nodes", index, "role"), f"must be worker: a cluster has exactly one head, and it is {first}"


def _names(settings: Settings) -> Iterator[Problem]:
    seen: dict[str, int] = {}
    for index, node in enumerate(settings.nodes):
        if node.name in seen:
            yield ("nodes", index, "name"), f"must be unique; nodes[{seen[node.name]}] has this name too"
        seen.setdefault(node.name, index)


def _hosts(settings: Settings) -> Iterator[Problem]:
    if settings.ssh is None:
        for index, node in enumerate(settings.nodes):
            if not is_loopback(node.host):
                yield (
                    ("nodes", index, "host"),
                    "must be this machine (127.0.0.1, ::1 or localhost) as there is no ssh section; add one",
                )
        return
    seen: dict[str, int] = {}
    for index, node in enumerate(settings.nodes):
        host = same_host(node.host)
        if host in seen:
            yield (
                ("nodes", index, "host"),
                f"must be a host of its own with an ssh section; nodes[{seen[host]}] has this one",
            )
        seen.setdefault(host, index)
    remote = any(not is_loopback(node.host) for node in settings.nodes)
    for index, node in enumerate(settings.nodes):
        if remote and node.role == "head" and is_loopback(node.host):
            yield ("nodes", index, "host"), "must be an address under which the workers reach the head"


def _ssh(settings: Settings) -> Iterator[Problem]:
    for index, node in enumerate(settings.nodes):
        for key in ("ssh_user", "ssh_port"):
            if settings.ssh is None and getattr(node, key) is not None:
                yield (
                    ("nodes", index, key),
                    "has no effect without an ssh section; add one or leave this key out",
                )


def _ports(settings: Settings) -> Iterator[Problem]:
    ray, http = settings.ray, settings.http
    for key, port in (("port", ray.port), ("dashboard_port", ray.dashboard_port)):
        if port in _CLIENT_AND_WORKER_PORTS:
            yield (
                ("ray", key),
                "must not be in 10001..19999: Ray takes those ports for its clients and workers",
            )
    if ray.port == ray.dashboard_port:
        yield ("ray", "dashboard_port"), "must differ from ray.port"
    for key, port in (("port", ray.port), ("dashboard_port", ray.dashboard_port)):
        if port == http.port:
            yield ("http", "port"), f"must differ from ray.{key}"
    yield from _node_ports(settings)


def _node_ports(settings: Settings) -> Iterator[Problem]:
    first, where = settings.first_node_port, ("ray", "first_node_port")
    if first is None:
        if settings.ray.first_node_port is not None:
            yield where, "has no effect without an ssh section; add one or leave this key out"
        return
    taken = range(first, first + NODE_PORTS)
    if not _CLIENT_AND_WORKER_PORTS.start > taken[-1] and not taken[0] >= _CLIENT_AND_WORKER_PORTS.stop:
        yield where, "and the five after it must not be in 10001..19999: Ray takes those ports itself"
    others = {"ray.port": settings.ray.port, "ray.dashboard_port": settings.ray.dashboard_port}
    for key, port in {**others, "http.port": settings.http.port}.items():
        if port in taken:
            yield where, f"and the five after it must not be {key}, which is {port}"


def _waits(settings: Settings) -> Iterator[Problem]:
    agent = settings.agent
    for key, value in (("hang_s", agent.hang_s), ("unreachable_s", agent.unreachable_s)):
        if value < 2 * agent.heartbeat_every_s:
            yield ("agent", key), "must be at least twice heartbeat_every_s: one missed check proves nothing"
