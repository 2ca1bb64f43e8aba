"""What a cluster file may say: frozen, strict models, each key with its unit, meaning and default.

Must never read a file or the environment (`loader` does). Read by everything else.
"""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from config import checks, consistency, presets

Host = Annotated[str, AfterValidator(checks.host)]
Path = Annotated[str, AfterValidator(checks.path)]
TempDir = Annotated[str, AfterValidator(checks.temp_dir)]


def _pattern(check: checks.Matching) -> Any:
    """Shows editors what the check accepts."""
    return Field(json_schema_extra={"pattern": f"^({check.pattern})$"})


User = Annotated[str, AfterValidator(checks.user_name), _pattern(checks.user_name)]
Variable = Annotated[str, AfterValidator(checks.variable_name), _pattern(checks.variable_name)]
NodeName = Annotated[str, AfterValidator(checks.node_name), _pattern(checks.node_name)]
ClusterName = Annotated[str, AfterValidator(checks.cluster_name), _pattern(checks.cluster_name)]
Channel = Annotated[str, AfterValidator(checks.slack_channel), _pattern(checks.slack_channel)]
Hours = Annotated[str, AfterValidator(checks.hours), _pattern(checks.hours)]
Port = Annotated[int, Field(ge=1, le=65535)]
Count = Annotated[int, Field(ge=0, le=100_000)]
Milliseconds = Annotated[int, Field(ge=1, le=2**31 - 1)]
Labels = dict[
    Annotated[str, AfterValidator(checks.label_key)], Annotated[str, AfterValidator(checks.label_value)]
]
Env = dict[Annotated[str, AfterValidator(checks.node_variable)], Annotated[str, AfterValidator(checks.line)]]
Quantity = Annotated[float, Field(ge=0, le=1e14, allow_inf_nan=False), AfterValidator(checks.whole)]
Resources = dict[Annotated[str, AfterValidator(checks.resource_name)], Quantity]


def _seconds(least: float, most: float) -> Any:
    """The bounds of a duration in seconds."""
    return Field(ge=least, le=most, allow_inf_nan=False)


def _as_tuple(value: object) -> object:
    """YAML and JSON know lists only."""
    return tuple(value) if isinstance(value, list) else value


def _not_null(value: object) -> object:
    """Host keys are always checked."""
    if value is None:
        raise ValueError(
            "must be a path: the workers' host keys are always checked; leave the key out for the default"
        )
    return value


class Frozen(BaseModel):
    """Strict, immutable, unknown keys refused."""

    model_config = ConfigDict(
        frozen=True, strict=True, extra="forbid", use_attribute_docstrings=True, hide_input_in_errors=True
    )


class Node(Frozen):
    """One host (or, without `ssh`, one raylet of this machine)."""

    name: NodeName
    """Name of the node, unique in the file; Ray shows it as the node's name."""
    host: Host
    """Address or host name under which the head reaches the node."""
    role: Literal["head", "worker"] = "worker"
    """`head` for exactly one node, where the agent and Ray's GCS run; `worker` (default) for the others."""
    num_cpus: Count | None = None
    """CPUs that Ray may hand out there. Default null: as many as Ray finds."""
    num_gpus: Annotated[int, Field(ge=0, le=1024)] | None = None
    """GPUs that Ray may hand out there, and that the agent expects. Default null: as many as Ray finds."""
    labels: Labels = {}
    """Labels of the node for Ray's label selectors. Default: none."""
    env: Env = {}
    """Environment variables of the node's Ray processes. Default: none."""
    resources: Resources = {}
    """Custom resources the node offers, in whole units. Default: none."""
    object_store_memory_mb: Annotated[int, Field(ge=75, le=16 * 2**20)] | None = None
    """Size of the node's object store in MiB, at least Ray's minimum of 75. Default null: Ray's choice."""
    temp_dir: TempDir | None = None
    """Folder for Ray's sessions on this node. Default null: `ray.temp_dir`."""
    ray_bin: Path | None = None
    """Folder of the `ray` command on this node. Default null: `ssh.ray_bin`."""
    ssh_user: User | None = None
    """Login name on this node. Default null: `ssh.user`."""
    ssh_port: Port | None = None
    """Port of this node's SSH server. Default null: `ssh.port`."""
    gpu_every_s: Annotated[float, _seconds(0, 3600)] | None = None
    """Seconds between two looks at this node's GPUs; 0: never. Default null: `gpu.every_s`."""
    can_repair: bool = False
    """Whether it may repair a node that the head cannot reach. Default false: it needs SSH keys for that."""


class Ssh(Frozen):
    """How the head reaches the workers. Absent: every node is a raylet on this machine."""

    user: User
    """Login name on the workers."""
    port: Port = 22
    """Port of the workers' SSH server. Default 22."""
    key_file: Path | None = None
    """Private key on the head. Default null: the keys that `ssh` finds by itself."""
    known_hosts_file: Annotated[Path, BeforeValidator(_not_null)] = "~/.ssh/known_hosts"
    """File with the workers' host keys; a worker that is not in it is refused. Default ~/.ssh/known_hosts."""
    ray_bin: Path | None = None
    """Folder of the `ray` command on the workers. Default null: the PATH of a login there."""
    connect_timeout_s: Annotated[float, _seconds(0.1, 600)] = 5.0
    """Longest wait for a connection, in seconds. Default 5: a host on the same network answers within one."""
    command_timeout_s: Annotated[float, _seconds(1, 3600)] = 60.0
    """Longest run of one command, in seconds. Default 60: starting a raylet takes 3 to 10."""


class RayConfig(Frozen):
    """Ray's timeouts under familiar names, and where Ray listens. `tuning` says what Ray makes of them."""

    preset: presets.Preset | None = None
    """A set of the timeouts below, of which those in the file win: `tolerant` for networks that stall,
    `balanced` as in Ray, `fast-lan` for hosts on one switch. Default null: the defaults below."""
    heartbeat_timeout_ms: Milliseconds = 30_000
    """With the periods below: how long a silent node is forgiven, in milliseconds a period. Default 30000."""
    num_heartbeat_timeout_periods: Annotated[int, Field(ge=1, le=100_000)] = 5
    """Periods of `heartbeat_timeout_ms` a node may be silent before Ray calls it dead. Default 5."""
    health_check_initial_delay_ms: Milliseconds = 5_000
    """Milliseconds between a node's start and Ray's first check of it. Default 5000, as in Ray."""
    health_check_period_ms: Milliseconds = 10_000
    """Milliseconds between two of Ray's checks of a node. Default 10000: the agent is faster."""
    health_check_timeout_ms: Milliseconds = 5_000
    """Milliseconds a node has to answer one of Ray's checks. Default 5000."""
    gcs_server_request_timeout_seconds_ms: Milliseconds = 60_000
    """Longest wait of a request to the GCS, in milliseconds; rounded up to seconds. Default 60000."""
    timeout_ms: Milliseconds = 60_000
    """Milliseconds a worker waits at least for a lost GCS before it exits. Default 60000, as in Ray."""
    port: Port = 6379
    """Port of the GCS on the head. Default 6379, as in Ray."""
    first_node_port: Annotated[int, Field(ge=1024, le=65_530)] | None = None
    """First of six ports in a row that Ray takes on every host (`grid-agent ports` lists them). Default null:
    6701 with an `ssh` section; any free ones on one machine."""
    dashboard_port: Port = 8265
    """Port of Ray's dashboard and job API on the head's loopback. Default 8265, as in Ray."""
    auth: Literal["token", "disabled"] | None = None
    """Whether Ray asks for a token. Default null: `token` with an `ssh` section, `disabled` without."""
    temp_dir: TempDir | None = None
    """Folder for Ray's sessions on every node. Default null: /tmp/ray, Ray's own; without `ssh`
    /tmp/ray-<cluster>-<uid>, so that this cluster and another Ray of the machine do not meet."""

    @model_validator(mode="before")
    @classmethod
    def _preset(cls, given: Any) -> Any:
        return presets.complete(given) if isinstance(given, dict) else given

    @model_validator(mode="after")
    def _bounded(self) -> "RayConfig":
        if self.heartbeat_timeout_ms * self.num_heartbeat_timeout_periods >= 2**31:
            raise ValueError(
                "heartbeat_timeout_ms times num_heartbeat_timeout_periods must be below 2147483648 (24 days)"
            )
        return self


class Agent(Frozen):
    """How the agent watches and when it acts."""

    mode: Literal["observe", "heal"] = "heal"
    """`heal` (default) repairs nodes; `observe` only says what it would do."""
    heartbeat_every_s: Annotated[float, _seconds(0.1, 60)] = 1.0
    """Seconds between two checks of a raylet. Default 1: a kill is noticed even sooner."""
    heartbeat_cpu_percent: Annotated[float, Field(ge=0.1, le=100, allow_inf_nan=False)] = 3.0
    """Percent of one core that these checks may use. Default 3: above about 100 nodes they take turns."""
    hang_s: Annotated[float, _seconds(1, 86_400)] = 90.0
    """Seconds a raylet may hang on a healthy host until it is ended. Default 90: its workers may be busy."""
    unreachable_s: Annotated[float, _seconds(1, 86_400)] = 120.0
    """Seconds nobody reaches a host until Ray is told that the node is dead. Default 120: short cuts pass."""
    join_s: Annotated[float, _seconds(1, 3600)] = 60.0
    """Seconds a started node has to run its first task. Default 60: it takes 3 to 10."""
    probe_every_s: Annotated[float, _seconds(0.5, 3600)] = 5.0
    """Seconds between two reports of a node's memory, disk and GPUs (read every `gpu.every_s`). Default 5."""


GpuAction = Literal["report", "hand_over", "quarantine", "without"]


class GpuPolicy(Frozen):
    """`report`, `hand_over` to a person, `quarantine` the node, or restart it `without` the GPU."""

    inventory: GpuAction = "report"
    """A GPU is missing, or registered with Ray and not seen. Default report."""
    driver: Literal["report", "hand_over", "quarantine"] = "report"
    """The driver is not loaded, does not fit its library, or fails. Default report."""
    hang: Literal["report", "hand_over", "quarantine"] = "report"
    """The driver does not answer. Default report."""
    xid: GpuAction = "report"
    """The driver reported a grave error of a GPU (XID), or a minor one again and again. Default report."""
    memory: GpuAction = "report"
    """Uncorrectable memory errors, a memory repair that failed or waits for a reset. Default report."""
    unusable: GpuAction = "report"
    """No CUDA context could be made on a GPU (`usable_every_s`). Default report."""
    thermal: GpuAction = "report"
    """Too hot, or throttled by the hardware. Default report."""


class Gpu(Frozen):
    """How the nodes' GPUs are watched."""

    every_s: Annotated[float, _seconds(0, 3600)] = 15.0
    """Seconds between two looks at a node's GPUs; 0: never. Default 15."""
    timeout_s: Annotated[float, _seconds(0.1, 600)] = 10.0
    """Longest a look may take, in seconds, before its process is ended. Default 10; the first may take 30."""
    usable_every_s: Annotated[float, _seconds(0, 86_400)] = 0.0
    """Seconds between two trials of a CUDA context on each GPU, some hundred MiB of it. Default 0: never."""
    kernel_log: Path | None = "/dev/kmsg"
    """Where the nodes' kernel log is read for driver errors; null: nowhere. Default /dev/kmsg."""
    drain_s: Annotated[float, _seconds(0, 86_400)] = 300.0
    """Seconds a node may finish its work before it is restarted without a GPU. Default 300."""
    return_s: Annotated[float, _seconds(1, 86_400)] = 60.0
    """Seconds a GPU must have been well before the node is restarted with it. Default 60."""
    policy: GpuPolicy = GpuPolicy()
    """What follows from each kind of finding."""


class Guards(Frozen):
    """The limits within which the agent repairs by itself. A person's request is not bound by the rates."""

    node_repairs: Annotated[int, Field(ge=1, le=1000)] = 4
    """Repairs of one node within `node_window_s`; after that a person must look. Default 4."""
    node_window_s: Annotated[float, _seconds(1, 604_800)] = 1800.0
    """Seconds over which the repairs of one node are counted. Default 1800."""
    cluster_repairs: Annotated[int, Field(ge=1, le=10_000)] = 10
    """Repairs in the whole cluster within `cluster_window_s`; the next one waits. Default 10."""
    cluster_window_s: Annotated[float, _seconds(1, 604_800)] = 600.0
    """Seconds over which the repairs of the cluster are counted. Default 600."""
    tries_per_rung: Annotated[int, Field(ge=1, le=100)] = 2
    """Restarts before the node's leftovers are cleared too, and again before a person is asked. Default 2."""
    backoff_s: Annotated[float, _seconds(0.1, 3600)] = 2.0
    """Seconds after the first repair that did not help; three times as long after each more. Default 2."""
    backoff_most_s: Annotated[float, _seconds(0.1, 86_400)] = 60.0
    """Longest of these waits in seconds, but for a jitter of a fifth. Default 60."""
    probation_s: Annotated[float, _seconds(1, 86_400)] = 300.0
    """Seconds a repaired node must stay up until its next failure counts as a new one. Default 300."""
    flap_deaths: Annotated[int, Field(ge=2, le=1000)] = 4
    """The death within `flap_window_s` after which the node is not restarted any more. Default 4."""
    flap_window_s: Annotated[float, _seconds(1, 604_800)] = 600.0
    """Seconds over which the deaths of one node are counted. Default 600."""
    breaker_nodes: Annotated[int, Field(ge=1, le=1000)] = 3
    """Nodes in a row whose repair did not help, after which nothing is repaired. Default 3."""
    mass_minimum: Annotated[int, Field(ge=2, le=1000)] = 2
    """Workers that must fail at once, besides being half of them, to hold every repair. Default 2."""
    mass_window_s: Annotated[float, _seconds(1, 3600)] = 10.0
    """Seconds within which failures are at once. Default 10."""
    disrupt: bool = False
    """Whether a node that still runs work may be restarted by itself, with that work lost. Default false."""
    drain_s: Annotated[float, _seconds(0, 86_400)] = 30.0
    """Seconds work may go on on a node that is to be restarted, once Ray drains it. Default 30."""
    do_not_disturb: Annotated[tuple[Hours, ...], BeforeValidator(_as_tuple), Field(max_length=24)] = ()
    """Hours in UTC, such as "22:00-06:00", without repairs but at a person's request. Default: none."""


class Http(Frozen):
    """Where the agent answers."""

    host: Annotated[str, AfterValidator(checks.bind_host)] = "127.0.0.1"
    """Address to listen on. Default 127.0.0.1: only this machine; any other needs `token_file`."""
    port: Port = 8000
    """Port to listen on. Default 8000, as in Ray Serve."""
    token_file: Path | None = None
    """File with the token that clients must send. Default null: one is made, and reading needs none."""


class Keeper(Frozen):
    """How the keeper, outside Ray, watches the head. A change takes effect with the next `start.py`."""

    hang_s: Annotated[float, _seconds(5, 86_400)] = 60.0
    """Seconds the GCS or the head's raylet may hang until it is ended and started again. Default 60."""
    ready_s: Annotated[float, _seconds(10, 86_400)] = 60.0
    """Seconds the agent may not be ready, while the head is well, until it is deployed again. Default 60."""
    dead_man_url: Annotated[str, AfterValidator(checks.watch_url)] | None = None
    """URL that is called every minute while all is well, so that silence raises an alarm. Default null."""


class Slack(Frozen):
    """Where incidents are posted. Absent: to the log and the API only."""

    channel: Channel
    """Channel for the incidents: its id, or its name in quotes."""
    token_env: Variable = "SLACK_BOT_TOKEN"  # noqa: S105
    """Environment variable that holds the bot token when `start.py` runs. Default SLACK_BOT_TOKEN."""
    base_url: Annotated[str, AfterValidator(checks.url)] = "https://slack.com/api/"
    """Where Slack's API is. Default https://slack.com/api/."""


class Settings(Frozen):
    """A whole cluster file."""

    cluster: ClusterName
    """Name of the cluster; its state is kept in a folder of this name."""
    nodes: Annotated[tuple[Node, ...], BeforeValidator(_as_tuple), Field(min_length=1, max_length=1000)]
    """The head and its workers, at most 1000 nodes."""
    ssh: Ssh | None = None
    """How the head reaches the workers. Default null: every node is a raylet on this machine."""
    ray: RayConfig = RayConfig()
    """Ray's timeouts and ports."""
    agent: Agent = Agent()
    """The agent's times, and whether it repairs or only watches."""
    guards: Guards = Guards()
    """The limits within which it repairs by itself."""
    gpu: Gpu = Gpu()
    """How the GPUs are watched, and what follows when one is sick."""
    http: Http = Http()
    """The address of the agent's API."""
    keeper: Keeper = Keeper()
    """How the head itself is kept alive."""
    slack: Slack | None = None
    """Where incidents are posted. Default null: to the log and the API only."""

    @model_validator(mode="after")
    def _consistent(self) -> "Settings":
        found = list(consistency.problems(self))
        if found:
            text = "; ".join(f"{'.'.join(map(str, where))} {rule}" for where, rule in found)
            raise PydanticCustomError("inconsistent", "{text}", {"text": text, "problems": found})
        return self

    @property
    def head(self) -> Node:
        """The one node whose role is head."""
        return next(node for node in self.nodes if node.role == "head")

    @property
    def workers(self) -> tuple[Node, ...]:
        """Every node but the head, in the order of the file."""
        return tuple(node for node in self.nodes if node.role == "worker")

    @property
    def first_node_port(self) -> int | None:
        """The first of the six ports Ray takes on every host; None where it takes any free ones."""
        return None if self.ssh is None else self.ray.first_node_port or 6701

    @property
    def auth(self) -> Literal["token", "disabled"]:
        """Ray's auth mode: as asked, else `token` over SSH and `disabled` on one machine."""
        return self.ray.auth or ("token" if self.ssh else "disabled")
