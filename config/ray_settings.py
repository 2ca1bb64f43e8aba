"""Ray's settings that decide about node death and slow networks: default, who reads them, what they do.

A table, nothing else. Defaults are those of Ray 2.60 (src/ray/common/ray_config_def.h); where the installed
binary tells its own (`ray._raylet.Config`), that is preferred. Units are in the names.
"""

from dataclasses import dataclass

HEAD = "GCS"
CLIENTS = "raylets, workers, drivers"


@dataclass(frozen=True)
class Known:
    """One setting: `read_by` are the processes, `effect` begins after "it is"."""

    default: int
    read_by: str
    effect: str


KNOWN = {
    "health_check_initial_delay_ms": Known(5_000, HEAD, "delay before the first check of a new node"),
    "health_check_period_ms": Known(3_000, HEAD, "wait between two checks of a node"),
    "health_check_timeout_ms": Known(10_000, HEAD, "how long a node may take to answer one check"),
    "health_check_failure_threshold": Known(5, HEAD, "failed checks in a row that make a node dead"),
    "gcs_server_request_timeout_seconds": Known(
        60, "Python start-up, workers, drivers", "longest wait of a request to the GCS"
    ),
    "gcs_rpc_server_reconnect_timeout_s": Known(
        60, CLIENTS, "how long a process without its GCS goes on before it exits"
    ),
    "gcs_rpc_server_connect_timeout_s": Known(5, CLIENTS, "first wait for the GCS; only a log line"),
    "raylet_liveness_self_check_interval_ms": Known(
        60_000, "raylet", "how often a raylet asks whether it was declared dead"
    ),
    "raylet_rpc_server_reconnect_timeout_max_s": Known(
        60, "GCS, workers, drivers", "longest wait before a raylet counts as unavailable to a caller"
    ),
    "grpc_keepalive_time_ms": Known(10_000, HEAD, "how often the GCS pings an idle client link"),
    "grpc_keepalive_timeout_ms": Known(20_000, HEAD, "how long it waits for the answer, then closes it"),
    "grpc_client_keepalive_time_ms": Known(300_000, CLIENTS, "how often a client pings a quiet link"),
    "grpc_client_keepalive_timeout_ms": Known(120_000, CLIENTS, "how long it waits for the answer"),
    "maximum_gcs_dead_node_cached_count": Known(1_000, HEAD, "dead nodes kept in the node table"),
    "agent_register_timeout_ms": Known(30_000, "raylet", "how long a raylet waits for its agents"),
    "raylet_client_num_connect_attempts": Known(10, "workers, raylet", "tries to reach the own raylet"),
    "raylet_client_connect_timeout_milliseconds": Known(1_000, "workers, raylet", "wait between those"),
    "worker_register_timeout_seconds": Known(60, "raylet", "how long a worker may take to start"),
}

# Of these less than 1 is read, and then stops the GCS, or stops it from noticing anything.
POSITIVE = frozenset({"health_check_period_ms", "health_check_timeout_ms", "health_check_failure_threshold"})

# What `ray start` puts into its own environment.
SET_BY_RAY = frozenset({"RAY_enable_autoscaler_v2", "RAY_CLIENT_MODE", "RAY_LD_PRELOAD_ON_WORKERS"})

# What drivers and Ray's own tools read in a person's shell; `grid-agent env` prints some of them.
FOR_CLIENTS = frozenset(
    {"RAY_ADDRESS", "RAY_API_SERVER_ADDRESS", "RAY_DASHBOARD_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN"}
    | {"RAY_AUTH_TOKEN_PATH", "RAY_USAGE_STATS_ENABLED", "RAY_NAMESPACE", "RAY_JOB_HEADERS"}
)
