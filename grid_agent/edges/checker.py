"""Asks raylets the question of Ray's own health check, again and again, and keeps what it took.

The RPC is /grpc.health.v1.Health/Check, which needs no token, on a held channel a node, as the GCS has it.
"""

import asyncio
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import grpc.aio

from config.checks import bracketed
from grid_agent.core.latency import Check, Trace

METHOD = "/grpc.health.v1.Health/Check"
OPTIONS = (("grpc.enable_http_proxy", 0), ("grpc.max_reconnect_backoff_ms", 1000))


async def measure(
    targets: Mapping[str, tuple[str, int]],
    seconds: float,
    every_s: float,
    give_up_s: float,
    progress: Callable[[float], None],
) -> list[Trace]:
    """Check every node at the same pace for so long.

    Args:
        targets: Node -> address and node-manager port.
        seconds: How long.
        every_s: From the beginning of one check of a node to that of the next.
        give_up_s: Longest wait for an answer; checks of one node may overlap until then.
        progress: Called about once a second with the seconds that have passed.

    Returns:
        A trace a node, of at least one check.
    """
    begun = time.monotonic()
    pace = _Pace(begun, seconds, every_s, give_up_s)
    tasks = [
        # All at once would measure ourselves: each begins somewhere else in the pace.
        asyncio.create_task(_follow(name, target, pace, every_s * index / max(1, len(targets))))
        for index, (name, target) in enumerate(targets.items())
    ]
    while any(not task.done() for task in tasks):
        await asyncio.wait(tasks, timeout=1.0)
        progress(min(seconds, time.monotonic() - begun))
    return [await task for task in tasks]


@dataclass(frozen=True, slots=True)
class _Pace:
    begun: float
    seconds: float
    every_s: float
    give_up_s: float

    def times(self, first_s: float) -> list[float]:
        """When the checks of a node are due; at least one."""
        count = max(1, math.ceil((self.seconds - first_s) / self.every_s - 1e-6))
        return [first_s + number * self.every_s for number in range(count)]


async def _follow(name: str, target: tuple[str, int], pace: _Pace, first_s: float) -> Trace:
    checks: dict[float, Check] = {}
    address, port = target
    async with grpc.aio.insecure_channel(f"{bracketed(address)}:{port}", options=OPTIONS) as channel:
        call = channel.unary_unary(METHOD, request_serializer=lambda _: b"", response_deserializer=bytes)

        async def answered() -> bool:
            try:
                await call(None, timeout=pace.give_up_s)
            except grpc.aio.AioRpcError:
                return False
            return True

        async def check(due_s: float) -> None:
            sent = time.monotonic()
            took_ms = (time.monotonic() - sent) * 1000 if await answered() else None
            checks[due_s] = Check(sent - pace.begun, took_ms)

        await answered()  # the handshake is no check
        async with asyncio.TaskGroup() as group:
            for due_s in pace.times(first_s):
                await asyncio.sleep(max(0.0, pace.begun + due_s - time.monotonic()))
                group.create_task(check(due_s))
    return Trace(name, tuple(checks[due] for due in sorted(checks)), pace.give_up_s * 1000)
