"""Raylets that start at the same moment on one machine must not take each other's names.

`ray start` calls its sockets and logs `raylet`, `raylet.1`, … by the first name that is free, and the file
appears only when the raylet listens: two starts in between choose the same name, and one of them dies. So
a start lets the next one begin as soon as its own sockets are there; the rest goes on side by side.
"""

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bootstrap.reach import Raylet

POLL_S = 0.2
SOCKETS = ("--raylet_socket_name=", "--store_socket_name=")


class Turns:
    """One start at a time until its sockets are there."""

    def __init__(self, raylets: Callable[[], dict[str, Raylet]]) -> None:
        self._raylets = raylets
        self._turn = threading.Lock()

    def take(self, name: str, start: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Run `start` when it is this node's turn.

        Args:
            name: The node.
            start: Starts it and gives the answer when its raylet is up.

        Returns:
            That answer.
        """
        answer: dict[str, Any] = {}
        ended = threading.Event()

        def run() -> None:
            try:
                answer.update(start())
            except Exception as error:  # noqa: BLE001 - an answer for whoever waits
                answer.update(ok=False, error="internal", detail=f"{type(error).__name__}: {error}")
            finally:
                ended.set()

        with self._turn:
            threading.Thread(target=run, daemon=True, name=f"start {name}").start()
            while not ended.wait(POLL_S):
                raylet = self._raylets().get(name)
                if raylet is not None and listens(raylet.pid):
                    break
        ended.wait()
        return answer


def listens(pid: int, proc: Path = Path("/proc")) -> bool:
    """Whether the sockets that this raylet was told to make are there."""
    try:
        words = (proc / str(pid) / "cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return False  # it has ended; its start will say so
    sockets = [word.partition("=")[2] for word in words if word.startswith(SOCKETS)]
    return bool(sockets) and all(Path(socket).exists() for socket in sockets)
