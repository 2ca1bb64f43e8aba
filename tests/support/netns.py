"""Namespaces held by a first process, and what runs in them. Nothing of it is named or mounted outside."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

INIT = Path(__file__).with_name("host_init.py")


def tool(name: str) -> str:
    """The path of a command; also where PATH lacks the system folders."""
    places = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin", "/usr/bin", "/bin"])
    found = shutil.which(name, path=places)
    if not found:
        raise FileNotFoundError(f"no command {name} on this machine")
    return found


class Box:
    """Fresh namespaces of some kinds, with `host_init.py` as their first process.

    They are gone when that process is: when it is killed, when `close` is called, and when we die.
    """

    def __init__(self, kinds: Sequence[str], spec: Mapping[str, Any], log: Path) -> None:
        self.kinds = tuple(kinds)
        unshare = [tool("unshare"), *(f"--{kind}" for kind in kinds), *(["--fork"] if "pid" in kinds else [])]
        with log.open("ab") as stderr:
            self._first = subprocess.Popen(
                [*unshare, sys.executable, "-I", "-S", str(INIT)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"},
                cwd="/",
                start_new_session=True,
            )
        assert self._first.stdin is not None
        assert self._first.stdout is not None
        self._first.stdin.write(json.dumps(spec).encode() + b"\n")
        self._first.stdin.flush()
        answer = self._first.stdout.readline()
        self.pid = int(answer) if answer else 0
        if not answer:
            self.close()
            raise RuntimeError(f"a lab host did not start:\n{log.read_text()[-2000:]}")
        self._pid_namespace = _namespace(self.pid)

    def command(self, argv: Sequence[str], cwd: str = "/", user: str = "root") -> list[str]:
        """The argv that runs `argv` inside."""
        enter = [tool("nsenter"), f"--target={self.pid}", *(f"--{kind}" for kind in self.kinds), "--"]
        if user != "root":
            enter += ["setpriv", f"--reuid={user}", f"--regid={user}", "--init-groups"]
        return [*enter, "env", "-C", cwd, *map(str, argv)]

    def members(self) -> list[int]:
        """Pids, as seen from outside, of everything in the PID namespace but its first process."""
        pids = (int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit())
        return [pid for pid in pids if pid != self.pid and _namespace(pid) == self._pid_namespace]

    def close(self) -> None:
        """Kill the first process, which ends all others with it. May be called again."""
        if self.pid and self._first.poll() is None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)
        for pipe in (self._first.stdin, self._first.stdout):
            if pipe is not None:
                pipe.close()
        self._first.wait(timeout=30)


def _namespace(pid: int) -> int:
    """Which PID namespace a process is in; 0 when the process is gone."""
    try:
        return Path(f"/proc/{pid}/ns/pid").stat().st_ino
    except OSError:
        return 0


def argv_of(pid: int) -> list[str]:
    """The arguments of a process; empty for a zombie and for one that is gone."""
    try:
        text = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace")
    except OSError:
        return []
    return text.split("\0")[:-1]


def raylets_among(found: dict[int, list[str]]) -> dict[int, list[str]]:
    """The raylets of these processes; the child that one has just forked, a worker to be, looks like one."""
    alike = {pid: argv for pid, argv in found.items() if Path(argv[0]).name == "raylet"}
    parents = {str(pid) for pid in alike}
    return {pid: argv for pid, argv in alike.items() if status_of(pid, "PPid") not in parents}


def status_of(pid: int, field: str) -> str:
    """One line of /proc/<pid>/status, without its name; empty when the process is gone."""
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith(f"{field}:"):
                return line.partition(":")[2].strip()
    return ""


def run_group(
    process: "subprocess.Popen[str]", argv: Sequence[str], given: str | None, timeout_s: float
) -> subprocess.CompletedProcess[str]:
    """Wait for a process that leads a group; when that takes too long or is interrupted, end the group."""
    try:
        out, err = process.communicate(given, timeout=timeout_s)
    except BaseException:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        with suppress(subprocess.TimeoutExpired):  # a daemon it left may hold the pipes
            process.communicate(timeout=2)
        raise
    return subprocess.CompletedProcess(list(argv), process.returncode, out, err)
