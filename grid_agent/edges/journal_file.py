"""The journal's SQLite file: schema, one transaction at a time, bounds, and what to do with a damaged one.

Blocking; used from one thread of `journal`, never from the event loop. WAL with synchronous=FULL: what a
transaction wrote is on the disk when `write` returns (https://sqlite.org/pragma.html#pragma_synchronous).
"""

import contextlib
import os
import sqlite3
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from grid_agent import failpoints

Write = tuple[str, tuple[Any, ...]]

# ruff: noqa: S608 - every name in these statements is from this file
# One entry per version, applied in order; never edit one that was released, append.
MIGRATIONS: tuple[str, ...] = (
    """
    CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
    CREATE TABLE node (name TEXT PRIMARY KEY, body TEXT NOT NULL) WITHOUT ROWID;
    CREATE TABLE incident (id INTEGER PRIMARY KEY, open INTEGER NOT NULL, body TEXT NOT NULL);
    CREATE TABLE step (incident_id INTEGER, number INTEGER, at REAL NOT NULL, body TEXT NOT NULL,
                       PRIMARY KEY (incident_id, number)) WITHOUT ROWID;
    CREATE TABLE history (id INTEGER PRIMARY KEY, at REAL NOT NULL, kind TEXT NOT NULL, node TEXT NOT NULL,
                          incident_id INTEGER, body TEXT NOT NULL);
    CREATE INDEX history_of_incident ON history (incident_id);
    CREATE TABLE outbox (incident_id INTEGER PRIMARY KEY, wanted INTEGER NOT NULL, shown INTEGER NOT NULL,
                         body TEXT NOT NULL);
    CREATE TABLE bundle (incident_id INTEGER, node TEXT, at REAL NOT NULL, body TEXT NOT NULL,
                         PRIMARY KEY (incident_id, node)) WITHOUT ROWID;
    """,
)
PAGE_BYTES = 4096
MAX_BYTES = 64 * 1024 * 1024
WAL_BYTES = 4 * 1024 * 1024
KEEP_HISTORY = 20_000
KEEP_INCIDENTS = 2_000
KEEP_BUNDLES = 200
BUSY_S = 2.0
DAMAGED = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


class DamagedError(Exception):
    """The file is no journal of ours, or is damaged; the message says how that showed."""


class JournalFile:
    """One SQLite file. Every method may raise sqlite3.Error, OSError or DamagedError; then `close` it.

    Args:
        path: Where; the file and its folder are made, for their owner only.
        max_bytes: The file never grows beyond this.
    """

    def __init__(self, path: Path, max_bytes: int = MAX_BYTES) -> None:
        self.path = path
        self._max_pages = max_bytes // PAGE_BYTES
        self._db: sqlite3.Connection | None = None
        self._inode = 0
        self._writes = 0

    def open(self) -> bool:
        """Open and migrate, unless it is open; True when it had to be opened (what was known of it is void).

        Raises:
            DamagedError: The file cannot be used and should be set aside.
        """
        if self._db is not None and self._still_there():
            return False
        self.close()
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.close(os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        self.path.chmod(0o600)
        db = sqlite3.connect(self.path, timeout=BUSY_S, isolation_level=None, check_same_thread=False)
        try:
            with _damage_named():
                self._prepare(db)
        except BaseException:
            db.close()
            raise
        self._db, self._inode = db, self.path.stat().st_ino
        return True

    def _prepare(self, db: sqlite3.Connection) -> None:
        db.execute("PRAGMA journal_mode=WAL")
        db.execute("PRAGMA synchronous=FULL")
        db.execute(f"PRAGMA journal_size_limit={WAL_BYTES}")
        db.execute(f"PRAGMA max_page_count={self._max_pages}")
        ((sound,), *_) = db.execute("PRAGMA quick_check(1)").fetchall()
        if sound != "ok":
            raise DamagedError(str(sound))
        ((version,),) = db.execute("PRAGMA user_version").fetchall()
        if version > len(MIGRATIONS):
            message = f"it has schema {version}; this grid-agent knows up to {len(MIGRATIONS)}"
            raise DamagedError(message)
        for number, script in enumerate(MIGRATIONS[version:], version + 1):
            db.executescript(f"BEGIN IMMEDIATE; {script} PRAGMA user_version={number}; COMMIT;")

    def _still_there(self) -> bool:
        try:
            return self.path.stat().st_ino == self._inode
        except FileNotFoundError:
            return False  # somebody removed it: what would be written now, nobody could ever read

    @property
    def is_open(self) -> bool:
        """Whether it can be read now."""
        return self._db is not None

    def rows(self, sql: str, values: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
        """What a SELECT gives."""
        assert self._db is not None
        with _damage_named():
            return self._db.execute(sql, values).fetchall()

    def write(self, writes: Iterable[Write]) -> None:
        """All of it in one transaction, on the disk when this returns, or nothing of it."""
        writes = list(writes)
        with _damage_named():
            self._write_bounded(writes)

    def _write_bounded(self, writes: list[Write]) -> None:
        try:
            self._write(writes)
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_FULL or not self._at_bound():
                raise
            halves = map(self._half, ("history", "incident", "bundle"))
            self._write(_prunings(*halves, untold_too=True))
            self._write(writes)
        self._writes += 1
        if self._writes % 500 == 0:
            self._write(_prunings(KEEP_HISTORY, KEEP_INCIDENTS, KEEP_BUNDLES))

    def _write(self, writes: Iterable[Write]) -> None:
        assert self._db is not None
        self._db.execute("BEGIN IMMEDIATE")
        try:
            for sql, values in writes:
                self._db.execute(sql, values)
            failpoints.reach("commit")
            self._db.execute("COMMIT")
        except BaseException:
            with contextlib.suppress(sqlite3.Error):
                self._db.execute("ROLLBACK")
            raise

    def _at_bound(self) -> bool:
        """Full because of our own bound, not because of the disk."""
        ((pages,),) = self.rows("PRAGMA page_count")
        return bool(pages >= self._max_pages - 16)

    def _half(self, table: str) -> int:
        ((count,),) = self.rows(f"SELECT count(*) FROM {table}")
        return int(count) // 2

    def close(self) -> None:
        """Let go of the file."""
        db, self._db = self._db, None
        if db is not None:
            with contextlib.suppress(sqlite3.Error):
                db.close()

    def set_aside(self, stamp: str) -> Path:
        """Rename a file that cannot be used, with its log; the new name tells when."""
        self.close()
        aside = self.path.with_name(f"{self.path.name}.damaged-{stamp}")
        for suffix in ("-wal", "-shm", ""):  # a log left behind would be taken for that of the next file
            with contextlib.suppress(FileNotFoundError):
                self.path.with_name(self.path.name + suffix).rename(f"{aside}{suffix}")
        return aside

    def damaged_ones(self) -> list[Path]:
        """The files that were set aside and are still there, oldest first."""
        found = self.path.parent.glob(f"{self.path.name}.damaged-*")
        return sorted(p for p in found if not p.name.endswith(("-wal", "-shm")))


@contextlib.contextmanager
def _damage_named() -> Iterator[None]:
    """Tells a file that is broken from one that merely cannot be written just now."""
    try:
        yield
    except sqlite3.DatabaseError as error:
        if getattr(error, "sqlite_errorcode", 0) & 0xFF in DAMAGED:
            raise DamagedError(str(error)) from None
        raise


def _prunings(history: int, incidents: int, bundles: int, *, untold_too: bool = False) -> list[Write]:
    """Forget the oldest of what may be forgotten: never an open incident.

    One of which people wait to be told only where there is no more room (`untold_too`).
    """
    told = "" if untold_too else "AND id NOT IN (SELECT incident_id FROM outbox WHERE shown < wanted)"
    old = f"SELECT id FROM incident WHERE open = 0 AND id <= (SELECT max(id) FROM incident) - ? {told}"
    return [
        ("DELETE FROM history WHERE id <= (SELECT max(id) FROM history) - ?", (history,)),
        *(
            (f"DELETE FROM {t} WHERE incident_id IN ({old})", (incidents,))
            for t in ("step", "outbox", "bundle")
        ),
        (f"DELETE FROM incident WHERE id IN ({old})", (incidents,)),
        (
            "DELETE FROM bundle WHERE at < (SELECT at FROM bundle ORDER BY at DESC LIMIT 1 OFFSET ?)",
            (bundles,),
        ),
    ]
