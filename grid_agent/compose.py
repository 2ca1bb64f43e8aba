"""The one place where clock, edges, scheduler and core meet.

It builds the agent of one cluster from its settings, runs the jobs on APScheduler and answers reads from
the loop's snapshot. It decides nothing. Called by `deployments.agent`.
"""

import asyncio
import contextlib
import fcntl
import logging
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import UTC
from pathlib import Path
from typing import Any, TextIO

from apscheduler.events import EVENT_JOB_MAX_INSTANCES
from apscheduler.schedulers.asyncio import AsyncIOScheduler

from config.paths import StatePaths, node_files, temp_dir
from config.settings import Settings
from grid_agent import metrics, repair_plan
from grid_agent.core import messages as m
from grid_agent.core import people, report
from grid_agent.core.model import NodeBelief
from grid_agent.core.step import begin
from grid_agent.core.terms import State
from grid_agent.edges import file_limit
from grid_agent.edges.gate import Gate, Word
from grid_agent.edges.gcs import Gcs
from grid_agent.edges.head_news import HeadNews
from grid_agent.edges.heartbeat import Heartbeats
from grid_agent.edges.journal import Journal, Sent
from grid_agent.edges.live_work import LiveWorks
from grid_agent.edges.looks import Looks
from grid_agent.edges.outbox import LogOutbox, Outbox
from grid_agent.edges.people import StoppedByPeople
from grid_agent.edges.probes import Probes
from grid_agent.edges.remote import Remote, Through
from grid_agent.edges.self_check import SelfCheck
from grid_agent.edges.slack import SlackClient
from grid_agent.edges.transports import Transports
from grid_agent.exits import NotInChargeError, RefusedError
from grid_agent.log_file import open_log
from grid_agent.loop import Edges, Loop
from grid_agent.notifiers import Continued, Everywhere
from grid_agent.policy import gpu_of, policy_of
from grid_agent.schedule import schedule

HEAD_NEWS_S = 1.0
KEEPER_EVERY_S = 5.0
LATE_INTERVALS = 3
MIN_LATE_S = 3.0
CONNECTED_EVERY_S = 60.0
LOCK_POLL_S = 0.2
ANSWER_S = 15.0  # for Ray to say what runs on a node
ANSWER_POLL_S = 0.05
DRAIN_S = 2.0
log = logging.getLogger("grid_agent")


def steady_clock() -> Callable[[], float]:
    """Wall time that cannot jump: read once, then carried on by the monotonic clock."""
    base = time.time() - time.monotonic()
    return lambda: base + time.monotonic()


class Agent:
    """The agent of one cluster, inside one event loop.

    Args:
        settings: The cluster file.
        gcs_address: The GCS as Ray's own processes name it, "host:port".
        environ: The process's environment.
    """

    def __init__(self, settings: Settings, gcs_address: str, environ: Mapping[str, str]) -> None:
        self.settings = settings
        self.paths = StatePaths.of(settings.cluster, environ)
        open_log(self.paths.logs / "agent.log")
        file_limit.provide(len(settings.nodes))
        clock = steady_clock()
        policy = policy_of(settings)
        self._nodes = tuple(
            NodeBelief(
                n.name,
                n.host,
                n.role,
                State.JOINING,
                clock(),
                expected_gpus=n.num_gpus,
                labels=n.labels,
                can_repair=n.can_repair,
            )
            for n in settings.nodes
        )
        self._head_news = HeadNews(self.paths.root)
        self._slack: SlackClient | None = None
        self.journal = Journal(self.paths.journal, told=settings.slack is not None)
        self.outbox = self._make_outbox(clock)
        ways = self._ways = Transports(settings, self.paths)
        known = {node.name: node for node in settings.nodes}
        looks = Looks(
            lambda by, node: ways(node) if by.role == "head" else Through(by, ways.seen_from(by.name, node)),
            gcs_address,
            lambda name: plan.session_dir(name),  # noqa: PLW0108 - the plan is made below
            lambda name: node_files(settings, known[name], self.paths).lock,
        )
        plan = repair_plan.RepairPlan(
            settings, self.paths, gcs_address, environ, looks.seen, epoch=lambda: self.journal.epoch
        )
        every_s = settings.agent.heartbeat_every_s
        share = settings.agent.heartbeat_cpu_percent / 100
        # A little less than the interval: a raylet that hangs must not cost the others every second check.
        self._heartbeats = Heartbeats(self._feed, 0.8 * every_s, every_s, share)
        self._self_check = SelfCheck()
        self._gcs = Gcs(gcs_address)
        repair_s = repair_plan.longest_s(settings)
        remote = Remote(lambda order: plan.request(order, self.loop.belief), ways.seen_from, repair_s)
        self._lock: TextIO | None = None
        self.gate = Gate(remote, policy, self._not_in_charge, self.paths.repairs)
        edges = Edges(
            gcs=Word(self._gcs, self.gate.not_in_charge),
            heartbeats=self._heartbeats,
            hosts=looks,
            remote=self.gate,
            probes=Probes(
                temp_dir(settings, settings.head, os.getuid()), lambda name: gpu_of(settings, name)
            ),
            people=StoppedByPeople(self.paths.stopped),
            notifier=Everywhere(LogOutbox(), self.outbox and Continued(self.outbox, self._head_news)),
            journal=self.journal,
            works=LiveWorks(gcs_address),
            self_check=self._self_check,
        )
        self._edges = edges
        self.loop = Loop(begin(self._nodes, clock()), policy, clock, edges, self._secrets)
        self._scheduler = AsyncIOScheduler(timezone=UTC)
        self._running: list[asyncio.Task[None]] = []
        self._had_lock = False

    # --- life ---

    async def start(self) -> None:
        """Begin in the background: wait for the lock that only one agent can hold, then run."""
        self._running.append(asyncio.create_task(self._live(), name="agent"))
        if self.outbox is not None:
            self._running.append(asyncio.create_task(self.outbox.run(), name="outbox"))

    async def _live(self) -> None:
        with _lock_file(self.paths.agent_lock) as lock:
            while not _locked(lock):  # noqa: ASYNC110 - another process holds it; no event can tell us
                await asyncio.sleep(LOCK_POLL_S)
            self._lock = lock
            await self._remember()
            self._had_lock = True
            ours = (
                (self._read_head_news, HEAD_NEWS_S),
                (self._head_news.keep_the_keeper, KEEPER_EVERY_S),
                (self._ways.keep_ready, CONNECTED_EVERY_S),
            )
            schedule(self._scheduler, self.loop, self.settings.agent, ours)
            self._scheduler.add_listener(lambda _: self._self_check.skipped(), EVENT_JOB_MAX_INSTANCES)
            log.info("watching %s in mode %s", self.settings.cluster, self.settings.agent.mode)
            try:
                await self.loop.run()
            except Exception:
                log.exception("the loop ended; the health check will have this replica restarted")
                raise
            finally:
                self._scheduler.shutdown(wait=False)

    def _not_in_charge(self) -> str | None:
        """Why another agent may be acting in our place; None while our lock is the one on the disk."""
        try:
            ours, there = os.fstat(self._lock.fileno()) if self._lock else None, self.paths.agent_lock.stat()
        except OSError as error:
            return f"the lock of this cluster's agent is gone ({error.strerror})"
        if ours is None or (ours.st_dev, ours.st_ino) != (there.st_dev, there.st_ino):
            return "the lock of this cluster's agent is another's"
        return None

    async def _remember(self) -> None:
        """Go on where the last agent was, in what it believed and in what it was telling people."""
        now = self.loop.clock()
        fresh = begin((replace(n, since=now) for n in self._nodes), now)
        self.loop.belief = await self.journal.open(fresh, now)
        if self.outbox is not None:
            self.outbox.restore({k: s.body for k, s in self.journal.sent.items()})
        for incident in self.loop.belief.incidents.values():
            sent = self.journal.sent.get(incident.id)
            if incident.open or (sent is not None and sent.shown < incident.revision):
                self._edges.notifier.put(incident)

    async def stop(self) -> None:
        """Let go of everything."""
        if self.outbox is not None:
            await self.outbox.drain(DRAIN_S)
        for task in self._running:
            task.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)
        await self.loop.close()
        await self._heartbeats.close()
        await self._self_check.close()
        await self._gcs.close()
        if self._slack is not None:
            await self._slack.close()
        await self.journal.close()

    # --- what people say ---

    async def say(self, said: m.PersonSaid) -> str:
        """Take a person's words into the belief, and return what holds now as one sentence.

        Raises:
            RefusedError: They make no sense now.
            NotInChargeError: Another agent watches this cluster; it would not hear them.
        """
        if not self._had_lock or self.late_s() is not None:
            raise NotInChargeError("this agent is not in charge (yet, or any more): try again in a moment")
        objection = people.objection(self.loop.belief, said)
        if objection is not None:
            raise RefusedError(objection)
        await self.loop.hear(said)
        if said.verb is m.Verb.REPAIR:
            await self._asked(said.node or "")
        text = people.sentence(self.loop.belief, said)
        log.info("%s", text)
        return text

    async def _asked(self, name: str) -> None:
        """Wait until the restart that a person asked for is begun, prepared or refused."""
        for _ in range(int(ANSWER_S / ANSWER_POLL_S)):
            node = self.loop.belief.nodes[name]
            if node.ask_refused is not None:
                raise RefusedError(f"{name} is not restarted: {node.ask_refused}")
            if node.asked is None or node.drain_ends_at is not None:
                return
            await asyncio.sleep(ANSWER_POLL_S)

    # --- reads, all from memory ---

    def health(self) -> dict[str, Any]:
        """The body of `/cluster/health`."""
        return report.health(self.loop.belief, self.loop.clock(), self.loop.policy)

    def metrics(self) -> bytes:
        """The body of `/cluster/metrics`."""
        return metrics.text(self.loop.belief, self.loop.clock())

    def late_s(self) -> float | None:
        """How long the loop has not run, when that is too long; else None."""
        age_s = self.loop.clock() - self.loop.belief.stepped_at
        limit_s = max(MIN_LATE_S, LATE_INTERVALS * self.settings.agent.heartbeat_every_s)
        return age_s if age_s > limit_s else None

    def ready(self) -> bool:
        """The agent holds the lock, runs, and has heard from the GCS."""
        return self.late_s() is None and self.loop.belief.observer.gcs_answered_at is not None

    def ever_ran(self) -> bool:
        """Whether this replica has had the lock: one that waits for it is not sick."""
        return self._had_lock

    def why(self, name: str) -> dict[str, Any] | None:
        """The story of one node; None when there is no such node."""
        node = self.loop.belief.nodes.get(name)
        now = self.loop.clock()
        return None if node is None else report.why(self.loop.belief, node, now, self.loop.policy)

    def incidents(self) -> list[dict[str, Any]]:
        """Every known incident, newest first."""
        known = self.loop.belief.incidents
        return [report.incident(known[i]) for i in sorted(known, reverse=True)]

    async def incident(self, number: int) -> dict[str, Any] | None:
        """One incident with all that is kept of it; None when there is none of this number."""
        known = self.loop.belief.incidents.get(number) or await self.journal.incident(number)
        if known is None:
            return None
        return {**report.incident(known), **report.kept(await self.journal.story(number))}

    # --- parts ---

    async def _read_head_news(self) -> None:
        self.loop.feed(*self._head_news.read())

    def _feed(self, event: m.Event) -> None:
        self.loop.feed(event)

    def _secrets(self) -> list[str]:
        """What must be in no incident, whatever a host says."""
        found = []
        for path in (self.paths.ray_token, self.paths.slack_token, self.paths.api_token):
            with contextlib.suppress(OSError, UnicodeDecodeError):
                found.append(path.read_text(encoding="utf-8").strip())
        return found

    def _make_outbox(self, clock: Callable[[], float]) -> Outbox | None:
        slack = self.settings.slack
        if slack is None:
            return None
        self._slack = SlackClient(self.paths.slack_token, slack.base_url)
        return Outbox(
            self._slack,
            slack.channel,
            self.settings.cluster,
            now=clock,
            stuck=lambda why: self._feed(m.SlackChanged(why)),
            keep=lambda k, row: self.journal.record_sent(k, Sent(int(row["revision"]), row)),
        )


def _lock_file(path: Path) -> TextIO:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    path.touch(mode=0o600)
    return path.open("a")


def _locked(file: TextIO) -> bool:
    """Take the kernel's lock; it goes with the process, however that ends."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
