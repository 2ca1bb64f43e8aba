"""The road of a start: look, refuse what cannot work, plan, carry out, wait, and say how it ended.

Holds the start lock all the way. Called by `start`; everything it decides is decided in pure modules.
"""

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from bootstrap import (
    changes,
    gate,
    health,
    keeper_plan,
    machine,
    ownership,
    ports,
    removal,
    state,
    store,
    summary,
)
from bootstrap.launch import Outcome, Work
from bootstrap.plan import APP, Action, Here, kept, plan
from bootstrap.progress import Output, Progress
from bootstrap.survey import Survey, survey, token
from bootstrap.wait import Result, settle
from config import loader, paths, ray_tokens, tuning
from config.settings import Settings
from grid_agent.edges import gcs_process

INTERRUPTED_S = 60.0


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


def bring_up(
    settings: Settings,
    output: Output,
    *,
    config: str | None,
    timeout_s: float,
    redeploy: bool,
    fresh: bool,
    yes: bool,
    systemd: bool = False,
    skip_preflight: bool = False,
) -> int:
    """Bring the cluster to its file.

    Args:
        settings: The file.
        output: Where to write.
        config: The path of the file as it was given, for the commands shown at the end.
        timeout_s: Longest wait in all.
        redeploy: Deploy the application again although it answers.
        fresh: Do not go on from what the last head kept on disk.
        yes: Stop what has left the file, or has lost its head for good, without asking.
        systemd: Install the keeper's service.
        skip_preflight: Start nodes whatever their hosts look like.

    Returns:
        The exit code.
    """
    ask = Ask(
        config,
        time.monotonic() + timeout_s,
        redeploy=redeploy,
        fresh=fresh,
        yes=yes,
        systemd=systemd,
        skip_preflight=skip_preflight,
    )
    here = machine.here(settings, os.environ)
    state.prepare(here.state)
    if fresh:
        return _begin_anew(settings, here, output, ask)
    with keeper_plan.only_one(here.state, wait_s=timeout_s / 2):
        began = time.time()
        code, seen = _bring_up(settings, output, ask)
        damaged = code == 3 and seen.found.store and _damaged(settings, seen.here, began)
        if not damaged:
            return code
        _set_aside(seen.here, f"it is damaged ({damaged})", output)
        return _bring_up(settings, output, ask)[0]


def _begin_anew(settings: Settings, here: Here, output: Output, ask: Ask) -> int:
    """`--fresh`: only on a dead head, and stronger than the keeper, which would bring the old one back."""
    seen = survey(settings, os.environ, fresh=True)
    if seen.head is None and not removal.fresh_agreed(seen, output, yes=ask.yes):
        return 1
    if seen.head is None:
        with keeper_plan.ended_meanwhile(settings.cluster, here, settings.head.name):
            return _bring_up(settings, output, ask)[0]
    output.error(_LIVES)
    return 5


def _bring_up(settings: Settings, output: Output, ask: Ask) -> tuple[int, Survey]:
    seen = survey(settings, os.environ, fresh=ask.fresh)
    if ask.fresh and seen.head is not None:  # the keeper was quicker than the person
        output.error(_LIVES)
        return 5, seen
    busy = ports_taken(settings, seen)
    if busy:
        for line in busy:
            output.error(line)
        return 3, seen
    if seen.head is None and not _may_begin(seen, output, yes=ask.yes or ask.fresh):
        return 1, seen
    leaving = removal.leaving(seen, settings)
    remove = bool(leaving) and removal.agreed(leaving, output, yes=ask.yes)
    try:
        in_force, again = _reconcile(settings, seen, output, redeploy=ask.redeploy, remove=remove)
    except ValueError:
        output.error("the file is too different from what runs: stop.py first, then start.py")
        return 2, seen
    if remove:
        removal.remove(seen, leaving, output)
    _write_state(in_force, seen, output)
    actions = plan(in_force, seen.found, seen.here, redeploy=again)
    refused = {} if ask.skip_preflight else gate.refused(in_force, seen, actions, output)
    if settings.head.name in refused:
        _show_failures(output, refused)
        return 3, seen
    actions = [action for action in actions if action.node not in refused]
    begun = Start(settings, in_force, seen, output, ask, kept(seen.found, actions), refused)
    code = _carry_out(begun, actions)
    return max(code, 1) if leaving and not remove else code, seen


def _damaged(settings: Settings, here: Here, since: float) -> str | None:
    return store.damage(here.state.gcs, paths.temp_dir(settings, settings.head, here.uid), since)


def _may_begin(seen: Survey, output: Output, *, yes: bool) -> bool:
    """Whether the head may be started; a store that it cannot go on from, or shall not, is put aside."""
    clears = bool(seen.raylets) and not seen.found.store  # the plan will begin so
    if clears and not removal.clear_agreed(seen, output, yes=yes):
        return False
    if seen.store.there and not seen.found.store:
        _set_aside(seen.here, seen.store.problem or "asked for by --fresh", output)
    elif seen.found.store:
        output.line("The head goes on from what it kept on disk; workers that live stay.")
    return True


def _set_aside(here: Here, why: str, output: Output) -> None:
    kept = store.set_aside(here.state.gcs)
    output.warn(
        f"what the last head kept on disk is put aside, and a new cluster begins: {why}; it is in {kept}"
    )


def ports_taken(settings: Settings, seen: Survey) -> list[str]:
    """A sentence for each port, and each process at the cluster's address, that stands in the way."""
    head_runs = seen.head is not None
    wanted = ports.needs(settings, head_runs=head_runs, app_answers=seen.found.app_answers)
    strangers = {process.pid: process for process in seen.strangers}
    own_gcs = {pid for pid, _ in ownership.gcs_servers(seen.reach.gcs_address)} - strangers.keys()
    # Its ports are freed with it, when it is cleared away or ended to be started again.
    cleared = not head_runs and bool(seen.raylets or seen.found.store) and not strangers

    def left(holder: Mapping[str, object]) -> bool:
        return holder["pid"] in own_gcs

    def ours(holder: Mapping[str, object]) -> bool:
        name = str(holder["name"])
        if cleared:
            return left(holder) or name == "dashboard.py" or name.startswith(("ray::", "ray-dashboard-"))
        return head_runs and name.startswith("ray::")

    found = list(ports.taken(wanted, seen.reach.port_owner, ours=ours, left=left))
    if strangers and not any(f"pid {pid} " in line for pid in strangers for line in found):
        others = ", ".join(map(str, seen.strangers))
        found.append(
            f"port {settings.ray.port} (ray.port) is taken by {others}, another Ray and not this cluster, "
            f"at {seen.reach.gcs_address}: stop that, or set ray.port to another port"
        )
    return found


def _reconcile(
    settings: Settings, seen: Survey, output: Output, *, redeploy: bool, remove: bool
) -> tuple[Settings, bool]:
    """The settings that will be in force, and whether the application has to be deployed for them."""
    if seen.head is None or seen.settings is None:
        return settings, redeploy
    alive = frozenset(seen.raylets)
    found = changes.differences(seen.settings, settings, alive)
    done_now = {changes.REDEPLOY if redeploy else "", changes.REMOVE if remove else ""}
    found = [difference for difference in found if difference.remedy not in done_now]
    if found:
        rows = [(d.key, d.running, d.file, d.remedy) for d in found]
        output.table("Differs from what runs", ("key", "running", "in the file", "to change it"), rows)
        output.line()
    in_force = changes.in_force(seen.settings, settings, alive, redeploy=redeploy, remove=remove)
    changed = in_force.nodes != seen.settings.nodes
    if changed and not redeploy:
        output.line("The nodes have changed: the agent is deployed again, so that it knows whom to watch.")
    return in_force, redeploy or changed


def _write_state(settings: Settings, seen: Survey, output: Output) -> None:
    """Everything that the processes about to start will read."""
    here = seen.here
    if seen.head is None and settings.ssh is None:
        folder = paths.temp_dir(settings, settings.head, here.uid)
        if folder == paths.own_temp_dir(settings.cluster, here.uid):
            state.make_private_folder(Path(folder))
    if seen.head is None:
        store.prepare(here.state.gcs, store.owner(settings.cluster, here.gcs_address))
    state.keep_token(here.state.api_token)
    if settings.auth == "token":
        state.keep_token(here.state.ray_token)
    own = state.read_text(here.state.ray_token)
    for stray in ray_tokens.strays(here.environ, Path.home(), settings.auth, own):
        output.warn(stray)
    if settings.slack is not None:
        missing = state.copy_slack_token(here.state, settings.slack.token_env, here.environ)
        if missing:
            output.warn(missing)
    state.write_private(here.state.settings, loader.dump(settings))
    for name in seen.raylets:
        here.state.stopped_node(name).unlink(missing_ok=True)


def _carry_out(start: Start, actions: list[Action]) -> int:
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
        _show_failures(output, result.failed)
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
    _show_failures(output, result.failed)
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


def _show_failures(output: Output, failed: Mapping[str, Outcome]) -> None:
    for name, outcome in failed.items():
        output.error(f"{name} {outcome.text}")
        for line in outcome.lines:
            output.error(f"  {name} | {line}")


_LIVES = (
    "--fresh begins a new cluster in place of one whose head is dead, and the head of this one runs: "
    "stop.py first, which ends it all, then start.py"
)
_LATE = Outcome(False, "failed: did not end in time", 0.0)
