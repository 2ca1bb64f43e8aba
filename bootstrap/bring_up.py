"""The road of a start: look, refuse what cannot work, plan, carry out, wait, and say how it ended.

Holds the start lock all the way. Called by `start`; everything it decides is decided in pure modules.
"""

import os
import time
from collections.abc import Mapping
from pathlib import Path

from bootstrap import (
    changes,
    gate,
    keeper_plan,
    machine,
    ownership,
    ports,
    removal,
    state,
    store,
)
from bootstrap.carry_out import Ask, Start, carry_out, show_failures
from bootstrap.plan import Here, kept, plan
from bootstrap.progress import Output
from bootstrap.survey import Survey, survey
from config import loader, paths, ray_tokens
from config.settings import Settings


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
        show_failures(output, refused)
        return 3, seen
    actions = [action for action in actions if action.node not in refused]
    begun = Start(settings, in_force, seen, output, ask, kept(seen.found, actions), refused)
    code = carry_out(begun, actions)
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


_LIVES = (
    "--fresh begins a new cluster in place of one whose head is dead, and the head of this one runs: "
    "stop.py first, which ends it all, then start.py"
)
