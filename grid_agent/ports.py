"""What the loop needs from the outside, as Protocols. An edge reports what happened; it never raises.

The real ones are in `edges`, the in-memory ones in `testing`; `compose` joins them.
"""

from collections.abc import Iterable, Sequence
from typing import Protocol

from grid_agent.core import messages as m
from grid_agent.core.incident_model import Incident
from grid_agent.core.model import Belief, NodeBelief


class Clock(Protocol):
    """Seconds since the epoch on a clock that never jumps."""

    def __call__(self) -> float: ...


class Gcs(Protocol):
    """Ray's own view, and the way to correct it."""

    async def list_nodes(self) -> m.NodesListed | m.GcsWentSilent: ...

    async def tell_dead(self, order: m.TellRay) -> m.RayTold: ...

    async def drain(self, order: m.DrainNode) -> m.DrainAnswered: ...


class Heartbeats(Protocol):
    """Direct checks of every raylet: `follow` says whom, `sweep` asks those whose turn it is."""

    @property
    def rotation_s(self) -> float: ...

    def follow(self, nodes: Iterable[NodeBelief]) -> None: ...

    async def sweep(self) -> Sequence[m.Event]: ...


class Hosts(Protocol):
    """A look at a host's own process list, from the node `by`."""

    async def look(self, order: m.LookAtHost, by: NodeBelief) -> m.Event: ...


class LiveWorks(Protocol):
    """What runs on a node, before it is restarted on purpose."""

    async def list_work(self, order: m.ListWork) -> m.WorkListed: ...


class Remote(Protocol):
    """Ray tasks: the no-op that proves a node, from here or from a peer, and the repair on a live one."""

    async def prove(self, order: m.ProveNode) -> m.TaskRan | m.TaskMissed: ...

    async def place(self, order: m.ProveFromPeer, by: NodeBelief) -> m.PeerPlaced | m.PeerFailed: ...

    async def repair(self, order: m.RestartWorker, run_on: NodeBelief) -> m.RepairEnded: ...

    async def keep_ready(self, node: NodeBelief) -> None: ...


class Probes(Protocol):
    """The probe actor of every live node, which also checks another node when asked."""

    async def check(self, order: m.AskPeer, by: NodeBelief) -> m.PeerChecked | m.PeerFailed: ...

    async def sweep(self, nodes: Iterable[NodeBelief]) -> Sequence[m.Event]: ...

    def let_go(self, names: Iterable[str]) -> None: ...


class SelfCheck(Protocol):
    """The agent's look at itself."""

    async def check(self) -> m.SelfChecked: ...


class People(Protocol):
    """What people have said: the nodes they stopped."""

    def stopped(self) -> frozenset[str]: ...


class Journal(Protocol):
    """Keeps what a step changed; `save` returns when it is safe, or why it is not is `trouble`."""

    @property
    def trouble(self) -> str | None: ...

    async def save(
        self, before: Belief, after: Belief, events: Sequence[m.Event], orders: Sequence[m.Order], now: float
    ) -> None: ...


class Notifier(Protocol):
    """Shows incidents to people; `put` only queues."""

    def put(self, incident: Incident) -> None: ...
