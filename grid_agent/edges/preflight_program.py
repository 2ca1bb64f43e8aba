"""What runs on a host before a start: facts about it, and whether its ports can be reached from the others.

Changes nothing, and starts nothing but Python, to ask for its version. Called by `preflight` in a thread
here or piped to `python3` over SSH, as the package `host` is; therefore one file, the standard library of
Python 3.9 only.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import errno
import json
import os
import pwd
import resource
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

GPU_S = 3.0
PYTHON_S = 5.0
CONNECT_S = 1.0
BANNER_S = 0.5
AGAIN_S = 0.05
BANNER = "grid-agent-preflight"
RAYS_OWN = ("raylet", "gcs_server")


def _home(text: str) -> str:
    return str(Path.home()) + text[1:] if text.startswith("~/") else text


def _read(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError:
        return b""


def _installed(command: str) -> list[list[str]]:
    """Versions of Ray and Python beside a command."""
    found = set()
    for path in {Path(command), Path(command).resolve()}:
        for info in path.parent.parent.glob("lib*/python3*/*-packages/ray-*.dist-info"):
            found.add((info.name[len("ray-") : -len(".dist-info")], info.parent.parent.name[len("python") :]))
    return [list(pair) for pair in sorted(found)]


def _python(command: str, path: str) -> str | None:
    """Version ("3.11.7") of the Python that a command names in its first line, else of the one beside it."""
    words = _read(command).split(b"\n", 1)[0].decode("utf-8", "replace").lstrip("#! ").split()
    first = [words] if any(Path(word).name.startswith("python") for word in words) else []
    beside = [[str(Path(command).parent / name)] for name in ("python3", "python")]
    for argv in [*first, *beside]:
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            ask = [*argv, "-I", "-S", "-c", "import sys; print('%d.%d.%d' % sys.version_info[:3])"]
            said = subprocess.run(
                ask, capture_output=True, text=True, timeout=PYTHON_S, check=True, env={"PATH": path}
            )
            return said.stdout.strip()
    return None


def _folder(path: str) -> dict[str, Any]:
    """Room and rights where a folder is, or will be made."""
    there = Path(_home(path))
    while not there.exists() and there != there.parent:
        there = there.parent
    try:
        room = os.statvfs(there)
    except OSError as error:
        return {"error": str(error.strerror)}
    return {
        "path": str(there),
        "free_mb": room.f_bavail * room.f_frsize // 2**20,
        "total_mb": room.f_blocks * room.f_frsize // 2**20,
        "writable": os.access(there, os.W_OK | os.X_OK),
    }


def _memory() -> dict[str, int]:
    rows = (line.split() for line in _read("/proc/meminfo").decode().splitlines())
    found = {row[0].rstrip(":"): int(row[1]) // 1024 for row in rows if len(row) > 1}
    return {"total_mb": found.get("MemTotal", 0), "available_mb": found.get("MemAvailable", 0)}


def _gpus() -> dict[str, Any]:
    """How many GPUs NVML sees; a driver that hangs costs GPU_S. Names as in NVIDIA's nvml.h."""
    answer: dict[str, Any] = {"seen": None, "why": f"NVML did not answer in {GPU_S:g} s"}

    def ask() -> None:
        try:
            nvml = ctypes.CDLL("libnvidia-ml.so.1")
        except OSError:
            answer.update(seen=0, why="no NVIDIA driver")
            return
        count = ctypes.c_uint(0)
        code = nvml.nvmlInit_v2()
        if code == 0:
            code = nvml.nvmlDeviceGetCount_v2(ctypes.byref(count))
            nvml.nvmlShutdown()
        answer.update(seen=count.value if code == 0 else 0, why=f"NVML error {code}" if code else "")

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(GPU_S)
    return dict(answer)


def _rays(request: dict[str, Any]) -> list[dict[str, Any]]:
    """Raylets and GCS servers of other clusters on this host."""
    found = []
    for entry in filter(str.isdigit, os.listdir("/proc")):  # noqa: PTH208
        words = _read(f"/proc/{entry}/cmdline").decode("utf-8", "replace").split("\0")
        name = words[0].rsplit("/", 1)[-1]
        if name not in RAYS_OWN:
            continue
        options = dict(word[2:].split("=", 1) for word in words if word.startswith("--") and "=" in word)
        address = options.get("gcs-address") or (
            f"{options.get('node-ip-address', '?')}:{options.get('gcs_server_port', '?')}"
        )
        if address in request["gcs_addresses"]:
            continue
        user: Any = None
        with contextlib.suppress(OSError, KeyError):
            user = pwd.getpwuid(Path(f"/proc/{entry}").stat().st_uid).pw_name
        found.append({"pid": int(entry), "name": name, "user": user, "gcs_address": address})
    return found


def facts(request: dict[str, Any]) -> dict[str, Any]:
    """How this host is.

    Request: command (the `ray` command), path (where to look for it), temp_dir, gcs_addresses of the
    cluster. Answer: now (seconds since the epoch), ray {command, versions, python}, nofile [soft, hard],
    disk and shm {path, free_mb, total_mb, writable} or {error}, memory {total_mb, available_mb}, gpus {seen,
    why}, others [{pid, name, user, gcs_address}].
    """
    path = ":".join(map(_home, request["path"].split(":")))
    command = shutil.which(_home(request["command"]), path=path)
    return {
        "ok": True,
        "now": time.time(),
        "ray": {
            "command": command,
            "versions": _installed(command) if command else [],
            "python": _python(command, path) if command else None,
        },
        "nofile": list(resource.getrlimit(resource.RLIMIT_NOFILE)),
        "disk": _folder(request["temp_dir"]),
        "shm": _folder("/dev/shm"),  # noqa: S108 - what Ray uses
        "memory": _memory(),
        "gpus": _gpus(),
        "others": _rays(request),
    }


class Mesh:
    """Listens on this host's ports and tries those of the others, at the same time as they do."""

    def __init__(self, request: dict[str, Any]) -> None:
        self.me = request["me"]
        self.nonce = request["nonce"]
        self.until = time.monotonic() + float(request["seconds"])
        self.listening: dict[str, str] = {}
        self.reached: dict[str, dict[str, str]] = {}
        self._wanted = {(name, port) for name, ports in request["expect"].items() for port in ports}
        self._changed = asyncio.Event()

    async def run(self, request: dict[str, Any]) -> dict[str, Any]:
        """The whole of it: ends as soon as everybody has been heard, at the latest when time is up."""
        servers = [await self._listen(port) for port in request["listen"]]
        self._wanted = {(n, p) for n, p in self._wanted if self.listening.get(str(p)) == "ok"}
        await asyncio.gather(
            *(
                self._reach(name, peer["host"], port, ours=peer["listens"])
                for name, peer in request["peers"].items()
                for port in peer["ports"]
            )
        )
        while self._wanted and time.monotonic() < self.until:
            self._changed.clear()
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._changed.wait(), self.until - time.monotonic())
        for server in servers:
            if server is not None:
                server.close()
        return {"ok": True, "listening": self.listening, "reached": self.reached}

    async def _listen(self, port: int) -> Any:
        try:
            server = await asyncio.start_server(self._greet, None, port)
        except OSError as error:
            in_use = error.errno == errno.EADDRINUSE
            self.listening[str(port)] = "in use" if in_use else str(error.strerror)
            return None
        self.listening[str(port)] = "ok"
        return server

    async def _greet(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        port = writer.get_extra_info("sockname")[1]
        with contextlib.suppress(OSError, asyncio.TimeoutError, ValueError):
            writer.write(f"{BANNER} {self.nonce}\n".encode())
            line = await asyncio.wait_for(reader.readline(), BANNER_S * 4)
            self._wanted.discard((line.decode("utf-8", "replace").strip(), port))
            self._changed.set()
        writer.close()

    async def _reach(self, name: str, host: str, port: int, *, ours: bool) -> None:
        said = "not tried"
        while time.monotonic() < self.until and said != "ok":
            said = await self._try(host, port, ours=ours)
            self.reached.setdefault(name, {})[str(port)] = said
            if said != "ok":
                await asyncio.sleep(AGAIN_S)

    async def _try(self, host: str, port: int, *, ours: bool) -> str:
        """One attempt. Without `ours` an accepted connection is enough: a raylet listens there."""
        try:
            reader, writer = await asyncio.wait_for(asyncio.open_connection(host, port), CONNECT_S)
        except TimeoutError:
            return "no answer"
        except ConnectionRefusedError:
            return "refused"
        except OSError as error:
            return str(error.strerror or error)
        try:
            if not ours:
                return "ok"
            line = await asyncio.wait_for(reader.readline(), BANNER_S)
            if line.decode("utf-8", "replace").split() != [BANNER, self.nonce]:
                return "somebody else answers"
            writer.write(f"{self.me}\n".encode())
            await writer.drain()
        except (OSError, TimeoutError, ValueError):
            return "somebody else answers"
        finally:
            writer.close()
        return "ok"


def mesh(request: dict[str, Any]) -> dict[str, Any]:
    """Which ports of the others can be opened from here, while those try ours.

    Request: me (this node's name), nonce, seconds (longest run), listen [ports], expect {node: [ports of ours
    that it will try]}, peers {node: {host, ports, listens}}. Answer: listening {port: "ok", "in use", or why
    not}, reached {node: {port: "ok", "no answer", "refused", or why not}}.
    """

    async def run() -> dict[str, Any]:
        return await Mesh(request).run(request)

    return asyncio.run(run())


def handle(request: dict[str, Any]) -> dict[str, Any]:
    """Answers one request; every failure is an answer too: {ok: false, error, detail}."""
    try:
        return {"facts": facts, "mesh": mesh}[request["op"]](request)
    except Exception as error:  # noqa: BLE001  an answer is the only way to say anything from here
        return {"ok": False, "error": "internal", "detail": f"{type(error).__name__}: {error}"}


def main() -> None:
    """One JSON request on standard input, one JSON answer on standard output."""
    try:
        answer = handle(json.loads(sys.stdin.buffer.read()))
    except ValueError as error:
        answer = {"ok": False, "error": "bad_request", "detail": f"The request is not JSON: {error}"}
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
