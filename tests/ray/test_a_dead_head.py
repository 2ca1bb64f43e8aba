"""The head dies, in parts and as a whole, and comes back with its session; workers and their work stay."""

import contextlib
import json
import os
import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from tests.ray.conftest import TOKEN, Running
from tests.support.cluster import BIN, Cluster, exports, until
from tests.support.lasting_work import Work
from tests.support.slack_server import SlackServer

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def one() -> Iterator[Running]:
    with SlackServer(token=TOKEN) as slack:
        cluster = Cluster(slack={"channel": "#grid-alerts", "base_url": slack.base_url})
        cluster.spec["nodes"][1]["num_cpus"], cluster.spec["nodes"][2]["num_cpus"] = 3, 0
        cluster.save()
        try:
            started = cluster.start(SLACK_BOT_TOKEN=TOKEN)
            # A worker that was late on a busy machine is the agent's to bring up.
            until(cluster.passes, 120 if started.returncode else 10)
            yield Running(cluster, slack, started.stdout)
        finally:
            cluster.close()


@pytest.fixture(scope="module")
def work(one: Running) -> Iterator[Work]:
    begun = Work(one.cluster)
    yield begun
    begun.close()


def say(cluster: Cluster, path: str, **body: object) -> None:
    """What a person says with `grid-agent pause` and the like."""
    headers = {"authorization": f"Bearer {(cluster.folder / 'api_token').read_text().strip()}"}
    url = f"{cluster.url}/cluster/{path}"
    answer = httpx.post(url, json={"by": "alice", **body}, headers=headers, trust_env=False)
    assert answer.status_code == 200, answer.text


def back(cluster: Cluster) -> bool:
    """Whether the head is whole and the agent has proved it, whatever its workers are."""
    with contextlib.suppress(httpx.HTTPError, ValueError):
        return len(cluster.head_parts()) == 3 and cluster.state("head") == "ALIVE"
    return False


def why(cluster: Cluster, node: str) -> dict[str, Any]:
    return dict(httpx.get(f"{cluster.url}/cluster/why/{node}", trust_env=False).json())


def one_incident(running: Running, posts: int, word: str) -> None:
    """Slack has one more message: it fired, it is resolved, and it tells every step."""
    until(lambda: any("resolved" in m["text"] for m in running.slack.messages[posts:]), 60)
    (message,) = running.slack.messages[posts:]
    assert "head down" in message["text"]

    def told() -> list[str]:
        return [reply["text"] for reply in running.slack.messages[posts]["replies"]]

    until(lambda: any("the agent is ready" in step for step in told()), 60)
    assert word in told()[0]
    log = (running.cluster.folder / "logs" / "agent.log").read_text()
    assert re.search(r"incident \d+ firing: head: head down", log)


def test_the_keeper_is_small_and_holds_no_output_of_start(one: Running) -> None:
    pid = one.cluster.keeper()
    assert pid is not None
    proc = Path(f"/proc/{pid}")
    status = (proc / "status").read_text()
    assert int(status.partition("VmRSS:")[2].split()[0]) < 40_000
    assert {str((proc / "fd" / number).readlink()) for number in "012"} == {"/dev/null"}
    command = (proc / "cmdline").read_text().split("\0")
    assert "bootstrap.keeper" in command
    assert (one.cluster.folder / "gcs").stat().st_mode & 0o777 == 0o700


def test_the_gcs_alone_is_back_at_once_and_all_work_goes_on(one: Running, work: Work) -> None:
    cluster, posts = one.cluster, len(one.slack.messages)
    before, raylets = cluster.head_parts(), cluster.raylets()
    os.kill(before["gcs"], signal.SIGKILL)
    until(lambda: cluster.head_parts().get("gcs") not in (None, before["gcs"]), 30)
    until(cluster.passes, 60)
    assert cluster.raylets() == raylets
    work.goes_on()
    assert work.driver_lives()
    one_incident(one, posts, "the GCS is gone")


def test_everything_on_the_head_dies_and_work_and_worries_stay(one: Running, work: Work) -> None:
    """Before it a person paused and cordoned, and a worker is down: its incident and its message go on."""
    cluster, known = one.cluster, len(one.slack.messages)
    say(cluster, "pause", reason="new switches", for_s=3600)
    say(cluster, "nodes/w1/cordon", reason="fan")
    os.kill(cluster.raylets()["w2"], signal.SIGKILL)
    worry = until(lambda: cluster.state("w2") == "DEAD" and why(cluster, "w2")["incident"], 20)
    until(lambda: "firing" in one.slack.messages[known]["text"] if one.slack.messages[known:] else False, 20)
    posts = known + 1
    before, worker = cluster.head_parts(), cluster.raylets()["w1"]

    cluster.kill_head()
    until(lambda: set(cluster.head_parts().values()).isdisjoint(before.values()), 30)
    until(lambda: back(cluster), 200)  # on a machine that is too busy, Ray itself gives up once or twice

    assert cluster.raylets()["w1"] == worker
    work.ends_well()
    until(work.driver_and_its_own_are_gone, 30)
    one_incident(one, posts, "gone")
    record = json.loads((cluster.folder / "cluster.json").read_text())
    assert record["session_dir"] in Path(f"/proc/{cluster.head_parts()['raylet']}/cmdline").read_text()

    assert cluster.health()["paused"]["reason"] == "new switches"
    assert (cluster.state("w1"), cluster.state("w2")) == ("CORDONED", "DEAD")
    assert "w2" not in cluster.raylets()
    now = why(cluster, "w2")["incident"]
    assert (now["id"], now["phase"]) == (worry["id"], worry["phase"])
    say(cluster, "nodes/w1/uncordon", reason="quiet")
    say(cluster, "resume", reason="done")
    until(cluster.passes, 90)
    until(lambda: "resolved" in one.slack.messages[known]["text"], 30)  # edited: the message of before
    assert len(one.slack.messages) == posts + 1
    variables = exports(cluster.run(str(BIN / "grid-agent"), "env", "-c", str(cluster.file)).stdout)
    said = cluster.run(str(BIN / "serve"), "status", **variables)
    assert yaml.safe_load(said.stdout)["applications"]["grid-agent"]["status"] == "RUNNING"


def test_the_raylet_of_the_head_alone_dies(one: Running) -> None:
    cluster, posts = one.cluster, len(one.slack.messages)
    before, raylets = cluster.head_parts(), cluster.raylets()
    os.kill(before["raylet"], signal.SIGKILL)
    until(lambda: set(cluster.head_parts().values()).isdisjoint(before.values()), 30)
    until(cluster.passes, 200)
    assert {name: cluster.raylets()[name] for name in ("w1", "w2")} == {
        name: raylets[name] for name in ("w1", "w2")
    }
    one_incident(one, posts, "the head's raylet is gone")


def test_a_killed_keeper_is_started_by_the_agent(one: Running) -> None:
    old = one.cluster.keeper()
    assert old is not None
    os.kill(old, signal.SIGKILL)
    until(lambda: one.cluster.keeper() not in (None, old), 60)


def test_fresh_begins_anew_where_the_head_is_dead_and_only_there(one: Running) -> None:
    cluster = one.cluster
    keeper, old = cluster.keeper(), cluster.raylets()
    refused = cluster.start("--fresh", "--yes", SLACK_BOT_TOKEN=TOKEN)
    assert (refused.returncode, cluster.keeper(), cluster.raylets()) == (5, keeper, old), refused.stderr
    assert "stop.py first" in refused.stderr
    before = json.loads((cluster.folder / "cluster.json").read_text())

    assert keeper is not None
    os.kill(keeper, signal.SIGKILL)  # it would have a raylet up again before start.py has looked
    cluster.kill_head()
    started = cluster.start("--fresh", "--yes", SLACK_BOT_TOKEN=TOKEN)
    until(cluster.passes, 120 if started.returncode else 10)
    now = json.loads((cluster.folder / "cluster.json").read_text())
    assert now["session_dir"] != before["session_dir"]
    assert set(cluster.raylets().values()).isdisjoint(old.values())
    (aside,) = cluster.folder.glob("gcs.set-aside-*")
    assert any((aside / "store").iterdir())
    assert until(cluster.keeper, 20) != keeper


def test_stop_is_stronger_than_the_keeper(one: Running) -> None:
    """The head is killed and stopped while the keeper is just bringing it back: it does not come back."""
    cluster = one.cluster
    cluster.kill_head()
    log = cluster.folder / "logs" / "keeper.log"
    lines = log.read_text().count("starting the head again")
    until(lambda: log.read_text().count("starting the head again") > lines, 30)
    time.sleep(1.0)  # well inside `ray start`
    stopped = cluster.stop()
    assert stopped.returncode == 0, stopped.stdout + stopped.stderr
    for _ in range(20):
        assert cluster.leftovers() == {}
        time.sleep(0.25)
    assert cluster.keeper() is None
    assert not (cluster.folder / "gcs").exists()
    assert not (cluster.folder / "keeper.json").exists()
