"""The lab itself: its hosts are apart as real ones are, and break as real ones do."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from config import loader
from tests.support import lab_ssh
from tests.support.cluster import BIN, ROOT, until
from tests.support.hosts import Lab

pytestmark = pytest.mark.hosts

CONNECT = "import socket, sys; socket.create_connection((sys.argv[1], 22), 1).close()"
LISTEN_ONCE = """
import socket, sys
held = socket.create_connection((sys.argv[1], 22), 2)
held.recv(100)
print("open", flush=True)
sys.stdin.read()
held.settimeout(0.5)
try:
    print("ended" if held.recv(100) == b"" else "data")
except OSError as error:
    print(type(error).__name__)
"""
COUNT = """
import socket
server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
server.bind(("", 5000))
print("ready", flush=True)
server.settimeout(5)
count = 0
try:
    while True:
        server.recv(100)
        server.settimeout(0.5)
        count += 1
except TimeoutError:
    print(count)
"""
SEND = """
import socket, sys, time
client = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
for number in range(1000):
    client.sendto(b"x", (sys.argv[1], 5000))
    time.sleep(0.0005)
"""
WHERE = """
import json, socket, sys
import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy as On
ray.init(address=sys.argv[1], log_to_driver=False)
where = ray.remote(num_cpus=1)(lambda: [socket.gethostname(), ray.util.get_node_ip_address()])
nodes = {n["NodeName"]: n["NodeID"] for n in ray.nodes()}
asked = {n: where.options(scheduling_strategy=On(i, soft=False)).remote() for n, i in nodes.items()}
print(json.dumps({name: ray.get(answer, timeout=40) for name, answer in asked.items()}))
"""


def python(lab: Lab, *code: str) -> list[str]:
    """The argv of a small program that starts fast."""
    return [str(lab.worker_bin / "python"), "-I", "-S", "-c", *code]


def reaches(lab: Lab, src: str, dst: str) -> bool:
    """Whether one host gets a connection to another's SSH port within a second."""
    return lab.hosts[src].run(python(lab, CONNECT, lab.hosts[dst].address)).returncode == 0


def test_the_head_logs_in_to_a_worker_with_strict_host_keys(lab: Lab) -> None:
    said = lab.head.run(lab.ssh("gpu1", "hostname; echo $HOME"))
    assert said.stdout.split() == ["gpu1", lab_ssh.ROOT_HOME], said.stderr
    said = lab.head.run(lab.ssh("gpu2", "id -un; cd; pwd; echo mine > x && cat x", user=lab_ssh.USER))
    assert said.stdout.split() == ["ray", "/home/ray", "mine"], said.stderr


def test_a_wrong_key_and_a_wrong_host_key_are_refused(lab: Lab) -> None:
    lab_ssh.make_key(lab.folder / "other", "other")
    refused = lab.head.run(lab.ssh("gpu1", "true", IdentityFile=str(lab.folder / "other")))
    assert "Permission denied (publickey)" in refused.stderr
    worker = lab.hosts["gpu2"]
    worker.stop_sshd()
    closed = lab.head.run(lab.ssh("gpu2", "true"))
    assert "Connection refused" in closed.stderr
    worker.change_host_key()
    worker.start_sshd()
    changed = lab.head.run(lab.ssh("gpu2", "true"))
    assert "REMOTE HOST IDENTIFICATION HAS CHANGED" in changed.stderr
    lab.write_known_hosts()
    assert lab.head.run(lab.ssh("gpu2", "true")).returncode == 0


def test_a_silent_ssh_server_accepts_and_says_nothing(lab: Lab) -> None:
    server = lab.hosts["gpu1"].sshd_pid()
    assert server
    lab.hosts["gpu1"].kill(server, signal.SIGSTOP)
    try:
        assert reaches(lab, "gpu-master", "gpu1")
        silent = lab.head.run(lab.ssh("gpu1", "true", ConnectTimeout="1"))
        assert "timed out during banner exchange" in silent.stderr
    finally:
        lab.hosts["gpu1"].kill(server, signal.SIGCONT)


def test_hosts_share_neither_processes_nor_files(lab: Lab) -> None:
    one, two = lab.hosts["gpu1"], lab.hosts["gpu2"]
    with one.popen(["sleep", "60"]) as sleeper:
        (pid,) = until(lambda: [p for p, argv in one.processes().items() if argv == ["sleep", "60"]], 5)
        listing = ["ps", "-eo", "pid,args"]
        assert f"{one.inner(pid)} sleep 60" in one.run(listing).stdout
        assert "sleep 60" not in two.run(listing).stdout
        with pytest.raises(AssertionError, match="is not on gpu2"):
            two.kill(pid)
        one.kill(pid)
        assert sleeper.wait(5) == -signal.SIGKILL
    for folder in ("/tmp", "/dev/shm", "/run", "/root"):
        name = f"{folder}/of-{lab.folder.name}"
        assert one.run(["touch", name]).returncode == 0
        assert two.run(["test", "-e", name]).returncode == 1
        assert not Path(name).exists()
    (lab.folder / "seen-by-all").touch()
    assert two.run(["test", "-e", str(lab.folder / "seen-by-all")]).returncode == 0
    on_worker = one.run([str(lab.worker_bin / "python"), "-c", "import grid_agent"])
    assert "No module named 'grid_agent'" in on_worker.stderr
    assert one.run(["find", str(ROOT), sys.prefix, "-mindepth", "1"]).stdout == ""
    on_head = lab.head.run([sys.executable, "-c", "import grid_agent"])
    assert on_head.returncode == 0, on_head.stderr


def test_a_command_that_takes_too_long_is_ended_with_its_children(lab: Lab) -> None:
    with pytest.raises(subprocess.TimeoutExpired):
        lab.head.run(["sh", "-c", "sleep 4321 & sleep 4321"], timeout_s=0.3)
    until(lambda: ["sleep", "4321"] not in lab.head.processes().values(), 5)


def test_a_zombie_is_seen_and_orphans_are_reaped(lab: Lab) -> None:
    host = lab.hosts["gpu2"]
    with host.popen(["sh", "-c", "sleep 0 & exec sleep 60"]) as careless:
        (zombie,) = until(host.zombies, 5)
        assert zombie not in host.processes()
        (parent,) = [pid for pid, argv in host.processes().items() if argv == ["sleep", "60"]]
        host.kill(parent)
        careless.wait(5)
    until(lambda: not host.zombies(), 5)


def test_a_cable_is_cut_and_healed(lab: Lab) -> None:
    assert reaches(lab, "gpu-master", "gpu1")
    lab.hosts["gpu1"].cut()
    assert not reaches(lab, "gpu-master", "gpu1")
    assert not reaches(lab, "gpu1", "gpu2")
    assert reaches(lab, "gpu-master", "gpu2")
    lab.hosts["gpu1"].heal()
    until(lambda: reaches(lab, "gpu-master", "gpu1"), 5)


def test_packets_are_dropped_one_way(lab: Lab) -> None:
    with lab.drop("gpu-master", "gpu1", "tcp", 22):
        assert not reaches(lab, "gpu-master", "gpu1")
        assert reaches(lab, "gpu1", "gpu-master")
        assert reaches(lab, "gpu2", "gpu1")
    assert reaches(lab, "gpu-master", "gpu1")
    with lab.drop("gpu1", "gpu-master"):
        assert not reaches(lab, "gpu1", "gpu-master")
        assert reaches(lab, "gpu1", "gpu2")


def test_loss_is_as_high_as_asked(lab: Lab) -> None:
    rules = lab.loss("gpu1", 30)
    counting = lab.hosts["gpu2"].popen(python(lab, COUNT), stdout=subprocess.PIPE)
    assert counting.stdout
    assert counting.stdout.readline() == "ready\n"
    lab.hosts["gpu1"].run(python(lab, SEND, lab.hosts["gpu2"].address))
    received = int(counting.communicate(timeout=10)[0])
    for rule in rules:
        rule.undo()
    assert 600 < received < 800


def test_power_goes_without_a_word_and_comes_back(lab: Lab) -> None:
    host = lab.hosts["gpu1"]
    host.run(["sh", "-c", "echo kept > /tmp/kept; echo lost > /dev/shm/lost"])
    pipe = subprocess.PIPE
    holder = lab.head.popen(python(lab, LISTEN_ONCE, host.address), stdin=pipe, stdout=pipe)
    assert holder.stdout
    assert holder.stdout.readline() == "open\n"
    dead = list(host.processes())
    host.power_off()
    assert holder.communicate("", timeout=10)[0] == "TimeoutError\n"
    assert not [pid for pid in dead if Path(f"/proc/{pid}").exists()]
    assert not reaches(lab, "gpu-master", "gpu1")
    host.power_on()
    said = lab.head.run(lab.ssh("gpu1", "cat /tmp/kept; ls /dev/shm"))
    assert said.stdout == "kept\n", said.stderr


def test_the_cluster_file_is_valid(lab: Lab) -> None:
    file = lab.write_cluster_file(nodes={"gpu2": {"can_repair": True}}, http={"port": 8001})
    settings = loader.load(file, {})
    assert [node.name for node in settings.workers if node.can_repair] == ["gpu2"]
    assert lab.head.run(["test", "-s", str(file)]).returncode == 0


def test_ray_runs_on_three_hosts_and_a_killed_raylet_leaves_no_zombie(lab: Lab) -> None:
    env = {"RAY_AUTH_MODE": "disabled"}
    small = ["--num-cpus=1", "--num-gpus=0", "--object-store-memory=80000000", "--disable-usage-stats"]
    address = f"{lab.head.address}:6379"
    me = [f"--node-ip-address={lab.head.address}", "--node-name=gpu-master", "--include-dashboard=false"]
    try:
        started = lab.head.run([str(BIN / "ray"), "start", "--head", "--port=6379", *me, *small], env=env)
        assert started.returncode == 0, started.stdout + started.stderr
        joining = []
        for name in ("gpu1", "gpu2"):
            me = [f"--node-ip-address={lab.hosts[name].address}", f"--node-name={name}"]
            ray = ["env", "RAY_AUTH_MODE=disabled", str(lab.worker_bin / "ray"), "start"]
            command = lab.ssh(name, *ray, f"--address={address}", *me, *small)
            joining.append(lab.head.popen(command, stdout=subprocess.DEVNULL))
        assert [process.wait(60) for process in joining] == [0, 0]
        asked = lab.head.run([sys.executable, "-c", WHERE, address], env=env)
        assert asked.returncode == 0, asked.stderr
        assert json.loads(asked.stdout) == {h.name: [h.name, h.address] for h in lab.hosts.values()}
        worker = lab.hosts["gpu1"]
        (raylet,) = worker.raylets()
        worker.kill(raylet)
        until(lambda: not Path(f"/proc/{raylet}").exists(), 5, every_s=0.02)
        until(lambda: not worker.zombies(), 5)
        assert [len(host.raylets()) for host in lab.hosts.values()] == [1, 0, 1]
    finally:
        for host in lab.hosts.values():
            host.reboot()
    assert all(len(host.processes()) == 1 for host in lab.hosts.values())
