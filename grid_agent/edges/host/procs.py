"""Processes as `/proc` shows them. A pid alone never names one: pid and start time do."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from grid_agent.edges.host.common import read_bytes_of


class Proc(NamedTuple):
    """One row of /proc. `start` is in clock ticks since boot: with the pid it names a process for good."""

    pid: int
    start: int
    state: str
    ppid: int
    sid: int
    comm: str
    argv: tuple[str, ...]

    @property
    def program(self) -> str:
        """Base name of argv[0], `raylet` for example."""
        return self.argv[0].rsplit("/", 1)[-1] if self.argv else self.comm

    @property
    def name(self) -> str:
        """What a person calls it: the script of an interpreter, else the program."""
        scripts = [word for word in self.argv[1:] if not word.startswith("-")]
        word = scripts[0] if scripts and self.program.startswith("python") else self.program
        return word.rsplit("/", 1)[-1][:40].rstrip()

    @property
    def ended(self) -> bool:
        """Whether nothing runs any more, although the row is still there: a zombie."""
        return self.state in ("Z", "X")

    def option(self, name: str) -> str | None:
        """Value of `--name=value`, a whole argument, or None."""
        prefix = f"--{name}="
        return next((word[len(prefix) :] for word in self.argv if word.startswith(prefix)), None)

    def runs(self, script: str) -> bool:
        """Whether its interpreter was given this script."""
        return any(word.endswith(script) for word in self.argv[1:5])


def all_pids() -> list[int]:
    """Of this PID namespace."""
    return [int(entry) for entry in os.listdir("/proc") if entry.isdigit()]  # noqa: PTH208


def read_proc(pid: int, *, argv: bool = True) -> Proc | None:
    """One process, or None when there is none; without its arguments where they do not matter."""
    data = read_bytes_of(f"/proc/{pid}/stat")
    if b")" not in data:
        return None
    end = data.rindex(b")")
    rest = data[end + 2 :].split()
    words = read_bytes_of(f"/proc/{pid}/cmdline").split(b"\0") if argv else []
    return Proc(
        pid=pid,
        start=int(rest[19]),
        state=rest[0].decode(),
        ppid=int(rest[1]),
        sid=int(rest[3]),
        comm=data[data.index(b"(") + 1 : end].decode("utf-8", "replace"),
        argv=tuple(word.decode("utf-8", "replace") for word in words if word),
    )


def process_table() -> dict[int, Proc]:
    """Every process by its pid."""
    return {proc.pid: proc for proc in map(read_proc, all_pids()) if proc is not None}


def is_alive(proc: Proc) -> bool:
    """Whether this very process still runs: same pid, same start, not a zombie."""
    now = read_proc(proc.pid, argv=False)
    return now is not None and now.start == proc.start and not now.ended


def state_of(proc: Proc) -> str:
    """Its state now, as /proc writes it."""
    return getattr(read_proc(proc.pid, argv=False), "state", "?")


def descendants(table: dict[int, Proc], roots: Iterable[int], spared: Iterable[int] = ()) -> set[int]:
    """All that descends from the roots, except the processes `spared` and what descends through them."""
    children: dict[int, list[int]] = {}
    for proc in table.values():
        if proc.pid not in spared:
            children.setdefault(proc.ppid, []).append(proc.pid)
    found: set[int] = set()
    queue = list(roots)
    while queue:
        fresh = [pid for pid in children.get(queue.pop(), []) if pid not in found]
        found.update(fresh)
        queue.extend(fresh)
    return found


def environ(pid: int) -> dict[str, str]:
    """What is left of the environment: a title set later may have overwritten part of it."""
    rows = read_bytes_of(f"/proc/{pid}/environ").decode("utf-8", "replace").split("\0")
    return {key: value for key, _, value in (row.partition("=") for row in rows)}


def open_files(pid: int) -> Iterator[tuple[str, str]]:
    """Descriptor number and target of each open file that we may see."""
    with contextlib.suppress(OSError):
        for number in os.listdir(f"/proc/{pid}/fd"):  # noqa: PTH208
            with contextlib.suppress(OSError):
                yield number, os.readlink(f"/proc/{pid}/fd/{number}")  # noqa: PTH115


def writes_to(pid: int, wanted: Callable[[str], bool]) -> bool:
    """Whether it holds such a path open for writing; readers (`tail -f`, the log monitor) do not count."""
    for number, target in open_files(pid):
        if wanted(target):
            flags = re.search(rb"flags:\s+(\d+)", read_bytes_of(f"/proc/{pid}/fdinfo/{number}"))
            if flags and int(flags.group(1), 8) & 3:
                return True
    return False


def start_ticks(pid: int) -> int | None:
    """When a process began, in clock ticks since boot: with the pid it names the process for good."""
    proc = read_proc(pid, argv=False)
    return proc.start if proc else None


def ended(pid: int) -> bool:
    """Whether nothing runs under this pid, or only a zombie."""
    proc = read_proc(pid, argv=False)
    return proc is None or proc.ended


def uptime_s() -> float:
    """Seconds since the machine booted."""
    return float(read_bytes_of("/proc/uptime").split()[0])


def uid_of(pid: int) -> int | None:
    """Whose it is."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}").stat().st_uid
    return None
