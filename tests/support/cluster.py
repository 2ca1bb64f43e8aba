"""A real cluster for tests: its file, bootstrap/start.py and stop.py on it, and what to ask of it."""

import asyncio
import contextlib
import json
import os
import random
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import httpx

from grid_agent.edges import keeper
from grid_agent.edges.host import parts, procs
from tests.support.netns import raylets_among

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent


def free_port() -> int:
    """A TCP port nobody listens on, outside the ranges that Ray and the kernel hand out by themselves."""
    while True:
        port = random.randrange(20_100, 32_000)
        with socket.socket() as s, contextlib.suppress(OSError):
            s.bind(("0.0.0.0", port))
            return port


# For runs that kill the same nodes again and again: the limits would, rightly, hold the later repairs.
UNLIMITED = {
    "flap_deaths": 100,
    "node_repairs": 100,
    "cluster_repairs": 100,
    "tries_per_rung": 50,
    "breaker_nodes": 100,
    "probation_s": 1,
}


class Cluster:
    """A cluster file in a short temporary folder, and the commands run on it.

    `cwd` holds modules with our names that raise on import: other code may use those names too.
    """

    def __init__(self, workers: int = 2, **more: Any) -> None:
        self.home = Path(tempfile.mkdtemp(prefix="ga", dir="/tmp"))
        self.port, self.dashboard_port, self.http_port = free_port(), free_port(), free_port()
        self.name = f"t{self.port}"
        self.url = f"http://127.0.0.1:{self.http_port}"
        names = [f"w{i + 1}" for i in range(workers)]
        small = {"host": "127.0.0.1", "num_gpus": 0, "object_store_memory_mb": 80}
        self.spec: dict[str, Any] = {
            "cluster": self.name,
            "nodes": [{"name": "head", "role": "head", "num_cpus": 0, **small}]
            + [{"name": n, "num_cpus": 1, **small} for n in names],
            "ray": {"port": self.port, "dashboard_port": self.dashboard_port},
            "http": {"port": self.http_port},
            **more,
        }
        self.cwd = self.home / "elsewhere"
        self.cwd.mkdir()
        for ours in ("config", "deployments", "bootstrap"):
            (self.cwd / f"{ours}.py").write_text(
                f"raise ImportError('a stranger called {ours} was imported')\n"
            )
        self.file = self.home / "cluster.json"
        self.save()

    def save(self) -> None:
        """Write the file (JSON is YAML)."""
        self.file.write_text(json.dumps(self.spec))

    def environ(self, **more: str) -> dict[str, str]:
        """The environment of every command."""
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "GRID_AGENT", "PYTHONPATH"))}
        mine = {
            "XDG_STATE_HOME": str(self.home / "state"),
            "RAY_AUTH_MODE": "disabled",
            "RAY_USAGE_STATS_ENABLED": "0",
        }
        return {**kept, **mine, "GRID_AGENT_URL": self.url, "PYTHONPATH": str(self.cwd), **more}

    def run(self, *argv: str, timeout_s: float = 240, **env: str) -> subprocess.CompletedProcess[str]:
        """Run a command in a folder full of strangers, with its output through a pipe."""
        return subprocess.run(
            argv,
            cwd=self.cwd,
            env=self.environ(**env),
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )

    def start(self, *flags: str, **env: str) -> subprocess.CompletedProcess[str]:
        """bootstrap/start.py"""
        return self.run(
            sys.executable, str(ROOT / "bootstrap" / "start.py"), "-c", str(self.file), *flags, **env
        )

    def stop(self, *flags: str) -> subprocess.CompletedProcess[str]:
        """bootstrap/stop.py"""
        return self.run(sys.executable, str(ROOT / "bootstrap" / "stop.py"), "-c", str(self.file), *flags)

    def cli(self, *argv: str) -> subprocess.CompletedProcess[str]:
        """grid-agent"""
        return self.run(str(BIN / "grid-agent"), *argv)

    def health(self) -> dict[str, Any]:
        """GET /cluster/health"""
        return dict(httpx.get(f"{self.url}/cluster/health", timeout=5, trust_env=False).json())

    def state(self, node: str) -> str:
        """The state of one node as the agent reports it."""
        return next(str(n["state"]) for n in self.health()["nodes"] if n["name"] == node)

    def raylets(self) -> dict[str, int]:
        """Node name -> pid of the live raylets of this cluster."""
        return raylets_of(self.port)

    @property
    def folder(self) -> Path:
        """Its state folder."""
        return self.home / "state" / "grid-agent" / self.name

    def keeper(self) -> int | None:
        """The pid of its keeper."""
        there = keeper.running(keeper.Files(self.folder))
        return there[0] or None if there else None

    def head_parts(self) -> dict[str, int]:
        """The pids of GCS, head raylet and dashboard."""
        plan = json.loads((self.folder / "keeper.json").read_text())
        return {name: proc.pid for name, proc in parts.head_parts(plan["gcs_address"]).items()}

    def kill_head(self) -> None:
        """kill -9 of everything of the head: its raylet with all below it, GCS, dashboard, log monitor."""
        table = procs.process_table()
        plan = json.loads((self.folder / "keeper.json").read_text())
        wanted = {"gcs_address": plan["gcs_address"]}
        raylets = parts.raylets_of(table, wanted)
        workers = {proc.pid for proc in raylets if "--head" not in proc.argv}
        spared = procs.descendants(table, workers) | workers
        heads = [proc.pid for proc in raylets if "--head" in proc.argv]
        members = {proc.pid for proc in parts.members(table, wanted)}
        for pid in (members | procs.descendants(table, heads)) - spared:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, 9)

    def passes(self) -> bool:
        """Whether the head is whole and /cluster/health says pass."""
        with contextlib.suppress(httpx.HTTPError, ValueError):
            return len(self.head_parts()) == 3 and self.health()["status"] == "pass"
        return False

    def leftovers(self) -> dict[int, str]:
        """Every live process that names this cluster's port, temp dir or state folder."""
        marks = (f":{self.port}", f"/ray-{self.name}-", str(self.home / "state"))
        return {
            pid: " ".join(argv)[:200]
            for pid, argv in processes().items()
            if any(mark in part for part in argv for mark in marks) and pid != os.getpid()
        }

    def close(self) -> None:
        """Stop whatever runs, and remove every file."""
        self.stop()
        shutil.rmtree(self.home, ignore_errors=True)


def raylets_of(port: int) -> dict[str, int]:
    """Node name -> pid of the live raylets whose GCS has this port."""
    found = {}
    for pid, argv in raylets_among(processes()).items():
        if any(a.startswith("--gcs-address=") and a.endswith(f":{port}") for a in argv):
            name = next(a for a in argv if a.startswith("--node-name=")).removeprefix("--node-name=")
            found[name] = pid
    return found


def processes() -> dict[int, list[str]]:
    """Pid -> argv of every process that is not a zombie."""
    found = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                argv = (folder / "cmdline").read_bytes().decode(errors="replace").split("\0")
            except OSError:
                continue
            if argv[0]:
                found[int(folder.name)] = argv
    return found


def until(what: Callable[[], Any], timeout_s: float, every_s: float = 0.1) -> Any:
    """Wait for a condition; fail with its last value."""
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            value = what()
        except (httpx.HTTPError, StopIteration) as error:
            value = error
        if value and not isinstance(value, Exception):
            return value
        assert time.monotonic() < deadline, f"not within {timeout_s} s; last: {value!r}"
        time.sleep(every_s)


def exports(text: str) -> Mapping[str, str]:
    """The variables that `grid-agent env` prints."""
    lines = (line.removeprefix("export ").split("=", 1) for line in text.splitlines())
    return {name: value.strip("'") for name, value in lines}


async def until_true(what: Callable[[], bool], timeout_s: float = 5.0) -> None:
    """The same inside an event loop."""
    deadline = time.monotonic() + timeout_s
    while not what():
        assert time.monotonic() < deadline, f"not within {timeout_s} s"
        await asyncio.sleep(0.001)
