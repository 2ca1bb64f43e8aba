"""What runs on a node, asked of a real HTTP server that answers Ray's state API as the dashboard does."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from grid_agent.core import messages as m
from grid_agent.core.seen import LiveWork
from grid_agent.edges import node_probe, placing, remote
from grid_agent.edges.live_work import MOST, LiveWorks
from tests.support.web import serving

HERE, THERE = "a" * 56, "b" * 56
Rows = dict[str, list[dict[str, Any]]]


@contextmanager
def dashboard(rows: Rows) -> Iterator[str]:
    """Its URL. Serves /api/v0/<kind>, with the filters for equality that the question carries."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            url = urlsplit(self.path)
            asked = parse_qs(url.query)
            wanted = dict(zip(asked.get("filter_keys", []), asked.get("filter_values", []), strict=True))
            known = rows.get(url.path.removeprefix("/api/v0/"))
            found = [r for r in known or [] if all(r.get(k) == v for k, v in wanted.items())]
            data = {"result": {"result": found, "total": len(found)}}
            ok = {"result": True, "msg": "", "data": data}
            self._say({"result": False, "msg": "no such data"} if known is None else ok)

        def _say(self, body: dict[str, Any]) -> None:
            raw = json.dumps(body).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(raw)))
            self.end_headers()
            self.wfile.write(raw)

        def log_message(self, *args: Any) -> None:
            """Quiet."""

    with serving(Handler) as url:
        yield url


def actor(class_name: str, node_id: str = HERE, state: str = "ALIVE", name: str = "") -> dict[str, Any]:
    return {
        "actor_id": "1",
        "class_name": class_name,
        "state": state,
        "job_id": "01",
        "name": name,
        "node_id": node_id,
        "pid": 1,
        "ray_namespace": "",
    }


def task(name: str, node_id: str = HERE, state: str = "RUNNING") -> dict[str, Any]:
    return {
        "task_id": "1",
        "attempt_number": 0,
        "name": name,
        "state": state,
        "job_id": "01",
        "actor_id": None,
        "type": "NORMAL_TASK",
        "func_or_class_name": name,
        "parent_task_id": "0",
        "node_id": node_id,
        "worker_id": "1",
        "worker_pid": 1,
        "error_type": None,
    }


def group(*nodes: str) -> dict[str, Any]:
    return {
        "placement_group_id": "1",
        "name": "",
        "creator_job_id": "01",
        "state": "CREATED",
        "bundles": [{"bundle_id": "1", "node_id": node} for node in nodes],
    }


async def listed(actors: Any = (), tasks: Any = (), groups: Any = ()) -> LiveWork:
    rows = {"actors": list(actors), "tasks": list(tasks), "placement_groups": list(groups)}
    with dashboard(rows) as url:
        return (await LiveWorks(url).list_work(m.ListWork("gpu1", HERE))).work


async def test_each_kind_of_work_is_counted_on_its_node_only() -> None:
    dead = actor("Trainer", state="DEAD")
    work = await listed(
        [dead, actor("ServeReplica:app:Model"), actor("Trainer", name="boss"), actor("Trainer", THERE)],
        [task("train"), task("train", THERE), task("train", state="FINISHED")],
        [group(HERE, THERE), group(THERE)],
    )
    assert work.trouble is None
    assert work.counts == {"tasks": 1, "actors": 1, "Serve replicas": 1, "placement groups": 1}
    assert work.names == ("ServeReplica:app:Model", "boss", "train")


@pytest.mark.parametrize("name", ["_train_shard", "_noop", "repair the index", "grid-agents", "carry_out"])
async def test_a_users_task_is_work_whatever_its_name(name: str) -> None:
    assert (await listed(tasks=[task(name)])).counts["tasks"] == 1


@pytest.mark.parametrize("name", ["NodeProbe", "_Repairer", "GridAgentProbes"])
async def test_a_users_actor_is_work_whatever_its_class(name: str) -> None:
    assert (await listed([actor(name)])).counts["actors"] == 1


async def test_what_the_agent_runs_itself_is_no_work() -> None:
    ours = [placing.task(remote._noop, "no-op"), placing.task(remote._carry_out, "repair gpu1")]
    names = [o._default_options["name"] for o in ours]
    classes = [node_probe.GridAgentProbe.__name__, remote.GridAgentRepairer.__name__]
    assert (await listed(map(actor, classes), map(task, names))).nothing


async def test_placement_groups_that_are_too_many_to_tell_apart_are_trouble() -> None:
    work = await listed(groups=[group(THERE)] * MOST)
    assert not work.nothing
    assert "placement groups" in str(work.trouble)


async def test_a_dashboard_that_says_no_or_is_not_there_is_trouble_not_idleness() -> None:
    with dashboard({"actors": []}) as url:
        refused = (await LiveWorks(url).list_work(m.ListWork("gpu1", HERE))).work
    silent = (await LiveWorks(url).list_work(m.ListWork("gpu1", HERE))).work
    assert "no such data" in str(refused.trouble)
    assert not silent.nothing
