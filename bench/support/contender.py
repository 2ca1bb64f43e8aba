"""What is measured, seen from outside: a cluster of a head and two workers, whoever runs it."""

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from bootstrap.machine import outward_address
from grid_agent.core import messages as m
from grid_agent.edges.gcs import Gcs
from tests.support.cluster import ROOT, raylets_of

WATCH_S = 0.02
LOST_TASK = ROOT / "bench" / "support" / "lost_task.py"


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

    async def quiet(self, worker: str) -> None:
        """Wait until no connection of the worker still waits to send what was lost. Here none was cut."""

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

    def raylet(self, worker: str) -> int | None:
        """The pid of a worker's raylet."""
        return raylets_of(self.port).get(worker)

    def signal(self, worker: str, number: int) -> int:
        """Send a signal to a worker's raylet; its pid."""
        pid = self.raylet(worker)
        assert pid is not None, f"{self.name}: {worker} has no raylet"
        os.kill(pid, number)
        return pid

    def cut(self, worker: str) -> None:
        """Take the worker's host off the network. Only where workers are on hosts of their own."""
        raise NotImplementedError

    def heal(self, worker: str) -> None:
        """Put it back."""
        raise NotImplementedError

    async def cut_off(self, worker: str) -> bool:
        """Whether the worker's host is in fact off the network."""
        raise NotImplementedError

    def lose(self, worker: str, percent: int) -> Callable[[], int]:
        """Lose so many packets of the worker; call what is returned to end it: how many were lost."""
        raise NotImplementedError

    async def begin_task(self, worker: str, seconds: float) -> Task:
        """A task that sleeps, running on this worker; retried elsewhere when the worker is lost."""
        driver = await self._spawn(LOST_TASK, self.address, worker, str(seconds))
        assert driver.stdout is not None
        while (line := await asyncio.wait_for(driver.stdout.readline(), 120)) != b"runs\n":
            assert line, f"{self.name}: no task ran on {worker}"
        return Task(driver)

    async def _spawn(self, script: Path, *argv: str) -> "asyncio.subprocess.Process":
        """Run a script beside the head."""
        return await asyncio.create_subprocess_exec(
            sys.executable, str(script), *argv, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )

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
