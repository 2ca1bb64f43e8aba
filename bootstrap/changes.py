"""What runs beside what the file says: each difference, and what it takes to change it.

Pure. A plain start never restarts what runs; it starts what is missing and says the rest.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from config.settings import Node, Settings

WHOLE = "stop.py, then start.py"
REDEPLOY = "start.py --redeploy"
REMOVE = "start.py --yes"


@dataclass(frozen=True, slots=True)
class Difference:
    """One key whose value in the file is not the one in force."""

    key: str
    running: str
    file: str
    remedy: str


def differences(running: Settings, file: Settings, alive: frozenset[str]) -> list[Difference]:
    """Every setting of the file that is not in force.

    Args:
        running: What the cluster was started with.
        file: What the file says now.
        alive: Names of the nodes whose raylet runs; the others take the file's values when they start.

    Returns:
        The differences, in the order of the file.
    """
    found = _compare_nodes(running, file, alive)
    ssh = REDEPLOY if running.ssh and file.ssh else WHOLE
    remedies = {"ssh": ssh, "ray": WHOLE, "agent": REDEPLOY, "guards": REDEPLOY, "http": WHOLE}
    remedies["slack"] = REDEPLOY
    for section, remedy in remedies.items():
        found += _compare(section, _plain(getattr(running, section)), _plain(getattr(file, section)), remedy)
    return found


def in_force(
    running: Settings, file: Settings, alive: frozenset[str], *, redeploy: bool, remove: bool = False
) -> Settings:
    """The settings that hold after this start.

    Args:
        running: What the cluster was started with.
        file: What the file says now.
        alive: Names of the nodes whose raylet runs.
        redeploy: The application is deployed again, so the agent and Slack take the file's values.
        remove: Workers that have left the file are stopped; else they stay part of the cluster.

    Returns:
        The file's values for whatever is started now, the old ones for what stays.
    """
    old = {node.name: node for node in running.nodes}
    nodes = tuple(old[node.name] if node.name in alive and node.name in old else node for node in file.nodes)
    if not remove:
        new = {node.name for node in file.nodes}
        nodes += tuple(node for node in running.workers if node.name not in new)
    source = file if redeploy else running
    return Settings(
        cluster=running.cluster,
        nodes=nodes,
        ssh=source.ssh,
        ray=running.ray,
        agent=source.agent,
        guards=source.guards,
        http=running.http,
        keeper=file.keeper,
        slack=source.slack,
    )


def _compare_nodes(running: Settings, file: Settings, alive: frozenset[str]) -> list[Difference]:
    old = {node.name: node for node in running.nodes}
    new = {node.name for node in file.nodes}
    found = [
        Difference(f"nodes.{name}", "part of the cluster", "not in the file", REMOVE)
        for name in old
        if name not in new
    ]
    for node in file.nodes:
        if node.name in alive and node.name in old:
            remedy = _node_remedy(node)
            found += _compare(f"nodes.{node.name}", _plain(old[node.name]), _plain(node), remedy)
    return found


def _node_remedy(node: Node) -> str:
    return WHOLE if node.role == "head" else f"stop.py --node {node.name}, then start.py"


def _compare(
    prefix: str, running: Mapping[str, Any], file: Mapping[str, Any], remedy: str
) -> list[Difference]:
    keys = [*running, *(key for key in file if key not in running)]
    return [
        Difference(f"{prefix}.{key}", _text(running.get(key)), _text(file.get(key)), remedy)
        for key in keys
        if running.get(key) != file.get(key)
    ]


def _plain(section: Any) -> Mapping[str, Any]:
    return {} if section is None else section.model_dump(mode="json")


def _text(value: Any) -> str:
    return "(not set)" if value is None else str(value)
