"""Ends one worker, or all of a cluster: first the word to the agent, then the processes, then the record.

Called by `stop`. Never ends a process itself: the host's own program does, by pid and start time.
"""

import contextlib
import difflib
import os
import shutil
import stat
import time
from collections.abc import Mapping, Set
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from bootstrap import health, keeper_plan, machine, state
from bootstrap.progress import Output
from bootstrap.reach import Answer, Raylet
from bootstrap.survey import Survey, survey, token
from config import paths
from config.settings import Node, Settings
from grid_agent.core import raystart
from grid_agent.edges import journal, keeper

CLUSTER_S = 60.0
HEARD_S = 3.0


def node(settings: Settings, name: str, output: Output) -> int:
    """End one worker and keep it stopped until the next start.

    Args:
        settings: The cluster file.
        name: The worker, by its name in the file or in the running cluster.
        output: Where to write.

    Returns:
        The exit code.
    """
    here = machine.here(settings, os.environ)
    state.prepare(here.state)
    with state.only_one(here.state):
        seen = survey(settings, os.environ)
        known = {known.name: known for known in (*(seen.settings or settings).nodes, *settings.nodes)}
        target = known.get(name)
        if target is None:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean {near[0]}?" if near else f"; it has {', '.join(known)}"
            output.error(f"cluster {settings.cluster} has no node {name}{hint}")
            return 2
        if target.role == "head":
            output.error(f"{name} is the head, without which there is no cluster: stop.py alone stops it all")
            return 2
        return _end_node(seen, target, output)


def cluster(settings: Settings, output: Output) -> int:
    """End everything of the cluster on its hosts, and forget it.

    Args:
        settings: The cluster file.
        output: Where to write.

    Returns:
        The exit code.
    """
    here = machine.here(settings, os.environ)
    known = here.state.root.is_dir()
    # The keeper first: it must not bring back what is being ended.
    with keeper_plan.ended_first(here.state, settings.head.name) if known else contextlib.nullcontext():
        seen = survey(settings, os.environ)
        if known and seen.raylets:
            running = seen.settings or settings
            tell_agent(seen, {*seen.raylets, *(node.name for node in running.nodes)}, running)
        ended, problems = _end_all(seen, settings, with_locks=known)
        seen.reach.close()
        if problems:
            for problem in problems:
                output.error(problem)
            output.line(f"{ended} processes ended; stop.py again ends the rest")
            return 3
        _forget(seen, settings)
        if ended:
            output.line(f"cluster {settings.cluster} is stopped: {ended} processes ended")
        else:
            output.line(f"nothing of cluster {settings.cluster} is running")
        if seen.strangers:
            others = ", ".join(map(str, seen.strangers))
            output.line(f"left alone at {seen.reach.gcs_address}: {others}, not of this cluster")
        return 0


def _end_node(seen: Survey, target: Node, output: Output) -> int:
    tell_agent(seen, {target.name}, seen.settings or seen.reach.settings)
    session = (seen.record or {}).get("session_dir")
    raylet = seen.raylets.get(target.name)
    answer = _end_exactly(seen, raylet, target) if seen.strangers else seen.reach.end(raylet, target, session)
    if not answer.get("ok"):
        output.error(f"{target.name}: {answer.get('detail', answer.get('error'))}")
        return 3
    ended = len(answer.get("ended", ()))
    what = f"stopped: {ended} processes ended" if ended else "was not running"
    output.line(f"{target.name} {what}; it stays so until start.py")
    return 0


def tell_agent(seen: Survey, names: Set[str], settings: Settings) -> None:
    """Say that a person wants these nodes stopped, and wait until the agent has read it.

    It sees a raylet's death within milliseconds and reads the files less often: told too late, it would
    already be bringing back what was just ended.
    """
    state.prepare(seen.here.state)
    for name in names:
        state.write_private(seen.here.state.stopped_node(name), "")
    if not seen.found.app_answers:
        return  # nobody who could heal
    workers = {node.name for node in settings.workers} & set(names)
    agent = health.Agent(settings, token(settings, seen.here))
    deadline = time.monotonic() + HEARD_S
    while time.monotonic() < deadline:
        body = agent.health()
        told = body is None or all(
            node["state"] == "CORDONED" for node in body["nodes"] if node["name"] in workers
        )
        if told:
            return
        time.sleep(0.05)


def _end_all(seen: Survey, settings: Settings, *, with_locks: bool) -> tuple[int, list[str]]:
    """How many processes were ended, and a sentence for whatever could not be."""
    nodes = {node.name: node for node in (*(seen.settings or settings).nodes, *settings.nodes)}
    if seen.strangers or not seen.known:
        # The address proves nothing here: only raylets that are this cluster's own, each by its id.
        own = {
            name: _end_exactly(seen, raylet, nodes.get(name, settings.head))
            for name, raylet in seen.raylets.items()
        }
        answers = [*{**seen.reach.unreachable, **own}.items()]
    else:
        workers = [
            node for node in nodes.values() if node.role != "head" and raystart.is_local(settings, node)
        ]
        first = _end_workers(seen, workers) if with_locks else []
        # What else could not be ended is asked once more, with all the rest.
        done = [(name, answer) for name, answer in first if answer.get("ok") or answer.get("error") == "busy"]
        busy = {name for name, answer in first if answer.get("error") == "busy"}
        answers = [*done, *_end_rest(seen, settings, busy).items()]
    ended = sum(len(answer.get("ended", ())) for _, answer in answers)
    problems = [
        f"{name}: {answer.get('detail', answer.get('error'))}"
        for name, answer in answers
        if not answer.get("ok")
    ]
    return ended, problems


def _end_exactly(seen: Survey, raylet: Raylet | None, target: Node) -> Answer:
    """End this raylet and nothing else of its name or address: another Ray has the address."""
    if raylet is None:
        return seen.reach.unreachable.get(target.name, {"ok": True})
    return seen.reach.end(raylet, target, raylet.session_dir, by_name=False)


def _end_workers(seen: Survey, workers: list[Node]) -> list[tuple[str, Answer]]:
    """End workers of this machine under their locks: a repair under way would start one behind our back."""
    session = (seen.record or {}).get("session_dir")

    def end(node: Node) -> tuple[str, Answer]:
        return node.name, seen.reach.end(seen.raylets.get(node.name), node, session)

    with ThreadPoolExecutor(max_workers=16) as side_by_side:
        return list(side_by_side.map(end, workers))


def _end_rest(seen: Survey, settings: Settings, busy: Set[str]) -> Mapping[str, Answer]:
    """End everything at the cluster's address, on all its hosts."""
    head = seen.head
    record = seen.record or {}
    session = head.session_dir if head else record.get("session_dir")
    temp_dir = record.get("temp_dir") or paths.temp_dir(settings, settings.head, seen.here.uid)
    return seen.reach.end_cluster(CLUSTER_S, session_dir=session, temp_dir=temp_dir, busy=busy)


def _forget(seen: Survey, settings: Settings) -> None:
    """Remove the record, so that the next start is a fresh one, and this cluster's own session."""
    files = seen.here.state
    kept = keeper.Files(files.root)
    for path in (files.cluster, files.settings, kept.plan, kept.beat, kept.outage):
        path.unlink(missing_ok=True)
    shutil.rmtree(files.gcs, ignore_errors=True)  # stopped for good: nobody goes on from it
    if files.stopped.is_dir():
        for mark in files.stopped.iterdir():
            mark.unlink(missing_ok=True)
    journal.end(files.journal, time.time())
    own = Path(paths.own_temp_dir(settings.cluster, seen.here.uid))
    if own != Path(paths.temp_dir(settings, settings.head, seen.here.uid)):
        return  # a folder that a person named is theirs to clean
    session = seen.head.session_dir if seen.head else (seen.record or {}).get("session_dir")
    _remove_session(own, Path(session) if session else None)


def _remove_session(own: Path, session: Path | None) -> None:
    try:
        found = own.lstat()
    except OSError:
        return
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
        return
    if session is not None and session.parent == own and session.name.startswith("session_"):
        shutil.rmtree(session, ignore_errors=True)
    for link in own.iterdir():  # to the session that is gone
        if link.is_symlink() and not link.exists():
            link.unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # not empty: another session is kept there
        own.rmdir()
