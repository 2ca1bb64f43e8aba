"""Starting a worker without the command line: the same node as with it, and the command where in doubt."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from config import loader
from config.settings import Settings
from grid_agent.core import raystart
from grid_agent.edges import ray_start
from grid_agent.edges.host import program, starter
from grid_agent.edges.transports import start_program

ENV = {"PATH": "/usr/bin:/bin", "RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}
MACHINE = """
cluster: here
nodes:
  - {name: head, role: head, host: 127.0.0.1}
  - {name: w, host: 127.0.0.1, num_cpus: 2, num_gpus: 0, object_store_memory_mb: 80}
"""
HOSTS = """
cluster: there
nodes:
  - {name: head, role: head, host: 10.0.0.1}
  - name: w
    host: 10.0.0.2
    num_cpus: 2
    num_gpus: 1
    temp_dir: /big/ray
    resources: {fast: 2, disk-space: 5}
    labels: {rack: r1, zone: z.2}
  - {name: bare, host: gpu.example.org}
ssh: {user: me}
"""
# What Ray's Node would be given: by the command for "command", else by us. Nothing is started.
RECORD = """
import json, sys
from ray._private import node, utils
class Recorded:
    def __init__(self, given, **more):
        kept = {k: v for k, v in vars(given).items() if k != "resource_isolation_config"}
        kept["isolation"] = vars(given.resource_isolation_config)
        print("FOUND", json.dumps([kept, more], default=str, sort_keys=True))
    def get_temp_dir_path(self):
        return "/where"
node.Node = Recorded
utils.write_ray_address = lambda *given: print("FOUND", json.dumps(given))
if sys.argv[1] == "command":
    from ray.scripts.scripts import start
    start.main(args=sys.argv[5:], standalone_mode=False)
else:
    source = open(sys.argv[2]).read()
    sys.argv[1:] = sys.argv[3:]
    exec(compile(source, "ray_start", "exec"), {"__name__": "__main__"})
"""


def settings(text: str) -> Settings:
    return loader.loads(text, "cluster.yaml", {})


def command(text: str, name: str) -> list[str]:
    found = settings(text)
    node = next(node for node in found.nodes if node.name == name)
    return raystart.worker_argv(found, node, "127.0.0.1:6379")


def recorded(how: str, argv: list[str], word: str = "go\n") -> list[Any]:
    """What Ray is given by one of the two ways."""
    asked = [sys.executable, "-c", RECORD, how, ray_start.__file__, "/bin/false", *argv[1:]]
    said = subprocess.run(asked, env=ENV, input=word, capture_output=True, text=True, timeout=60, check=False)
    assert said.returncode == 0, said.stderr
    return [json.loads(line[6:]) for line in said.stdout.splitlines() if line.startswith("FOUND ")]


@pytest.mark.parametrize(("text", "name"), [(MACHINE, "w"), (HOSTS, "w"), (HOSTS, "bare")])
def test_ray_is_given_what_the_command_would_give_it(text: str, name: str) -> None:
    argv = command(text, name)
    by_command, by_us = recorded("command", argv), recorded("ours", argv)
    assert len(by_command) == 2, by_command  # the node, and the address that was written down
    assert by_us == by_command


def ran(argv: list[str], tmp_path: Path, word: str = "go\n", **env: str) -> str:
    """What the command says that is run in the end: a stand-in for `ray`."""
    ray = tmp_path / "ray"
    ray.write_text('#!/bin/sh\necho "the command: $*"; cat\n')
    ray.chmod(0o755)
    said = subprocess.run(
        [sys.executable, "-c", starter.LOADER, str(ray), "start", *argv],
        input=f"{len(start_program().encode())}\n{start_program()}{word}",
        env={**ENV, **env},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (said.returncode, said.stderr) == (0, "")
    return said.stdout


GOOD = ["--address=127.0.0.1:1", "--node-name=w"]


@pytest.mark.parametrize(
    "flags",
    [
        ["--address=127.0.0.1:1"],
        [*GOOD, "--block"],
        [*GOOD, "--num-cpus=two"],
        [*GOOD, "--resources=[1]"],
        [*GOOD, "--resources={"],
        [*GOOD, "--include-log-monitor=perhaps"],
        [*GOOD, "--labels=no-value"],
        [*GOOD, "--node-manager-port=7000", "--object-manager-port=7000", "--num-cpus"],
        ["--head", "--node-name=w"],
    ],
)
def test_what_is_not_known_here_is_left_to_the_command(flags: list[str], tmp_path: Path) -> None:
    assert ran(flags, tmp_path) == f"the command: start {' '.join(flags)}\n"


@pytest.mark.parametrize("word", ["", "no\n"])
def test_without_the_word_nothing_is_started(tmp_path: Path, word: str) -> None:
    assert ran([*GOOD, "--block"], tmp_path, word) == ""
    assert recorded("ours", ["ray", "start", *GOOD], word) == []


def test_a_hook_of_others_gets_the_command(tmp_path: Path) -> None:
    assert ran(GOOD, tmp_path, RAY_START_HOOK="a.b").startswith("the command: start --address")


def test_another_minor_version_of_ray_gets_the_command(tmp_path: Path) -> None:
    (tmp_path / "lib" / "ray").mkdir(parents=True)
    (tmp_path / "lib" / "ray" / "__init__.py").write_text('__version__ = "2.61.0"\n')
    said = ran(GOOD, tmp_path, PYTHONPATH=str(tmp_path / "lib"))
    assert said.startswith("the command: start --address")


# --- on the host ---


def entry_point(folder: Path, first: str, more: str = "from ray.scripts.scripts import main\n") -> str:
    script = folder / "ray"
    script.write_text(f"{first}\n{more}")
    script.chmod(0o755)
    return str(script)


def test_the_python_of_an_entry_point_is_found(tmp_path: Path) -> None:
    ray = entry_point(tmp_path, f"#!{sys.executable}")
    assert starter.own_python(ray, {}) == sys.executable
    assert starter.own_python("ray", {"PATH": str(tmp_path)}) == sys.executable


@pytest.mark.parametrize(
    ("first", "more"),
    [
        (f"#!{sys.executable}", "print('a wrapper of somebody')\n"),
        ("#!/bin/sh", "from ray.scripts.scripts import main\n"),
        ("#!/usr/bin/env python3", "from ray.scripts.scripts import main\n"),
        ("from ray.scripts.scripts import main", ""),
        ("", ""),
    ],
)
def test_anything_else_is_run_as_it_is(tmp_path: Path, first: str, more: str) -> None:
    assert starter.own_python(entry_point(tmp_path, first, more), {}) is None


def test_a_command_that_is_not_there_has_no_python(tmp_path: Path) -> None:
    assert starter.own_python(str(tmp_path / "ray"), {}) is None


def test_a_failing_start_says_what_ray_said(tmp_path: Path) -> None:
    """Through the whole of the host's program, with the real Ray, which finds no token."""
    log = tmp_path / "w.log"
    answer = program.handle(
        {
            "op": "start",
            "argv": [str(Path(sys.executable).parent / "ray"), "start", *GOOD],
            "env": {**ENV, "RAY_AUTH_MODE": "token", "HOME": str(tmp_path)},
            "program": start_program(),
            "log": str(log),
            "lock": str(tmp_path / "w.lock"),
            "timeout_s": 30,
            "node_name": "w",
            "gcs_address": "127.0.0.1:1",
        }
    )
    assert answer["error"] == "auth"
    assert "token" in answer["detail"]
    assert 'File "ray_start"' in log.read_text()  # said by ours, not by the command
    assert 'File "' not in answer["detail"]  # the frames are in the log, and it says so
    assert f"(the whole of it: {log} on that host)" in answer["detail"]


TOLD = """
import pathlib, sys
folder = pathlib.Path(sys.argv[1]).parent
(folder / "loaded").touch()
(folder / ("told" if sys.stdin.buffer.readline() == b"go\\n" else "left")).touch()
"""


def after(first: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The answer to this step and then a start, by a program that writes down what it was told."""
    ray = entry_point(folder, f"#!{sys.executable}")
    start = {
        "op": "start",
        "argv": [ray, "start", *GOOD],
        "env": ENV,
        "program": TOLD,
        "log": str(folder / "w.log"),
        "lock": str(folder / "w.lock"),
        "timeout_s": 30,
        "node_name": "w",
        "gcs_address": "127.0.0.1:1",
    }
    return program.handle({"op": "steps", "requests": [first, {"op": "steps", "requests": [start]}]})


def test_a_start_after_a_step_that_failed_has_loaded_and_is_not_told(tmp_path: Path) -> None:
    failing = {"op": "end", "gcs_address": "127.0.0.1:1"}  # of nobody
    assert after(failing, tmp_path)["error"] == "bad_request"
    assert {file.name for file in tmp_path.iterdir()} == {"ray", "w.lock", "loaded", "left"}  # nor a new log


def test_a_start_after_a_step_that_went_well_is_told_to_go_on(tmp_path: Path) -> None:
    ending = {"op": "end", "gcs_address": "127.0.0.1:1", "node_id": "ab" * 28}
    answer = after(ending, tmp_path)
    assert "no such raylet runs" in answer["detail"]
    assert {file.name for file in tmp_path.iterdir()} == {"ray", "w.log", "w.lock", "loaded", "told"}
