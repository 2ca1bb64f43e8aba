"""Hosts, their raylets, and everything that may happen to them. Nobody here knows what an agent believes."""

import random
from collections.abc import Iterable
from functools import partial

from grid_agent.core import messages as m
from grid_agent.core.policy import Policy
from grid_agent.core.terms import Miss
from grid_agent.testing.clock import VirtualClock
from grid_agent.testing.hosts import Chances, Host, Process

EXIT_S = 2.0  # a raylet that learns that it was marked dead exits


class World:
    """A head and some workers, all up. `run` lets time pass; the rest does harm."""

    def __init__(self, seed: int, workers: int, policy: Policy | None = None, chances: Chances | None = None):
        self.rng = random.Random(seed)  # noqa: S311 - repeatable on purpose, no secret
        self.clock, self.gcs_silent_until = VirtualClock(1_000_000.0), 0.0
        self.policy, self.chances = policy or Policy(), chances or Chances()
        self.doubles: list[str] = []
        self._harmed: dict[str, tuple[str, float]] = {}
        self._observer_slow_until = 0.0
        self._processes: list[tuple[str, Process]] = []
        self.workers = tuple(f"gpu{i}" for i in range(1, workers + 1))
        self.hosts = {name: Host() for name in ("head", *self.workers)}
        for name in self.hosts:
            self._spawn(name).listed = True

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

    def stall(self, name: str, seconds: float) -> None:
        """Its disk stands still: the kernel accepts connections; neither raylet nor login answers."""
        self.slow(name, seconds)
        self.hosts[name].stalled_until = self.clock.now + seconds

    def cut(self, names: Iterable[str], seconds: float) -> None:
        """Take these hosts off the network; their processes live on. Below `unreachable_s` nobody may die.

        Ray's connections to them stay silent for as long again: TCP sends again after waits that double.
        """
        for name in names:
            host = self.hosts[name]
            over = self.clock.now + seconds * self.rng.uniform(0.97, 1.0)  # never all in one moment
            host.cut_until = max(host.cut_until, over)
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

    # --- processes ---

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

    def _mark_dead(self, name: str, process: Process) -> None:
        process.listed, process.harmed = False, True
        if not process.hung:
            self.clock.call_later(EXIT_S, partial(self._end, name, process))

    # --- news ---

    def _deliver(self, *events: m.Event) -> None:
        """Whoever watches this world hears of it at once."""
        raise NotImplementedError

    def _deliver_later(self, delay_s: float, event: m.Event) -> None:
        self.clock.call_later(delay_s, partial(self._deliver, event))
