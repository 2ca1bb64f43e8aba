"""The limits where repairs leave the agent: counted on their own, whatever the core thinks."""

import asyncio
from pathlib import Path

import pytest

from grid_agent.core import messages as m
from grid_agent.core.model import NodeBelief
from grid_agent.core.policy import Policy
from grid_agent.core.terms import Cause
from grid_agent.edges.gate import Gate, Word
from tests.core.situations import configured

HEAD: NodeBelief = configured("head")


class Hand:
    """Plays `Remote`: keeps what it was asked, and waits while it is told to."""

    def __init__(self) -> None:
        self.asked: list[m.RestartWorker] = []
        self.detail = "raylet started"
        self.wait = asyncio.Event()
        self.wait.set()

    async def prove(self, order: m.ProveNode) -> m.TaskRan:
        return m.TaskRan(order.node, order.node_id)

    async def place(self, order: m.ProveFromPeer, by: NodeBelief) -> m.PeerPlaced | m.PeerFailed:
        raise NotImplementedError

    async def keep_ready(self, node: NodeBelief) -> None:
        pass

    async def repair(self, order: m.RestartWorker, run_on: NodeBelief) -> m.RepairEnded:
        self.asked.append(order)
        await self.wait.wait()
        if self.detail == "raise":
            raise RuntimeError("an edge that raises")
        return m.RepairEnded(
            order.node, order.attempt, ok=self.detail == "raylet started", detail=self.detail
        )


class Ray:
    """Plays `Gcs`: keeps what it was told."""

    def __init__(self) -> None:
        self.told: list[m.Order] = []

    async def list_nodes(self) -> m.NodesListed:
        return m.NodesListed(())

    async def tell_dead(self, order: m.TellRay) -> m.RayTold:
        self.told.append(order)
        return m.RayTold(order.node, order.node_id, accepted=True)

    async def drain(self, order: m.DrainNode) -> m.DrainAnswered:
        self.told.append(order)
        return m.DrainAnswered(order.node, order.node_id, accepted=True)


class World:
    """A gate, its clock, and who is in charge."""

    def __init__(self, folder: Path, **policy: float) -> None:
        self.now = 1_000_000.0
        self.hand = Hand()
        self.other: str | None = None
        self.file = folder / "repairs"
        self.policy = Policy(**policy)  # type: ignore[arg-type]
        self.gate = self.make()
        self.ray = Ray()
        self.word = Word(self.ray, lambda: self.gate.not_in_charge())  # noqa: PLW0108 - the gate may change

    def make(self) -> Gate:
        return Gate(self.hand, self.policy, lambda: self.other, self.file, lambda: self.now)

    async def ask(self, name: str, *, by_person: bool = False) -> m.RepairEnded:
        self.now += 1
        order = m.RestartWorker(name, "head", 1, None, by_person=by_person)
        return await self.gate.repair(order, HEAD)


async def test_the_fifth_repair_of_a_node_is_refused_before_anything_is_done(tmp_path: Path) -> None:
    world = World(tmp_path)
    for _ in range(4):
        assert (await world.ask("gpu1")).ok
    fifth = await world.ask("gpu1")
    assert (fifth.ok, fifth.begun) == (False, False)
    assert "4 of gpu1 lately" in fifth.detail
    assert (await world.ask("gpu2")).ok
    assert len(world.hand.asked) == 5
    world.now += world.policy.node_window_s
    assert (await world.ask("gpu1")).ok


async def test_the_eleventh_of_the_cluster_is_refused(tmp_path: Path) -> None:
    world = World(tmp_path)
    for number in range(10):
        assert (await world.ask(f"gpu{number}")).ok
    assert "10 in this cluster lately" in (await world.ask("gpu99")).detail
    world.now += world.policy.cluster_window_s
    assert (await world.ask("gpu99")).ok


async def test_a_restarted_agent_counts_on(tmp_path: Path) -> None:
    world = World(tmp_path)
    for _ in range(4):
        await world.ask("gpu1")
    world.gate = world.make()
    assert not (await world.ask("gpu1")).begun
    assert world.file.stat().st_mode & 0o777 == 0o600


async def test_a_person_is_not_bound_by_the_rates_but_by_one_at_a_time(tmp_path: Path) -> None:
    world = World(tmp_path, node_attempts=1)
    await world.ask("gpu1")
    assert not (await world.ask("gpu1")).begun
    assert (await world.ask("gpu1", by_person=True)).ok
    world.hand.wait.clear()
    first = asyncio.create_task(world.ask("gpu2"))
    await asyncio.sleep(0)
    second = await world.ask("gpu3", by_person=True)
    assert "the one of gpu2 is under way" in second.detail
    world.hand.wait.set()
    assert (await first).ok


async def test_after_an_edge_that_raised_the_next_is_let_through(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.hand.detail = "raise"
    with pytest.raises(RuntimeError):
        await world.ask("gpu1")
    world.hand.detail = "raylet started"
    assert (await world.ask("gpu2")).ok


async def test_an_agent_that_is_not_in_charge_any_more_does_nothing(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.other = "the lock is another's"
    assert (await world.ask("gpu1")).detail == "the lock is another's"
    assert world.hand.asked == []


async def test_one_that_a_host_called_stale_never_acts_again(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.hand.detail = "stale: a newer agent has acted on this node"
    await world.ask("gpu1")
    world.hand.detail = "raylet started"
    ended = await world.ask("gpu2")
    assert (ended.begun, world.gate.deposed is not None) == (False, True)
    assert len(world.hand.asked) == 1


DEAD = m.TellRay("gpu1", "a1", Cause.PROCESS_GONE, "gone")
DRAIN = m.DrainNode("gpu1", "a1", "asked for", None)


async def test_ray_is_told_by_the_agent_in_charge(tmp_path: Path) -> None:
    world = World(tmp_path)
    assert (await world.word.tell_dead(DEAD)).accepted
    assert (await world.word.drain(DRAIN)).accepted
    assert world.ray.told == [DEAD, DRAIN]


@pytest.mark.parametrize("how", ["lock", "stale"])
async def test_an_agent_that_is_not_in_charge_tells_ray_nothing(tmp_path: Path, how: str) -> None:
    world = World(tmp_path)
    if how == "lock":
        world.other = "the lock is another's"
    else:
        world.hand.detail = "stale: a newer agent has acted on this node"
        await world.ask("gpu1")
    told, drained = await world.word.tell_dead(DEAD), await world.word.drain(DRAIN)
    assert (told.accepted, drained.accepted) == (False, False)
    assert how in told.detail
    assert how in drained.detail
    assert world.ray.told == []
    assert await world.word.list_nodes() == m.NodesListed(())


@pytest.mark.parametrize("content", ["", "x\n", "nan gpu1\n", "1e400 gpu1\n", "1 \n\n5\n", "\x00"])
async def test_a_damaged_file_is_read_as_far_as_it_goes(tmp_path: Path, content: str) -> None:
    world = World(tmp_path)
    world.file.write_text(content)
    assert (await world.ask("gpu1")).ok


async def test_where_nothing_can_be_written_it_is_counted_all_the_same(tmp_path: Path) -> None:
    world = World(tmp_path, node_attempts=1)
    world.file = tmp_path / "nowhere" / "repairs"
    world.gate = world.make()
    assert (await world.ask("gpu1")).ok
    assert not (await world.ask("gpu1")).begun
