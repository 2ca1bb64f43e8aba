"""The shell around the core: events in, orders out, results back as events. One writer.

It holds the belief, calls `step` with whatever has arrived, and starts what `step` orders; it decides
nothing. Whoever reads the belief (HTTP, metrics) gets the last snapshot and never waits for a probe.
Called by `compose`, whose scheduler runs the jobs below.
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Collection, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any

from grid_agent import failpoints, ports
from grid_agent.core import messages as m
from grid_agent.core import redact, report
from grid_agent.core.model import Belief
from grid_agent.core.policy import Policy
from grid_agent.core.rest import at_rest
from grid_agent.core.step import step
from grid_agent.core.terms import Cause, State

TICK_S = 0.5
SUSPECTED_S = 0.1  # between two steps while the time of a suspect may be up
STEP_SHARE = 0.1  # of the time goes into such steps at most, however long one takes
LIST_EVERY_S = 1.0
LIST_UNSETTLED_S = 0.2
LIST_WHOLE = 400  # nodes
NEARLY = 0.9  # of an interval: a job that comes a little early is not put off for a whole one
ON_THE_WAY = (State.JOINING, State.REPAIRING)
log = logging.getLogger("grid_agent.loop")


@dataclass(frozen=True, slots=True)
class Edges:
    """Everything outside, made by `compose`."""

    gcs: ports.Gcs
    heartbeats: ports.Heartbeats
    hosts: ports.Hosts
    remote: ports.Remote
    probes: ports.Probes
    people: ports.People
    notifier: ports.Notifier
    journal: ports.Journal
    self_check: ports.SelfCheck | None = None
    works: ports.LiveWorks | None = None  # without it no node that still runs is restarted


class Loop:
    """Feeds `step` and carries out its orders."""

    def __init__(
        self,
        belief: Belief,
        policy: Policy,
        clock: ports.Clock,
        edges: Edges,
        secrets: Callable[[], Collection[str]] = tuple,
    ) -> None:
        self._secrets = secrets
        self.belief = belief
        self.policy = policy
        self.clock = clock
        self._edges = edges
        self._events: list[m.Event] = []
        self._heard: list[asyncio.Future[None]] = []
        self._arrived = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._ticked_at: float | None = None
        self._listed_at = 0.0
        self._said: list[tuple[State, Cause | None]] = []
        self._stopped: frozenset[str] | None = None

    # --- events ---

    def feed(self, *events: m.Event) -> None:
        """Queue events. News is stepped on as soon as the event loop is free, routine with the next tick."""
        self._events += events
        if any(map(self._is_news, events)):
            self._arrived.set()

    async def hear(self, event: m.Event) -> None:
        """Queue an event, and return when it is part of the belief."""
        heard: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._heard.append(heard)
        self.feed(event)
        await heard

    def _is_news(self, event: m.Event) -> bool:
        """Only that a healthy node is still healthy can wait: it is most of what is ever said."""
        if isinstance(event, m.HeartbeatsSwept):
            return False
        if not isinstance(event, m.HeartbeatAnswered | m.NodeProbed):
            return True
        node = self.belief.nodes.get(event.node)
        return node is not None and not at_rest(node)

    async def run(self) -> None:
        """Step for ever. A bug in the core must be seen, not survived in silence: it ends the loop."""
        step_s = 0.0
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._patience_s(step_s)):
                    await self._arrived.wait()
            self._arrived.clear()
            events, self._events = self._events, []
            heard, self._heard = self._heard, []
            begun = self.clock()
            await self._step(events)
            step_s = self.clock() - begun
            for one in heard:
                if not one.done():
                    one.set_result(None)

    def _patience_s(self, step_s: float) -> float | None:
        """How long to wait for news; None: the tick will do. A suspect's time is up at no tick of ours."""
        since = self.clock() - 2 * max(self.policy.hang_s, self.policy.unreachable_s)
        nodes = map(self.belief.nodes.__getitem__, self.belief.busy)
        if not any(node.state is State.SUSPECT and node.since > since for node in nodes):
            return None
        return max(SUSPECTED_S, step_s / STEP_SHARE)

    async def _step(self, events: Sequence[m.Event]) -> None:
        # What people said is read at every step, so that nothing is restarted that was stopped just now.
        before, now = self.belief, self.clock()
        heard = (*self._stalled(now), *events, *self._stopped_now())
        self.belief, orders = step(before, heard, now, self.policy)
        if any(isinstance(event, m.NodesListed) for event in events):
            self._edges.heartbeats.follow(self.belief.nodes.values())
        busy = map(self.belief.nodes.__getitem__, self.belief.busy)
        self._edges.probes.let_go(n.name for n in busy if n.state is State.CORDONED)
        if orders:
            failpoints.reach("decided")
        # An order starts when it is on the disk: whoever comes after us must know what we have begun.
        await self._edges.journal.save(before, self.belief, heard, orders, now)
        if self._edges.journal.trouble != self.belief.observer.journal_trouble:
            self.feed(m.JournalChanged(self._edges.journal.trouble))
        if orders:
            failpoints.reach("recorded")
        for order in orders:
            self._start(order)
        if not self._said or before.busy or self.belief.busy:  # else all are well, as they were
            self._say()

    def _stopped_now(self) -> tuple[m.Event, ...]:
        """Whom people stopped, when that has changed."""
        stopped = self._edges.people.stopped()
        if stopped == self._stopped:
            return ()
        self._stopped = stopped
        return (m.PeopleStopped(stopped),)

    def _stalled(self, now: float) -> tuple[m.Event, ...]:
        """That we stood still must be known before what arrived meanwhile is judged."""
        late_s = 0.0 if self._ticked_at is None else now - self._ticked_at - TICK_S
        if late_s * 1000.0 < self.policy.lag_warn_ms:
            return ()
        self._ticked_at = now
        return (m.LoopLagged(late_s * 1000.0),)

    def _say(self) -> None:
        """One sentence in the log whenever a node's state or cause has changed."""
        shape = [(n.state, n.cause) for n in self.belief.nodes.values()]
        if shape != self._said:
            log.info("%s", report.sentence(self.belief))
            self._said = shape

    # --- orders ---

    def _start(self, order: m.Order) -> None:
        match order:
            case m.Notify(incident):
                self._edges.notifier.put(incident)
            case m.LookAtHost():
                by = self.belief.nodes[order.by]
                self._spawn(self._answer(self._edges.hosts.look(order, by)))
            case m.AskPeer():
                self._spawn(self._answer(self._edges.probes.check(order, self.belief.nodes[order.by])))
            case m.ProveFromPeer():
                self._spawn(self._answer(self._edges.remote.place(order, self.belief.nodes[order.by])))
            case m.ProveNode():
                self._spawn(self._answer(self._edges.remote.prove(order)))
            case m.TellRay():
                self._spawn(self._answer(self._edges.gcs.tell_dead(order)))
            case m.ListWork() if self._edges.works is not None:
                self._spawn(self._answer(self._edges.works.list_work(order)))
            case m.DrainNode():
                self._edges.probes.let_go([order.node])
                self._spawn(self._answer(self._edges.gcs.drain(order)))
            case m.RestartWorker():
                run_on = self.belief.nodes[order.run_on]
                self._spawn(self._answer(self._edges.remote.repair(order, run_on)))

    async def _answer(self, work: Coroutine[Any, Any, m.Event]) -> None:
        failpoints.reach("acting")
        said = await work
        failpoints.reach("acted")
        self.feed(redact.value(said, self._secrets()))

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            log.error("an edge raised instead of reporting", exc_info=task.exception())

    # --- scheduled jobs ---

    async def tick(self) -> None:
        """Time passes: measure our own lateness, so that waits end and doubts are seen."""
        now = self.clock()
        late_s = 0.0 if self._ticked_at is None else max(0.0, now - self._ticked_at - TICK_S)
        self._ticked_at = now
        self.feed(m.LoopLagged(late_s * 1000.0))

    async def check_self(self) -> None:
        """How we are ourselves."""
        if self._edges.self_check is not None:
            self.feed(await self._edges.self_check.check())

    async def list_nodes(self) -> None:
        """The GCS node table: every second, and five times as often while a node is on its way.

        A long table is read less often: what it costs grows with it, and crashes are not found there.
        """
        until = self.clock() + LIST_EVERY_S
        if self.clock() - self._listed_at >= NEARLY * self._list_every_s():
            await self._list()
        # No job of its own: to fire so often, mostly for nothing, would cost half a percent of a core.
        while self._unsettled() and self.clock() + self._list_every_s() < until:
            await asyncio.sleep(self._list_every_s())
            await self._list()

    async def _list(self) -> None:
        self._listed_at = self.clock()
        self.feed(await self._edges.gcs.list_nodes())

    def _list_every_s(self) -> float:
        every_s = LIST_UNSETTLED_S if self._unsettled() else LIST_EVERY_S
        return every_s * max(1.0, len(self.belief.nodes) / LIST_WHOLE)

    def _unsettled(self) -> bool:
        return any(self.belief.nodes[name].state in ON_THE_WAY for name in self.belief.busy)

    async def beat(self) -> None:
        """One heartbeat sweep."""
        heartbeats = self._edges.heartbeats
        self.feed(*await heartbeats.sweep(), m.HeartbeatsSwept(heartbeats.rotation_s))

    async def probe(self) -> None:
        """One sweep of the probe actors on the nodes that are ALIVE."""
        live = [n for n in self.belief.nodes.values() if n.state is State.ALIVE and not n.drained]
        self.feed(*await self._edges.probes.sweep(live))

    async def keep_ready(self) -> None:
        """Have what repairs need, before they need it."""
        for head in (n for n in self.belief.nodes.values() if n.role == "head" and n.state is State.ALIVE):
            await self._edges.remote.keep_ready(head)

    async def close(self) -> None:
        """Stop waiting for what is under way."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
