"""When the agent's jobs run, on APScheduler. Called by `compose`."""

import logging
from collections.abc import Awaitable, Callable, Iterable
from datetime import UTC, datetime, timedelta

from apscheduler.schedulers.asyncio import AsyncIOScheduler

from config.settings import Agent as AgentSettings
from grid_agent.loop import LIST_EVERY_S, TICK_S, Loop

READY_EVERY_S = 5.0
SELF_EVERY_S = 2.0
PHASE_S = 0.12


def schedule(
    scheduler: AsyncIOScheduler,
    loop: Loop,
    every: AgentSettings,
    more: Iterable[tuple[Callable[[], Awaitable[None]], float]] = (),
) -> None:
    """Run the loop's jobs, and more, from now on, each at its interval and at a moment of its own.

    Work that comes all at once would be read as slow heartbeats.
    """
    now = datetime.now(UTC)
    jobs = (
        (loop.tick, TICK_S),
        (loop.list_nodes, LIST_EVERY_S),
        (loop.beat, every.heartbeat_every_s),
        (loop.probe, every.probe_every_s),
        (loop.keep_ready, READY_EVERY_S),
        (loop.check_self, SELF_EVERY_S),
        *more,
    )
    for number, (job, seconds) in enumerate(jobs):
        scheduler.add_job(
            job,
            "interval",
            seconds=seconds,
            next_run_time=now + timedelta(seconds=number * PHASE_S),
            misfire_grace_time=None,  # the default skips a job that is a second late, in silence
            coalesce=True,
            max_instances=1,
        )
    logging.getLogger("apscheduler").setLevel(logging.ERROR)  # a sweep that outlasts its interval is no news
    scheduler.start()
