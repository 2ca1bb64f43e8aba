"""The core in charge of a simulated world: its events go in, its orders are carried out."""

from dataclasses import dataclass, replace
from functools import partial

from grid_agent.core import codec, rotation
from grid_agent.core import messages as m
from grid_agent.core.incident_model import Incident
from grid_agent.core.model import Belief, NodeBelief
from grid_agent.core.policy import Policy
from grid_agent.core.resume import resume
from grid_agent.core.seen import LiveWork
from grid_agent.core.step import begin, step
from grid_agent.core.terms import State
from grid_agent.testing.hosts import Chances
from grid_agent.testing.senses import Senses

TURN = 100  # checks in one round, as the heartbeats make in a large cluster
FOUND = (State.DEAD, State.REPAIRING, State.GAVE_UP)


@dataclass(frozen=True)
class Found:
    """One verdict: what had been done to the node, what the core called it, and after how long."""

    node: str
    harm: str
    cause: str
    took_s: float


class SimulatedCluster(Senses):
    """A head and some workers, all up, with the core in charge. `run` lets time pass; the rest does harm.

    `log` holds every event and order with its time, `found` each verdict on a node that was harmed,
    `false_verdicts` each (node, cause) that nothing had happened to, or less than `hang_s` forgives,
    `false_repairs` the restarts of such, `doubles` the nodes of which two raylets lived at once.
    """

    def __init__(self, seed: int, workers: int, policy: Policy | None = None, chances: Chances | None = None):
        super().__init__(seed, workers, policy, chances)
        self.stopped: frozenset[str] = frozenset()
        self.log: list[tuple[float, m.Event | m.Order]] = []
        self.found: list[Found] = []
        self.false_verdicts: list[tuple[str, str]] = []
        self.false_repairs: list[str] = []
        self._proofs: list[tuple[str, str]] = []
        self._away_until = 0.0
        self.belief = self._fresh()
        self._beat()

    def _fresh(self) -> Belief:
        now = self.clock.now
        workers = (NodeBelief(n, n, "worker", State.JOINING, now) for n in self.workers)
        return begin((NodeBelief("head", "h0", "head", State.JOINING, now), *workers), now)

    def restart_agent(self, away_s: float) -> None:
        """The agent is gone for a while, and hears nothing; its successor knows what is written down."""
        self._away_until = max(self._away_until, self.clock.now + away_s)
        self.clock.call_later(away_s, self._succeed)

    def _succeed(self) -> None:
        if self.clock.now < self._away_until:
            return
        fresh, old = self._fresh(), self.belief
        nodes = {
            name: codec.decode(NodeBelief, codec.encode(n), onto=fresh.nodes[name])
            for name, n in old.nodes.items()
        }
        told = {k: codec.decode(Incident, codec.encode(i)) for k, i in old.incidents.items()}
        whole = codec.decode(Belief, codec.encode(old), onto=fresh)
        self.belief = resume(replace(whole, nodes=nodes, incidents=told), self.clock.now)
        self._deliver(m.PeopleStopped(self.stopped))

    def state(self, name: str) -> State:
        """What the core believes of this node."""
        return self.belief.nodes[name].state

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

    # --- what the agent does by the clock ---

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

    def _deliver(self, *events: m.Event) -> None:
        before, now = self.belief, self.clock.now
        if now < self._away_until:
            return
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

    # --- what it orders ---

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
