"""What holds a repair back, on real Ray: people, a start that always fails, a node that flaps."""

import json
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.cluster import Cluster, until
from tests.support.slack_server import SlackServer

pytestmark = [pytest.mark.ray, pytest.mark.slow]

# Runs in every Python process of w1's Ray: while the flag is there, its `ray start` fails and is counted.
SABOTAGE = """
import os, sys
flag = os.path.join(os.path.dirname(__file__), "fail")
if os.path.exists(flag) and sys.argv[1:2] == ["start"]:
    with open(flag, "a") as file:
        file.write("x")
    sys.exit("sabotaged")
"""
GUARDS = {"drain_s": 2, "backoff_s": 0.5, "backoff_most_s": 1.0, "flap_deaths": 3, "node_repairs": 4}


@dataclass
class Limited:
    """A cluster with short limits, the Slack it posts to, and the flag that makes w1's starts fail."""

    cluster: Cluster
    slack: SlackServer
    flag: Path

    def node(self, name: str) -> dict[str, Any]:
        return next(dict(n) for n in self.cluster.health()["nodes"] if n["name"] == name)

    def why(self, name: str) -> dict[str, Any]:
        return dict(httpx.get(f"{self.cluster.url}/cluster/why/{name}", trust_env=False).json())

    def healed(self, name: str, old: int, timeout_s: float = 90) -> None:
        """Wait until another raylet of this name runs and everything is well; say what was in the way."""
        try:
            until(lambda: self._is_healed(name, old), timeout_s, 0.25)
        except AssertionError as error:
            raise AssertionError(json.dumps([self.cluster.health(), self.why(name)], indent=1)) from error

    def _is_healed(self, name: str, old: int) -> bool:
        return self.cluster.raylets().get(name, old) != old and self.node(name)["state"] == "ALIVE"

    def kill(self, name: str) -> int:
        pid = self.cluster.raylets()[name]
        os.kill(pid, 9)
        return pid


@pytest.fixture(scope="module")
def limited(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Limited]:
    folder = tmp_path_factory.mktemp("sabotage")
    (folder / "sitecustomize.py").write_text(SABOTAGE)
    with SlackServer(token="xoxb-limits") as slack:
        cluster = Cluster(
            slack={"channel": "#grid-alerts", "base_url": slack.base_url},
            guards=GUARDS,
            agent={"join_s": 5},
        )
        cluster.spec["nodes"][1]["env"] = {"PYTHONPATH": str(folder)}
        cluster.save()
        try:
            started = cluster.start(SLACK_BOT_TOKEN="xoxb-limits")
            assert started.returncode == 0, started.stdout + started.stderr
            yield Limited(cluster, slack, folder / "fail")
        finally:
            cluster.close()


def test_a_pause_holds_every_repair_until_it_is_taken_back(limited: Limited) -> None:
    cluster = limited.cluster
    said = cluster.cli("pause", "--reason", "new switches", "--for", "10m")
    assert said.returncode == 0, said.stderr
    assert "new switches" in said.stdout
    body = cluster.health()
    assert (body["status"], body["paused"]["reason"]) == ("warn", "new switches")
    assert body["paused"]["until"] > body["paused"]["since"]
    old = limited.kill("w2")
    held = until(lambda: (n := limited.node("w2"))["state"] == "DEAD" and n["action"] and n, 10)
    assert "paused by a person" in held["action"]
    assert "new switches" in held["action"]
    time.sleep(3)
    assert "w2" not in cluster.raylets()
    assert "paused" in limited.why("w2")["repairs"]["guards"]
    assert "new switches" in cluster.cli("status").stdout
    assert cluster.cli("resume").returncode == 0
    limited.healed("w2", old)
    again = cluster.cli("resume")
    assert (again.returncode, again.stderr) == (5, "grid-agent: repairs are not paused\n")


def test_strangers_change_nothing(limited: Limited) -> None:
    cluster = limited.cluster
    token = (cluster.home / "state" / "grid-agent" / cluster.name / "api_token").read_text().strip()
    ours = {"authorization": f"Bearer {token}"}
    body = {"reason": "x", "for_s": 60}
    for headers, status in (
        ({}, 401),
        ({"authorization": "Bearer wrong"}, 401),
        ({**ours, "host": "evil.example"}, 403),
        ({**ours, "origin": "http://evil.example"}, 403),
        ({**ours, "sec-fetch-site": "cross-site"}, 403),
        ({**ours, "content-type": "text/plain"}, 415),
    ):
        answer = httpx.post(f"{cluster.url}/cluster/pause", json=body, headers=headers, trust_env=False)
        assert answer.status_code == status, (headers, answer.text)
        assert isinstance(answer.json()["detail"], str)
    assert cluster.health()["paused"] is None


def test_a_cordoned_node_is_left_alone_and_healed_when_it_is_let_go(limited: Limited) -> None:
    cluster = limited.cluster
    assert cluster.cli("cordon", "w2", "--reason", "fan").returncode == 0
    node = until(lambda: (n := limited.node("w2"))["state"] == "CORDONED" and n, 5)
    assert "fan" in node["action"]
    old = limited.kill("w2")
    time.sleep(4)
    assert "w2" not in cluster.raylets()
    assert limited.node("w2")["state"] == "CORDONED"
    assert cluster.cli("uncordon", "w2").returncode == 0
    limited.healed("w2", old)


ACTOR = """
import ray, sys
ray.init(address=sys.argv[1], namespace="users", log_to_driver=False, logging_level="ERROR")
node = next(n for n in ray.nodes() if n["NodeName"] == "w2" and n["Alive"])
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy as Pin
class Counter:
    def ping(self): return "pong"
pin = Pin(node["NodeID"], soft=False)
options = {"name": "users-counter", "lifetime": "detached", "scheduling_strategy": pin}
actor = ray.remote(num_cpus=0)(Counter).options(**options)
print(ray.get(actor.remote().ping.remote(), timeout=60))
"""


def test_a_restart_on_request_spares_what_runs_unless_it_may_be_lost(limited: Limited) -> None:
    cluster = limited.cluster
    said = cluster.run(sys.executable, "-c", ACTOR, f"127.0.0.1:{cluster.port}")
    assert said.stdout.strip() == "pong", said.stderr
    old = cluster.raylets()["w2"]
    refused = cluster.cli("repair", "w2", "--reason", "new driver")
    assert refused.returncode == 5, refused.stdout + refused.stderr
    assert "1 actors (users-counter)" in refused.stderr
    assert cluster.raylets()["w2"] == old
    begun = cluster.cli("repair", "w2", "--reason", "new driver", "--disrupt")
    assert begun.returncode == 0, begun.stderr
    limited.healed("w2", old)
    incident = limited.why("w2")["incident"]
    assert incident["cause"] == "restart asked for by a person"
    steps = [step["text"] for step in incident["steps"]]
    assert any("asked for a restart of w2: new driver" in text for text in steps), steps


def test_a_start_that_always_fails_stops_at_its_budget_and_asks_once(limited: Limited) -> None:
    cluster = limited.cluster
    limited.flag.touch()
    limited.kill("w1")
    until(lambda: limited.node("w1")["state"] == "GAVE_UP", 60)
    story = limited.why("w1")
    assert [a["ok"] for a in story["attempts"]] == [False] * 4
    assert "sabotaged" in limited.node("w1")["action"]
    assert limited.flag.read_text() == "x" * 4
    time.sleep(5)
    assert limited.flag.read_text() == "x" * 4
    incident = story["incident"]
    assert incident["phase"] == "needs a person"
    assert sum("gave up" in step["text"] for step in incident["steps"]) == 1
    asked = until(lambda: [x for x in limited.slack.messages if "needs a person" in x["text"]], 10)
    assert len(asked) == 1
    assert "breaker" not in cluster.health()  # one hopeless node keeps nobody else from being repaired
    limited.flag.unlink()
    assert cluster.cli("repair", "w1", "--reason", "took the sabotage away").returncode == 0
    until(lambda: limited.node("w1")["state"] == "ALIVE", 60)


def test_a_node_that_dies_again_and_again_is_not_restarted_for_ever(limited: Limited) -> None:
    """The third death within the window (the pause was before a release) is one too many."""
    cluster = limited.cluster
    old, deaths = 0, 0
    deadline = time.monotonic() + 120
    while limited.node("w2")["state"] != "GAVE_UP":
        assert time.monotonic() < deadline, limited.why("w2")
        pid = cluster.raylets().get("w2", old)
        if pid != old and limited.node("w2")["state"] == "ALIVE":
            time.sleep(2)
            os.kill(pid, 9)
            old, deaths = pid, deaths + 1
        time.sleep(0.2)
    time.sleep(3)
    assert deaths == 3
    assert "w2" not in cluster.raylets()
    story = limited.why("w2")
    assert "dies again and again" in story["refused"]
    assert story["repairs"]["deaths"] == {"used": 3, "limit": 3}
    metrics = httpx.get(f"{cluster.url}/cluster/metrics", trust_env=False).text
    assert 'grid_agent_repairs_refused_total{guard="flapping"} 1.0' in metrics
    assert json.loads(cluster.cli("why", "w2", "-o", "json").stdout)["state"] == "GAVE_UP"
