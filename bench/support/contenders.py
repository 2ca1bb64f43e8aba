"""The clusters that are measured, on this machine: one with the agent, and Ray alone."""

import asyncio
import json
import os
import shutil
import subprocess
import tempfile
import time
from datetime import datetime
from pathlib import Path

import httpx

from bench.support.contender import Contender, Story
from bootstrap.machine import outward_address
from tests.support.cluster import BIN, UNLIMITED, Cluster, free_port, processes

SMALL = ["--num-gpus=0", "--object-store-memory=80000000"]


class WithAgent(Contender):
    """grid-agent with its own tuning. `url` is where the agent answers."""

    url = ""

    def __init__(self, hang_s: float) -> None:
        self.name = "grid-agent"
        self._cluster = Cluster(agent={"hang_s": hang_s}, guards=UNLIMITED)
        self.port, self.url = self._cluster.port, self._cluster.url

    async def start(self) -> None:
        """Run bootstrap/start.py."""
        for _ in range(3):  # on a busy machine Ray's own start gives up; the next one starts what is missing
            done = await asyncio.to_thread(self._cluster.start, "--timeout", "400")
            if done.returncode == 0:
                return
        assert done.returncode == 0, done.stdout + done.stderr

    def close(self) -> None:
        """Run bootstrap/stop.py."""
        self._cluster.close()

    async def story(self, worker: str, since: float) -> Story | None:
        """The incident that tells of the fault at `since`."""
        async with httpx.AsyncClient(trust_env=False, timeout=10) as http:
            body = (await http.get(f"{self.url}/cluster/incidents")).json()
        for told in body["incidents"]:
            failed_at, opened_at = (
                datetime.fromisoformat(told[k]).timestamp() for k in ("failed_at", "opened_at")
            )
            if worker in told["nodes"] and failed_at >= since - 0.1:
                return Story(failed_at, opened_at)
        return None

    async def back(self, worker: str, lost: str | None) -> None:
        """The agent brings it back; nothing is done here but to wait until health passes."""
        await self._until_alive(worker, lost)
        deadline = time.monotonic() + 180
        async with httpx.AsyncClient(trust_env=False, timeout=10) as http:
            while (health := (await http.get(f"{self.url}/cluster/health")).json())["status"] != "pass":
                assert time.monotonic() < deadline, health
                await asyncio.sleep(0.3)


class Bare(Contender):
    """Ray alone, by `ray start`; a lost worker is started again by hand."""

    def __init__(self, name: str, system_config: dict[str, int]) -> None:
        self.name, self.port = name, free_port()
        self.system_config = system_config
        self._home = Path(tempfile.mkdtemp(prefix="gb", dir="/tmp"))
        self._log = self._home / "start.log"

    def address_of(self, node: str) -> str:  # noqa: ARG002 - all nodes are here
        """Where Ray of this node listens."""
        return outward_address()

    async def start(self) -> None:
        """A head without CPUs, then both workers."""
        head = [
            "--head",
            f"--port={self.port}",
            "--node-name=head",
            "--num-cpus=0",
            "--include-dashboard=false",
        ]
        head += ["--no-monitor", f"--temp-dir={self._home}", "--dashboard-agent-listen-port=0"]
        head += [f"--node-ip-address={self.address_of('head')}", f"--ray-client-server-port={free_port()}"]
        if self.system_config:
            head.append(f"--system-config={json.dumps(self.system_config)}")
        await self._ray_start("head", *head)
        for worker in ("w1", "w2"):
            await self._start_worker(worker)
            await self._until_alive(worker, None)

    async def back(self, worker: str, lost: str | None) -> None:
        """What a person would type."""
        if lost is not None:
            await self._until_gone(worker)
            await self._start_worker(worker)
        await self._until_alive(worker, lost)

    def close(self) -> None:
        """End every process of this cluster, and remove its files."""
        self._end_all()
        shutil.rmtree(self._home, ignore_errors=True)

    def _end_all(self) -> None:
        """End what names this cluster's port or folder."""
        marks = (f":{self.port}", str(self._home))
        for _ in range(3):
            for pid, argv in processes().items():
                if pid != os.getpid() and any(mark in part for part in argv for mark in marks):
                    end(pid)
            time.sleep(0.3)

    async def _until_gone(self, worker: str) -> None:
        """A raylet that was marked dead exits by itself; no second one is started beside it."""
        deadline = time.monotonic() + 30
        while (pid := self.raylet(worker)) is not None:
            if time.monotonic() > deadline:
                end(pid)
            await asyncio.sleep(0.2)

    async def _start_worker(self, worker: str) -> None:
        await self._ray_start(
            worker,
            f"--address={self.address}",
            f"--node-name={worker}",
            "--num-cpus=1",
            f"--node-ip-address={self.address_of(worker)}",
            f"--temp-dir={self._home}",
            "--dashboard-agent-listen-port=0",
            "--include-log-monitor=False",
        )

    async def _ray_start(self, node: str, *flags: str, tries: int = 3) -> None:
        """On a busy machine Ray's own start gives up, and is tried again."""
        code = await asyncio.wait_for(self._start_once(node, *flags, *SMALL, "--disable-usage-stats"), 180)
        if code != 0 and tries > 1:
            if node == "head":
                await asyncio.to_thread(self._end_all)
            await self._ray_start(node, *flags, tries=tries - 1)
        elif code != 0:
            raise RuntimeError(self._log.read_text()[-2000:])

    async def _start_once(self, node: str, *flags: str) -> int:  # noqa: ARG002 - all nodes are here
        kept = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
        env = {**kept, "RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}
        with self._log.open("ab") as log:
            started = await asyncio.create_subprocess_exec(
                str(BIN / "ray"),
                "start",
                *flags,
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
            return await started.wait()


def end(pid: int) -> None:
    """End a process of ours that may be gone already."""
    try:
        os.kill(pid, 9)
    except ProcessLookupError:
        return
