"""Many simulated raylets: each is a port that speaks the raylet's health protocol, and nothing else.

One process holds many of them, so that a thousand fit on a small machine; a signal to the process falls on
all that it holds at once. `python -m tests.support.raylets COUNT` prints their ports as JSON and serves until
killed.
"""

import asyncio
import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass

import grpc
import grpc.aio

from tests.support.cluster import ROOT
from tests.support.health_server import handler


@dataclass(frozen=True)
class Raylet:
    """One simulated raylet, as the GCS would list it."""

    name: str
    node_id: str
    port: int
    pid: int


class Raylets:
    """So many raylets in one process; `names` are those of their nodes."""

    def __init__(self, names: list[str]) -> None:
        command = [sys.executable, "-m", "tests.support.raylets", str(len(names))]
        self._process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        ports = json.loads(self._process.stdout.readline())
        ids = (os.urandom(28).hex() for _ in names)  # as long as Ray's
        made = zip(names, ids, ports, strict=True)
        self.all = [Raylet(name, node_id, port, self._process.pid) for name, node_id, port in made]

    def kill(self) -> None:
        """`kill -9` of them all at once."""
        self._process.kill()
        self._process.wait()

    def stop(self) -> None:
        """SIGSTOP: their ports still accept, and nobody answers."""
        os.kill(self._process.pid, signal.SIGSTOP)

    def go_on(self) -> None:
        """SIGCONT."""
        os.kill(self._process.pid, signal.SIGCONT)

    def close(self) -> None:
        """End them and let the pipe go."""
        self.kill()
        if self._process.stdout is not None:
            self._process.stdout.close()


async def serve(count: int) -> None:
    """Serve on so many ports until killed."""
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((handler(b"\x08\x01"),))
    ports = [server.add_insecure_port("127.0.0.1:0") for _ in range(count)]
    await server.start()
    print(json.dumps(ports), flush=True)
    await server.wait_for_termination()


if __name__ == "__main__":
    asyncio.run(serve(int(sys.argv[1])))
