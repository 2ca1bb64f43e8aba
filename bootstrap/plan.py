"""Settings and what was found running -> the ordered actions that bring the cluster to its file.

Pure: looks at nothing and starts nothing. `start` carries out exactly these actions and prints them for
`--dry-run`; actions of one stage run side by side.
"""

import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from config import paths, tuning
from config.settings import Node, Settings
from grid_agent.core import raystart

APP = "grid-agent"
SECRET = re.compile(r"TOKEN|SECRET|PASSW|CREDENTIAL|(^|_)KEY", re.IGNORECASE)

HEAD_S = 120.0  # 4 to 6 on a quiet machine; one that has just booted, or is busy, takes many times as long

Kind = Literal["clear", "end_head", "start", "deploy"]


@dataclass(frozen=True, slots=True)
class Found:
    """What a look at the hosts has shown before anything is started.

    `store`: a head can go on from what the last one's GCS kept on disk, and live workers stay.
    """

    running: frozenset[str] = frozenset()
    store: bool = False
    app_answers: bool = False
    client_port: int = 10001


@dataclass(frozen=True, slots=True)
class Here:
    """What the plan needs to know of the head host and the person it is made for.

    `node_ip` is the head's address as Ray will know it: on a machine of its own Ray turns a loopback address
    into the one by which the machine reaches others.
    """

    state: paths.StatePaths
    uid: int
    node_ip: str
    gcs_address: str
    environ: Mapping[str, str]
    python: str
    project: str


@dataclass(frozen=True, slots=True)
class Action:
    """One thing to do on one host. `required` False: the others go on when it fails."""

    kind: Kind
    stage: int
    node: str
    host: str
    why: str
    timeout_s: float
    required: bool
    argv: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    cwd: str | None = None


def plan(settings: Settings, found: Found, here: Here, *, redeploy: bool = False) -> list[Action]:
    """What has to be done, in order.

    Args:
        settings: What the cluster is to be.
        found: What runs now; while its head does, it stays untouched.
        here: The machine and the person.
        redeploy: Deploy the application again although it answers.

    Returns:
        The actions; empty when everything runs.
    """
    actions = []
    head_runs = settings.head.name in found.running
    goes_on = not head_runs and found.store
    if goes_on:
        actions.append(_end_head(settings))
    elif not head_runs and found.running:
        actions.append(
            Action(
                kind="clear",
                stage=0,
                node=settings.head.name,
                host=settings.head.host,
                why="the head is gone: what is left of its cluster ("
                + ", ".join(sorted(found.running))
                + ") cannot join another one and is ended first",
                timeout_s=60,
                required=True,
            )
        )
    running = found.running if head_runs or goes_on else frozenset()
    if not head_runs:
        actions.append(start_head(settings, found.client_port, here, goes_on=goes_on))
    missing = [node for node in settings.workers if node.name not in running]
    actions += [_start_worker(settings, node, here) for node in missing]
    if redeploy or not (head_runs and found.app_answers):
        actions.append(deploy(settings, here, again=redeploy and head_runs))
    return actions


def kept(found: Found, actions: list[Action]) -> frozenset[str]:
    """The running nodes that these actions leave as they are: a `clear` leaves none."""
    if any(action.kind == "clear" for action in actions):
        return frozenset()
    return found.running - {action.node for action in actions}


def describe(action: Action) -> list[str]:
    """The lines that `--dry-run` prints for one action. Values that may be secret are not shown."""
    need = "required" if action.required else "the others go on without it"
    lines = [f"{action.node}  on {action.host}", f"  why:     {action.why}"]
    if action.argv:
        lines.append(f"  argv:    {shlex.join(action.argv)}")
    if action.env:
        shown = [f"{name}={_shown(name, value)}" for name, value in sorted(action.env.items())]
        lines.append(f"  env:     {' '.join(shown)}")
    if action.cwd:
        lines.append(f"  in:      {action.cwd}")
    lines.append(f"  within:  {action.timeout_s:g} s, {need}")
    return lines


def _end_head(settings: Settings) -> Action:
    head = settings.head
    return Action(
        kind="end_head",
        stage=0,
        node=head.name,
        host=head.host,
        why="the head is gone: what is left of it is ended first; workers that live stay untouched",
        timeout_s=60,
        required=True,
    )


def start_head(settings: Settings, client_port: int, here: Here, *, goes_on: bool) -> Action:
    """The start of the head; `goes_on`: from what the last one's GCS kept on disk."""
    head = settings.head
    argv = raystart.head_argv(
        settings,
        node_ip=here.node_ip,
        temp_dir=paths.temp_dir(settings, head, here.uid),
        client_port=client_port,
        system_config=tuning.plan(settings.ray).system_config,
    )
    return Action(
        kind="start",
        stage=1,
        node=head.name,
        host=head.host,
        why="start GCS, dashboard and raylet again, in the session that they were in"
        if goes_on
        else "the head does not run: start GCS, dashboard and raylet, with the tuning of the file",
        timeout_s=HEAD_S,
        required=True,
        argv=tuple(argv),
        env=raystart.head_env(settings, here.environ, here.state),
    )


def _start_worker(settings: Settings, node: Node, here: Here) -> Action:
    return Action(
        kind="start",
        stage=2,
        node=node.name,
        host=node.host,
        why="no raylet of this name runs: start one, beside the other workers",
        timeout_s=90 if settings.ssh is None else settings.ssh.command_timeout_s,
        required=False,
        argv=tuple(raystart.worker_argv(settings, node, here.gcs_address)),
        env=raystart.own_env(settings, node, here.environ, here.state),
    )


def deploy(settings: Settings, here: Here, *, again: bool) -> Action:
    """The deployment of the application; `again`: over one that answers."""
    head = settings.head
    return Action(
        kind="deploy",
        stage=2,
        node=APP,
        host=head.host,
        why="deploy the application again, with the file as it is now"
        if again
        else "the agent does not answer: deploy it on the head, beside the workers' start",
        timeout_s=120,
        required=True,
        argv=(
            here.python,
            "-P",  # a module called `config` in the working directory must not win
            "-m",
            "deployments.deploy",
            "--settings",
            str(here.state.settings),
            "--gcs-address",
            here.gcs_address,
        ),
        env=raystart.own_env(settings, head, here.environ, here.state) | {"PYTHONPATH": here.project},
        cwd=str(here.state.root),
    )


def _shown(name: str, value: str) -> str:
    if SECRET.search(name) and not name.endswith("_PATH"):
        return "(not shown)"
    return shlex.quote(value)
