"""Work that is to outlive the head, on `w1`: a detached actor with a task of its own, and a Serve replica.

Beside it a driver on the head with an actor that is not detached, which Ray ends with the head.
"""

import json
import subprocess
import sys
from pathlib import Path

import httpx

from grid_agent.edges.host import procs
from tests.support.cluster import Cluster, until

_CONNECT = """
import os, sys, time, ray
from ray import serve
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy as Pin
ray.init(address=sys.argv[1], log_to_driver=False, logging_level="ERROR", namespace="mine")
node = next(n for n in ray.nodes() if n["NodeName"] == "w1" and n["Alive"])
pin = Pin(node["NodeID"], soft=False)
"""
_BEGIN = """
@ray.remote(num_cpus=1)
def long(path):
    with open(path + ".pids", "a") as pids:
        print(os.getpid(), file=pids)
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
_STAY = """
@ray.remote(num_cpus=0)
class Owned:
    def pid(self):
        return os.getpid()
owned = Owned.options(scheduling_strategy=pin).remote()
print(ray.get(owned.pid.remote()), flush=True)
while ray.get(owned.pid.remote(), timeout=60):
    time.sleep(0.5)
"""
_ADD = """
holder = ray.get_actor("holder")
print(*ray.get(holder.add.remote(), timeout=30))
"""
_END = """
open(sys.argv[2], "w").close()
print(ray.get(holder.result.remote(), timeout=60))
print(ray.get(ray.remote(num_cpus=0)(lambda: "new work runs").remote(), timeout=60))
"""


class Work:
    """The work of one cluster; `w1` needs 3 CPUs for it, and no other node may have one."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.gate = str(cluster.home / "gate")
        self.driver = subprocess.Popen(
            self._argv(_CONNECT + _STAY),
            cwd=cluster.cwd,
            env=cluster.environ(),
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,  # it does not end well
            text=True,
        )
        self.number, self.holder = 1, self._run(_BEGIN)[0].split()[1]
        self.task = Path(f"{self.gate}.pids").read_text()  # where a second start of it would be seen
        self.replica = self._replica()
        assert self.driver.stdout is not None
        self.owned = int(self.driver.stdout.readline())

    def goes_on(self) -> None:
        """The same processes, with what they remembered; the task was not started a second time."""
        self._goes_on(self._run(_ADD)[0])

    def ends_well(self) -> None:
        """The same, and the task ends with its result; new work runs."""
        first, result, last, *_ = self._run(_ADD + _END)
        self._goes_on(first)
        assert result == self.task.strip()
        assert last == "new work runs"

    def _goes_on(self, said: str) -> None:
        self.number += 1
        assert said.split() == [str(self.number), self.holder]
        assert Path(f"{self.gate}.pids").read_text() == self.task
        assert self._replica() == self.replica

    def driver_lives(self) -> bool:
        """Whether the driver on the head, and the actor that it owns on `w1`, run."""
        return self.driver.poll() is None and not procs.ended(self.owned)

    def driver_and_its_own_are_gone(self) -> bool:
        return self.driver.poll() is not None and procs.ended(self.owned)

    def close(self) -> None:
        self.driver.kill()
        self.driver.communicate()

    def _replica(self) -> str:
        def ask() -> str:
            answer = httpx.get(f"{self.cluster.url}/pid", trust_env=False)
            return answer.text if answer.status_code == 200 else ""

        return str(until(ask, 60))

    def _run(self, code: str) -> list[str]:
        said = self.cluster.run(*self._argv(_CONNECT + code), timeout_s=120)
        assert said.returncode == 0, said.stderr
        return said.stdout.split("\n")

    def _argv(self, code: str) -> list[str]:
        plan = json.loads((self.cluster.folder / "keeper.json").read_text())
        return [sys.executable, "-c", code, plan["gcs_address"], self.gate]
