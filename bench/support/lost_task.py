"""A driver with one retriable task on a worker that will be lost: ADDRESS WORKER SECONDS.

Prints "runs" when the task runs, and "done" with the wall clock when it is. Both workers have a process ready
before, so that what is measured is the loss and not the start of Python.
"""

import sys
import time

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

address, worker, seconds = sys.argv[1], sys.argv[2], float(sys.argv[3])
ray.init(address, log_to_driver=False, logging_level="ERROR")
nodes = {n["NodeName"]: n["NodeID"] for n in ray.nodes() if n["Alive"]}


def on(name: str, soft: bool) -> NodeAffinitySchedulingStrategy:
    """Placed there; with `soft` elsewhere once it is gone."""
    return NodeAffinitySchedulingStrategy(nodes[name], soft=soft)


@ray.remote(num_cpus=0)
class Flag:
    """Says when the task has begun."""

    def __init__(self) -> None:
        self._up = False

    def set(self) -> None:
        """It runs."""
        self._up = True

    def get(self) -> bool:
        """Whether it runs."""
        return self._up


@ray.remote(num_cpus=1, max_retries=5)
def sleep(flag: object) -> None:
    """The task itself."""
    if flag is not None:
        ray.get(flag.set.remote())  # type: ignore[attr-defined]
        time.sleep(seconds)


flag = Flag.options(scheduling_strategy=on("head", soft=False)).remote()
ray.get(flag.get.remote())
ray.get([sleep.options(scheduling_strategy=on(n, soft=False)).remote(None) for n in nodes if n != "head"])
task = sleep.options(scheduling_strategy=on(worker, soft=True)).remote(flag)
while not ray.get(flag.get.remote()):
    time.sleep(0.01)
print("runs", flush=True)
ray.get(task)
print(f"done {time.time()}", flush=True)
