"""What follows from a finding, on a real Ray node: a fence, a drained restart without a GPU, a quarantine."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.gpu.standin import UUIDS, Standin
from tests.gpu.test_gpu_cluster import TOKEN, Running
from tests.support.cluster import Cluster, until
from tests.support.slack_server import SlackServer

pytestmark = [pytest.mark.ray, pytest.mark.slow]


@pytest.fixture(scope="module")
def running(built: Standin) -> Iterator[Running]:
    built.fresh()
    with SlackServer(token=TOKEN) as slack:
        cluster = Cluster(
            workers=2,
            slack={"channel": "#grid-alerts", "base_url": slack.base_url},
            agent={"probe_every_s": 0.5},
            gpu={
                "every_s": 0.3,
                "timeout_s": 2,
                "kernel_log": str(built.kernel_log),
                "drain_s": 30,
                "return_s": 2,
                "policy": {"memory": "without", "thermal": "quarantine"},
            },
        )
        cluster.spec["nodes"][1] |= {"num_gpus": 2, "env": built.env}
        for other in (0, 2):
            cluster.spec["nodes"][other] |= {"gpu_every_s": 0}
        cluster.save()
        try:
            started = cluster.start(SLACK_BOT_TOKEN=TOKEN)
            assert started.returncode == 0, started.stdout + started.stderr
            yield Running(cluster, slack, built)
        finally:
            built.fresh()
            cluster.close()


def test_a_sick_gpu_is_left_out_and_taken_back_when_it_is_well(running: Running) -> None:
    """gpu.policy memory: without."""
    old = running.cluster.raylets()["w1"]
    running.standin.set(0, ecc=7)
    until(lambda: (g := running.node()["gpus"])["registered"] == 1 and g["seen"] == 2, 60)
    fresh = running.cluster.raylets()["w1"]
    assert fresh != old
    environ = Path(f"/proc/{fresh}/environ").read_text().split("\0")
    assert f"CUDA_VISIBLE_DEVICES={UUIDS[1]}" in environ
    until(lambda: any("degraded" in text for text in running.findings()), 10)
    assert running.cluster.health()["status"] == "warn"
    story = running.told("7 uncorrectable memory errors")
    assert any("is drained before a restart without" in r["text"] for r in story["replies"])
    running.standin.reset()
    until(lambda: running.node()["gpus"] == {"expected": 2, "registered": 2, "seen": 2}, 90)
    running.well()
    environ = Path(f"/proc/{running.cluster.raylets()['w1']}/environ").read_text()
    assert "CUDA_VISIBLE_DEVICES=GPU" not in environ


def test_a_fence_ends_what_holds_the_memory_of_its_own_raylet(running: Running) -> None:
    """A process that a task left behind, in a session of its own and with a clean environment."""
    code = (
        "import ray,subprocess,sys;ray.init(address=sys.argv[1],log_to_driver=False,logging_level='ERROR')\n"
        "@ray.remote(num_gpus=1)\n"
        "def leave(): return subprocess.Popen(['sleep','300'],env={},start_new_session=True).pid\n"
        "print('left', ray.get(leave.remote(), timeout=60))"
    )
    said = running.cluster.run(sys.executable, "-c", code, f"127.0.0.1:{running.cluster.port}").stdout
    left = int(said.split("left ")[1])
    running.standin.set(0, process=f"{left}:1024")
    time.sleep(2)  # seen there by the probe while the raylet lives
    old = running.cluster.raylets()["w1"]
    os.kill(old, signal.SIGKILL)
    until(lambda: running.cluster.raylets().get("w1", old) != old, 60)
    until(lambda: not Path(f"/proc/{left}").exists(), 10)
    running.well()


def test_memory_held_by_what_a_dead_raylet_left_is_listed_and_left_alone(running: Running) -> None:
    marks = {**os.environ, "RAY_NODE_ID": "ab" * 28, "RAY_RAYLET_PID": "999999"}
    orphan = subprocess.Popen(["sleep", "120"], env=marks)
    try:
        running.standin.set(1, process=f"{orphan.pid}:4096")
        words = f"4096 MiB of {UUIDS[1]} held by sleep, pid {orphan.pid}, of"
        until(lambda: any(words in text for text in running.findings()), 20)
        running.told("its raylet is gone")
        assert orphan.poll() is None
    finally:
        orphan.kill()
        orphan.wait()
    running.well()


def test_a_grave_xid_stands_and_a_minor_one_counts(running: Running) -> None:
    running.standin.kernel("NVRM: Xid (PCI:0000:81:00): 79, pid=1234, GPU has fallen off the bus.", at_us=1)
    running.told("XID 79 on GPU 0")
    now_us = time.monotonic_ns() // 1000
    for ago_us in range(300_000_000, -1, -75_000_000):
        running.standin.kernel(
            "NVRM: Xid (PCI:0000:c1:00): 31, pid=7, Ch 00000008, intr 00000000. MMU Fault",
            at_us=now_us - ago_us,
        )
    running.told("XID 31 on GPU 1")
    running.told("5 times within a day; have the hardware checked")
    assert running.node()["state"] == "ALIVE"


def test_a_quarantined_node_gets_no_work_and_leaves(running: Running) -> None:
    """gpu.policy thermal: quarantine."""
    running.standin.set(1, temperature=95)
    until(lambda: running.node()["state"] == "CORDONED", 20)
    assert "gpu.policy" in running.node()["action"]
    running.told("w1 is in quarantine")
    until(lambda: "w1" not in running.cluster.raylets(), 30)
    time.sleep(3)
    assert "w1" not in running.cluster.raylets()
