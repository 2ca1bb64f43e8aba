"""The process of one start, and the Ray that it runs."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

from grid_agent.edges.host.common import POLL_S, HostError, expanded, private_file
from grid_agent.edges.host.ending import Ending
from grid_agent.edges.host.locks import Held
from grid_agent.edges.host.procs import descendants, process_table

# Reads a program from standard input, which goes on after it. The program's length comes first.
LOADER = "import sys;i=sys.stdin.buffer;exec(compile(i.read(int(i.readline())),'ray_start','exec'))"
ENTRY_POINT = b"from ray.scripts.scripts import main"  # in the `ray` that pip and uv write
LEAVE_S = 3.0
REAP_S = 1.0
LOADING = ".loading"  # behind the name of its log, until it is told to go on


def _at_home(name: str, value: str) -> str:
    """One variable's value, or one `--name=value`, as a shell here would expand it."""
    return ":".join(map(expanded, value.split(":"))) if name == "PATH" else expanded(value)


def argv_of(words: list[str]) -> list[str]:
    """The command with every `~/` expanded, in the program and in `--temp-dir`."""
    flag = "--temp-dir="
    rest = (flag + expanded(word[len(flag) :]) if word.startswith(flag) else word for word in words[1:])
    return [expanded(words[0]), *rest]


def env_of(request: dict[str, Any]) -> dict[str, str]:
    """The environment asked for, and from this login what it shall inherit."""
    own = {name: os.environ[name] for name in request.get("inherit", ()) if os.environ.get(name)}
    given = {name: _at_home(name, value) for name, value in request["env"].items()}
    return {**own, **given}


def own_python(command: str, env: dict[str, str]) -> str | None:
    """The Python of this `ray`, where that is the entry point an installer wrote; None for anything else."""
    try:
        text = Path(shutil.which(command, path=env.get("PATH", os.defpath)) or command).read_bytes()[:4096]
    except OSError:
        return None
    first = text.partition(b"\n")[0].decode("utf-8", "replace").split()
    if ENTRY_POINT not in text or len(first) != 1 or not first[0].startswith("#!/"):
        return None
    python = first[0][2:]
    return python if Path(python).name.startswith("python") else None


def _spawn(argv: list[str], env: dict[str, str], log: str, held: Held, stdin: int) -> subprocess.Popen[bytes]:
    output = private_file(log, os.O_WRONLY | os.O_TRUNC)
    try:
        # A session of its own: Ray cleans up the process groups of its workers, and this may run inside one.
        return subprocess.Popen(
            argv,
            env=env,
            cwd="/",
            stdin=stdin,
            stdout=output,
            stderr=output,
            start_new_session=True,
            close_fds=True,
            # The lock outlives us with the command, if need be. The daemons that it starts do not get it:
            # Ray starts them with all but the standard descriptors closed.
            pass_fds=held,
        )
    except OSError as error:
        raise _no_ray(argv[0], env, error.strerror) from None
    finally:
        os.close(output)


class Starter:
    """The process of a start: `ray start`, or `ray_start` in its place, which loads and waits for a word."""

    def __init__(self, request: dict[str, Any], held: Held) -> None:
        self.argv, self.env, self.log = argv_of(request["argv"]), env_of(request), expanded(request["log"])
        self.request, self._held = request, held
        self._program: bytes | None = request["program"].encode() if request.get("program") else None
        self._child: subprocess.Popen[bytes] | None = None
        self.told = False

    def load(self) -> None:
        """Has the program load meanwhile, where it can; whatever goes wrong with that is said by `go`."""
        python = own_python(self.argv[0], self.env) if self._program is not None else None
        if python is None or self._program is None:
            return
        argv = [python, "-c", LOADER, *self.argv]
        with contextlib.suppress(OSError, HostError):
            self._child = _spawn(argv, self.env, self.log + LOADING, self._held, subprocess.PIPE)
            self._write(b"%d\n" % len(self._program) + self._program)

    def go(self) -> subprocess.Popen[bytes]:
        """Starts; raises HostError where there is no such command."""
        if self._child is None:
            self.load()
        if self._child is not None:
            Path(self.log + LOADING).replace(self.log)  # until now the log was that of the start before
            self.told = True
            self._write(b"go\n")
            self._close()
            return self._child
        self._child = _spawn(self.argv, self.env, self.log, self._held, subprocess.DEVNULL)
        self.told = True
        return self._child

    def __enter__(self) -> Starter:
        return self

    def __exit__(self, *_: object) -> None:
        """Ends what was not told to start: at the end of its input it exits by itself."""
        if self._child is None or self.told:
            return
        self._close()
        if exit_code(self._child.pid, LEAVE_S) is None:
            end_session(self._child.pid)
        reap(self._child)
        Path(self.log + LOADING).unlink(missing_ok=True)

    def _write(self, data: bytes) -> None:
        """One that is gone already leaves an exit code."""
        assert self._child is not None
        assert self._child.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._child.stdin.write(data)
            self._child.stdin.flush()

    def _close(self) -> None:
        assert self._child is not None
        if self._child.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                self._child.stdin.close()


def _no_ray(command: str, env: dict[str, str], why: str | None) -> HostError:
    where = "" if "/" in command else f" in {env.get('PATH', '')}"
    advice = "Install Ray there, or set ssh.ray_bin (or ray_bin of the node) to the folder of `ray`."
    return HostError("no_ray", f"Cannot run {command}{where}: {why}. {advice}")


def _installed(command: str) -> set[tuple[str, str]]:
    """Versions of Ray and Python ("3.11") beside this command: read, since asking Ray takes seconds."""
    found = set()
    for path in {Path(command), Path(command).resolve()}:
        for info in path.parent.parent.glob("lib*/python3*/*-packages/ray-*.dist-info"):
            python = info.parent.parent.name[len("python") :]
            found.add((info.name[len("ray-") : -len(".dist-info")], python))
    return found


def check_versions(command: str, env: dict[str, str], expect: dict[str, str]) -> None:
    """Raises HostError when the command is missing or is another Ray or Python than `expect`.

    Where nothing can be read the start goes on: Ray compares for itself, too, and Python to the last digit.
    """
    path = shutil.which(command, path=env.get("PATH", os.defpath))
    if path is None:
        raise _no_ray(command, env, "there is no such command")
    found = _installed(path)
    minor = ".".join(expect["python"].split(".")[:2])
    if not found or (expect["ray"], minor) in found:
        return
    here = " and ".join(f"Ray {ray} on Python {python}" for ray, python in sorted(found))
    raise HostError(
        "version",
        f"{path} is {here}; the head has Ray {expect['ray']} on Python {expect['python']}. "
        "Install the head's versions there, or set ssh.ray_bin to where they are.",
    )


def exit_code(pid: int, seconds: float) -> int | None:
    """Exit code of our child, or None when time is up. It is not reaped, so that its pid stays its own."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        found = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        if found is not None:
            return found.si_status
        time.sleep(POLL_S)
    return None


def reap(child: subprocess.Popen[bytes]) -> None:
    """Takes leave of a child that has ended; one that waits in the kernel may never end."""
    if exit_code(child.pid, REAP_S) is not None:
        child.wait()


def end_session(pid: int) -> None:
    """Ends what our unreaped child `pid` brought up: its session, and what descends from it."""
    ending = Ending(0.5, 3.0)
    for _ in range(2):  # twice, for what was being forked
        table = process_table()
        session = {proc.pid for proc in table.values() if proc.sid == pid}
        found = session | descendants(table, session)
        ending.hard(ending.soft([table[one] for one in found if one != os.getpid() and not table[one].ended]))
