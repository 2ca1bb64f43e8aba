"""The agent's memory over a restart: what the belief, its orders and its incidents were, in SQLite.

Everything that one step changed is written in one transaction, by one thread, before the step's orders
start. What nobody can write (disk full, read-only, damaged) is said and kept for the next try; healing
never waits for it longer than `slow_s`. Called by `loop` (save), `outbox` (sent) and `compose`.
"""

import asyncio
import contextlib
import logging
import shutil
import sqlite3
import tempfile
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from grid_agent.core import history, resume
from grid_agent.core import messages as m
from grid_agent.core.incident_model import Incident
from grid_agent.core.model import Belief
from grid_agent.edges.journal_file import MAX_BYTES, DamagedError, JournalFile
from grid_agent.edges.journal_rows import (
    Batch,
    Bundles,
    Read,
    Sent,
    read_all,
    read_incident,
    read_story,
    same,
    write_meta,
    write_sent,
    writes,
)

log = logging.getLogger("grid_agent.journal")

SLOW_S = 2.0
RETRY_S = 2.0
__all__ = ["Journal", "Sent", "end"]
LINES = 2_000  # of history, kept while they cannot be written


class Journal:
    """The journal of one cluster.

    Args:
        path: The SQLite file.
        wall: The system's clock, seconds since the epoch.
        slow_s: How long a step waits for the disk before its orders start all the same.
        retry_s: How long after a failed write the next is tried.
        max_bytes: The file never grows beyond this.
        told: Whether anybody is told of incidents; else none of them waits for that.
    """

    def __init__(
        self,
        path: Path,
        *,
        told: bool = True,
        wall: Callable[[], float] = time.time,
        slow_s: float = SLOW_S,
        retry_s: float = RETRY_S,
        max_bytes: int = MAX_BYTES,
    ) -> None:
        #: Rises with every agent that opened the journal, also when it cannot be written.
        self.epoch = 0
        #: What is known of Slack's side, by incident.
        self.sent: dict[int, Sent] = {}
        self._told = told
        self._file = JournalFile(path, max_bytes)
        self._wall, self._slow_s, self._retry_s = wall, slow_s, retry_s
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="journal")
        self._bundles = Bundles()
        self._lines: deque[history.Line] = deque(maxlen=LINES)
        self._saved: Belief | None = None  # what the file is known to hold
        self._seen: Belief | None = None  # the last belief that would be stored alike
        self._loaded = False
        self._unwritten: set[int] = set()  # of `sent`
        self._stuck: asyncio.Future[None] | None = None  # a write that the disk has not taken in time
        self._retry_at = 0.0
        self._error: str | None = None
        self._failed_at: float | None = None
        self._damaged: list[Path] = []

    # --- what is wrong ---

    @property
    def trouble(self) -> str | None:
        """Why what happens now might be forgotten, as one sentence; None when all is well."""
        if self._error is not None:
            since = datetime.fromtimestamp(self._failed_at or 0.0, UTC).strftime("%H:%M:%S")
            return (
                f"{self._error}; healing goes on, but a restart would forget what happened since {since} UTC"
            )
        if self._damaged:
            aside = self._damaged[-1]
            return f"it was damaged, set aside as {aside} and begun anew; remove that file to clear this"
        return None

    # --- life ---

    async def open(self, fresh: Belief, now: float) -> Belief:
        """The belief to go on with: the one written down, or `fresh` where there is none. Never raises."""
        read = await self._in_thread(self._load, fresh, now)
        self.epoch = max(read.epoch + 1, int(self._wall()))
        self.sent = dict(read.sent or {})
        belief = fresh
        if read.belief is not None and read.ended:
            belief = resume.after_stop(fresh, read.belief, now)
        elif read.belief is not None:
            belief = resume.resume(read.belief, now)
        await self._flush(belief, now)
        return belief

    async def close(self) -> None:
        """Write nothing more and let go of the file."""
        await self._in_thread(self._file.close)
        self._thread.shutdown(wait=False)

    # --- writing ---

    async def save(
        self, before: Belief, after: Belief, events: Sequence[m.Event], orders: Sequence[m.Order], now: float
    ) -> None:
        """Put what this step changed on the disk; returns when it is there, or cannot be. Never raises."""
        self._lines += history.lines(before, after, events, orders, now)
        self._bundles.take(after, events, now)
        if (
            not self._lines
            and not self._unwritten
            and not self._bundles.due
            and self._saved is not None
            and same(self._seen, after)
        ):
            self._seen = after
            return
        await self._flush(after, now)

    async def record_sent(self, incident_id: int, sent: Sent) -> None:
        """Note what Slack shows, or is just being asked to show. Never raises."""
        self.sent[incident_id] = sent
        self._unwritten.add(incident_id)
        if self._saved is not None and self._error is None:
            await self._write(
                lambda: self._write_sent(incident_id, sent), lambda: self._unwritten.discard(incident_id)
            )

    async def story(self, incident_id: int) -> dict[str, Any]:
        """What else is kept of an incident: history, and what its hosts showed. Empty where unreadable."""
        with contextlib.suppress(sqlite3.Error, DamagedError, OSError, ValueError):
            found: dict[str, Any] = await self._in_thread(self._story, incident_id)
            return found
        return {}

    async def incident(self, incident_id: int) -> Incident | None:
        """An incident that is no longer in memory; None where there is none, or it is unreadable."""
        with contextlib.suppress(sqlite3.Error, DamagedError, OSError, ValueError):
            found: Incident | None = await self._in_thread(self._incident, incident_id)
            return found
        return None

    def _incident(self, incident_id: int) -> Incident | None:
        return read_incident(self._file, incident_id) if self._file.is_open else None

    def _story(self, incident_id: int) -> dict[str, Any]:
        return read_story(self._file, incident_id) if self._file.is_open else {}

    async def _flush(self, belief: Belief, now: float) -> None:
        if self._stuck is not None or time.monotonic() < self._retry_at:
            return  # what is left out now goes with the next write
        lines = tuple(self._lines)
        sent = {number: self.sent[number] for number in self._unwritten}
        clock = {"wall": self._wall(), "loop": now}
        bundles = tuple(self._bundles.due)
        batch = Batch(self._saved, belief, lines, sent, self.epoch, clock, bundles, self._told)
        everything = dict(self.sent)

        def then() -> None:
            self._saved = self._seen = belief
            self._unwritten -= {number for number, one in sent.items() if self.sent.get(number) is one}
            self._bundles.due = [one for one in self._bundles.due if one not in bundles]
            for line in lines:
                if self._lines and self._lines[0] is line:
                    self._lines.popleft()

        await self._write(lambda: self._commit(batch, everything), then)

    async def _write(self, work: Callable[[], None], then: Callable[[], None]) -> None:
        """Do the work in the thread, and `then` when it is done; why it is not done in time is noted."""
        future = asyncio.get_running_loop().run_in_executor(self._thread, work)
        done, _ = await asyncio.wait({future}, timeout=self._slow_s)
        if done:
            self._settle(then, future)
            return
        self._stuck = future
        future.add_done_callback(lambda late: self._settle(then, late))
        self._failed(f"the disk of {self._file.path} has not taken a write for {self._slow_s:g} s")

    def _settle(self, then: Callable[[], None], future: "asyncio.Future[None]") -> None:
        self._stuck = None if self._stuck is future else self._stuck
        error = None if future.cancelled() else future.exception()
        if error is None:
            if self._error is not None:
                log.info("the journal is written again")
            self._error = self._failed_at = None
            then()
            return
        if not isinstance(error, sqlite3.Error | OSError | DamagedError):
            log.error("the journal failed", exc_info=error)
        self._failed(_sentence(self._file.path, error))
        self._retry_at = time.monotonic() + self._retry_s

    def _failed(self, sentence: str) -> None:
        self._failed_at = self._wall() if self._failed_at is None else self._failed_at
        if sentence != self._error:
            self._error = sentence
            log.error("%s", sentence)

    async def _in_thread(self, work: Callable[..., Any], *values: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work, *values)

    # --- in the thread ---

    def _load(self, fresh: Belief, now: float) -> Read:
        try:
            self._open_file()
            read = read_all(self._file, fresh, now)
        except (DamagedError, ValueError) as error:
            self._set_aside(error)
            return Read()
        except (sqlite3.Error, OSError) as error:
            log.error("%s", _sentence(self._file.path, error))  # noqa: TRY400 - a sentence, no traceback
            read = self._load_copy(fresh, now)
        self._loaded = read.belief is not None
        return read

    def _load_copy(self, fresh: Belief, now: float) -> Read:
        """SQLite cannot read a file in WAL mode on a read-only disk: read a copy of it."""
        try:
            with tempfile.TemporaryDirectory(prefix="grid-agent-") as folder:
                copy = JournalFile(Path(folder, "journal.sqlite"))
                for suffix in ("", "-wal"):
                    source = self._file.path.with_name(self._file.path.name + suffix)
                    if source.exists():
                        shutil.copyfile(source, f"{copy.path}{suffix}")
                try:
                    copy.open()
                    return read_all(copy, fresh, now)
                finally:
                    copy.close()
        except (sqlite3.Error, OSError, DamagedError, ValueError):
            return Read()

    def _open_file(self) -> bool:
        try:
            reopened = self._file.open()
        except DamagedError as error:
            self._set_aside(error)
            reopened = self._file.open()
        if reopened or self._damaged:
            self._damaged = self._file.damaged_ones()
        return reopened

    def _set_aside(self, why: Exception | str) -> None:
        aside = self._file.set_aside(_stamp(self._wall()))
        log.error("the journal cannot be used (%s); it was set aside as %s", why, aside)

    def _commit(self, batch: Batch, everything: Mapping[int, Sent]) -> None:
        """Write the batch; into a file that is not the one of the last time, everything."""
        whole = replace(batch, saved=None, sent=everything)
        try:
            if self._open_file():
                batch = whole
                if not self._loaded and self._file.rows("SELECT 1 FROM incident LIMIT 1"):
                    self._set_aside("it could not be read when this agent started")
                    self._open_file()
            try:
                self._file.write(writes(batch))
            except DamagedError as error:
                self._set_aside(error)
                self._open_file()
                self._file.write(writes(whole))
            self._loaded = True
        except BaseException:
            self._file.close()
            raise

    def _write_sent(self, incident_id: int, sent: Sent) -> None:
        try:
            if self._open_file():
                raise DamagedError("it was opened anew")  # noqa: TRY301 - the next step writes everything
            self._file.write([write_sent(incident_id, sent)])
        except BaseException:
            self._file.close()
            raise


def end(path: Path, at: float) -> None:
    """A person has stopped the cluster for good: the next agent starts afresh, and keeps the history.

    Args:
        path: The journal, which nobody else has open.
        at: When, seconds since the epoch.

    Raises:
        OSError: It could be neither written nor set aside.
    """
    if not path.exists():
        return
    file = JournalFile(path)
    try:
        file.open()
        file.write([write_meta("ended", at)])
    except (sqlite3.Error, DamagedError):
        file.set_aside(_stamp(at))
    finally:
        file.close()


def _stamp(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).strftime("%Y%m%dT%H%M%S")


def _sentence(path: Path, error: BaseException) -> str:
    """What is wrong with the file and what to do, for a person."""
    said = str(error)
    advice = {
        "full": f"the disk of {path} is full: free some space there",
        "No space": f"the disk of {path} is full: free some space there",
        "readonly": f"{path} is on a disk that is read-only, or not ours to write: make it writable",
        "Read-only": f"{path} is on a disk that is read-only: make it writable",
        "unable to open": f"{path} cannot be opened: check that its folder can be written",
        "locked": f"another process holds {path} locked: end it",
    }
    known = next((text for word, text in advice.items() if word in said), None)
    return known or f"{path} cannot be written ({type(error).__name__}: {said[:200]})"
