"""The lock of a node: a kernel lock on a file, with the number of the newest agent that has acted in it."""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator
from typing import Any

from grid_agent.edges.host.common import NO_ROOM, POLL_S, HostError, expanded, private_file

Held = tuple[int, ...]  # descriptors of the locks held


def _lock_paths(request: dict[str, Any]) -> set[str]:
    """The lock files of a request (`lock`: a path or a list of them) and of all its steps."""
    given = request.get("lock") or []
    found = {expanded(path) for path in ([given] if isinstance(given, str) else given)}
    return found.union(*map(_lock_paths, request.get("requests", ())))


def _lock_wait_s(request: dict[str, Any]) -> float:
    """The longest of the waits that a request and its steps allow."""
    own = float(request.get("lock_wait_s", 5.0 if request.get("lock") else 0.0))
    return max([own, *map(_lock_wait_s, request.get("requests", ()))])


@contextlib.contextmanager
def locked(request: dict[str, Any], held: Held, *, needed: bool) -> Iterator[Held]:
    """Holds the lock files of a request, unless a caller does; without `needed` only those that are there.

    Whoever ends something needs no lock that nobody has ever taken, and no room on the disk to make one. The
    kernel lets go of them when the last process with these descriptors ends, however it ends: this one, and
    a command that was given them.
    """
    if held:
        yield held
        return
    until = time.monotonic() + _lock_wait_s(request)
    handles: list[int] = []
    try:
        for path in sorted(_lock_paths(request)):
            handle = _open_lock(path, needed=needed)
            if handle is not None:
                handles.append(handle)
                _lock(handle, path, until)
        yield tuple(handles)
    finally:
        for handle in handles:
            # By itself, closing would leave it to whatever the command has left running with it.
            with contextlib.suppress(OSError):
                fcntl.flock(handle, fcntl.LOCK_UN)
            os.close(handle)


def _open_lock(path: str, *, needed: bool) -> int | None:
    """A descriptor of the lock file, made if it is `needed`; None where there is none."""
    try:
        if needed:
            return private_file(path, os.O_RDWR)
        return os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        if not needed:
            return None
        raise
    except OSError as error:
        if error.errno not in NO_ROOM:
            raise
        raise HostError("disk", f"Cannot make {path}: {error.strerror}. Check the disk.") from None


def is_held(path: str) -> bool:
    """Whether somebody holds this lock; asking holds it for no time at all."""
    try:
        handle = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return False  # nobody has ever made it
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(handle)
    return False


def _lock(handle: int, path: str, until: float) -> None:
    while True:
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        if time.monotonic() >= until:
            raise HostError(
                "busy", f"A start or stop of this node holds {path}; try again when it has ended."
            )
        time.sleep(POLL_S)


def refuse_stale(epoch: int | None, locks: Held) -> None:
    """Raises HostError when a newer agent than the sender has acted on this node; else notes the sender.

    The number stands in the node's lock file: it is read and written by whoever holds the lock.
    """
    if epoch is None:
        return
    for handle in locks:
        text = os.pread(handle, 32, 0).split(b"\n")[0].strip()
        seen = int(text) if text.isdigit() else 0
        if seen > epoch:
            words = f"A newer agent (number {seen}) has acted on this node; this one is number {epoch}."
            raise HostError("stale", f"{words} Nothing was done.")
        try:
            os.pwrite(handle, b"%020d\n" % epoch, 0)  # one write of always the same length
        except OSError as error:
            if error.errno not in NO_ROOM:
                raise
