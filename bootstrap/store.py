"""The GCS's store on disk: whose it is, whether it can be used, and how it is put aside. Never wiped unseen.

Ray's own part is in a folder of its own; beside it lies a note that says for which cluster it was made. Only
the standard library: the keeper reads it, too.
"""

import json
import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

KEPT = 3  # stores put aside that are kept
# What RocksDB says in the GCS's own log of a store that no further try will open.
DAMAGE = ("Corruption:", "checksum mismatch", "session_name mismatch", "does not match the persisted")
# And of a disk: the store is not to blame, and the next try may succeed.
DISK = ("No space left on device", "Disk quota exceeded", "Read-only file system", "Input/output error")


@dataclass(frozen=True, slots=True)
class Store:
    """One look. `problem` says why it cannot be used; `there` without a problem: a head can go on from it."""

    there: bool
    problem: str | None = None

    @property
    def usable(self) -> bool:
        """Whether a head can go on from it."""
        return self.there and self.problem is None


NOTHING_KEPT = Store(there=False)


def look(folder: Path, owner: Mapping[str, str]) -> Store:
    """Whether there is a store, and whether it is this cluster's.

    Args:
        folder: `StatePaths.gcs`.
        owner: What the note must say (`owner`).
    """
    kept = folder / "store"
    if not kept.is_dir() or not any(kept.iterdir()):
        return NOTHING_KEPT
    note = _note(folder)
    if note is None:
        return Store(True, "nothing says for which cluster it was made")
    wrong = [f"{key} {note.get(key)}, not {value}" for key, value in owner.items() if note.get(key) != value]
    if wrong:
        return Store(True, f"it was made for {'; '.join(wrong)}")
    if not _session(kept):
        return Store(True, "it does not say which session it belongs to")
    return Store(True)


def owner(cluster: str, gcs_address: str) -> dict[str, str]:
    """What tells one cluster's store from another's: its raylets know the GCS by this address only."""
    return {"cluster": cluster, "gcs_address": gcs_address}


def prepare(folder: Path, note: Mapping[str, str]) -> None:
    """Make the folder, and write down for whom, before a head begins in it.

    Raises:
        OSError: It cannot be made.
    """
    for place in (folder, folder / "store"):
        place.mkdir(mode=0o700, exist_ok=True)
        if place.stat().st_mode & 0o777 != 0o700:
            place.chmod(0o700)
    if _note(folder) != note:
        (folder / "made-for.json").write_text(json.dumps(dict(note)) + "\n", encoding="utf-8")


def set_aside(folder: Path, now: float | None = None) -> Path:
    """Rename the store, so that the next head begins anew; the oldest of many put aside goes.

    Returns:
        Where it is now.
    """
    stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(now))
    target = folder.with_name(f"{folder.name}.set-aside-{stamp}")
    number = 1
    while target.exists():
        number += 1
        target = folder.with_name(f"{folder.name}.set-aside-{stamp}-{number}")
    folder.rename(target)
    for old in sorted(folder.parent.glob(f"{folder.name}.set-aside-*"))[:-KEPT]:
        shutil.rmtree(old, ignore_errors=True)
    return target


def damage(folder: Path, temp_dir: str, since: float) -> str | None:
    """What the last GCS said of a store that it could not open; None when the store is not to blame.

    Args:
        folder: `StatePaths.gcs`.
        temp_dir: Where the head keeps its sessions.
        since: Only what was written at or after this time (`time.time`) counts.
    """
    session = _session(folder / "store")
    if session is None:
        return None
    lines = list(_said(Path(temp_dir) / session / "logs", since))
    if any(sign in line for line in lines for sign in DISK):
        return None
    return next((line.strip()[-300:] for line in lines if any(sign in line for sign in DAMAGE)), None)


def _said(logs: Path, since: float) -> Iterator[str]:
    # A GCS that begins in a session of before writes to gcs_server.1.out, .2.out and so on.
    for path in sorted([*logs.glob("gcs_server*.out"), *logs.glob("gcs_server*.err")]):
        try:
            if path.stat().st_mtime < since:
                continue
            with path.open("rb") as file:
                file.seek(max(0, path.stat().st_size - 65536))
                yield from file.read().decode(errors="replace").splitlines()
        except OSError:
            continue


def _session(kept: Path) -> str | None:
    try:
        return (kept / "session_name").read_text(encoding="utf-8").strip() or None
    except (OSError, ValueError):
        return None


def _note(folder: Path) -> dict[str, str] | None:
    try:
        note = json.loads((folder / "made-for.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return note if isinstance(note, dict) else None
