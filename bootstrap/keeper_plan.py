"""What the keeper has to know, written down by `start.py`: it reads no cluster file and loads no library.

Called by `bring_up` as soon as the head runs, and the only place that starts or ends the keeper for a person.
"""

import contextlib
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bootstrap import health, plan, ports, state, units
from bootstrap.plan import Here
from config import loader, paths
from config.settings import Settings
from grid_agent.core import raystart
from grid_agent.edges import keeper

LOCK_WAIT_S = 60.0
UNIT_S = 10.0  # for the keeper that systemd was asked to start
POLL_S = 0.1


def make(settings: Settings, here: Here, config: str | None) -> dict[str, Any]:
    """The keeper's plan.

    Args:
        settings: What is in force.
        here: The machine; `gcs_address` is that of the running head.
        config: The path of the file as it was given.

    Returns:
        Plain values: commands, environments, addresses, folders.
    """
    head, root = settings.head, here.state.root
    files = paths.node_files(settings, head, here.state)
    start = plan.start_head(settings, ports.client_port(), here, goes_on=True)
    deploy = plan.deploy(settings, here, again=False)
    temp_dir = paths.temp_dir(settings, head, here.uid)
    env = {name: here.environ[name] for name in raystart.INHERITED if here.environ.get(name)}
    env |= {"PATH": deploy.env["PATH"], "PYTHONPATH": here.project}
    module = [here.python, "-P", "-m"]
    file = str(Path(config or loader.default_file()).resolve())
    token_file = settings.http.token_file
    return {
        "cluster": settings.cluster,
        "gcs_address": here.gcs_address,
        "head": head.name,
        "keeper": {
            "argv": [*module, "bootstrap.keeper", "-c", file, "--state", str(root)],
            "env": env,
            "cwd": str(root),
        },
        "start": {
            "argv": list(start.argv),
            "env": dict(start.env),
            "log": files.log,
            "lock": files.lock,
            "lock_wait_s": LOCK_WAIT_S,
            "timeout_s": start.timeout_s,
            "node_name": head.name,
        },
        "store": str(here.state.gcs),
        "temp_dir": temp_dir,
        "own_temp_dir": temp_dir == paths.own_temp_dir(settings.cluster, here.uid),
        "deploy": {"argv": list(deploy.argv), "env": dict(deploy.env), "cwd": deploy.cwd},
        "api": {
            "host": health.reachable(settings.http.host),
            "port": settings.http.port,
            "token_file": str(Path(token_file).expanduser()) if token_file else None,
        },
        "slack": settings.slack is not None,
        "post": {"argv": [*module, "bootstrap.keeper_post", str(root)], "env": env, "cwd": str(root)},
        "hang_s": settings.keeper.hang_s,
        "ready_s": settings.keeper.ready_s,
        "dead_man_url": settings.keeper.dead_man_url,
    }


def hand_over(
    settings: Settings, here: Here, config: str | None, *, systemd: bool = False, renew: bool = False
) -> None:
    """Write the plan and see to it that a keeper runs, a new one with `renew`; the lock of a start is held.

    Raises:
        units.UnitError: `systemd`, and its service cannot be installed.
    """
    files = keeper.Files(here.state.root)
    if settings.agent.mode == "observe":  # never acts: neither does its keeper
        files.plan.unlink(missing_ok=True)
        keeper.end(files)
        return
    made = make(settings, here, config)
    state.write_private(here.state.keeper, json.dumps(made, indent=1) + "\n")
    if renew:  # of the version that is installed now
        keeper.end(files)
    if systemd:
        units.install(made, here.state.keeper, here.environ)
    begin(settings.cluster, here)


def begin(cluster: str, here: Here) -> None:
    """See to it that a keeper runs where there is a plan, by systemd where it has the unit."""
    files = keeper.Files(here.state.root)
    if keeper.running(files) is None and files.plan.exists() and units.start(cluster, here.environ):
        until = time.monotonic() + UNIT_S
        while keeper.running(files) is None and time.monotonic() < until:
            time.sleep(POLL_S)
    keeper.ensure(files)


@contextlib.contextmanager
def only_one(files: paths.StatePaths, *, wait_s: float = 0.0) -> Iterator[None]:
    """The lock of a start; one that the keeper holds is waited for: it is just bringing the head back.

    Raises:
        state.BusyError: Another start or stop holds it, or the keeper does after `wait_s` seconds.
    """
    until = time.monotonic() + wait_s
    with contextlib.ExitStack() as held:
        while True:
            try:
                held.enter_context(state.only_one(files))
                break
            except state.BusyError:
                if not _held_by_keeper(files) or time.monotonic() > until:
                    raise
                time.sleep(POLL_S)
        yield


@contextlib.contextmanager
def ended_first(files: paths.StatePaths, head: str) -> Iterator[None]:
    """The lock of a stop, with the keeper ended for good before anything else is.

    First the word that a person stops the head, then the end of the keeper and of what it has under way:
    whoever starts it again from now on reads the word and goes.

    Raises:
        state.BusyError: Another start or stop is under way; nothing was changed.
        state.StateError: The keeper cannot be ended.
    """
    own = keeper.Files(files.root)
    with contextlib.ExitStack() as held:
        ours = _taken(held, files)
        state.prepare(files)
        state.write_private(files.stopped_node(head), "")
        if not keeper.end(own):
            text = f"the keeper ({own.lock}) cannot be ended: end it by hand, then stop.py again"
            raise state.StateError(text)
        if not ours:
            held.enter_context(state.only_one(files))
        yield


@contextlib.contextmanager
def ended_meanwhile(cluster: str, here: Here, head: str) -> Iterator[None]:
    """The same for a start that begins anew: meanwhile the keeper must not bring the old head back.

    Afterwards there is a keeper again, whatever came of the start.
    """
    with ended_first(here.state, head):
        try:
            yield
        finally:
            here.state.stopped_node(head).unlink(missing_ok=True)
            begin(cluster, here)


def _taken(held: contextlib.ExitStack, files: paths.StatePaths) -> bool:
    """Whether we have the lock now; not, where the keeper has it."""
    try:
        held.enter_context(state.only_one(files))
    except state.BusyError:
        if not _held_by_keeper(files):
            raise
        return False
    return True


def _held_by_keeper(files: paths.StatePaths) -> bool:
    there = keeper.running(keeper.Files(files.root))
    return there is not None and (state.read_text(files.start_lock) or "").strip() == str(there[0])
