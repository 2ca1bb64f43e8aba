"""Another Ray on the same address is left alone and our own is known: processes that look like Ray's."""

import dataclasses
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from bootstrap import machine, ownership
from bootstrap.reach import Raylet
from config import loader, paths

PROJECT = Path(__file__).resolve().parents[2]
SLEEP = "import time; time.sleep(120)"
LISTEN = (
    "import socket, sys, time; s = socket.create_server(('0.0.0.0', int(sys.argv[1])));"
    "print('up', flush=True); time.sleep(120)"
)
CLUSTER = f"own-{os.getpid()}"
OURS = f"/tmp/ray-{CLUSTER}-{os.getuid()}"

Process = subprocess.Popen[bytes]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Place:
    """One cluster file of this machine, and processes at its address."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port, self.http = free_port(), free_port()
        self.file = folder / "cluster.yaml"
        self.file.write_text(
            f"cluster: {CLUSTER}\n"
            "nodes:\n"
            "  - {name: own-head, host: 127.0.0.1, role: head, num_cpus: 0}\n"
            "  - {name: own-w1, host: 127.0.0.1, num_cpus: 1}\n"
            f"ray: {{port: {self.port}, dashboard_port: {free_port()}}}\n"
            f"http: {{port: {self.http}}}\n"
        )
        self.settings = loader.load(str(self.file), {})
        self.gcs = machine.here(self.settings, {}).gcs_address
        self.state = paths.StatePaths.of(CLUSTER, {"XDG_STATE_HOME": str(folder / "state")})
        self.procs: list[Process] = []

    def spawn(self, argv0: str, *args: str, code: str = SLEEP) -> Process:
        proc = subprocess.Popen(
            [argv0, "-SEc", code, *args], executable=sys.executable, stdout=subprocess.PIPE
        )
        self.procs.append(proc)
        until = time.monotonic() + 5
        while not Path(f"/proc/{proc.pid}/cmdline").read_bytes().startswith(argv0.encode()):
            assert time.monotonic() < until
            time.sleep(0.01)
        return proc

    def gcs_server(self, session: str) -> Process:
        host = self.gcs.rpartition(":")[0]
        args = (f"--gcs_server_port={self.port}", f"--node-ip-address={host}", f"--session-dir={session}")
        proc = self.spawn("/opt/ray/gcs/gcs_server", str(self.port), *args, code=LISTEN)
        assert proc.stdout is not None
        assert proc.stdout.readline() == b"up\n"
        return proc

    def raylet(self, name: str, session: str, *more: str, node_id: str = "") -> Process:
        args = (f"--gcs-address={self.gcs}", f"--node-name={name}", f"--session_dir={session}")
        return self.spawn(
            "/opt/ray/raylet/raylet", *args, f"--node_id={node_id or os.urandom(28).hex()}", *more
        )

    def record(self, session: str) -> None:
        self.state.root.mkdir(parents=True, exist_ok=True)
        self.state.cluster.write_text(json.dumps({"gcs_address": self.gcs, "session_dir": session}))

    def run(self, script: str, *args: str) -> subprocess.CompletedProcess[str]:
        env = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "GRID_AGENT_", "PYTHONPATH"))}
        return subprocess.run(
            [sys.executable, str(PROJECT / "bootstrap" / script), "-c", str(self.file), *args],
            cwd=self.folder,
            env={**env, "XDG_STATE_HOME": str(self.folder / "state")},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=90,
            check=False,
        )


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    made = Place(tmp_path)
    yield made
    for proc in made.procs:
        proc.kill()
        proc.wait()
        if proc.stdout:
            proc.stdout.close()
    shutil.rmtree(OURS, ignore_errors=True)


def alive(*procs: Process) -> list[bool]:
    return [proc.poll() is None for proc in procs]


@pytest.mark.parametrize("recorded", [False, True])
@pytest.mark.parametrize("name", ["theirs", "own-head"])
def test_another_ray_on_our_port_is_named_and_left_alone(place: Place, name: str, recorded: bool) -> None:
    theirs = str(place.folder / "ray" / "session_2")
    if recorded:  # of a cluster of ours that ended long ago
        place.record(f"{OURS}/session_1")
    gcs = place.gcs_server(theirs)
    head = place.raylet(name, theirs, "--head")
    worker = place.raylet("own-w1", theirs)
    done = place.run("start.py", "--yes")
    assert done.returncode == 3, done
    [line] = done.stderr.splitlines()
    assert f"port {place.port} (ray.port) is taken by pid {gcs.pid} (gcs_server, user " in line
    assert "not this cluster" in line
    assert alive(gcs, head, worker) == [True] * 3
    dry = place.run("start.py", "--dry-run")
    assert f"pid {gcs.pid}" in dry.stderr
    assert "stays untouched" not in dry.stdout
    for args in (("--node", "own-w1"), ()):
        done = place.run("stop.py", *args)
        assert (done.returncode, done.stderr) == (0, "")
        assert alive(gcs, head, worker) == [True] * 3
    assert f"nothing of cluster {CLUSTER} is running" in done.stdout
    assert f"pid {gcs.pid} (gcs_server" in done.stdout


def test_another_head_without_a_gcs_is_named_too(place: Place) -> None:
    head = place.raylet("theirs", "/nowhere/session_2", "--head")
    done = place.run("start.py", "--yes")
    assert done.returncode == 3
    assert f"pid {head.pid} (raylet, user " in done.stderr
    assert alive(head) == [True]


def test_our_own_worker_is_ended_beside_another_ray_of_the_same_address_and_name(place: Place) -> None:
    gcs = place.gcs_server("/nowhere/session_2")
    other = place.raylet("own-w1", "/nowhere/session_2")
    ours = place.raylet("own-w1", f"{OURS}/session_1")
    done = place.run("stop.py")
    assert done.returncode == 0, done
    assert alive(gcs, other, ours) == [True, True, False]


def test_our_own_head_is_known_without_a_record(place: Place) -> None:
    session = f"{OURS}/session_1"
    gcs, head = place.gcs_server(session), place.raylet("own-head", session, "--head")
    worker, strange = place.raylet("own-w1", session), place.raylet("not-in-the-file", session)
    dry = place.run("start.py", "--dry-run")
    assert f"own-head runs already (pid {head.pid}) and stays untouched" in dry.stdout
    assert f"own-w1 runs already (pid {worker.pid}) and stays untouched" in dry.stdout
    assert "not-in-the-file" not in dry.stdout
    assert str(place.port) not in dry.stderr
    done = place.run("stop.py")
    assert done.returncode == 0, done
    assert alive(gcs, head, worker, strange) == [False] * 4  # what has joined our head ends with it


def test_our_own_head_is_known_by_the_record_in_any_folder(place: Place) -> None:
    place.record("/nowhere/session_7")
    gcs = place.gcs_server("/nowhere/session_7")
    head = place.raylet("own-head", "/nowhere/session_7", "--head")
    assert "own-head runs already" in place.run("start.py", "--dry-run").stdout
    assert place.run("stop.py").returncode == 0
    assert alive(gcs, head) == [False, False]


def test_a_gcs_that_an_interrupted_start_left_is_ended_by_stop(place: Place) -> None:
    gcs = place.gcs_server(f"{OURS}/session_1")
    done = place.run("start.py")
    assert done.returncode == 3
    assert "stop.py ends it" in done.stderr
    assert alive(gcs) == [True]
    assert place.run("stop.py").returncode == 0
    assert alive(gcs) == [False]


def test_live_workers_of_a_lost_head_are_ended_only_when_a_person_says_so(place: Place) -> None:
    worker = place.raylet("own-w1", f"{OURS}/session_1")
    dry = place.run("start.py", "--dry-run")
    assert f"own-w1 runs (pid {worker.pid}) and would be ended" in dry.stdout
    assert "stays untouched" not in dry.stdout
    done = place.run("start.py")
    assert done.returncode == 1
    [line] = done.stderr.splitlines()
    assert f"own-w1 (pid {worker.pid} on 127.0.0.1)" in line
    assert "start.py --yes" in line
    assert "stop.py" in line
    assert alive(worker) == [True]


def test_workers_of_another_cluster_are_no_workers_of_a_lost_head(place: Place) -> None:
    worker = place.raylet("own-w1", "/nowhere/session_2")
    done = place.run("start.py", "--yes")
    assert done.returncode == 3
    assert f"pid {worker.pid} (raylet" in done.stderr
    assert place.run("stop.py").returncode == 0
    assert alive(worker) == [True]


def test_stop_waits_for_a_repair_under_way(place: Place) -> None:
    import fcntl

    session = f"{OURS}/session_1"
    place.record(session)
    place.state.locks.mkdir()
    place.gcs_server(session)
    place.raylet("own-head", session, "--head")
    with place.state.node_lock("own-w1").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        stop = subprocess.Popen(
            [sys.executable, str(PROJECT / "bootstrap" / "stop.py"), "-c", str(place.file)],
            env={**os.environ, "XDG_STATE_HOME": str(place.folder / "state")},
            stdout=subprocess.DEVNULL,
        )
        try:
            until = time.monotonic() + 20
            while not place.state.stopped_node("own-w1").exists():
                assert time.monotonic() < until
                time.sleep(0.05)
            with pytest.raises(subprocess.TimeoutExpired):
                stop.wait(3)
            late = place.raylet("own-w1", session)  # what the repair has started
            fcntl.flock(lock, fcntl.LOCK_UN)
            assert stop.wait(30) == 0
        finally:
            stop.kill()
            stop.wait()
    assert alive(late) == [False]


# --- the rules, without processes ---

A = "10.0.0.1:6379"
SSH = (
    "cluster: c\nssh: {user: me}\nnodes: [{name: h, host: 10.0.0.1, role: head}, {name: w, host: 10.0.0.2}]\n"
)


def proof(tmp_path: Path, record: dict[str, Any], text: str = SSH) -> ownership.Proof:
    return ownership.Proof(loader.loads(text, "test"), None, record, 7, tmp_path)


def shown(**changes: Any) -> Raylet:
    return dataclasses.replace(Raylet("h", 5, "id", A, "/tmp/ray/session_1", True, 7), **changes)


Check = Callable[[ownership.Proof], bool]


@pytest.mark.parametrize(
    ("record", "raylet", "expected"),
    [
        ({}, shown(), False),  # Ray's default folder is everybody's
        ({"gcs_address": A, "session_dir": "/tmp/ray/session_1"}, shown(), True),
        ({"gcs_address": A, "head_node_id": "id"}, shown(session_dir="/x"), True),
        ({"gcs_address": A, "head_node_id": "id"}, shown(session_dir="/x", uid=8), False),
        ({"gcs_address": "10.0.0.1:1", "head_node_id": "id"}, shown(), False),
        ({"gcs_address": A, "head_node_id": None, "session_dir": None}, shown(node_id=""), False),
    ],
)
def test_with_ssh_the_record_is_the_proof(
    tmp_path: Path, record: dict[str, Any], raylet: Raylet, expected: bool
) -> None:
    assert proof(tmp_path, record).head(raylet) is expected


def test_a_named_folder_is_a_proof_only_with_the_name(tmp_path: Path) -> None:
    rule = proof(tmp_path, {}, SSH + "ray: {temp_dir: /data/mine}\n")
    assert rule.head(shown(session_dir="/data/mine/session_1"))
    assert not rule.head(shown(session_dir="/data/mine/session_1", name="other"))
    assert not rule.head(shown(session_dir="/data/session_1"))


def test_a_worker_elsewhere_is_ours_while_nobody_else_has_the_address(tmp_path: Path) -> None:
    worker = shown(name="w", head=False, uid=None, session_dir="/r/session_1")
    assert list(proof(tmp_path, {}).at(A, [worker]).raylets) == ["w"]
    assert proof(tmp_path, {}).at(A, [shown(), worker]).raylets == {}
    recorded = {"gcs_address": A, "session_dir": "/tmp/ray/session_1"}
    assert list(proof(tmp_path, recorded).at(A, [shown(), worker]).raylets) == ["h", "w"]
    assert proof(tmp_path, recorded).at(A, [shown(), shown(name="x", head=False)]).strangers == ()
