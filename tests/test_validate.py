"""`validate` and its monitor: what each check says, and the exit codes."""

import io
import json
from dataclasses import replace
from typing import Any

import jsonschema
import pytest
from rich.console import Console

from config import loader, tuning
from config.settings import RayConfig, Settings
from grid_agent import validate as validation
from grid_agent import validate_address
from grid_agent import validate_report as reports
from grid_agent.core import effective
from grid_agent.core.messages import NodeRow
from grid_agent.exits import Exit
from grid_agent.monitor import Monitor, watch
from grid_agent.ray_view import RayView
from tests.support.cluster import free_port
from tests.support.web import answering

HEALTH = {
    "status": "pass",
    "time": "t",
    "age_s": 0.1,
    "observer": {"status": "pass"},
    "incidents": {"open": 0},
    "nodes": [
        {
            "name": n,
            "state": "ALIVE",
            "cause": None,
            "action": None,
            "heartbeat": {"age_s": 0.2, "rtt_ms": 0.5},
        }
        for n in ("head", "worker1", "worker2")
    ],
}
APPS = {"applications": {"grid-agent": {"status": "RUNNING", "message": ""}}}
DASHBOARD = {"/api/version": (200, {"ray_version": "2.60.0"}), "/api/serve/applications/": (200, APPS)}


def settings(dashboard: str, **more: Any) -> Settings:
    port = dashboard.rsplit(":", 1)[1]
    overrides = {"GRID_AGENT__RAY__DASHBOARD_PORT": port, **more}
    return loader.loads(loader.default_file().read_text(), "local.yaml", overrides)


async def one_raylet(node: str, request: dict[str, Any], timeout_s: float) -> dict[str, Any]:
    assert request["node_name"] == node
    return {"ok": True, "raylets": [{"pid": 7}]}


def row(name: str, *, alive: bool = True, started: int = 1, death: str = "") -> NodeRow:
    return NodeRow(name, f"{name}-{started}", "127.0.0.1", 7, alive, started, death=death)


def view(*rows: NodeRow, config: dict[str, Any] | None = None, **environ: str) -> RayView:
    """A head that runs with these nodes and what `start.py` gives it."""
    given = tuning.plan(RayConfig()).system_config if config is None else config
    readers = dict.fromkeys(environ, "C++")
    told = rows or tuple(map(row, ("head", "worker1", "worker2")))
    return RayView(effective.Head(True, given, environ), effective.Installed("2.60.0", {}, readers), told)


DOWN = RayView(effective.Head(False), effective.Installed("2.60.0"), None, "Connection refused")


async def checks(
    found: Settings,
    agent: str,
    call: Any = one_raylet,
    ray_token: str | None = None,
    seen: RayView | None = None,
    **environ: str,
) -> dict[str, Any]:
    async def look() -> RayView:
        return seen or view()

    report = await validation.validate(
        found, call, agent, look, api_token=None, ray_token=ray_token, environ=environ
    )
    code = validation.verdict(report.checks)
    document = reports.document(report, code)
    jsonschema.validate(document, json.loads(reports.SCHEMA.read_text()))
    return {"code": code, "json": document, **{c.name: c for c in report.checks}}


async def test_a_healthy_cluster_passes() -> None:
    with answering(DASHBOARD) as dashboard, answering({"/cluster/health": (200, HEALTH)}) as agent:
        found = await checks(settings(dashboard), agent)
    assert found["code"] is Exit.PASS
    assert {c.status for c in found.values() if isinstance(c, validation.Check)} == {"pass"}
    assert "2.60.0" in found["dashboard"].detail


async def test_a_cluster_that_is_down_is_4_and_says_so() -> None:
    nobody = f"http://127.0.0.1:{free_port()}"

    async def empty(*_: Any) -> dict[str, Any]:
        return {"ok": True, "raylets": []}

    found = await checks(settings(nobody), nobody, empty, seen=DOWN)
    assert found["code"] is Exit.UNREACHABLE
    assert "Connection refused" in found["gcs"].detail
    assert found["json"]["settings"][0]["in_force"] is None
    assert found["json"]["detection"]["killed_s"] == [100, 110]  # of the next start
    assert "start.py" in found["host worker1"].detail


async def test_a_host_that_cannot_be_reached_fails_with_its_own_words() -> None:
    async def call(node: str, request: dict[str, Any], timeout_s: float) -> dict[str, Any]:
        if node == "worker1":
            return {"ok": False, "error": "key_refused", "detail": "add the key to authorized_keys"}
        return await one_raylet(node, request, timeout_s)

    with answering(DASHBOARD) as dashboard, answering({"/cluster/health": (200, HEALTH)}) as agent:
        found = await checks(settings(dashboard), agent, call)
    assert found["code"] is Exit.FAIL
    assert "authorized_keys" in found["host worker1"].detail


async def test_two_raylets_of_one_node_fail() -> None:
    async def call(*_: Any) -> dict[str, Any]:
        return {"ok": True, "raylets": [{"pid": 7}, {"pid": 8}]}

    with answering(DASHBOARD) as dashboard, answering({"/cluster/health": (200, HEALTH)}) as agent:
        found = await checks(settings(dashboard), agent, call)
    assert "pids 7, 8" in found["host worker2"].detail
    assert found["code"] is Exit.FAIL


@pytest.mark.parametrize(("guarded", "status"), [(True, "pass"), (False, "fail")])
async def test_in_token_mode_a_request_without_the_token_must_be_refused(guarded: bool, status: str) -> None:
    token = "secret" if guarded else None
    with answering(DASHBOARD, token) as dashboard, answering({"/cluster/health": (200, HEALTH)}) as agent:
        found = await checks(settings(dashboard, GRID_AGENT__RAY__AUTH="token"), agent, ray_token="secret")
    assert found["auth"].status == status
    assert found["dashboard"].status == "pass"


async def test_a_node_that_is_not_alive_warns_with_its_cause() -> None:
    sick = {**HEALTH["nodes"][1], "state": "DEAD", "cause": "process gone", "action": "next attempt in 3 s"}
    body = {**HEALTH, "status": "warn", "nodes": [HEALTH["nodes"][0], sick, HEALTH["nodes"][2]]}
    with answering(DASHBOARD) as dashboard, answering({"/cluster/health": (200, body)}) as agent:
        found = await checks(settings(dashboard), agent)
    assert found["code"] is Exit.WARN
    assert found["node worker1"].detail == "DEAD: process gone, next attempt in 3 s"


def test_the_monitor_sums_up_and_keeps_the_worst_moment() -> None:
    said: list[str] = []
    monitor = Monitor(said.append)
    gone = {**HEALTH["nodes"][1], "state": "DEAD", "cause": "process gone"}
    gone["heartbeat"] = {"age_s": 4.0, "rtt_ms": 9.0}
    for nodes, status in (
        (HEALTH["nodes"], "pass"),
        ([HEALTH["nodes"][0], gone, HEALTH["nodes"][2]], "warn"),
        (HEALTH["nodes"], "pass"),
    ):
        monitor.see({**HEALTH, "status": status, "nodes": nodes})
    assert monitor.worst is Exit.WARN
    assert "t  worker1  ALIVE -> DEAD (process gone)" in said
    found = next(n for n in monitor.report().nodes if n.name == "worker1")
    assert (found.alive_percent, found.worst_gap_s, found.state, found.missed) == (66.7, 4.0, "ALIVE", 1)
    assert (found.rtt_ms.p50, found.rtt_ms.p99) == (0.5, 0.5)  # an old answer is no new one
    assert [(c.before, c.after, c.cause) for c in found.changes] == [
        ("ALIVE", "DEAD", "process gone"),
        ("DEAD", "ALIVE", None),
    ]
    assert monitor.report().availability_percent == 88.89
    monitor.nobody("nobody answers")
    monitor.nobody("nobody answers")
    assert said.count("nobody answers") == 1
    assert monitor.worst is Exit.UNREACHABLE
    assert monitor.lines()[0].startswith("5 polls, 2 unanswered; nodes were ALIVE 88.89 % of the time")
    assert monitor.lines()[-1] == "t  worker1  DEAD -> ALIVE"


def seen_of(*beats: dict[str, Any], within_s: float | None = None) -> tuple[int, float | None, float | None]:
    """Of one node: misses, p50 and p99."""
    monitor = Monitor(lambda _: None)
    observer = {"status": "pass"} | ({} if within_s is None else {"silence_suspected_within_s": within_s})
    for beat in beats:
        monitor.see({**HEALTH, "observer": observer, "nodes": [{**HEALTH["nodes"][0], "heartbeat": beat}]})
    (found,) = monitor.report().nodes
    return found.missed, found.rtt_ms.p50, found.rtt_ms.p99


def beat(age_s: float | None, last: float | None, shortest: float | None = 0.3) -> dict[str, Any]:
    return {"age_s": age_s, "rtt_ms": shortest, "last_rtt_ms": last}


def test_an_answer_is_late_only_when_the_agent_would_suspect_it() -> None:
    slow_pace = [beat(age_s, 0.5) for age_s in (0.5, 1.5, 2.5, 3.5, 4.5)]
    assert seen_of(*slow_pace, within_s=20.0)[0] == 0
    assert seen_of(*slow_pace, within_s=4.0)[0] == 1
    assert seen_of(*slow_pace)[0] == 3


def test_each_round_trip_counts_once_and_spikes_are_seen() -> None:
    repeated = [beat(0.5, 0.5), beat(1.5, 0.5), beat(2.5, 0.5), beat(0.5, 80.0), beat(0.4, 80.0)]
    assert seen_of(*repeated, within_s=20.0) == (0, 80.0, 80.0)  # 0.5 once, 80 twice
    spike = [*(beat(0.4, 0.4 + n / 1000) for n in range(9)), beat(0.4, 60.0)]
    assert seen_of(*spike) == (0, 0.405, 60.0)
    assert seen_of(beat(None, None, None)) == (1, None, None)


def test_a_terminal_gets_a_live_table_and_a_pipe_plain_lines() -> None:
    reports_ = iter([HEALTH, HEALTH])
    screen, plain = io.StringIO(), list[str]()
    console = Console(file=screen, force_terminal=True, width=100)
    watch(lambda: next(reports_), 0.01, plain.append, console)
    assert plain == []
    assert "worker2" in screen.getvalue()
    assert "MISSED" in screen.getvalue()
    watch(lambda: HEALTH, 0.01, plain.append, Console(file=io.StringIO()))
    assert "t  worker2  ? -> ALIVE" in plain


async def test_every_key_of_the_file_is_there_by_name_and_mapped() -> None:
    with answering(DASHBOARD) as dashboard, answering({"/cluster/health": (200, HEALTH)}) as agent:
        found = await checks(settings(dashboard), agent)
    for key in tuning.READS:
        assert found[f"ray.{key}"].status == "pass"
        assert found[f"ray.{key}"].detail.startswith(f"mapped to {tuning.READS[key]} = ")
    row = found["json"]["settings"][0]
    assert (row["name"], row["reads"]) == ("ray.heartbeat_timeout_ms", "health_check_failure_threshold")
    assert (row["in_force"], row["source"], row["read_by"]) == (11, "system-config", "GCS")


async def test_what_runs_beside_the_file_fails_with_the_way_back() -> None:
    other = {**tuning.plan(RayConfig()).system_config, "health_check_period_ms": 4000}
    with answering(DASHBOARD) as dashboard, answering({"/cluster/health": (200, HEALTH)}) as agent:
        found = await checks(settings(dashboard), agent, seen=view(config=other))
    assert found["code"] is Exit.FAIL
    assert "4000 (system-config) is in force: stop.py, then start.py" in (
        found["ray.health_check_period_ms"].detail
    )
    assert found["json"]["detection"]["killed_s"] == [40, 44]  # of what runs


async def test_rays_own_view_of_the_nodes() -> None:
    seen = view(
        row("head"),
        row("worker1", started=1),
        row("worker1", alive=False, started=2, death="health check failed"),
        row("worker2", started=1),
        row("worker2", started=2),
        row("guest"),
    )
    with answering(DASHBOARD) as dashboard, answering({"/cluster/health": (200, HEALTH)}) as agent:
        found = await checks(settings(dashboard), agent, seen=seen)
    assert found["ray worker1"].status == "fail"
    assert found["ray worker1"].detail.startswith("DEAD: health check failed; 1 earlier lives")
    assert found["ray worker2"].status == "warn"
    assert "1 earlier lives" in found["ray worker2"].detail
    assert "not in the file" in found["ray guest"].detail
    assert [n["ray"] for n in found["json"]["nodes"]] == ["ALIVE", "DEAD", "ALIVE"]


@pytest.mark.parametrize(
    ("apps", "word"),
    [
        ((200, {"applications": {}}), "not deployed"),
        ((200, {"applications": {"grid-agent": {"status": "DEPLOY_FAILED", "message": "no"}}}), "no"),
        ((200, b"<html>"), "could not be asked"),
        ((500, {}), "answers 500"),
    ],
)
async def test_an_application_that_does_not_run_fails(apps: Any, word: str) -> None:
    answers = {**DASHBOARD, "/api/serve/applications/": apps}
    with answering(answers) as dashboard, answering({"/cluster/health": (200, HEALTH)}) as agent:
        found = await checks(settings(dashboard), agent)
    assert found["code"] is Exit.FAIL
    assert word in found["application"].detail


async def test_a_stranger_on_the_dashboards_port_is_no_crash() -> None:
    with answering({"/api/version": (200, b"<html>")}) as dashboard, answering({}) as agent:
        found = await checks(settings(dashboard), agent)
    assert "not as Ray does" in found["dashboard"].detail
    assert found["agent"].unreachable


async def test_an_agent_that_hangs_is_stale() -> None:
    body = {**HEALTH, "age_s": 42.0, "incidents": {"open": 1}}
    with answering(DASHBOARD) as dashboard, answering({"/cluster/health": (200, body)}) as agent:
        found = await checks(settings(dashboard), agent)
    assert found["agent age"].status == "fail"
    assert "42.0 s" in found["agent age"].detail
    assert found["incidents"].status == "warn"


async def by_address(seen: RayView, dashboard: str | None, address: str = "10.0.0.1:6379") -> dict[str, Any]:
    async def look() -> RayView:
        return seen

    report = await validate_address.validate_address(address, look, dashboard, ray_token=None, environ={})
    return {"report": report, **{check.name: check for check in report.checks}}


ELSEWHERE = RayView(effective.Head(True, {}, None), effective.Installed("2.60.0"), (row("a"), row("b")))


async def test_a_cluster_without_a_file_says_what_it_cannot_know() -> None:
    with answering(DASHBOARD) as dashboard:
        found = await by_address(ELSEWHERE, dashboard)
    report = found["report"]
    names = [check.name for check in report.checks]
    assert names.count("not known") == 3
    assert {"gcs", "ray a", "ray b"} <= set(names)
    assert report.detection is None
    assert {row.source for row in report.settings} == {"unknown"}
    assert validation.verdict(report.checks) is Exit.WARN


@pytest.mark.parametrize(
    ("token", "status", "word"),
    [(None, "warn", "without a token was answered (200)"), ("secret", "pass", "is refused (401)")],
)
async def test_without_a_file_authentication_is_tried_not_believed(
    token: str | None, status: str, word: str
) -> None:
    with answering(DASHBOARD, token) as dashboard:
        where = dashboard.removeprefix("http://")
        found = await by_address(replace(ELSEWHERE, dashboard=where), None, "127.0.0.1:6379")
    assert found["auth"].status == status
    assert word in found["auth"].detail
    assert where in found["dashboard"].detail


async def test_without_a_file_no_other_clusters_dashboard_is_asked() -> None:
    with answering(DASHBOARD) as dashboard:
        port = dashboard.rsplit(":", 1)[1]
        there = replace(ELSEWHERE, dashboard=f"127.0.0.1:{port}")
        found = await by_address(there, None, "192.0.2.1:6379")  # not an address of this machine
    assert f"listens on 127.0.0.1:{port} of the head host only" in found["dashboard"].detail
    assert found["auth"].detail.startswith("not known")
    found = await by_address(ELSEWHERE, None)
    assert "the GCS does not say where it listens" in found["dashboard"].detail


async def test_a_head_that_demands_a_token_although_the_file_says_disabled_fails() -> None:
    guarded = answering(DASHBOARD, "secret")
    with guarded as dashboard, answering({"/cluster/health": (200, HEALTH)}) as agent:
        found = await checks(settings(dashboard), agent, ray_token="secret")
    assert found["auth"].status == "fail"
    assert "is refused (401), but the file says disabled" in found["auth"].detail


def test_the_schema_that_is_shipped_is_the_one_of_the_code() -> None:
    assert reports.SCHEMA.read_text() == reports.schema(), "python -m grid_agent.validate_report --write"
