"""Nodes that have left the file while they run: named, confirmed by a person, drained, and stopped.

The others are not touched. Called by `bring_up`; the agent is told first, as in `take_down`. Asks, too,
before the workers of a lost head are ended.
"""

import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

from bootstrap import take_down
from bootstrap.progress import Output
from bootstrap.reach import Raylet
from bootstrap.survey import Survey
from config.settings import Node, Settings
from grid_agent.core import raystart

DRAIN_S = 15.0
ASK_RAY_S = 30.0
POLL_S = 0.5


def leaving(seen: Survey, file: Settings) -> list[Node]:
    """Workers of the running cluster that the file no longer has."""
    if seen.head is None or seen.settings is None:
        return []
    kept = {node.name for node in file.nodes}
    return [node for node in seen.settings.workers if node.name not in kept]


def fresh_agreed(seen: Survey, output: Output, *, yes: bool) -> bool:
    """Whether a person wants what the last head kept put aside, and its live workers ended."""
    if yes or not (seen.store.there or seen.raylets):
        return True
    live = ", ".join(sorted(seen.raylets)) or "none"
    what = "actors, Serve applications and job history of the cluster are given up"
    if not _on_terminal():
        output.warn(f"--fresh: {what} (live workers: {live}); to do that: start.py --fresh --yes")
        return False
    output.line(f"To begin anew, {what}. Workers that live and are ended: {live}")
    return _says_yes("Begin anew? [y/N] ")


def clear_agreed(seen: Survey, output: Output, *, yes: bool) -> bool:
    """Whether a person wants the live workers of a lost head ended; they cannot join another one."""
    hosts = {node.name: node.host for node in (seen.settings or seen.reach.settings).nodes}
    hosts |= {node.name: node.host for node in seen.reach.settings.nodes}
    names = ", ".join(
        f"{name} (pid {raylet.pid} on {hosts.get(name, 'this machine')})"
        for name, raylet in sorted(seen.raylets.items())
    )
    if yes:
        return True
    if not _on_terminal():
        output.warn(
            f"the head {seen.reach.settings.head.name} does not run, and the rest of its cluster would be "
            f"ended with all that runs there: {names}. To end it and start anew: start.py --yes; to end it "
            "only: stop.py"
        )
        return False
    output.line(f"The head does not run; the rest of its cluster has to be ended first: {names}")
    return _says_yes("End it, with all that runs there? [y/N] ")


def agreed(nodes: list[Node], output: Output, *, yes: bool) -> bool:
    """Whether a person wants these nodes stopped: said before (`yes`), or asked on a terminal."""
    names = ", ".join(f"{node.name} ({node.host})" for node in nodes)
    if yes:
        return True
    if not _on_terminal():
        output.warn(
            f"no longer in the file, but part of the running cluster: {names}. To remove: start.py --yes, "
            f"which gives running tasks {DRAIN_S:g} s and then stops the node; to keep: put it back"
        )
        return False
    output.line(f"No longer in the file: {names}")
    return _says_yes(f"Stop and remove? Tasks that run there get {DRAIN_S:g} s to end. [y/N] ")


def _on_terminal() -> bool:
    return sys.stdin.isatty() and sys.stdout.isatty()


def _says_yes(question: str) -> bool:
    return input(question).strip().lower() in {"y", "yes"}


def remove(seen: Survey, nodes: list[Node], output: Output) -> None:
    """Drain and stop these nodes; one whose host cannot be asked is named and forgotten."""
    take_down.tell_agent(seen, {node.name for node in nodes}, seen.settings or seen.reach.settings)
    with ThreadPoolExecutor(max_workers=16) as side_by_side:
        for text in side_by_side.map(lambda node: _remove(seen, node), nodes):
            output.line(text)


def _remove(seen: Survey, node: Node) -> str:
    raylet = seen.raylets.get(node.name)
    how = "" if raylet is None else _leave(seen, node, raylet)
    answer = seen.reach.end(raylet, node, (seen.record or {}).get("session_dir"))
    if answer.get("ok"):
        return f"{node.name} is removed: {how}{len(answer.get('ended', ()))} processes ended"
    why = answer.get("detail", answer.get("error"))
    return f"{node.name} is no longer part of the cluster, but what runs there could not be ended: {why}"


def _leave(seen: Survey, node: Node, raylet: Raylet) -> str:
    """Give the node the time to leave by itself, and say what became of it."""
    if not _drain(seen, raylet):
        return "Ray did not drain it, "
    began = time.monotonic()
    while time.monotonic() - began < DRAIN_S:
        if seen.reach.raylet(node.name) is None:
            return f"idle and gone after {time.monotonic() - began:.1f} s, "
        time.sleep(POLL_S)
    return f"still at work after {DRAIN_S:g} s, "


def _drain(seen: Survey, raylet: Raylet) -> bool:
    """Ask Ray to give the node no more work and to end it when it is idle, or when time is up."""
    settings, here = seen.reach.settings, seen.here
    argv = [
        raystart.ray_command(settings, settings.head),
        "drain-node",
        f"--address={seen.reach.gcs_address}",
        f"--node-id={raylet.node_id}",
        "--reason=DRAIN_NODE_REASON_PREEMPTION",
        "--reason-message=grid-agent: removed from the cluster file",
        f"--deadline-remaining-seconds={DRAIN_S:g}",
    ]
    env = raystart.own_env(settings, settings.head, here.environ, here.state)
    try:
        done = subprocess.run(
            argv,
            env=env,
            cwd=os.sep,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=ASK_RAY_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0
