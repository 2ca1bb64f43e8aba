"""`ray start` of one worker without its command line, which takes long to load. Private parts of Ray: Node.

What the command does for these flags is in ray/scripts/scripts.py, `start`. Given to Ray's own Python on
the worker's host, on standard input, with the command that it stands for as its arguments; it loads, and
waits for the word to start. Where anything here was not proved (Ray's minor version, a flag, a value, a hook)
it becomes that command instead. Its errors are Ray's own. Called by `host.starter`; Python 3.9 and Ray only.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from typing import Any

PROVED = "2.60."
GO = b"go\n"
HOOKS = ("RAY_START_HOOK", "RAY_REDIS_ADDRESS")  # of others, who expect the command
BOOLS = {"True": True, "False": False}
SAYS_NOTHING = "--disable-usage-stats"  # of the head only
# The flags of a worker (`raystart.worker_argv`) -> the parameters of Ray's Node, and how a value is read.
FLAGS: dict[str, tuple[str, Callable[[str], Any]]] = {
    "--address": ("gcs_address", str),
    "--node-name": ("node_name", str),
    "--node-ip-address": ("node_ip_address", str),
    "--node-manager-port": ("node_manager_port", int),
    "--object-manager-port": ("object_manager_port", int),
    "--dashboard-agent-grpc-port": ("metrics_agent_port", int),
    "--dashboard-agent-listen-port": ("dashboard_agent_listen_port", int),
    "--runtime-env-agent-port": ("runtime_env_agent_port", int),
    "--metrics-export-port": ("metrics_export_port", int),
    "--min-worker-port": ("min_worker_port", int),
    "--max-worker-port": ("max_worker_port", int),
    "--temp-dir": ("temp_dir", str),
    "--num-cpus": ("num_cpus", int),
    "--num-gpus": ("num_gpus", int),
    "--object-store-memory": ("object_store_memory", int),
    "--resources": ("resources", json.loads),
    "--labels": ("labels", str),
    "--include-log-monitor": ("include_log_monitor", BOOLS.__getitem__),
}
DEFAULTS = {
    "resources": {},
    "labels": "",
    "min_worker_port": 10002,
    "max_worker_port": 19999,
}  # of the command


class NotProvedError(Exception):
    """The command has to do it."""


def parameters(flags: list[str]) -> dict[str, Any]:
    """The flags as parameters of Ray's Node; NotProvedError for one that is not known here."""
    found: dict[str, Any] = dict(DEFAULTS)
    for word in flags:
        name, equals, value = word.partition("=")
        if word == SAYS_NOTHING:
            continue
        if name not in FLAGS or not equals:
            raise NotProvedError(word)
        parameter, read = FLAGS[name]
        try:
            found[parameter] = read(value)
        except (ValueError, KeyError):
            raise NotProvedError(word) from None
    if not {"gcs_address", "node_name"} <= set(found) or not isinstance(found["resources"], dict):
        raise NotProvedError("a worker's flags")
    return found


def _node(found: dict[str, Any]) -> tuple[Any, Any]:
    """Ray's class of a node, and its parameters; NotProvedError where this Ray has them otherwise."""
    try:
        import ray  # noqa: PLC0415 - loaded only here, on the worker's host

        if not ray.__version__.startswith(PROVED):
            raise NotProvedError(ray.__version__)  # noqa: TRY301
        from ray._private import (  # noqa: PLC0415
            label_utils,
            node,
            parameter,
            ray_constants,
            ray_logging,
            resource_isolation_config,
            services,
        )

        ray_logging.setup_logger(ray_constants.LOGGER_LEVEL.upper(), ray_constants.LOGGER_FORMAT)
        given = dict(found, labels=label_utils.parse_node_labels_string(found["labels"]))
        given["gcs_address"] = services.canonicalize_bootstrap_address(
            found["gcs_address"], temp_dir=found.get("temp_dir")
        )
        if "node_ip_address" in given:
            given["node_ip_address"] = services.resolve_ip_for_localhost(given["node_ip_address"])
        else:
            given["node_ip_address"] = services.get_node_ip_address(given["gcs_address"])
        given["resource_isolation_config"] = resource_isolation_config.ResourceIsolationConfig()
        return node.Node, parameter.RayParams(ray_client_server_port=10001, huge_pages=False, **given)
    except Exception as error:  # noqa: BLE001 - nothing has been started: the command will say it better
        raise NotProvedError(str(error)) from None


def load(flags: list[str]) -> tuple[Any, Any]:
    """Everything that a start needs and that starts nothing. Raises NotProvedError."""
    if any(os.environ.get(name) for name in HOOKS):
        raise NotProvedError("a hook")
    loaded = _node(parameters(flags))
    from ray._private import utils  # noqa: PLC0415

    utils.get_dashboard_dependency_error()  # asked again by the raylet's start: by then it is loaded
    return loaded


def start(node_class: Any, given: Any) -> None:
    """What `ray start` does with these parameters. Raises what Ray raises."""
    from ray._private import utils  # noqa: PLC0415
    from ray._private.authentication import authentication_token_setup  # noqa: PLC0415

    authentication_token_setup.ensure_token_if_auth_enabled(None, create_token_if_missing=False)
    node = node_class(given, head=False, shutdown_at_exit=False, spawn_reaper=False, connect_only=False)
    utils.write_ray_address(given.gcs_address, node.get_temp_dir_path())


def main(command: list[str]) -> None:
    """Load, wait for the word, then start the node or become the command. Without the word, end."""
    try:
        loaded = load(command[2:])
    except NotProvedError:
        loaded = None
    if sys.stdin.buffer.readline() != GO:
        return
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)  # in place of the pipe, which the raylet would inherit
    os.close(nothing)
    if loaded is None:
        os.execvp(command[0], command)  # noqa: S606 - an argv, as it was given
    start(*loaded)


if __name__ == "__main__":
    if sys.path[0] == "":  # the working directory
        del sys.path[0]
    main(sys.argv[1:])
