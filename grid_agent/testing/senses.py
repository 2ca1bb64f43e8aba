"""What heartbeats, the GCS, looks, peers and tasks show of a simulated world: late, lost or false."""

from functools import partial

from grid_agent.core import messages as m
from grid_agent.core.seen import NO_FACTS, HostFacts, Raylet
from grid_agent.core.terms import Miss
from grid_agent.testing.world import World

RAY_NOTICES_S = 155.0  # Ray's own tolerant check, the backstop


class Senses(World):
    """Turns the truth into events. What comes later is delivered later."""

    # --- heartbeats ---

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

    # --- the GCS ---

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

    # --- looks, peers and tasks ---

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
        if self.clock.now < host.stalled_until:
            return self._deliver(m.LookFailed(name, "head", "login_timeout"))
        if self.chances.look_lies and self.rng.random() < self.chances.look_lies:
            return self._deliver(m.HostLooked(name, "head", ()))
        found = (Raylet(p.number, p.node_id, 1, "T" if p.hung else "S") for p in host.raylets)
        slow = self.clock.now < host.slow_until or any(p.hung for p in host.raylets)
        seen = HostFacts(port=1, listening=True, greets=not slow) if host.raylets else NO_FACTS
        return self._deliver(m.HostLooked(name, "head", tuple(found), facts=seen))

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
        reached = self.clock.now >= max(
            host.cut_until, host.busy_until, host.stale.get(node_id, 0.0), self.gcs_silent_until
        )
        return reached and p is not None and not p.hung and bool(p.listed)
