"""Carries out the plan of a start, waits until all is well, and says how it ended. Called by `bring_up`."""

import time
from collections.abc import Mapping
from dataclasses import dataclass

from bootstrap import health, keeper_plan, machine, state, summary
from bootstrap.launch import Outcome, Work
from bootstrap.plan import APP, Action
from bootstrap.progress import Output, Progress
from bootstrap.survey import Survey, token
from bootstrap.wait import Result, settle
from config import loader, paths, tuning
from config.settings import Settings
from grid_agent.edges import gcs_process

INTERRUPTED_S = 60.0
_LATE = Outcome(False, "failed: did not end in time", 0.0)


@dataclass(frozen=True, slots=True)
class Ask:
    """What a person said beside the file: its path, the deadline (monotonic), and the flags."""

    config: str | None
    deadline: float
    redeploy: bool
    fresh: bool
    yes: bool
    systemd: bool = False
    skip_preflight: bool = False


@dataclass(frozen=True, slots=True)
class Start:
    """One start under way: `file` is what was asked for, `settings` what will be in force after it.

    `kept` are the nodes that ran before and are left as they are.
    """

    file: Settings
    settings: Settings
    seen: Survey
    output: Output
    ask: Ask
    kept: frozenset[str]
    refused: Mapping[str, Outcome]


def carry_out(start: Start, actions: list[Action]) -> int:
    """Start what the plan says, wait until it is well, and return the exit code."""
    seen, settings = start.seen, start.settings
    names = [node.name for node in settings.nodes] + [APP]
    with Progress(start.output, names) as progress:
        work = Work(seen.reach, seen.here.state, progress, (seen.record or {}).get("session_dir"))
        work.refuse(start.refused)
        for name in names:
            if name in start.kept:
                progress.report(name, f"runs already, pid {seen.raylets[name].pid}")
        try:
            result = _run(start, actions, work, progress)
        except KeyboardInterrupt:
            # Half a head would only hold its port: let the nodes under way come up, and record them.
            work.abandon()
            start.output.warn("interrupted: nodes under way still come up; Ctrl-C again leaves at once")
            work.finish(time.monotonic() + INTERRUPTED_S)
            if work.outcomes().get(settings.head.name, _LATE).ok:
                _record(start)
            raise
    if APP in result.failed and seen.head is not None and seen.settings is not None:
        # The old agent is still in force; the next start must see that it differs from the file.
        state.write_private(seen.here.state.settings, loader.dump(seen.settings))
    return _finish(start, result, progress)


def _run(start: Start, actions: list[Action], work: Work, progress: Progress) -> Result:
    seen, settings = start.seen, start.settings
    for stage in sorted({action.stage for action in actions if action.stage < 2}):
        now = [action for action in actions if action.stage == stage]
        if stage == 1:
            seen.reach.gcs_address = seen.here.gcs_address
        work.begin(now)
        work.finish(start.ask.deadline)
        failed = [action.node for action in now if not work.outcomes().get(action.node, _LATE).ok]
        if failed:
            return Result(outcomes={name: work.outcomes().get(name, _LATE) for name in failed})
    _record(start)
    ask = start.ask
    keeper_plan.hand_over(settings, seen.here, ask.config, systemd=ask.systemd, renew=ask.redeploy)
    work.begin([action for action in actions if action.stage == 2])
    agent = health.Agent(settings, token(settings, seen.here))
    running = frozenset(node.name for node in settings.nodes if node.name in start.kept) | {
        settings.head.name
    }
    return settle(work, running, agent.health, progress, deadline=start.ask.deadline)


def _record(start: Start) -> None:
    """Write down what runs, as soon as the head does: stop.py must find it whatever comes next."""
    head = start.seen.reach.raylet(start.settings.head.name)
    before = start.seen.record if start.seen.head is not None else None
    state.write_record(
        start.seen.here.state,
        {
            "cluster": start.settings.cluster,
            "gcs_address": start.seen.reach.gcs_address,
            "head_node_id": head.node_id if head else None,
            "session_dir": head.session_dir if head else None,
            "started_at": (before or {}).get("started_at")
            or time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "temp_dir": paths.temp_dir(start.settings, start.settings.head, start.seen.here.uid),
            "system_config": tuning.plan(start.settings.ray).system_config,
        },
    )


def _finish(start: Start, result: Result, progress: Progress) -> int:
    """Tables, errors, and the exit code."""
    output, settings = start.output, start.settings
    if settings.head.name in result.failed:
        show_failures(output, result.failed)
        return 3
    gcs = gcs_process.find(settings.ray.port)
    good = summary.show_tuning(output, settings, gcs.config if gcs else None)
    summary.show_nodes(output, summary.node_lines(settings, result.body, _notes(start, result)))
    raylets = start.seen.reach.raylets()
    pids = {name: raylet.pid for name, raylet in raylets.items()}
    summary.show_next(
        output, settings, start.seen.here.state, config=start.ask.config, project=machine.PROJECT, pids=pids
    )
    output.line()
    show_failures(output, result.failed)
    for reason in (*result.verdict.waiting, *result.verdict.reasons):
        output.warn(reason)
    if not result.in_time:
        where = "the agent answers" if result.body else f"nothing answers at {health.url(settings)}/health"
        output.error(f"not settled in time ({where}); logs are in {start.seen.here.state.logs}")
    code = _code(result, tuning_good=good)
    words = {0: "pass", 1: "warn", 3: "fail"}[code]
    output.line(f"{settings.cluster}: {words} after {progress.elapsed():.1f} s")
    return code


def _code(result: Result, *, tuning_good: bool) -> int:
    if (
        result.failed
        or not result.in_time
        or not tuning_good
        or result.verdict.status not in {"pass", "warn"}
    ):
        return 3
    return 0 if result.verdict.status == "pass" else 1


def _notes(start: Start, result: Result) -> dict[str, str]:
    notes = dict.fromkeys(start.kept, "ran already, untouched")
    for name, outcome in result.outcomes.items():
        notes[name] = f"started in {outcome.took_s:.1f} s" if outcome.ok else outcome.text
    return notes


def show_failures(output: Output, failed: Mapping[str, Outcome]) -> None:
    """What did not come up, and the last lines of each."""
    for name, outcome in failed.items():
        output.error(f"{name} {outcome.text}")
        for line in outcome.lines:
            output.error(f"  {name} | {line}")
