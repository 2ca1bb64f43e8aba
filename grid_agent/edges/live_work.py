"""What runs on one node, by Ray's public state API: it is asked before a node that still runs is restarted.

It asks the dashboard of our own head, in a thread and with a deadline; whatever goes wrong is an answer too.
"""

import asyncio
from collections.abc import Mapping
from typing import Any

from ray.util import state

from grid_agent.core import messages as m
from grid_agent.core.seen import LiveWork
from grid_agent.edges.placing import OUR_ACTORS, OUR_TASKS

LIST_S = 6.0
NAMES = 8
MOST = 1000  # of a kind; a node that runs more tasks or actors is busy enough
REPLICA = "ServeReplica:"


class LiveWorks:
    """Lists tasks, actors, placement groups and Serve replicas; what the agent itself runs does not count.

    `gcs_address` names the cluster: without it Ray takes any that it finds on this machine.
    """

    def __init__(self, gcs_address: str) -> None:
        self._gcs_address = gcs_address

    async def list_work(self, order: m.ListWork) -> m.WorkListed:
        """What runs on this incarnation now, or why that is not known."""
        try:
            work = await asyncio.wait_for(self._listed(order.node_id), LIST_S + 2.0)
        except Exception as error:  # noqa: BLE001 - then nothing is known, and nothing is restarted
            lines = str(error).strip().splitlines() or [""]
            work = LiveWork(0.0, order.node_id, trouble=f"{type(error).__name__}: {lines[-1][:200]}")
        return m.WorkListed(order.node, order.node_id, work)

    async def _listed(self, node_id: str) -> LiveWork:
        return await asyncio.to_thread(_list, self._gcs_address, node_id)


def _list(gcs_address: str, node_id: str) -> LiveWork:
    limits: dict[str, Any] = {"address": gcs_address, "limit": MOST, "timeout": int(LIST_S)}
    limits["raise_on_missing_output"] = False
    here = ("node_id", "=", node_id)
    actors = state.list_actors(filters=[here, ("state", "=", "ALIVE")], **limits)
    tasks = state.list_tasks(
        filters=[here, ("state", "=", "RUNNING"), ("type", "=", "NORMAL_TASK")], **limits
    )
    groups = state.list_placement_groups(filters=[("state", "=", "CREATED")], detail=True, **limits)
    replicas = [a for a in actors if str(a.class_name).startswith(REPLICA)]
    others = [a for a in actors if a not in replicas and a.class_name not in OUR_ACTORS]
    tasks = [t for t in tasks if not str(t.name).startswith(OUR_TASKS)]
    if len(groups) >= MOST:  # Ray cannot filter them by node
        raise RuntimeError(f"{MOST} placement groups or more: those of one node cannot be told")
    groups = [g for g in groups if any(_node_of(b) == node_id for b in g.bundles or ())]
    names = [str(a.name or a.class_name) for a in (*replicas, *others)] + [str(t.name) for t in tasks]
    counts = {
        "tasks": len(tasks),
        "actors": len(others),
        "Serve replicas": len(replicas),
        "placement groups": len(groups),
    }
    return LiveWork(0.0, node_id, counts, tuple(dict.fromkeys(names))[:NAMES])


def _node_of(bundle: Any) -> Any:
    return bundle.get("node_id") if isinstance(bundle, Mapping) else getattr(bundle, "node_id", None)
