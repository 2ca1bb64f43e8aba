"""A killable child process that reads GPUs.

A driver that hangs takes the child along, never the probe. A child that is not back in time is killed; one
that does not even die (it waits in the kernel, state D) is left alone, and no second one joins it, not even
one of a later probe: a reader bears the pid of its probe in its name.
Called by `gpu_watch`; shipped by value, standard library only.
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
