"""The command line against a real HTTP server: texts and exit codes."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from config import loader
from grid_agent import show
from grid_agent.core import report
from grid_agent.core.incident_model import Incident, Phase, Step
from grid_agent.core.model import Attempt, Belief, NodeBelief, Observer
from grid_agent.core.policy import Policy
from grid_agent.core.terms import Cause, Refusal, State
from tests.support.cluster import BIN, exports, free_port
from tests.support.web import answering


def body(state: State, silent: float | None = None) -> dict[str, Any]:
    nodes = {
        "head": NodeBelief("head", "127.0.0.1", "head", State.ALIVE, 0.0),
        "w1": NodeBelief("w1", "127.0.0.1", "worker", state, 0.0),
        "w2": NodeBelief("w2", "127.0.0.1", "worker", State.ALIVE, 0.0),
    }
    return report.health(Belief(0.0, 100.0, nodes, observer=Observer(gcs_answered_at=99.0)), 100.0, Policy())


def run(*argv: str, **env: str) -> subprocess.CompletedProcess[str]:
    clean = {k: v for k, v in os.environ.items() if not k.startswith("GRID_AGENT")}
    return subprocess.run(
        [str(BIN / "grid-agent"), *argv], capture_output=True, text=True, check=False, env={**clean, **env}
    )


@pytest.mark.parametrize(
    ("status", "state", "http", "code"),
    [("pass", State.ALIVE, 200, 0), ("warn", State.DEAD, 200, 1), ("fail", State.ALIVE, 503, 3)],
)
def test_status_exits_as_documented(status: str, state: State, http: int, code: int) -> None:
    answer = {**body(state), "status": status}
    with answering({"/cluster/health": (http, answer)}) as url:
        said = run("status", "--url", url)
        assert said.returncode == code
        assert said.stdout.startswith(f"{status}:")
        assert "w1" in said.stdout
        as_json = run("status", "-o", "json", GRID_AGENT_URL=url)
        assert as_json.returncode == code
        assert json.loads(as_json.stdout) == answer


def test_nobody_there_is_4_with_what_to_do() -> None:
    said = run("status", "--url", f"http://127.0.0.1:{free_port()}")
    assert said.returncode == 4
    assert "start.py" in said.stderr
    assert "Traceback" not in said.stderr
    assert said.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("code", "content", "word"),
    [
        (200, b"<html>", "not as grid-agent does"),
        (404, {"detail": "no"}, "404"),
        (401, {"detail": "no"}, "token"),
    ],
)
def test_a_stranger_on_the_port_is_named(code: int, content: Any, word: str) -> None:
    with answering({"/cluster/health": (code, content)}) as url:
        said = run("status", "--url", url)
        assert said.returncode == 4
        assert word in said.stderr
        assert "Traceback" not in said.stderr


@pytest.mark.parametrize(
    "argv", [("status", "--url", u) for u in ("nonsense", "ftp://x", "http://[::1", "http://x:abc")]
)
def test_a_url_that_is_none_is_said(argv: tuple[str, ...]) -> None:
    said = run(*argv)
    assert said.returncode == 4
    assert "not a URL" in said.stderr


@pytest.mark.parametrize(
    "argv", [("nonsense",), ("status", "-o", "xml"), ("incidents", "abc"), ("--nonsense",)]
)
def test_wrong_usage_is_2(argv: tuple[str, ...]) -> None:
    said = run(*argv)
    assert said.returncode == 2
    assert "Traceback" not in said.stderr


def test_incidents_are_listed_and_told(tmp_path: Path) -> None:
    one = {
        "id": 7,
        "nodes": ["w1"],
        "cause": "process gone",
        "phase": "resolved",
        "failed_at": "t0",
        "opened_at": "t0",
        "resolved_at": "t1",
        "evidence": [],
        "steps": [{"at": "t0", "text": "w1 is dead"}, {"at": "t1", "text": "w1 is ALIVE"}],
    }
    pages = {"/cluster/incidents": (200, {"incidents": [one]}), "/cluster/incidents/7": (200, one)}
    with answering(pages) as url:
        assert "process gone" in run("incidents", "--url", url).stdout
        assert "t1  w1 is ALIVE" in run("incidents", "7", "--url", url).stdout
        assert json.loads(run("incidents", "7", "-o", "json", "--url", url).stdout) == one
        assert run("incidents", "8", "--url", url).returncode == 2


def test_env_prints_what_rays_tools_need(tmp_path: Path) -> None:
    said = run("env", XDG_STATE_HOME=str(tmp_path))
    assert said.returncode == 0
    values = exports(said.stdout)
    assert values["RAY_ADDRESS"] == "127.0.0.1:6379"
    assert values["RAY_DASHBOARD_ADDRESS"] == "http://127.0.0.1:8265"
    assert values["RAY_AUTH_MODE"] == "disabled"
    assert values["GRID_AGENT_URL"] == "http://127.0.0.1:8000"
    assert "RAY_AUTH_TOKEN_PATH" not in values
    token = run("env", XDG_STATE_HOME=str(tmp_path), GRID_AGENT__RAY__AUTH="token")
    assert exports(token.stdout)["RAY_AUTH_TOKEN_PATH"] == f"{tmp_path}/grid-agent/local/ray_token"


def test_a_bad_file_is_2_and_named(tmp_path: Path) -> None:
    bad = tmp_path / "bad.yaml"
    bad.write_text("cluster: x\nnodes: []\n")
    said = run("env", "-c", str(bad))
    assert said.returncode == 2
    assert "bad.yaml" in said.stderr
    assert "Traceback" not in said.stderr


def test_a_closed_pipe_is_no_error() -> None:
    with answering({"/cluster/health": (200, {**body(State.ALIVE), "status": "pass"})}) as url:
        line = f"{BIN}/grid-agent status --url {url} -o json | head -c 1"
        said = subprocess.run(["sh", "-c", line], capture_output=True, text=True, check=False)
        assert "Traceback" not in said.stderr


def test_why_explains_tasks_that_hang_after_a_cut() -> None:
    node = NodeBelief("w1", "127.0.0.1", "worker", State.ALIVE, 90.0, stale_until=130.0)
    lines = show.why(report.why(Belief(90.0, 100.0, {"w1": node}), node, 100.0, Policy()))
    assert any("connections from before may stay so for 30 s more" in line for line in lines)


def test_why_tells_one_nodes_story() -> None:
    incident = Incident(
        3, ("w1",), "h", Cause.PROCESS_GONE, Phase.FIRING, 90.0, 90.0, steps=(Step(90.0, "it fell"),)
    )
    node = NodeBelief(
        "w1",
        "127.0.0.1",
        "worker",
        State.DEAD,
        90.0,
        cause=Cause.PROCESS_GONE,
        evidence=("no such raylet process",),
        attempts=(Attempt(1, 91.0, "head", 95.0, ok=False, detail="start_failed"),),
        refusal=Refusal.BACKING_OFF,
        next_attempt_at=130.0,
    )
    belief = Belief(0.0, 100.0, {"w1": node}, incidents={3: incident})
    story = report.why(belief, node, 100.0, Policy())
    answers = {
        "/cluster/health": (503, {**body(State.ALIVE), "status": "fail"}),
        "/cluster/why/w1": (200, story),
    }
    with answering(answers) as url:
        said = run("why", "w1", "--url", url)
        assert said.returncode == 0, said.stderr
        for part in (
            "w1 on 127.0.0.1: DEAD",
            "no such raylet process",
            "attempt   1",
            "failed",
            "refused",
            "it fell",
        ):
            assert part in said.stdout
        assert json.loads(run("why", "w1", "-o", "json", "--url", url).stdout) == story
        unknown = run("why", "w9", "--url", url)
        assert unknown.returncode == 2
        assert "w1" in unknown.stderr


def test_env_knows_what_only_start_was_told(tmp_path: Path) -> None:
    state = tmp_path / "grid-agent" / "local"
    state.mkdir(parents=True)
    running = loader.load(
        loader.default_file(), {"GRID_AGENT__RAY__PORT": "7001", "GRID_AGENT__HTTP__PORT": "8001"}
    )
    (state / "settings.json").write_text(loader.dump(running))
    values = exports(run("env", XDG_STATE_HOME=str(tmp_path)).stdout)
    assert values["RAY_ADDRESS"] == "127.0.0.1:7001"
    assert values["GRID_AGENT_URL"] == "http://127.0.0.1:8001"
    (state / "settings.json").write_text("{")
    assert exports(run("env", XDG_STATE_HOME=str(tmp_path)).stdout)["RAY_ADDRESS"] == "127.0.0.1:6379"


@pytest.mark.parametrize(
    ("argv", "word"),
    [
        (("validate", "--address", "nonsense"), "write it like"),
        (("validate", "--address", "h:99999"), "write it like"),
        (("validate", "--address", "127.0.0.1:6379", "-c", "x"), "goes without -c"),
        (("validate", "-c", "/nowhere.yaml"), "no such file"),
    ],
)
def test_validate_with_wrong_arguments_is_2(argv: tuple[str, ...], word: str) -> None:
    said = run(*argv)
    assert said.returncode == 2
    assert word in said.stderr
    assert "Traceback" not in said.stderr


def test_a_gcs_that_is_not_there_is_4() -> None:
    said = run("validate", "--address", f"127.0.0.1:{free_port()}", "-o", "json", RAY_timeout_ms="1")
    assert said.returncode == 4, said.stderr
    found = json.loads(said.stdout)
    assert found["exit_code"] == 4
    assert next(c for c in found["checks"] if c["name"] == "RAY_timeout_ms")["status"] == "warn"


def test_the_schema_is_printed() -> None:
    assert json.loads(run("validate", "--schema").stdout)["title"] == "Document"
