"""Around the keeper: its command, its plan, its word to Slack, and that a stop comes before it."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bootstrap import head_parts, keeper_plan, machine, outage, state
from bootstrap.keeper import Keeper
from bootstrap.keeping import Remedy
from config import loader
from config.paths import StatePaths
from grid_agent.core import head
from grid_agent.core.incident_model import Phase
from grid_agent.core.terms import Cause
from grid_agent.edges import keeper
from grid_agent.edges.head_news import HeadNews
from grid_agent.edges.host import procs
from tests.support.cluster import ROOT, until
from tests.support.fake_head import FakeHead
from tests.support.slack_server import SlackServer
from tests.support.web import answering

FILE = """
cluster: mine
nodes: [{name: h, host: 127.0.0.1, role: head, env: {A_TOKEN: s3cret}}, {name: w, host: 127.0.0.1}]
keeper: {dead_man_url: "https://hc.example/x?m=1", hang_s: 7}
"""
HOLDER = """
import sys, time
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from grid_agent.edges import keeper
files = keeper.Files(Path(sys.argv[2]))
handle = keeper.own(files)
with keeper.turn(files):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def files(tmp_path: Path) -> StatePaths:
    made = StatePaths(tmp_path / "state" / "grid-agent" / "mine")
    state.prepare(made)
    return made


def run(*args: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-P", "-m", "bootstrap.keeper", *args],
        env={"PATH": os.environ["PATH"], "HOME": "/nonexistent", "PYTHONPATH": str(ROOT), **env},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def plan_for(files: StatePaths, **more: Any) -> dict[str, Any]:
    settings = loader.loads(FILE, "test")
    environ = {"XDG_STATE_HOME": str(files.root.parents[1]), "PATH": "/usr/bin", "HOME": "/h"}
    here = machine.here(settings, environ)
    return {**keeper_plan.make(settings, here, None), **more}


def test_without_a_plan_there_is_nothing_to_keep(files: StatePaths, tmp_path: Path) -> None:
    done = run("--state", str(files.root))
    assert done.returncode == 0
    assert "nothing to keep" in done.stderr
    cluster_file = tmp_path / "c.yaml"
    cluster_file.write_text(FILE)
    by_file = run("-c", str(cluster_file), XDG_STATE_HOME=str(tmp_path / "state"))
    assert by_file.returncode == 0, by_file.stderr
    assert str(files.keeper) in by_file.stderr  # the file led to the same folder
    cluster_file.write_text("cluster: 7")
    assert run("-c", str(cluster_file)).returncode == 2


def test_one_keeper_a_cluster(files: StatePaths) -> None:
    files.keeper.write_text(json.dumps(plan_for(files)))
    mine = keeper.own(keeper.Files(files.root))
    done = run("--state", str(files.root))
    os.close(mine)
    assert (done.returncode, done.stderr.strip()) == (5, "another keeper of this cluster runs")


def test_a_head_that_a_person_stopped_is_left_alone(files: StatePaths) -> None:
    files.keeper.write_text(json.dumps(plan_for(files)))
    files.stopped_node("h").touch()
    assert run("--state", str(files.root)).returncode == 0
    assert not (files.root / "head_outage.json").exists()


def test_the_plan_has_all_it_takes_and_its_own_environment_no_secret(files: StatePaths) -> None:
    plan = plan_for(files)
    assert plan["start"]["argv"][1:3] == ["start", "--head"]
    assert plan["start"]["env"]["RAY_gcs_storage"] == "rocksdb"
    assert plan["deploy"]["argv"][-1] == plan["gcs_address"]
    assert plan["api"] == {"host": "127.0.0.1", "port": 8000, "token_file": None}
    assert (plan["hang_s"], plan["dead_man_url"]) == (7.0, "https://hc.example/x?m=1")
    assert "bootstrap.keeper" in plan["keeper"]["argv"]
    assert "s3cret" not in json.dumps([plan["keeper"], plan["post"]])


def test_a_stop_ends_the_keeper_that_is_just_acting_and_then_has_the_lock(files: StatePaths) -> None:
    own = keeper.Files(files.root)
    argv = [sys.executable, "-c", HOLDER, str(ROOT), str(files.root)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as busy:
        assert busy.stdout is not None
        assert busy.stdout.readline() == "held\n"
        with pytest.raises(state.BusyError), keeper_plan.only_one(files):
            pass
        with keeper_plan.ended_first(files, "h"):
            assert busy.wait(10) != 0
            assert files.stopped_node("h").exists()  # said before the keeper was ended
            assert keeper.running(own) is None
            with keeper.turn(own) as theirs:
                assert not theirs


def test_a_stop_beside_another_start_changes_nothing(files: StatePaths) -> None:
    with (
        state.only_one(files),
        pytest.raises(state.BusyError),
        keeper_plan.ended_first(files, "h"),
    ):
        pass
    assert not files.stopped_node("h").exists()


def test_a_start_waits_for_the_keeper(files: StatePaths) -> None:
    argv = [sys.executable, "-c", HOLDER.replace("600", "2"), str(ROOT), str(files.root)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as busy:
        assert busy.stdout is not None
        busy.stdout.readline()
        with keeper_plan.only_one(files, wait_s=30):
            assert busy.wait(10) == 0


def test_what_the_keeper_posts_the_agent_goes_on_with(files: StatePaths, tmp_path: Path) -> None:
    with SlackServer(token="xoxb-t") as slack:
        settings = loader.loads(
            FILE + f"slack: {{channel: '#grid-alerts', base_url: '{slack.base_url}'}}", "test"
        )
        state.write_private(files.settings, loader.dump(settings))
        state.write_private(files.slack_token, "xoxb-t\n")
        record = outage.Outage(files.root / "head_outage.json", "the GCS is gone")
        record.step("starting the head again failed: no room", failed=True)

        def post() -> dict[str, Any]:
            argv = [sys.executable, "-m", "bootstrap.keeper_post", str(files.root)]
            body = json.dumps(record.body())
            done = subprocess.run(argv, input=body, cwd=ROOT, capture_output=True, text=True, check=False)
            return dict(json.loads(done.stdout))

        record.slack = post()
        assert post() == record.slack  # edited, not posted anew
        (message,) = slack.messages
        assert "firing: h: head down" in message["text"]
        assert "no room" in message["text"]
        record.save()

        news = HeadNews(files.root)
        (event,) = news.read()
        assert news.read() == []
        told = head.incident(event.outage, "h", "127.0.0.1", 7)
        assert news.message(told) == (record.slack["channel_id"], record.slack["ts"])
        assert news.message(head.incident(replace(event.outage, began_at=1.0), "h", "", 8)) is None
        slack.ok_false("channel_not_found")
        assert "error" in post()


@pytest.mark.parametrize(("code", "posts"), [(200, 0), (503, 1)])
def test_the_keeper_posts_only_where_no_agent_is_ready_to(
    files: StatePaths, tmp_path: Path, code: int, posts: int
) -> None:
    said = tmp_path / "said"
    poster = f'open({str(said)!r}, \'a\').write(\'x\'); print(\'{{"channel_id": "C", "ts": "1.0"}}\')'
    post = {"argv": [sys.executable, "-c", poster], "env": {}, "cwd": "/"}
    with answering({"/cluster/readyz": (code, {})}) as url:
        api = {"host": "127.0.0.1", "port": int(url.rpartition(":")[2]), "token_file": None}
        kept = Keeper(keeper.Files(files.root), plan_for(files, slack=True, post=post, api=api))
        kept.head = FakeHead("gcs", "raylet")
        kept._remedies = lambda: {Remedy.DASHBOARD: lambda: "it ended again"}
        kept.files.plan.touch()
        for _ in range(2):
            kept.act(Remedy.DASHBOARD, "Ray's dashboard is gone")
    assert (said.read_text() if said.exists() else "") == "x" * posts
    assert (kept.outage.slack is not None) is (posts > 0)


def test_an_open_outage_outlives_its_keeper_and_a_broken_record_is_no_record(tmp_path: Path) -> None:
    file = tmp_path / "o.json"
    first = outage.Outage(file, "x")
    first.step("one")
    again = outage.open_one(file)
    assert again is not None
    assert again.body() == json.loads(json.dumps(first.body()), object_hook=_tuples)
    again.restored()
    assert outage.open_one(file) is None
    file.write_text("{")
    assert outage.open_one(file) is None
    assert HeadNews(tmp_path).read() == []


def _tuples(body: dict[str, Any]) -> dict[str, Any]:
    return {key: [tuple(row) for row in value] if key == "steps" else value for key, value in body.items()}


def test_an_incident_of_a_head_says_who_saw_it() -> None:
    found = head.outage({"began_at": 1, "cause": "the GCS is gone", "steps": [], "restored_at": None})
    told = head.incident(found, "h", "10.0.0.1")
    assert (told.cause, told.phase, told.nodes) == (Cause.HEAD_DOWN, Phase.FIRING, ("h",))
    assert told.evidence == ("the keeper on the head host: the GCS is gone",)
    assert time.time() > 1


@pytest.mark.parametrize(
    ("there", "asked"),
    [
        (("gcs", "raylet", "dashboard"), {"gcs", "raylet"}),
        (("gcs", "raylet"), {"gcs", "raylet"}),  # a dashboard that is gone hides no GCS that hangs
        (("raylet", "dashboard"), {"raylet"}),
        (("gcs", "dashboard"), set()),  # all of it is started again, whoever answers
    ],
)
def test_each_part_that_is_there_is_asked(files: StatePaths, there: tuple[str, ...], asked: set[str]) -> None:
    kept = Keeper(keeper.Files(files.root), plan_for(files))
    kept.head = head = FakeHead(*there, silent=("gcs",))
    seen = kept.look()
    assert head.asked == asked
    assert seen.gcs_answers is (False if "gcs" in asked else None)


def test_a_raylet_that_hung_before_the_keeper_came_does_not_answer() -> None:
    argv = [sys.executable, "-m", "tests.support.health_server", "serving"]
    with subprocess.Popen(argv, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        port = int(process.stdout.readline())
        found = head_parts.Head("127.0.0.1:1")
        found.parts["raylet"] = head_parts.Part(procs.read_proc(process.pid), [], {}, "/")
        try:
            process.send_signal(signal.SIGSTOP)
            assert found.raylet_answers() is False
            process.send_signal(signal.SIGCONT)
            assert found.raylet_answers() is True
            assert found.raylet_port == port
            process.send_signal(signal.SIGSTOP)
            assert found.raylet_answers() is False
        finally:
            process.kill()


def test_the_keeper_says_that_it_lives(files: StatePaths) -> None:
    """Nothing of the head runs and no start can succeed here: it notes the outage and goes on."""
    plan = plan_for(files, slack=False)
    plan["start"] |= {"argv": ["/bin/false"], "timeout_s": 5}
    plan["store"], plan["temp_dir"] = str(files.gcs), str(files.root / "ray")
    plan["gcs_address"] = "127.0.0.1:1"
    files.keeper.write_text(json.dumps(plan))
    own = keeper.Files(files.root)
    keeper.spawn(plan["keeper"] | {"env": {**plan["keeper"]["env"], "PYTHONPATH": str(ROOT)}})
    try:
        until(own.outage.exists, 20)
        body = until(lambda: (b := json.loads(own.outage.read_text()))["steps"][1:] and b, 20)
        assert "GCS and head raylet are gone" in body["cause"]
        assert any("failed" in text for _, text in body["steps"])
        until(own.beat.exists, 10)
    finally:
        assert keeper.end(own)
    assert keeper.running(own) is None
