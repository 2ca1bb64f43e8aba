"""Which Ray processes at an address are this cluster's own: an address alone proves nothing.

Any person may run a Ray on the same machine and port. Only proof counts: the record of a start that names
the session or the head, or the names and folders that only this cluster's file gives. Looks only.
"""

import contextlib
import os
import pwd
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bootstrap.reach import Raylet
from config import paths
from config.settings import Node, Settings
from grid_agent.core import raystart


@dataclass(frozen=True, slots=True)
class Process:
    """A Ray process that is somebody else's."""

    pid: int
    name: str
    user: str

    def __str__(self) -> str:
        return f"pid {self.pid} ({self.name}, user {self.user})"


@dataclass(frozen=True, slots=True)
class Owned:
    """What runs at one address: this cluster's raylets, and processes there that are not of it."""

    raylets: Mapping[str, Raylet]
    gcs: bool
    strangers: tuple[Process, ...] = ()


@dataclass(frozen=True, slots=True)
class Proof:
    """How this cluster's processes are told from others: its settings (`former`: before), its record."""

    settings: Settings
    former: Settings | None
    record: Mapping[str, Any]
    uid: int
    proc: Path = Path("/proc")

    def at(self, address: str, found: Iterable[Raylet]) -> Owned:
        """Tell own from other.

        Args:
            address: Of a GCS.
            found: Every raylet of that address that the hosts show.
        """
        found = list(found)
        servers = list(gcs_servers(address, self.proc))
        other_gcs = [pid for pid, session in servers if not self.session(address, session)]
        head_runs = any(self.head(raylet) for raylet in found)
        other_head = any(raylet.head and not self.head(raylet) for raylet in found)
        alone = not head_runs and not other_gcs and not other_head
        own = [
            raylet
            for raylet in found
            if self.head(raylet) or (not raylet.head and self._worker(raylet, address, head_runs, alone))
        ]
        # What has joined our own head is in our cluster, whatever its name.
        others = [] if head_runs and not other_head else [raylet for raylet in found if raylet not in own]
        strangers = [
            *(process(pid, "gcs_server", self.proc) for pid in other_gcs),
            *(process(raylet.pid, "raylet", self.proc) for raylet in others if self._here(raylet)),
        ]
        return Owned({raylet.name: raylet for raylet in own}, len(servers) > len(other_gcs), tuple(strangers))

    def head(self, raylet: Raylet) -> bool:
        """Whether this is the raylet of this cluster's head."""
        if not raylet.head or raylet.uid != self.uid:
            return False
        if self.record.get("gcs_address") == raylet.gcs_address and (
            raylet.node_id == (self.record.get("head_node_id") or None)
            or raylet.session_dir == (self.record.get("session_dir") or None)
        ):
            return True
        return raylet.name == self.settings.head.name and self._own_folder(
            raylet.session_dir, self.settings.head
        )

    def session(self, address: str, session_dir: str) -> bool:
        """Whether a session on this machine is one of this cluster."""
        if self.record.get("gcs_address") == address and session_dir == self.record.get("session_dir"):
            return True
        return self._own_folder(session_dir, self.settings.head)

    def _worker(self, raylet: Raylet, address: str, head_runs: bool, alone: bool) -> bool:
        node = self._node(raylet.name)
        if node is None or (self._here(raylet) and raylet.uid != self.uid):
            return False
        recorded = str(self.record.get("session_dir") or "")
        of_record = self.record.get("gcs_address") == address and bool(recorded)
        # A session is called the same on every host, wherever each of them keeps it.
        if head_runs or (of_record and Path(raylet.session_dir).name == Path(recorded).name):
            return True
        if self._here(raylet):
            return self._own_folder(raylet.session_dir, node)
        # Another host was asked for this very name and address; nobody else uses the address here.
        return alone

    def _node(self, name: str) -> Node | None:
        known = [*self.settings.nodes, *(self.former.nodes if self.former else ())]
        return next((node for node in known if node.name == name), None)

    def _here(self, raylet: Raylet) -> bool:
        node = self._node(raylet.name)
        return raylet.head or node is None or raystart.is_local(self.settings, node)

    def _own_folder(self, session_dir: str, node: Node) -> bool:
        """Whether the session lies where only this cluster's file puts one; Ray's default is everybody's."""
        folder = paths.temp_dir(self.settings, node, self.uid)
        return folder != paths.RAY_DEFAULT_TEMP_DIR and os.path.realpath(
            Path(session_dir).parent
        ) == os.path.realpath(folder)


def gcs_servers(address: str, proc: Path = Path("/proc")) -> Iterator[tuple[int, str]]:
    """Pid and session folder of every GCS on this machine that serves this address."""
    host, _, port = address.rpartition(":")
    wanted = {f"--node-ip-address={host}", f"--gcs_server_port={port}"}
    for folder in proc.iterdir():
        if not folder.name.isdigit():
            continue
        try:
            words = (folder / "cmdline").read_bytes().decode(errors="replace").split("\0")
        except OSError:
            continue  # it has ended meanwhile, or is hidden
        if Path(words[0]).name == "gcs_server" and wanted <= set(words):
            named = (word.partition("=")[2] for word in words if word.startswith("--session-dir="))
            yield int(folder.name), next(named, "")


def process(pid: int, name: str, proc: Path = Path("/proc")) -> Process:
    """A process and whose it is."""
    user = "unknown"
    with contextlib.suppress(OSError):
        uid = (proc / str(pid)).stat().st_uid
        user = str(uid)
        with contextlib.suppress(KeyError):
            user = pwd.getpwuid(uid).pw_name
    return Process(pid, name, user)
