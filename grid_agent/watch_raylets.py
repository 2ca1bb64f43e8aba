"""What `validate --monitor` reads where no agent answers: every raylet, asked directly.

The GCS tells who is there; each node that it lists as ALIVE is asked the question of Ray's own health check.
The answers have the shape of the agent's health report, without what only an agent can know.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

from grid_agent.api_client import ApiError
from grid_agent.core.messages import NodeRow
from grid_agent.core.report import iso
from grid_agent.edges.checker import measure
from grid_agent.ray_view import Said

GIVE_UP_S = 1.0
SPREAD_S = 0.05  # over which the checks of one round begin


class Raylets:
    """Each call is one round, and its report. Whoever was seen once is followed to the end.

    Args:
        ask: Asks the GCS for its node table.
        where: Its address, for messages.
    """

    def __init__(self, ask: Callable[[], Awaitable[Said]], where: str) -> None:
        self._ask = ask
        self._where = where
        self._rows: dict[str, NodeRow] = {}
        self._states: dict[str, tuple[str, float]] = {}
        self._answered_at: dict[str, float] = {}

    def __call__(self) -> dict[str, Any]:
        """Ask everybody; at most a few seconds.

        Raises:
            ApiError: The GCS has never answered, so that nobody is known.
        """
        said, took_ms = asyncio.run(self._round())
        now = time.time()
        nodes = [self._node(name, took_ms.get(name), now) for name in self._rows]
        gcs = {"status": "pass"} if said.rows is not None else {"status": "warn", "detail": said.error}
        status = "fail" if said.rows is None else self._status(nodes)
        return {"status": status, "time": iso(now), "observer": gcs, "nodes": nodes}

    async def _round(self) -> tuple[Said, dict[str, float | None]]:
        said = await self._ask()
        self._list(said.rows or ())
        if not self._rows:
            raise ApiError(f"nobody answers at {self._where} ({said.error})")
        targets = {name: (row.address, row.port) for name, row in self._rows.items() if row.alive}
        traces = await measure(targets, SPREAD_S / 10, SPREAD_S, GIVE_UP_S, lambda _: None)
        return said, {trace.node: trace.checks[-1].took_ms for trace in traces}

    def _list(self, rows: Iterable[NodeRow]) -> None:
        """The newest row of each node that is there, or was."""
        for row in sorted(rows, key=lambda row: row.started_at_ms):
            name = row.name or row.node_id[:8]
            if row.alive or name in self._rows:
                self._rows[name] = row

    def _node(self, name: str, took_ms: float | None, now: float) -> dict[str, Any]:
        row = self._rows[name]
        state = "DEAD" if not row.alive else "SUSPECT" if took_ms is None else "ALIVE"
        if took_ms is not None:
            self._answered_at[name] = now
        if self._states.get(name, ("", 0.0))[0] != state:
            self._states[name] = (state, now)
        last_at = self._answered_at.get(name)
        age_s = None if last_at is None else round(now - last_at, 3)
        return {
            "name": name,
            "role": "head" if row.is_head else "worker",
            "state": state,
            "since": iso(self._states[name][1]),
            "cause": row.death or None,
            "heartbeat": {"age_s": age_s, "rtt_ms": took_ms, "last_rtt_ms": took_ms},
        }

    def _status(self, nodes: list[dict[str, Any]]) -> str:
        """As in a health report: no head or no worker is a failure, one node less a warning."""
        well = {node["name"] for node in nodes if node["state"] == "ALIVE"}
        workers = {node["name"] for node in nodes if node["role"] == "worker"}
        heads = {node["name"] for node in nodes} - workers
        if heads - well or (workers and not workers & well):
            return "fail"
        return "pass" if len(well) == len(nodes) else "warn"
