"""`validate` and `tune` on a real cluster: settings read back, no file, checks measured."""

import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jsonschema
import pytest
import yaml

from config import loader, tuning
from grid_agent import validate_report as reports
from tests.ray.conftest import Running
from tests.support.cluster import BIN, until

pytestmark = pytest.mark.ray


def validate(running: Running, *flags: str, code: int, **env: str) -> dict[str, Any]:
    said = running.cluster.run(str(BIN / "grid-agent"), "validate", *flags, "-o", "json", **env)
    document: dict[str, Any] = json.loads(said.stdout)
    unwell = [check for check in document["checks"] if check["status"] != "pass"]
    assert said.returncode == code, f"{unwell} {document.get('monitor')}"
    jsonschema.validate(document, json.loads(reports.SCHEMA.read_text()))
    assert document["exit_code"] == code
    return document


def test_all_settings_are_read_back_and_all_checks_pass(running: Running) -> None:
    until(running.cluster.passes, 30)
    found = validate(running, "-c", str(running.cluster.file), "--monitor", "1.5", code=0)
    checks = {check["name"]: check for check in found["checks"]}
    for key, reads in tuning.READS.items():
        assert checks[f"ray.{key}"]["status"] == "pass"
        assert checks[f"ray.{key}"]["detail"].startswith(f"mapped to {reads} = ")
    sources = {row["name"]: row["source"] for row in found["settings"] if row["asked_in"] == "file"}
    assert sources == dict.fromkeys((f"ray.{key}" for key in tuning.READS), "system-config")
    others = {(row["name"], row["asked_in"]) for row in found["settings"]} - {(n, "file") for n in sources}
    assert ("RAY_AUTH_MODE", "environment") in others  # of whoever runs this test, for drivers
    assert {where for _, where in others} == {"environment"}
    assert found["detection"]["killed_s"] == [100, 110]
    assert {(n["ray"], n["agent"]) for n in found["nodes"]} == {("ALIVE", "ALIVE")}
    assert checks["application"]["detail"] == "grid-agent is RUNNING"
    assert found["monitor"]["availability_percent"] == 100
    assert found["monitor"]["polls"] >= 2
    assert found["monitor"]["asked"] == "agent"
    assert [node["missed"] for node in found["monitor"]["nodes"]] == [0, 0, 0]


def test_names_that_nothing_reads_and_values_that_crash(running: Running) -> None:
    file = str(running.cluster.file)
    old = {"RAY_heartbeat_timeout_ms": "30000", "RAY_health_check_period_ms": "10000"}
    found = validate(running, "-c", file, code=1, **old)
    warned = {c["name"]: c["detail"] for c in found["checks"] if c["status"] == "warn"}
    assert "RAY_health_check_failure_threshold" in warned["RAY_heartbeat_timeout_ms"]
    assert "hands no RAY_*" in warned["RAY_health_check_period_ms"]
    for value in ("abc", ""):
        command = [str(BIN / "grid-agent"), "validate", "-c", file]
        refused = running.cluster.run(*command, RAY_health_check_period_ms=value)
        assert refused.returncode == 2
        assert "crashes on anything else" in refused.stderr


def test_by_address_it_says_what_it_cannot_know(running: Running) -> None:
    where = f"127.0.0.1:{running.cluster.port}"
    found = validate(running, "--address", where, "--monitor", "1.5", code=1)  # auth is disabled
    assert {node["name"] for node in found["nodes"]} == {"head", "w1", "w2"}
    sources = {row["name"]: row["source"] for row in found["settings"] if row["asked_in"] == "nobody"}
    assert sources == dict.fromkeys(tuning.READS.values(), "system-config")
    assert found["detection"]["silent_s"] == [155, 165]
    checks = {check["name"]: check["detail"] for check in found["checks"]}
    assert [c["name"] for c in found["checks"]].count("not known") == 2
    assert f"http://127.0.0.1:{running.cluster.dashboard_port}, Ray" in checks["dashboard"]
    assert "without a token was answered (200)" in checks["auth"]
    watched = found["monitor"]
    assert (watched["asked"], watched["availability_percent"]) == ("raylets", 100)
    assert all(node["rtt_ms"]["p99"] > 0 for node in watched["nodes"])


def test_tune_measures_and_proposes_what_a_cluster_file_takes(running: Running) -> None:
    def tune(output: str, seconds: str) -> str:
        argv = ("tune", "-c", str(running.cluster.file), "--for", seconds, "-o", output)
        said = running.cluster.run(str(BIN / "grid-agent"), *argv)
        assert said.returncode == 0, said.stdout + said.stderr
        return said.stdout

    with ThreadPoolExecutor() as both:
        text, document = both.map(tune, ("text", "json"), ("1", "5"))
    found = json.loads(document)
    assert {(row["node"], row["unanswered"]) for row in found["nodes"]} == {("head", 0), ("w1", 0), ("w2", 0)}
    assert all(row["checks"] == 20 and 0 < row["p50_ms"] <= row["max_ms"] for row in found["nodes"])
    best, *presets = found["proposals"]
    assert best["name"] == "measured"
    assert best["fits"]
    assert [row["name"] for row in presets] == ["tolerant", "balanced", "fast-lan"]
    assert {"NODE", "TUNING", "FALSE", "measured", "w2"} <= set(text.split())
    loaded = []
    for pasted in (found["yaml"], text.partition("To paste into the cluster file:")[2]):
        ray = {**running.cluster.spec["ray"], **yaml.safe_load(pasted)["ray"]}
        loaded.append(loader.loads(json.dumps({**running.cluster.spec, "ray": ray}), "pasted"))
    assert tuning.threshold(loaded[0].ray) == best["failures"]
