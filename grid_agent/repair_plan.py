"""A repair as one request of the host's program: end the old raylet, start the new one as the file says.

Builds values only. Called by `compose`, carried out by `edges.remote` on the node that repairs.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from config import paths
from config.settings import Node, Settings
from grid_agent.core import messages as m
from grid_agent.core import raystart, startrequest
from grid_agent.core.gpu_model import GpuBelief
from grid_agent.core.model import Belief, NodeBelief
from grid_agent.core.seen import ProbeReport
from grid_agent.core.terms import Rung
from grid_agent.edges.hosts import LOGIN_S
from grid_agent.edges.transports import start_program, versions_here

TERM_S = 2.0
KILL_S = 5.0
START_S = 60.0
LOCK_WAIT_S = 5.0
GRACE_S = 5.0
TASK_S = 6.0  # for Ray to begin the task, and for its answer to arrive
Rows = Sequence[Mapping[str, Any]]


def without(node: Node, known: GpuBelief) -> Node:
    """The node as the file has it, less the GPUs that it is to do without.

    The others are named by their UUIDs, since numbers change when a GPU is gone:
    https://docs.nvidia.com/cuda/cuda-c-programming-guide/index.html#cuda-environment-variables
    """
    if not known.excluded:
        return node
    kept = [gpu.uuid for gpu in known.accepted if gpu.uuid not in known.excluded]
    count = len(kept) if node.num_gpus is None else min(node.num_gpus, len(kept))
    env = {**node.env, "CUDA_VISIBLE_DEVICES": ",".join(kept)}
    return node.model_copy(update={"num_gpus": count, "env": env})


def _request_s(start_s: float) -> float:
    """The longest that the request of a repair takes on its host, in seconds."""
    return 2 * TERM_S + 2 * KILL_S + LOCK_WAIT_S + start_s + GRACE_S


def longest_s(settings: Settings) -> float:
    """How long a repair of this cluster may take until its answer is there, login included, in seconds."""
    ssh = settings.ssh
    there_s = 0.0
    if ssh is not None:
        there_s = ssh.connect_timeout_s + LOGIN_S + _request_s(ssh.command_timeout_s)
    return max(_request_s(START_S), there_s) + TASK_S


def _holders(probe: ProbeReport | None, node_id: str | None) -> list[dict[str, int]]:
    """What held GPU memory for this incarnation when its probe last looked."""
    sweep = probe.gpus if probe is not None else None
    rows = () if sweep is None or node_id is None else sweep.holders
    return [
        {"pid": h.pid, "start_ticks": h.start_ticks} for h in rows if h.node_id == node_id and h.start_ticks
    ]


class RepairPlan:
    """The request for each node of one cluster.

    Args:
        settings: The cluster file.
        state: The state folder.
        gcs_address: The GCS as Ray's own processes name it.
        environ: The agent's environment, for nodes of this machine.
        seen: What the last look at each node showed (`Looks.seen`).
        epoch: The number of this agent, higher than that of every agent before it; None: no agent asks.
    """

    def __init__(
        self,
        settings: Settings,
        state: paths.StatePaths,
        gcs_address: str,
        environ: Mapping[str, str],
        seen: Mapping[str, Rows],
        *,
        epoch: Callable[[], int] | None = None,
    ) -> None:
        self._settings = settings
        self._state = state
        self._gcs_address = gcs_address
        self._environ = environ
        self._versions = versions_here()
        self._seen = seen
        self._epoch = epoch

    def request(self, order: m.RestartWorker, belief: Belief) -> tuple[dict[str, Any], float]:
        """The fence and the start of this repair, and the longest they can take in seconds."""
        node = next(n for n in self._settings.nodes if n.name == order.node)
        node = without(node, belief.nodes[node.name].gpus)
        local = raystart.is_local(self._settings, node)
        ssh = self._settings.ssh
        # A host that needed this long to start for the first time needs as long when it is healed.
        start_s = START_S if local or ssh is None else ssh.command_timeout_s
        # The file is on the head: the node's own host checks it at the start where that is the head, else
        # whoever sends the request (`hosts.unless_stopped`).
        stopped = str(self._state.stopped_node(node.name))
        begin = self._start(node, start_s, stopped if local else None)
        fence = self._fence(node, order, belief)
        clear = [self._clear(fence, belief.nodes[node.name])] if order.rung is Rung.CLEAR else []
        steps: dict[str, Any] = {"op": "steps", "requests": [fence, *clear, begin]}
        if self._epoch is not None:
            steps["epoch"] = self._epoch()
        if not local:
            steps["unless_here"] = stopped
        return steps, _request_s(start_s)

    def _fence(self, node: Node, order: m.RestartWorker, belief: Belief) -> dict[str, Any]:
        probe = belief.nodes[node.name].probe
        last = next((r for r in self._seen.get(node.name, ()) if r.get("node_id") == order.fence_node_id), {})
        return {
            "op": "end",
            "gcs_address": self._gcs_address,
            "node_name": node.name,
            "node_id": order.fence_node_id,
            "raylet_pid": last.get("pid") or (probe.raylet_pid if probe else None),
            "session_dir": last.get("session_dir") or self.session_dir(node.name),
            "all_of_name": order.fence_node_id is None,
            "holders": _holders(probe, order.fence_node_id),
            "log_monitor": self._settings.ssh is not None,
            "term_s": TERM_S,
            "kill_s": KILL_S,
        }

    def _clear(self, fence: Mapping[str, Any], node: NodeBelief) -> dict[str, Any]:
        """What dead lives of this node have left; the fence has shown that none of them runs."""
        dead = dict.fromkeys(a.fence_node_id for a in node.attempts if a.fence_node_id is not None)
        return {"op": "clear", "session_dir": fence["session_dir"], "node_ids": list(dead)}

    def _start(self, node: Node, timeout_s: float, unless: str | None) -> dict[str, Any]:
        return startrequest.start_request(
            self._settings,
            node,
            argv=raystart.worker_argv(self._settings, node, self._gcs_address),
            env=raystart.own_env(self._settings, node, self._environ, self._state),
            gcs_address=self._gcs_address,
            state=self._state,
            timeout_s=timeout_s,
            lock_wait_s=LOCK_WAIT_S,
            versions=self._versions,
            program=start_program(),
            unless=unless,
        )

    def session_dir(self, name: str) -> str | None:
        """Where this node's logs are, by the record that `start.py` made; None where there is none."""
        node = next(n for n in self._settings.nodes if n.name == name)
        try:
            record = json.loads(self._state.cluster.read_text(encoding="utf-8"))
            return paths.session_dir(self._settings, node, record["session_dir"], uid=0)
        except (OSError, ValueError, KeyError, TypeError):
            return None
