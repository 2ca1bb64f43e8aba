"""An agent to be killed: the real core, loop, journal and outbox, in a process of its own, on a `CrashWorld`.

Its clock runs FAST times as fast as the wall, so that waits of the core cost a test little.
"""

import asyncio
import json
import logging
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from grid_agent import failpoints
from grid_agent.core import messages as m
from grid_agent.core.model import NodeBelief
from grid_agent.core.policy import Policy
from grid_agent.core.seen import Raylet
from grid_agent.core.step import begin
from grid_agent.core.terms import Miss, State
from grid_agent.edges.journal import Journal, Sent
from grid_agent.edges.outbox import Outbox
from grid_agent.edges.slack import SlackClient
from grid_agent.loop import Edges, Loop
from tests.support.crash_world import NAMES

FAST = 10.0
SINCE = time.time()
UNIT_S = 0.01  # the shortest time between two edits of one Slack message


def configured(now: float) -> list[NodeBelief]:
    roles: dict[str, Any] = {n: "head" if n == "head" else "worker" for n in NAMES}
    return [NodeBelief(n, "127.0.0.1", roles[n], State.JOINING, now) for n in NAMES]


class Ports:
    """Every port, by one call each to the world."""

    rotation_s = 1.0

    def __init__(self, world: str) -> None:
        self._world = world
        self._armed = ""

    async def ask(self, op: str, **what: Any) -> Any:
        reader, writer = await asyncio.open_unix_connection(self._world)
        writer.write(json.dumps({"op": op, **what}).encode() + b"\n")
        line = await reader.readline()
        writer.close()
        return json.loads(line)

    async def list_nodes(self) -> m.NodesListed:
        answer = await self.ask("list")
        if answer["failpoint"] != self._armed:
            self._armed = answer["failpoint"]
            failpoints.arm(self._armed)
        return m.NodesListed(
            tuple(
                m.NodeRow(r["name"], i, "127.0.0.1", 1, r["alive"], r["at"], r["name"] == "head")
                for i, r in answer["rows"].items()
            )
        )

    async def tell_dead(self, order: m.TellRay) -> m.RayTold:
        return m.RayTold(order.node, order.node_id, await self.ask("tell", node_id=order.node_id))

    def follow(self, nodes: Iterable[NodeBelief]) -> None:
        self._followed = {n.name: n.incarnation.node_id for n in nodes if n.incarnation}

    async def sweep(self, *_: object) -> Sequence[m.Event]:
        alive = await self.ask("beat")
        return [
            m.HeartbeatAnswered(n, i, 0.4) if i in alive[n] else m.HeartbeatMissed(n, i, Miss.REFUSED)
            for n, i in getattr(self, "_followed", {}).items()
        ]

    async def look(self, order: m.LookAtHost, by: NodeBelief) -> m.HostLooked:
        seen = await self.ask("look", node=order.node)
        raylets = tuple(Raylet(int(r.rpartition("-")[2]), r) for r in seen["raylets"])
        return m.HostLooked(
            order.node, by.name, raylets, asked_about=order.node_id, starting=seen["starting"]
        )

    async def prove(self, order: m.ProveNode) -> m.TaskRan | m.TaskMissed:
        if await self.ask("prove", node=order.node, node_id=order.node_id):
            return m.TaskRan(order.node, order.node_id)
        return m.TaskMissed(order.node, order.node_id, "no such raylet")

    async def check(self, order: m.AskPeer, by: NodeBelief) -> m.PeerChecked:
        alive = await self.ask("beat")
        how = None if order.node_id in alive[order.node] else Miss.REFUSED
        return m.PeerChecked(order.node, order.node_id, by.name, how)

    async def place(self, order: m.ProveFromPeer, by: NodeBelief) -> m.PeerPlaced:
        ran = await self.ask("prove", node=order.node, node_id=order.node_id)
        return m.PeerPlaced(order.node, order.node_id, by.name, ran)

    async def repair(self, order: m.RestartWorker, run_on: NodeBelief) -> m.RepairEnded:
        said = await self.ask("repair", node=order.node, fence=order.fence_node_id)
        return m.RepairEnded(order.node, order.attempt, ok=said["ok"], detail=said["detail"])

    async def keep_ready(self, node: NodeBelief) -> None:
        pass

    def let_go(self, names: Iterable[str]) -> None:
        pass

    def stopped(self) -> frozenset[str]:
        return frozenset()


async def live(world: str, folder: str, slack_url: str, started: float) -> None:
    def clock() -> float:
        return started + (time.time() - started) * FAST

    ports, journal = Ports(world), Journal(Path(folder, "journal.sqlite"), wall=clock)
    client = SlackClient(Path(folder, "slack_token"), slack_url, timeout_s=2.0)

    async def keep(number: int, row: Any) -> None:
        await journal.record_sent(number, Sent(int(row["revision"]), row))

    outbox = Outbox(
        client, "C0123456789", "lab", now=clock, keep=keep, min_edit_s=UNIT_S, backoff_s=(0.05, 0.1)
    )
    edges = Edges(ports, ports, ports, ports, ports, ports, outbox, journal)  # type: ignore[arg-type]
    belief = await journal.open(begin(configured(clock()), clock()), clock())
    loop = Loop(belief, Policy(lag_warn_ms=1e9), clock, edges)
    outbox.restore({k: s.body for k, s in journal.sent.items()})
    for incident in belief.incidents.values():
        outbox.put(incident)

    async def every(seconds: float, job: Any) -> None:
        while True:
            with suppress(OSError, ValueError):
                await job()
            await asyncio.sleep(seconds)

    async def probe() -> None:
        loop.feed(m.LoopLagged(0.0))

    async def listing() -> None:
        loop.feed(await ports.list_nodes())

    jobs = ((0.02, listing), (0.03, loop.beat), (0.03, probe))
    await asyncio.gather(loop.run(), outbox.run(), *(every(s, job) for s, job in jobs))


def main(world: str, folder: str, slack_url: str, started: float) -> None:
    logging.basicConfig(filename=Path(folder, "agent.log"), level=logging.INFO)
    asyncio.run(live(world, folder, slack_url, started))
