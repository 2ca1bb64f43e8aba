"""A killable child process that reads GPUs, and when it is asked: the part of the probe that stays well.

A driver that hangs takes the child along, never the probe. A child that is not back in time is killed; one
that does not even die (it waits in the kernel, state D) is left alone, and no second one joins it, not even
one of a later probe: a reader bears the pid of its probe in its name.
Called by `node_probe`; shipped by value, standard library only.
"""

import contextlib
import json
import os
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

# Each source is a module that the child runs; the last has `main`, which is given the others.
BOOT = """\
import json, sys, types
modules = []
for name, text in json.loads(sys.stdin.buffer.readline()):
    module = types.ModuleType(name)
    sys.modules[name] = module
    exec(compile(text, name, "exec"), module.__dict__)
    modules.append(module)
modules[-1].main(modules[:-1])
"""
TITLE = "grid-agent-gpu-reader"
NAME = re.compile(r"gpurd-([0-9]+)")  # the reader's name in /proc/PID/stat: 15 bytes at most
DIE_S = 0.5  # a killed process is gone by then, unless it waits in the kernel
BURST_S = 60.0  # as in `core.gpu_events`, which this file cannot import
KEEP_TIMES = 32
FIRST_FACTOR = 3.0  # the first answer takes longer: a driver without persistence mode wakes every GPU
Sources = Sequence[tuple[str, str]]


class Child:
    """At most one process. `ask` and `answer` in turn; `kill` when it takes too long."""

    def __init__(
        self, sources: Sources, begin: Mapping[str, Any], kill: Callable[[int, int], None] = os.kill
    ) -> None:
        self._begin: list[Any] = [list(map(list, sources)), {**begin, "owner": os.getpid()}]
        self._kill = kill
        self._process: subprocess.Popen[bytes] | None = None
        self._rest = b""
        self._killed = False
        self.fresh = True  # it has not answered yet
        self.died = ""

    @property
    def pid(self) -> int | None:
        """Its pid, while there is one."""
        return None if self._process is None else self._process.pid

    @property
    def gone_or_asked(self) -> bool:
        """Not one that was killed and has not ended: that one is waited for before there is another."""
        return not self._killed or self.gone()

    def left_behind(self) -> str:
        """Who of an earlier probe reads here although it was killed; "" for nobody, or while ours runs."""
        if self._process is not None:
            return ""
        until = time.monotonic() + DIE_S  # one whose probe has just ended is about to end
        while (found := _orphan()) is not None:
            with contextlib.suppress(OSError):
                self._kill(found[0], signal.SIGKILL)
            if time.monotonic() >= until:
                return f"pid {found[0]}, state {found[1]}"
            time.sleep(0.02)
        return ""

    def ask(self, request: Mapping[str, Any]) -> None:
        """Send one request, to a new process where there is none."""
        if self._process is None:
            self._process = self._spawn()
            self._send(*self._begin)
        self._send(request)

    def answer(self, wait_s: float) -> dict[str, Any] | None:
        """The answer, or None: not yet, or (then `died` says how) never."""
        process = self._process
        if process is None or process.stdout is None:
            return None
        until = time.monotonic() + wait_s
        while b"\n" not in self._rest:
            ready, _, _ = select.select([process.stdout], [], [], max(0.0, until - time.monotonic()))
            if not ready:
                return None
            data = os.read(process.stdout.fileno(), 65536)
            if not data:
                self._ended(process)
                return None
            self._rest += data
        line, _, self._rest = self._rest.partition(b"\n")
        self.fresh = False
        return dict(json.loads(line))

    def kill(self) -> bool:
        """End it; whether it is gone. One that is not stays ours, so that there is never a second one."""
        process = self._process
        if process is None:
            return True
        self._killed = True
        with contextlib.suppress(OSError):
            self._kill(process.pid, signal.SIGKILL)
        return self.gone(DIE_S)

    def gone(self, wait_s: float = 0.0) -> bool:
        """Whether a process that was killed has ended."""
        if self._process is None:
            return True
        try:
            self._process.wait(max(wait_s, 0.001))
        except subprocess.TimeoutExpired:
            return False
        self._drop(self._process)
        return True

    def stat(self) -> str:
        """The state of the process as the kernel names it, D for one that waits in the kernel."""
        with contextlib.suppress(OSError, IndexError):
            return Path(f"/proc/{self.pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
        return "?"

    def _spawn(self) -> "subprocess.Popen[bytes]":
        self.fresh, self.died = True, ""
        # -I -S: no site-packages, no user's folders. The one module it needs is loaded by its path.
        argv = [sys.executable, "-I", "-S", "-c", BOOT, TITLE]
        return subprocess.Popen(
            argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, bufsize=0
        )

    def _send(self, *values: Any) -> None:
        assert self._process is not None and self._process.stdin is not None  # noqa: PT018
        data = b"".join(json.dumps(value).encode() + b"\n" for value in values)
        with contextlib.suppress(BrokenPipeError):  # then there is no answer either, and `answer` says why
            while data:  # a raw pipe takes what it has room for
                data = data[self._process.stdin.write(data) or 0 :]

    def _ended(self, process: "subprocess.Popen[bytes]") -> None:
        try:
            code = process.wait(DIE_S)
        except subprocess.TimeoutExpired:
            return
        how = f"by signal {-code}" if code < 0 else f"with code {code}"
        self.died = f"the reader ended {how}"
        self._drop(process)

    def _drop(self, process: "subprocess.Popen[bytes]") -> None:
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()
        self._process, self._rest, self._killed = None, b"", False


def _orphan() -> "tuple[int, str] | None":
    """(pid, state) of a reader of ours whose probe is gone.

    By /proc/PID/stat, which never waits for the process; cmdline may, for one that is stuck.
    """
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, IndexError):
            name, _, rest = (folder / "stat").read_text(errors="replace").partition("(")[2].rpartition(")")
            state, parent = rest.split()[:2]
            owner = NAME.fullmatch(name)
            if owner and owner[1] != parent and state not in "ZX" and folder.stat().st_uid == os.getuid():
                return int(folder.name), state
    return None


def merged(known: "dict[str, Any] | None", event: Mapping[str, Any]) -> dict[str, Any]:
    """The newest event of a kind, with `times`: when each burst of them began (see `core.gpu_events`)."""
    at, times = event["at"], known["times"] if known else []
    if all(abs(at - begun) >= BURST_S for begun in times):
        times = sorted([*times, at])[-KEEP_TIMES:]
    if known is not None and known["at"] > at:
        return {**known, "text": known["text"] or event["text"], "times": times}
    return {**event, "text": event["text"] or (known["text"] if known else ""), "times": times}


class Usable:
    """Whether each GPU can be used: one GPU after the other, each in a process of its own, which then ends.

    Args:
        child: The process; it is made anew for each GPU.
        every_s: Seconds between two rounds; 0: never.
        timeout_s: The deadline for one GPU in seconds.
    """

    def __init__(self, child: Child, every_s: float, timeout_s: float) -> None:
        self._child = child
        self._every_s = every_s
        self._timeout_s = timeout_s
        self._next_at = 0.0
        self._queue: list[str] = []
        self._asked: tuple[str, float] | None = None
        self.why_not: dict[str, str] = {}

    def look(self, now: float, uuids: Sequence[str], vendor: str) -> None:
        """Go on with the round; `why_not` has what is known, "" for a GPU that can be used."""
        if self._every_s <= 0 or not self._child.gone_or_asked:
            return
        if self._asked is None and not self._queue and now >= self._next_at and uuids:
            self._queue, self._next_at = list(uuids), now + self._every_s
            self.why_not = {uuid: why for uuid, why in self.why_not.items() if uuid in uuids}
        if self._asked is None and self._queue:
            uuid = self._queue.pop(0)
            self._child.ask({"op": "usable", "vendor": vendor, "uuid": uuid})
            self._asked = (uuid, now)
        if self._asked is not None:
            self._collect(now, *self._asked)

    def _collect(self, now: float, uuid: str, asked_at: float) -> None:
        answer = self._child.answer(0.0)
        if answer is not None:
            self.why_not[uuid] = str(answer["why_not"])
        elif self._child.died:
            self.why_not[uuid] = f"making a CUDA context: {self._child.died}"
        elif now - asked_at < self._timeout_s:
            return
        else:
            self.why_not[uuid] = f"making a CUDA context takes longer than {self._timeout_s:g} s"
        self._asked = None
        self._child.kill()


class Watch:
    """Sweeps at their interval, each with its deadline. `look` is called often and never waits for long.

    Args:
        child: The reader.
        every_s: Seconds between two sweeps; 0 switches the reading off.
        timeout_s: The deadline of one sweep in seconds; the first of a process may take three times that.
        usable: What tries the GPUs that were seen, if anything does.
    """

    def __init__(self, child: Child, every_s: float, timeout_s: float, usable: Usable | None = None) -> None:
        self._usable = usable
        self._child = child
        self._every_s = every_s
        self._timeout_s = timeout_s
        self._asked_at: float | None = None
        self._next_at = 0.0
        self._stuck = False
        self._count = 0
        self._last: dict[str, Any] = {"state": "waiting" if every_s else "off", "detail": ""}
        self._events: dict[tuple[str, int], dict[str, Any]] = {}

    def look(self, now: float, wait_s: float) -> dict[str, Any]:
        """What is known now: the last answer with `state` ok, waiting, off, failed, hangs or stuck."""
        if self._every_s <= 0:
            return self._last
        if self._stuck and not self._child.gone():
            return {**self._last, "events": list(self._events.values())}
        self._stuck = False
        if self._asked_at is None and now >= self._next_at:
            self._next_at = now + self._every_s
            left = self._child.left_behind()
            if left:
                self._fail("stuck", f"the reader of an earlier probe ({left}) does not even end when killed")
            else:
                self._child.ask({"op": "sweep"})
                self._asked_at = now
        if self._asked_at is not None:
            self._collect(now, wait_s)
        return {**self._last, "events": list(self._events.values()), **self._tried(now)}

    def _tried(self, now: float) -> dict[str, Any]:
        """The GPUs of the last sweep with what their trial has shown."""
        gpus = self._last.get("gpus", ())
        if self._usable is None or not gpus:
            return {}
        here = [gpu["uuid"] for gpu in gpus if not gpu["error"]]
        self._usable.look(now, here, self._last["vendor"])
        why = self._usable.why_not
        tried = [why[uuid] for uuid in here if uuid in why]
        return {
            "gpus": [{**g, "unusable": why.get(g["uuid"], "")} for g in gpus],
            "usable": tried.count("") if len(tried) == len(here) else None,
        }

    def _collect(self, now: float, wait_s: float) -> None:
        assert self._asked_at is not None
        answer = self._child.answer(wait_s)
        if answer is not None:
            self._asked_at = None
            self._count += 1
            # A report may get lost on its way: the events are told again in each of the next ones.
            for event in answer.pop("events"):
                kind = (event["bus_id"], event["number"])
                self._events[kind] = merged(self._events.get(kind), event)
            self._last = {**answer, "state": "ok", "number": self._count}
        elif self._child.died:
            self._asked_at = None
            self._fail("failed", self._child.died)
        elif now - self._asked_at >= self._timeout_s * (FIRST_FACTOR if self._child.fresh else 1.0):
            waited_s, self._asked_at = now - self._asked_at, None
            if self._child.kill():
                self._fail("hangs", f"no answer in {waited_s:.0f} s; the reader was ended")
            else:
                self._stuck = True
                how = f"state {self._child.stat()}"
                self._fail(
                    "stuck", f"the reader (pid {self._child.pid}) does not even end when killed, {how}"
                )

    def _fail(self, state: str, detail: str) -> None:
        self._count += 1
        self._last = {**self._last, "state": state, "detail": detail, "number": self._count}
