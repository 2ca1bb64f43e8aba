"""A repair as two requests of `host_program`: end the old raylet, start the new one as the file says.

Builds values only. Called by `compose`, carried out by `edges.remote` on the node that repairs.
"""

from collections.abc import Mapping
from typing import Any

from config.paths import StatePaths
from config.settings import Node, Settings
from grid_agent.core import messages as m
from grid_agent.core import raystart
from grid_agent.core.model import Belief

TERM_S = 2.0
KILL_S = 5.0
START_S = 60.0


class RepairPlan:
    """The requests for each node of one cluster."""

    def __init__(
        self, settings: Settings, paths: StatePaths, gcs_address: str, environ: Mapping[str, str]
    ) -> None:
        self._settings = settings
        self._paths = paths
        self._gcs_address = gcs_address
        self._environ = environ

    def requests(self, order: m.RestartWorker, belief: Belief) -> tuple[dict[str, Any], dict[str, Any]]:
        """The fence and the start of this repair."""
        node = next(n for n in self._settings.nodes if n.name == order.node)
        probe = belief.nodes[node.name].probe
        who = {"gcs_address": self._gcs_address, "node_name": node.name}
        fence = {
            **who,
            "op": "end",
            "node_id": order.fence_node_id,
            "raylet_pid": probe.raylet_pid if probe else None,
            "all_of_name": order.fence_node_id is None,
            "log_monitor": self._settings.ssh is not None,
            "term_s": TERM_S,
            "kill_s": KILL_S,
        }
        return fence, {**who, **self._start(node)}

    def _start(self, node: Node) -> dict[str, Any]:
        settings = self._settings
        token = str(self._paths.ray_token) if settings.auth == "token" else None
        return {
            "op": "start",
            "argv": raystart.worker_argv(settings, node, self._gcs_address),
            "env": raystart.node_env(settings, node, self._environ, token),
            "log": str(self._paths.node_log(node.name)),
            "lock": str(self._paths.node_lock(node.name)),
            "timeout_s": START_S,
        }
