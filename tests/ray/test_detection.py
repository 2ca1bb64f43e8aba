"""Ray's own detection beside the times we print: presets, and the values that people copy from each other.

A raylet is killed or stopped; what counts is when the GCS calls its node dead. No agent takes part: Ray's
processes are started by `ray start` alone. All of it takes a quarter of an hour: scripts/campaign runs it.
"""

import asyncio
import contextlib
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from config import tuning
from config.settings import RayConfig
from grid_agent.core.messages import NodeRow, NodesListed
from grid_agent.edges.gcs import Gcs
from tests.support.cluster import BIN, free_port, processes, until
from tests.support.netns import raylets_among

pytestmark = pytest.mark.ray
COPIED = {"health_check_period_ms": 10_000, "health_check_timeout_ms": 5_000}
DEFAULTS = {"health_check_period_ms": 3_000, "health_check_timeout_ms": 10_000}
SMALL = ["--num-gpus=0", "--object-store-memory=80000000", "--disable-usage-stats"]


class Bare:
    """A head and one worker on this machine, by `ray start` and nothing else."""

    def __init__(self, system_config: dict[str, int]) -> None:
        self.port = free_port()
        self.temp = Path(f"/tmp/ray-detect-{self.port}")
        self._config = system_config

    def start(self) -> None:
        head = ["--head", f"--port={self.port}", "--node-name=h", "--num-cpus=0", f"--temp-dir={self.temp}"]
        head += ["--include-dashboard=false", "--no-monitor", f"--system-config={json.dumps(self._config)}"]
        self._ray(*head, f"--ray-client-server-port={free_port()}")
        self.worker("w1")

    def worker(self, name: str) -> None:
        self._ray(
            f"--address=127.0.0.1:{self.port}",
            f"--node-name={name}",
            "--num-cpus=1",
            "--include-log-monitor=False",
        )

    def _ray(self, *flags: str) -> None:
        env = {"PATH": f"{BIN}:/usr/bin:/bin", "HOME": "/root", "RAY_AUTH_MODE": "disabled"}
        argv = [str(BIN / "ray"), "start", "--node-ip-address=127.0.0.1", *flags, *SMALL]
        argv += ["--dashboard-agent-listen-port=0"]
        said = subprocess.run(argv, env=env, capture_output=True, text=True, timeout=180, check=False)
        assert said.returncode == 0, said.stdout + said.stderr

    def own(self) -> dict[int, list[str]]:
        marks = (f":{self.port}", f"--gcs_server_port={self.port}", str(self.temp))
        found = processes()
        return {p: a for p, a in found.items() if any(m in word for m in marks for word in a)}

    def raylet(self, name: str) -> int:
        named = f"--node-name={name}"
        return next(p for p, a in raylets_among(self.own()).items() if named in a)

    def row(self, name: str) -> NodeRow:
        async def ask() -> NodesListed:
            gcs = Gcs(f"127.0.0.1:{self.port}", 5.0)
            try:
                listed = await gcs.list_nodes()
            finally:
                await gcs.close()
            assert isinstance(listed, NodesListed), listed
            return listed

        rows = [row for row in asyncio.run(ask()).rows if row.name == name]
        return max(rows, key=lambda row: row.started_at_ms)

    def close(self) -> None:
        for pid in self.own():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        shutil.rmtree(self.temp, ignore_errors=True)


@contextmanager
def bare(system_config: dict[str, int], monkeypatch: pytest.MonkeyPatch) -> Iterator[Bare]:
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    cluster = Bare(system_config)
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.close()


def detected_s(cluster: Bare, name: str, signals: int, longest_s: float) -> float:
    """From the signal to DEAD in the GCS."""
    time.sleep(cluster_rest_s(cluster))
    victim = cluster.raylet(name)
    os.kill(victim, signals)
    begun = time.monotonic()
    try:
        until(lambda: not cluster.row(name).alive, longest_s, every_s=0.1)
        return time.monotonic() - begun
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(victim, signal.SIGKILL)


def cluster_rest_s(cluster: Bare) -> float:
    """Until the first check of a new node has been made."""
    return cluster._config.get("health_check_initial_delay_ms", 5_000) / 1000 + 0.5


def measure(config: dict[str, int], monkeypatch: pytest.MonkeyPatch) -> None:
    three = {**DEFAULTS, "health_check_failure_threshold": 5, **config}
    printed = tuning.detection(
        three["health_check_period_ms"],
        three["health_check_timeout_ms"],
        three["health_check_failure_threshold"],
    )
    assert printed is not None
    with bare(config, monkeypatch) as cluster:
        for name, number, window in (
            ("w1", signal.SIGKILL, printed.killed),
            ("w2", signal.SIGSTOP, printed.silent),
        ):
            if name != "w1":
                cluster.worker(name)
            took_s = detected_s(cluster, name, number, 1.2 * window.latest_s + 30)
            print(f"{config}: {number.name} noticed after {took_s:.1f} s, printed {window}")
            assert 0.8 * window.earliest_s - 1 <= took_s <= 1.2 * window.latest_s + 1


def of_preset(name: str | None) -> dict[str, int]:
    ray = RayConfig(preset=name) if name else RayConfig()  # type: ignore[arg-type]
    return tuning.plan(ray).system_config


@pytest.mark.slow
def test_fast_lan(monkeypatch: pytest.MonkeyPatch) -> None:
    measure(of_preset("fast-lan"), monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["balanced", "tolerant", None])
def test_the_other_presets_and_the_defaults(preset: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    measure(of_preset(preset), monkeypatch)


@pytest.mark.slow
def test_the_values_that_are_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    """RAY_health_check_period_ms=10000 and RAY_health_check_timeout_ms=5000: slower with a crash, no gain."""
    measure(COPIED, monkeypatch)


@pytest.mark.slow
def test_rays_own_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    measure({}, monkeypatch)
