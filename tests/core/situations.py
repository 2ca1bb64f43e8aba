"""Situations in the words of the tests: events by short names, and a `Story` that plays them in order.

A node's lives are called `gpu1-a`, `gpu1-b`, and so on; the head is `head`.
"""

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from grid_agent.core import messages as m
from grid_agent.core.incident_model import Incident
from grid_agent.core.model import Belief, NodeBelief
from grid_agent.core.policy import Policy
from grid_agent.core.seen import Raylet
from grid_agent.core.step import begin, step
from grid_agent.core.terms import Miss, Refusal, State

START = 1000.0


def configured(name: str, now: float = START) -> NodeBelief:
    return NodeBelief(name, f"host-of-{name}", "head" if name == "head" else "worker", State.JOINING, now)


def row(name: str, life: str = "a", *, alive: bool = True, death: str = "", gpus: int = 0) -> m.NodeRow:
    started_at_ms = 1000 * (ord(life) - ord("a") + 1)
    return m.NodeRow(name, f"{name}-{life}", name, 1, alive, started_at_ms, name == "head", gpus, death)


def answered(name: str, life: str = "a") -> m.HeartbeatAnswered:
    return m.HeartbeatAnswered(name, f"{name}-{life}", 0.5, 0.7)


def refused(name: str, life: str = "a") -> m.HeartbeatMissed:
    return m.HeartbeatMissed(name, f"{name}-{life}", Miss.REFUSED)


def timed_out(name: str, life: str = "a") -> m.HeartbeatMissed:
    return m.HeartbeatMissed(name, f"{name}-{life}", Miss.TIMED_OUT)


def unreachable(name: str, life: str = "a") -> m.HeartbeatMissed:
    return m.HeartbeatMissed(name, f"{name}-{life}", Miss.UNREACHABLE)


def no_process(name: str) -> m.HostLooked:
    return m.HostLooked(name, "head", ())


def pid_there(name: str, life: str = "a") -> m.HostLooked:
    return m.HostLooked(name, "head", (Raylet(42, f"{name}-{life}", 7, "T"),))


def not_reached(name: str) -> m.HostUnreachable:
    return m.HostUnreachable(name, "head", "no route to host")


def peer_says(name: str, how: Miss | None, life: str = "a", by: str = "gpu2") -> m.PeerChecked:
    return m.PeerChecked(name, f"{name}-{life}", by, how)


def peer_placed(name: str, life: str = "a", *, ran: bool = False, by: str = "gpu2") -> m.PeerPlaced:
    return m.PeerPlaced(name, f"{name}-{life}", by, ran, "no answer in 10 s")


def looks(orders: Iterable[m.Order]) -> list[tuple[str, str | None, str]]:
    """Who is to be looked at, in which life, and by whom."""
    return [(o.node, o.node_id, o.by) for o in orders if isinstance(o, m.LookAtHost)]


def task_ran(name: str, life: str = "a") -> m.TaskRan:
    return m.TaskRan(name, f"{name}-{life}")


def task_missed(name: str, life: str = "a") -> m.TaskMissed:
    return m.TaskMissed(name, f"{name}-{life}", "the deadline passed")


def repaired(name: str, attempt: int = 1) -> m.RepairEnded:
    return m.RepairEnded(name, attempt, ok=True, detail="the raylet was started")


def repair_failed(name: str, attempt: int = 1, *, curable: bool = True) -> m.RepairEnded:
    return m.RepairEnded(name, attempt, ok=False, detail="ray start failed", curable=curable)


def at_rest(belief: Belief, now: float, policy: Policy) -> tuple[Belief, list[m.Order]]:
    """Step on without news until nothing changes any more, which may take no more than two steps.

    One step may leave something for the next: how much doubt many failures at once cast is known at its end.
    Returns the belief at rest, and the orders given on the way.
    """
    given: list[m.Order] = []
    for _ in range(3):
        before = belief
        belief, orders = step(before, (), now, policy)
        if belief == before and not orders:
            return belief, given
        given += orders
    raise AssertionError(f"steps in which nothing happened go on and on; they gave {given}")


class Story:
    """A cluster told in events. All nodes are ALIVE at the start, unless `joined` is False."""

    def __init__(self, workers: int = 3, *, joined: bool = True, **policy: Any) -> None:
        self.policy = Policy(**{"prove_again_s": 1e9, **policy})
        self.now = START
        self.names = ("head", *(f"gpu{i}" for i in range(1, workers + 1)))
        self.belief: Belief = begin((configured(n) for n in self.names), self.now)
        self.rows = {name: row(name) for name in self.names}
        self.orders: list[m.Order] = []
        if joined:
            self.see(self.listing())
            self.see(*(answered(n) for n in self.names), *(task_ran(n) for n in self.names))
            self.orders.clear()

    def see(self, *events: m.Event, after: float = 0.0) -> tuple[m.Order, ...]:
        """Give these events `after` so many seconds; returns the orders, Notify left out."""
        self.now += after
        self.belief, orders = step(self.belief, events, self.now, self.policy)
        self.orders += orders
        return tuple(o for o in orders if not isinstance(o, m.Notify))

    def listing(self, *changed: m.NodeRow) -> m.NodesListed:
        """The GCS table from now on, with these rows in place of the former of the same name."""
        self.rows.update({r.name: r for r in changed})
        return m.NodesListed(tuple(self.rows.values()))

    def pass_time(self, seconds: float, *events: m.Event, every: float = 1.0) -> None:
        """Give the same events again and again for so many seconds."""
        for _ in range(round(seconds / every)):
            self.see(*events, after=every)

    def node(self, name: str) -> NodeBelief:
        return self.belief.nodes[name]

    def state(self, name: str) -> State:
        return self.node(name).state

    def refusal(self, name: str) -> Refusal | None:
        return self.node(name).refusal

    def given(self, kind: type) -> list[Any]:
        """Every order of this kind so far."""
        return [o for o in self.orders if isinstance(o, kind)]

    @property
    def incidents(self) -> list[Incident]:
        return list(self.belief.incidents.values())

    def change(self, name: str, **fields: Any) -> None:
        """Put a node into a situation directly."""
        self.belief = replace(
            self.belief, nodes={**self.belief.nodes, name: replace(self.node(name), **fields)}
        )

    # --- longer situations -----------------------------------------------------------------

    def die(self, *names: str, life: str = "a") -> tuple[m.Order, ...]:
        """kill -9, seen by both witnesses within one step."""
        self.see(*(refused(n, life) for n in names))
        return self.see(*(no_process(n) for n in names), after=0.1)

    def come_back(self, name: str, life: str = "b") -> tuple[m.Order, ...]:
        """A new incarnation is listed, answers, and a task runs on it."""
        self.see(self.listing(row(name, life)), after=1)
        return self.see(answered(name, life), task_ran(name, life), after=0.1)
