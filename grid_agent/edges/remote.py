"""What the agent has done on other nodes: the no-op that proves one, the repair, a look from a peer.

The code travels by value, so that a node needs Ray and nothing of ours.
"""

import asyncio
import logging
import os
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

import ray

from grid_agent.core import messages as m
from grid_agent.core.model import NodeBelief
from grid_agent.edges import host, hosts, placing, ssh_client, ssh_errors
from grid_agent.edges.transports import Transport

_HOST = [sys.modules[f"{host.PACKAGE}.{name}"] for name in host.NAMES]
_SSH = (ssh_errors, ssh_client, hosts)
for _module in (host, *_HOST, *_SSH, sys.modules[__name__]):
    ray.cloudpickle.register_pickle_by_value(_module)

log = logging.getLogger("grid_agent.remote")
REPAIRS = 16  # at once in the one process that is kept for them
PROVE_S = 10.0
READY_S = 20.0  # for the process that carries out the head's repairs to start
ASK_S = 1.0  # for its word that it is there
# Errors that a second try cannot cure: a person has to change something on that host, or in the file.
NOT_CURABLE = frozenset(
    {"no_ray", "version", "auth", "disk", "clock", "config", "no_secret", "bad_request", "command_missing"}
    | {"python_too_old", "key_refused", "host_key_changed", "host_key_unknown"}
)
NOT_BEGUN = frozenset({"stopped", "stale"})  # refused before anything was done
Plan = Callable[[m.RestartWorker], tuple[dict[str, Any], float]]
Ways = Callable[[str, str], Transport]


def _noop() -> None:
    """Proves that a node runs tasks."""


def _place_noop(node_id: str, timeout_s: float) -> str:
    """On a peer: places a no-op on another node. Answers what went wrong, nothing when it has run."""
    ref = placing.task(_noop, "no-op", node_id).remote()
    try:
        ray.get(ref, timeout=timeout_s)
    except ray.exceptions.GetTimeoutError:
        ray.cancel(ref, force=False, recursive=False)
        return f"no answer in {timeout_s:g} s"
    except Exception as error:  # noqa: BLE001 - whatever it was, no task ran
        return placing.one_line(error)
    return ""


async def _send(way: "Transport", request: dict[str, Any], timeout_s: float) -> dict[str, Any]:
    """On the node that acts: send one request along the way to the host it is for.

    Ray's token is taken from the file that this node itself was started with.
    """
    request = hosts.with_token(request, os.environ.get("RAY_AUTH_TOKEN_PATH"))
    return await way.call(request, timeout_s)


def _carry_out(way: "Transport", request: dict[str, Any], timeout_s: float) -> dict[str, Any]:
    """The same as a task."""
    return asyncio.run(_send(way, request, timeout_s))


class GridAgentRepairer:
    """The same as an actor, whose process is there before it is needed: to start one takes about a second."""

    async def carry_out(self, way: "Transport", request: dict[str, Any], timeout_s: float) -> dict[str, Any]:
        """The answer of the host's program."""
        return await _send(way, request, timeout_s)

    async def ready(self) -> None:
        """Answers when the process is there."""


class Remote:
    """Tasks on chosen nodes.

    `plan` gives the request of a repair (fence, then start) and its longest duration; `ways` the way from the
    node that acts to the node that is sick. All of it travels by value.
    """

    def __init__(self, plan: Plan, ways: Ways, repair_s: float) -> None:
        self._plan = plan
        self._ways = ways
        self._repair_s = repair_s
        self._noop = placing.task(_noop, "no-op")
        self._class = ray.remote(num_cpus=0, max_restarts=0, max_concurrency=REPAIRS)(GridAgentRepairer)
        self._repairer: tuple[str, Any] | None = None  # node id and actor

    async def keep_ready(self, node: NodeBelief) -> None:
        """Have the actor that repairs from this node (the head); made anew when it is gone."""
        if node.incarnation is None:
            return
        node_id = node.incarnation.node_id
        if self._repairer is None or self._repairer[0] != node_id:
            self._repairer = (node_id, self._class.options(**placing.on(node_id)).remote())
        if not await self._is_ready(READY_S):
            log.warning("the process for repairs from %s does not answer; it is made anew", node.name)

    async def _is_ready(self, timeout_s: float) -> bool:
        """Whether the actor answers; one that does not is given up, and a repair starts its own process."""
        try:
            if self._repairer is not None:
                await placing.result(self._repairer[1].ready.remote(), timeout_s)
        except Exception:  # noqa: BLE001 - dead or stuck, it is of no use
            self._repairer = None
        return self._repairer is not None

    async def prove(self, order: m.ProveNode) -> m.TaskRan | m.TaskMissed:
        """Run a no-op on exactly this incarnation."""
        try:
            await placing.result(self._noop.options(**placing.on(order.node_id)).remote(), PROVE_S)
        except Exception as error:  # noqa: BLE001 - whatever it was, no task ran
            return m.TaskMissed(order.node, order.node_id, placing.one_line(error))
        return m.TaskRan(order.node, order.node_id)

    async def place(self, order: m.ProveFromPeer, by: NodeBelief) -> m.PeerPlaced | m.PeerFailed:
        """Have the node `by` place a no-op on another one: a task that owes nothing to us."""
        if by.incarnation is None:
            return m.PeerFailed(order.node, by.name, f"{by.name} has no raylet")
        place = placing.task(_place_noop, f"no-op on {order.node}", by.incarnation.node_id)
        try:
            wrong = await placing.result(place.remote(order.node_id, PROVE_S), PROVE_S + placing.PEER_S)
        except Exception as error:  # noqa: BLE001 - then nobody has tried
            return m.PeerFailed(order.node, by.name, placing.one_line(error))
        return m.PeerPlaced(order.node, order.node_id, by.name, not wrong, wrong)

    async def repair(self, order: m.RestartWorker, run_on: NodeBelief) -> m.RepairEnded:
        """Fence and restart `order.node` by a task on `run_on`."""
        if run_on.incarnation is None:
            return m.RepairEnded(order.node, order.attempt, ok=False, detail=f"{run_on.name} has no raylet")
        begun = False
        try:
            request, longest_s = self._plan(order)
            # A peer does not have the file that says a person stopped the node.
            answer = hosts.unless_stopped(request)
            if answer is None:
                way = self._ways(run_on.name, order.node)
                task = await self._task(run_on.incarnation.node_id, order.node)
                began, begun = time.monotonic(), True
                answer = await placing.result(task.remote(way, request, longest_s), self._repair_s)
                took = ", ".join(f"{a.get('took_s', 0):.2f}" for a in answer.get("answers", ()))
                log.info("repair of %s: %.2f s, its steps %s s", order.node, time.monotonic() - began, took)
        except Exception as error:  # noqa: BLE001 - the core decides what follows
            # Where the task itself has failed its word is known; else its node may have died, and how far it
            # came is known on the sick host only.
            unheard = begun and not isinstance(error, ray.exceptions.RayTaskError)
            curable = None if unheard else True
            return m.RepairEnded(
                order.node, order.attempt, ok=False, detail=placing.one_line(error), curable=curable
            )
        return _ended(order, answer)

    async def _task(self, node_id: str, sick: str) -> Any:
        """What carries a repair out on this node: the actor there, else a task."""
        if self._repairer is not None and self._repairer[0] == node_id and await self._is_ready(ASK_S):
            return self._repairer[1].carry_out.options(name=f"{placing.OUR_TASKS}repair {sick}")
        return placing.task(_carry_out, f"repair {sick}", node_id)


class Through:
    """A way that begins on another node: each request is carried out by a Ray task placed there."""

    def __init__(self, by: NodeBelief, way: Transport) -> None:
        self._by = by
        self._way = way

    async def call(self, request: dict[str, Any], timeout_s: float) -> dict[str, Any]:
        """The answer of the host's program, or `ok` False when the task could not run."""
        if self._by.incarnation is None:
            return {"ok": False, "error": "no_peer", "detail": f"{self._by.name} has no raylet"}
        task = placing.task(_carry_out, "look", self._by.incarnation.node_id)
        try:
            asked = task.remote(self._way, request, timeout_s)
            return dict(await placing.result(asked, timeout_s + placing.PEER_S))
        except Exception as error:  # noqa: BLE001 - then nobody has looked
            return {"ok": False, "error": "no_peer", "detail": f"{self._by.name}: {placing.one_line(error)}"}


def _ended(order: m.RestartWorker, answer: Mapping[str, Any]) -> m.RepairEnded:
    error = answer.get("error")
    if answer.get("ok"):
        detail = f"raylet started, pid {answer.get('raylet', {}).get('pid')}"
        return m.RepairEnded(order.node, order.attempt, ok=True, detail=detail)
    if error == "already_running":
        detail = "a raylet of this name is running already; nothing was started"
        return m.RepairEnded(order.node, order.attempt, ok=True, detail=detail)
    detail = f"{error}: {answer.get('detail', 'no detail')}"
    curable, begun = error not in NOT_CURABLE, error not in NOT_BEGUN
    return m.RepairEnded(order.node, order.attempt, ok=False, detail=detail, curable=curable, begun=begun)
