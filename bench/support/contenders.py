"""The clusters that are measured: one with the agent, and Ray alone, each a head and two workers here."""

import asyncio
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import httpx

from bootstrap.machine import outward_address
from grid_agent.core import messages as m
from grid_agent.edges.gcs import Gcs
from tests.support.cluster import BIN, ROOT, UNLIMITED, Cluster, free_port, processes, raylets_of

WATCH_S = 0.02
SMALL = ["--num-gpus=0", "--object-store-memory=80000000"]


@dataclass(frozen=True)
class Story:
    """What the agent's incident says: when the node left ALIVE, and when the verdict stood. Wall clock."""

    failed_at: float
    opened_at: float


class Task:
    """A retriable task on one worker, watched by a driver of its own."""

    def __init__(self, driver: "asyncio.subprocess.Process") -> None:
        self._driver = driver

    async def done(self) -> float | None:
        """When it was done, on the wall clock; None when it failed."""
        assert self._driver.stdout is not None
        at = None
        async for line in self._driver.stdout:  # Ray's own words about the lost raylet come here, too
            word, _, rest = line.decode(errors="replace").strip().partition(" ")
            at = float(rest) if word == "done" else at
        await self._driver.wait()
        return at


class Contender:
    """One cluster. `name` is shown; `port` is that of its GCS."""

    name = ""
    port = 0
    _gcs: Gcs | None = None

    async def start(self) -> None:
        """Bring it up, with two workers ALIVE."""
        raise NotImplementedError

    def close(self) -> None:
        """End it, and remove its files."""
        raise NotImplementedError

    async def story(self, worker: str, since: float) -> Story | None:  # noqa: ARG002 - Ray alone has none
        """The agent's own account of the last fault, where there is an agent."""
        return None

    async def back(self, worker: str, lost: str | None) -> None:
        """Wait until the worker is ALIVE, anew where its incarnation `lost` is gone."""
        raise NotImplementedError

    async def rows(self) -> dict[str, m.NodeRow]:
        """The newest row of each name."""
        return {r.name: r for r in sorted(await self._listed(), key=lambda r: r.started_at_ms)}

    async def node_id(self, worker: str) -> str:
        """The incarnation that lives now."""
        return (await self.rows())[worker].node_id

    async def alive(self, node_id: str) -> bool:
        """Whether the GCS shows this incarnation as ALIVE."""
        return any(r.node_id == node_id and r.alive for r in await self._listed())

    async def until_dead(self, node_id: str, timeout_s: float) -> float:
        """When the GCS said DEAD, on the monotonic clock."""
        deadline = time.monotonic() + timeout_s
        while await self.alive(node_id):
            if time.monotonic() > deadline:
                message = f"{self.name}: not DEAD within {timeout_s:g} s"
                raise TimeoutError(message)
            await asyncio.sleep(WATCH_S)
        return time.monotonic()

    def signal(self, worker: str, number: int) -> int:
        """Send a signal to a worker's raylet; its pid."""
        pid = raylets_of(self.port)[worker]
        os.kill(pid, number)
        return pid

    async def begin_task(self, worker: str, seconds: float) -> Task:
        """A task that sleeps, running on this worker; retried elsewhere when the worker is lost."""
        driver = await asyncio.create_subprocess_exec(
            sys.executable,
            str(ROOT / "bench" / "support" / "lost_task.py"),
            self.address,
            worker,
            str(seconds),
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        assert driver.stdout is not None
        while (line := await asyncio.wait_for(driver.stdout.readline(), 120)) != b"runs\n":
            assert line, f"{self.name}: no task ran on {worker}"
        return Task(driver)

    @property
    def address(self) -> str:
        """The GCS, as Ray's own processes name it."""
        return f"{outward_address()}:{self.port}"

    async def let_go(self) -> None:
        """Close the connection that watches."""
        if self._gcs is not None:
            await self._gcs.close()

    async def _listed(self) -> tuple[m.NodeRow, ...]:
        if self._gcs is None:
            self._gcs = Gcs(self.address, timeout_s=10.0)
        listed = await self._gcs.list_nodes()
        if isinstance(listed, m.GcsWentSilent):
            message = f"{self.name}: {listed.detail}"
            raise TimeoutError(message)
        return listed.rows

    async def _until_alive(self, worker: str, lost: str | None, timeout_s: float = 180) -> None:
        deadline = time.monotonic() + timeout_s
        while True:
            row = (await self.rows()).get(worker)
            if row is not None and row.alive and row.node_id != lost:
                return
            assert time.monotonic() < deadline, f"{self.name}: {worker} did not come back"
            await asyncio.sleep(0.2)


class WithAgent(Contender):
    """grid-agent with its own tuning."""

    def __init__(self, hang_s: float) -> None:
        self.name = "grid-agent"
        self._cluster = Cluster(agent={"hang_s": hang_s}, guards=UNLIMITED)
        self.port = self._cluster.port

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
            body = (await http.get(f"{self._cluster.url}/cluster/incidents")).json()
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
        deadline = time.monotonic() + 120
        while (await asyncio.to_thread(self._cluster.health))["status"] != "pass":
            assert time.monotonic() < deadline, self._cluster.health()
            await asyncio.sleep(0.3)


class Bare(Contender):
    """Ray alone, by `ray start`; a lost worker is started again by hand."""

    def __init__(self, name: str, system_config: dict[str, int]) -> None:
        self.name, self.port = name, free_port()
        self._system_config = system_config
        self._home = Path(tempfile.mkdtemp(prefix="gb", dir="/tmp"))

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
        head += [f"--node-ip-address={outward_address()}", f"--ray-client-server-port={free_port()}"]
        if self._system_config:
            head.append(f"--system-config={json.dumps(self._system_config)}")
        await self._ray_start(*head)
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
        while (pid := raylets_of(self.port).get(worker)) is not None:
            if time.monotonic() > deadline:
                end(pid)
            await asyncio.sleep(0.2)

    async def _start_worker(self, worker: str) -> None:
        await self._ray_start(
            f"--address={self.address}",
            f"--node-name={worker}",
            "--num-cpus=1",
            f"--node-ip-address={outward_address()}",
            f"--temp-dir={self._home}",
            "--dashboard-agent-listen-port=0",
            "--include-log-monitor=False",
        )

    async def _ray_start(self, *flags: str, tries: int = 3) -> None:
        kept = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
        env = {**kept, "RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}
        argv = [str(BIN / "ray"), "start", *flags, *SMALL, "--disable-usage-stats"]
        log = (self._home / "start.log").open("ab")
        with log:
            started = await asyncio.create_subprocess_exec(
                *argv, env=env, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        code = await asyncio.wait_for(started.wait(), 180)
        if code != 0 and tries > 1:  # on a busy machine Ray's own start gives up
            if "--head" in flags:
                await asyncio.to_thread(self._end_all)
            await self._ray_start(*flags, tries=tries - 1)
        elif code != 0:
            raise RuntimeError((self._home / "start.log").read_text()[-2000:])


def end(pid: int) -> None:
    """End a process of ours that may be gone already."""
    try:
        os.kill(pid, 9)
    except ProcessLookupError:
        return
