"""The command and the environment of a node: what the file says and nothing else."""

import json
import sys
from pathlib import Path

import pytest

from config import loader
from grid_agent.core import raystart

FOLDER = str(Path(sys.executable).parent)
ONE_MACHINE = """
cluster: mine
nodes:
  - {name: h, host: 127.0.0.1, role: head, num_cpus: 0}
  - {name: w, host: 127.0.0.1, num_cpus: 2, num_gpus: 0, labels: {rack: a, zone: z}, resources: {nvme: 2},
     object_store_memory_mb: 80, env: {NCCL_DEBUG: WARN}}
  - {name: bare, host: 127.0.0.1}
"""
HOSTS = """
cluster: mine
ssh: {user: me%s}
nodes:
  - {name: h, host: 10.0.0.1, role: head}
  - {name: w, host: 10.0.0.2%s}
"""


@pytest.fixture
def one():
    return loader.loads(ONE_MACHINE, "test")


def hosts(ssh="", node=""):
    return loader.loads(HOSTS % (ssh, node), "test")


def test_the_head(one):
    argv = raystart.head_argv(
        one, node_ip="192.0.2.2", temp_dir="/tmp/r", client_port=10001, system_config={"b": 1, "a": 2}
    )
    assert argv[:3] == [f"{FOLDER}/ray", "start", "--head"]
    assert {
        "--port=6379",
        "--node-name=h",
        "--node-ip-address=192.0.2.2",
        "--num-cpus=0",
        "--temp-dir=/tmp/r",
        "--dashboard-host=127.0.0.1",
        "--dashboard-port=8265",
        "--no-monitor",
        "--ray-client-server-port=10001",
        '--system-config={"a": 2, "b": 1}',
        "--labels=grid-agent/role=head",
    } <= set(argv)


def test_a_worker_with_everything(one):
    argv = raystart.worker_argv(one, one.workers[0])
    assert argv[:3] == [f"{FOLDER}/ray", "start", "--address=127.0.0.1:6379"]
    assert {
        "--node-name=w",
        "--node-ip-address=127.0.0.1",
        "--num-cpus=2",
        "--num-gpus=0",
        "--labels=rack=a,zone=z",
        f"--object-store-memory={80 * 1024 * 1024}",
        "--include-log-monitor=False",
        "--dashboard-agent-listen-port=0",
    } <= set(argv)
    resources = next(flag for flag in argv if flag.startswith("--resources="))
    assert json.loads(resources.partition("=")[2]) == {"nvme": 2}


def test_what_the_file_leaves_out_is_left_to_ray(one):
    argv = " ".join(raystart.worker_argv(one, one.workers[1]))
    for flag in (
        "--num-cpus",
        "--num-gpus",
        "--labels",
        "--resources",
        "--object-store",
        "--temp-dir",
        "--system",
    ):
        assert flag not in argv


def test_a_given_gcs_address_wins(one):
    assert "--address=192.0.2.1:6379" in raystart.worker_argv(one, one.workers[0], "192.0.2.1:6379")


@pytest.mark.parametrize(
    ("ssh", "node", "command"),
    [
        ("", "", "ray"),
        (", ray_bin: /opt/r", "", "/opt/r/ray"),
        (", ray_bin: /opt/r", ", ray_bin: /n", "/n/ray"),
    ],
)
def test_the_command_on_other_hosts(ssh, node, command):
    found = hosts(ssh, node)
    assert raystart.worker_argv(found, found.workers[0])[0] == command
    assert raystart.ray_folder(found, found.head) == FOLDER
    assert "--include-log-monitor=False" not in raystart.worker_argv(found, found.workers[0])


def test_an_ipv6_head():
    found = loader.loads("cluster: c\nnodes: [{name: h, host: '::1', role: head}]", "test")
    assert raystart.connect_address(found) == "[::1]:6379"


def test_the_environment_is_an_allow_list(one):
    base = {
        "PATH": "/usr/bin:/bin",
        "HOME": "/h",
        "RAY_JOB_ID": "1",
        "AWS_SECRET_ACCESS_KEY": "x",
        "LANG": "C",
    }
    env = raystart.node_env(one, one.workers[0], base)
    assert env == raystart.STORE_CONNECT | {
        "PATH": f"{FOLDER}:/usr/bin:/bin",
        "HOME": "/h",
        "LANG": "C",
        "NCCL_DEBUG": "WARN",
        "RAY_gcs_server_request_timeout_seconds": "60",
        "RAY_AUTH_MODE": "disabled",
        "RAY_USAGE_STATS_ENABLED": "0",
    }


def test_token_mode_names_the_file():
    found = hosts()
    env = raystart.node_env(found, found.head, {}, "/s/ray_token")
    assert (env["RAY_AUTH_MODE"], env["RAY_AUTH_TOKEN_PATH"]) == ("token", "/s/ray_token")
    with pytest.raises(ValueError, match="token"):
        raystart.node_env(found, found.head, {})
