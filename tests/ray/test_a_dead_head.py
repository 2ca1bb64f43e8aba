"""The head dies, in parts and as a whole, and comes back with its session; workers and their work stay."""

import json
import os
import re
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.ray.conftest import TOKEN, Running
from tests.support.cluster import Cluster, until
from tests.support.slack_server import SlackServer

pytestmark = pytest.mark.ray

# A detached actor on the worker, with a number in memory and a task of its own under way on that worker.
BEGIN = """
import os, sys, ray, time
from ray import serve
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy as Pin
ray.init(address=sys.argv[1], log_to_driver=False, logging_level="ERROR", namespace="mine")
node = next(n for n in ray.nodes() if n["NodeName"] == "w1" and n["Alive"])
pin = Pin(node["NodeID"], soft=False)
@ray.remote(num_cpus=1)
def long(path):
    while not os.path.exists(path):
        time.sleep(0.1)
    return os.getpid()
@ray.remote(num_cpus=1, max_restarts=0)
class Holder:
    def __init__(self, path):
        self.number, self.task = 0, long.options(scheduling_strategy=pin).remote(path)
    def add(self):
        self.number += 1
        return self.number, os.getpid()
    def result(self):
        return ray.get(self.task, timeout=30)
holder = Holder.options(name="holder", lifetime="detached", scheduling_strategy=pin).remote(sys.argv[2])
print(*ray.get(holder.add.remote()))
@serve.deployment(ray_actor_options={"num_cpus": 1})
class Pid:
    def __call__(self, request):
        return str(os.getpid())
serve.run(Pid.bind(), name="pid", route_prefix="/pid")
"""
END = """
import sys, ray
ray.init(address=sys.argv[1], log_to_driver=False, logging_level="ERROR", namespace="mine")
holder = ray.get_actor("holder")
print(*ray.get(holder.add.remote(), timeout=30))
open(sys.argv[2], "w").close()
print(ray.get(holder.result.remote(), timeout=60))
print(ray.get(ray.remote(num_cpus=0)(lambda: "new work runs").remote(), timeout=60))
"""


@pytest.fixture(scope="module")
def one() -> Iterator[Running]:
    with SlackServer(token=TOKEN) as slack:
        cluster = Cluster(workers=1, slack={"channel": "#grid-alerts", "base_url": slack.base_url})
        cluster.spec["nodes"][1]["num_cpus"] = 3
        cluster.save()
        try:
            started = cluster.start(SLACK_BOT_TOKEN=TOKEN)
            # A worker that was late on a busy machine is the agent's to bring up.
            until(cluster.passes, 120 if started.returncode else 10)
            yield Running(cluster, slack, started.stdout)
        finally:
            cluster.close()


def address(cluster: Cluster) -> str:
    return str(json.loads((cluster.folder / "keeper.json").read_text())["gcs_address"])


def driver(cluster: Cluster, code: str, *args: str) -> list[str]:
    said = cluster.run(sys.executable, "-c", code, address(cluster), *args, timeout_s=120)
    assert said.returncode == 0, said.stderr
    return said.stdout.split("\n")


def one_incident(running: Running, posts: int, word: str) -> None:
    """Slack has one more message: it fired, it is resolved, and it tells every step."""
    until(lambda: [m for m in running.slack.messages[posts:] if "resolved" in m["text"]], 60)
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


def test_the_gcs_alone_is_back_at_once(one: Running) -> None:
    cluster, posts = one.cluster, len(one.slack.messages)
    before, raylets = cluster.head_parts(), cluster.raylets()
    os.kill(before["gcs"], signal.SIGKILL)
    until(lambda: cluster.head_parts().get("gcs") not in (None, before["gcs"]), 30)
    until(cluster.passes, 60)
    assert cluster.raylets() == raylets
    one_incident(one, posts, "the GCS is gone")


def test_everything_on_the_head_dies_and_work_on_the_worker_goes_on(one: Running) -> None:
    cluster, posts = one.cluster, len(one.slack.messages)
    gate = str(cluster.home / "gate")
    number, holder = driver(cluster, BEGIN, gate)[0].split()
    assert number == "1"
    replica = until(
        lambda: (r := httpx.get(f"{cluster.url}/pid", trust_env=False)).status_code == 200 and r, 60
    )
    before, worker = cluster.head_parts(), cluster.raylets()["w1"]

    cluster.kill_head()
    until(lambda: set(cluster.head_parts().values()).isdisjoint(before.values()), 30)
    until(cluster.passes, 200)  # on a machine that is too busy, Ray itself gives up once or twice

    assert cluster.raylets()["w1"] == worker
    first, result, last, *_ = driver(cluster, END, gate)
    assert first.split() == ["2", holder]  # the same process, with what it remembered
    assert int(result) > 0  # of the task that ran all the while
    assert last == "new work runs"
    again = until(
        lambda: (r := httpx.get(f"{cluster.url}/pid", trust_env=False)).status_code == 200 and r, 60
    )
    assert again.text == replica.text
    one_incident(one, posts, "gone")
    record = json.loads((cluster.folder / "cluster.json").read_text())
    assert record["session_dir"] in Path(f"/proc/{cluster.head_parts()['raylet']}/cmdline").read_text()


def test_a_killed_keeper_is_started_by_the_agent(one: Running) -> None:
    old = one.cluster.keeper()
    assert old is not None
    os.kill(old, signal.SIGKILL)
    until(lambda: one.cluster.keeper() not in (None, old), 60)


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
