"""The keeper of the head as a process: is it there, start it, end it. One a cluster, by a lock of the kernel.

Standard library only. Called by `bootstrap` (start and stop) and by the agent, which starts it again when it
was killed; what the keeper does is in `bootstrap.keeper`.
"""

import contextlib
import fcntl
import json
import os
import subprocess
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from grid_agent.edges.host import ending, procs

STALE_S = 240.0  # without a sign of life it hangs; what it does takes at most so long between two of them
TERM_S = 10.0  # a head that it is just starting is ended with it
KILL_S = 5.0
POLL_S = 0.05


@dataclass(frozen=True, slots=True)
class Files:
    """What the keeper and others share, in the state folder `root`."""

    root: Path

    @property
    def plan(self) -> Path:
        """What `start.py` wrote for it; without it there is nothing to keep."""
        return self.root / "keeper.json"

    @property
    def lock(self) -> Path:
        """Held by the one keeper; its content is the keeper's pid and start time."""
        return self.root / "keeper.lock"

    @property
    def beat(self) -> Path:
        """Its time of change is the keeper's last sign of life."""
        return self.root / "keeper.beat"

    @property
    def outage(self) -> Path:
        """The present or last time without a head, for the agent to tell of."""
        return self.root / "head_outage.json"

    @property
    def turn(self) -> Path:
        """The lock of a start or stop (`StatePaths.start_lock`): who changes the head holds it."""
        return self.root / "start.lock"

    def stopped(self, head: str) -> Path:
        """The file that says that a person stopped the head."""
        return self.root / "stopped" / head


def running(files: Files) -> tuple[int, int] | None:
    """Pid and start time of the keeper; None when nobody holds its lock, zeros while it is just starting."""
    try:
        with files.lock.open("r+") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                pid, _, start = lock.read().strip().partition(" ")
                return (int(pid), int(start)) if pid.isdigit() and start.isdigit() else (0, 0)
    except OSError:
        return None
    return None


def read_plan(files: Files) -> dict[str, Any] | None:
    """What is to be kept; None when nothing is, or nobody can read it."""
    try:
        plan = json.loads(files.plan.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return plan if isinstance(plan, dict) else None


def ensure(files: Files, now: float | None = None) -> str | None:
    """Start the keeper where there is none, or where it hangs; nothing for a head that a person stopped.

    Args:
        files: The state folder.
        now: The time, `time.time` by default.

    Returns:
        What was done, None for nothing.
    """
    plan = read_plan(files)
    if plan is None or files.stopped(plan["head"]).exists():
        return None
    there = running(files)
    if there is not None:
        try:
            silent_s = (time.time() if now is None else now) - files.beat.stat().st_mtime
        except OSError:
            return None
        if silent_s < STALE_S or not end(files):
            return None
    spawn(plan["keeper"])
    return "the keeper was not running and is started" if there is None else "the keeper hung and is replaced"


def spawn(how: Mapping[str, Any]) -> None:
    """Start the keeper as nobody's child, with none of our descriptors.

    `how`: argv, env, cwd. The child that is waited for here starts it in a session of its own and ends.
    """
    forker = "import subprocess,sys;subprocess.Popen(sys.argv[1:],start_new_session=True,close_fds=True)"
    python = str(how["argv"][0])
    subprocess.run(
        [python, "-I", "-S", "-c", forker, *how["argv"]],
        env=dict(how["env"]),
        cwd=how["cwd"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        close_fds=True,
        timeout=30,
        check=False,
    )


def end(files: Files) -> bool:
    """End the keeper, by pid and start time; False when it is still there."""
    until = time.monotonic() + TERM_S
    while (there := running(files)) is not None:
        if there != (0, 0):
            return ending.end_process(*there, term_s=TERM_S, kill_s=KILL_S)
        if time.monotonic() > until:
            return False
        time.sleep(POLL_S)
    return True


@contextlib.contextmanager
def turn(files: Files) -> Iterator[bool]:
    """Hold the lock of a start or stop, if nobody does; yields whether."""
    handle = os.open(files.turn, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        with contextlib.suppress(OSError):
            os.ftruncate(handle, 0)
            os.pwrite(handle, f"{os.getpid()}\n".encode(), 0)
        yield True
    finally:
        os.close(handle)


def own(files: Files) -> Any:
    """Take the lock for this process, for as long as it lives; None when another keeper has it."""
    handle = os.open(files.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        return None
    with contextlib.suppress(OSError):  # a full disk: the lock holds, it only does not say whose it is
        os.ftruncate(handle, 0)
        os.pwrite(handle, f"{os.getpid()} {procs.start_ticks(os.getpid())}\n".encode(), 0)
    return handle
