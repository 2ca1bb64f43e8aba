"""Presets of `ray`: what they come to, and that the file wins."""

import pytest

from config import loader, tuning
from config.presets import PRESETS
from config.settings import RayConfig

FILE = "cluster: c\nnodes: [{name: h, host: 127.0.0.1, role: head}]\nray: "


def ray(text: str, **environ: str) -> RayConfig:
    return loader.loads(FILE + text, "test", {f"GRID_AGENT__RAY__{k}": v for k, v in environ.items()}).ray


@pytest.mark.parametrize(
    ("preset", "failures", "killed", "silent"),
    [
        ("tolerant", 11, (50, 55), (160, 165)),
        ("balanced", 5, (12, 15), (62, 65)),
        ("fast-lan", 4, (3, 4), (11, 12)),
    ],
)
def test_what_a_preset_comes_to(preset, failures, killed, silent):
    plan = tuning.plan(ray(f"{{preset: {preset}}}"))
    assert plan.system_config["health_check_failure_threshold"] == failures
    assert plan.killed == tuning.Window(*killed)
    assert plan.silent == tuning.Window(*silent)
    assert plan.system_config["gcs_rpc_server_reconnect_timeout_s"] >= plan.silent.earliest_s + 60


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_what_the_file_says_wins(preset):
    found = ray(f"{{preset: {preset}, health_check_period_ms: 4321}}")
    assert found.health_check_period_ms == 4321
    assert found.health_check_timeout_ms == PRESETS[preset]["health_check_timeout_ms"]
    assert ray(f"{{preset: {preset}}}", HEALTH_CHECK_PERIOD_MS="77").health_check_period_ms == 77


def test_a_preset_by_variable():
    assert ray("{}", PRESET="fast-lan") == ray("{preset: fast-lan}")


def test_without_a_preset_nothing_changes():
    assert ray("{}") == RayConfig() == ray("{preset: null}")
    assert tuning.plan(RayConfig()).system_config["health_check_failure_threshold"] == 11


@pytest.mark.parametrize("text", ["{preset: fast}", "{preset: [a]}", "{preset: 3}", "{preset: {a: 1}}"])
def test_an_unknown_preset_is_named(text):
    with pytest.raises(loader.ConfigError, match=r"test:3: ray\.preset: .*tolerant.*balanced.*fast-lan"):
        ray(text)


def test_what_is_written_down_reads_back():
    found = loader.loads(FILE + "{preset: fast-lan}", "test")
    assert loader.loads(loader.dump(found), "copy") == found
