"""What is set: how long, how often, how many. Made from the cluster file by `grid_agent.policy`."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from grid_agent.core.terms import GpuAction, Mode


@dataclass(frozen=True, slots=True)
class Policy:
    """The numbers the core decides by. Seconds. Defaults are the shipped ones.

    `join_s` after which a node that never joined is looked for on its host; `suspect_misses` and
    `suspect_s` must both be used up before a silent node is suspected; `hang_s` before a silent raylet
    whose process lives is given up; `unreachable_s` before Ray is told of a host nobody reaches. The
    wait after attempt k is `backoff_s` times 3^(k-1), at most `backoff_most_s`, plus a jitter. A node
    that was ALIVE for `probation_s` begins its ladder anew. `do_not_disturb` holds (from, to) in minutes
    after midnight UTC.
    `report_s` passes before people hear of a broken path, `undecided_s` beyond the longest of `join_s`,
    `hang_s` and `unreachable_s` before they hear of a node of which no verdict comes: its host takes no
    login, say. A raylet that the GCS has marked dead exits within 2 s; one that still runs after `zombie_s`
    is a zombie. A node that is ALIVE is proved again every `prove_again_s`.
    """

    mode: Mode = "heal"
    heartbeat_every_s: float = 1.0
    suspect_misses: int = 2
    hang_s: float = 90.0
    unreachable_s: float = 120.0
    join_s: float = 60.0
    look_every_s: float = 2.0
    proof_every_s: float = 5.0
    prove_again_s: float = 180.0
    peer_every_s: float = 3.0
    report_s: float = 20.0
    undecided_s: float = 600.0
    zombie_s: float = 5.0
    repair_timeout_s: float = 90.0
    node_attempts: int = 4
    node_window_s: float = 1800.0
    cluster_attempts: int = 10
    cluster_window_s: float = 600.0
    tries_per_rung: int = 2
    backoff_s: float = 2.0
    backoff_most_s: float = 60.0
    probation_s: float = 300.0
    flap_deaths: int = 4
    flap_window_s: float = 600.0
    breaker_nodes: int = 3
    do_not_disturb: tuple[tuple[int, int], ...] = ()
    disrupt: bool = False
    drain_s: float = 30.0
    mass_window_s: float = 10.0
    mass_minimum: int = 2
    gcs_silent_s: float = 3.0
    lag_warn_ms: float = 1000.0
    gpu: Mapping[str, GpuAction] = field(default_factory=dict)  # by the key of gpu.policy; else report
    gpu_drain_s: float = 300.0
    gpu_return_s: float = 60.0
    max_incidents: int = 200
