"""Asks the hosts of a cluster: which of its raylets run there, start one, end one, end everything.

Every question goes through the transport of the node's host, so that a worker on another host is asked
the same way as one on this machine.
"""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from bootstrap.plan import Action
from config.paths import StatePaths
from config.settings import Node, Settings
from grid_agent.core import raystart
from grid_agent.edges import hosts

LOOK_S = 10.0
GRACE_S = 15.0  # for the answer itself, and for cleaning up after a start that did not end in time


@dataclass(frozen=True, slots=True)
class Raylet:
    """One raylet of this cluster as its host shows it."""

    name: str
    pid: int
    node_id: str
    gcs_address: str
    session_dir: str
    head: bool


class Reach:
    """The hosts of one cluster; `gcs_address` tells its processes from those of other clusters."""

    def __init__(self, settings: Settings, gcs_address: str, uid: int) -> None:
        self.settings = settings
        self.gcs_address = gcs_address
        self._uid = uid

    def find_head(self) -> Raylet | None:
        """The head's raylet on this machine, whatever address its GCS has."""
        seen = self._look(self.settings.head, {"gcs_port": self.settings.ray.port})
        return next(
            (raylet for raylet in seen if raylet.head and raylet.name == self.settings.head.name), None
        )

    def raylets(self) -> dict[str, Raylet]:
        """Every raylet of this cluster that a host shows, by name; a host that does not answer shows none."""
        found: dict[str, Raylet] = {}
        if self.settings.ssh is None:
            seen = self._look(self.settings.head, {"gcs_address": self.gcs_address})
            return {raylet.name: raylet for raylet in seen}
        for node in self.settings.nodes:
            request = {"gcs_address": self.gcs_address, "node_name": node.name}
            found |= {raylet.name: raylet for raylet in self._look(node, request)}
        return found

    def start(self, action: Action, state: StatePaths) -> dict[str, Any]:
        """Start one node and wait until its raylet is up."""
        local = raystart.is_local(self.settings, self._node(action.node))
        root = str(state.root) if local else "~/.local/state/grid-agent/" + self.settings.cluster
        request = {
            "op": "start",
            "argv": list(action.argv),
            "env": dict(action.env),
            "log": f"{root}/logs/{action.node}.log",
            "lock": f"{root}/locks/{action.node}.lock",
            "lock_wait_s": action.timeout_s,  # the agent may be healing this very node
            "timeout_s": action.timeout_s,
            "node_name": action.node,
            "gcs_address": self.gcs_address,
        }
        return self._call(self._node(action.node), request, 2 * action.timeout_s + GRACE_S)

    def end(self, raylet: Raylet | None, node: Node, session_dir: str | None = None) -> dict[str, Any]:
        """End the raylets of a node's name and whatever they left there."""
        request = {
            "op": "end",
            "gcs_address": self.gcs_address,
            "node_name": node.name,
            "all_of_name": True,
            "log_monitor": self.settings.ssh is not None,
        }
        if raylet is not None:
            request |= {
                "raylet_pid": raylet.pid,
                "node_id": raylet.node_id,
                "session_dir": raylet.session_dir,
            }
        elif session_dir:
            request["session_dir"] = session_dir
        return self._call(node, request, 30.0)

    def end_cluster(
        self,
        timeout_s: float,
        *,
        node: Node | None = None,
        session_dir: str | None = None,
        temp_dir: str | None = None,
    ) -> dict[str, Any]:
        """End everything of this cluster on a node's host, by default on this machine."""
        request: dict[str, Any] = {"op": "end_cluster", "gcs_address": self.gcs_address}
        request |= {"session_dir": session_dir} if session_dir else {}
        request |= {"temp_dir": temp_dir} if temp_dir else {}
        return self._call(node or self.settings.head, request, timeout_s)

    def port_owner(self, port: int) -> Mapping[str, Any] | None:
        """Who listens on a port of this machine: pid, name, user; None where nobody is seen."""
        answer = self._call(self.settings.head, {"op": "port_owner", "ports": [port]}, LOOK_S)
        owner = (answer.get("ports") or {}).get(str(port))
        return owner if owner and owner.get("pid") else None

    def _look(self, node: Node, which: Mapping[str, Any]) -> list[Raylet]:
        answer = self._call(node, {"op": "look", **which}, LOOK_S)
        return [
            Raylet(
                name=row["node_name"] or "",
                pid=row["pid"],
                node_id=row["node_id"] or "",
                gcs_address=row["gcs_address"] or "",
                session_dir=row["session_dir"] or "",
                head=bool(row["head"]),
            )
            for row in answer.get("raylets", ())
            if row["uid"] == self._uid or not raystart.is_local(self.settings, node)
        ]

    def _call(self, node: Node, request: dict[str, Any], timeout_s: float) -> dict[str, Any]:
        if not raystart.is_local(self.settings, node):
            detail = f"{node.host} would be reached over SSH, which this version cannot do yet"
            return {"ok": False, "error": "no_ssh", "detail": detail}
        return asyncio.run(hosts.LocalHost().call(request, timeout_s))

    def _node(self, name: str) -> Node:
        return next(node for node in self.settings.nodes if node.name == name)
