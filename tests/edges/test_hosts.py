"""The transports, with real processes; ssh itself is played by a small program on PATH."""

import asyncio
import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
import ray
import yaml

from config.paths import StatePaths
from config.settings import Settings
from grid_agent.core import messages as m
from grid_agent.core.model import Belief, NodeBelief
from grid_agent.core.seen import Incarnation
from grid_agent.core.terms import State
from grid_agent.edges import hosts, ssh_client, ssh_errors
from grid_agent.edges.host import procs
from grid_agent.edges.host import program as host_program
from grid_agent.edges.hosts import LocalHost, SshHost
from grid_agent.edges.remote import Remote
from grid_agent.edges.ssh_client import SshTarget, parse_answer, ssh_argv
from grid_agent.edges.ssh_errors import classify
from grid_agent.repair_plan import RepairPlan

LOOK = {"op": "look", "gcs_address": "192.0.2.9:1", "node_name": "gpu1"}
TARGET = SshTarget(host="gpu1", user="ray", port=2222, key_file="/keys/id", connect_timeout_s=0.2)
HOSTILE = ["; touch pwned", "$(touch pwned)", "-oProxyCommand=touch pwned", "a\nb", "' \"`x`", "%h %C"]


# --- this machine ---


async def test_this_machine_answers() -> None:
    answer = await LocalHost().call(LOOK, 5.0)
    assert answer["ok"]
    assert answer["raylets"] == []


async def test_this_machine_may_be_too_slow() -> None:
    def slow(_request: dict[str, Any]) -> dict[str, Any]:
        time.sleep(2.0)
        return {"ok": True}

    began = time.monotonic()
    answer = await LocalHost(slow).call(LOOK, 0.05)
    assert time.monotonic() - began < 1.5
    assert (answer["ok"], answer["error"]) == (False, "timeout")
    assert "0.05 s" in answer["detail"]


async def test_a_repair_of_a_node_that_a_person_stopped_is_not_sent(tmp_path: Path) -> None:
    stopped = tmp_path / "gpu1"
    request = {"op": "steps", "requests": [LOOK], "unless_here": str(stopped)}
    assert hosts.unless_stopped(request) is None
    assert hosts.unless_stopped(LOOK) is None
    stopped.touch()
    answer = await SshHost(TARGET, None).call(request, 1.0)
    assert (answer["ok"], answer["error"]) == (False, "stopped")
    assert "unreached" not in answer


async def test_a_peer_is_not_asked_to_repair_what_a_person_stopped(tmp_path: Path) -> None:
    """The file that says so is on the head only; no Ray runs here, so that a placed task would fail."""
    stopped = tmp_path / "gpu1"
    stopped.touch()
    request = {"op": "steps", "requests": [LOOK], "unless_here": str(stopped)}
    remote = Remote(lambda _order: (request, 1.0), lambda _by, _node: LocalHost(), 2.0)
    peer = NodeBelief("gpu2", "", "worker", State.ALIVE, 0.0, incarnation=Incarnation("a" * 56))
    ended = await remote.repair(m.RestartWorker("gpu1", "gpu2", 1, None), peer)
    assert (ended.ok, ended.begun) == (False, False)
    assert ended.detail.startswith("stopped: A person stopped this node")


class Dies:
    """A repair task that ends in this error."""

    def __init__(self, error: Exception) -> None:
        self._future: Future[Any] = Future()
        self._future.set_exception(error)

    def remote(self, *args: Any) -> "Dies":
        return self

    def future(self) -> "Future[Any]":
        return self._future


@pytest.mark.parametrize(
    ("error", "curable"),
    [
        (ray.exceptions.NodeDiedError("gpu2"), None),
        (ray.exceptions.WorkerCrashedError(), None),
        (ray.exceptions.ActorDiedError(), None),
        (ray.exceptions.RayTaskError("carry_out", "No such file", OSError("No such file")), True),
    ],
)
async def test_a_repair_whose_node_dies_has_not_failed_its_end_is_unknown(
    error: Exception, curable: bool | None
) -> None:
    class Placed(Remote):
        async def _task(self, node_id: str, sick: str) -> Any:
            return Dies(error)

    remote = Placed(lambda _order: ({"op": "steps", "requests": []}, 1.0), lambda _by, _n: LocalHost(), 2.0)
    peer = NodeBelief("gpu2", "", "worker", State.ALIVE, 0.0, incarnation=Incarnation("a" * 56))
    ended = await remote.repair(m.RestartWorker("gpu1", "gpu2", 3, None), peer)
    assert (ended.attempt, ended.ok, ended.begun, ended.curable) == (3, False, True, curable)
    assert ended.detail


async def test_a_repair_that_cannot_be_planned_has_failed() -> None:
    def plan(order: m.RestartWorker) -> tuple[dict[str, Any], float]:
        raise OSError("no such file")

    peer = NodeBelief("gpu2", "", "worker", State.ALIVE, 0.0, incarnation=Incarnation("a" * 56))
    remote = Remote(plan, lambda _by, _node: LocalHost(), 2.0)
    ended = await remote.repair(m.RestartWorker("gpu1", "gpu2", 3, None), peer)
    assert (ended.ok, ended.curable) == (False, True)


@pytest.mark.parametrize("ssh", ["", "ssh: {user: me}"])
def test_a_repair_names_the_file_of_a_stopped_node_where_it_is(ssh: str, tmp_path: Path) -> None:
    nodes = "[{name: h, host: 192.0.2.7, role: head}, {name: w, host: 192.0.2.8}]"
    nodes = nodes if ssh else nodes.replace("192.0.2.7", "127.0.0.1").replace("192.0.2.8", "127.0.0.1")
    settings = Settings.model_validate(yaml.safe_load(f"{ssh}\ncluster: mine\nnodes: {nodes}"))
    plan = RepairPlan(settings, StatePaths(tmp_path), "192.0.2.7:1", {"HOME": "/root"}, {})
    belief = Belief(0.0, 0.0, {"w": NodeBelief("w", "192.0.2.8", "worker", State.DEAD, 0.0)})
    request, _ = plan.request(m.RestartWorker("w", "h", 1, None), belief)
    start = request["requests"][1]
    start = start["requests"][-1] if start["op"] == "steps" else start
    here = str(tmp_path / "stopped" / "w")
    assert request.get("unless_here") == (here if ssh else None)
    assert start.get("unless") == (None if ssh else here)


# --- the command line ---


def test_the_command_line_is_strict_and_without_prompts() -> None:
    argv = ssh_argv(TARGET, "/run/ga")
    options = {argv[i + 1] for i, word in enumerate(argv) if word == "-o"}
    assert {"BatchMode=yes", "StrictHostKeyChecking=yes", "ForwardAgent=no", "ConnectTimeout=1"} <= options
    assert {"UserKnownHostsFile=~/.ssh/known_hosts", "ControlPath=/run/ga/%C"} <= options
    assert argv[-9:] == ["-i", "/keys/id", "-p", "2222", "-l", "ray", "--", "gpu1", ssh_client.REMOTE_COMMAND]


def test_a_socket_path_that_would_be_too_long_is_not_used() -> None:
    fits = "/" + "d" * (ssh_client.SOCKET_PATH_LIMIT - ssh_client.SOCKET_NAME - 1)
    assert any("ControlPath" in word for word in ssh_argv(TARGET, fits))
    assert not any("Control" in word for word in ssh_argv(TARGET, fits + "d"))
    assert not any("Control" in word for word in ssh_argv(TARGET, None))


@pytest.mark.parametrize("text", HOSTILE)
def test_configuration_never_reaches_the_remote_command(text: str) -> None:
    target = SshTarget(host=text, user=text, key_file=text, known_hosts_file=text)
    argv = ssh_argv(target, "/run/ga")
    assert argv[-1] == ssh_client.REMOTE_COMMAND
    assert argv[-3:-1] == ["--", text]
    assert argv[argv.index("-l") + 1] == text


def test_paths_with_spaces_and_tokens_stay_one_path() -> None:
    argv = ssh_argv(SshTarget(host="h", user="u", known_hosts_file="/a b/%d"), "/c %d")
    assert 'UserKnownHostsFile="/a b/%%d"' in argv
    assert 'ControlPath="/c %%d/%C"' in argv


@pytest.mark.skipif(shutil.which("ssh") is None, reason="no OpenSSH client here")
@pytest.mark.parametrize("control_dir", ["/tmp/ga", "/tmp/g a%d", None])
def test_the_real_client_accepts_every_option(control_dir: str | None) -> None:
    target = SshTarget(host="192.0.2.9", user="ray", known_hosts_file="/a b/%d", key_file="/k%k")
    done = subprocess.run(
        ["ssh", "-G", *ssh_argv(target, control_dir)[1:]], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "batchmode yes" in done.stdout
    assert "userknownhostsfile /a b/%d" in done.stdout.replace("%%", "%").replace('"', "")


@pytest.mark.skipif(shutil.which("ssh") is None, reason="no OpenSSH client here")
def test_no_other_source_says_which_key_is_a_hosts(tmp_path: Path) -> None:
    """Whatever the person's or the machine's configuration trusts."""
    config = tmp_path / "config"
    config.write_text(
        "Host *\n  GlobalKnownHostsFile /etc/more\n  KnownHostsCommand /bin/cat /keys\n"
        "  VerifyHostKeyDNS yes\n  NoHostAuthenticationForLocalhost yes\n  StrictHostKeyChecking no\n"
    )
    asked = ["ssh", "-G", "-F", str(config), *ssh_argv(SshTarget(host="127.0.0.1", user="ray"), None)[1:]]
    said = subprocess.run(asked, capture_output=True, text=True, check=True).stdout.splitlines()
    assert {
        "globalknownhostsfile /dev/null",
        "verifyhostkeydns false",
        "nohostauthenticationforlocalhost no",
        "stricthostkeychecking true",
    } <= set(said)
    assert not any("/keys" in line or "/etc/more" in line for line in said)


@pytest.mark.parametrize("shell", ["sh", "bash", "dash", "zsh", "fish", "csh", "tcsh"])
def test_login_shells_understand_the_remote_command(shell: str) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"no {shell} here")
    program = hosts.source_of(host_program).encode()
    payload = b"%d\n" % len(program) + program + json.dumps(LOOK).encode()
    done = subprocess.run(
        [shell, "-c", ssh_client.REMOTE_COMMAND], input=payload, capture_output=True, timeout=20, check=False
    )
    answer = parse_answer(done.stdout)
    assert answer is not None, done.stderr
    assert answer["raylets"] == []


# --- what ssh says ---

UNKNOWN = "No ED25519 host key is known for h and you have requested ...\nHost key verification failed."
CHANGED = (
    "@@@@@\n@    WARNING: REMOTE HOST IDENTIFICATION HAS CHANGED!     @\n@@@@@\nHost key verification failed."
)


@pytest.mark.parametrize(
    ("rc", "stderr", "error"),
    [
        (255, "ssh: connect to host h port 22: No route to host", "no_route"),
        (255, "ssh: connect to host h port 22: Network is unreachable", "no_route"),
        (255, "ssh: connect to host h port 22: Connection refused", "refused"),
        (255, "ssh: connect to host h port 22: Connection timed out", "connect_timeout"),
        (255, "Connection timed out during banner exchange", "connect_timeout"),
        (255, "ssh: Could not resolve hostname h: Name or service not known", "unresolved"),
        (255, UNKNOWN, "host_key_unknown"),
        (255, CHANGED, "host_key_changed"),
        (255, "u@h: Permission denied (publickey,password).", "key_refused"),
        (255, "Received disconnect from h: Too many authentication failures", "key_refused"),
        (255, "kex_exchange_identification: Connection closed by remote host", "disconnected"),
        (255, "Timeout, server h not responding.", "disconnected"),
        (255, "client_loop: send disconnect: Broken pipe", "disconnected"),
        (255, "", "disconnected"),
        (-9, "", "disconnected"),
        (None, "", "disconnected"),
        (127, "bash: line 1: exec: python3: not found", "command_missing"),
        (1, "python3 is too old", "python_too_old"),
        (1, "PermissionError: Permission denied\nConnection refused", "garbage"),
        (0, "", "garbage"),
    ],
)
def test_what_ssh_says_gets_a_name_and_advice(rc: int | None, stderr: str, error: str) -> None:
    name, sentence = classify(rc, stderr)
    assert name == error
    assert sentence.startswith(" ".join(ssh_errors.ADVICE[error].split()))
    assert len(sentence) < 700


@pytest.mark.parametrize("stdout", [b"", b"hello\n", b"[1]\n", b'{"a": 1}\n', b'{"ok": "yes"}', b"\xff\xfe"])
def test_what_is_no_answer_is_none(stdout: bytes) -> None:
    assert parse_answer(stdout) is None


def test_an_answer_after_a_login_banner_is_one() -> None:
    assert parse_answer(b'Welcome!\n{"ok": true}\n') == {"ok": True}


# --- the whole way, with a client of our own ---


class FakeSsh:
    """Puts an `ssh` in front of PATH that notes its arguments and runs the given shell lines."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")

    def says(self, lines: str) -> SshHost:
        script = self.folder / "ssh"
        script.write_text(
            f'#!/bin/sh\nprintf "%s\\n" "$*" >> {shlex.quote(str(self.folder))}/calls\n{lines}\n'
        )
        script.chmod(0o700)
        return SshHost(TARGET, None, login_timeout_s=0.3)


@pytest.fixture
def ssh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeSsh:
    return FakeSsh(tmp_path, monkeypatch)


RUN_IT = 'for last; do :; done; exec sh -c "$last"'  # what sshd does with the command


async def test_a_request_goes_there_and_its_answer_comes_back(ssh: FakeSsh) -> None:
    host = ssh.says(RUN_IT)
    host._login_s = 5.0
    answer = await host.call(LOOK, 5.0)
    assert answer["ok"], answer
    assert set(answer) >= {"raylets", "remains", "host"}
    refused = await host.call({"op": "nothing"}, 5.0)
    assert (refused["error"], refused["detail"]) == ("bad_request", "There is no operation 'nothing'.")


@pytest.mark.parametrize("text", ["\u65e5\u672c\u8a9e \U0001f525 ", '"\\" ', "plain text "])
async def test_logs_in_any_script_come_back_within_what_is_read(
    ssh: FakeSsh, text: str, tmp_path: Path
) -> None:
    node_id = "e" * 56
    (tmp_path / "logs").mkdir()
    for number in range(9):
        lines = f"node {node_id}\n" + f"{text * 60}\n" * 30 + "last words \u706b\n"
        (tmp_path / "logs" / f"raylet.{number}.out").write_text(lines, encoding="utf-8")
    host = ssh.says(RUN_IT)
    host._login_s = 5.0
    asked = {"op": "look", "gcs_address": "192.0.2.9:1", "node_id": node_id, "bundle": True}
    answer = await host.call({**asked, "session_dir": str(tmp_path)}, 9.0)
    assert answer["ok"], answer
    tails = [file["tail"] for file in answer["bundle"]["files"]]
    assert len(tails) >= 4
    assert all(tail.endswith("last words \u706b") and text.strip() in tail for tail in tails)
    assert len(json.dumps(answer, ensure_ascii=False).encode()) < ssh_client.STDOUT_LIMIT


@pytest.mark.parametrize("text", HOSTILE)
async def test_hostile_names_arrive_as_names(ssh: FakeSsh, text: str, tmp_path: Path) -> None:
    host = ssh.says(f"cd {shlex.quote(str(tmp_path))}; {RUN_IT}")
    host._login_s = 5.0
    start = {
        "op": "start",
        "argv": [text],
        "env": {},
        "log": str(tmp_path / "l"),
        "lock": str(tmp_path / "k"),
    }
    answer = await host.call({**start, "timeout_s": 5, "node_name": text, "gcs_address": "192.0.2.9:1"}, 9.0)
    assert answer["error"] == "no_ray"
    assert text in answer["detail"]
    assert not (tmp_path / "pwned").exists()


@pytest.mark.parametrize(
    ("lines", "error"),
    [
        ("sleep 9", "login_timeout"),
        ("echo grid-agent-ready; sleep 9", "timeout"),
        ("echo 'ssh: connect to host gpu1 port 2222: Connection refused' >&2; exit 255", "refused"),
        ("cat > /dev/null; exit 127", "command_missing"),
        ("cat > /dev/null; echo hello", "garbage"),
        ("yes", "garbage"),
        ("yes >&2 & sleep 0.1; kill $!; echo grid-agent-ready; exit 3", "garbage"),
        ("kill -9 $$", "disconnected"),
    ],
)
async def test_every_failure_has_a_name_and_an_end(ssh: FakeSsh, lines: str, error: str) -> None:
    began = time.monotonic()
    answer = await ssh.says(lines).call(LOOK, 0.3)
    assert (answer["ok"], answer["error"]) == (False, error), answer
    assert answer["detail"].startswith("ray@gpu1:2222: ")
    assert time.monotonic() - began < 3.0


async def test_a_call_that_is_cancelled_ends_its_client(ssh: FakeSsh, tmp_path: Path) -> None:
    host = ssh.says(f"echo $$ > {shlex.quote(str(tmp_path))}/pid; exec sleep 30")
    host._login_s = 30.0
    task = asyncio.create_task(host.call(LOOK, 30.0))
    while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text().strip():
        await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    proc = procs.read_proc(int((tmp_path / "pid").read_text()))
    assert proc is None or proc.ended


async def test_a_kept_connection_is_dropped_after_a_timeout(ssh: FakeSsh, tmp_path: Path) -> None:
    ssh.says('case "$*" in *"-O stop"*) exit 0;; esac; sleep 9')
    with tempfile.TemporaryDirectory(prefix="ga", dir="/tmp") as control:
        host = SshHost(TARGET, control, login_timeout_s=0.1)
        assert (await host.call(LOOK, 0.1))["error"] == "login_timeout"
    calls = (tmp_path / "calls").read_text()
    assert "-O stop -T" in calls
    assert "-- gpu1\n" in calls


async def test_a_missing_client_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    answer = await SshHost(TARGET, None).call(LOOK, 1.0)
    assert answer["error"] == "no_ssh"
    assert "OpenSSH" in answer["detail"]


def test_the_remote_command_needs_nothing_of_ours(tmp_path: Path) -> None:
    program = hosts.source_of(host_program).encode()
    payload = b"%d\n" % len(program) + program + b'{"op": "port_owner", "ports": [1]}'
    env = {"PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin"}
    command = ["sh", "-c", ssh_client.REMOTE_COMMAND]
    done = subprocess.run(command, input=payload, capture_output=True, env=env, cwd=tmp_path, check=True)
    assert parse_answer(done.stdout) == {"ok": True, "ports": {"1": None}}
