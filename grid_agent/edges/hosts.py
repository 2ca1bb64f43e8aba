"""The ways to a host, this machine or OpenSSH: one request goes to `host.program`, its answer comes back.

Must never put a word of configuration into a shell command: what runs on the other side is one fixed string,
and names, paths and commands travel as data on its standard input. Called by whoever looks at, ends or starts
a raylet.
"""

import asyncio
import contextlib
import json
import math
import os
import signal
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from grid_agent.edges import host
from grid_agent.edges.host import common, program, starting

STDOUT_LIMIT = 64 * 1024
STDERR_LIMIT = 16 * 1024
CONTROL_PERSIST_S = 600  # without a call; `keep_ready` opens it again
LOGIN_S = 10.0  # beyond the connection: authentication, and the start of the login shell
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

# What OpenSSH says -> what it means. The first that matches counts, so the more telling ones come first.
MESSAGES = (
    ("REMOTE HOST IDENTIFICATION HAS CHANGED", "host_key_changed"),
    ("Host key verification failed", "host_key_unknown"),
    ("Permission denied", "key_refused"),
    ("Too many authentication failures", "key_refused"),
    ("Could not resolve hostname", "unresolved"),
    ("No route to host", "no_route"),
    ("Network is unreachable", "no_route"),
    ("Host is unreachable", "no_route"),
    ("Connection refused", "refused"),
    ("not responding", "disconnected"),
    ("timed out", "connect_timeout"),
)
ADVICE = {
    "host_key_changed": """The host shows another key than the one known. If the machine was set up anew,
        replace its line in the known hosts file (`ssh-keygen -R`); if not, somebody may be in between.""",
    "host_key_unknown": """The host's key is not in the known hosts file. Compare its fingerprint on the host
        itself, then add it, for example with `ssh-keyscan`.""",
    "key_refused": """The host does not accept this user with this key. Check ssh.user and ssh.key_file (mode
        600), and that the public key is in ~/.ssh/authorized_keys there.""",
    "unresolved": "This name is unknown here. Correct `host`, or give the address.",
    "no_route": "Nothing answers at this address. Check that the machine and its link are up.",
    "refused": "The machine is up, but nothing listens on this port. Check that sshd runs, and ssh.port.",
    "connect_timeout": "No connection in time. The machine is down, or a firewall drops the packets.",
    "disconnected": "The connection ended without an answer. What was done there is not known: look again.",
    "command_missing": "There is no python3 for this user on the host. Install python3, 3.9 or newer.",
    "python_too_old": "The host's python3 is older than 3.9. Install a newer one as python3.",
    "garbage": "What came back is no answer. Check what `ssh HOST python3 --version` prints for this user.",
    "login_timeout": "No shell in time. Check the host's load and disks, and its login scripts.",
    "timeout": "Logged in, but no answer in time. Check the host's load and disks.",
    "no_ssh": "Cannot run the OpenSSH client here. Install it.",
}


def complaint(error: str, said: str = "") -> dict[str, Any]:
    """The error answer for one of the names in `ADVICE`, in the shape of the host program's own."""
    sentence = " ".join(ADVICE[error].split())
    return {"ok": False, "error": error, "detail": f"{sentence} ({said})" if said else sentence}


def classify(rc: int | None, stderr: str) -> tuple[str, str]:
    """What a call without an answer died of, and what to do: (error, sentence).

    `rc` is ssh's exit code: 255 for its own failures, else the remote command's; negative when ssh was
    killed, None when that is not known. What a remote command writes is not taken for ssh's words.
    """
    error = "garbage"
    if rc == 255 or rc is None or rc < 0:
        error = next((name for sign, name in MESSAGES if sign in stderr), "disconnected")
    elif rc == 127:
        error = "command_missing"
    elif "python3 is too old" in stderr:
        error = "python_too_old"
    last = (stderr.strip().splitlines() or [""])[-1].strip()[:300]
    said = last if rc == 255 else f"exit code {rc}: {last}"
    return error, str(complaint(error, said)["detail"])


def parse_answer(stdout: bytes) -> dict[str, Any] | None:
    """The answer: the last line, since a login script may have written before it. None if it is not one."""
    lines = stdout.strip().splitlines()
    try:
        answer = json.loads(lines[-1]) if lines else None
    except ValueError:
        return None
    return answer if isinstance(answer, dict) and isinstance(answer.get("ok"), bool) else None


def unless_stopped(request: dict[str, Any]) -> dict[str, Any] | None:
    """The refusal, where the request's `unless_here` names a file that this machine has; None to go on.

    For a repair that goes to another host: only the head has the file that says a person stopped the node.
    """
    try:
        if request.get("unless_here"):
            starting.refuse_stopped(request["unless_here"])
    except common.HostError as error:
        return error.answer
    return None


# Makes modules of texts, on a host where nothing of ours is installed, and runs the last one.
_LOAD = """import sys, types
for name, text in {texts!r}:
    module = sys.modules[name] = types.ModuleType(name)
    above, _, last = name.rpartition(".")
    if above:
        setattr(sys.modules[above], last, module)
    exec(compile(text, name, "exec"), vars(module))
module.main()
"""


def source_of(program: ModuleType) -> str:
    """The whole of a program as one text, to be run by a bare Python: a file, or the package `host`."""
    if program.__name__ != f"{host.PACKAGE}.program":
        return Path(str(program.__file__)).read_text(encoding="utf-8")
    parts = host.PACKAGE.split(".")
    texts = [(".".join(parts[: n + 1]), "") for n in range(len(parts))]
    folder = Path(str(host.__file__)).parent
    texts += [(f"{host.PACKAGE}.{name}", (folder / f"{name}.py").read_text("utf-8")) for name in host.NAMES]
    return _LOAD.format(texts=texts)


def with_token(request: dict[str, Any], file: str | None) -> dict[str, Any]:
    """The request with Ray's token from `file` in its place, where it has one for it."""
    if request.get("op") == "steps":
        return {**request, "requests": [with_token(one, file) for one in request["requests"]]}
    if request.get("op") != "put_secret" or file is None:
        return request
    return {**request, "content": Path(file).expanduser().read_text(encoding="utf-8")}


Handle = Callable[[dict[str, Any]], dict[str, Any]]


@dataclass(frozen=True)
class LocalHost:
    """This machine: the program runs in a thread."""

    handle: Handle = program.handle

    async def call(self, request: dict[str, Any], timeout_s: float) -> dict[str, Any]:
        """Answers the request.

        After `timeout_s` seconds the answer is the error `timeout`. A thread cannot be ended: what it does
        goes on until its own limits (timeout_s, term_s, kill_s of the request), so set those below this one.
        """
        try:
            return await asyncio.wait_for(asyncio.to_thread(self.handle, request), timeout_s)
        except TimeoutError:
            detail = f"This machine did not answer within {timeout_s:g} s. Check its load and disks."
            return {"ok": False, "error": "timeout", "detail": detail}


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


class SshHost:
    """A host behind OpenSSH's own client, which keeps one connection open for the calls that follow.

    `control_dir` is a folder that only we may enter, with a short path; None for a connection per call.
    `text` is the program that answers one request there, by default that of the package `host`.
    """

    def __init__(
        self,
        target: SshTarget,
        control_dir: str | None,
        *,
        login_timeout_s: float = LOGIN_S,
        text: str | None = None,
    ) -> None:
        self._target = target
        self._control_dir = control_dir
        self._login_s = target.connect_timeout_s + login_timeout_s
        sent = (source_of(program) if text is None else text).encode()
        self._program = b"%d\n" % len(sent) + sent

    async def call(self, request: dict[str, Any], timeout_s: float) -> dict[str, Any]:
        """Answers the request, or says why there is no answer; never raises for what the other side does.

        `timeout_s` counts from the moment the program runs there; connecting and logging in have limits of
        their own. After `timeout` or `disconnected` the program may still be at work, until its own limits.
        Errors beside the program's own: the names in `ADVICE`, with `unreached` true. Where `unless_stopped`
        refuses nothing is sent.
        """
        if (refusal := unless_stopped(request)) is not None:
            return refusal
        payload = self._program + json.dumps(request).encode()
        try:
            conversation = await Conversation.begin(ssh_argv(self._target, self._own_control_dir()))
        except OSError as error:
            return {**complaint("no_ssh", str(error.strerror)), "unreached": True}
        try:
            answer = await conversation.hold(payload, self._login_s, timeout_s)
        finally:
            await conversation.end()
        if answer.get("error") in ("timeout", "login_timeout"):
            await self._drop_connection("stop")
        if conversation.answered:
            return answer
        return {**answer, "unreached": True, "detail": f"{self._target}: {answer['detail']}"}

    async def keep_ready(self) -> None:
        """Has the kept connection open, so that no call pays for the login; failures are left to calls."""
        with contextlib.suppress(OSError):
            if await self._control("check") not in (None, 0):
                await self._converse(
                    [*ssh_argv(self._target, self._own_control_dir())[:-1], "true"], self._login_s
                )

    async def close(self) -> None:
        """Ends the kept connection and whatever still goes over it."""
        await self._drop_connection("exit")

    async def _drop_connection(self, how: str) -> None:
        """Makes the kept connection end, so that the next call does not wait on a dead one too.

        With "stop" the calls of others that go over it may finish.
        """
        await self._control(how)

    async def _control(self, word: str) -> int | None:
        """Tells the kept connection's own process something; its exit code, None where there can be none."""
        argv = ssh_argv(self._target, self._own_control_dir())
        if "ControlMaster=auto" not in argv:
            return None
        return await self._converse(["ssh", "-O", word, *argv[1:-1]], 1.0)

    async def _converse(self, argv: list[str], login_s: float) -> int | None:
        conversation = await Conversation.begin(argv)
        try:
            await conversation.hold(b"", login_s, 1.0)
            return await conversation.exit_code()
        finally:
            await conversation.end()

    def _own_control_dir(self) -> str | None:
        """The folder for the socket, made if it is gone; None where it cannot be ours alone."""
        if self._control_dir is None:
            return None
        folder = Path(self._control_dir)
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            found = folder.lstat()
        except OSError:
            return None
        private = stat.S_ISDIR(found.st_mode) and not found.st_mode & 0o077
        return self._control_dir if private and found.st_uid == os.getuid() else None


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
