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
from grid_agent.core import rotation
from grid_agent.core.model import Belief, NodeBelief
from grid_agent.core.policy import Policy
from grid_agent.core.seen import LiveWork, Raylet
from grid_agent.core.step import begin, step
from grid_agent.core.terms import Miss, State

TURN = 100  # checks in one round, as the heartbeats make in a large cluster
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
    hung_until: float | None = None  # None: for ever
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
    busy_until: float = 0.0  # it runs no tasks
    stale: dict[str, float] = field(default_factory=dict)  # raylet: until then its old links are
    away_until: float = 0.0  # for the head only: peers reach it
    slow_until: float = 0.0
    lossy_until: float = 0.0
    loss: float = 0.0  # share of the checks that get no answer meanwhile
    delayed_until: float = 0.0
    delay_s: tuple[float, float] = (0.0, 0.0)  # that each answer takes meanwhile
    checked_at: float = 0.0
    missed: bool = False

    def process(self, node_id: str | None) -> Process | None:
        """The living raylet of this id."""
        return next((p for p in self.raylets if p.node_id == node_id), None)


@dataclass(frozen=True)
class Chances:
    """How unkind the world is, as probabilities: of one heartbeat, one look, one start, one answer."""

    heartbeat_lost: float = 0.0
    look_late: float = 0.0  # by up to 40 s
    look_twice: float = 0.0
    look_lost: float = 0.0  # whoever looked died midway
    look_lies: float = 0.0  # "no such process", whatever is there
    start_fails: float = 0.0
    start_crashes: float = 0.0
    start_lies: float = 0.0  # "started", and nothing was
    answer_lost: float = 0.0  # fenced and started, and whoever did it died
    answer_twice: float = 0.0


@dataclass(frozen=True)
class Found:
    """One verdict: what had been done to the node, what the core called it, and after how long."""

    node: str
    harm: str
    cause: str
    took_s: float


class SimulatedCluster:
    """A head and some workers, all up, with the core in charge. `run` lets time pass; the rest does harm.

    `log` holds every event and order with its time, `found` each verdict on a node that was harmed,
    `false_verdicts` each (node, cause) that nothing had happened to, or less than `hang_s` forgives,
    `false_repairs` the restarts of such, `doubles` the nodes of which two raylets lived at once.
    """

    def __init__(self, seed: int, workers: int, policy: Policy | None = None, chances: Chances | None = None):
        self.rng = random.Random(seed)  # noqa: S311 - repeatable on purpose, no secret
        self.clock, self.gcs_silent_until = VirtualClock(1_000_000.0), 0.0
        self.policy, self.chances = policy or Policy(), chances or Chances()
        self.stopped: frozenset[str] = frozenset()
        self.log: list[tuple[float, m.Event | m.Order]] = []
        self.found: list[Found] = []
        self.false_verdicts: list[tuple[str, str]] = []
        self.false_repairs: list[str] = []
        self.doubles: list[str] = []
        self._harmed: dict[str, tuple[str, float]] = {}
        self._observer_slow_until = 0.0
        self._proofs: list[tuple[str, str]] = []
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
        self._harm(name, "killed")
        for process in list(self.hosts[name].raylets):
            self._end(name, process)

    def hang(self, name: str, seconds: float | None = None) -> None:
        """Stop the raylet as SIGSTOP does, for ever or for some time. Below `hang_s` nobody may die of it."""
        if seconds is None or seconds >= self.policy.hang_s:
            self._harm(name, "hung")
        for process in self.hosts[name].raylets:
            if not process.hung:
                process.hung, process.silent_since = True, self.clock.now
            process.hung_until = None if seconds is None else self.clock.now + seconds
            if seconds is not None:
                self.clock.call_later(seconds, partial(self._resume, process))

    def slow(self, name: str, seconds: float) -> None:
        """Make the node miss its heartbeats for a while, though nothing is wrong with it."""
        self.hosts[name].slow_until = self.clock.now + seconds

    def cut(self, names: Iterable[str], seconds: float) -> None:
        """Take these hosts off the network; their processes live on. Below `unreachable_s` nobody may die.

        Ray's connections to them stay silent for as long again: TCP sends again after waits that double.
        """
        for name in names:
            host = self.hosts[name]
            host.cut_until = self.clock.now + seconds * self.rng.uniform(0.97, 1.0)  # never all in one moment
            until = host.cut_until + min(seconds, 120.0)
            host.stale.update({p.node_id: max(until, host.stale.get(p.node_id, 0.0)) for p in host.raylets})
            if seconds >= self.policy.unreachable_s:
                self._harmed.setdefault(name, ("cut off", self.clock.now))

    def busy(self, name: str, seconds: float) -> None:
        """No task begins there for a while: its raylet has other things to do."""
        self.hosts[name].busy_until = self.clock.now + seconds

    def part(self, names: Iterable[str], seconds: float) -> None:
        """Break the way from the head to these hosts; peers still reach them."""
        for name in names:
            self.hosts[name].away_until = self.clock.now + seconds

    def lossy(self, name: str, seconds: float, loss: float) -> None:
        """Lose this share of the checks of a node for a while."""
        host = self.hosts[name]
        host.lossy_until, host.loss = self.clock.now + seconds, loss

    def delayed(self, name: str, seconds: float, least_s: float = 0.2, most_s: float = 1.5) -> None:
        """Let every answer of a node take so long for a while, each another time."""
        host = self.hosts[name]
        host.delayed_until, host.delay_s = self.clock.now + seconds, (least_s, most_s)

    def rests(self, name: str, for_s: float) -> bool:
        """Whether nothing disturbs this node, nor has for so long."""
        host = self.hosts[name]
        ends = (host.cut_until, host.away_until, host.slow_until, host.lossy_until, host.delayed_until)
        paused = (p.hung_until or 0.0 for p in host.raylets)
        return max(*ends, *paused) + for_s <= self.clock.now

    def slow_observer(self, seconds: float) -> None:
        """Starve the agent itself: its rounds come late, and answers look lost to it."""
        self._observer_slow_until = self.clock.now + seconds

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

    def _harm(self, name: str, how: str) -> None:
        for process in self.hosts[name].raylets:
            process.harmed = True
            self._harmed.setdefault(name, (how, self.clock.now))

    def _resume(self, process: Process) -> None:
        if (
            process.hung_until is not None and process.hung_until <= self.clock.now
        ):  # not stopped anew meanwhile
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
        """Once per interval: those whose turn it is are checked, and the GCS is asked for its table."""
        starved = self.clock.now < self._observer_slow_until
        late_s = self.rng.uniform(1.0, 6.0) if starved else 0.0
        checks = [event for name, node_id in self._turn() if (event := self._check(name, node_id))]
        if starved:
            checks = [self._unheard(event) if self.rng.random() < 0.5 else event for event in checks]
        self._deliver(m.LoopLagged(1000.0 * late_s), *checks, self._listing())
        self.clock.call_later(self.policy.heartbeat_every_s + late_s, self._beat)

    def _turn(self) -> list[tuple[str, str]]:
        known = [(n.name, n.incarnation.node_id) for n in self.belief.nodes.values() if n.incarnation]
        return rotation.turn(known, TURN, lambda one: self.hosts[one[0]])

    def _check(self, name: str, node_id: str) -> m.Event | None:
        """What a check shows; None when that comes later."""
        host, deadline_s = self.hosts[name], 0.8 * self.policy.heartbeat_every_s
        event, delay_s = self._answer(name, node_id), self._delay(name)
        late = isinstance(event, m.HeartbeatAnswered) and delay_s > 0.0
        if late and delay_s > deadline_s:
            event = m.HeartbeatMissed(name, node_id, Miss.TIMED_OUT)
        elif late:
            event = m.HeartbeatAnswered(name, node_id, 1000.0 * delay_s)
        host.checked_at, host.missed = self.clock.now, isinstance(event, m.HeartbeatMissed)
        if not late:
            return event
        self._deliver_later(min(delay_s, deadline_s), event)
        return None

    def _delay(self, name: str) -> float:
        """What the way to a host and back adds now, where it is in trouble."""
        host = self.hosts[name]
        return self.rng.uniform(*host.delay_s) if self.clock.now < host.delayed_until else 0.0

    def _answer(self, name: str, node_id: str) -> m.Event:
        host, now = self.hosts[name], self.clock.now
        process = host.process(node_id)
        if now < max(host.cut_until, host.away_until):
            return m.HeartbeatMissed(name, node_id, Miss.UNREACHABLE)
        if process is None:
            return m.HeartbeatMissed(name, node_id, Miss.REFUSED)
        lost = max(self.chances.heartbeat_lost, host.loss if now < host.lossy_until else 0.0)
        if process.hung or now < host.slow_until or self.rng.random() < lost:
            return m.HeartbeatMissed(name, node_id, Miss.TIMED_OUT)
        return m.HeartbeatAnswered(name, node_id, self.rng.uniform(0.3, 2.0))

    def _unheard(self, event: m.Event) -> m.Event:
        """What a starved observer makes of an answer: it came too late."""
        if isinstance(event, m.HeartbeatAnswered):
            return m.HeartbeatMissed(event.node, event.node_id, Miss.TIMED_OUT)
        return event

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
        for name in [n for n, node in self.belief.nodes.items() if node is not before.nodes[n]]:
            self._note(name, before.nodes[name].state)
        for order in orders:
            self._carry_out(order)

    def _note(self, name: str, was: State) -> None:
        """Write down what a change of state found, or wrongly believed to have found."""
        node = self.belief.nodes[name]
        if node.state is was or node.state is State.SUSPECT:
            return
        harm = self._harmed.pop(name, None)
        if node.state not in FOUND or was in FOUND:
            return
        if harm is not None:
            self.found.append(Found(name, harm[0], str(node.cause), self.clock.now - harm[1]))
        elif any(not p.harmed for p in self.hosts[name].raylets):
            self.false_verdicts.append((name, str(node.cause)))

    def _carry_out(self, order: m.Order) -> None:
        later = self.clock.call_later
        match order:
            case m.LookAtHost(name, _, _):
                self._look_sometime(name)
            case m.AskPeer(name, node_id, by):
                later(self.rng.uniform(0.005, 0.1), partial(self._ask_peer, name, node_id, by))
            case m.ProveFromPeer(name, node_id, by):
                later(self.rng.uniform(0.05, 0.3), partial(self._place, name, node_id, by))
            case m.ProveNode(name, node_id):
                if not self._proofs:  # a thousand that join at once are proven in one step
                    later(self.rng.uniform(0.05, 0.3), self._prove)
                self._proofs.append((name, node_id))
            case m.ListWork(name, node_id):
                listed = m.WorkListed(name, node_id, LiveWork(0.0, node_id))
                later(self.rng.uniform(0.1, 0.9), partial(self._deliver, listed))
            case m.DrainNode(name, node_id):
                later(0.1, partial(self._deliver, m.DrainAnswered(name, node_id, accepted=True)))
            case m.TellRay(name, node_id):
                later(0.09, partial(self._tell, name, node_id))
            case m.RestartWorker(name, _, attempt, fence):
                unharmed = [p for p in self.hosts[name].raylets if p.node_id == fence and not p.harmed]
                self.false_repairs += [name for _ in unharmed]
                later(self.rng.uniform(0.2, 1.0), partial(self._repair, name, attempt, fence))

    def _look_sometime(self, name: str) -> None:
        """A look takes its time, may come twice, and may never come."""
        dice, chances = self.rng, self.chances
        late_s = dice.uniform(5.0, 40.0) if dice.random() < chances.look_late else 0.0
        times = 0 if dice.random() < chances.look_lost else 2 if dice.random() < chances.look_twice else 1
        for _ in range(times):
            way_s = 3 * self._delay(name)  # a login is several answers
            self.clock.call_later(late_s + way_s + dice.uniform(0.02, 0.3), partial(self._look, name))

    def _look(self, name: str) -> None:
        host = self.hosts[name]
        if self.clock.now < max(host.cut_until, host.away_until):
            return self._deliver(m.HostUnreachable(name, "head", "no route to host"))
        if self.chances.look_lies and self.rng.random() < self.chances.look_lies:
            return self._deliver(m.HostLooked(name, "head", ()))
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
        return self._deliver_later(self._delay(name), m.PeerChecked(name, node_id, by, how))

    def _place(self, name: str, node_id: str, by: str) -> None:
        if not self._asks(by):
            return self._deliver_later(15.0, m.PeerFailed(name, by, "no answer in 15 s"))
        stale = any(until > self.clock.now for until in self.hosts[by].stale.values())
        ran = self._runs_tasks(name, node_id) and not stale
        return self._deliver_later(self._delay(name) if ran else 10.0, m.PeerPlaced(name, node_id, by, ran))

    def _asks(self, by: str) -> bool:
        """Whether this peer can be asked at all."""
        host = self.hosts[by]
        return self.clock.now >= host.cut_until and any(not p.hung for p in host.raylets)

    def _runs_tasks(self, name: str, node_id: str) -> bool:
        host, p = self.hosts[name], self.hosts[name].process(node_id)
        reached = self.clock.now >= max(host.cut_until, host.busy_until, host.stale.get(node_id, 0.0))
        return reached and p is not None and not p.hung and bool(p.listed)

    def _prove(self) -> None:
        asked, self._proofs = self._proofs, []
        for name, node_id in asked:
            if not self._runs_tasks(name, node_id):
                self._deliver_later(3.0, m.TaskMissed(name, node_id, "the deadline passed"))
        ran = [m.TaskRan(name, i) for name, i in asked if self._runs_tasks(name, i)]
        prompt = [event for event in ran if self.clock.now >= self.hosts[event.node].delayed_until]
        self._deliver(*prompt)
        for event in ran:
            if event not in prompt:
                self._deliver_later(self._delay(event.node), event)

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
        ended = m.RepairEnded(name, attempt, ok=True, detail="the raylet was started")
        if chances.start_lies and self.rng.random() < chances.start_lies:
            return self._deliver_later(self.rng.uniform(2.0, 7.0), ended)
        fresh = self._spawn(name)
        if self.rng.random() < chances.start_crashes:
            fresh.harmed = True
            self.clock.call_later(self.rng.uniform(0.5, 4.0), partial(self._end, name, fresh))
        if self.rng.random() < chances.answer_lost:
            return None
        if chances.answer_twice and self.rng.random() < chances.answer_twice:
            self._deliver_later(self.rng.uniform(7.0, 60.0), ended)
        return self._deliver_later(self.rng.uniform(2.0, 7.0), ended)

    def _deliver_later(self, delay_s: float, event: m.Event) -> None:
        self.clock.call_later(delay_s, partial(self._deliver, event))
