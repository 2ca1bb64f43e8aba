"""The last check before a repair leaves the agent: the limits once more, counted on their own.

It knows nothing of beliefs and verdicts; a fault in the core must not become a storm of restarts. What began
is written down here, too, so that a restarted agent counts on. Between `loop` and `remote`; `Word` is between
`loop` and `gcs`.
"""

import contextlib
import logging
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from grid_agent import ports
from grid_agent.core import messages as m
from grid_agent.core.model import NodeBelief
from grid_agent.core.policy import Policy

log = logging.getLogger("grid_agent.gate")
KEPT = 1000  # lines of the file that are read again


@dataclass(frozen=True, slots=True)
class Began:
    """One repair that was let through."""

    at: float
    node: str


class Gate:
    """Lets a repair through to `remote`, or refuses it before anything is done.

    Args:
        remote: What carries repairs out.
        policy: The limits.
        in_charge: Why this agent may not act any more, as one sentence; None while it may.
        file: Where what began is noted, one line each.
        wall: The system's clock.
    """

    def __init__(
        self,
        remote: ports.Remote,
        policy: Policy,
        in_charge: Callable[[], str | None],
        file: Path,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._remote = remote
        self._policy = policy
        self._in_charge = in_charge
        self._file = file
        self._wall = wall
        self._under_way: str | None = None
        self._began: list[Began] | None = None  # read when the first repair is asked for
        self.deposed: str | None = None  # what a host said that has seen a newer agent

    async def prove(self, order: m.ProveNode) -> m.TaskRan | m.TaskMissed:
        """Straight on: a task that does nothing harms nobody."""
        return await self._remote.prove(order)

    async def place(self, order: m.ProveFromPeer, by: NodeBelief) -> m.PeerPlaced | m.PeerFailed:
        """Straight on."""
        return await self._remote.place(order, by)

    async def keep_ready(self, node: NodeBelief) -> None:
        """Straight on."""
        await self._remote.keep_ready(node)

    async def repair(self, order: m.RestartWorker, run_on: NodeBelief) -> m.RepairEnded:
        """Carry it out, unless it is one too many or this agent is not the one to do it."""
        why = self.not_in_charge() or self._too_many(order)
        if why is not None:
            log.error("repair of %s not carried out: %s", order.node, why)
            return m.RepairEnded(order.node, order.attempt, ok=False, detail=why, begun=False)
        self._note(Began(self._wall(), order.node))
        self._under_way = order.node
        try:
            ended = await self._remote.repair(order, run_on)
        finally:
            self._under_way = None
        if ended.detail.startswith("stale:"):
            self.deposed = ended.detail
        return ended

    def not_in_charge(self) -> str | None:
        """Why this agent may not act any more; None while it may."""
        return self.deposed or self._in_charge()

    def _too_many(self, order: m.RestartWorker) -> str | None:
        """The limit that this repair would break, as counted here."""
        if self._under_way is not None:
            return f"refused where repairs are carried out: the one of {self._under_way} is under way"
        if self._began is None:
            self._began = self._read()
        now, most = self._wall(), self._policy
        own = [b for b in self._began if b.node == order.node and now - b.at < most.node_window_s]
        everybody = [b for b in self._began if now - b.at < most.cluster_window_s]
        if len(own) >= most.node_attempts and not order.by_person:
            return f"refused where repairs are carried out: {len(own)} of {order.node} lately"
        if len(everybody) >= most.cluster_attempts and not order.by_person:
            return f"refused where repairs are carried out: {len(everybody)} in this cluster lately"
        return None

    def _note(self, began: Began) -> None:
        longest_s = max(self._policy.node_window_s, self._policy.cluster_window_s)
        self._began = [b for b in self._began or [] if began.at - b.at < longest_s]
        self._began.append(began)
        lines = "".join(f"{b.at:.3f} {b.node}\n" for b in self._began)
        draft = self._file.with_suffix(".new")
        with contextlib.suppress(OSError):  # a full disk: it is counted in memory
            handle = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(lines)
            draft.replace(self._file)

    def _read(self) -> list[Began]:
        found = []
        with contextlib.suppress(OSError, UnicodeDecodeError):
            for line in self._file.read_text(encoding="utf-8").splitlines()[-KEPT:]:
                at, _, node = line.partition(" ")
                with contextlib.suppress(ValueError):
                    # A time that is yet to come was written by a clock that was wrong.
                    found.append(Began(min(float(at), self._wall()), node))
        return found


class Word:
    """What Ray is told, by the agent in charge only: a raylet that is reported dead ends itself.

    Between `loop` and `gcs`. `not_in_charge` says why this agent may not; None while it may.
    """

    def __init__(self, gcs: ports.Gcs, not_in_charge: Callable[[], str | None]) -> None:
        self._gcs = gcs
        self._not_in_charge = not_in_charge

    async def list_nodes(self) -> m.NodesListed | m.GcsWentSilent:
        """Straight on: whoever asks harms nobody."""
        return await self._gcs.list_nodes()

    async def tell_dead(self, order: m.TellRay) -> m.RayTold:
        """Tell it, unless another agent may think otherwise."""
        why = self._not_in_charge()
        if why is None:
            return await self._gcs.tell_dead(order)
        log.error("Ray is not told of %s: %s", order.node, why)
        return m.RayTold(order.node, order.node_id, accepted=False, detail=why)

    async def drain(self, order: m.DrainNode) -> m.DrainAnswered:
        """Ask for it, unless another agent may think otherwise."""
        why = self._not_in_charge()
        if why is None:
            return await self._gcs.drain(order)
        log.error("%s is not drained: %s", order.node, why)
        return m.DrainAnswered(order.node, order.node_id, accepted=False, detail=why)
