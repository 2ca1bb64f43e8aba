"""Named sets of Ray's timeouts for `ray.preset`: what a file that names one need not say itself.

A table; read by `settings`, which lets every key of the file win. `tuning` computes the detection times that
follow, and tests/ray/test_detection.py measures them.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal

Preset = Literal["tolerant", "balanced", "fast-lan"]

PRESETS: Mapping[str, Mapping[str, int]] = MappingProxyType(
    {
        # As forgiving as the defaults, and twice as fast with a killed raylet: for networks that stall.
        "tolerant": {
            "heartbeat_timeout_ms": 30_000,
            "num_heartbeat_timeout_periods": 5,
            "health_check_period_ms": 5_000,
            "health_check_timeout_ms": 10_000,
        },
        # Ray's own values.
        "balanced": {
            "heartbeat_timeout_ms": 12_000,
            "num_heartbeat_timeout_periods": 5,
            "health_check_period_ms": 3_000,
            "health_check_timeout_ms": 10_000,
        },
        # Hosts on one switch that are never starved of CPU or memory.
        "fast-lan": {
            "heartbeat_timeout_ms": 2_000,
            "num_heartbeat_timeout_periods": 5,
            "health_check_period_ms": 1_000,
            "health_check_timeout_ms": 2_000,
        },
    }
)


def complete(given: Mapping[str, object]) -> dict[str, object]:
    """The keys of a `ray` section, with those of its preset that it does not say itself."""
    name = given.get("preset")
    return {**PRESETS.get(name, {}), **given} if isinstance(name, str) else dict(given)
