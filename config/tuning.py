"""What a cluster file asks of Ray -> what Ray 2.60 reads -> the detection times that follow.

Pure: no files, no clock, no environment of its own. Ray ignores an unknown environment variable, aborts on an
unknown key in `--system-config`, and crashes on a variable that is not a number: names and values are settled
here, before anything starts.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from config.ray_names import DEAD, FLOATS, INTEGERS
from config.ray_settings import POSITIVE
from config.settings import RayConfig

# As Ray's own number parser reads them: leading blanks and a sign are fine, anything after the digits is not.
_INTEGER = re.compile(r"[ \t\n\v\f\r]*[-+]?[0-9]+")
_FLOAT = re.compile(r"[ \t\n\v\f\r]*[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?")
_MARGIN_S = 60


@dataclass(frozen=True)
class Window:
    """Seconds from a fault to Ray's verdict, at the earliest and at the latest."""

    earliest_s: float
    latest_s: float


@dataclass(frozen=True)
class Detection:
    """What a period, a timeout and a threshold come to: until Ray notices a killed and a silent raylet."""

    killed: Window
    silent: Window


@dataclass(frozen=True)
class Row:
    """One key of the file: what Ray reads for it, the value in force there, and what that does."""

    asked: str
    asked_value: int
    reads: str
    in_force: int
    effect: str


@dataclass(frozen=True)
class Tuning:
    """All that follows from a `RayConfig`.

    Attributes:
        system_config: For `ray start --head --system-config`; every node takes it over from the GCS.
        rows: One for each timeout of the file, in its order.
        killed: Until Ray notices a raylet that was killed.
        silent: Until Ray notices a node that hangs or is cut off.
    """

    system_config: dict[str, int]
    rows: tuple[Row, ...]
    killed: Window
    silent: Window


@dataclass(frozen=True)
class DeadName:
    """A variable that is set and that Ray 2.60 does not read, and the one it reads."""

    name: str
    modern: str

    def __str__(self) -> str:
        return f"{self.name} is set, but Ray 2.60 does not read it; the setting of today is {self.modern}"


def threshold(ray: RayConfig) -> int:
    """The fewest failed checks in a row that take at least as long as the file forgives.

    N checks that all run into their timeout T, with a period P between two of them, take N*T + (N-1)*P.
    """
    wanted = ray.heartbeat_timeout_ms * ray.num_heartbeat_timeout_periods
    timeout, period = ray.health_check_timeout_ms, ray.health_check_period_ms
    return -(-(wanted + period) // (timeout + period))


FORMULA = "killed: (N-1)*P to N*P; silent: N*T + (N-1)*P to N*T + N*P"
FORMULA_SOURCE = "Ray's gcs_health_check_manager.cc; P = period, T = timeout, N = failure threshold"


def detection(period_ms: int, timeout_ms: int, failures: int) -> Detection | None:
    """Until Ray notices a raylet that was killed (each check is refused at once) or is silent (each lasts T).

    Ray's GCS (gcs_health_check_manager.cc) checks every node by itself: after an initial delay, then one
    period after the end of each check, so checks of one node never overlap. A check fails when it is refused
    or at its deadline; N failures in a row are a death. A fault falls anywhere into the wait before the first
    check that fails.

    Returns:
        The windows of `FORMULA`; None where the threshold is not positive: Ray then never calls a node dead.
    """
    if failures < 1:
        return None
    killed = Window((failures - 1) * period_ms / 1000, failures * period_ms / 1000)
    waits_s = failures * timeout_ms / 1000
    return Detection(killed, Window(waits_s + killed.earliest_s, waits_s + killed.latest_s))


def _detection(ray: RayConfig) -> Detection:
    found = detection(ray.health_check_period_ms, ray.health_check_timeout_ms, threshold(ray))
    assert found is not None  # the threshold of a valid file is at least 1
    return found


def killed_window(ray: RayConfig) -> Window:
    """Until Ray notices a killed raylet, under these settings."""
    return _detection(ray).killed


def silent_window(ray: RayConfig) -> Window:
    """Until Ray notices a silent node, under these settings."""
    return _detection(ray).silent


def plan(ray: RayConfig) -> Tuning:
    """What to give Ray for these settings, and what comes of it."""
    failures, silent = threshold(ray), silent_window(ray)
    silent_ms = failures * ray.health_check_timeout_ms + (failures - 1) * ray.health_check_period_ms
    # Above the tolerance: else a worker that Ray still forgives gives up its connection and exits by itself.
    reconnect_s = max(_ceil_seconds(ray.timeout_ms), _ceil_seconds(silent_ms) + _MARGIN_S)
    system_config = {
        "health_check_initial_delay_ms": ray.health_check_initial_delay_ms,
        "health_check_period_ms": ray.health_check_period_ms,
        "health_check_timeout_ms": ray.health_check_timeout_ms,
        "health_check_failure_threshold": failures,
        "gcs_server_request_timeout_seconds": _ceil_seconds(ray.gcs_server_request_timeout_seconds_ms),
        "gcs_rpc_server_reconnect_timeout_s": reconnect_s,
    }
    effects = _effects(ray, failures, silent, reconnect_s)
    rows = tuple(
        Row(asked, getattr(ray, asked), reads, system_config[reads], effect)
        for (asked, reads), effect in zip(READS.items(), effects, strict=True)
    )
    return Tuning(system_config, rows, killed_window(ray), silent)


def env(tuning: Tuning) -> dict[str, str]:
    """Variables for Ray's Python parts, which do not see `--system-config`."""
    name = "gcs_server_request_timeout_seconds"
    return {f"RAY_{name}": str(tuning.system_config[name])}


def dead_names(environ: Mapping[str, str]) -> list[DeadName]:
    """The variables that are set and that Ray 2.60 does not read, by name."""
    return [DeadName(name, DEAD[name]) for name in sorted(DEAD.keys() & environ.keys())]


def dropped(environ: Mapping[str, str]) -> list[str]:
    """A sentence for each setting of Ray that is set here, and that no node of the cluster will see."""
    return [
        f"{name} is set here, but is not handed on to the cluster: set it under ray: in the file, "
        "or in env of a node"
        for name in sorted(environ)
        if name.removeprefix("RAY_") in INTEGERS | FLOATS and name.startswith("RAY_")
    ]


def malformed(environ: Mapping[str, str]) -> list[str]:
    """A sentence for each RAY_ variable that would crash Ray's processes: not the number they read."""
    return [
        f"{name} is {value[:40]!a}, but Ray reads it as {'a whole' if rule is _INTEGER else 'a'} number "
        "and crashes on anything else; correct or unset it"
        for name, value in sorted(environ.items())
        if (rule := _rule(name)) and not rule.fullmatch(value)
    ] + [
        f"{name} is {value[:40]!a}, but must be at least 1: on less Ray's GCS stops, or notices no death"
        for name, value in sorted(environ.items())
        if name.removeprefix("RAY_") in POSITIVE and _INTEGER.fullmatch(value) and int(value) < 1
    ]


# The file's key -> the setting of Ray 2.60 that carries it.
READS = {
    "heartbeat_timeout_ms": "health_check_failure_threshold",
    "num_heartbeat_timeout_periods": "health_check_failure_threshold",
    "health_check_initial_delay_ms": "health_check_initial_delay_ms",
    "health_check_period_ms": "health_check_period_ms",
    "health_check_timeout_ms": "health_check_timeout_ms",
    "gcs_server_request_timeout_seconds_ms": "gcs_server_request_timeout_seconds",
    "timeout_ms": "gcs_rpc_server_reconnect_timeout_s",
}


def _effects(ray: RayConfig, failures: int, silent: Window, reconnect_s: int) -> tuple[str, ...]:
    """What each key of `READS` does, in words."""
    forgiven = _number(silent.earliest_s)
    request_s = _ceil_seconds(ray.gcs_server_request_timeout_seconds_ms)
    tolerance = f"{failures} failed checks in a row are a death: a node may be silent for {forgiven} s"
    return (
        tolerance,
        tolerance,
        f"a new node is first checked after {_number(ray.health_check_initial_delay_ms / 1000)} s",
        f"{_number(ray.health_check_period_ms / 1000)} s pass between two checks of a node",
        f"a check without an answer fails after {_number(ray.health_check_timeout_ms / 1000)} s",
        f"a request to the GCS is given up after {request_s} s",
        f"a worker without its GCS exits after {reconnect_s} s, well above what Ray forgives",
    )


def _rule(name: str) -> re.Pattern[str] | None:
    """What the value of a variable has to look like, if Ray reads it as a number."""
    key = name.removeprefix("RAY_")
    if key == name:
        return None
    return _INTEGER if key in INTEGERS else _FLOAT if key in FLOATS else None


def _ceil_seconds(milliseconds: int) -> int:
    return -(-milliseconds // 1000)


def _number(value: float) -> str:
    """Without a trailing .0, and never as a power of ten."""
    return f"{value:.3f}".rstrip("0").rstrip(".")
