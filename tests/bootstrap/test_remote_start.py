"""What a start on another host asks of it: its own home folder, the head's versions, a secret kept."""

import json
import os
import stat
import sys
from pathlib import Path

import pytest

from config import loader, paths
from grid_agent import repair_plan
from grid_agent.core import messages as m
from grid_agent.core import raystart, startrequest
from grid_agent.core.model import Belief, NodeBelief
from grid_agent.core.terms import State
from grid_agent.edges import hosts
from grid_agent.edges.host import program
from grid_agent.edges.hosts import LocalHost, SshHost, with_token
from grid_agent.edges.transports import Transports, start_program, target, versions_here
from grid_agent.policy import policy_of
from grid_agent.repair_plan import RepairPlan

GCS = "192.0.2.77:6379"
TEXT = """
cluster: mine
ssh: {user: me, port: 2200, key_file: ~/.ssh/id}
ray: {auth: AUTH}
nodes:
  - {name: h, host: 192.0.2.77, role: head}
  - {name: w, host: 10.0.0.2, temp_dir: ~/r, ray_bin: ~/venv/bin, env: {CACHE: ~/cache}}
  - {name: n, host: gpu7.example.com, ssh_user: other, ssh_port: 22}
"""


def settings(auth="token"):
    return loader.loads(TEXT.replace("AUTH", auth), "test")


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A home folder with a `ray` of given versions that writes down how it was called."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("LANG", "C.UTF-8")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "stray")

    def make(ray: str = "2.60.0", python: str = "3.11", exit_text: str = "boom", folder: str = "venv"):
        bin_folder = tmp_path / folder / "bin"
        bin_folder.mkdir(parents=True)
        (tmp_path / folder / "lib" / f"python{python}" / "site-packages" / f"ray-{ray}.dist-info").mkdir(
            parents=True
        )
        script = bin_folder / "ray"
        script.write_text(
            f"#!{sys.executable} -SE\nimport json, os, sys\n"
            f"json.dump([sys.argv, dict(os.environ)], open({str(tmp_path / 'called')!r}, 'w'))\n"
            f"sys.exit({exit_text!r})\n"
        )
        script.chmod(0o755)
        return tmp_path

    return make


def request(node="w", auth="token", expect=None, **changes):
    found = settings(auth)
    state = paths.StatePaths(Path("/state/mine"))
    chosen = next(n for n in found.nodes if n.name == node)
    return startrequest.start_request(
        found,
        chosen,
        argv=raystart.worker_argv(found, chosen, GCS),
        env=raystart.own_env(found, chosen, {"HOME": "/not/this", "SECRET": "x"}, state),
        gcs_address=GCS,
        state=state,
        timeout_s=20,
        lock_wait_s=1,
        versions=expect or {"ray": "2.60.0", "python": "3.11.7"},
        program=start_program(),
    )


def test_a_tilde_is_the_home_folder_of_the_host_that_starts_it(home, tmp_path):
    folder = home()
    answer = program.handle(request(auth="disabled"))
    assert answer["error"] == "start_failed"
    argv, env = json.loads((folder / "called").read_text())
    assert argv[0] == f"{folder}/venv/bin/ray"
    assert f"--temp-dir={folder}/r" in argv
    assert env["CACHE"] == f"{folder}/cache"
    assert env["PATH"].startswith(f"{folder}/venv/bin:{folder}/.local/bin:/usr/local/sbin")
    assert (env["HOME"], env["LANG"]) == (str(folder), "C.UTF-8")  # of the login there
    assert env["RAY_AUTH_MODE"] == "disabled"
    assert not {"RAY_AUTH_TOKEN", "SECRET"} & env.keys()
    assert (folder / ".local/state/grid-agent/mine/logs/w.log").read_text().strip() == "boom"
    assert stat.S_IMODE((folder / ".local/state/grid-agent/mine").stat().st_mode) == 0o700


@pytest.mark.parametrize(
    ("ray", "python", "named"),
    [("2.59.1", "3.11", "Ray 2.59.1 on Python 3.11"), ("2.60.0", "3.12", "Ray 2.60.0 on Python 3.12")],
)
def test_another_version_is_named_and_nothing_is_run(home, ray, python, named):
    folder = home(ray=ray, python=python)
    answer = program.handle(request(auth="disabled"))
    assert answer["error"] == "version"
    assert named in answer["detail"]
    assert "the head has Ray 2.60.0 on Python 3.11.7" in answer["detail"]
    assert "ssh.ray_bin" in answer["detail"]
    assert not (folder / "called").exists()


def test_without_ray_bin_the_home_folder_is_searched_too(home):
    folder = home(folder=".local")
    assert program.handle(request("n", auth="disabled"))["error"] == "start_failed"
    assert json.loads((folder / "called").read_text())[0][0] == f"{folder}/.local/bin/ray"


def test_no_ray_says_what_to_set(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    for node in ("w", "n"):
        answer = program.handle(request(node, auth="disabled"))
        assert answer["error"] == "no_ray"
        assert "ssh.ray_bin" in answer["detail"]


@pytest.mark.parametrize(
    ("said", "error"),
    [
        ("RuntimeError: Version mismatch: The cluster was started with", "version"),
        ("InvalidAuthToken: Authentication token is missing or incorrect", "auth"),
        ("OSError: [Errno 28] No space left on device", "disk"),
        ("something else", "start_failed"),
    ],
)
def test_what_ray_says_is_recognised(home, said, error):
    home(exit_text=said)
    answer = program.handle(request(auth="disabled"))
    assert answer["error"] == error
    assert said in answer["detail"]


def test_the_token_goes_to_a_private_file_and_into_no_answer(home, tmp_path):
    folder = home()
    (tmp_path / "token").write_text("s3cret\n")
    whole = with_token(request(), str(tmp_path / "token"))
    previous = os.umask(0)
    try:
        answer = program.handle(whole)
    finally:
        os.umask(previous)
    token = folder / ".local/state/grid-agent/mine/ray_token"
    assert token.read_text() == "s3cret\n"
    assert stat.S_IMODE(token.stat().st_mode) == 0o600
    assert [a["ok"] for a in answer["answers"]] == [True, False]
    assert (answer["error"], "s3cret" in str(answer)) == ("start_failed", False)
    _, env = json.loads((folder / "called").read_text())
    assert (env["RAY_AUTH_MODE"], env["RAY_AUTH_TOKEN_PATH"]) == ("token", str(token))
    assert sorted(p.name for p in token.parent.iterdir()) == ["locks", "logs", "ray_token"]


def test_a_secret_that_cannot_be_written_stops_the_start(home):
    folder = home()
    (folder / ".local").write_text("a file")
    answer = program.handle(request())
    assert not answer["ok"]
    assert not (folder / "called").exists()


def test_a_repair_ends_and_starts_as_the_first_start_did(tmp_path, monkeypatch):
    found, state = settings(), paths.StatePaths(tmp_path)
    state.cluster.write_text(json.dumps({"session_dir": "/tmp/ray/session_1_2"}))
    seen = {"w": [{"node_id": "old", "pid": 41, "session_dir": "/home/me/r/session_0"}]}
    repair = RepairPlan(found, state, GCS, {"HOME": "/root"}, seen)
    belief = Belief(0.0, 0.0, {"w": NodeBelief("w", "10.0.0.2", "worker", State.DEAD, 0.0)})
    whole, longest_s = repair.request(m.RestartWorker("w", "h", 1, "old"), belief)
    fence, begin = whole["requests"]
    assert (fence["op"], fence["node_id"], fence["raylet_pid"]) == ("end", "old", 41)
    assert fence["session_dir"] == "/home/me/r/session_0"
    first = request(expect=versions_here())
    assert begin["requests"][0] == first["requests"][0]
    changing = ("timeout_s", "lock_wait_s")
    assert {**begin["requests"][1], **dict.fromkeys(changing, 0)} == {
        **first["requests"][1],
        **dict.fromkeys(changing, 0),
    }
    assert longest_s + 15 < repair_plan.longest_s(found) < policy_of(found).repair_timeout_s
    unknown, _ = repair.request(m.RestartWorker("w", "h", 1, "newer"), belief)
    assert unknown["requests"][0]["session_dir"] == "~/r/session_1_2"


@pytest.mark.parametrize("command_timeout_s", [20.0, 60.0, 600.0])
def test_a_host_that_is_slow_to_start_gets_as_long_when_it_is_healed(tmp_path, command_timeout_s):
    found, state = settings(), paths.StatePaths(tmp_path)
    slow = found.ssh.model_copy(update={"command_timeout_s": command_timeout_s, "connect_timeout_s": 7.0})
    found = found.model_copy(update={"ssh": slow})
    belief = Belief(0.0, 0.0, {"w": NodeBelief("w", "10.0.0.2", "worker", State.DEAD, 0.0)})
    repair = RepairPlan(found, state, GCS, {"HOME": "/root"}, {})
    whole, longest_s = repair.request(m.RestartWorker("w", "h", 1, "old"), belief)
    assert whole["requests"][-1]["requests"][-1]["timeout_s"] == command_timeout_s
    assert longest_s > command_timeout_s
    assert repair_plan.longest_s(found) > longest_s + 7.0 + hosts.LOGIN_S
    assert policy_of(found).repair_timeout_s > repair_plan.longest_s(found)


def test_the_way_to_a_node(tmp_path):
    found = settings()
    ways = Transports(found, paths.StatePaths(tmp_path))
    assert isinstance(ways("h"), LocalHost)
    assert isinstance(ways("w"), SshHost)
    assert ways("w") is ways.seen_from("h", "w")
    assert ways.seen_from("n", "w") is not ways("w")
    assert (target(found, found.workers[0]).user, target(found, found.workers[0]).port) == ("me", 2200)
    assert (target(found, found.workers[1]).user, target(found, found.workers[1]).port) == ("other", 22)


def test_ray_finds_the_address_of_a_host_by_name():
    found = settings()
    assert "--node-ip-address=10.0.0.2" in raystart.worker_argv(found, found.workers[0])
    assert "--node-ip-address" not in " ".join(raystart.worker_argv(found, found.workers[1]))
