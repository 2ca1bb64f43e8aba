"""What was asked of Ray and what is in force, by name, source and reader."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from config import loader, tuning
from config.paths import StatePaths
from config.settings import RayConfig
from grid_agent.core import effective, raystart, variables
from grid_agent.core.effective import Head, Installed

GIVEN = tuning.plan(RayConfig()).system_config
READERS = {"RAY_health_check_period_ms": "C++", "RAY_SERVE_X": "Python", "RAY_max_io_workers": "C++"}
RAY = Installed("2.60.0", {"health_check_period_ms": 3000}, READERS)
UP = Head(True, GIVEN, {})


def settings(env: str = "{}", head_env: str = "{}"):
    return loader.loads(
        "cluster: c\nnodes:\n"
        f"  - {{name: head, host: 127.0.0.1, role: head, env: {head_env}}}\n"
        f"  - {{name: w, host: 127.0.0.1, env: {env}}}\n",
        "test",
    )


@pytest.mark.parametrize(
    ("head", "value", "source"),
    [
        (Head(True, {"health_check_period_ms": 7}, {"RAY_health_check_period_ms": "8"}), 7, "system-config"),
        (Head(True, {}, {"RAY_health_check_period_ms": "8"}), 8, "env"),
        (Head(True, {}, {}), 3000, "default"),
        (Head(True, {}, None), None, "unknown"),
        (Head(True, None, {}), None, "unknown"),
        (Head(False), None, "unknown"),
    ],
)
def test_the_order_in_which_ray_takes_a_value(head, value, source):
    assert effective.in_force("health_check_period_ms", head, RAY) == (value, source)


def test_a_default_that_the_binary_does_not_tell_is_the_sources():
    found = effective.in_force("gcs_rpc_server_reconnect_timeout_s", Head(True, {}, {}), RAY)
    assert found == (60, "default")


def rows(environ=None, head=UP, file=None):
    found = variables.of_variables(file or settings(), environ or {}, head, RAY)
    return {(row.name, row.asked_in): row for row in found}


def test_a_name_that_nothing_reads_is_a_warning_with_the_modern_name():
    found = rows({"RAY_timeout_ms": "60000", "RAY_health_check_perod_ms": "1", "RAY_whatever": "1"})
    dead = found["RAY_timeout_ms", "environment"]
    assert (dead.status, dead.reads, dead.read_by) == ("warn", None, "nothing")
    assert "RAY_gcs_rpc_server_reconnect_timeout_s" in dead.detail
    assert (
        "did you mean RAY_health_check_period_ms?" in found["RAY_health_check_perod_ms", "environment"].detail
    )
    assert found["RAY_whatever", "environment"].detail.endswith("unset it")


def test_a_variable_of_the_shell_is_dropped_and_that_is_said():
    found = rows({"RAY_health_check_period_ms": "1", "RAY_SERVE_X": "1", "RAY_ADDRESS": "a:1", "PATH": "/"})
    row = found["RAY_health_check_period_ms", "environment"]
    assert row.status == "warn"
    assert "hands no RAY_*" in row.detail
    assert "10000 (system-config) is in force" in row.detail


def test_what_drivers_read_is_listed_where_it_stands():
    found = rows({"RAY_SERVE_X": "1", "RAY_ADDRESS": "a:1", "RAY_JOB_HEADERS": "hush", "PATH": "/"})
    assert [name for name, _ in found] == ["RAY_ADDRESS", "RAY_JOB_HEADERS", "RAY_SERVE_X"]
    assert {(row.status, row.source, row.read_by) for row in found.values()} == {
        ("pass", "env", "drivers and Ray's tools")
    }
    assert [row.in_force for row in found.values()] == ["a:1", "(not shown)", "1"]


@pytest.mark.parametrize(
    ("has", "status", "value", "source", "word"),
    [
        ({"RAY_max_io_workers": "3"}, "pass", "3", "env", "in the environment of the GCS on head"),
        ({"RAY_max_io_workers": "9"}, "fail", "9", "env", "was started with 9: stop.py, then start.py"),
        ({}, "fail", 4, "default", "was started without it: stop.py, then start.py"),
        (None, "pass", None, "unknown", "could not be read"),
    ],
)
def test_a_variable_of_the_head_is_compared_with_what_its_gcs_has(has, status, value, source, word):
    ray = Installed("2.60.0", {"max_io_workers": 4}, READERS)
    file = settings(head_env="{RAY_max_io_workers: '3'}")
    (row,) = variables.of_variables(file, {}, Head(True, GIVEN, has), ray)
    assert (row.status, row.asked, row.in_force, row.source) == (status, "3", value, source)
    assert word in row.detail


def test_the_store_of_the_gcs_is_not_the_files_to_choose():
    ray = Installed("2.60.0", {}, {"RAY_gcs_storage": "C++"})
    head = Head(True, GIVEN, {"RAY_gcs_storage": "rocksdb"})
    (row,) = variables.of_variables(settings(head_env="{RAY_gcs_storage: memory}"), {}, head, ray)
    assert (row.status, row.in_force) == ("warn", "rocksdb")
    assert "start.py sets it" in row.detail


def test_of_other_nodes_and_of_a_stopped_head_it_is_not_known():
    both = settings("{RAY_max_io_workers: '3'}", "{RAY_max_io_workers: '3'}")
    for head, word in ((Head(False), "nothing runs now"), (Head(True, GIVEN, None), "could not be read")):
        found = variables.of_variables(both, {}, head, RAY)
        assert {(row.in_force, row.source, row.status) for row in found} == {(None, "unknown", "pass")}
        assert all(word in row.detail for row in found)


@pytest.mark.parametrize(
    ("env", "node", "head", "status", "word"),
    [
        ("{RAY_health_check_period_ms: '1'}", "w", UP, "warn", "--system-config of the head wins"),
        ("{RAY_health_check_period_ms: '1'}", "w", Head(False), "warn", "--system-config of the head wins"),
        ("{RAY_health_check_period_ms: '1'}", "w", Head(True, {}, {}), "warn", "only the GCS reads it"),
        ("{RAY_max_io_workers: '1'}", "w", UP, "pass", "given to the processes of w when they start"),
        ("{RAY_max_io_worker: '1'}", "w", UP, "warn", "did you mean RAY_max_io_workers?"),
    ],
)
def test_a_variable_of_a_node(env, node, head, status, word):
    found = list(rows(head=head, file=settings(env)).values())
    assert [row.status for row in found] == [status]
    assert word in found[0].detail


def test_what_the_running_gcs_has_in_its_environment():
    head = Head(
        True, GIVEN, {"RAY_health_check_period_ms": "1", "RAY_max_io_workers": "2", "RAY_AUTH_MODE": "x"}
    )
    found = rows(head=head)
    period = found["RAY_health_check_period_ms", "environment of the GCS"]
    assert (period.in_force, period.source, period.status) == (10_000, "system-config", "warn")
    workers = found["RAY_max_io_workers", "environment of the GCS"]
    assert (workers.in_force, workers.source, workers.status) == (2, "env", "pass")
    assert len(found) == 2


def test_what_start_py_gives_the_gcs_is_told_where_it_is_another_value():
    ours = raystart.head_env(settings(), {}, StatePaths(Path("/")))
    start = {name: value for name, value in ours.items() if name.startswith("RAY_")}
    assert rows(head=Head(True, GIVEN, start)) == {}
    other = {**start, "RAY_raylet_client_num_connect_attempts": "7"}
    assert [name for name, _ in rows(head=Head(True, GIVEN, other))] == [
        "RAY_raylet_client_num_connect_attempts"
    ]


def test_a_secret_is_not_shown():
    secret = {"RAY_REDIS_PASSWORD": "hush"}
    ray = Installed("2.60.0", {}, {"RAY_REDIS_PASSWORD": "C++"})
    file = settings(head_env="{RAY_REDIS_PASSWORD: hush}")
    for known in (None, file):
        for has in ({}, secret, {"RAY_REDIS_PASSWORD": "hush too"}):
            found = variables.of_variables(known, secret, Head(True, GIVEN, has), ray)
            assert "hush" not in str(found)


def test_detection_is_that_of_what_runs():
    copied = Head(True, {"health_check_period_ms": 10_000, "health_check_timeout_ms": 5_000}, {})
    found = effective.detection(copied, RAY, settings())
    assert found == tuning.Detection(tuning.Window(40, 50), tuning.Window(65, 75))
    blind = Head(True, {**GIVEN, "health_check_failure_threshold": 0}, {})
    assert effective.detection(blind, RAY, settings()) is None
    assert effective.detection(Head(True, {}, None), RAY, settings()) is None


@given(st.dictionaries(st.text(max_size=12).map("RAY_".__add__), st.text(max_size=8), max_size=4))
def test_any_environment_gives_rows(environ):
    head = Head(True, GIVEN, environ)
    for row in variables.of_variables(settings(), environ, head, RAY):
        assert row.detail
        assert row.status in ("pass", "warn")
