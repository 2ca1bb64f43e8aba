"""How the agent places a Ray task or actor on one node, and waits for it: never without a limit.

It needs no CPU, is never tried twice, and travels by value: a node needs Ray and nothing of ours. Ray hangs
rather than fails between a crash and the GCS's verdict. Called by `remote` and `probes`.
"""

import asyncio
import sys
from collections.abc import Callable
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

# How what the agent runs is called in Ray: nothing of a user's begins so.
OUR_TASKS = "grid-agent: "
OUR_ACTORS = frozenset({"GridAgentProbe", "GridAgentRepairer"})
PEER_S = 5.0  # for a worker process on a peer to start

ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])


async def result(ref: Any, timeout_s: float) -> Any:
    """The value of a reference, or GetTimeoutError after `timeout_s`; the call is then cancelled."""
    try:
        return await asyncio.wait_for(asyncio.wrap_future(ref.future()), timeout_s)
    except TimeoutError:
        ray.cancel(ref, force=False, recursive=False)
        message = f"no answer in {timeout_s:g} s"
        raise ray.exceptions.GetTimeoutError(message) from None


def task(function: Callable[..., Any], name: str, node_id: str | None = None) -> Any:
    """A task of ours that needs no CPU and is never tried twice, on one incarnation if that is given."""
    ours = ray.remote(num_cpus=0, max_retries=0, name=OUR_TASKS + name)(function)
    return ours if node_id is None else ours.options(**on(node_id))


def on(node_id: str) -> dict[str, Any]:
    """The options that place something on exactly this incarnation."""
    return {"scheduling_strategy": NodeAffinitySchedulingStrategy(node_id=node_id, soft=False)}


def one_line(error: Exception) -> str:
    """What went wrong, short enough for a sentence."""
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[-1][:200] if text else ''}".rstrip(": ")
