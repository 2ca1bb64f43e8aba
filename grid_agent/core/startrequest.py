"""What the host program is asked to do to start one node: the same words the first time and at every repair.

Builds values only. Called by `bootstrap` and by `repair_plan`, so that a healed node is the node it was.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from config import paths
from config.settings import Node, Settings
from grid_agent.core import raystart


def start_request(
    settings: Settings,
    node: Node,
    *,
    argv: Sequence[str],
    env: Mapping[str, str],
    gcs_address: str,
    state: paths.StatePaths,
    timeout_s: float,
    lock_wait_s: float,
    versions: Mapping[str, str],
    program: str,
    unless: str | None = None,
) -> dict[str, Any]:
    """What the host program is asked to do to start one node, the first time and at every repair.

    Args:
        settings: The cluster.
        node: The node.
        argv: Its command (`raystart.head_argv`, `raystart.worker_argv`).
        env: Its environment (`raystart.own_env`).
        gcs_address: The GCS as Ray's own processes name it.
        state: The state folder of the head host.
        timeout_s: Longest start, in seconds.
        lock_wait_s: Longest wait for another start of this node, in seconds.
        versions: Ray and Python of the head, which another host must have too.
        program: What a worker's host runs in place of the command, if it can (`transports.start_program`).
        unless: For a repair, the file on the node's own host that says a person stopped it, if it is there.

    Returns:
        The request. For another host in token mode it first brings the token there; whoever sends it puts
        that in (`hosts.with_token`), so that it stands in no plan and in no argument of a Ray task.
    """
    files = paths.node_files(settings, node, state)
    start = {
        "op": "start",
        "argv": list(argv),
        "env": dict(env),
        "log": files.log,
        "lock": files.lock,
        "lock_wait_s": lock_wait_s,
        "timeout_s": timeout_s,
        "node_name": node.name,
        "gcs_address": gcs_address,
    }
    if node.role == "worker":
        start["program"] = program
    if unless is not None:
        start["unless"] = unless
    if raystart.is_local(settings, node):
        return start
    start |= {"inherit": list(raystart.INHERITED), "expect": dict(versions)}
    if settings.auth != "token":
        return start
    secret = {"op": "put_secret", "path": files.ray_token, "content": None}
    return {"op": "steps", "requests": [secret, start]}
