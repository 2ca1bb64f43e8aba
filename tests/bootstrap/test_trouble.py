"""What cannot be done ends in one sentence and the right exit code, and the agent's word is its last one."""

import io
from typing import Any

import pytest

from bootstrap import bring_up, health, plan, start, state, take_down, trouble, wait
from bootstrap import stop as stop_command
from bootstrap.launch import Outcome
from bootstrap.progress import Output, Progress
from bootstrap.reach import LOCK_WAIT_S, Reach
from config import loader, paths

FILE = "cluster: tr\nnodes: [{name: h, host: 127.0.0.1, role: head}, {name: w, host: 127.0.0.1}]\n"


@pytest.fixture
def file(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    path = tmp_path / "cluster.yaml"
    path.write_text(FILE)
    return str(path)


@pytest.mark.parametrize("main", [start.main, stop_command.main])
def test_a_state_folder_that_cannot_be_used_is_one_sentence(file, tmp_path, monkeypatch, capsys, main):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "file"))
    assert main(["-c", file]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert str(tmp_path / "file") in line
    assert "Not a directory" in line


def test_a_full_disk_is_one_sentence(tmp_path, monkeypatch):
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(state.os, "fsync", full)
    with pytest.raises(state.StateError, match=f"{tmp_path}/token: No space left on device"):
        state.write_private(tmp_path / "token", "x")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("main", "module", "name"),
    [(start.main, bring_up, "bring_up"), (stop_command.main, take_down, "cluster")],
)
def test_what_nobody_has_foreseen_is_no_warning(file, tmp_path, monkeypatch, capsys, main, module, name):
    def broken(*_: Any, **__: Any) -> int:
        raise KeyError("surprise")

    monkeypatch.setattr(module, name, broken)
    assert main(["-c", file]) == 3
    [line] = capsys.readouterr().err.splitlines()
    assert "KeyError: 'surprise'" in line
    assert "report it" in line
    logs = tmp_path / "state" / "grid-agent" / "tr" / "logs"
    logs.mkdir(parents=True)
    assert main(["-c", file]) == 3
    assert str(logs / "unforeseen.log") in capsys.readouterr().err
    assert "Traceback" in (logs / "unforeseen.log").read_text()


def test_an_error_elsewhere_is_not_the_state_folders(tmp_path):
    output = Output(io.StringIO(), io.StringIO())
    assert trouble.explain(PermissionError(13, "Permission denied", "/elsewhere/x"), tmp_path, output) == 3
    inside = PermissionError(13, "Permission denied", str(tmp_path / "stopped" / "w"))
    assert trouble.explain(inside, tmp_path, output) == 2


def body(gpus: dict[str, Any], **observer: str) -> dict[str, Any]:
    node = {"name": "w", "state": "ALIVE", "cause": None, "gpus": gpus}
    return {"status": "warn", "paused": None, "observer": observer, "incidents": {}, "nodes": [node]}


@pytest.mark.parametrize(
    ("expected", "registered", "seen", "fault"),
    [
        (2, 2, 2, False),
        (2, 2, 8, False),  # fewer given to Ray than there are
        (0, 0, 8, False),
        (2, 2, 1, True),
        (2, 1, 2, True),
        (2, 4, 4, True),
        (2, 1, None, True),
        (None, 4, 3, True),
        (None, 4, 4, False),
        (None, None, None, False),
        (2, None, None, False),
    ],
)
def test_gpus_are_a_reason_only_where_some_are_missing(expected, registered, seen, fault):
    answer = body({"expected": expected, "registered": registered, "seen": seen}, status="pass")
    assert bool(health.judge(answer, {"w"}, set(), 0).reasons) is fault


def test_the_agents_own_words_are_shown():
    late = "the GCS has not answered for 4 s"
    assert health.judge(body({}, status="warn", detail=late), {"w"}, set(), 0).reasons == (late,)
    assert "late" in health.judge(body({}, status="warn"), {"w"}, set(), 0).reasons[0]


class Deploying:
    """Work of which the deployment ends while the agent is being asked."""

    def __init__(self) -> None:
        self.done = False

    def outcomes(self) -> dict[str, Outcome]:
        return {plan.APP: Outcome(True, "RUNNING", 1.0)} if self.done else {}

    def under_way(self) -> list[str]:
        return [] if self.done else [plan.APP]

    def wait(self, _: float) -> None:
        self.done = True


def test_only_an_answer_after_the_deployment_counts():
    work = Deploying()
    old = {**body({}, status="pass"), "status": "pass", "by": "old"}
    answers = iter([old, None, None, {**old, "by": "new"}])
    with Progress(Output(io.StringIO(), io.StringIO()), []) as progress:
        result = wait.settle(
            work,  # type: ignore[arg-type]
            frozenset({"w"}),
            lambda: next(answers),
            progress,
            deadline=float("inf"),
        )
    assert result.body is not None
    assert result.body["by"] == "new"


def test_a_node_that_was_stopped_is_awaited_however_long_its_start_takes(monkeypatch):
    clock = iter(range(0, 1000, 4))  # each look at the cluster 4 s after the last
    monkeypatch.setattr(wait.time, "monotonic", lambda: float(next(clock)))

    class Starting(Deploying):
        looks = 0

        def outcomes(self) -> dict[str, Outcome]:
            return {"w": Outcome(True, "raylet up", 20.0)} if self.done else {}

        def under_way(self) -> list[str]:
            return [] if self.done else ["w"]

        def wait(self, _: float) -> None:
            self.looks += 1
            self.done = self.looks >= 6

    def answer(status: str, state: str) -> dict[str, Any]:
        node = {"name": "w", "state": state, "cause": None, "gpus": {}}
        return {"status": status, "paused": None, "nodes": [node]}

    # The agent reads the end of the stop a moment after the raylet is up.
    said = iter([answer("warn", "CORDONED")] * 7 + [answer("warn", "JOINING"), answer("pass", "ALIVE")])
    with Progress(Output(io.StringIO(), io.StringIO()), []) as progress:
        result = wait.settle(
            Starting(),  # type: ignore[arg-type]
            frozenset(),
            lambda: next(said),
            progress,
            deadline=float("inf"),
        )
    assert result.verdict.status == "pass"


def test_without_a_slack_token_it_is_said_that_nothing_is_posted(tmp_path):
    said = state.copy_slack_token(paths.StatePaths(tmp_path), "SLACK_X", {}) or ""
    for part in ("nothing is posted", "SLACK_X", "start.py --redeploy", "API", "the agent's log"):
        assert part in said


def test_an_end_takes_the_lock_of_the_nodes_start(tmp_path):
    sent: list[tuple[dict[str, Any], float]] = []

    class Way:
        async def call(self, request: dict[str, Any], timeout_s: float) -> dict[str, Any]:
            sent.append((request, timeout_s))
            return {"ok": True}

    settings, files = loader.loads(FILE, "test"), paths.StatePaths(tmp_path)
    road = Reach(settings, "127.0.0.1:1", 7, files, ways=lambda _: Way())  # type: ignore[arg-type,return-value]
    assert road.end(None, settings.workers[0])["ok"]
    [(request, timeout_s)] = sent
    assert request["lock"] == str(files.node_lock("w"))
    assert request["lock_wait_s"] == LOCK_WAIT_S == 60.0
    assert timeout_s > LOCK_WAIT_S


def test_what_stays_is_in_no_action():
    found = plan.Found(running=frozenset({"h", "w"}), app_answers=True)
    clear = plan.Action("clear", 0, "h", "127.0.0.1", "", 1, required=True)
    begin = plan.Action("start", 2, "w", "127.0.0.1", "", 1, required=False)
    assert plan.kept(found, []) == {"h", "w"}
    assert plan.kept(found, [begin]) == {"h"}
    assert plan.kept(found, [clear]) == frozenset()
