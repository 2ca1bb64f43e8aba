"""The parts of the head on this machine: which processes they are, whether they answer, how each is started.

Standard library only, and the package `host` for whatever ends or starts a process. Called by `keeper`.
"""

import contextlib
import http.client
import os
import select
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bootstrap import pulse
from grid_agent.edges.host import ending, parts, ports, procs, program
from grid_agent.edges.host.procs import Proc

ANSWER_S = 2.0
GCS_UP_S = 20.0
DASHBOARD_DIES_S = 1.0  # it needs seconds to come up, and the head shall not be out of sight so long
TERM_S = 0.5  # what is left of a head that is to be started again has nothing more to say
DASHBOARD = "/ray/dashboard/dashboard.py"


@dataclass(slots=True)
class Part:
    """One process, and how to start the same again: Ray's own command line and environment of it."""

    proc: Proc
    argv: list[str]
    env: dict[str, str]
    cwd: str
    handle: int = -1  # pidfd

    @property
    def there(self) -> bool:
        """Whether this very process runs."""
        now = procs.start_ticks(self.proc.pid)
        return now == self.proc.start and not procs.ended(self.proc.pid)


@dataclass(slots=True)
class Head:
    """The head of one cluster as its processes show it; `find` looks for those that are missing."""

    gcs_address: str
    parts: dict[str, Part] = field(default_factory=dict)
    raylet_port: int | None = None
    _children: list["subprocess.Popen[bytes]"] = field(default_factory=list)

    def find(self) -> None:
        """Look for the parts that are not there, among all processes."""
        for process in self._children[:]:
            if process.poll() is not None:
                self._children.remove(process)
        missing = {name for name in ("gcs", "raylet", "dashboard") if not self.there(name)}
        if not missing:
            return
        for name, proc in parts.head_parts(self.gcs_address).items():
            if name in missing:
                self._close(name)
                self.parts[name] = _part(proc)
                if name == "raylet":
                    self.raylet_port = None

    def there(self, name: str) -> bool:
        """Whether a part runs."""
        return name in self.parts and self.parts[name].there

    def session_dir(self) -> str | None:
        """Where the head's raylet keeps, or kept, its files."""
        return self.parts["raylet"].proc.option("session_dir") if "raylet" in self.parts else None

    def gcs_answers(self) -> bool | None:
        """Whether the GCS answers a health check; None where the machine has lost its address."""
        host, _, port = self.gcs_address.rpartition(":")
        return pulse.answers_here(host.strip("[]"), int(port), ANSWER_S)

    def raylet_answers(self) -> bool | None:
        """Whether the head's raylet does; None where the machine has lost its address.

        Its port is the one that answers. While none does, the raylet does not: it has just begun, or it hung
        before this keeper came.
        """
        host = self.gcs_address.rpartition(":")[0].strip("[]")
        if self.raylet_port is None:
            open_there = ports.ports_of(self.parts["raylet"].proc.pid)
            self.raylet_port = next(
                (port for port in open_there if pulse.answers(host, port, ANSWER_S)), None
            )
            return pulse.no_answer(host) if self.raylet_port is None else True
        return pulse.answers_here(host, self.raylet_port, ANSWER_S)

    def wait(self, seconds: float) -> None:
        """Until a part ends, or for so long: the kernel tells of the end, nothing is polled for it."""
        watch = select.poll()
        live = [part for part in self.parts.values() if part.there]
        for part in live:
            if part.handle < 0:
                with contextlib.suppress(OSError):
                    part.handle = os.pidfd_open(part.proc.pid)
            if part.handle >= 0:
                watch.register(part.handle, select.POLLIN)
        whole = len(live) == 3 and all(part.handle >= 0 for part in live)
        watch.poll(int(1000 * (seconds if whole else min(seconds, 1.0))))

    def restart(self, name: str) -> str | None:
        """Start one part again, with the command line that Ray gave it; None, or what went wrong."""
        part = self.parts.get(name)
        if part is None:
            return f"nobody knows how the {name} was started"
        if part.there:
            ending.end_process(part.proc.pid, part.proc.start, 0.0, 5.0)
        try:
            child = subprocess.Popen(
                part.argv,
                env=part.env,
                cwd=part.cwd,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
                close_fds=True,
            )
        except OSError as error:
            return f"cannot run {part.argv[0]}: {error.strerror}"
        self._children.append(child)
        until = time.monotonic() + (GCS_UP_S if name == "gcs" else DASHBOARD_DIES_S)
        while time.monotonic() < until:
            if child.poll() is not None:
                return f"it ended again with code {child.returncode}"
            if name == "gcs" and self.gcs_answers():
                return None
            time.sleep(0.05)
        return None if name == "dashboard" else "it does not answer"

    def _close(self, name: str) -> None:
        old = self.parts.pop(name, None)
        if old is not None and old.handle >= 0:
            os.close(old.handle)


def _part(proc: Proc) -> Part:
    cwd = "/"
    with contextlib.suppress(OSError):
        cwd = os.readlink(f"/proc/{proc.pid}/cwd")  # noqa: PTH115
    return Part(proc, list(proc.argv), procs.environ(proc.pid), cwd)


def http_status(host: str, port: int, path: str, token: str | None) -> int | None:
    """The status code of a GET; None when nothing answers in time."""
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    link = http.client.HTTPConnection(host, port, timeout=ANSWER_S)
    try:
        link.request("GET", path, headers=headers)
        return link.getresponse().status
    except (OSError, http.client.HTTPException, ValueError):
        return None
    finally:
        link.close()


def end_head(plan: Mapping[str, Any], head: Head) -> dict[str, Any]:
    """End what is left of the head; workers of this machine live on."""
    known = head.parts.get("raylet")
    request = {
        "op": "end_head",
        "gcs_address": plan["gcs_address"],
        "session_dir": head.session_dir(),
        "temp_dir": plan["temp_dir"],
        "node_id": known.proc.option("node_id") if known else None,
        "raylet_pid": known.proc.pid if known else None,
        "term_s": TERM_S,
    }
    return program.handle(request)


def start_head(plan: Mapping[str, Any]) -> dict[str, Any]:
    """Start the head as `start.py` would."""
    if plan["own_temp_dir"]:
        folder = Path(plan["temp_dir"])
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)  # gone with /tmp at a reboot
        if folder.is_symlink() or folder.stat().st_uid != os.getuid():
            detail = f"{folder} belongs to somebody else: remove it"
            return {"ok": False, "error": "temp_dir", "detail": detail}
    return program.handle({"op": "start", **plan["start"], "gcs_address": plan["gcs_address"]})
