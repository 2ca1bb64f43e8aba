"""From what the file asks to what Ray reads, and that Ray really reads it."""

import dataclasses
import importlib.util
import re
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from config import ray_names, tuning
from config.settings import RayConfig

MS = st.integers(1, 1_000_000)
RAYS = st.builds(
    RayConfig,
    heartbeat_timeout_ms=MS,
    num_heartbeat_timeout_periods=st.integers(1, 1000),
    health_check_initial_delay_ms=MS,
    health_check_period_ms=MS,
    health_check_timeout_ms=MS,
    gcs_server_request_timeout_seconds_ms=MS,
    timeout_ms=MS,
)


def test_defaults():
    plan = tuning.plan(RayConfig())
    assert plan.system_config == {
        "health_check_initial_delay_ms": 5_000,
        "health_check_period_ms": 10_000,
        "health_check_timeout_ms": 5_000,
        "health_check_failure_threshold": 11,
        "gcs_server_request_timeout_seconds": 60,
        "gcs_rpc_server_reconnect_timeout_s": 215,
    }
    assert plan.killed == tuning.Window(100, 110)
    assert plan.silent == tuning.Window(155, 165)
    assert tuning.env(plan) == {"RAY_gcs_server_request_timeout_seconds": "60"}


def test_the_windows_of_rays_own_defaults():
    # Ray has a period of 3 s, a timeout of 10 s and 5 failures; the last follows from 62 s of silence.
    ray = RayConfig(
        heartbeat_timeout_ms=62_000,
        num_heartbeat_timeout_periods=1,
        health_check_period_ms=3_000,
        health_check_timeout_ms=10_000,
    )
    assert tuning.threshold(ray) == 5
    assert tuning.killed_window(ray) == tuning.Window(12, 15)
    assert tuning.silent_window(ray) == tuning.Window(62, 65)


@given(RAYS)
def test_the_threshold_is_the_smallest_that_forgives_enough(ray):
    def silence(failures):
        return failures * ray.health_check_timeout_ms + (failures - 1) * ray.health_check_period_ms

    wanted = ray.heartbeat_timeout_ms * ray.num_heartbeat_timeout_periods
    failures = tuning.threshold(ray)
    assert failures >= 1
    assert silence(failures) >= wanted
    assert failures == 1 or silence(failures - 1) < wanted


@given(RAYS)
def test_a_plan_is_whole_numbers_that_ray_can_hold(ray):
    plan = tuning.plan(ray)
    assert all(type(value) is int and 0 < value < 2**31 for value in plan.system_config.values())
    reconnect = plan.system_config["gcs_rpc_server_reconnect_timeout_s"]
    assert reconnect >= plan.silent.earliest_s + 60
    assert reconnect * 1000 >= ray.timeout_ms
    assert (
        plan.system_config["gcs_server_request_timeout_seconds"] * 1000
        >= ray.gcs_server_request_timeout_seconds_ms
    )
    assert plan.killed.earliest_s < plan.killed.latest_s
    assert plan.killed.latest_s < plan.silent.latest_s


@given(RAYS)
def test_rows_show_what_is_in_force(ray):
    plan = tuning.plan(ray)
    assert [row.asked for row in plan.rows] == [
        key for key in RayConfig.model_fields if key.endswith(("_ms", "_periods"))
    ]
    for row in plan.rows:
        assert row.asked_value == getattr(ray, row.asked)
        assert row.in_force == plan.system_config[row.reads]
        assert row.effect
        assert "e+" not in row.effect


@given(RAYS, st.integers(1, 1000))
def test_forgiving_more_is_never_faster(ray, more):
    periods = ray.num_heartbeat_timeout_periods + more
    later = ray.model_copy(update={"num_heartbeat_timeout_periods": periods})
    assert tuning.threshold(later) >= tuning.threshold(ray)
    assert tuning.silent_window(later).latest_s >= tuning.silent_window(ray).latest_s


def test_extremes_fit():
    most = RayConfig(
        heartbeat_timeout_ms=2**31 - 1,
        num_heartbeat_timeout_periods=1,
        health_check_period_ms=1,
        health_check_timeout_ms=1,
        timeout_ms=2**31 - 1,
    )
    assert max(tuning.plan(most).system_config.values()) < 2**31


def test_a_tuning_is_a_value():
    assert tuning.plan(RayConfig()) == tuning.plan(RayConfig())
    with pytest.raises(dataclasses.FrozenInstanceError):
        tuning.plan(RayConfig()).killed.latest_s = 1


@pytest.mark.parametrize("value", ["5", "-5", "+5", " 5", "005", "99999999999999999999"])
def test_numbers_ray_can_read(value):
    assert tuning.malformed({"RAY_max_io_workers": value}) == []


@pytest.mark.parametrize("value", ["0", "-5"])
def test_numbers_that_blind_the_gcs(value):
    [text] = tuning.malformed({"RAY_health_check_failure_threshold": value, "RAY_max_io_workers": value})
    assert "RAY_health_check_failure_threshold" in text
    assert "at least 1" in text


@pytest.mark.parametrize(
    "value", ["", "abc", "5.5", "5s", "1e3", "5 ", "0x10", "5_0", "٥", "5\n", "--5", " "]
)
def test_numbers_that_would_crash_ray(value):
    [text] = tuning.malformed(
        {"RAY_health_check_period_ms": value, "RAY_BACKEND_LOG_LEVEL": value, "health": value}
    )
    assert text.startswith("RAY_health_check_period_ms is ")
    assert "correct or unset it" in text


@pytest.mark.parametrize(
    ("value", "bad"), [("0.95", 0), ("1e-3", 0), (".5", 0), ("1", 0), ("", 1), ("high", 1), ("nan", 1)]
)
def test_fractions(value, bad):
    assert len(tuning.malformed({"RAY_memory_usage_threshold": value})) == bad


@given(
    st.dictionaries(
        st.sampled_from(sorted(ray_names.INTEGERS)).map("RAY_".__add__), st.text(max_size=8), max_size=3
    )
)
def test_malformed_takes_anything(environ):
    assert len(tuning.malformed(environ)) <= len(environ)


def test_dead_names():
    environ = {
        "RAY_timeout_ms": "1",
        "RAY_backend_log_level": "info",
        "RAY_BACKEND_LOG_LEVEL": "info",
        "PATH": "x",
    }
    found = tuning.dead_names(environ)
    assert [(dead.name, dead.modern) for dead in found] == [
        ("RAY_backend_log_level", "RAY_BACKEND_LOG_LEVEL"),
        ("RAY_timeout_ms", "RAY_gcs_rpc_server_reconnect_timeout_s"),
    ]
    assert "Ray 2.60 does not read it" in str(found[0])


def test_what_is_not_handed_on_is_said():
    [text] = tuning.dropped({"RAY_health_check_period_ms": "1", "RAY_ADDRESS": "x", "max_io_workers": "1"})
    assert text.startswith("RAY_health_check_period_ms is set here, but is not handed on")


# --- against the installed Ray


@pytest.fixture(scope="module")
def gcs_server() -> Path:
    spec = importlib.util.find_spec("ray")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent / "core/src/ray/gcs/gcs_server"


def test_ray_knows_every_name_we_give_it_and_none_we_call_dead(gcs_server):
    known = {name.decode() for name in re.findall(rb"RAY_[A-Za-z0-9_]+", gcs_server.read_bytes())}
    assert {f"RAY_{name}" for name in tuning.plan(RayConfig()).system_config} <= known
    assert {f"RAY_{name}" for name in ray_names.INTEGERS | ray_names.FLOATS} <= known
    assert set(ray_names.DEAD.values()) <= known
    assert not ray_names.DEAD.keys() & known


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("RAY_health_check_period_ms", "abc"),
        ("RAY_health_check_period_ms", " +5"),
        ("RAY_health_check_period_ms", "5 "),
        ("RAY_gcs_rpc_server_reconnect_timeout_s", ""),
        ("RAY_memory_usage_threshold", "nan"),
        ("RAY_memory_usage_threshold", "1e-1"),
        ("RAY_event_stats", "abc"),
    ],
)
def test_ray_crashes_on_what_we_call_malformed(gcs_server, name, value):
    ran = subprocess.run(
        [gcs_server, "--version"], env={name: value}, capture_output=True, check=False, timeout=60
    )
    assert (ran.returncode != 0) == bool(tuning.malformed({name: value}))
