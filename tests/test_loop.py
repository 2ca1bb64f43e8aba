"""The shell: results come back as events, nothing an edge does stops it, the snapshot never waits."""

import asyncio
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager

import pytest

from grid_agent.core import messages as m
from grid_agent.core.incident_model import Incident, Phase
from grid_agent.core.model import NodeBelief
from grid_agent.core.policy import Policy
from grid_agent.core.seen import LiveWork
from grid_agent.core.step import begin
from grid_agent.core.terms import Miss, State
from grid_agent.loop import Edges, Loop
from grid_agent.testing import MemoryJournal
from tests.support.cluster import until_true

NAMES = ("head", "w1", "w2")


class World:
    """Every port in one: a cluster of three. A repair brings a dead node back as a new life."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.ids = {name: f"{name}-1" for name in NAMES}
        self.dead: set[str] = set()
        self.stopped_names: frozenset[str] = frozenset()
        self.told: list[str] = []
        self.let_go_of: set[str] = set()
        self.repaired: list[m.RestartWorker] = []
        self.shown: list[Incident] = []
        self.journal = MemoryJournal()
        self.hanging = asyncio.Event()
        self.hanging.set()
        self.lists = 0
        self.list_takes_s = 0.0
        self.unable: set[str] = set()

    def __call__(self) -> float:
        return self.now

    async def list_nodes(self) -> m.NodesListed:
        self.lists += 1
        self.now += self.list_takes_s
        rows = (
            m.NodeRow(n, i, "127.0.0.1", 1, True, int(i[-1]), is_head=n == "head")
            for n, i in self.ids.items()
        )
        return m.NodesListed(tuple(rows))

    async def list_work(self, order: m.ListWork) -> m.WorkListed:
        return m.WorkListed(order.node, order.node_id, LiveWork(0.0, order.node_id))

    async def tell_dead(self, order: m.TellRay) -> m.RayTold:
        self.told.append(order.node_id)
        return m.RayTold(order.node, order.node_id, accepted=True)

    rotation_s = 1.0

    def follow(self, nodes: Iterable[NodeBelief]) -> None:
        pass

    async def sweep(self, *_: object) -> Sequence[m.Event]:
        await self.hanging.wait()
        return [
            m.HeartbeatMissed(n, i, Miss.REFUSED) if n in self.dead else m.HeartbeatAnswered(n, i, 0.4)
            for n, i in self.ids.items()
        ]

    async def look(self, order: m.LookAtHost, by: NodeBelief) -> m.HostLooked:
        return m.HostLooked(order.node, "head", ())

    async def check(self, order: m.AskPeer, by: NodeBelief) -> m.PeerChecked:
        how = Miss.REFUSED if order.node in self.dead else None
        return m.PeerChecked(order.node, order.node_id, by.name, how)

    async def place(self, order: m.ProveFromPeer, by: NodeBelief) -> m.PeerPlaced:
        return m.PeerPlaced(order.node, order.node_id, by.name, order.node not in self.dead)

    async def prove(self, order: m.ProveNode) -> m.TaskRan | m.TaskMissed:
        if order.node in self.unable:
            return m.TaskMissed(order.node, order.node_id, "no answer")
        return m.TaskRan(order.node, order.node_id)

    async def repair(self, order: m.RestartWorker, run_on: NodeBelief) -> m.RepairEnded:
        self.repaired.append(order)
        self.dead.discard(order.node)
        self.ids[order.node] = f"{order.node}-{order.attempt + 1}"
        return m.RepairEnded(order.node, order.attempt, ok=True, detail=f"started on {run_on.name}'s word")

    async def keep_ready(self, node: NodeBelief) -> None:
        pass

    def let_go(self, names: Iterable[str]) -> None:
        self.let_go_of.update(names)

    def stopped(self) -> frozenset[str]:
        return self.stopped_names

    def put(self, incident: Incident) -> None:
        self.shown.append(incident)


@asynccontextmanager
async def watched(world: World) -> AsyncIterator[Loop]:
    nodes = [
        NodeBelief(n, "127.0.0.1", "head" if n == "head" else "worker", State.JOINING, world.now)
        for n in NAMES
    ]
    edges = Edges(world, world, world, world, world, world, world, world.journal, works=world)  # type: ignore[arg-type]
    loop = Loop(begin(nodes, world.now), Policy(), world, edges)
    running = asyncio.create_task(loop.run())
    try:
        loop.feed(await world.list_nodes())
        await until_true(lambda: all(n.state is State.ALIVE for n in loop.belief.nodes.values()))
        yield loop
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await loop.close()


async def test_a_death_goes_round_the_loop_and_is_healed() -> None:
    world = World()
    async with watched(world) as loop:
        world.dead.add("w1")
        await loop.beat()
        await until_true(lambda: bool(world.repaired))
        world.now += 3.0
        await loop.list_nodes()
        await until_true(lambda: loop.belief.nodes["w1"].state is State.ALIVE)
        assert world.told == ["w1-1"]
        assert [(r.node, r.run_on, r.fence_node_id) for r in world.repaired] == [("w1", "head", "w1-1")]
        assert world.shown[-1].phase is Phase.RESOLVED
        assert {i.id for i in world.shown} == {1}


async def test_the_table_is_read_five_times_a_second_while_a_node_is_on_its_way_and_else_once() -> None:
    world = World()
    async with watched(world) as loop:

        async def listed(after_s: float) -> int:
            world.now, before = world.now + after_s, world.lists
            await loop.list_nodes()
            return world.lists - before

        assert [await listed(s) for s in (1.0, 0.5, 0.5, 0.5)] == [1, 0, 1, 0]
        world.ids["w2"], world.unable, world.list_takes_s = "w2-2", {"w2"}, 0.2
        assert await listed(1.0) == 1
        await until_true(lambda: loop.belief.nodes["w2"].state is State.JOINING)
        assert await listed(1.0) in (4, 5)
        world.unable.clear()
        await listed(10.0)
        await until_true(lambda: loop.belief.nodes["w2"].state is State.ALIVE)
        assert await listed(1.0) == 1


async def test_what_a_person_stopped_a_moment_ago_is_not_restarted() -> None:
    world = World()
    async with watched(world) as loop:
        world.dead.add("w1")
        world.stopped_names = frozenset({"w1"})  # no tick has told the loop
        await loop.beat()
        await until_true(lambda: loop.belief.nodes["w1"].state is State.CORDONED)
        assert not world.repaired
        assert world.let_go_of == {"w1"}  # a drain would wait for the probe actor there


async def test_a_sweep_that_hangs_keeps_nobody_from_the_snapshot() -> None:
    world = World()
    async with watched(world) as loop:
        world.hanging.clear()
        sweep = asyncio.create_task(loop.beat())
        world.now += 1.0
        await loop.tick()
        await until_true(lambda: loop.belief.stepped_at == world.now)
        world.hanging.set()
        await sweep


async def test_an_edge_that_raises_is_logged_and_the_loop_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    world = World()

    async def broken(order: m.LookAtHost, by: NodeBelief) -> m.HostLooked:
        raise RuntimeError("broken edge")

    world.look = broken  # type: ignore[method-assign]
    async with watched(world) as loop:
        world.dead.add("w1")
        await loop.beat()
        await until_true(lambda: "an edge raised instead of reporting" in caplog.text)
        assert loop.belief.nodes["w1"].state is State.SUSPECT  # one witness only: nothing was done
        assert not world.repaired


async def test_a_late_tick_is_measured() -> None:
    world = World()
    async with watched(world) as loop:
        await loop.tick()
        world.now += 3.5
        await loop.tick()
        await until_true(lambda: loop.belief.observer.loop_lag_ms == pytest.approx(3000.0))


async def test_while_somebody_is_suspected_a_limit_needs_no_tick() -> None:
    world = World()
    async with watched(world) as loop:
        assert loop._patience_s(0.0) is None
        loop.feed(*[m.HeartbeatMissed("w1", "w1-1", Miss.TIMED_OUT)] * 2)
        await until_true(lambda: loop.belief.nodes["w1"].state is State.SUSPECT)
        world.now += 1.0
        await until_true(lambda: loop.belief.stepped_at == world.now)
        assert (loop._patience_s(0.0), loop._patience_s(0.5)) == (0.1, 5.0)
        world.now += 1000.0  # it waits for a person by now
        assert loop._patience_s(0.0) is None


async def test_that_the_healthy_are_healthy_waits_for_the_tick_and_news_does_not() -> None:
    world = World()
    async with watched(world) as loop:
        stepped_at = loop.belief.stepped_at
        world.now += 1.0
        loop.feed(m.HeartbeatAnswered("w1", "w1-1", 0.4), m.HeartbeatsSwept(1.0))
        await asyncio.sleep(0.05)
        assert loop.belief.stepped_at == stepped_at
        await loop.tick()
        await until_true(lambda: loop.belief.nodes["w1"].heartbeat.answered_at == world.now)
        world.now += 1.0
        loop.feed(m.HeartbeatMissed("w1", "w1-1", Miss.REFUSED))
        await until_true(lambda: loop.belief.nodes["w1"].state is not State.ALIVE)
