"""The one place where the `ray start` command and its environment are built, for the head and for workers.

Both `bootstrap` and the agent's repairs use it, so that a healed node is the node it was. Must never
run anything, and never put a secret into an argv: those are visible to every user of the host.
"""

import ipaddress
import json
import sys
from collections.abc import Mapping
from pathlib import PurePosixPath

from config import checks, paths, tuning
from config.settings import Node, Settings
from grid_agent.core import rayports

MEBIBYTE = 1024 * 1024
HEAD_LABEL = ("grid-agent/role", "head")
# Of an account on another host, where no login shell sets one; its host program expands the `~/`.
HOME_PATH = "~/.local/bin"
SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

# What a raylet may inherit. Everything else stays behind: a raylet started from inside a Ray worker would
# otherwise carry that worker's RAY_* variables, and one started by a person their secrets.
INHERITED = (
    "HOME",
    "LANG",
    "LC_ALL",
    "USER",
    "LOGNAME",
    "TZ",
    "TMPDIR",
    "XDG_STATE_HOME",
    "LD_LIBRARY_PATH",
)

# A raylet's first connect to its own object store comes too early and is then repeated after a second.
# Ask every 20 ms instead, for the same ten seconds in all: a node is usable about half a second sooner.
STORE_CONNECT = {
    "RAY_raylet_client_connect_timeout_milliseconds": "20",
    "RAY_raylet_client_num_connect_attempts": "500",
}


def is_local(settings: Settings, node: Node) -> bool:
    """Whether the node's processes run on the machine that starts the cluster."""
    return settings.ssh is None or node.role == "head"


def is_address(host: str) -> bool:
    """Whether a host of the file is an address, not a name."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def ray_folder(settings: Settings, node: Node) -> str | None:
    """The folder of the `ray` command on this node's host.

    Args:
        settings: The cluster.
        node: One of its nodes.

    Returns:
        What the file says of the node, else of all hosts reached by SSH, else the folder of this Python.
        None for a host reached by SSH of which the file says nothing: its own PATH decides.
    """
    if is_local(settings, node):
        return (
            paths.on_this_machine(node.ray_bin) if node.ray_bin else str(PurePosixPath(sys.executable).parent)
        )
    if node.ray_bin is not None:
        return node.ray_bin
    return settings.ssh.ray_bin if settings.ssh is not None else None


def ray_command(settings: Settings, node: Node) -> str:
    """The `ray` command on this node's host."""
    folder = ray_folder(settings, node)
    return "ray" if folder is None else str(PurePosixPath(folder, "ray"))


def connect_address(settings: Settings) -> str:
    """Where workers and drivers find the GCS: the head's host as the file names it."""
    return address(settings.head.host, settings.ray.port)


def address(host: str, port: int) -> str:
    """`host:port`, with the brackets that an IPv6 address needs."""
    return f"{checks.bracketed(host)}:{port}"


def head_argv(
    settings: Settings,
    *,
    node_ip: str,
    temp_dir: str,
    client_port: int,
    system_config: Mapping[str, object],
) -> list[str]:
    """The command that starts the head: GCS, dashboard and the head's raylet.

    Args:
        settings: The cluster.
        node_ip: The address under which the head's own processes and the workers know it.
        temp_dir: Where Ray keeps its sessions on the head host.
        client_port: A free port for the Ray Client server, which cannot be switched off.
        system_config: What the GCS gives to every raylet that joins (`tuning.plan`).

    Returns:
        The argv.
    """
    head = settings.head
    return [
        ray_command(settings, head),
        "start",
        "--head",
        f"--port={settings.ray.port}",
        f"--node-name={head.name}",
        f"--node-ip-address={node_ip}",
        "--dashboard-host=127.0.0.1",
        f"--dashboard-port={settings.ray.dashboard_port}",
        *rayports.flags(settings),
        f"--ray-client-server-port={client_port}",
        f"--temp-dir={temp_dir}",
        *_capacity(head, labels=dict([HEAD_LABEL])),
        f"--system-config={json.dumps(dict(system_config), sort_keys=True)}",
        "--no-monitor",  # the autoscaler, of which there is no use on hosts that people own
        "--disable-usage-stats",
    ]


def worker_argv(settings: Settings, node: Node, gcs_address: str | None = None) -> list[str]:
    """The command that starts one worker's raylet.

    Args:
        settings: The cluster.
        node: The worker.
        gcs_address: Where the GCS answers; by default the head's host and port in the file.

    Returns:
        The argv.
    """
    one_machine = settings.ssh is None
    # On one machine a worker shares the head's session, unless the file gives it a folder of its own.
    where = paths.temp_dir(settings, node, uid=0) if node.temp_dir or not one_machine else None
    return [
        ray_command(settings, node),
        "start",
        f"--address={gcs_address or connect_address(settings)}",
        f"--node-name={node.name}",
        # Of a host by name Ray finds the address by which it reaches the head.
        *([f"--node-ip-address={node.host}"] if one_machine or is_address(node.host) else []),
        *rayports.flags(settings),
        *([f"--temp-dir={where}"] if where else []),
        *_capacity(node, labels={}),
        # One log monitor a machine, or drivers see every line twice.
        *(["--include-log-monitor=False"] if one_machine else []),
        "--disable-usage-stats",
    ]


def node_env(
    settings: Settings,
    node: Node,
    base_env: Mapping[str, str],
    token_path: str | None = None,
    tuning_env: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """The whole environment of one node's processes.

    Args:
        settings: The cluster.
        node: The node.
        base_env: The environment to inherit from, reduced here; empty for another host.
        token_path: The file with Ray's token on that host; needed in token mode.
        tuning_env: Settings that Ray reads from the environment; by default those of the file.

    Returns:
        Names and values. The file's own `env` of the node comes last, but cannot change authentication.

    Raises:
        ValueError: Token mode without a token file.
    """
    env = {name: base_env[name] for name in INHERITED if base_env.get(name)}
    folder = ray_folder(settings, node)
    usual = SYSTEM_PATH if is_local(settings, node) else f"{HOME_PATH}:{SYSTEM_PATH}"
    rest = [part for part in base_env.get("PATH", usual).split(":") if part and part != folder]
    env["PATH"] = ":".join([*([folder] if folder else []), *rest])
    env |= STORE_CONNECT
    env |= tuning.env(tuning.plan(settings.ray)) if tuning_env is None else tuning_env
    env |= node.env
    env["RAY_USAGE_STATS_ENABLED"] = "0"
    # Always explicit: without it a stray ~/.ray/auth_token decides, and differs from host to host.
    env["RAY_AUTH_MODE"] = settings.auth
    if settings.auth == "token":
        if token_path is None:
            raise ValueError("token mode needs the path of the token file")
        env["RAY_AUTH_TOKEN_PATH"] = token_path
    return env


def own_env(
    settings: Settings, node: Node, environ: Mapping[str, str], state: paths.StatePaths
) -> dict[str, str]:
    """The environment of one node: this person's, reduced, here; none of it on other hosts."""
    token = paths.node_files(settings, node, state).ray_token if settings.auth == "token" else None
    return node_env(settings, node, environ if is_local(settings, node) else {}, token)


def head_env(settings: Settings, environ: Mapping[str, str], state: paths.StatePaths) -> dict[str, str]:
    """The environment of the head: its GCS keeps what it knows on disk, so that it can go on after a death.

    Only the head has these two: whoever inherits them elsewhere would take the GCS's store for its own.
    """
    env = own_env(settings, settings.head, environ, state)
    return env | {"RAY_gcs_storage": "rocksdb", "RAY_gcs_storage_path": str(state.gcs_store)}


def _capacity(node: Node, *, labels: dict[str, str]) -> list[str]:
    """What the node offers, as flags. Nothing is said where the file says nothing: Ray then counts."""
    flags = []
    if node.num_cpus is not None:
        flags.append(f"--num-cpus={node.num_cpus}")
    if node.num_gpus is not None:
        flags.append(f"--num-gpus={node.num_gpus}")
    if node.object_store_memory_mb is not None:
        flags.append(f"--object-store-memory={node.object_store_memory_mb * MEBIBYTE}")
    if node.resources:
        flags.append(f"--resources={json.dumps(node.resources, sort_keys=True)}")
    labels = {**node.labels, **labels}
    if labels:
        flags.append("--labels=" + ",".join(f"{key}={value}" for key, value in sorted(labels.items())))
    return flags
