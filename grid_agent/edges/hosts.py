"""The ways to a host, this machine or OpenSSH: one request goes to `host.program`, its answer comes back.

Must never put a word of configuration into a shell command: what runs on the other side is one fixed string,
and names, paths and commands travel as data on its standard input. Called by whoever looks at, ends or starts
a raylet.
"""

import asyncio
import contextlib
import json
import os
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from grid_agent.edges import host
from grid_agent.edges.host import common, program, starting
from grid_agent.edges.ssh_client import Conversation, SshTarget, ssh_argv
from grid_agent.edges.ssh_errors import complaint

LOGIN_S = 10.0  # beyond the connection: authentication, and the start of the login shell
CONTROL_S = 3.0  # for the kept connection's own process on this machine to take a word, however busy it is


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
        self._text = source_of(program) if text is None else text

    async def call(self, request: dict[str, Any], timeout_s: float) -> dict[str, Any]:
        """Answers the request, or says why there is no answer; never raises for what the other side does.

        `timeout_s` counts from the moment the program runs there; connecting and logging in have limits of
        their own. After `timeout` or `disconnected` the program may still be at work, until its own limits.
        Errors beside the program's own: the names in `ssh_errors.ADVICE`, with `unreached` true. Where
        `unless_stopped` refuses nothing is sent.
        """
        if (refusal := unless_stopped(request)) is not None:
            return refusal
        text = self._text.encode()
        payload = b"%d\n" % len(text) + text + json.dumps(request).encode()
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
        """Ends the kept connection and all that goes over it; OpenSSH removes its socket a moment later."""
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
        return await self._converse(["ssh", "-O", word, *argv[1:-1]], CONTROL_S)

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
