"""Hosts that cannot be logged in to, or should not be: the right words, and nothing executed. No Ray runs."""

import json
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support import lab_ssh
from tests.support.cluster import ROOT
from tests.support.hosts import Lab

pytestmark = pytest.mark.hosts
START_ONE = """
import asyncio, json, pathlib, sys
from config import loader
from config.paths import StatePaths
from grid_agent.core import raystart
from grid_agent.core.startrequest import start_request
from grid_agent.edges.transports import Transports, start_program, versions_here
settings, state = loader.load(sys.argv[1], {}), StatePaths(pathlib.Path("/nowhere"))
node = next(n for n in settings.nodes if n.name == "gpu1")
argv = raystart.worker_argv(settings, node, "10.77.0.10:6379")
env = raystart.own_env(settings, node, {}, state)
more = {"gcs_address": "10.77.0.10:6379", "state": state, "timeout_s": 9, "lock_wait_s": 1}
more |= {"versions": versions_here(), "program": start_program()}
request = start_request(settings, node, argv=argv, env=env, **more)
print(json.dumps(asyncio.run(Transports(settings, state)("gpu1").call(request, 20))))
"""


@pytest.fixture(autouse=True)
def whole_again(lab: Lab) -> Iterator[None]:
    """Keys and servers as they were, whatever a test has done to them."""
    keys = {name: host.path("/root/.ssh/authorized_keys").read_text() for name, host in lab.hosts.items()}
    known = lab.known_hosts.read_text()
    yield
    for name, host in lab.hosts.items():
        host.path("/root/.ssh/authorized_keys").write_text(keys[name])
        shutil.rmtree(host.path("/root/.local"), ignore_errors=True)
    lab.known_hosts.write_text(known)


def look(lab: Lab, nodes: dict[str, dict[str, Any]] | None = None, **more: Any) -> Any:
    """`start.py --dry-run`: it asks every host what runs there, and starts nothing."""
    return start_dry(lab, lab.write_cluster_file(nodes, **more))


def start_dry(lab: Lab, file: Path, *by: str) -> Any:
    """The same with this file, run by a command if one is given."""
    start = [*by, sys.executable, str(ROOT / "bootstrap" / "start.py"), "-c", str(file), "--dry-run"]
    said = lab.head.run(start)
    assert not lab.head.path("/root/.local/state").exists()
    return said


def said_of(lab: Lab, name: str, **more: Any) -> str:
    """What is said of one host; all others answer."""
    done = look(lab, **more)
    assert done.returncode == 0, done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"warning: {name} could not be asked: root@{lab.hosts[name].address}:22: "), line
    return str(line)


def test_every_host_answers(lab: Lab) -> None:
    done = look(lab)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_host_with_another_key(lab: Lab) -> None:
    other = lab_ssh.make_key(lab.folder / "other", "other")
    gpu1 = lab.hosts["gpu1"]
    lines = lab.known_hosts.read_text().splitlines()
    mine = [f"gpu1,{gpu1.address} {other}" if gpu1.address in line else line for line in lines]
    lab.known_hosts.write_text("\n".join(mine) + "\n")
    assert "somebody may be in between" in said_of(lab, "gpu1")


def test_a_host_that_is_not_known(lab: Lab) -> None:
    gpu2 = lab.hosts["gpu2"]
    known = [line for line in lab.known_hosts.read_text().splitlines() if gpu2.address not in line]
    lab.known_hosts.write_text("\n".join(known) + "\n")
    assert "not in the known hosts file" in said_of(lab, "gpu2")


def test_a_key_that_was_revoked(lab: Lab) -> None:
    lab.hosts["gpu1"].path("/root/.ssh/authorized_keys").write_text("")
    assert "does not accept this user with this key" in said_of(lab, "gpu1")


def test_stop_names_the_host_it_could_not_reach(lab: Lab) -> None:
    lab.hosts["gpu1"].path("/root/.ssh/authorized_keys").write_text("")
    file = lab.write_cluster_file()
    done = lab.head.run([sys.executable, str(ROOT / "bootstrap" / "stop.py"), "-c", str(file)])
    assert done.returncode == 3
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: gpu1: root@10.77.0.11:22: ")


def test_each_way_of_not_being_there_has_its_own_words(lab: Lab) -> None:
    """Packets dropped, no server, no route, no such name: all asked in one look."""
    file = lab.write_cluster_file()
    spec = json.loads(file.read_text())
    more = {"away": "10.99.0.1", "typo": "no-such-host.invalid"}
    spec["nodes"] += [{"name": name, "host": host} for name, host in more.items()]
    file.write_text(json.dumps(spec))
    gpu2 = lab.hosts["gpu2"]
    gpu2.stop_sshd()
    try:
        with lab.drop("gpu-master", "gpu1", "tcp", 22):
            done = start_dry(lab, file)
    finally:
        gpu2.start_sshd()
    said = dict(line.removeprefix("warning: ").split(" ", 1) for line in done.stderr.splitlines())
    assert "No connection in time. The machine is down, or a firewall" in said["gpu1"]
    assert "nothing listens on this port. Check that sshd runs" in said["gpu2"]
    assert "Nothing answers at this address" in said["away"]
    assert "This name is unknown here" in said["typo"]


def test_the_users_own_jump_host_and_agent_are_used(lab: Lab) -> None:
    """gpu2 by way of gpu1, by ~/.ssh/config; the key is only in an agent."""
    config = lab.head.path("/root/.ssh/config")
    config.write_text(
        f"Host {lab.hosts['gpu2'].address}\n  ProxyJump root@{lab.hosts['gpu1'].address}\n"
        f"Host *\n  UserKnownHostsFile {lab.known_hosts}\n"
    )
    file = lab.write_cluster_file()
    spec = json.loads(file.read_text())
    del spec["ssh"]["key_file"]
    file.write_text(json.dumps(spec))
    try:
        with lab.drop("gpu-master", "gpu2", "tcp", 22):
            without = start_dry(lab, file)
            done = start_dry(lab, file, "ssh-agent", "sh", "-c", f'ssh-add -q {lab.key} && exec "$@"', "sh")
    finally:
        config.unlink()
    assert without.stderr.count("does not accept this user with this key") == 2
    assert (done.returncode, done.stderr) == (0, "")


def test_another_version_of_ray_is_refused_before_it_runs(lab: Lab) -> None:
    other = lab.folder / "older"
    (other / "lib/python3.11/site-packages/ray-2.59.0.dist-info").mkdir(parents=True, exist_ok=True)
    (other / "bin").mkdir(exist_ok=True)
    (other / "bin" / "ray").write_text("#!/bin/sh\ntouch /tmp/pwned\n")
    (other / "bin" / "ray").chmod(0o755)
    file = lab.write_cluster_file({"gpu1": {"ray_bin": str(other / "bin")}}, ray={"auth": "disabled"})
    said = lab.head.run([sys.executable, "-c", START_ONE, str(file)], env={"PYTHONPATH": str(ROOT)})
    answer = json.loads(said.stdout)
    assert answer["error"] == "version"
    assert "is Ray 2.59.0 on Python 3.11; the head has Ray 2.60" in answer["detail"]
    assert not lab.hosts["gpu1"].path("/tmp/pwned").exists()


def test_a_server_that_accepts_and_says_nothing(lab: Lab) -> None:
    server = lab.hosts["gpu1"].sshd_pid()
    assert server
    lab.hosts["gpu1"].kill(server, signal.SIGSTOP)
    try:
        assert "No connection in time" in said_of(lab, "gpu1")
    finally:
        lab.hosts["gpu1"].kill(server, signal.SIGCONT)


def test_a_host_that_talks_without_end(lab: Lab) -> None:
    keys = lab.hosts["gpu2"].path("/root/.ssh/authorized_keys")
    keys.write_text(f'command="yes grid-agent" {keys.read_text()}')
    began = time.monotonic()
    assert "What came back is no answer" in said_of(lab, "gpu2")
    assert time.monotonic() - began < 20


def test_a_host_without_python(lab: Lab) -> None:
    keys = lab.hosts["gpu2"].path("/root/.ssh/authorized_keys")
    keys.write_text(f'command="exec no-such-command" {keys.read_text()}')
    assert "Install python3" in said_of(lab, "gpu2")


def test_a_path_is_never_a_command(lab: Lab) -> None:
    trap = "/$(touch /tmp/pwned);`id>/tmp/pwned`"
    node = {"ray_bin": trap, "temp_dir": trap, "env": {"X": f"$(touch /tmp/pwned)\"'; {trap}"}}
    file = lab.write_cluster_file({"gpu1": node}, ray={"auth": "disabled"})
    said = lab.head.run([sys.executable, "-c", START_ONE, str(file)], env={"PYTHONPATH": str(ROOT)})
    answer = json.loads(said.stdout)
    assert answer["error"] == "no_ray"
    assert trap in answer["detail"]
    for host in lab.hosts.values():
        assert not host.path("/tmp/pwned").exists()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("name", "gpu1;touch /tmp/pwned"),
        ("host", "-oProxyCommand=touch${IFS}/tmp/pwned"),
        ("ssh_user", "-oProxyCommand=touch /tmp/pwned"),
        ("ray_bin", "/opt\n/ray"),
    ],
)
def test_what_could_be_an_option_is_refused_at_load(lab: Lab, key: str, value: str) -> None:
    done = look(lab, {"gpu1": {key: value}})
    assert done.returncode == 2
    assert key in done.stderr
    assert not lab.head.path("/tmp/pwned").exists()


def test_hosts_are_always_checked(lab: Lab) -> None:
    ssh = json.loads(lab.write_cluster_file().read_text())["ssh"]
    done = look(lab, ssh={**ssh, "known_hosts_file": None})
    assert done.returncode == 2
    assert "known_hosts_file" in done.stderr
