"""One run of OpenSSH's client: its command line, what it is sent, and what comes back, all of it bounded."""

import asyncio
import contextlib
import json
import math
import os
import signal
from dataclasses import dataclass
from typing import Any

from grid_agent.edges.ssh_errors import classify, complaint

STDOUT_LIMIT = 64 * 1024
STDERR_LIMIT = 16 * 1024
CONTROL_PERSIST_S = 600  # without a call; `keep_ready` opens it again
SOCKET_PATH_LIMIT = 104  # of the control socket's path; the smallest of the systems that OpenSSH runs on
SOCKET_NAME = 40 + 1 + 17  # %C, the slash, and what OpenSSH appends while it makes the socket

READY = b"grid-agent-ready\n"
# Understood alike by sh, bash, zsh, csh and fish. The program's length comes first, then the program itself;
# what is left on standard input is its request.
REMOTE_COMMAND = (
    "exec python3 -I -c '"
    'import sys;sys.version_info<(3,9) and sys.exit("python3 is too old");'
    'print("grid-agent-ready",flush=True);'
    "n=int(sys.stdin.buffer.readline());"
    'exec(compile(sys.stdin.buffer.read(n),"host_program","exec"))'
    "'"
)


@dataclass(frozen=True)
class SshTarget:
    """Where and as whom to log in. Paths may begin with `~`; times are in seconds."""

    host: str
    user: str
    port: int = 22
    key_file: str | None = None
    known_hosts_file: str = "~/.ssh/known_hosts"
    connect_timeout_s: float = 5.0

    def __str__(self) -> str:
        return f"{self.user}@{self.host}:{self.port}"


def _value(path: str, tokens: str = "") -> str:
    """A path, then ssh's own tokens, as the value of an option, where a space would begin the next value."""
    escaped = path.replace("%", "%%") + tokens
    return f'"{escaped}"' if " " in escaped else escaped


def ssh_argv(target: SshTarget, control_dir: str | None) -> list[str]:
    """The whole command line of one call, without a shell on this side.

    Connections are kept and shared by a socket in `control_dir`, if its path is short enough for a socket.
    """
    options = {
        "BatchMode": "yes",
        "StrictHostKeyChecking": "yes",
        "UserKnownHostsFile": _value(target.known_hosts_file),
        # The file of the settings alone says which key is a host's; OpenSSH 8.5 or newer knows all of these.
        "GlobalKnownHostsFile": "/dev/null",
        "KnownHostsCommand": "none",
        "VerifyHostKeyDNS": "no",
        "NoHostAuthenticationForLocalhost": "no",
        "UpdateHostKeys": "no",
        "ConnectTimeout": str(max(1, math.ceil(target.connect_timeout_s))),
        "ConnectionAttempts": "1",
        "ServerAliveInterval": "2",
        "ServerAliveCountMax": "3",
        "ForwardAgent": "no",
        "ClearAllForwardings": "yes",
        "PermitLocalCommand": "no",
        "LogLevel": "ERROR",
    }
    if target.key_file:
        options["IdentitiesOnly"] = "yes"
    if control_dir and len(control_dir.encode()) + SOCKET_NAME <= SOCKET_PATH_LIMIT:
        options["ControlMaster"] = "auto"
        options["ControlPath"] = _value(control_dir, "/%C")
        options["ControlPersist"] = str(CONTROL_PERSIST_S)
    argv = ["ssh", "-T"]
    for key, value in options.items():
        argv += ["-o", f"{key}={value}"]
    if target.key_file:
        argv += ["-i", target.key_file.replace("%", "%%")]
    return [*argv, "-p", str(target.port), "-l", target.user, "--", target.host, REMOTE_COMMAND]


def parse_answer(stdout: bytes) -> dict[str, Any] | None:
    """The answer: the last line, since a login script may have written before it. None if it is not one."""
    lines = stdout.strip().splitlines()
    try:
        answer = json.loads(lines[-1]) if lines else None
    except ValueError:
        return None
    return answer if isinstance(answer, dict) and isinstance(answer.get("ok"), bool) else None


class Conversation:
    """One run of the ssh client: what it is sent, what it says, and its end, all of it bounded."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.answered = False
        self._process = process
        self._stdout = bytearray()
        self._stderr = bytearray()
        self._ready = asyncio.Event()
        self._reading = asyncio.create_task(self._read_stdout())
        self._complaints = asyncio.create_task(self._read_stderr())

    @classmethod
    async def begin(cls, argv: list[str]) -> "Conversation":
        """Starts the client. Raises OSError when there is none."""
        pipe = asyncio.subprocess.PIPE
        process = await asyncio.create_subprocess_exec(
            *argv, stdin=pipe, stdout=pipe, stderr=pipe, start_new_session=True
        )
        return cls(process)

    async def hold(self, payload: bytes, login_s: float, command_s: float) -> dict[str, Any]:
        """Sends the payload and returns the answer, or the error that came instead."""
        try:
            async with asyncio.timeout(login_s):
                await self._send(payload)
                await self._ready.wait()
        except TimeoutError:
            return complaint("login_timeout", f"limit {login_s:g} s")
        try:
            async with asyncio.timeout(command_s):
                complete = await self._reading
        except TimeoutError:
            return complaint("timeout", f"limit {command_s:g} s")
        if not complete:
            return complaint("garbage", f"more than {STDOUT_LIMIT} bytes")
        answer = parse_answer(bytes(self._stdout))
        if answer is not None:
            self.answered = True
            return answer
        await asyncio.wait({self._complaints}, timeout=1.0)
        error, detail = classify(await self.exit_code(), self._stderr.decode("utf-8", "replace"))
        return {"ok": False, "error": error, "detail": detail}

    async def end(self) -> None:
        """Ends the client, unless it ends by itself now, with whatever it started, and reads to the end."""
        if self.answered:
            await self.exit_code()
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
        self._reading.cancel()
        await asyncio.gather(self._reading, return_exceptions=True)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(1.0):
                await asyncio.gather(self._drain(), self._complaints)
        await self.exit_code()

    async def _drain(self) -> None:
        """What is never read keeps a pipe open for ever."""
        assert self._process.stdout is not None
        while await self._process.stdout.read(STDOUT_LIMIT):
            pass

    async def exit_code(self) -> int | None:
        """The client's, if it ends within a second."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._process.wait(), 1.0)
        return self._process.returncode

    async def _send(self, payload: bytes) -> None:
        stdin = self._process.stdin
        assert stdin is not None
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            stdin.write(payload)
            await stdin.drain()
        stdin.close()

    async def _read_stdout(self) -> bool:
        """Reads until the end; False when that is too far."""
        assert self._process.stdout is not None
        try:
            while chunk := await self._process.stdout.read(4096):
                self._stdout += chunk
                if READY in self._stdout:
                    self._ready.set()
                if len(self._stdout) > STDOUT_LIMIT:
                    return False
        finally:
            self._ready.set()
        return True

    async def _read_stderr(self) -> None:
        """Keeps the end of it."""
        assert self._process.stderr is not None
        while chunk := await self._process.stderr.read(4096):
            self._stderr += chunk
            del self._stderr[:-STDERR_LIMIT]
