"""Many hosts at once: those that hang cost one timeout in all and delay nobody; what failed is named."""

import asyncio
import io
import time
from pathlib import Path
from typing import Any

import pytest

from bootstrap import plan
from bootstrap.launch import Work
from bootstrap.progress import Output, Progress
from bootstrap.reach import Reach
from config import loader, paths

GCS = "10.0.0.1:6379"
LOGIN_S, LOOK_S, START_S = 1.0, 0.05, 0.5


class Fleet:
    """A hundred workers behind transports that take their time; the hanging ones end in a timeout."""

    def __init__(self, hanging: set[str]) -> None:
        self.hanging = hanging
        self.running: set[str] = set()
        self.asked: list[tuple[str, str]] = []

    def __call__(self, name: str) -> "Way":
        return Way(self, name)


class Way:
    def __init__(self, fleet: Fleet, name: str) -> None:
        self.fleet, self.name = fleet, name

    async def call(self, request: dict[str, Any], timeout_s: float) -> dict[str, Any]:
        self.fleet.asked.append((self.name, request["op"]))
        if self.name in self.fleet.hanging:
            await asyncio.sleep(LOGIN_S)
            detail = f"me@{self.name}:22: No shell in time."
            return {"ok": False, "error": "login_timeout", "unreached": True, "detail": detail}
        if request["op"] == "look":
            await asyncio.sleep(LOOK_S)
            rows = [row(self.name)] if self.name in self.fleet.running else []
            return {"ok": True, "raylets": rows}
        if request["op"] == "end_cluster":
            return {"ok": True, "ended": [{"pid": 1}]}
        await asyncio.sleep(START_S)
        self.fleet.running.add(self.name)
        return {"ok": True, "raylet": row(self.name)}


def row(name: str) -> dict[str, Any]:
    return {
        "node_name": name,
        "pid": 7,
        "node_id": "a1",
        "gcs_address": GCS,
        "session_dir": "/tmp/ray/session_1",
        "head": name == "h",
        "uid": 7,
    }


def settings(workers: int = 100, more: str = ""):
    nodes = "".join(f"  - {{name: w{n}, host: 10.0.1.{n}}}\n" for n in range(workers))
    head = "  - {name: h, host: 10.0.0.1, role: head}\n"
    return loader.loads(f"cluster: mine\nssh: {{user: me}}\nnodes:\n{head}{nodes}{more}", "test")


def reach(found, fleet: Fleet, folder: Path) -> Reach:
    state = paths.StatePaths(folder)
    folder.mkdir(exist_ok=True)
    state.ray_token.write_text("s3cret\n")
    return Reach(found, GCS, 7, state, ways=fleet)


def start(found, fleet: Fleet, folder: Path) -> dict[str, str]:
    """One start of the workers, as `start.py` does it; returns name -> how it ended."""
    road = reach(found, fleet, folder)
    seen = plan.Found(running=frozenset(road.raylets()) | {"h"}, app_answers=True)
    here = plan.Here(paths.StatePaths(folder), 7, "10.0.0.1", GCS, {}, "python", "/project")
    with Progress(Output(io.StringIO(), io.StringIO()), []) as progress:
        work = Work(road, here.state, progress)
        work.begin(plan.plan(found, seen, here))
        work.finish(time.monotonic() + 30)
        return {name: outcome.text for name, outcome in work.outcomes().items()}


def test_hanging_hosts_cost_one_timeout_and_starting_again_mends_only_them(tmp_path):
    found, hanging = settings(), {f"w{n}" for n in range(0, 100, 10)}
    fleet = Fleet(hanging)
    began = time.monotonic()
    ended = start(found, fleet, tmp_path / "s")
    took = time.monotonic() - began
    assert took < START_S + LOGIN_S + 4.0, took  # some for a busy machine; one after another is ten
    assert {name for name, text in ended.items() if text == "failed: login_timeout"} == hanging
    assert fleet.running == {f"w{n}" for n in range(100)} - hanging

    fleet.hanging, fleet.asked = set(), []
    assert set(start(found, fleet, tmp_path / "s")) == hanging
    assert {name for name, op in fleet.asked if op != "look"} == hanging


def test_a_host_that_hangs_is_asked_once(tmp_path):
    fleet = Fleet({"w1"})
    road = reach(settings(3), fleet, tmp_path / "s")
    assert road.raylets() == {}
    assert road.raylets() == {}
    assert fleet.asked.count(("w1", "look")) == 1
    assert list(road.unreachable) == ["w1"]
    answers = road.end_cluster(5.0)
    assert list(answers) == ["w0", "w1", "w2", "h"]
    assert [answer["ok"] for answer in answers.values()] == [True, False, True, True]
    assert "me@w1:22" in answers["w1"]["detail"]


def test_nodes_that_left_the_file_are_still_asked(tmp_path):
    fleet = Fleet(set())
    fleet.running = {"w1", "w2"}
    state = paths.StatePaths(tmp_path)
    road = Reach(settings(2), GCS, 7, state, former=settings(3), ways=fleet)
    assert set(road.raylets()) == {"w1", "w2"}
    assert set(road.end_cluster(5.0)) == {"h", "w0", "w1", "w2"}


@pytest.mark.parametrize("ssh", [True, False])
def test_ending_a_cluster_waits_for_the_starts_that_are_under_way(tmp_path, ssh):
    sent: dict[str, tuple[dict[str, Any], float]] = {}

    class Records(Way):
        async def call(self, request: dict[str, Any], timeout_s: float) -> dict[str, Any]:
            sent[self.name] = request, timeout_s
            return {"ok": True}

    one = "cluster: mine\nnodes: [{name: h, host: 127.0.0.1, role: head}, {name: w0, host: 127.0.0.1}]"
    found = settings(1) if ssh else loader.loads(one, "test")
    road = reach(found, lambda name: Records(Fleet(set()), name), tmp_path / "s")  # type: ignore[arg-type]
    mine = {name: str(tmp_path / "s" / "locks" / f"{name}.lock") for name in ("h", "w0")}
    road.end_cluster(5.0)
    locks = {name: request["lock"] for name, (request, _) in sent.items()}
    remote = {"h": [mine["h"]], "w0": ["~/.local/state/grid-agent/mine/locks/w0.lock"]}
    assert locks == (remote if ssh else {"h": list(mine.values())})
    assert all(request["lock_wait_s"] + 5.0 <= limit_s for request, limit_s in sent.values())
    road.end_cluster(5.0, busy={"w0"})
    assert sent["h"][0]["lock"] == [mine["h"]]
    road.end_head(5.0)
    assert (sent["h"][0]["op"], sent["h"][0]["lock"]) == ("end_head", [mine["h"]])


def test_the_token_is_put_in_only_where_it_is_sent(tmp_path):
    sent: list[dict[str, Any]] = []

    class Records(Way):
        async def call(self, request: dict[str, Any], timeout_s: float) -> dict[str, Any]:
            sent.append(request)
            return {"ok": True}

    found = settings(1)
    road = reach(found, lambda name: Records(Fleet(set()), name), tmp_path / "s")  # type: ignore[arg-type]
    here = plan.Here(paths.StatePaths(tmp_path / "s"), 7, "10.0.0.1", GCS, {}, "python", "/project")
    action = plan.plan(found, plan.Found(frozenset({"h"}), app_answers=True), here)[0]
    assert "s3cret" not in "\n".join(plan.describe(action))
    assert "s3cret" not in str(action)
    assert road.start(action)["ok"]
    secret, begin = sent[0]["requests"]
    assert secret["path"] == "~/.local/state/grid-agent/mine/ray_token"
    assert secret["content"] == "s3cret\n"
    assert "s3cret" not in str(begin)
    assert begin["env"]["RAY_AUTH_TOKEN_PATH"] == secret["path"]
    assert begin["expect"].keys() == {"ray", "python"}
    road._state.ray_token.unlink()
    assert road.start(action)["error"] == "auth"


@pytest.mark.parametrize(
    ("root", "short"), [("/s/mine", True), ("/home/somebody/.local/state/grid-agent/mine", False)]
)
def test_control_sockets_have_a_short_path(root, short):
    found = paths.StatePaths(Path(root)).ssh_control(7)
    assert len(found) <= paths.SSH_CONTROL_MAX
    assert found.startswith(root if short else "/tmp/ga-ssh-7-")
