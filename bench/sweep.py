"""A thousand simulated raylets, ten killed at once: `python bench/sweep.py`.

The agent's own loop, heartbeats, GCS edge, journal, scheduler and core run in this process, against simulated
raylets and a stand-in for the GCS in processes of their own. Left out: Ray tasks (the probe of each node, the
proof, the repair), which do not run without Ray. The look at a host reads /proc of this machine. Prints how
long a crash takes to be suspected, decided and told, the same for 3 nodes in the same run, and the CPU at
rest; writes bench/results/sweep.json.
"""

import argparse
import asyncio
import contextlib
import functools
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from apscheduler.schedulers.asyncio import AsyncIOScheduler

from config.settings import Agent as AgentSettings
from grid_agent.compose import steady_clock
from grid_agent.core import messages as m
from grid_agent.core import report, seen
from grid_agent.core.incident_model import Incident
from grid_agent.core.model import NodeBelief
from grid_agent.core.policy import Policy
from grid_agent.core.step import begin
from grid_agent.core.terms import State
from grid_agent.edges import file_limit
from grid_agent.edges.gcs import Gcs
from grid_agent.edges.heartbeat import Heartbeats
from grid_agent.edges.held_channel import connect
from grid_agent.edges.journal import Journal
from grid_agent.edges.self_check import SelfCheck
from grid_agent.loop import Edges, Loop
from grid_agent.schedule import schedule
from tests.support.cluster import ROOT, until_true
from tests.support.raylets import Raylet, Raylets

PER_PROCESS = 250
GOALS = (
    "goals: verdict within 0.34 s, told within 1.0 s, at most 5 % of a core at rest, the same as for 3 nodes"
)


def main() -> None:
    """Measure both sizes and report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nodes", type=int, default=1000)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--rest-s", type=float, default=30.0)
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    args = parser.parse_args()
    file_limit.provide(0)
    rng = random.Random(args.seed)
    show(asyncio.run(both(args, rng)), args.seed)


async def both(args: argparse.Namespace, rng: random.Random) -> list[dict[str, Any]]:
    """A small cluster and the large one."""
    sizes = ((3, 1), (args.nodes, args.kills))
    return [await measure(size, kills, args.runs, args.rest_s, rng) for size, kills in sizes]


class World:
    """What is not an edge of ours here: looks at /proc, tasks that always run, nobody to tell or to stop."""

    def __init__(self, raylets: Iterable[Raylet]) -> None:
        self._raylets = {r.name: r for r in raylets}
        self.repairs: list[str] = []

    async def look(self, order: m.LookAtHost, by: NodeBelief) -> m.HostLooked:
        """Whether the process of this raylet is there."""
        r = self._raylets[order.node]
        alive = await asyncio.to_thread(_runs, r.pid)
        found = (seen.Raylet(r.pid, r.node_id),) if alive else ()
        return m.HostLooked(order.node, by.name, found, asked_about=order.node_id)

    async def check(self, order: m.AskPeer, by: NodeBelief) -> m.PeerChecked:
        """A peer's connect to the port; made from here, where all peers are."""
        seen = await connect(order.address, order.port, 0.5)
        return m.PeerChecked(order.node, order.node_id, by.name, seen.miss, seen.detail)

    async def place(self, order: m.ProveFromPeer, by: NodeBelief) -> m.PeerPlaced:
        """As `prove`."""
        return m.PeerPlaced(order.node, order.node_id, by.name, ran=True)

    async def prove(self, order: m.ProveNode) -> m.TaskRan:
        """There is no Ray to run it."""
        return m.TaskRan(order.node, order.node_id)

    async def repair(self, order: m.RestartWorker, run_on: NodeBelief) -> m.RepairEnded:
        """Nothing comes back from the dead here."""
        self.repairs.append(order.node)
        return m.RepairEnded(order.node, order.attempt, ok=False, detail=f"not tried by {run_on.name}")

    async def sweep(self, _nodes: Iterable[NodeBelief]) -> Sequence[m.Event]:
        """No probes without Ray."""
        return []

    def let_go(self, _names: Iterable[str]) -> None:
        """There is no probe to let go."""

    async def keep_ready(self, _head: NodeBelief) -> None:
        """Repairs need nothing here."""

    def stopped(self) -> frozenset[str]:
        """Nobody stopped anything."""
        return frozenset()

    def put(self, incident: Incident) -> None:
        """Nobody is told."""


def _runs(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


class ToldAt:
    """The GCS edge, with a note of when each word was taken."""

    def __init__(self, gcs: Gcs) -> None:
        self._gcs = gcs
        self.at: dict[str, float] = {}

    async def list_nodes(self) -> m.NodesListed | m.GcsWentSilent:
        """As the edge."""
        return await self._gcs.list_nodes()

    async def tell_dead(self, order: m.TellRay) -> m.RayTold:
        """As the edge."""
        told = await self._gcs.tell_dead(order)
        if told.accepted:
            self.at[order.node] = time.monotonic()
        return told


@contextmanager
def simulated(names: list[str], groups: list[list[str]]) -> Iterator[tuple[list[Raylet], list[Raylets], int]]:
    """The raylets (first those that stay, then a process for each group that will be killed) and a GCS."""
    with contextlib.ExitStack() as ends:
        staying = [names[i : i + PER_PROCESS] for i in range(0, len(names), PER_PROCESS)]
        processes = [Raylets(some) for some in (*staying, *groups)]
        for process in processes:
            ends.callback(process.close)
        raylets = [r for process in processes for r in process.all]
        rows = [{"name": r.name, "node_id": r.node_id, "port": r.port} for r in raylets]
        gcs = subprocess.Popen(
            [sys.executable, "-m", "tests.support.gcs_server"],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        ends.callback(gcs.wait)
        ends.callback(gcs.kill)
        assert gcs.stdin is not None
        assert gcs.stdout is not None
        gcs.stdin.write(json.dumps(rows) + "\n")
        gcs.stdin.flush()
        yield raylets, processes[len(staying) :], int(gcs.stdout.readline())
        gcs.stdin.close()
        gcs.stdout.close()


async def measure(size: int, kills: int, runs: int, rest_s: float, rng: random.Random) -> dict[str, Any]:
    """One agent over `size` nodes; CPU at rest first, then `runs` times `kills` raylets at once."""
    runs = min(runs, max(1, (size - 2) // kills))
    groups = [[f"victim{run}-{i}" for i in range(kills)] for run in range(runs)]
    names = ["head", *(f"n{i}" for i in range(size - 1 - runs * kills))]
    with simulated(names, groups) as (raylets, victims, port):
        world, clock, settings = World(raylets), steady_clock(), AgentSettings()
        policy = Policy(heartbeat_every_s=settings.heartbeat_every_s)
        nodes = [
            NodeBelief(r.name, "127.0.0.1", "worker" if r.name != "head" else "head", State.JOINING, clock())
            for r in raylets
        ]
        every_s, share = settings.heartbeat_every_s, settings.heartbeat_cpu_percent / 100
        news: list[Loop] = []  # the loop needs the heartbeats, and they need the loop
        feed = functools.partial(_feed, news)
        heartbeats = Heartbeats(feed, 0.8 * every_s, every_s, share)
        edge = Gcs(f"127.0.0.1:{port}")
        told = ToldAt(edge)
        folder = tempfile.TemporaryDirectory(prefix="grid-agent-sweep-")
        journal = Journal(Path(folder.name, "journal.sqlite"))
        belief = await journal.open(begin(nodes, clock()), clock())
        itself = SelfCheck()
        edges = Edges(told, heartbeats, world, world, world, world, world, journal, itself)
        loop = Loop(belief, policy, clock, edges)
        news.append(loop)
        running = asyncio.create_task(loop.run())
        scheduler = AsyncIOScheduler()
        schedule(scheduler, loop, settings)
        try:
            await until_true(lambda: all(n.state is State.ALIVE for n in loop.belief.nodes.values()), 60)
            print(f"{size} nodes ALIVE; at rest for {rest_s:g} s", flush=True)
            await asyncio.sleep(3 * every_s)
            result = {"nodes": size, "kills": kills, **await at_rest(loop, rest_s)}
            times = [await kill(loop, told, clock, group, rng) for group in victims]
            false = sum(
                n.state is not State.ALIVE and "victim" not in n.name for n in loop.belief.nodes.values()
            )
        finally:
            scheduler.pause()
            await asyncio.sleep(1.0)  # let the round under way end
            scheduler.shutdown(wait=False)
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
            await loop.close()
            await heartbeats.close()
            await edge.close()
            await itself.close()
            await journal.close()
            folder.cleanup()
            await asyncio.sleep(0.5)  # gRPC's own thread has a last word
    merged = {key: [t for each in times for t in each[key]] for key in ("suspect_s", "verdict_s", "told_s")}
    return {**result, **merged, "false": false}


def _feed(loops: list[Loop], event: m.Event) -> None:
    for loop in loops:
        loop.feed(event)


async def at_rest(loop: Loop, rest_s: float) -> dict[str, Any]:
    """Percent of a core that this process uses while nothing happens, and how long a round takes."""
    begun, used = time.monotonic(), time.process_time()
    await asyncio.sleep(rest_s)
    cpu = 100 * (time.process_time() - used) / (time.monotonic() - begun)
    rotation_s = loop.belief.observer.rotation_s or 0.0
    body = report.health(loop.belief, loop.clock(), loop.policy)
    within_s = body["observer"]["silence_suspected_within_s"]
    print(f"  {cpu:.1f} % of a core; each raylet checked every {rotation_s:g} s", flush=True)
    return {"cpu_percent": cpu, "rotation_s": rotation_s, "silence_suspected_within_s": within_s}


async def kill(
    loop: Loop, told: ToldAt, clock: Any, group: Raylets, rng: random.Random
) -> dict[str, list[float]]:
    """Kill one group at a random moment: seconds until each was suspected, decided, told."""
    await asyncio.sleep(rng.uniform(1.0, 2.0))
    names = [r.name for r in group.all]
    at, wall = time.monotonic(), clock()
    group.kill()
    await until_true(lambda: all(name in told.at for name in names), 30)
    nodes, known = loop.belief.nodes, loop.belief.incidents
    suspect = [(nodes[name].failed_at or wall) - wall for name in names]
    opened = {name: i.opened_at for i in known.values() for name in i.nodes}
    verdict = [opened[name] - wall for name in names]
    took = [told.at[name] - at for name in names]
    print(f"  {len(names)} killed: verdict {max(verdict):.3f} s, told {max(took):.3f} s (worst)", flush=True)
    await asyncio.sleep(
        12.0 if len(nodes) < 10 else 0.5
    )  # let the hold for many at once of a tiny cluster pass
    return {"suspect_s": suspect, "verdict_s": verdict, "told_s": took}


def show(results: list[dict[str, Any]], seed: int) -> None:
    """One line a size."""
    print(f"\n{GOALS}")
    print("nodes  killed   suspected         verdict           GCS told          CPU at rest  a turn  false")
    for r in results:
        cells = [
            f"{statistics.median(r[k]):.3f} ({max(r[k]):.3f}) s".ljust(18)
            for k in ("suspect_s", "verdict_s", "told_s")
        ]
        print(
            f"{r['nodes']:5}  {r['kills']:2} at once {''.join(cells)}{r['cpu_percent']:5.1f} %      "
            f"{r['rotation_s']:4g} s  {r['false']}"
        )
    print(f"median (worst); seed {seed}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    folder = Path(__file__).parent / "results"
    folder.mkdir(exist_ok=True)
    (folder / "sweep.json").write_text(json.dumps({"seed": seed, "results": results}))


if __name__ == "__main__":
    main()
