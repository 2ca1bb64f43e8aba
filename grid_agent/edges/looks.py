"""A look at a host's own process list: the second witness. Local by `/proc`, remote over SSH.

It only asks and translates; what the answer proves is decided in the core.
"""

from collections.abc import Callable, Mapping
from typing import Any

from grid_agent.core import messages as m
from grid_agent.core.model import Raylet
from grid_agent.edges.transports import Transport

LOOK_S = 5.0


class Looks:
    """Looks through the transport of each node's host. `by` is the node that looks: the head.

    `seen` keeps the rows of each node's last look that showed any: pid and session folder of a raylet that
    may be gone when its remains are to be ended.
    """

    def __init__(self, transports: Callable[[str], Transport], gcs_address: str, by: str) -> None:
        self.seen: dict[str, list[Mapping[str, Any]]] = {}
        self._transports = transports
        self._gcs_address = gcs_address
        self._by = by

    async def look(self, order: m.LookAtHost) -> m.HostLooked | m.HostUnreachable:
        """Every live raylet of this name and cluster on the node's host."""
        request = {
            "op": "look",
            "gcs_address": self._gcs_address,
            "node_name": order.node,
            "node_id": order.node_id,
        }
        answer = await self._transports(order.node).call(request, LOOK_S)
        if not answer.get("ok"):
            detail = f"{answer.get('error')}: {answer.get('detail', '')}"
            return m.HostUnreachable(order.node, self._by, detail)
        if answer["raylets"]:
            self.seen[order.node] = answer["raylets"]
        return m.HostLooked(order.node, self._by, tuple(_raylet(r) for r in answer["raylets"]))


def _raylet(seen: Mapping[str, Any]) -> Raylet:
    return Raylet(
        pid=int(seen["pid"]),
        node_id=str(seen["node_id"]),
        start_ticks=int(seen["start_ticks"]),
        stat=str(seen["stat"]),
    )
