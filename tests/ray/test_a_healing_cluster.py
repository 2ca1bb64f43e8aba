"""The main road on real Ray: start, look, kill, heal, start again, be told. One cluster for all of it."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from tests.ray.conftest import TOKEN, Running
from tests.support.cluster import BIN, ROOT, Cluster, exports, free_port, processes, until

pytestmark = pytest.mark.ray

PINNED = """
import ray, sys
ray.init(address=sys.argv[1], log_to_driver=False, logging_level="ERROR")
node = next(n for n in ray.nodes() if n["NodeName"] == sys.argv[2] and n["Alive"])
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy as Pin
task = ray.remote(num_cpus=1)(lambda: ray.get_runtime_context().get_node_id())
where = ray.get(task.options(scheduling_strategy=Pin(node["NodeID"], soft=False)).remote(), timeout=30)
assert where == node["NodeID"]
print("ran on", sys.argv[2])
deaths = [n["DeathReasonMessage"] for n in ray.nodes() if n["NodeName"] == sys.argv[2] and not n["Alive"]]
print(deaths[-1] if deaths else "")
"""

USERS_APP = """
from ray import serve
@serve.deployment(ray_actor_options={"num_cpus": 0})
class Hello:
    async def __call__(self, request):
        return "hello from the user's app"
app = Hello.bind()
"""


def test_start_says_what_runs(running: Running) -> None:
    body = running.cluster.health()
    assert body["status"] == "pass", body
    assert [n["state"] for n in body["nodes"]] == ["ALIVE"] * 3
    for word in ("head", "w1", "w2", "health_check_failure_threshold", "11", "serve", "stop.py"):
        assert word in running.output
    assert set(running.cluster.raylets()) == {"head", "w1", "w2"}


def test_serve_status_shows_the_application_running(running: Running) -> None:
    cluster = running.cluster
    variables = exports(cluster.run(str(BIN / "grid-agent"), "env", "-c", str(cluster.file)).stdout)
    said = cluster.run(str(BIN / "serve"), "status", **variables)
    assert said.returncode == 0, said.stderr
    assert yaml.safe_load(said.stdout)["applications"]["grid-agent"]["status"] == "RUNNING"


def test_every_page_answers_and_the_command_line_agrees(running: Running) -> None:
    url = running.cluster.url
    for path in ("livez", "readyz", "metrics", "docs", "openapi.json", "incidents"):
        assert httpx.get(f"{url}/cluster/{path}", trust_env=False).status_code == 200, path
    metrics = httpx.get(f"{url}/cluster/metrics", trust_env=False).text
    assert 'grid_agent_node_up{node="w1",role="worker"} 1.0' in metrics
    said = running.cluster.cli("status", "-o", "json")
    assert said.returncode == 0, said.stderr
    assert json.loads(said.stdout)["status"] == "pass"
    assert "ALIVE" in running.cluster.cli("status").stdout


def test_a_killed_worker_is_healed_and_the_story_is_told_once(running: Running) -> None:
    cluster, slack = running.cluster, running.slack
    old = cluster.raylets()["w1"]
    os.kill(old, 9)
    until(lambda: cluster.state("w1") != "ALIVE", 5)
    assert cluster.cli("status").returncode == 1
    until(lambda: cluster.health()["status"] == "pass" and cluster.raylets().get("w1", old) != old, 60)

    said = cluster.run(sys.executable, "-c", PINNED, f"127.0.0.1:{cluster.port}", "w1")
    assert "ran on w1" in said.stdout, said.stderr
    assert "grid-agent: process gone" in said.stdout  # Ray's own row carries our cause

    message = until(lambda: next((m for m in slack.messages if "resolved" in m["text"]), None), 10)
    about_w1 = [m for m in slack.messages if "w1" in m["text"]]
    assert len(about_w1) == 1
    assert "process gone" in message["text"]
    steps = [reply["text"] for reply in message["replies"]]
    assert any("restarting w1 by a task on head" in s for s in steps), steps
    assert any("Ray was told" in s for s in steps), steps


def test_the_agent_killed_in_the_middle_of_an_incident_goes_on_with_it(running: Running) -> None:
    """kill -9 of the Serve replica: another one reads the journal, and people see one message."""
    cluster, slack = running.cluster, running.slack
    posts = len(slack.messages)
    incidents = len(json.loads(cluster.cli("incidents", "-o", "json").stdout)["incidents"])
    old = cluster.raylets()["w1"]
    (replica,) = replicas(cluster)
    os.kill(old, 9)
    until(lambda: cluster.state("w1") != "ALIVE", 5)
    os.kill(replica, 9)
    until(lambda: cluster.health()["status"] == "pass" and cluster.raylets().get("w1", old) != old, 120)
    assert replicas(cluster) != [replica]

    told = json.loads(cluster.cli("incidents", "-o", "json").stdout)["incidents"]
    assert len(told) == incidents + 1
    assert told[0]["nodes"] == ["w1"]
    assert told[0]["phase"] == "resolved"
    until(lambda: "resolved" in slack.messages[-1]["text"], 15)
    assert len(slack.messages) == posts + 1
    until(lambda: len(slack.messages[-1]["replies"]) == len(told[0]["steps"]), 15)
    replies = [reply["text"] for reply in slack.messages[-1]["replies"]]
    assert len(set(replies)) == len(replies)


def replicas(cluster: Cluster) -> list[int]:
    """The agent's processes of this cluster: children of its head's raylet."""
    head = cluster.raylets()["head"]
    named = (p for p, a in processes().items() if a[0].startswith("ray::ServeReplica:grid-agent:GridAgent"))
    return [p for p in named if parent(p) == head]


def parent(pid: int) -> int | None:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1])
    except OSError:
        return None


def test_the_healed_raylet_is_nobodys_child(running: Running) -> None:
    """It must outlive the task that started it, that task's worker and the head's raylet."""
    raylets = running.cluster.raylets()
    stat = Path(f"/proc/{raylets['w1']}/stat").read_text().rsplit(")", 1)[1].split()
    parent, session = int(stat[1]), int(stat[3])
    assert parent == 1
    head = Path(f"/proc/{raylets['head']}/stat").read_text().rsplit(")", 1)[1].split()
    assert session not in (raylets["head"], int(head[3]))


def test_start_again_leaves_everything_as_it_is(running: Running) -> None:
    before = running.cluster.raylets()
    again = running.cluster.start(SLACK_BOT_TOKEN=TOKEN)
    assert again.returncode == 0, again.stdout + again.stderr
    assert running.cluster.raylets() == before


def test_a_node_that_a_person_stopped_stays_stopped_until_start(running: Running) -> None:
    cluster = running.cluster
    assert cluster.stop("--node", "w2").returncode == 0
    until(lambda: cluster.state("w2") == "CORDONED", 10)
    time.sleep(5)
    assert "w2" not in cluster.raylets()
    assert cluster.start(SLACK_BOT_TOKEN=TOKEN).returncode == 0
    assert "w2" in cluster.raylets()
    assert not [m for m in running.slack.messages if ": w2: " in m["text"]]  # what a person does is none


def test_a_users_application_lives_beside_ours(running: Running) -> None:
    cluster = running.cluster
    (cluster.cwd / "hello.py").write_text(USERS_APP)
    config = {"applications": [{"name": "hello", "route_prefix": "/", "import_path": "hello:app"}]}
    config["applications"][0]["runtime_env"] = {"working_dir": f"local://{cluster.cwd}"}
    (cluster.cwd / "app.yaml").write_text(yaml.safe_dump(config))
    dashboard = f"http://127.0.0.1:{cluster.dashboard_port}"
    said = cluster.run(str(BIN / "serve"), "deploy", "-a", dashboard, "app.yaml")
    assert said.returncode == 0, said.stderr
    answer = until(
        lambda: (r := httpx.get(f"{cluster.url}/", trust_env=False)).status_code == 200 and r, 60, 0.5
    )
    assert "hello from the user's app" in answer.text
    assert cluster.health()["status"] == "pass"
    status = yaml.safe_load(cluster.run(str(BIN / "serve"), "status", "-a", dashboard).stdout)["applications"]
    assert (status["grid-agent"]["status"], status["hello"]["status"]) == ("RUNNING", "RUNNING")


def test_a_hung_raylet_is_suspected_lives_on_and_slows_nobody(running: Running) -> None:
    cluster = running.cluster
    raylet = cluster.raylets()["w2"]
    os.kill(raylet, signal.SIGSTOP)
    try:
        node = until(lambda: (n := node_of(cluster.health(), "w2"))["cause"] == "hung" and n, 15)
        assert node["state"] == "SUSPECT"
        for _ in range(10):
            begun = time.monotonic()
            assert cluster.health()["status"] == "warn"
            assert time.monotonic() - begun < 1
        assert cluster.health()["incidents"]["open"] == 0  # suspicion is no verdict
    finally:
        os.kill(raylet, signal.SIGCONT)
    until(lambda: cluster.health()["status"] == "pass", 15)
    assert cluster.raylets()["w2"] == raylet


def node_of(body: dict[str, Any], name: str) -> dict[str, Any]:
    return next(n for n in body["nodes"] if n["name"] == name)


def test_the_slack_token_is_nowhere_to_be_seen(running: Running) -> None:
    cluster = running.cluster
    state = cluster.home / "state" / "grid-agent" / cluster.name
    assert (state / "slack_token").read_text().strip() == TOKEN
    assert (state / "slack_token").stat().st_mode & 0o777 == 0o600
    ours = {p for p, argv in processes().items() if cluster.name in " ".join(argv) or "ray::" in argv[0]}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit() and int(folder.name) != os.getpid():
            try:
                assert TOKEN.encode() not in (folder / "cmdline").read_bytes()
                if int(folder.name) in ours:
                    assert TOKEN.encode() not in (folder / "environ").read_bytes(), folder
            except OSError:
                continue
    logs = [
        p for p in [*state.rglob("*"), *Path(f"/tmp/ray-{cluster.name}-0").rglob("logs/**/*")] if p.is_file()
    ]
    assert [p for p in logs if TOKEN.encode() in p.read_bytes()] == [state / "slack_token"]
    assert TOKEN not in json.dumps(cluster.health())
    assert TOKEN not in cluster.cli("incidents", "-o", "json").stdout
    assert TOKEN not in json.dumps(running.slack.messages)
    assert (state / "journal.sqlite").stat().st_mode & 0o777 == 0o600


def test_both_workers_at_once_are_held_then_healed_one_at_a_time(running: Running) -> None:
    cluster, slack = running.cluster, running.slack
    posts = len(slack.messages)
    raylets = cluster.raylets()
    began = time.monotonic()
    for name in ("w1", "w2"):
        os.kill(raylets[name], 9)
    until(lambda: cluster.health()["observer"]["status"] == "warn", 5)
    until(lambda: cluster.health()["status"] == "pass", 90)
    assert time.monotonic() - began > 10
    assert cluster.raylets().keys() == {"head", "w1", "w2"}
    until(lambda: all("resolved" in m["text"] for m in slack.messages), 10)
    assert len(slack.messages) - posts == 1


def test_the_shipped_yaml_deploys_the_same_application(running: Running) -> None:
    cluster = running.cluster
    shipped = yaml.safe_load((ROOT / "deployments" / "serve.yaml").read_text())
    (application,) = shipped["applications"]
    application["args"] = cluster.spec
    shipped["http_options"]["port"] = cluster.http_port
    (cluster.cwd / "serve.yaml").write_text(yaml.safe_dump(shipped))
    dashboard = f"http://127.0.0.1:{cluster.dashboard_port}"
    said = cluster.run(str(BIN / "serve"), "deploy", "-a", dashboard, "serve.yaml")
    assert said.returncode == 0, said.stderr

    def redeployed() -> bool:
        text = cluster.run(str(BIN / "serve"), "status", "-a", dashboard).stdout
        found = yaml.safe_load(text)["applications"]
        return list(found) == ["grid-agent"] and found["grid-agent"]["status"] == "RUNNING"

    until(redeployed, 90, 1)
    until(lambda: cluster.health()["status"] == "pass", 30)


def test_stop_ends_this_cluster_and_no_other_ray(
    running: Running, tmp_path_factory: pytest.TempPathFactory
) -> None:
    cluster = running.cluster
    other = cluster.home / "other"
    port = str(free_port())
    argv = [
        str(BIN / "ray"),
        "start",
        "--head",
        f"--port={port}",
        "--include-dashboard=false",
        "--num-cpus=1",
    ]
    argv += [f"--temp-dir={other}", "--object-store-memory=80000000", "--disable-usage-stats", "--no-monitor"]
    argv += ["--ray-client-server-port=20077"]
    assert subprocess.run(argv, env=cluster.environ(), stdout=subprocess.DEVNULL, check=False).returncode == 0
    stranger = [p for p, a in _of(f":{port}")]
    try:
        stopped = cluster.stop()
        assert stopped.returncode == 0, stopped.stdout + stopped.stderr
        until(lambda: not cluster.leftovers(), 10)
        assert cluster.raylets() == {}
        alive = [p for p, a in _of(f":{port}")]
        assert set(stranger) <= set(alive)
        ask = f"import ray; ray.init(address='127.0.0.1:{port}', logging_level='ERROR'); "
        ask += "print(ray.get(ray.remote(lambda: 'still here').remote(), timeout=30))"
        assert "still here" in cluster.run(sys.executable, "-c", ask).stdout
        assert cluster.stop().returncode == 0  # nothing left to stop is no error
    finally:
        for pid, _ in reversed(_of(str(other))):  # GCS, raylet and their like all name their folder
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, 9)


def _of(mark: str) -> list[tuple[int, list[str]]]:
    return sorted(
        (p, a) for p, a in processes().items() if any(mark in part for part in a) and p != os.getpid()
    )
