"""What `grid-agent preflight` finds on real hosts, one fault after another: its line, and the exit code."""

import json
import platform
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from grid_agent.core.preflight import LEVEL
from grid_agent.edges.ssh_client import REMOTE_COMMAND
from tests.support import lab_ssh
from tests.support.cluster import BIN, until
from tests.support.hosts import Lab
from tests.support.lab_host import Host

pytestmark = pytest.mark.hosts

PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"
NODE_MANAGER, OBJECT_MANAGER = 6701, 6702
EVERY = {"ray", "clock", "ulimit", "disk", "shm", "memory", "gpus", "other ray", "ports"}
# What the host's shell is told to run, under a clock that goes 90 s ahead.
AHEAD = REMOTE_COMMAND.replace(
    "import sys;", "import sys,time;real=time.time;time.time=lambda:real()+90.0;", 1
)
HOLD = "import socket,time; s=socket.create_server(('', {})); print('held', flush=True); time.sleep(60)"


@pytest.fixture(autouse=True)
def whole_again(lab: Lab) -> Iterator[None]:
    """Keys and known hosts as they were, whatever a test has done to them."""
    keys = {name: host.path("/root/.ssh/authorized_keys").read_text() for name, host in lab.hosts.items()}
    known = lab.known_hosts.read_text()
    yield
    for name, host in lab.hosts.items():
        host.path("/root/.ssh/authorized_keys").write_text(keys[name])
    lab.known_hosts.write_text(known)


def preflight(lab: Lab, code: int, nodes: dict[str, dict[str, Any]] | None = None) -> dict[str, str]:
    """Runs it on the head: "node check" -> "status: detail"."""
    file = lab.write_cluster_file(nodes)
    said = lab.head.run([str(BIN / "grid-agent"), "preflight", "-c", str(file), "-o", "json"], timeout_s=120)
    assert said.returncode == code, said.stdout + said.stderr
    document = json.loads(said.stdout)
    assert document["exit_code"] == code
    return {f"{c['node']} {c['check']}": f"{c['status']}: {c['detail']}" for c in document["checks"]}


def failed(found: dict[str, str]) -> set[str]:
    return {name for name, text in found.items() if not text.startswith("pass")}


@contextmanager
def running(host: Host, argv: list[str], word: str) -> Iterator[None]:
    """A process of the host that has this word among its arguments; ended with the block."""

    def pids() -> list[int]:
        return [pid for pid, words in host.processes().items() if word in words and words[0] != "env"]

    with host.popen(argv, stdout=subprocess.PIPE) as started:
        try:
            until(pids, 20)
            time.sleep(0.5)  # until it listens
            yield
        finally:
            for pid in pids():
                host.kill(pid)
            started.communicate(timeout=10)


def test_all_is_well_and_in_time(lab: Lab) -> None:
    found = preflight(lab, 0)
    for name in lab.hosts:
        assert {check.partition(" ")[2] for check in found if check.startswith(f"{name} ")} >= EVERY
    assert found["gpu1 host key"] == "pass: is the known one"
    assert found["gpu2 ray"].endswith(f"Ray 2.60.0 on Python {platform.python_version()}")


def test_ports_that_are_dropped_one_way_between_head_and_workers(lab: Lab) -> None:
    to_gpu1 = lab.drop("gpu-master", "gpu1", "tcp", NODE_MANAGER)
    with to_gpu1, lab.drop("gpu2", "gpu-master", "tcp", 6379):
        found = preflight(lab, 3)
    assert failed(found) == {"gpu1 ports", "gpu2 ports"}
    gpu1, gpu2 = found["gpu1 ports"], found["gpu2 ports"]
    assert gpu1.startswith(f"fail: gpu-master cannot open {NODE_MANAGER} of gpu1 (no answer): open them")
    assert gpu2.startswith("fail: gpu2 cannot open 6379 of gpu-master (no answer): open them")


def test_a_port_that_is_dropped_between_two_workers(lab: Lab) -> None:
    with lab.drop("gpu1", "gpu2", "tcp", OBJECT_MANAGER):
        found = preflight(lab, 3)
    assert failed(found) == {"gpu2 ports"}
    assert f"gpu1 cannot open {OBJECT_MANAGER} of gpu2 (no answer)" in found["gpu2 ports"]


def test_a_changed_host_key_and_an_unknown_one(lab: Lab) -> None:
    other = lab_ssh.make_key(lab.folder / "other", "other")
    gpu1, gpu2 = lab.hosts["gpu1"], lab.hosts["gpu2"]
    lines = [line for line in lab.known_hosts.read_text().splitlines() if gpu2.address not in line]
    lines = [f"gpu1,{gpu1.address} {other}" if gpu1.address in line else line for line in lines]
    lab.known_hosts.write_text("\n".join(lines) + "\n")
    found = preflight(lab, 3)
    assert failed(found) == {"gpu1 host key", "gpu2 host key"}
    assert "somebody may be in between" in found["gpu1 host key"]
    assert "ssh-keyscan" in found["gpu2 host key"]


def test_a_refused_key_and_a_host_that_hangs_delay_nobody(lab: Lab) -> None:
    lab.hosts["gpu1"].path("/root/.ssh/authorized_keys").write_text("")
    server = lab.hosts["gpu2"].sshd_pid()
    assert server
    lab.hosts["gpu2"].kill(server, signal.SIGSTOP)
    began = time.monotonic()
    try:
        found = preflight(lab, 3)
    finally:
        lab.hosts["gpu2"].kill(server, signal.SIGCONT)
    assert failed(found) == {"gpu1 ssh", "gpu2 ssh"}
    assert "does not accept this user with this key" in found["gpu1 ssh"]
    assert "No connection in time" in found["gpu2 ssh"]
    assert found["gpu-master disk"].startswith("pass")
    assert time.monotonic() - began < 30  # one timeout of 5 s, and a busy machine


def test_another_ray_and_none(lab: Lab) -> None:
    folder = lab.hosts["gpu1"].path("/root/other")
    info = folder / "lib" / f"python{PYTHON}" / "site-packages" / "ray-2.59.1.dist-info"
    info.mkdir(parents=True)
    (folder / "bin").mkdir()
    (folder / "bin" / "ray").write_text("#!/bin/sh\n")
    (folder / "bin" / "ray").chmod(0o755)
    try:
        found = preflight(
            lab,
            3,
            {"gpu1": {"ray_bin": f"{lab_ssh.ROOT_HOME}/other/bin"}, "gpu2": {"ray_bin": "/nowhere"}},
        )
    finally:
        shutil.rmtree(folder)
    assert failed(found) == {"gpu1 ray", "gpu2 ray"}
    assert f"is Ray 2.59.1 on Python {PYTHON}; the head has Ray 2.60.0" in found["gpu1 ray"]
    assert "there is no `ray` command" in found["gpu2 ray"]


def test_another_last_digit_of_python_is_refused_as_ray_does(lab: Lab) -> None:
    nodes = {}
    for name, env in (("gpu1", {}), ("gpu2", {LEVEL: "minor"})):
        folder = lab.hosts[name].path("/root/patch")
        (folder / "lib" / f"python{PYTHON}" / "site-packages" / "ray-2.60.0.dist-info").mkdir(parents=True)
        (folder / "bin").mkdir()
        for command, script in (("ray", "#!/bin/sh\n"), ("python3", f"#!/bin/sh\necho {PYTHON}.99\n")):
            (folder / "bin" / command).write_text(script)
            (folder / "bin" / command).chmod(0o755)
        nodes[name] = {"ray_bin": f"{lab_ssh.ROOT_HOME}/patch/bin", "env": env}
    try:
        found = preflight(lab, 3, nodes)
    finally:
        for name in nodes:
            shutil.rmtree(lab.hosts[name].path("/root/patch"))
    assert failed(found) == {"gpu1 ray"}
    assert f"Python {PYTHON}.99; the head has Ray 2.60.0" in found["gpu1 ray"]
    assert "Ray lets no other join" in found["gpu1 ray"]
    assert f"{LEVEL} lets it join" in found["gpu2 ray"]


def test_a_full_disk_and_few_files(lab: Lab) -> None:
    gpu1 = lab.hosts["gpu1"]
    keys = lab.hosts["gpu2"].path("/root/.ssh/authorized_keys")
    keys.write_text(f'command="ulimit -n 512; eval \\"$SSH_ORIGINAL_COMMAND\\"" {keys.read_text()}')
    gpu1.run(["mkdir", "-p", "/tmp/full"])
    assert gpu1.run(["mount", "-t", "tmpfs", "-o", "size=64k", "full", "/tmp/full"]).returncode == 0
    try:
        found = preflight(lab, 3, {"gpu1": {"temp_dir": "/tmp/full/ray"}})
    finally:
        gpu1.run(["umount", "/tmp/full"])
    assert failed(found) == {"gpu1 disk", "gpu2 ulimit"}
    assert "MiB free of 1 " in found["gpu1 disk"] or "MiB free of 0" in found["gpu1 disk"]
    assert "512 open files (hard limit 512): Ray runs out of them" in found["gpu2 ulimit"]


def test_a_small_dev_shm_and_little_memory_only_warn(lab: Lab) -> None:
    """/dev/shm is real; memory is the machine's own: only what the host reads of it can be changed."""
    gpu1, gpu2 = lab.hosts["gpu1"], lab.hosts["gpu2"]
    assert gpu1.run(["mount", "-t", "tmpfs", "-o", "size=16m", "small", "/dev/shm"]).returncode == 0
    gpu2.path("/tmp/meminfo").write_text("MemTotal: 64000000 kB\nMemAvailable: 3200000 kB\n")
    assert gpu2.run(["mount", "--bind", "/tmp/meminfo", "/proc/meminfo"]).returncode == 0
    try:
        found = preflight(lab, 1)
    finally:
        gpu1.run(["umount", "/dev/shm"])
        gpu2.run(["umount", "/proc/meminfo"])
    assert failed(found) == {"gpu1 shm", "gpu2 memory"}
    assert "16 MiB" in found["gpu1 shm"]
    assert "object_store_memory_mb" in found["gpu1 shm"]
    assert "3125 MiB available" in found["gpu2 memory"]


def test_a_clock_that_is_ahead_and_gpus_that_are_not_there_only_warn(lab: Lab) -> None:
    keys = lab.hosts["gpu1"].path("/root/.ssh/authorized_keys")
    quoted = AHEAD.replace("\\", "\\\\").replace('"', '\\"')
    keys.write_text(f'command="{quoted}" {keys.read_text()}')
    found = preflight(lab, 1, {"gpu2": {"num_gpus": 2}})
    assert failed(found) == {"gpu1 clock", "gpu2 gpus"}
    seconds = float(found["gpu1 clock"].partition("at least ")[2].split()[0])
    assert 60 < seconds <= 90
    assert "ahead of the head's: run an NTP client" in found["gpu1 clock"]
    assert "0 seen by NVML" in found["gpu2 gpus"]


def test_a_strangers_raylet_and_a_port_that_is_held(lab: Lab) -> None:
    gpu1, gpu2 = lab.hosts["gpu1"], lab.hosts["gpu2"]
    python = str(lab.worker_bin / "python")
    words = ["/x/raylet", "-c", "import time; time.sleep(60)", "--gcs-address=10.9.9.9:6379"]
    disguise = f"import os; os.execv({python!r}, {words!r})"
    hold = HOLD.format(OBJECT_MANAGER)
    with running(gpu1, [python, "-c", disguise], "/x/raylet"), running(gpu2, [python, "-c", hold], hold):
        found = preflight(lab, 3)
    assert failed(found) == {"gpu1 other ray", "gpu2 ports"}
    assert "another cluster's raylet pid" in found["gpu1 other ray"]
    assert "10.9.9.9:6379" in found["gpu1 other ray"]
    assert f"cannot be used there: {OBJECT_MANAGER} (in use)" in found["gpu2 ports"]


def test_the_rules_that_are_printed_let_everything_pass_and_nothing_else(lab: Lab) -> None:
    gpu1, file = lab.hosts["gpu1"], lab.write_cluster_file()
    said = lab.head.run([str(BIN / "grid-agent"), "ports", "-c", str(file), "--nft", "gpu1"])
    rules = lab.folder / "rules.nft"
    rules.write_text(said.stdout)
    applied = gpu1.run(["nft", "-f", str(rules)])
    assert applied.returncode == 0, applied.stderr
    closed = f"import socket; socket.create_connection(({gpu1.address!r}, {OBJECT_MANAGER}), 1)"
    try:
        assert failed(preflight(lab, 0)) == set()
        gpu1.run(["nft", "flush", "chain", "inet", "grid_agent", "input"])
        drop = f"tcp dport {OBJECT_MANAGER} drop"
        gpu1.run(["nft", "add", "rule", "inet", "grid_agent", "input", *drop.split()])
        assert "TimeoutError" in lab.head.run([sys.executable, "-I", "-S", "-c", closed]).stderr
        assert failed(preflight(lab, 3)) == {"gpu1 ports"}
    finally:
        gpu1.run(["nft", "delete", "table", "inet", "grid_agent"])
