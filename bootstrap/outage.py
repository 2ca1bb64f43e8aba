"""The record of one time without a whole head, on disk: the keeper writes it, the agent tells of it.

Times are those of the wall clock, in seconds. Standard library only. What cannot be written (a full disk) is
kept in memory and written with the next change.
"""

import contextlib
import json
import os
import time
from pathlib import Path
from typing import Any


class Outage:
    """What is known of it: when it began, why, what was done, when the head was whole again.

    `store_lost` says why what the GCS had kept could not be used; `slack` where the keeper itself posted.
    """

    def __init__(self, file: Path, cause: str, now: float | None = None) -> None:
        self._file = file
        self.began_at = time.time() if now is None else now
        self.cause = cause
        self.steps: list[tuple[float, str]] = []
        self.restored_at: float | None = None
        self.store_lost: str | None = None
        self.failed = False
        self.slack: dict[str, Any] | None = None

    def step(self, text: str, *, failed: bool = False) -> None:
        """Something was done or found."""
        if not self.steps or self.steps[-1][1] != text:
            self.steps.append((time.time(), text))
        self.failed = self.failed or failed
        self.save()

    def restored(self) -> None:
        """The head is whole again, and the agent answers."""
        self.restored_at = time.time()
        self.save()

    def body(self) -> dict[str, Any]:
        """What is on disk."""
        names = ("began_at", "cause", "steps", "restored_at", "store_lost", "slack")
        return {name: getattr(self, name) for name in names}

    def save(self) -> None:
        """Write it down, whole or not at all."""
        with contextlib.suppress(OSError):
            write(self._file, json.dumps(self.body()))


def open_one(file: Path) -> Outage | None:
    """The outage that an earlier keeper left open; None when there is none."""
    try:
        body = json.loads(file.read_text(encoding="utf-8"))
        if body["restored_at"] is not None:
            return None
        found = Outage(file, str(body["cause"]), float(body["began_at"]))
        found.steps = [(float(at), str(text)) for at, text in body["steps"]]
        found.store_lost, found.slack = body["store_lost"], body["slack"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return found


def write(path: Path, text: str) -> None:
    """Replace a private file in one step.

    Raises:
        OSError: It cannot be written; the old content stays.
    """
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
            file.write(text)
        draft.replace(path)
    except OSError:
        draft.unlink(missing_ok=True)
        raise
