"""Where a cluster keeps its state on the head host, and where Ray keeps its sessions: names only.

Must never touch the disk; callers pass the environment in and make the folders they need.
Read by `bootstrap`, by the agent and by the command line.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from config.settings import Node, Settings

# Ray puts sockets at <temp dir>/session_<date>_<pid>/sockets/plasma_store.<n>, and a Unix socket path
# holds 107 bytes: what is left for the folder itself.
TEMP_DIR_MAX = 39
# OpenSSH puts a name of 58 bytes below the folder, and its socket paths hold 104 on the strictest system.
SSH_CONTROL_MAX = 104 - 58
REMOTE_ROOT = "~/.local/state/grid-agent/{cluster}"
RAY_DEFAULT_TEMP_DIR = "/tmp/ray"  # noqa: S108 - Ray's own default, used as it is


@dataclass(frozen=True, slots=True)
class StatePaths:
    """Every file of one cluster under its state folder."""

    root: Path

    @classmethod
    def of(cls, cluster: str, environ: Mapping[str, str]) -> "StatePaths":
        """The state folder of a cluster: `$XDG_STATE_HOME/grid-agent/<cluster>`, else below `~/.local/state`.

        A relative `XDG_STATE_HOME` is ignored, as its specification says: the folder must be the same
        from every working directory.
        """
        base = environ.get("XDG_STATE_HOME", "")
        folder = Path(base) if base.startswith("/") else Path(environ.get("HOME") or "/root", ".local/state")
        return cls(folder / "grid-agent" / cluster)

    @property
    def cluster(self) -> Path:
        """The record of what runs: GCS address, temp dir, tuning asked for, when it was started."""
        return self.root / "cluster.json"

    @property
    def settings(self) -> Path:
        """The settings that what runs was started with."""
        return self.root / "settings.json"

    @property
    def api_token(self) -> Path:
        """The token for changing anything through the agent's API."""
        return self.root / "api_token"

    @property
    def slack_token(self) -> Path:
        """A copy of the Slack token, for the agent."""
        return self.root / "slack_token"

    @property
    def ray_token(self) -> Path:
        """Ray's own token, in token mode."""
        return self.root / "ray_token"

    @property
    def journal(self) -> Path:
        """The agent's SQLite file."""
        return self.root / "journal.sqlite"

    @property
    def gcs(self) -> Path:
        """The GCS's store on disk, from which a head that died goes on, and for whom it was made."""
        return self.root / "gcs"

    @property
    def gcs_store(self) -> Path:
        """What Ray itself writes of it."""
        return self.gcs / "store"

    @property
    def agent_lock(self) -> Path:
        """Held by the one agent that acts."""
        return self.root / "agent.lock"

    @property
    def repairs(self) -> Path:
        """When which repair began, for the limits."""
        return self.root / "repairs"

    @property
    def keeper(self) -> Path:
        """What `start.py` wrote for the keeper of the head; `edges.keeper` knows the files beside it."""
        return self.root / "keeper.json"

    @property
    def logs(self) -> Path:
        """What the commands that start nodes and the application have said."""
        return self.root / "logs"

    @property
    def stopped(self) -> Path:
        """A folder with a file for each node that a person stopped; the agent leaves those alone."""
        return self.root / "stopped"

    @property
    def start_lock(self) -> Path:
        """Held by the one start or stop under way."""
        return self.root / "start.lock"

    @property
    def locks(self) -> Path:
        """A lock for each node, held while its raylet is started."""
        return self.root / "locks"

    def stopped_node(self, name: str) -> Path:
        """The file that says a person stopped this node."""
        return self.stopped / name

    def node_lock(self, name: str) -> Path:
        """The lock of this node's start."""
        return self.locks / f"{name}.lock"

    def node_log(self, name: str) -> Path:
        """What `ray start` of this node said."""
        return self.logs / f"{name}.log"

    @property
    def deploy_log(self) -> Path:
        """What deploying the application said."""
        return self.logs / "deploy.log"

    def ssh_control(self, uid: int) -> str:
        """The folder for the sockets of kept SSH connections: in the state folder, where that is short."""
        folder = str(self.root / "ssh")
        if len(folder.encode()) <= SSH_CONTROL_MAX:
            return folder
        return f"/tmp/ga-ssh-{uid}-{hashlib.sha256(folder.encode()).hexdigest()[:10]}"  # noqa: S108


@dataclass(frozen=True, slots=True)
class NodeFiles:
    """What is kept of one node on its own host; a leading `~/` is left for that host to expand."""

    log: str
    lock: str
    ray_token: str


def node_files(settings: Settings, node: Node, state: StatePaths) -> NodeFiles:
    """Where a node's log, lock and Ray token are on the host that runs it.

    Args:
        settings: The cluster.
        node: One of its nodes.
        state: The state folder of the head host, where a node on the head's machine keeps its files.

    Returns:
        Paths as that host understands them.
    """
    if settings.ssh is None or node.role == "head":
        return NodeFiles(
            str(state.node_log(node.name)), str(state.node_lock(node.name)), str(state.ray_token)
        )
    root = REMOTE_ROOT.format(cluster=settings.cluster)
    return NodeFiles(f"{root}/logs/{node.name}.log", f"{root}/locks/{node.name}.lock", f"{root}/ray_token")


def on_this_machine(path: str) -> str:
    """A path of the file as this machine reads it: `~/` is the home folder."""
    return str(Path(path).expanduser())


def own_temp_dir(cluster: str, uid: int) -> str:
    """The folder for Ray's sessions of a cluster whose nodes are all on this machine."""
    folder = f"/tmp/ray-{cluster}-{uid}"  # noqa: S108 - sockets need a short path
    if len(folder) <= TEMP_DIR_MAX:
        return folder
    return f"/tmp/ray-{hashlib.sha256(cluster.encode()).hexdigest()[:10]}-{uid}"  # noqa: S108


def temp_dir(settings: Settings, node: Node, uid: int) -> str:
    """Where this node's Ray keeps its sessions.

    Args:
        settings: The cluster.
        node: One of its nodes.
        uid: The numeric user who runs it, so that two users of one machine do not meet in /tmp.

    Returns:
        The node's own `temp_dir`, else the cluster's, else a folder for this cluster and user on this
        machine or, on hosts of their own, Ray's default. A `~/` of another host is left for it to expand.
    """
    given = node.temp_dir or settings.ray.temp_dir
    if settings.ssh is not None:
        if given is None:
            return RAY_DEFAULT_TEMP_DIR
        return on_this_machine(given) if node.role == "head" else given
    # One machine: its raylets share the head's session.
    given = given or settings.head.temp_dir
    return on_this_machine(given) if given else own_temp_dir(settings.cluster, uid)


def session_dir(settings: Settings, node: Node, heads: str | None, uid: int) -> str | None:
    """The folder of the running session on a node's host: of the same name as the head's.

    Args:
        settings: The cluster.
        node: One of its nodes.
        heads: The head's session folder, None when nothing runs.
        uid: As for `temp_dir`.

    Returns:
        The folder, None when the head's is not known.
    """
    if heads is None or settings.ssh is None or node.role == "head":
        return heads
    return f"{temp_dir(settings, node, uid)}/{Path(heads).name}"
