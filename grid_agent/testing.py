"""A little world to run the core in: hosts, raylets and a GCS on a virtual clock, no Ray and no real time.

`SimulatedCluster` turns the truth of its world into the events of `core.messages` and carries out the
orders that `core.step` gives; the same seed gives the same night. It must never decide what the core
decides. Called by the tests, and by whoever wants to try a policy on a bad day. It is longer than most
files here because the clock, the world and its accidents are of no use apart.
"""

import heapq
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial

from grid_agent.core import messages as m
from grid_agent.core.model import Belief, Miss, NodeBelief, Policy, Raylet, State
from grid_agent.core.step import begin, step

RAY_NOTICES_S = 155.0  # Ray's own tolerant check, the backstop
EXIT_S = 2.0  # a raylet that learns that it was marked dead exits
FOUND = (State.DEAD, State.REPAIRING, State.GAVE_UP)


class VirtualClock:
    """Time that passes only when asked to: calls wait in a queue, and `run_until` makes them in order."""

    def __init__(self, start: float = 0.0) -> None:
        self.now = start
        self._queue: list[tuple[float, int, Callable[[], None]]] = []
        self._count = 0

    def call_later(self, delay_s: float, call: Callable[[], None]) -> None:
        """Make this call after `delay_s`; calls of one moment keep their order."""
        self._count += 1
        heapq.heappush(self._queue, (self.now + max(0.0, delay_s), self._count, call))

    def run_until(self, at: float) -> None:
        """Let time pass until `at`, with every call that is due."""
        while self._queue and self._queue[0][0] <= at:
            self.now, _, call = heapq.heappop(self._queue)
            call()
        self.now = max(self.now, at)


class MemoryJournal:
    """A journal that keeps each step in a list, or refuses to while `trouble` says why."""

    def __init__(self) -> None:
        self.trouble: str | None = None
        self.steps: list[tuple[Belief, tuple[m.Order, ...]]] = []

    async def save(
        self,
        before: Belief,  # noqa: ARG002 - the interface of Journal, as the two others
        after: Belief,
        events: Sequence[m.Event],  # noqa: ARG002
        orders: Sequence[m.Order],
        now: float,  # noqa: ARG002
    ) -> None:
        """Keep the step."""
        if self.trouble is None:
            self.steps.append((after, tuple(orders)))


@dataclass(eq=False)
class Process:
    """One raylet process: the truth, not what anybody believes."""

    number: int  # counts up; its id, pid and time of start in one
    hung: bool = False
    harmed: bool = False  # something was ever done to it
    listed: bool | None = None  # its GCS row: None before it registers, False when marked dead
    silent_since: float | None = None  # dead or hung, so Ray's own check runs against it

    @property
    def node_id(self) -> str:
        """Ray's name for this life."""
        return f"{self.number:08d}"


@dataclass
class Host:
    """One machine: the raylets that live on it, and whether the head can reach it."""

    raylets: list[Process] = field(default_factory=list)
    cut_until: float = 0.0
    slow_until: float = 0.0

    def process(self, node_id: str | None) -> Process | None:
        """The living raylet of this id."""
        return next((p for p in self.raylets if p.node_id == node_id), None)


@dataclass(frozen=True)
class Chances:
    """How unkind the world is, as probabilities: of one heartbeat, of one start, of one repair's answer."""

    heartbeat_lost: float = 0.0
    start_fails: float = 0.0
    start_crashes: float = 0.0
    answer_lost: float = 0.0


class SimulatedCluster:
    """A head and some workers, all up, with the core in charge. `run` lets time pass; the rest does harm.

    `log` holds every event and order with its time, `detections` each (node, seconds from harm to verdict),
    `false_repairs` the restarts of raylets that nothing ever happened to, `doubles` the nodes of which two
    raylets lived at once.
    """

    def __init__(self, seed: int, workers: int, policy: Policy | None = None, chances: Chances | None = None):
        self.rng = random.Random(seed)  # noqa: S311 - repeatable on purpose, no secret
        self.clock, self.gcs_silent_until = VirtualClock(1_000_000.0), 0.0
        self.policy, self.chances = policy or Policy(), chances or Chances()
        self.stopped: frozenset[str] = frozenset()
        self.log: list[tuple[float, m.Event | m.Order]] = []
        self.detections: list[tuple[str, float]] = []
        self.false_repairs: list[str] = []
        self.doubles: list[str] = []
        self._harmed_at: dict[str, float] = {}
        self._processes: list[tuple[str, Process]] = []
        self.workers = tuple(f"gpu{i}" for i in range(1, workers + 1))
        self.hosts = {name: Host() for name in ("head", *self.workers)}
        joining = [NodeBelief("head", "h0", "head", State.JOINING, self.clock.now)]
        joining += [NodeBelief(n, n, "worker", State.JOINING, self.clock.now) for n in self.workers]
        self.belief: Belief = begin(joining, self.clock.now)
        for name in self.hosts:
            self._spawn(name).listed = True
        self._beat()

    def state(self, name: str) -> State:
        """What the core believes of this node."""
        return self.belief.nodes[name].state

    def run(self, seconds: float) -> None:
        """Let this much time pass."""
        self.clock.run_until(self.clock.now + seconds)

    def kill(self, name: str) -> None:
        """End the raylet as `kill -9` does: its channel ends, and the next connection is refused."""
        self._harm(name)
        for process in list(self.hosts[name].raylets):
            self._end(name, process)

    def hang(self, name: str, seconds: float | None = None) -> None:
        """Stop the raylet as SIGSTOP does, for ever or for some time."""
        self._harm(name)
        for process in self.hosts[name].raylets:
            process.hung, process.silent_since = True, self.clock.now
            if seconds is not None:
                self.clock.call_later(seconds, partial(self._resume, process))

    def slow(self, name: str, seconds: float) -> None:
        """Make the node miss its heartbeats for a while, though nothing is wrong with it."""
        self.hosts[name].slow_until = self.clock.now + seconds

    def cut(self, names: Iterable[str], seconds: float) -> None:
        """Take these hosts off the network for some time; their processes live on."""
        for name in names:
            self.hosts[name].cut_until = self.clock.now + seconds

    def gcs_outage(self, seconds: float) -> None:
        """Let the GCS be silent for some time."""
        self.gcs_silent_until = self.clock.now + seconds

    def say(self, said: m.PersonSaid) -> None:
        """A person says something through the API."""
        self._deliver(said)

    def stop(self, name: str) -> None:
        """A person stops the node, as stop.py does."""
        self.stopped |= {name}
        self._deliver(m.PeopleStopped(self.stopped))
        for process in list(self.hosts[name].raylets):
            process.listed = False
            self._end(name, process)

    def start(self, name: str) -> None:
        """A person starts the node again, as start.py does."""
        self.stopped -= {name}
        self._deliver(m.PeopleStopped(self.stopped))
        if not self.hosts[name].raylets:
            self._spawn(name)

    def _spawn(self, name: str) -> Process:
        process = Process(len(self._processes) + 1)
        self._processes.append((name, process))
        self.hosts[name].raylets.append(process)
        if len(self.hosts[name].raylets) > 1:
            self.doubles.append(name)
        return process

    def _harm(self, name: str) -> None:
        for process in self.hosts[name].raylets:
            process.harmed = True
            self._harmed_at.setdefault(name, self.clock.now)

    def _resume(self, process: Process) -> None:
        process.hung, process.silent_since = False, None

    def _end(self, name: str, process: Process) -> None:
        """The process is gone; the held channel says so at once, unless the network is cut."""
        if process not in self.hosts[name].raylets:
            return
        self.hosts[name].raylets.remove(process)
        process.silent_since = self.clock.now
        if self.clock.now >= self.hosts[name].cut_until:
            self._deliver_later(0.002, m.HeartbeatMissed(name, process.node_id, Miss.REFUSED))

    def _beat(self) -> None:
        """Once per interval: every known incarnation is checked, and the GCS is asked for its table."""
        nodes = self.belief.nodes.values()
        checks = (self._check(n.name, n.incarnation.node_id) for n in nodes if n.incarnation)
        self._deliver(*checks, self._listing())
        self.clock.call_later(self.policy.heartbeat_every_s, self._beat)

    def _check(self, name: str, node_id: str) -> m.Event:
        host, now = self.hosts[name], self.clock.now
        process = host.process(node_id)
        if now < host.cut_until:
            return m.HeartbeatMissed(name, node_id, Miss.UNREACHABLE)
        if process is None:
            return m.HeartbeatMissed(name, node_id, Miss.REFUSED)
        if process.hung or now < host.slow_until or self.rng.random() < self.chances.heartbeat_lost:
            return m.HeartbeatMissed(name, node_id, Miss.TIMED_OUT)
        return m.HeartbeatAnswered(name, node_id, self.rng.uniform(0.3, 2.0))

    def _listing(self) -> m.Event:
        """The GCS table; raylets register, and those silent for very long are marked dead, by the way."""
        if self.clock.now < self.gcs_silent_until:
            return m.GcsWentSilent("no answer")
        rows = []
        for name, p in self._processes:
            if p.listed is None and p in self.hosts[name].raylets:
                p.listed = True
            if p.listed and p.silent_since is not None and self.clock.now - p.silent_since > RAY_NOTICES_S:
                self._mark_dead(name, p)
            if p.listed is not None:
                rows.append(m.NodeRow(name, p.node_id, name, 1, p.listed, p.number, name == "head"))
        return m.NodesListed(tuple(rows))

    def _mark_dead(self, name: str, process: Process) -> None:
        process.listed, process.harmed = False, True
        if not process.hung:
            self.clock.call_later(EXIT_S, partial(self._end, name, process))

    def _deliver(self, *events: m.Event) -> None:
        before, now = self.belief, self.clock.now
        self.log += [(now, e) for e in events]
        self.belief, orders = step(before, events, now, self.policy)
        self.log += [(now, o) for o in orders]
        for name in [n for n in self._harmed_at if self.state(n) is not before.nodes[n].state]:
            if self.state(name) is not State.SUSPECT:  # found, or well again by itself
                took_s = now - self._harmed_at.pop(name)
                self.detections += [(name, took_s)] if self.state(name) in FOUND else []
        for order in orders:
            self._carry_out(order)

    def _carry_out(self, order: m.Order) -> None:
        later = self.clock.call_later
        match order:
            case m.LookAtHost(name, _, _):
                later(self.rng.uniform(0.02, 0.3), partial(self._look, name))
            case m.AskPeer(name, node_id, by):
                later(self.rng.uniform(0.005, 0.1), partial(self._ask_peer, name, node_id, by))
            case m.ProveFromPeer(name, node_id, by):
                later(self.rng.uniform(0.05, 0.3), partial(self._place, name, node_id, by))
            case m.ProveNode(name, node_id):
                later(self.rng.uniform(0.05, 0.3), partial(self._prove, name, node_id))
            case m.TellRay(name, node_id):
                later(0.09, partial(self._tell, name, node_id))
            case m.RestartWorker(name, _, attempt, fence):
                unharmed = [p for p in self.hosts[name].raylets if p.node_id == fence and not p.harmed]
                self.false_repairs += [name for _ in unharmed]
                later(self.rng.uniform(0.2, 1.0), partial(self._repair, name, attempt, fence))

    def _look(self, name: str) -> None:
        if self.clock.now < self.hosts[name].cut_until:
            return self._deliver(m.HostUnreachable(name, "head", "no route to host"))
        found = (Raylet(p.number, p.node_id, 1, "T" if p.hung else "S") for p in self.hosts[name].raylets)
        return self._deliver(m.HostLooked(name, "head", tuple(found)))

    def _ask_peer(self, name: str, node_id: str, by: str) -> None:
        """A peer checks: what it sees, where it can be asked itself."""
        if not self._asks(by):
            return self._deliver_later(6.0, m.PeerFailed(name, by, "no answer in 6 s"))
        host = self.hosts[name]
        process = host.process(node_id)
        if self.clock.now < host.cut_until:
            how: Miss | None = Miss.UNREACHABLE
        elif process is None:
            how = Miss.REFUSED
        else:
            how = Miss.TIMED_OUT if process.hung or self.clock.now < host.slow_until else None
        return self._deliver(m.PeerChecked(name, node_id, by, how))

    def _place(self, name: str, node_id: str, by: str) -> None:
        if not self._asks(by):
            return self._deliver_later(15.0, m.PeerFailed(name, by, "no answer in 15 s"))
        ran = self._runs_tasks(name, node_id)
        return self._deliver_later(0.0 if ran else 10.0, m.PeerPlaced(name, node_id, by, ran))

    def _asks(self, by: str) -> bool:
        """Whether this peer can be asked at all."""
        host = self.hosts[by]
        return self.clock.now >= host.cut_until and any(not p.hung for p in host.raylets)

    def _runs_tasks(self, name: str, node_id: str) -> bool:
        p = self.hosts[name].process(node_id)
        reached = self.clock.now >= self.hosts[name].cut_until
        return reached and p is not None and not p.hung and bool(p.listed)

    def _prove(self, name: str, node_id: str) -> None:
        if self._runs_tasks(name, node_id):
            return self._deliver(m.TaskRan(name, node_id))
        return self._deliver_later(3.0, m.TaskMissed(name, node_id, "the deadline passed"))

    def _tell(self, name: str, node_id: str) -> None:
        accepted = self.clock.now >= self.gcs_silent_until
        for process in (p for _, p in self._processes if accepted and p.node_id == node_id):
            self._mark_dead(name, process)
        self._deliver(m.RayTold(name, node_id, accepted))

    def _repair(self, name: str, attempt: int, fence: str | None) -> None:
        """Fence, start, answer: each of them may go wrong."""
        host, chances = self.hosts[name], self.chances
        if self.clock.now < host.cut_until or self.rng.random() < chances.start_fails:
            return self._deliver(m.RepairEnded(name, attempt, ok=False, detail="ray start failed"))
        for process in [p for p in host.raylets if fence in (None, p.node_id)]:
            self._end(name, process)
        fresh = self._spawn(name)
        if self.rng.random() < chances.start_crashes:
            fresh.harmed = True
            self.clock.call_later(self.rng.uniform(0.5, 4.0), partial(self._end, name, fresh))
        if self.rng.random() < chances.answer_lost:
            return None
        ended = m.RepairEnded(name, attempt, ok=True, detail="the raylet was started")
        return self._deliver_later(self.rng.uniform(2.0, 7.0), ended)

    def _deliver_later(self, delay_s: float, event: m.Event) -> None:
        self.clock.call_later(delay_s, partial(self._deliver, event))
