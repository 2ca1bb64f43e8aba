"""What people are told about incidents, in order and without loss, while Slack comes and goes.

The loop puts the newest value of an incident; one task sends. What is about to be posted is kept first
(`keep`), so that a post whose answer never came is looked for in the channel before it is sent again: by
this agent or by the next one. Not thread-safe: call everything on one event loop.
"""

import asyncio
import hashlib
import logging
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any
from uuid import UUID, uuid5

from grid_agent import failpoints
from grid_agent.core.incident_model import Incident, Phase
from grid_agent.core.slack_text import root, step, summary
from grid_agent.edges.outbox_thread import Part, Thread
from grid_agent.edges.slack import Delivered, Outcome, Refused, Retry, SlackClient

log = logging.getLogger(__name__)

BACKOFF_S = (1.0, 2.0, 4.0, 8.0, 16.0, 30.0)  # ours; what Slack asks for wins
STUCK_AFTER = 5
REMEMBERED = 100  # delivered and resolved incidents whose thread is still known
CHANNEL_ID = re.compile("[CGD][A-Z0-9]{5,}")


async def _nobody(_: int, __: Mapping[str, Any]) -> None:
    """Keeps nothing."""


class Outbox:
    """Sends incidents to one Slack channel.

    Args:
        client: Closed by its owner, after `run` has ended.
        channel: Name or id, for first messages; edits and replies use the id that Slack returned.
        now: The clock of the incidents, in seconds since the epoch.
        stuck: Told why nothing gets through, at once when Slack refuses or asks for more than half a
            minute, and after STUCK_AFTER failed tries in a row otherwise; told None when it flows again.
        keep: Awaited with `(incident_id, row)` before each post and after each delivery: the row that
            `restore` needs after a restart. Must not raise.
        min_edit_s: Shortest time between two edits of one message; all other waits for an edit, and that
            for the first message, are multiples of it.
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
        keep: Callable[[int, Mapping[str, Any]], Awaitable[None]] = _nobody,
        min_edit_s: float = 1.0,
        backoff_s: Sequence[float] = BACKOFF_S,
        refused_s: float = 30.0,
    ) -> None:
        self._client = client
        self._channel = channel
        self._cluster = cluster
        self._now = now
        self._stuck = stuck
        self._keep = keep
        self._min_edit_s = min_edit_s
        self._backoff_s = tuple(backoff_s)
        self._refused_s = refused_s
        self._threads: dict[int, Thread] = {}
        self._done: dict[int, Thread] = {}
        self._failures = 0
        self._stuck_reason: str | None = None
        self._wake = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()

    def put(self, incident: Incident) -> None:
        """Take the newest value of an incident; values not yet sent are replaced by it."""
        if incident.id not in self._threads:
            fresh = Thread(wait_until=asyncio.get_running_loop().time() + self._min_edit_s)
            self._threads[incident.id] = self._done.pop(incident.id, fresh)
        self._threads[incident.id].take(incident)
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

    def restore(self, rows: Mapping[int, Mapping[str, Any]]) -> None:
        """Continue what an earlier life has kept. Call before the first `put`, on the event loop."""
        self._threads |= {int(key): Thread.of_row(row, self._moved_s()) for key, row in rows.items()}

    def adopt(self, incident_id: int, channel_id: str, ts: str) -> None:
        """Go on in a message that somebody else has begun; nothing where this one has its own already."""
        if incident_id not in self._threads and incident_id not in self._done:
            self._threads[incident_id] = Thread(channel_id=channel_id, ts=ts, restored=True)

    async def _send_all(self) -> float | None:
        """Send what may be sent now. Seconds until more may be, None when nothing is left."""
        loop, waits = asyncio.get_running_loop(), list[float]()
        for incident_id, thread in list(self._threads.items()):
            while True:
                part, later = self._next(thread, loop.time())
                if part is None:
                    break
                await self._send(thread, part)
            if later is not None:
                waits.append(max(0.0, later - loop.time()))
            elif thread.incident is not None:
                await self._all_shown(incident_id, thread)
        return min(waits, default=None)

    def _next(self, thread: Thread, at: float) -> tuple[Part | None, float | None]:
        digest = "" if thread.incident is None else self._digest(thread.incident)
        return thread.next_part(digest, at, self._min_edit_s)

    async def _all_shown(self, incident_id: int, thread: Thread) -> None:
        incident = thread.incident
        assert incident is not None
        if thread.revision < incident.revision:
            thread.revision = incident.revision
            await self._note(incident_id, thread)
        if not incident.open and thread.incident is incident:  # else a newer value was put meanwhile
            self._done[incident_id] = self._threads.pop(incident_id)
            if len(self._done) > REMEMBERED:
                del self._done[next(iter(self._done))]

    async def _send(self, thread: Thread, part: Part) -> None:
        incident = thread.incident
        assert incident is not None
        outcome = await self._say(thread, incident, part)
        if isinstance(outcome, Delivered):
            failpoints.reach("posted")
            self._delivered(thread, incident, part, outcome)
            await self._note(incident.id, thread)
            failpoints.reach("noted")
        elif isinstance(outcome, Retry):
            self._failures += 1
            asked_s = outcome.after_s or 0.0
            if self._failures >= STUCK_AFTER or asked_s > BACKOFF_S[-1]:
                self._set_stuck(outcome.reason)
            backoff_s = self._backoff_s[: self._failures][-1]
            await asyncio.sleep(backoff_s if outcome.after_s is None else outcome.after_s)
        elif outcome.kind == "settings" or (outcome.kind == "channel" and not thread.restored):
            self._set_stuck(f"{outcome.reason}: {outcome.what_to_do}")
            await asyncio.sleep(self._refused_s)
        else:
            self._give_way(thread, incident, part, outcome)

    async def _say(self, thread: Thread, incident: Incident, part: Part) -> Outcome:
        if part == "edit":
            return await self._client.update(thread.channel_id, thread.ts, self._root(incident))
        index = thread.step_due() or 0
        key = str(uuid5(UUID(thread.key), f"{thread.roots}/{part}" + (f"/{index}" if part == "step" else "")))
        if thread.trying is not None and thread.trying["key"] == key:
            found = await self._find(thread, part)
            if found is not None:
                return found
        else:
            failpoints.reach("keeping")
            thread.trying = {"key": key, "digest": self._digest(incident)}
            await self._note(incident.id, thread)
            failpoints.reach("kept")
        if part == "step":
            told, calls = step(incident, index), thread.calls(index)
            said = await self._client.post(thread.channel_id, told, thread.ts, key, broadcast=calls)
        else:
            thread.trying["digest"] = self._digest(incident)
            said = await self._client.post(self._channel, self._root(incident), key=key)
        if isinstance(said, Refused) or (isinstance(said, Retry) and not said.unclear):
            thread.trying = None  # it is certainly not there
        return said

    async def _find(self, thread: Thread, part: Part) -> Delivered | Retry | None:
        """What was tried before, if Slack has it; None: not there, or not ours to look for."""
        assert thread.trying is not None
        channel, parent = (thread.channel_id, thread.ts) if part == "step" else (self._channel_id(), None)
        found = await self._client.find(channel, thread.trying["key"], parent)
        if isinstance(found, Refused):
            log.warning("cannot look into the channel (%s): a message may appear twice", found.reason)
            return None
        return found

    def _channel_id(self) -> str:
        """The channel's id, where a name was configured and an earlier message has told the id."""
        known = (t.channel_id for t in [*self._threads.values(), *self._done.values()] if t.channel_id)
        return self._channel if CHANNEL_ID.fullmatch(self._channel) else next(known, self._channel)

    def _root(self, incident: Incident) -> Any:
        return root(incident, self._now(), self._cluster)

    def _delivered(self, thread: Thread, incident: Incident, part: Part, said: Delivered) -> None:
        at = asyncio.get_running_loop().time()
        if part == "step":
            thread.step_told()
        else:
            thread.shown, thread.phase = self._digest(incident), str(incident.phase)
        if part == "edit":
            thread.edited(at)
        if part == "root":
            thread.channel_id, thread.ts, thread.posted_at = said.channel_id, said.ts, at
            thread.called = thread.called or incident.phase is Phase.NEEDS_PERSON  # a new message notifies
            # An earlier try may have been found, with older content: then it is edited.
            tried = thread.trying["digest"] if thread.trying else ""
            thread.shown = thread.shown if thread.shown == tried else ""
        if part != "edit":
            thread.trying = None
        thread.usable, thread.restored = part != "root", False
        self._failures = 0
        self._set_stuck(None)

    def _give_way(self, thread: Thread, incident: Incident, part: Part, said: Refused) -> None:
        """Slack will never take this part as it is: post a new root, or go on without the part."""
        log.warning("Slack refuses the %s of incident %d: %s", part, incident.id, said.reason)
        if said.kind == "channel" or (said.kind == "gone" and (part == "edit" or thread.usable)):
            # A restored thread may be in a channel that is no longer the configured one.
            thread.ts = thread.shown = thread.channel_id = ""
            thread.restored, thread.trying = False, None
            thread.roots += 1
        elif part == "step":
            thread.step_told()
        else:
            thread.shown = self._digest(incident)

    async def _note(self, incident_id: int, thread: Thread) -> None:
        await self._keep(incident_id, thread.row(self._moved_s()))

    def _moved_s(self) -> float:
        return self._now() - asyncio.get_running_loop().time()

    def _set_stuck(self, reason: str | None) -> None:
        if reason != self._stuck_reason:
            self._stuck_reason = reason
            self._stuck(reason)

    def _digest(self, incident: Incident) -> str:
        # At a fixed time: an open incident that merely grows older is no reason to edit.
        message = root(incident, incident.opened_at, self._cluster)
        return hashlib.sha256(repr(message).encode()).hexdigest()[:16]


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
