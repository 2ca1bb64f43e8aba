"""A cluster that outlives its agents: hosts, raylets and a GCS behind a Unix socket, one JSON line per call.

The agent under test is another process, which may be killed at any moment; what it has asked of a host goes
on there, as a host program does. `starts` and `told` say what has really been done.
"""

import json
import socketserver
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

NAMES = ("head", "w1", "w2", "w3")
START_S = 0.1  # for a raylet to start


@dataclass
class Host:
    """One machine: its living raylets by node id, and whether a start is under way."""

    raylets: list[str] = field(default_factory=list)
    starting: threading.Lock = field(default_factory=threading.Lock)


class CrashWorld:
    """Use as a context manager; `path` is the socket."""

    def __init__(self, folder: Path) -> None:
        self.path = str(folder / "world")
        self.hosts = {name: Host([f"{name}-1"]) for name in NAMES}
        self.rows = {f"{name}-1": {"name": name, "alive": True, "at": 1} for name in NAMES}
        self.starts: list[tuple[str, str]] = []  # node, the new node id
        self.told: list[str] = []
        self.told_alive: list[str] = []  # a raylet that lived when Ray was told that it is dead
        self.overlaps: list[str] = []
        self.failpoint = ""
        self._lock = threading.Lock()
        self._count = 1

    def __enter__(self) -> Self:
        world = self

        class Handler(socketserver.StreamRequestHandler):
            def handle(self) -> None:
                with suppress(OSError, ValueError):
                    asked = json.loads(self.rfile.readline())
                    answer = getattr(world, "do_" + asked.pop("op"))(**asked)
                    self.wfile.write(json.dumps(answer).encode() + b"\n")

        class Server(socketserver.ThreadingUnixStreamServer):
            daemon_threads = True
            request_queue_size = 64

        self._server = Server(self.path, Handler)
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def kill(self, name: str) -> None:
        """kill -9 of the raylet; its GCS row goes on saying ALIVE."""
        with self._lock:
            self.hosts[name].raylets.clear()

    def do_list(self) -> dict[str, Any]:
        with self._lock:
            return {"rows": dict(self.rows), "failpoint": self.failpoint}

    def do_beat(self) -> dict[str, Any]:
        with self._lock:
            return {name: list(host.raylets) for name, host in self.hosts.items()}

    def do_look(self, node: str) -> dict[str, Any]:
        host = self.hosts[node]
        with self._lock:
            return {"raylets": list(host.raylets), "starting": host.starting.locked()}

    def do_prove(self, node: str, node_id: str) -> bool:
        with self._lock:
            return node_id in self.hosts[node].raylets

    def do_tell(self, node_id: str) -> bool:
        with self._lock:
            self.told.append(node_id)
            self.told_alive += [node_id for host in self.hosts.values() if node_id in host.raylets]
            self.rows[node_id]["alive"] = False
            return True

    def do_repair(self, node: str, fence: str | None) -> dict[str, Any]:
        """Fence and start under the node's lock, whoever may have gone meanwhile."""
        host = self.hosts[node]
        if not host.starting.acquire(timeout=2.0):
            self.overlaps.append(node)
            return {"ok": False, "detail": "busy"}
        try:
            with self._lock:
                host.raylets = [r for r in host.raylets if r != fence]
                if host.raylets:
                    return {"ok": True, "detail": "a raylet of this name is running already"}
                self._count += 1
                fresh = f"{node}-{self._count}"
                self.starts.append((node, fresh))
            time.sleep(START_S)
            with self._lock:
                host.raylets.append(fresh)
                self.rows[fresh] = {"name": node, "alive": True, "at": self._count}
                if len(host.raylets) > 1:
                    self.overlaps.append(node)
            return {"ok": True, "detail": "raylet started"}
        finally:
            host.starting.release()
