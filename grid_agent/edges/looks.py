"""A look at a host's own process list: the second witness. Local by `/proc`, remote over SSH.

It only asks and translates; what the answer proves is decided in the core.
"""

from collections.abc import Callable, Mapping
from typing import Any

from grid_agent.core import messages as m
from grid_agent.core.model import NodeBelief, Raylet
from grid_agent.edges.transports import Transport

LOOK_S = 5.0
# Only these say something about the host; a refused key or an old Python says something about us.
UNREACHED = frozenset({"no_route", "refused", "connect_timeout", "unresolved"})


class Looks:
    """Looks at a host from a node: `ways(by, node)` is the way from the one to the other.

    `seen` keeps the rows of each node's last look that showed any: pid and session folder of a raylet that
    may be gone when its remains are to be ended.
    """

    def __init__(self, ways: Callable[[NodeBelief, str], Transport], gcs_address: str) -> None:
        self.seen: dict[str, list[Mapping[str, Any]]] = {}
        self._ways = ways
        self._gcs_address = gcs_address

    async def look(
        self, order: m.LookAtHost, by: NodeBelief
    ) -> m.HostLooked | m.HostUnreachable | m.LookFailed:
        """Every live raylet of this name and cluster on the node's host."""
        request = {
            "op": "look",
            "gcs_address": self._gcs_address,
            "node_name": order.node,
            "node_id": order.node_id,
        }
        answer = await self._ways(by, order.node).call(request, LOOK_S)
        if not answer.get("ok"):
            detail = f"{answer.get('error')}: {answer.get('detail', '')}"
            if answer.get("error") in UNREACHED:
                return m.HostUnreachable(order.node, by.name, detail, order.node_id)
            return m.LookFailed(order.node, by.name, detail)
        if answer.get("unsure"):
            detail = f"{answer['unsure']} raylets there cannot be read: look as the user who runs them"
            return m.LookFailed(order.node, by.name, detail)
        if answer["raylets"]:
            self.seen[order.node] = answer["raylets"]
        raylets = tuple(_raylet(r) for r in answer["raylets"])
        return m.HostLooked(order.node, by.name, raylets, asked_about=order.node_id)


def _raylet(seen: Mapping[str, Any]) -> Raylet:
    return Raylet(
        pid=int(seen["pid"]),
        node_id=str(seen["node_id"]),
        start_ticks=int(seen["start_ticks"]),
        stat=str(seen["stat"]),
    )
