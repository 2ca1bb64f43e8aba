"""Every finding on the whole road: a real Ray node, its probe, the stand-in, health and Slack."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from tests.gpu.standin import UUIDS, Standin
from tests.support.cluster import Cluster, until
from tests.support.slack_server import SlackServer

pytestmark = pytest.mark.ray
TOKEN = "xoxb-canary-gpu"


@dataclass
class Running:
    """A head, and a worker that believes it has two GPUs."""

    cluster: Cluster
    slack: SlackServer
    standin: Standin

    def node(self) -> dict[str, Any]:
        return next(n for n in self.cluster.health()["nodes"] if n["name"] == "w1")

    def findings(self) -> list[str]:
        return list(self.node()["gpus"].get("findings", ()))

    def told(self, words: str, timeout_s: float = 15, after: int = 0) -> dict[str, Any]:
        """The Slack message whose thread says this, behind so many that were there before."""

        def about(message: dict[str, Any]) -> bool:
            return any(words in text for text in (message["text"], *(r["text"] for r in message["replies"])))

        try:
            return dict(until(lambda: next(m for m in self.slack.messages[after:] if about(m)), timeout_s))
        except AssertionError:
            raise AssertionError(f"{words!r} is not in {self.slack.messages}") from None

    def well(self) -> None:
        """Two healthy GPUs again, and everybody knows."""
        self.standin.reset()
        until(lambda: self.cluster.health()["status"] == "pass", 20)
        until(lambda: all("resolved" in m["text"] for m in self.slack.messages), 10)


@pytest.fixture(scope="module")
def running(built: Standin) -> Iterator[Running]:
    built.fresh()
    with SlackServer(token=TOKEN) as slack:
        cluster = Cluster(
            workers=1,
            slack={"channel": "#grid-alerts", "base_url": slack.base_url},
            agent={"probe_every_s": 0.5},
            gpu={"every_s": 0.3, "timeout_s": 2, "usable_every_s": 0.5, "kernel_log": str(built.kernel_log)},
        )
        cluster.spec["nodes"][1] |= {"num_gpus": 2, "env": built.env}
        cluster.spec["nodes"][0] |= {"gpu_every_s": 0}
        cluster.save()
        try:
            started = cluster.start(SLACK_BOT_TOKEN=TOKEN)
            said = cluster.cli("incidents", "-o", "json").stdout
            assert started.returncode == 0, started.stdout + started.stderr + said
            yield Running(cluster, slack, built)
        finally:
            built.fresh()
            cluster.close()


def test_expected_registered_and_seen_agree(running: Running) -> None:
    counts = until(lambda: (g := running.node()["gpus"])["seen"] == 2 and "usable" in g and g, 20)
    assert counts == {"expected": 2, "registered": 2, "seen": 2, "usable": 2}
    health = running.cluster.health()
    assert health["status"] == "pass", str(health)
    story = running.cluster.cli("why", "w1").stdout
    assert all(uuid in story for uuid in UUIDS)
    head = next(n for n in running.cluster.health()["nodes"] if n["name"] == "head")
    assert head["gpus"]["seen"] is None  # switched off there
    assert running.slack.messages == []


@pytest.mark.parametrize(
    ("gpu", "change", "words", "cause"),
    [
        (0, {"state": "lost"}, "is missing (GPU is lost)", "GPU differs"),
        (1, {"uuid": "GPU-new"}, "is replaced: now NVIDIA-Standin, GPU-new", "GPU differs"),
        (1, {"state": "absent"}, "Ray hands out 2 GPUs, 1 are seen: registered but not seen", "GPU differs"),
        (None, {"init": "not_loaded"}, "the NVIDIA driver is not loaded", "GPU differs"),
        (None, {"init": "mismatch"}, "driver and library are of different versions", "GPU differs"),
        (0, {"ecc": 7}, "7 uncorrectable memory errors", "GPU unwell"),
        (0, {"pending": 1}, "a memory repair waits for a reset", "GPU unwell"),
        (1, {"retired": 1, "unsupported": "remapped"}, "a memory repair waits for a reset", "GPU unwell"),
        (1, {"failed": 1}, "a memory repair failed", "GPU unwell"),
        (1, {"temperature": 92}, "92 °C, and it slows down at 90 °C", "GPU unwell"),
        (1, {"throttle": 64}, "hardware thermal slowdown", "GPU unwell"),
        (0, {"cuda": 46}, "unusable: cuDevicePrimaryCtxRetain: CUDA_ERROR_DEVICE_UNAVAILABLE", "GPU unwell"),
        (None, {"hang": "temperature"}, "driver hangs: no answer", "GPU unwell"),
    ],
    ids=lambda value: "-".join(map(str, next(iter(value.items())))) if isinstance(value, dict) else None,
)
def test_a_sick_gpu_is_an_incident_until_it_is_well(
    running: Running, gpu: int | None, change: dict[str, Any], words: str, cause: str
) -> None:
    before = len(running.slack.messages)
    raylet = running.cluster.raylets()["w1"]
    running.standin.set(gpu, **change)
    if "init" in change:
        running.standin.set(0, state="lost")  # then the library is opened anew
    until(lambda: any(words in text for text in running.findings()), 20)
    body = running.cluster.health()
    assert body["status"] == "warn"
    assert body["incidents"] == {"open": 1}
    node = running.node()
    assert (node["state"], node["cause"]) == ("ALIVE", None)
    assert cause in running.told(words, after=before)["text"]
    running.well()
    assert len(running.slack.messages) == before + 1
    assert running.cluster.raylets()["w1"] == raylet  # reported, and nothing else


def test_a_gpu_that_appears_is_told_until_it_is_gone(running: Running) -> None:
    running.standin.add("GPU-33333333-cccc-4ccc-8ccc-000000000002", "d1")
    running.told("GPU-33333333-cccc-4ccc-8ccc-000000000002) has appeared", 20)
    assert running.cluster.health()["status"] == "warn"
    running.well()


def test_an_error_in_the_kernel_log_is_told_until_the_driver_wants_nothing_more(running: Running) -> None:
    wants = "NVRM: Xid (PCI:0000:81:00): 154, GPU recovery action changed from 0x0 (None) to"
    running.standin.kernel(f"{wants} 0x1 (GPU Reset Required)")
    running.told("XID 154 on GPU 0")
    assert any("recovery action" in text for text in running.findings())
    running.standin.kernel(f"{wants} 0x0 (None)")
    running.well()


def test_a_slow_driver_is_no_finding(running: Running) -> None:
    before = len(running.slack.messages)
    running.standin.set(slow=700)
    time.sleep(3)
    assert running.findings() == []
    assert running.node()["gpus"]["seen"] == 2
    running.standin.reset()
    assert len(running.slack.messages) == before
