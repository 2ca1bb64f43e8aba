"""Three hosts over SSH in token mode: start, kill, heal, change, stop; beside somebody else's Ray."""

import json
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.cluster import BIN, ROOT, until
from tests.support.hosts import Lab
from tests.support.lab_host import Host

pytestmark = pytest.mark.hosts

CANARY = "canary-8c1f4b7e2d9a5306"
SLACK_PORT, SLACK_TOKEN = 8099, "xoxb-canary-5d2e"
STATE = ".local/state/grid-agent/lab"
GET = "import sys, urllib.request as u; print(u.urlopen(sys.argv[1], timeout=3).read().decode())"
LASTING = (
    "--node-name=",
    "--gcs-address=",
    "--node_ip_address=",
    "--session_dir=",
    "--temp_dir=",
    "--labels=",
)
PINNED = """
import ray, socket, sys
ray.init(log_to_driver=False, logging_level="ERROR")
node = next(n for n in ray.nodes() if n["NodeName"] == sys.argv[1] and n["Alive"])
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy as Pin
where = ray.remote(num_cpus=1)(lambda: __import__("socket").gethostname())
pinned = where.options(scheduling_strategy=Pin(node["NodeID"], soft=False)).remote()
print("ran on", ray.get(pinned, timeout=30))
"""
GPU1 = {
    "env": {"LAB_COLOUR": "blue"},
    "resources": {"lab": 3},
    "labels": {"rack": "a"},
    "temp_dir": "/tmp/ray-of-gpu1",
}
OFFERED = """
import json, ray, sys
ray.init(log_to_driver=False, logging_level="ERROR")
node = next(n for n in ray.nodes() if n["NodeName"] == sys.argv[1] and n["Alive"])
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy as Pin
def here():
    import os, ray
    return os.environ.get("LAB_COLOUR"), ray._private.worker._global_node.get_session_dir_path()
ref = ray.remote(num_cpus=1)(here).options(scheduling_strategy=Pin(node["NodeID"], soft=False)).remote()
colour, session = ray.get(ref, timeout=30)
print(json.dumps([node["Resources"].get("lab"), node["Labels"].get("rack"), colour, session]))
"""
BY_A_PEER = """
import asyncio, os, ray, sys
from config.loader import loads
from config.paths import StatePaths
from grid_agent.core import messages as m
from grid_agent.core.model import Belief, Incarnation, NodeBelief, State
from grid_agent.edges.remote import Remote
from grid_agent.edges.transports import Transports
from grid_agent.repair_plan import RepairPlan
ray.init(log_to_driver=False, logging_level="ERROR")
state = StatePaths.of("lab", os.environ)
settings = loads(state.settings.read_text(), "settings")
ids = {n["NodeName"]: n["NodeID"] for n in ray.nodes() if n["Alive"]}
alive = lambda n: NodeBelief(n, "", "worker", State.ALIVE, 0.0, incarnation=Incarnation(ids[n]))
sick, peer = map(alive, sys.argv[1:])
belief = Belief(0.0, 0.0, {sick.name: sick, peer.name: peer})
plan = RepairPlan(settings, state, ray.get_runtime_context().gcs_address, {}, {})
remote = Remote(lambda order: plan.request(order, belief), Transports(settings, state).seen_from, 90.0)
order = m.RestartWorker(sick.name, peer.name, 1, ids[sick.name])
ended = asyncio.run(remote.repair(order, peer))
print(ended.ok, ended.detail)
"""


class Cluster:
    """Our cluster on a lab: the commands on its head, and what its hosts show."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        slack = {"channel": "C0123456789", "base_url": f"http://127.0.0.1:{SLACK_PORT}/api/"}
        self.file = lab.write_cluster_file(nodes={"gpu1": GPU1, "gpu2": {"can_repair": True}}, slack=slack)
        self.before = {pid for host in lab.hosts.values() for pid in host.processes()}

    def python(self, *argv: str, **env: str) -> Any:
        """Run the head's interpreter there, from a shell in which Ray's own auth is switched off."""
        env = {"RAY_AUTH_MODE": "disabled", "PYTHONPATH": str(ROOT), **env}
        return self.lab.head.run([sys.executable, *argv], env=env, timeout_s=240)

    def start(self, *flags: str) -> Any:
        script = str(ROOT / "bootstrap" / "start.py")
        return self.python(script, "-c", str(self.file), *flags, SLACK_BOT_TOKEN=SLACK_TOKEN)

    def validate(self) -> Any:
        """grid-agent validate on the head."""
        argv = [str(BIN / "grid-agent"), "validate", "-c", str(self.file), "-o", "json"]
        return self.lab.head.run(argv, timeout_s=60)

    def slack(self) -> list[dict[str, Any]]:
        """What was posted, each message with its replies."""
        python = [str(self.lab.worker_bin / "python"), "-I", "-S", "-c", GET]
        return list(
            json.loads(self.lab.head.run([*python, f"http://127.0.0.1:{SLACK_PORT}/messages"]).stdout)
        )

    def stop(self, *flags: str) -> Any:
        return self.python(str(ROOT / "bootstrap" / "stop.py"), "-c", str(self.file), *flags)

    def driver(self, code: str, *argv: str) -> Any:
        """Run a driver with what `grid-agent env` says it needs."""
        said = self.lab.head.run([str(BIN / "grid-agent"), "env", "-c", str(self.file)])
        pairs = (line.removeprefix("export ").split("=", 1) for line in said.stdout.splitlines())
        return self.python("-c", code, *argv, **{name: value.strip("'") for name, value in pairs})

    def get(self, path: str) -> str:
        """What the agent answers on the head."""
        python = [str(self.lab.worker_bin / "python"), "-I", "-S", "-c", GET]
        return str(self.lab.head.run([*python, f"http://127.0.0.1:8000/cluster{path}"]).stdout)

    def states(self) -> dict[str, str]:
        """Name -> state, as the agent reports; empty while nothing answers."""
        text = self.get("/health")
        return {n["name"]: n["state"] for n in json.loads(text)["nodes"]} if text else {}

    def raylet(self, name: str) -> int:
        """The pid of our raylet on a host, 0 when there is none."""
        ours = f"--gcs-address={self.lab.head.address}:6379"
        found = [pid for pid, argv in self.lab.hosts[name].raylets().items() if ours in argv]
        assert len(found) <= 1
        return found[0] if found else 0

    def raylets(self) -> dict[str, int]:
        return {name: self.raylet(name) for name in self.lab.hosts}

    def healed(self, name: str, old: int) -> bool:
        return self.raylet(name) not in (0, old) and self.states().get(name) == "ALIVE"

    def left(self) -> list[str]:
        """What runs on the hosts that did not before, and is not the stranger's."""
        found = []
        for host in self.lab.hosts.values():
            for pid, argv in host.processes().items():
                text = " ".join(argv) + Path(f"/proc/{pid}/environ").read_text(errors="replace")
                if pid not in self.before and "/tmp/stranger" not in text and "slack_server" not in text:
                    found.append(f"{host.name}: {' '.join(argv)[:200]}")
        return found


class Sampler(threading.Thread):
    """Looks for the canary in the arguments and environment of every process, again and again."""

    def __init__(self, lab: Lab) -> None:
        super().__init__(daemon=True)
        self.found: set[str] = set()
        self._lab, self._end = lab, threading.Event()

    def run(self) -> None:
        while not self._end.wait(0.2):
            for pid in [pid for host in self._lab.hosts.values() for pid in host.box.members()]:
                for name in ("cmdline", "environ"):
                    try:
                        text = Path(f"/proc/{pid}/{name}").read_bytes()
                    except OSError:
                        continue
                    if CANARY.encode() in text:
                        self.found.add(f"{name} {text[:200]!r}")

    def __enter__(self) -> "Sampler":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self.join()


def identity(pid: int) -> tuple[list[str], list[str]]:
    """What a raylet keeps from one life to the next: who it is, what it offers, its environment."""
    words = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
    offers = next(word for word in words if word.startswith("--static_resource_list="))
    argv = [word for word in words if word.startswith(LASTING)]
    # The memory left over is what Ray finds free at that moment.
    argv.append(re.sub(r"\bmemory,[0-9]+", "", offers, count=1))
    return argv, sorted(Path(f"/proc/{pid}/environ").read_text().split("\0"))


def begin_stranger(host: Host, ray: str) -> int:
    """Somebody else's Ray: a head of its own, whose node has our node's name. Returns its raylet's pid."""
    argv = [ray, "start", "--head", "--port=6500", "--temp-dir=/tmp/stranger", "--include-dashboard=false"]
    argv += ["--num-cpus=1", "--num-gpus=0", "--object-store-memory=80000000", "--disable-usage-stats"]
    argv += ["--ray-client-server-port=20077", "--no-monitor", "--node-name=gpu1"]
    done = host.run(argv, env={"RAY_AUTH_MODE": "disabled"})
    assert done.returncode == 0, done.stdout + done.stderr
    return next(iter(host.raylets()))


@pytest.fixture(scope="module")
def cluster(lab: Lab) -> Iterator[Cluster]:
    for host in lab.hosts.values():
        host.reboot()
    token = lab.head.path(f"/root/{STATE}/ray_token")
    token.parent.mkdir(mode=0o700, parents=True)
    token.write_text(CANARY + "\n")
    token.chmod(0o600)
    strangers = begin_stranger(lab.hosts["gpu1"], str(lab.worker_bin / "ray"))
    serve = [
        sys.executable,
        "-m",
        "tests.support.slack_server",
        "--port",
        str(SLACK_PORT),
        "--token",
        SLACK_TOKEN,
    ]
    slack = lab.head.popen(serve, cwd=str(ROOT), stdout=subprocess.DEVNULL)
    made = Cluster(lab)
    try:
        with Sampler(lab) as sampler:
            started = made.start()
        assert started.returncode == 0, started.stdout + started.stderr
        assert sampler.found == set()
        assert CANARY not in started.stdout + started.stderr
        yield made
        assert strangers in lab.hosts["gpu1"].processes(), "a stranger's Ray was ended"
    finally:
        made.stop()
        slack.kill()
        slack.wait()
        for host in lab.hosts.values():
            host.reboot()
            shutil.rmtree(host.path("/root/.local"), ignore_errors=True)


def test_the_workers_have_the_token_and_nothing_else_of_ours(cluster: Cluster) -> None:
    for name in ("gpu1", "gpu2"):
        host = cluster.lab.hosts[name]
        token = host.path(f"/root/{STATE}/ray_token")
        assert token.read_text().strip() == CANARY
        assert (token.stat().st_mode & 0o777, token.parent.stat().st_mode & 0o777) == (0o600, 0o700)
        assert not [argv for argv in host.processes().values() if "grid_agent" in " ".join(argv)]
    for path in ("/health", "/incidents", "/metrics"):
        assert CANARY not in cluster.get(path)


def test_a_killed_worker_is_healed_and_is_the_node_it_was(cluster: Cluster) -> None:
    worker, old = cluster.lab.hosts["gpu1"], cluster.raylet("gpu1")
    was, offered = identity(old), json.loads(cluster.driver(OFFERED, "gpu1").stdout)
    with Sampler(cluster.lab) as sampler:
        worker.kill(old)
        until(lambda: cluster.states().get("gpu1") not in (None, "ALIVE"), 10)
        until(lambda: cluster.healed("gpu1", old), 60, 0.2)
    assert sampler.found == set()
    assert identity(cluster.raylet("gpu1")) == was
    assert cluster.driver(PINNED, "gpu1").stdout == "ran on gpu1\n"
    lab, rack, colour, session = json.loads(cluster.driver(OFFERED, "gpu1").stdout)
    assert [lab, rack, colour, session] == offered
    assert (lab, rack, colour) == (3.0, "a", "blue")
    assert session.startswith("/tmp/ray-of-gpu1/session_")
    (incident,) = json.loads(cluster.get("/incidents"))["incidents"]
    assert (incident["cause"], incident["phase"]) == ("process gone", "resolved")
    (message,) = until(lambda: [m for m in cluster.slack() if "resolved" in m["text"]], 10)
    assert "gpu1" in message["text"]
    assert any("restarting gpu1 by a task on gpu-master" in reply["text"] for reply in message["replies"])


def test_validate_reaches_every_host_and_proves_that_strangers_are_refused(cluster: Cluster) -> None:
    said = cluster.validate()
    checks = {c["name"]: c for c in json.loads(said.stdout)["checks"]}
    assert said.returncode == 0, said.stdout + said.stderr
    assert "reached; raylet pid" in checks["host gpu1"]["detail"]
    assert "a request without a token is refused" in checks["auth"]["detail"]
    with cluster.lab.drop("gpu-master", "gpu1", "tcp", 22):
        cut = cluster.validate()
    assert cut.returncode == 3
    broken = {c["name"]: c for c in json.loads(cut.stdout)["checks"]}
    assert broken["host gpu1"]["status"] == "fail"
    assert broken["host gpu2"]["status"] == "pass"


def test_a_peer_repairs_what_the_head_cannot_log_in_to(cluster: Cluster) -> None:
    old = cluster.raylet("gpu1")
    with cluster.lab.drop("gpu-master", "gpu1", "tcp", 22):
        cluster.lab.hosts["gpu1"].kill(old)
        until(lambda: cluster.healed("gpu1", old), 90, 0.5)
    newest = json.loads(cluster.get("/incidents"))["incidents"][0]
    story = " ".join(step["text"] for step in newest["steps"])
    assert "check by gpu2 refused" in story
    assert "by a task on gpu2" in story


def test_a_peer_with_only_ray_can_repair(cluster: Cluster) -> None:
    old = cluster.raylet("gpu1")
    said = cluster.driver(BY_A_PEER, "gpu1", "gpu2")
    assert said.stdout.startswith("True "), said.stdout + said.stderr
    until(lambda: cluster.healed("gpu1", old), 60, 0.2)


def test_a_stopped_node_stays_so_until_start_which_mends_only_it(cluster: Cluster) -> None:
    assert cluster.stop("--node", "gpu2").returncode == 0
    until(lambda: cluster.states().get("gpu2") == "CORDONED", 10)
    before = cluster.raylets()
    assert before["gpu2"] == 0
    server = cluster.lab.hosts["gpu2"].sshd_pid()
    assert server
    cluster.lab.hosts["gpu2"].kill(server, signal.SIGSTOP)
    for pid, argv in cluster.lab.head.processes().items():
        if argv[0].startswith("ssh: "):  # a kept connection would get past a silent server
            cluster.lab.head.kill(pid)
    try:
        failed = cluster.start()
    finally:
        cluster.lab.hosts["gpu2"].kill(server, signal.SIGCONT)
    assert failed.returncode == 3
    assert "gpu2 failed: connect_timeout" in failed.stderr
    assert "root@10.77.0.12:22" in failed.stderr
    assert cluster.raylets() == before
    mended = cluster.start()
    assert mended.returncode == 0, mended.stdout + mended.stderr
    assert cluster.raylets() == {**before, "gpu2": cluster.raylet("gpu2")}
    assert cluster.raylet("gpu2")


def test_a_wrong_token_is_named(cluster: Cluster) -> None:
    assert cluster.stop("--node", "gpu2").returncode == 0
    token = cluster.lab.head.path(f"/root/{STATE}/ray_token")
    token.write_text("another\n")
    try:
        failed = cluster.start()
    finally:
        token.write_text(CANARY + "\n")
    assert failed.returncode == 3
    assert "gpu2 failed: auth" in failed.stderr, failed.stderr
    assert "token is not the cluster's" in failed.stderr, failed.stderr
    assert cluster.raylet("gpu2") == 0
    assert cluster.start().returncode == 0


def test_a_node_that_leaves_the_file_is_stopped_when_a_person_says_so(cluster: Cluster) -> None:
    before = cluster.raylets()
    spec = json.loads(cluster.file.read_text())
    gone = {**spec, "nodes": [node for node in spec["nodes"] if node["name"] != "gpu2"]}
    cluster.file.write_text(json.dumps(gone))
    asked = cluster.start()
    assert asked.returncode == 1, asked.stdout + asked.stderr
    assert "gpu2" in asked.stderr
    assert "--yes" in asked.stderr
    assert cluster.raylets() == before
    removed = cluster.start("--yes")
    assert removed.returncode == 0, removed.stdout + removed.stderr
    assert cluster.raylets() == {**before, "gpu2": 0}
    assert set(cluster.states()) == {"gpu-master", "gpu1"}
    cluster.file.write_text(json.dumps(spec))
    added = cluster.start()
    assert added.returncode == 0, added.stdout + added.stderr
    assert cluster.raylets() == {**before, "gpu2": cluster.raylet("gpu2")}
    assert cluster.states() == dict.fromkeys(cluster.lab.hosts, "ALIVE")


def test_stop_leaves_nothing_of_ours(cluster: Cluster) -> None:
    stopped = cluster.stop()
    assert stopped.returncode == 0, stopped.stdout + stopped.stderr
    until(lambda: not cluster.left() or print(cluster.left()), 10, 1.0)
    holders = {
        str(path)
        for host in cluster.lab.hosts.values()
        for path in (host.folder / "disk").rglob("*")
        if path.is_file() and CANARY.encode() in path.read_bytes()
    }
    assert holders == {str(cluster.lab.head.path(f"/root/{STATE}/ray_token"))}
