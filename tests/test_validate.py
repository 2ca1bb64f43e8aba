"""`validate` and its monitor: what each check says, and the exit codes."""

from typing import Any

import pytest

from config import loader
from config.settings import Settings
from grid_agent import validate as validation
from grid_agent.exits import Exit
from grid_agent.monitor import Monitor
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
DASHBOARD = {"/api/version": (200, {"ray_version": "2.60.0"}), "/api/serve/applications/": (200, {})}


def settings(dashboard: str, **more: Any) -> Settings:
    port = dashboard.rsplit(":", 1)[1]
    overrides = {"GRID_AGENT__RAY__DASHBOARD_PORT": port, **more}
    return loader.loads(loader.default_file().read_text(), "local.yaml", overrides)


async def one_raylet(node: str, request: dict[str, Any], timeout_s: float) -> dict[str, Any]:
    assert request["node_name"] == node
    return {"ok": True, "raylets": [{"pid": 7}]}


async def checks(
    found: Settings, agent: str, call: Any = one_raylet, ray_token: str | None = None
) -> dict[str, Any]:
    rows = await validation.validate(found, call, agent, api_token=None, ray_token=ray_token)
    return {"code": validation.verdict(rows), **{c.name: c for c in rows}}


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

    found = await checks(settings(nobody), nobody, empty)
    assert found["code"] is Exit.UNREACHABLE
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
    row = next(n for n in monitor.report()["nodes"] if n["name"] == "worker1")
    assert (row["alive_percent"], row["worst_gap_s"], row["state"]) == (66.7, 4.0, "ALIVE")
    assert row["rtt_ms"] == {"p50": 0.5, "p99": 9.0}
    monitor.nobody("nobody answers")
    assert monitor.worst is Exit.UNREACHABLE
    assert monitor.lines()[0] == "4 polls, 1 unanswered"
