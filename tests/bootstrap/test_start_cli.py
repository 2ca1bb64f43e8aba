"""The commands as a person runs them, up to the point where Ray would be started."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[2]
START = PROJECT / "bootstrap" / "start.py"
STOP = PROJECT / "bootstrap" / "stop.py"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture
def run(tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()

    def run(script, *args, cwd=elsewhere, **env):
        base = {
            k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "GRID_AGENT_", "PYTHONPATH"))
        }
        return subprocess.run(
            [sys.executable, *([str(script)] if isinstance(script, Path) else ["-m", script]), *args],
            cwd=cwd,
            env={**base, "XDG_STATE_HOME": str(tmp_path / "state"), **env},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    return run


@pytest.fixture
def config(tmp_path):
    """A cluster of this machine on ports that nobody uses."""

    def write(more: str = "", **ports: int) -> str:
        chosen = {"ray": free_port(), "dashboard": free_port(), "http": free_port(), **ports}
        file = tmp_path / "cluster.yaml"
        file.write_text(
            f"cluster: cli-test\n"
            f"nodes:\n"
            f"  - {{name: cli-head, host: 127.0.0.1, role: head, num_cpus: 0}}\n"
            f"  - {{name: cli-w1, host: 127.0.0.1, num_cpus: 1, env: {{MY_SECRET: hush}}}}\n"
            f"ray: {{port: {chosen['ray']}, dashboard_port: {chosen['dashboard']}}}\n"
            f"http: {{port: {chosen['http']}}}\n{more}"
        )
        return str(file)

    return write


def test_a_dry_run_prints_everything_and_leaves_nothing(run, config, tmp_path):
    done = run(START, "-c", config(), "--dry-run")
    assert done.returncode == 0, done.stderr
    for text in (
        "cli-head  on 127.0.0.1",
        "cli-w1",
        "deployments.deploy",
        "ray start --head",
        "why:",
        "--node-name=cli-w1",
    ):
        assert text in done.stdout
    assert "hush" not in done.stdout
    assert not (tmp_path / "state").exists()


def test_as_a_module_too(run, config):
    done = run("bootstrap.start", "-c", config(), "--dry-run", cwd=PROJECT)
    assert done.returncode == 0, done.stderr


def test_another_project_may_own_our_names(run, config, tmp_path):
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    for name in ("config", "bootstrap", "deployments", "plan", "state"):
        (theirs / f"{name}.py").write_text("raise RuntimeError('not this one')\n")
    done = run(START, "-c", config(), "--dry-run", cwd=theirs, PYTHONPATH=str(theirs))
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("script", [START, STOP])
def test_a_wrong_file_is_named_with_line_and_key(run, config, script):
    done = run(script, "-c", config("agent: {mode: heel}\n"))
    assert done.returncode == 2
    assert done.stdout == ""
    assert "cluster.yaml:7" in done.stderr
    assert "agent.mode" in done.stderr
    assert len(done.stderr.splitlines()) == 1  # not wrapped


def test_usage(run):
    assert run(START, "--no-such-flag").returncode == 2


@pytest.mark.parametrize(("script", "name"), [(START, "start.py"), (STOP, "stop.py")])
def test_elsewhere_than_on_the_head_host(run, tmp_path, script, name):
    file = tmp_path / "hosts.yaml"
    file.write_text(
        "cluster: c\nssh: {user: ray}\nnodes:\n"
        "  - {name: boss, host: 198.51.100.7, role: head}\n  - {name: w, host: 198.51.100.8}\n"
    )
    done = run(script, "-c", str(file))
    assert done.returncode == 2
    assert f"{name} must run on the head host boss (198.51.100.7)" in done.stderr


@pytest.mark.parametrize("which", ["ray", "dashboard", "http"])
def test_a_port_that_is_taken_is_named_with_its_owner(run, config, which):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        done = run(START, "-c", config(**{which: port}))
    assert done.returncode == 3
    key = {"ray": "ray.port", "dashboard": "ray.dashboard_port", "http": "http.port"}[which]
    [line] = done.stderr.splitlines()
    assert f"port {port} ({key})" in line
    assert f"pid {os.getpid()}" in line
    assert key in line.partition("set ")[2]


def test_a_variable_that_would_crash_ray_is_refused(run, config):
    done = run(START, "-c", config(), "--dry-run", RAY_health_check_period_ms="5s")
    assert done.returncode == 2
    assert "RAY_health_check_period_ms" in done.stderr


def test_a_variable_that_ray_does_not_read_is_named(run, config):
    done = run(START, "-c", config(), "--dry-run", RAY_heartbeat_timeout_ms="30000")
    assert done.returncode == 0
    assert "RAY_heartbeat_timeout_ms" in done.stderr


def test_two_starts_at_once(run, config, tmp_path):
    import fcntl

    root = tmp_path / "state" / "grid-agent" / "cli-test"
    root.mkdir(parents=True)
    with (root / "start.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        lock.write("4711\n")
        lock.flush()
        done = run(START, "-c", config())
    assert done.returncode == 5
    assert "4711" in done.stderr


def test_stop_of_nothing(run, config, tmp_path):
    done = run(STOP, "-c", config())
    assert (done.returncode, done.stderr) == (0, "")
    assert "nothing of cluster cli-test is running" in done.stdout
    assert not (tmp_path / "state").exists()


@pytest.mark.parametrize(("name", "text"), [("cli-w2", "did you mean cli-w1?"), ("cli-head", "is the head")])
def test_stop_of_a_node_that_cannot_be_stopped(run, config, name, text):
    done = run(STOP, "-c", config(), "--node", name)
    assert done.returncode == 2
    assert text in done.stderr


def test_state_is_private_whatever_the_umask(run, config, tmp_path):
    with socket.socket() as other:  # stops the start after the state folder is made
        other.bind(("127.0.0.1", 0))
        other.listen()
        previous = os.umask(0)
        try:
            run(START, "-c", config(http=other.getsockname()[1]))
        finally:
            os.umask(previous)
    root = tmp_path / "state" / "grid-agent" / "cli-test"
    for path in (root, *root.rglob("*")):
        assert path.stat().st_mode & 0o077 == 0, path
