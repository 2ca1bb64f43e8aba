"""Every part of the head fails, on hosts of their own; each time the cluster is whole again, told once.

All of it is slow: `GRID_AGENT_RUNS=10 sh scripts/campaign tests/hosts/test_head.py`; once by default.
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

import pytest
import yaml

from tests.hosts.test_ssh_cluster import CANARY, SLACK_PORT, SLACK_TOKEN, STATE, Cluster
from tests.support.cluster import BIN, ROOT, until
from tests.support.hosts import Lab

pytestmark = [pytest.mark.hosts, pytest.mark.slow]

RUNS = int(os.environ.get("GRID_AGENT_RUNS", "1"))

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
    slack = begin_slack(lab)
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
        slack.kill()
        slack.wait()


def begin_slack(lab: Lab) -> "subprocess.Popen[str]":
    serve = [sys.executable, "-m", "tests.support.slack_server", "--port", str(SLACK_PORT)]
    argv = [*serve, "--token", SLACK_TOKEN]
    return lab.head.popen(argv, cwd=str(ROOT), stdout=subprocess.DEVNULL)


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
    posts, old = len(cluster.slack()), cluster.pids(name) if name in NAMES else []
    fault(cluster)
    if old:
        until(lambda: set(cluster.pids(name)).isdisjoint(old) and cluster.pids(name), 120, 0.2)
    if word:
        until(lambda: len(cluster.slack()) > posts, 150, 0.5)
    until(cluster.whole, 150, 0.5)
    assert {host: cluster.raylet(host) for host in workers} == workers
    assert cluster.application() == "RUNNING"
    until(lambda: all("resolved" in m["text"] for m in cluster.slack()), 30, 0.5)
    new = cluster.slack()[posts:]
    if word:
        assert [word in json.dumps(m) for m in new] == [True], new
        assert "head down" in new[0]["text"]
    assert len(cluster.pids("keeper")) == 1


@pytest.mark.parametrize("run", range(RUNS))
def test_a_damaged_store_is_put_aside_and_every_worker_joins_the_new_cluster(
    cluster: Headed, run: int
) -> None:
    until(cluster.whole, 120, 0.5)
    posts, aside = len(cluster.slack()), len(list(cluster.file_of().glob("gcs.set-aside-*")))
    old = cluster.raylets()
    for current in cluster.file_of("gcs", "store").rglob("CURRENT"):
        current.write_text("this names no manifest\n")
    kill("everything")(cluster)
    until(lambda: len(list(cluster.file_of().glob("gcs.set-aside-*"))) > aside, 120, 0.5)
    until(cluster.whole, 300, 0.5)
    assert set(cluster.raylets().values()).isdisjoint(old.values())
    until(lambda: all("resolved" in m["text"] for m in cluster.slack()), 60, 0.5)
    (message,) = cluster.slack()[posts:]
    assert "put aside" in json.dumps(message)
    assert "gpu1" in message["text"]


@pytest.mark.parametrize("run", range(RUNS))
def test_a_full_disk_under_the_store_is_said_and_nothing_is_lost(cluster: Headed, run: int) -> None:
    """The store moves to a small disk of its own, which is then filled up until somebody makes room."""
    until(cluster.whole, 120, 0.5)
    host, posts = cluster.lab.head, len(cluster.slack())
    aside = list(cluster.file_of().glob("gcs.set-aside-*"))
    place = f"/root/{STATE}/gcs"
    small = "cp -a {0} /root/kept && mount -t tmpfs -o size=24m,mode=700 lab {0} && cp -a /root/kept/. {0}"
    fill = "dd if=/dev/zero of={0}/full bs=64k 2>/dev/null; true"
    # With the GCS stopped, so that the copy is whole; the keeper starts one on the new place.
    os.kill(cluster.pids("gcs")[0], signal.SIGSTOP)
    done = host.run(["sh", "-ec", small.format(place)])
    assert done.returncode == 0, done.stderr
    os.kill(cluster.pids("gcs")[0], signal.SIGKILL)
    until(cluster.whole, 150, 0.5)
    assert host.run(["sh", "-c", fill.format(place)]).returncode == 0
    kill("everything")(cluster)
    log = cluster.file_of("logs", "keeper.log")
    until(lambda: "starting the head again failed" in log.read_text(), 200, 0.5)
    until(lambda: [m for m in cluster.slack()[posts:] if "firing" in m["text"]], 60, 0.5)
    host.run(["rm", f"{place}/full"])
    until(cluster.whole, 240, 0.5)
    assert list(cluster.file_of().glob("gcs.set-aside-*")) == aside, "a full disk is no damage"
    assert cluster.application() == "RUNNING"


@pytest.mark.parametrize("run", range(RUNS))
def test_a_rebooted_head_host_goes_on_when_its_keeper_is_started(cluster: Headed, run: int) -> None:
    """What the unit does at a boot: the same command line, in an environment of its own."""
    until(cluster.whole, 120, 0.5)
    workers = {host: cluster.raylet(host) for host in ("gpu1", "gpu2")}
    plan = json.loads(cluster.file_of("keeper.json").read_text())
    cluster.lab.head.reboot()
    begin_slack(cluster.lab)
    how = plan["keeper"]
    cluster.lab.head.popen(how["argv"], env=how["env"], cwd="/", stdout=subprocess.DEVNULL)
    until(cluster.whole, 150, 0.5)
    assert {host: cluster.raylet(host) for host in workers} == workers
    assert cluster.application() == "RUNNING"
