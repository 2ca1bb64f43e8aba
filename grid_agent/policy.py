"""The core's numbers, and how GPUs are read, from the cluster file. Pure; called by `compose`."""

from typing import Any

from config.settings import Settings
from grid_agent import repair_plan
from grid_agent.core.policy import Policy
from grid_agent.core.terms import GpuAction

UNHEARD_S = 30.0  # beyond a repair's own limit: for a look at the host when its answer did not come


def policy_of(settings: Settings) -> Policy:
    """The core's numbers from the cluster file."""
    agent, guards = settings.agent, settings.guards
    return Policy(
        mode=agent.mode,
        heartbeat_every_s=agent.heartbeat_every_s,
        hang_s=agent.hang_s,
        unreachable_s=agent.unreachable_s,
        join_s=agent.join_s,
        repair_timeout_s=repair_plan.longest_s(settings) + UNHEARD_S,
        node_attempts=guards.node_repairs,
        node_window_s=guards.node_window_s,
        cluster_attempts=guards.cluster_repairs,
        cluster_window_s=guards.cluster_window_s,
        tries_per_rung=guards.tries_per_rung,
        backoff_s=guards.backoff_s,
        backoff_most_s=guards.backoff_most_s,
        probation_s=guards.probation_s,
        flap_deaths=guards.flap_deaths,
        flap_window_s=guards.flap_window_s,
        breaker_nodes=guards.breaker_nodes,
        mass_minimum=guards.mass_minimum,
        mass_window_s=guards.mass_window_s,
        gpu={key: GpuAction(value) for key, value in settings.gpu.policy},
        gpu_drain_s=settings.gpu.drain_s,
        gpu_return_s=settings.gpu.return_s,
        disrupt=guards.disrupt,
        drain_s=guards.drain_s,
        do_not_disturb=tuple(_minutes(hours) for hours in guards.do_not_disturb),
    )


def _minutes(hours: str) -> tuple[int, int]:
    """Hours such as 22:00-06:00 as minutes after midnight."""
    begins, _, ends = hours.partition("-")
    return (60 * int(begins[:2]) + int(begins[3:]), 60 * int(ends[:2]) + int(ends[3:]))


def gpu_of(settings: Settings, name: str) -> dict[str, Any]:
    """How the GPUs of one node are read."""
    node, gpu = next(n for n in settings.nodes if n.name == name), settings.gpu
    every_s = gpu.every_s if node.gpu_every_s is None else node.gpu_every_s
    return {
        "every_s": every_s,
        "timeout_s": gpu.timeout_s,
        "usable_every_s": gpu.usable_every_s,
        "kernel_log": gpu.kernel_log or "",
    }
