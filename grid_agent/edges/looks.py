"""A look at a host's own process list: the second witness. Local by `/proc`, remote over SSH.

It only asks and translates; what the answer proves is decided in the core.
"""

from collections.abc import Callable, Mapping
from typing import Any, Protocol

from grid_agent.core import messages as m
from grid_agent.core.model import Raylet

LOOK_S = 5.0


class Transport(Protocol):
    """Runs one request of `host_program` on a host."""

    async def call(self, request: dict[str, Any], timeout_s: float) -> dict[str, Any]:
        """The program's answer, or one with `ok` False."""
        ...


class Looks:
    """Looks through the transport of each node's host. `by` is the node that looks: the head."""

    def __init__(self, transports: Callable[[str], Transport], gcs_address: str, by: str) -> None:
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
        return m.HostLooked(order.node, self._by, tuple(_raylet(r) for r in answer["raylets"]))


def _raylet(seen: Mapping[str, Any]) -> Raylet:
    return Raylet(
        pid=int(seen["pid"]),
        node_id=str(seen["node_id"]),
        start_ticks=int(seen["start_ticks"]),
        stat=str(seen["stat"]),
    )
