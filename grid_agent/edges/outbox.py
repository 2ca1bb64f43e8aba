"""What people are told about incidents, in order and without loss, while Slack comes and goes.

The loop puts the newest value of an incident; one task sends. Per incident: one message, edited when its
content changes, and one thread reply per step. Steps are counted, so an incident may only append to them.
Delivery is at least once. Not thread-safe: call everything on one event loop.
"""

import asyncio
import hashlib
import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal
from uuid import uuid4, uuid5

from grid_agent.core.model import Incident, Phase
from grid_agent.core.slack_text import root, step, summary
from grid_agent.edges.slack import Delivered, Outcome, Refused, Retry, SlackClient

log = logging.getLogger(__name__)

BACKOFF_S = (1.0, 2.0, 4.0, 8.0, 16.0, 30.0)
STUCK_AFTER = 5
REMEMBERED = 100  # delivered and resolved incidents whose thread is still known

_Part = Literal["root", "edit", "step", "wait", "nothing"]


@dataclass(slots=True)
class _Thread:
    """What Slack shows of one incident. `incident` None: known from before a restart only."""

    incident: Incident | None = None
    channel_id: str = ""
    ts: str = ""
    steps_posted: int = 0
    shown: str = ""  # digest of the root message as last shown
    tried: str = ""  # digest of a root that Slack may have taken although the answer did not arrive
    edit_after: float = 0.0  # on the event loop's clock
    roots: int = 0
    usable: bool = True  # Slack has taken an edit or a reply since the root was posted
    restored: bool = False  # nothing has been delivered to it in this life


class Outbox:
    """Sends incidents to one Slack channel.

    Args:
        client: Closed by its owner, after `run` has ended.
        channel: Name or id, for first messages; edits and replies use the id that Slack returned.
        now: The clock of the incidents, in seconds.
        stuck: Told why nothing gets through, at once when Slack refuses and after STUCK_AFTER failed
            tries in a row otherwise; told None when it flows again.
        on_delivered: Told `(incident_id, channel_id, ts, steps_posted)`, `ts` of the thread, after each
            delivery: what `restore` needs after a restart.
        min_edit_s: Shortest time between two edits of one message.
        backoff_s: Waits after the first, second, … failed try, unless Slack says how long.
    """

    def __init__(
        self,
        client: SlackClient,
        channel: str,
        cluster: str,
        *,
        now: Callable[[], float],
        stuck: Callable[[str | None], None] = lambda _: None,
        on_delivered: Callable[[int, str, str, int], None] = lambda *_: None,
        min_edit_s: float = 1.0,
        backoff_s: Sequence[float] = BACKOFF_S,
        refused_s: float = 30.0,
    ) -> None:
        self._client = client
        self._channel = channel
        self._cluster = cluster
        self._now = now
        self._stuck = stuck
        self._on_delivered = on_delivered
        self._min_edit_s = min_edit_s
        self._backoff_s = tuple(backoff_s)
        self._refused_s = refused_s
        self._threads: dict[int, _Thread] = {}
        self._done: dict[int, _Thread] = {}
        self._failures = 0
        self._stuck_reason: str | None = None
        self._keys = uuid4()
        self._wake = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()

    def put(self, incident: Incident) -> None:
        """Take the newest value of an incident; values not yet sent are replaced by it."""
        if incident.id not in self._threads:
            known = incident.id in self._done
            self._threads[incident.id] = self._done.pop(incident.id) if known else _Thread()
        self._threads[incident.id].incident = incident
        self._idle.clear()
        self._wake.set()

    async def run(self) -> None:
        """Send until cancelled."""
        while True:
            self._wake.clear()
            try:
                wait_s = await self._send_all()
            except Exception:
                # A callback failed. Dying here would silence the agent for good.
                log.exception("the Slack outbox failed; it goes on")
                wait_s = self._refused_s
            if wait_s is None and not self._wake.is_set():
                self._idle.set()
            with suppress(TimeoutError):
                async with asyncio.timeout(wait_s):
                    await self._wake.wait()

    async def drain(self, timeout_s: float) -> bool:
        """Wait until everything put so far is in Slack. False: not within `timeout_s`. Needs `run`."""
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._idle.wait()
        return self._idle.is_set()

    def snapshot(self) -> dict[int, dict[str, Any]]:
        """The threads that may still change: incident id -> channel_id, ts, steps_posted, shown."""
        names = ("channel_id", "ts", "steps_posted", "shown")
        kept = ((key, thread) for key, thread in self._threads.items() if thread.ts)
        return {key: {name: getattr(thread, name) for name in names} for key, thread in kept}

    def restore(self, threads: Mapping[int, Mapping[str, Any]]) -> None:
        """Continue threads of an earlier life. Call before the first `put`. `shown` may be missing."""
        for incident_id, row in threads.items():
            known = (row["channel_id"], row["ts"], row["steps_posted"], row.get("shown", ""))
            self._threads[int(incident_id)] = _Thread(None, *known, restored=True)

    async def _send_all(self) -> float | None:
        """Send what may be sent now. Seconds until more may be, None when nothing is left."""
        loop, waits = asyncio.get_running_loop(), list[float]()
        for incident_id, thread in list(self._threads.items()):
            while (part := self._next(thread, loop.time())) not in {"wait", "nothing"}:
                await self._send(thread, part)
            if part == "wait":
                waits.append(thread.edit_after - loop.time())
            elif thread.incident is not None and not thread.incident.open:
                self._done[incident_id] = self._threads.pop(incident_id)
                if len(self._done) > REMEMBERED:
                    del self._done[next(iter(self._done))]
        return min(waits, default=None)

    def _next(self, thread: _Thread, at: float) -> _Part:
        incident = thread.incident
        if incident is None:
            return "nothing"
        changed = thread.shown != self._digest(incident)
        if not thread.ts:
            return "root" if changed else "nothing"
        if changed and at >= thread.edit_after:
            return "edit"
        if thread.steps_posted < len(incident.steps):
            return "step"
        return "wait" if changed else "nothing"

    async def _send(self, thread: _Thread, part: _Part) -> None:
        incident = thread.incident
        assert incident is not None
        outcome = await self._say(thread, incident, part)
        if isinstance(outcome, Delivered):
            self._delivered(thread, incident, part, outcome)
        elif isinstance(outcome, Retry):
            self._failures += 1
            if self._failures >= STUCK_AFTER:
                self._set_stuck(outcome.reason)
            backoff_s = self._backoff_s[: self._failures][-1]
            await asyncio.sleep(backoff_s if outcome.after_s is None else outcome.after_s)
        elif outcome.kind == "settings" or (outcome.kind == "channel" and not thread.restored):
            self._set_stuck(f"{outcome.reason}: {outcome.what_to_do}")
            await asyncio.sleep(self._refused_s)
        else:
            self._give_way(thread, incident, part, outcome)

    async def _say(self, thread: _Thread, incident: Incident, part: _Part) -> Outcome:
        if part == "step":
            index = thread.steps_posted
            key = self._key(f"{incident.id}/{thread.roots}/step/{index}")
            return await self._client.post(thread.channel_id, step(incident, index), thread.ts, key)
        message = root(incident, self._now(), self._cluster)
        if part == "edit":
            return await self._client.update(thread.channel_id, thread.ts, message)
        thread.tried = thread.tried or self._digest(incident)
        return await self._client.post(self._channel, message, key=self._key(f"{incident.id}/{thread.roots}"))

    def _delivered(self, thread: _Thread, incident: Incident, part: _Part, said: Delivered) -> None:
        if part == "step":
            thread.steps_posted += 1
        else:
            thread.shown = self._digest(incident)
            thread.edit_after = asyncio.get_running_loop().time() + self._min_edit_s
        if part == "root":
            thread.channel_id, thread.ts = said.channel_id, said.ts
            # The key may have brought up an earlier try with older content: then edit it.
            thread.shown = thread.shown if thread.shown == thread.tried else ""
            thread.tried = ""
        thread.usable, thread.restored = part != "root", False
        self._failures = 0
        self._set_stuck(None)
        self._on_delivered(incident.id, thread.channel_id, thread.ts, thread.steps_posted)

    def _give_way(self, thread: _Thread, incident: Incident, part: _Part, said: Refused) -> None:
        """Slack will never take this part as it is: post a new root, or go on without the part."""
        log.warning("Slack refuses the %s of incident %d: %s", part, incident.id, said.reason)
        if said.kind == "channel" or (said.kind == "gone" and (part == "edit" or thread.usable)):
            # A restored thread may be in a channel that is no longer the configured one.
            thread.ts = thread.shown = ""
            thread.restored = False
            thread.roots += 1
        elif part == "step":
            thread.steps_posted += 1
        else:
            thread.shown = self._digest(incident)

    def _set_stuck(self, reason: str | None) -> None:
        if reason != self._stuck_reason:
            self._stuck_reason = reason
            self._stuck(reason)

    def _digest(self, incident: Incident) -> str:
        # At a fixed time: an open incident that merely grows older is no reason to edit.
        message = root(incident, incident.opened_at, self._cluster)
        return hashlib.sha256(repr(message).encode()).hexdigest()[:16]

    def _key(self, name: str) -> str:
        return str(uuid5(self._keys, name))


class LogOutbox:
    """Where no Slack is configured: one log line per incident and phase."""

    def __init__(self) -> None:
        self._phases: dict[int, Phase] = {}

    def put(self, incident: Incident) -> None:
        """Log the incident if its phase is new."""
        known = self._phases.pop(incident.id, None)
        self._phases[incident.id] = incident.phase
        if len(self._phases) > REMEMBERED:
            del self._phases[next(iter(self._phases))]
        if known is not incident.phase:
            log.log(logging.WARNING if incident.open else logging.INFO, "%s", summary(incident))

    async def run(self) -> None:
        """Nothing to send; waits until cancelled."""
        await asyncio.Event().wait()

    async def drain(self, timeout_s: float) -> bool:  # noqa: ARG002  the interface of Outbox
        """Always done."""
        return True
