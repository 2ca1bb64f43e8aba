"""A new agent is deployed over the old one while workers are killed: nothing is done twice, nothing is lost.

Slow: `sh scripts/campaign tests/ray/test_redeploy_while_workers_die.py` runs it 10 times, plain pytest once.
"""

import os
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime

import httpx
import pytest

from tests.support.cluster import Cluster, processes, until

pytestmark = [pytest.mark.ray, pytest.mark.slow]
RUNS = int(os.environ.get("GRID_AGENT_RUNS", "1"))


class Watch(threading.Thread):
    """Asks for health all the time, and counts the raylets of each name that it ever saw at once."""

    def __init__(self, cluster: Cluster) -> None:
        super().__init__(daemon=True)
        self.cluster = cluster
        self.stale: list[float] = []
        self.most: Counter[str] = Counter()
        self.born: dict[str, set[int]] = {}
        self._end = threading.Event()

    def run(self) -> None:
        while not self._end.wait(0.2):
            now: Counter[str] = Counter()
            for pid, argv in processes().items():
                ours = any(
                    a.startswith("--gcs-address=") and a.endswith(f":{self.cluster.port}") for a in argv
                )
                if ours and argv[0].endswith("/raylet"):
                    name = next(a for a in argv if a.startswith("--node-name=")).removeprefix("--node-name=")
                    now[name] += 1
                    self.born.setdefault(name, set()).add(pid)
            self.most |= now
            try:
                body = self.cluster.health()
            except (httpx.HTTPError, ValueError):
                continue  # nobody answers between two replicas; a dead one must not
            age_s = datetime.now(UTC).timestamp() - datetime.fromisoformat(body["time"]).timestamp()
            if age_s > 5 or (body["status"] != "fail" and body["age_s"] > 10):
                self.stale.append(age_s)

    def __enter__(self) -> "Watch":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self.join()


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    made = Cluster(workers=2)
    try:
        started = made.start()
        until(made.passes, 120 if started.returncode else 10)
        yield made
    finally:
        made.close()


@pytest.mark.parametrize("run", range(RUNS))
def test_a_redeployment_during_a_repair(cluster: Cluster, run: int) -> None:
    seed = random.randrange(10**6)
    rng = random.Random(seed)
    until(cluster.passes, 120, 0.5)
    known = {i["id"] for i in incidents(cluster)}
    name = rng.choice(["w1", "w2"])
    with Watch(cluster) as watch:
        redeploy = threading.Thread(target=cluster.start, args=("--redeploy",))
        redeploy.start()
        time.sleep(rng.uniform(0, 8))
        os.kill(cluster.raylets()[name], signal.SIGKILL)
        redeploy.join()
        until(lambda: cluster.passes() and name in cluster.raylets(), 180, 0.5)
    assert watch.stale == [], f"seed {seed}"
    assert watch.most[name] == 1, f"seed {seed}: two raylets of one name"
    assert len(watch.born[name]) == 2, f"seed {seed}: {watch.born}"  # the killed one and one successor
    new = [i for i in incidents(cluster) if i["id"] not in known and name in i["nodes"]]
    assert len(new) == 1, f"seed {seed}: {new}"
    assert new[0]["phase"] == "resolved", f"seed {seed}: {new}"


def incidents(cluster: Cluster) -> list[dict[str, object]]:
    return list(httpx.get(f"{cluster.url}/cluster/incidents", trust_env=False).json()["incidents"])
