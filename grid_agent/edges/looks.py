"""A look at the host itself: processes, last words, how it is. By `/proc` here, over SSH elsewhere.

It only asks and translates; what the answer proves is decided in the core.
"""

import asyncio
import time
from collections.abc import Callable, Mapping
from typing import Any

from grid_agent.core import messages as m
from grid_agent.core.model import NodeBelief
from grid_agent.core.seen import HostFacts, Raylet
from grid_agent.edges.transports import FAN_OUT, Transport

LOOK_S = 5.0
BUNDLE_AGAIN_S = 60.0  # the logs of a raylet that is gone may have been read before anybody kept them
# Only these say that the host may be down. A refused key, a name that DNS does not know or an old Python says
# something about us, and a refused connection that the host is up.
UNREACHED = frozenset({"no_route", "connect_timeout"})


class Looks:
    """Looks at a host from a node: `ways(by, node)` is the way from the one to the other.

    `seen` keeps the rows of each node's last look that showed any: pid and session folder of a raylet that
    may be gone when its remains are to be ended. `session_dir(node)` is where a node's logs are, if known;
    `lock_of(node)` the path, on its host, of the lock that its start holds.
    """

    def __init__(
        self,
        ways: Callable[[NodeBelief, str], Transport],
        gcs_address: str,
        session_dir: Callable[[str], str | None] = lambda _: None,
        lock_of: Callable[[str], str | None] = lambda _: None,
    ) -> None:
        self.seen: dict[str, list[Mapping[str, Any]]] = {}
        # The incarnation that was gone when its logs were read, and when that was.
        self._bundled: dict[str, tuple[str | None, float]] = {}
        self._ways = ways
        self._room = asyncio.Semaphore(FAN_OUT)
        self._gcs_address = gcs_address
        self._session_dir = session_dir
        self._lock_of = lock_of

    async def look(
        self, order: m.LookAtHost, by: NodeBelief
    ) -> m.HostLooked | m.HostUnreachable | m.LookFailed:
        """Every live raylet of this name and cluster on the node's host."""
        request = {
            "op": "look",
            "gcs_address": self._gcs_address,
            "node_name": order.node,
            "node_id": order.node_id,
            "address": order.address,
            "port": order.port,
            "raylet_pid": order.pid,
            "quiet_s": order.quiet_s,
            "session_dir": self._known_session(order) or self._session_dir(order.node),
            "lock": self._lock_of(order.node),
            "bundle": self._wants_bundle(order),
        }
        async with self._room:  # a thousand suspects are not a thousand ssh clients
            asked_at = time.time()
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
        facts = _facts(answer, asked_at)
        about, starting, bundle = order.node_id, answer.get("starting"), answer.get("bundle")
        # What a raylet that lives has written so far is not yet what it dies of.
        if bundle is not None and order.node_id not in {r.node_id for r in raylets}:
            self._bundled[order.node] = (order.node_id, time.monotonic())
        return m.HostLooked(order.node, by.name, raylets, "", about, facts, starting, bundle)

    def _wants_bundle(self, order: m.LookAtHost) -> bool:
        node_id, at = self._bundled.get(order.node, ("", 0.0))
        return node_id != order.node_id or time.monotonic() - at > BUNDLE_AGAIN_S

    def _known_session(self, order: m.LookAtHost) -> str | None:
        rows = self.seen.get(order.node, ())
        return next((str(r["session_dir"]) for r in rows if r.get("node_id") == order.node_id), None)


def _raylet(seen: Mapping[str, Any]) -> Raylet:
    return Raylet(
        pid=int(seen["pid"]),
        node_id=str(seen["node_id"]),
        start_ticks=int(seen["start_ticks"]),
        stat=str(seen["stat"]),
        workers=int(seen.get("workers", 0)),
        busy=tuple(map(str, seen.get("busy", ()))),
    )


def _facts(answer: Mapping[str, Any], asked_at: float) -> HostFacts:
    """How the host is. Its clock is compared with the middle of the call, by this machine's."""
    host, port = answer.get("host", {}), answer.get("port", {})
    pressure = {kind: float(some) for kind, some in (host.get("psi") or {}).items() if some is not None}
    ahead_s = None if "time" not in host else float(host["time"]) - (asked_at + time.time()) / 2
    return HostFacts(
        load1=host.get("load1"),
        cpus=host.get("cpus"),
        mem_available_mb=host.get("mem_available_mb"),
        mem_total_mb=host.get("mem_total_mb"),
        pressure=pressure,
        port=port.get("port"),
        listening=port.get("listening"),
        greets=port.get("greets"),
        death=_lines(answer, "death"),
        oom=_lines(answer, "oom"),
        agent=_lines(answer, "agent"),
        clock_ahead_s=ahead_s,
    )


def _lines(answer: Mapping[str, Any], name: str) -> tuple[str, ...]:
    return tuple(map(str, answer.get(name) or ()))
