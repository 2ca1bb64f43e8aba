"""Every part of the head fails, on hosts of their own; each time the cluster is whole again, told once.

All of it is slow: `sh scripts/campaign tests/hosts/test_head.py` runs each 10 times, plain pytest once.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.hosts.test_ssh_cluster import CANARY, SLACK_PORT, SLACK_TOKEN, STATE, Cluster
from tests.support.cluster import BIN, ROOT, until
from tests.support.hosts import Lab

pytestmark = [pytest.mark.hosts, pytest.mark.slow]

RUNS = int(os.environ.get("GRID_AGENT_RUNS", "1"))
STORE = f"/root/{STATE}/gcs"

NAMES = {
    "gcs": "gcs_server",
    "raylet": "/raylet",
    "dashboard": "/ray/dashboard/dashboard.py",
    "controller": "ray::ServeController",
    "proxy": "ray::ProxyActor",
    "replica": "ray::ServeReplica:grid-agent",
    "keeper": "bootstrap.keeper",
}


class Headed(Cluster):
    """The cluster of the lab, with a keeper that is quick to call something hung."""

    def __init__(self, lab: Lab) -> None:
        super().__init__(lab)
        spec = json.loads(self.file.read_text())
        spec["keeper"] = {"hang_s": 8, "ready_s": 45}
        self.file.write_text(json.dumps(spec))
        self._apart: list[subprocess.Popen[str]] = []

    def apart(self, argv: list[str], **more: Any) -> None:
        """Start something on the head that is no part of the cluster's commands."""
        self._apart.append(self.lab.head.popen(argv, stdout=subprocess.DEVNULL, **more))

    def begin_slack(self) -> None:
        argv = [sys.executable, "-m", "tests.support.slack_server", "--port", str(SLACK_PORT)]
        self.apart([*argv, "--token", SLACK_TOKEN], cwd=str(ROOT))

    def end_apart(self) -> None:
        for process in self._apart:
            process.kill()
            process.wait()

    def forgives_only(self, seconds: int) -> None:
        """Start anew, where that is not so yet, with a Ray that takes a node for dead after so long."""
        spec = json.loads(self.file.read_text())
        ray = {"heartbeat_timeout_ms": 1000 * seconds, "num_heartbeat_timeout_periods": 1}
        if spec.get("ray") == ray:
            return
        assert self.stop().returncode == 0
        self.file.write_text(json.dumps(spec | {"ray": ray}))
        started = self.start()
        assert started.returncode in (0, 1, 3), started.stderr

    def told_once(self, posts: int, word: str = "") -> dict[str, Any]:
        """The one message that is new, once all of them are resolved."""
        until(lambda: len(self.slack()) > posts, 60, 0.5)
        self.settled()
        new = self.slack()[posts:]
        assert len(new) == 1, json.dumps(new, indent=1)
        assert word in json.dumps(new)
        return new[0]

    def settled(self) -> int:
        """Wait until every message says resolved; returns how many there are."""
        deadline = time.monotonic() + 60
        while stuck := [m for m in self.slack() if "resolved" not in m["text"]]:
            assert time.monotonic() < deadline, json.dumps(stuck, indent=1)
            time.sleep(0.5)
        return len(self.slack())

    def pids(self, name: str) -> list[int]:
        """The processes of one part of the head; `everything` is all but the keeper and what is not Ray."""
        found = []
        for pid, argv in self.lab.head.processes().items():
            text = " ".join(argv)
            is_ray = "/ray/" in text or text.startswith(("ray::", "ray-dashboard"))
            if name == "everything":
                if is_ray and "bootstrap" not in text and "deployments" not in text:
                    found.append(pid)
            elif NAMES[name] in (argv[0] if name in ("gcs", "raylet") else text):
                found.append(pid)
        return found

    def whole(self) -> bool:
        """Head usable, every node ALIVE, the application RUNNING."""
        with contextlib.suppress(ValueError, KeyError):
            return json.loads(self.get("/health") or "{}").get("status") == "pass"
        return False

    def application(self) -> str:
        """What `serve status` says of the agent."""
        said = self.lab.head.run([str(BIN / "grid-agent"), "env", "-c", str(self.file)])
        pairs = (line.removeprefix("export ").split("=", 1) for line in said.stdout.splitlines())
        env = {name: value.strip("'") for name, value in pairs}
        text = self.lab.head.run([str(BIN / "serve"), "status"], env=env).stdout
        return str(yaml.safe_load(text)["applications"]["grid-agent"]["status"])

    def file_of(self, *parts: str) -> Path:
        return self.lab.head.path(f"/root/{STATE}").joinpath(*parts)


@pytest.fixture(scope="module")
def cluster(lab: Lab) -> Iterator[Headed]:
    for host in lab.hosts.values():
        host.reboot()
    token = lab.head.path(f"/root/{STATE}/ray_token")
    token.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    token.write_text(CANARY + "\n")
    token.chmod(0o600)
    made = Headed(lab)
    made.begin_slack()
    try:
        started = made.start()
        # A worker that was late on a busy machine is the agent's to bring up.
        try:
            until(made.whole, 180 if started.returncode else 10, 0.5)
        except AssertionError:
            logs = [file.read_text()[-3000:] for file in made.file_of("logs").glob("*.log")]
            pytest.fail("\n".join([started.stdout, started.stderr, made.get("/health"), *logs]))
        yield made
        made.stop()
    finally:
        made.end_apart()


def kill(name: str, sig: int = signal.SIGKILL) -> Callable[[Headed], None]:
    def fault(cluster: Headed) -> None:
        pids = cluster.pids(name)
        assert pids, name
        for pid in pids:
            with contextlib.suppress(ProcessLookupError, AssertionError):
                cluster.lab.head.kill(pid, sig)

    return fault


def cut(cluster: Headed) -> None:
    cluster.lab.head.cut()
    time.sleep(60)
    cluster.lab.head.heal()


# What happens, the text of the incident that must tell of it (None: it may pass without one).
FAULTS: dict[str, tuple[Callable[[Headed], None], str | None]] = {
    "gcs": (kill("gcs"), "the GCS is gone"),
    "raylet": (kill("raylet"), "the head's raylet is gone"),
    "dashboard": (kill("dashboard"), "dashboard is gone"),
    "controller": (kill("controller"), None),
    "proxy": (kill("proxy"), None),
    "replica": (kill("replica"), None),
    "keeper": (kill("keeper"), None),
    "everything": (kill("everything"), "gone"),
    "stopped gcs": (kill("gcs", signal.SIGSTOP), "the GCS has not answered"),
    "stopped raylet": (kill("raylet", signal.SIGSTOP), "raylet has not answered"),
    "address unreachable": (cut, None),
}


@pytest.mark.parametrize("run", range(RUNS))
@pytest.mark.parametrize("name", list(FAULTS))
def test_a_part_of_the_head_fails(cluster: Headed, name: str, run: int) -> None:
    fault, word = FAULTS[name]
    until(cluster.whole, 120, 0.5)
    workers = {host: cluster.raylet(host) for host in ("gpu1", "gpu2")}
    posts, old = cluster.settled(), cluster.pids(name) if name in NAMES else []
    fault(cluster)
    if old:
        until(lambda: set(cluster.pids(name)).isdisjoint(old) and cluster.pids(name), 120, 0.2)
    if word:
        until(lambda: len(cluster.slack()) > posts, 150, 0.5)
    until(cluster.whole, 150, 0.5)
    assert {host: cluster.raylet(host) for host in workers} == workers
    assert cluster.application() == "RUNNING"
    if word:
        assert "head down" in cluster.told_once(posts, word)["text"]
    else:  # Ray itself, or the agent, had it back before it was an incident, or it was one
        assert cluster.settled() - posts <= 1, cluster.slack()[posts:]
    assert len(cluster.pids("keeper")) == 1


@pytest.mark.parametrize("run", range(RUNS))
def test_a_damaged_store_is_put_aside_and_every_worker_joins_the_new_cluster(
    cluster: Headed, run: int
) -> None:
    until(cluster.whole, 120, 0.5)
    posts, aside = cluster.settled(), len(list(cluster.file_of().glob("gcs.set-aside-*")))
    old = cluster.raylets()
    for current in cluster.file_of("gcs", "store").rglob("CURRENT"):
        current.write_text("this names no manifest\n")
    kill("everything")(cluster)
    until(lambda: len(list(cluster.file_of().glob("gcs.set-aside-*"))) > aside, 120, 0.5)
    until(cluster.whole, 300, 0.5)
    assert set(cluster.raylets().values()).isdisjoint(old.values())
    assert "gpu1" in cluster.told_once(posts, "put aside")["text"]
    assert cluster.application() == "RUNNING"


@pytest.mark.parametrize("run", range(RUNS))
def test_a_full_disk_under_the_store_is_said_and_nothing_is_lost(cluster: Headed, run: int) -> None:
    """The store moves to a small disk of its own, which is then filled up until somebody makes room."""
    until(cluster.whole, 120, 0.5)
    host = cluster.lab.head
    aside = list(cluster.file_of().glob("gcs.set-aside-*"))
    move_store(cluster, f"mount -t tmpfs -o size=24m,mode=700 lab {STORE}")
    posts, tries = cluster.settled(), failed_starts(cluster)
    assert host.run(["sh", "-c", f"dd if=/dev/zero of={STORE}/full bs=64k 2>/dev/null; true"]).returncode == 0
    kill("everything")(cluster)
    until(lambda: failed_starts(cluster) > tries, 200, 0.5)
    until(lambda: [m for m in cluster.slack()[posts:] if "firing" in m["text"]], 60, 0.5)
    host.run(["rm", f"{STORE}/full"])
    until(cluster.whole, 240, 0.5)
    assert list(cluster.file_of().glob("gcs.set-aside-*")) == aside, "a full disk is no damage"
    assert cluster.application() == "RUNNING"
    assert "head down" in cluster.told_once(posts)["text"]
    move_store(cluster, f"umount -l {STORE}; rm -rf {STORE}/*")


def move_store(cluster: Headed, change: str) -> None:
    """Put the store on another disk, with the GCS stopped so that the copy is whole."""
    (gcs,) = cluster.pids("gcs")
    cluster.lab.head.kill(gcs, signal.SIGSTOP)
    steps = ["rm -rf /root/kept", f"cp -a {STORE} /root/kept", change, f"cp -a /root/kept/. {STORE}"]
    done = cluster.lab.head.run(["sh", "-ec", "; ".join(steps)])
    assert done.returncode == 0, done.stderr
    cluster.lab.head.kill(gcs)
    until(lambda: set(cluster.pids("gcs")) - {gcs}, 60, 0.2)
    until(cluster.whole, 150, 0.5)


def failed_starts(cluster: Headed) -> int:
    return cluster.file_of("logs", "keeper.log").read_text().count("starting the head again failed")


@pytest.mark.parametrize("run", range(RUNS))
def test_a_rebooted_head_host_goes_on_when_its_keeper_is_started(cluster: Headed, run: int) -> None:
    """What the unit does at a boot: the same command line, in an environment of its own."""
    until(cluster.whole, 120, 0.5)
    workers = {host: cluster.raylet(host) for host in ("gpu1", "gpu2")}
    plan = json.loads(cluster.file_of("keeper.json").read_text())
    cluster.lab.head.reboot()
    cluster.begin_slack()
    how = plan["keeper"]
    cluster.apart(how["argv"], env=how["env"])
    until(cluster.whole, 150, 0.5)
    assert {host: cluster.raylet(host) for host in workers} == workers
    assert cluster.application() == "RUNNING"
    assert "head down" in cluster.told_once(0)["text"]  # the Slack of this boot knows nothing older


@pytest.mark.parametrize("run", range(RUNS))
def test_workers_that_gave_up_while_the_head_was_away_are_brought_back(cluster: Headed, run: int) -> None:
    """Nobody brings the head back for longer than a raylet waits for its GCS: 60 s more than is forgiven."""
    cluster.forgives_only(20)
    until(cluster.whole, 180, 0.5)
    posts, old, (keeper,) = cluster.settled(), cluster.raylets(), cluster.pids("keeper")
    cluster.lab.head.kill(keeper, signal.SIGSTOP)
    kill("everything")(cluster)
    time.sleep(30)
    assert cluster.raylets() == old | {"gpu-master": 0}  # they wait
    until(lambda: not any(cluster.raylets().values()), 120, 0.5)
    cluster.lab.head.kill(keeper, signal.SIGCONT)
    until(cluster.whole, 300, 0.5)
    assert set(cluster.raylets().values()).isdisjoint({0, *old.values()})
    assert cluster.application() == "RUNNING"
    until(lambda: len(cluster.slack()) > posts + 1, 30, 0.5)
    cluster.settled()
    new = [message["text"] for message in cluster.slack()[posts:]]  # which of them is first is open
    of_head, of_workers = sorted(new, key=lambda text: "head down" not in text)
    assert "head down" in of_head
    assert "gpu1" in of_workers  # both in one: many nodes at once
    assert "gpu2" in of_workers
