"""The host program against Ray itself: the life of one raylet, and the end of one cluster beside another."""

import os
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from grid_agent.edges.host import procs
from grid_agent.edges.host.program import handle

pytestmark = pytest.mark.ray
RAY = str(Path(sys.executable).with_name("ray"))
SMALL = ["--num-cpus=1", "--object-store-memory=80000000"]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port


class Cluster:
    """One Ray cluster on this machine, every part of it started through the host program."""

    def __init__(self) -> None:
        ray_util = pytest.importorskip("ray.util")
        self.folder = Path(tempfile.mkdtemp(prefix="gt", dir="/tmp"))  # sockets need a short path
        self.port = free_port()
        self.gcs = f"{ray_util.get_node_ip_address()}:{self.port}"

    def start(self, name: str, *argv: str) -> dict[str, Any]:
        request = {
            "op": "start",
            "argv": [RAY, "start", *argv, f"--node-name={name}", *SMALL],
            "env": {
                "PATH": os.environ["PATH"],
                "HOME": str(self.folder),
                "RAY_AUTH_MODE": "disabled",
                "RAY_USAGE_STATS_ENABLED": "0",
            },
            "log": str(self.folder / "agent" / f"{name}.log"),
            "lock": str(self.folder / "agent" / f"{name}.lock"),
            "timeout_s": 90,
            "node_name": name,
            "gcs_address": self.gcs,
        }
        return handle(request)

    def head(self) -> dict[str, Any]:
        ports = [f"--port={self.port}", "--dashboard-agent-listen-port=0", "--include-dashboard=false"]
        return self.start("head", "--head", *ports, f"--temp-dir={self.folder}/r")

    def worker(self, name: str) -> dict[str, Any]:
        own = ["--dashboard-agent-listen-port=0", "--include-log-monitor=False"]
        return self.start(name, f"--address={self.gcs}", *own)

    def ask(self, op: str, **request: Any) -> dict[str, Any]:
        return handle({"op": op, "gcs_address": self.gcs, **request})

    def processes(self) -> list[str]:
        """Whatever still runs for this cluster: its folder or address in argv, or files of it open."""
        found = []
        for proc in procs.process_table().values():
            mentions = any(str(self.folder) in word or self.gcs in word for word in proc.argv)
            holds = any(str(self.folder) in target for _, target in procs.open_files(proc.pid))
            if (mentions or holds) and not proc.ended and proc.pid != os.getpid():
                found.append(f"{proc.pid} {proc.name}")
        return found


@pytest.fixture
def clusters() -> Iterator[tuple[Cluster, Cluster]]:
    pair = (Cluster(), Cluster())
    yield pair
    for cluster in pair:
        cluster.ask("end_cluster", term_s=1, kill_s=5)
        shutil.rmtree(cluster.folder, ignore_errors=True)


def gone_within(seconds: float, check: Any) -> None:
    until = time.monotonic() + seconds
    while check():
        assert time.monotonic() < until, check()
        time.sleep(0.05)


@pytest.mark.slow
def test_a_raylets_whole_life(clusters: tuple[Cluster, Cluster]) -> None:
    mine, other = clusters
    for answer in (mine.head(), other.head()):
        assert answer["ok"], answer
    born = mine.worker("gpu1")
    assert born["ok"], born
    row = born["raylet"]
    assert (row["node_name"], row["gcs_address"], row["head"]) == ("gpu1", mine.gcs, False)
    assert row["session_dir"].startswith(str(mine.folder))
    assert procs.read_proc(row["pid"]).ppid == 1  # type: ignore[union-attr]
    assert mine.worker("gpu1")["error"] == "already_running"
    assert len(mine.ask("look")["raylets"]) == 2
    assert mine.ask("look", node_name="gpu")["raylets"] == []
    known = {"node_id": row["node_id"], "raylet_pid": row["pid"]}

    # The agents are stopped first, so that they cannot follow their raylet by themselves.
    children = [p for p in procs.process_table().values() if p.ppid == row["pid"]]
    assert len(children) >= 2
    for child in children:
        os.kill(child.pid, signal.SIGSTOP)
    os.kill(row["pid"], signal.SIGKILL)
    gone_within(5, lambda: mine.ask("look", node_name="gpu1")["raylets"])
    seen = mine.ask("look", node_name="gpu1", **known)
    assert {one["pid"] for one in seen["remains"]} == {child.pid for child in children}, seen["remains"]
    by_id = mine.ask("look", node_id=row["node_id"])
    assert {one["pid"] for one in by_id["remains"]} == {child.pid for child in children}, by_id["remains"]

    words = mine.ask("logs", session_dir=row["session_dir"], node_id=row["node_id"])
    assert row["node_id"] in Path(words["files"][0]["path"]).read_text()
    ended = mine.ask("end", node_name="gpu1", **known, term_s=1, kill_s=5)
    assert ended["ok"], ended
    assert mine.ask("look", node_name="gpu1", **known)["remains"] == []
    again = mine.worker("gpu1")
    assert again["ok"], again
    assert again["raylet"]["node_id"] != row["node_id"]

    # A live one, with all that it has, gently.
    began = time.monotonic()
    ended = mine.ask("end", node_id=again["raylet"]["node_id"], term_s=3, kill_s=5)
    assert ended["ok"], ended
    assert time.monotonic() - began < 8
    assert mine.worker("gpu2")["ok"]

    owner = handle({"op": "port_owner", "ports": [mine.port]})["ports"][str(mine.port)]
    assert owner["name"] == "gcs_server"
    everything = mine.ask("end_cluster", temp_dir=f"{mine.folder}/r", term_s=2, kill_s=5)
    assert everything["ok"], everything
    assert mine.processes() == []
    assert not (mine.folder / "r" / "ray_current_cluster").exists()
    assert len(other.ask("look")["raylets"]) == 1
    assert any("gcs_server" in line for line in other.processes())
