"""Measured checks: false deaths beside a replay of Ray's own check, and proposals that fit."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from config import tuning
from config.settings import RayConfig
from grid_agent.core import latency
from grid_agent.core.latency import Check, Trace

GIVE_UP_MS = 10_000.0


def trace(took: list[float | None], every_s: float = 0.25) -> Trace:
    return Trace("n", tuple(Check(i * every_s, t) for i, t in enumerate(took)), GIVE_UP_MS)


def gilbert(rng: random.Random, count: int, enter: float, stay: float, every_s: float) -> Trace:
    """Checks that fall into bad times and out of them again, as a chain of two states does."""
    took: list[float | None] = []
    bad = False
    for _ in range(count):
        bad = rng.random() < (stay if bad else enter)
        took.append(2_000.0 if bad else rng.expovariate(1.0))
    return trace(took, every_s)


def replayed(found: Trace, period_ms: int, timeout_ms: int, failures: int) -> int:
    """Deaths when Ray's check runs over the trace: one check after another, N failures in a row."""
    deaths = run = 0
    at_s, index = 0.0, 0
    times = found.took_ms
    while index < len(found.checks):
        took = min(times[index], timeout_ms)
        run = run + 1 if took >= timeout_ms else 0
        if run == failures:
            deaths, run = deaths + 1, 0
        at_s += (took + period_ms) / 1000
        while index < len(found.checks) and found.checks[index].at_s < at_s:
            index += 1
    return deaths


@pytest.mark.parametrize("stay", [0.1, 0.4])
@pytest.mark.parametrize("failures", [2, 3])
def test_the_formula_beside_a_replay(stay: float, failures: int) -> None:
    seed = random.randrange(2**32)
    rng, period, timeout = random.Random(seed), 1_000, 1_000
    found = gilbert(
        rng, 60_000 if stay > 0.1 or failures < 3 else 600_000, 0.05, stay, 1.0
    )  # rare ones need longer
    expected = latency.false_deaths_per_year(found, period, timeout, failures)
    years = found.checks[-1].at_s / latency.YEAR_S
    counted = replayed(found, period, timeout, failures)
    assert counted > 5, seed
    assert 0.3 < expected * years / counted < 3.0, seed


def test_a_quiet_network_gets_the_fastest_tuning_that_forgives_enough() -> None:
    rng = random.Random(1)
    found = trace([rng.uniform(0.3, 0.6) for _ in range(400)])
    best = latency.fastest([found], 0.1)
    assert best is not None
    assert best.forgives_s >= latency.LEAST_FORGIVEN_S
    assert best.detection.silent.latest_s <= 13
    assert best.false_deaths_per_year < 0.1
    assert [p.fits for p in latency.presets([found], 0.1)] == [True, True, True]


def test_stalls_ask_for_more() -> None:
    rng = random.Random(2)
    took: list[float | None] = [rng.uniform(0.3, 0.6) for _ in range(400)]
    took[200:216] = [4000.0 - 250.0 * n for n in range(16)]  # four seconds in which nothing is answered
    stalls = trace(took)
    assert stalls.longest_silence_s == pytest.approx(4.0)
    best = latency.fastest([trace([0.5] * 400), stalls], 0.1)
    assert best is not None
    assert best.forgives_s >= 3 * 4.0
    assert best.timeout_ms >= 4 * 4000
    assert not next(p for p in latency.presets([stalls], 0.1) if p.name == "fast-lan").fits


def test_silence_lasts_until_an_answer() -> None:
    lost = trace([0.5, 0.5, None, None, 0.5])
    assert lost.unanswered == 2
    assert lost.longest_silence_s == pytest.approx(0.25 + GIVE_UP_MS / 1000)


def test_a_dead_network_gets_none() -> None:
    assert latency.fastest([trace([None] * 50)], 0.1) is None


def test_the_yaml_gives_back_exactly_this_tuning() -> None:
    for period, timeout, failures in latency.candidates():
        made = latency.judge([trace([0.5] * 20)], "x", (period, timeout, failures), 1e6)
        values = dict(line.strip().split(": ") for line in made.lines()[1:])
        ray = RayConfig(**{key: int(value) for key, value in values.items()})  # type: ignore[arg-type]
        assert tuning.threshold(ray) == failures
        assert tuning.plan(ray).killed == made.detection.killed


@settings(max_examples=50, deadline=None)
@given(st.lists(st.none() | st.floats(0.001, 9_999), min_size=1, max_size=60))
def test_any_trace_can_be_judged(took: list[float | None]) -> None:
    found = trace(took)
    for proposal in latency.presets([found], 0.1):
        assert 0 <= proposal.false_deaths_per_year <= latency.YEAR_S
    assert 0 <= found.longest_silence_s <= 60 * 0.25 + 10
    assert found.jitter_ms() >= 0


@given(st.lists(st.floats(0.001, 9_999), min_size=1, max_size=60), st.floats(1, 60_000), st.floats(0, 1e4))
def test_a_longer_timeout_is_never_missed_more_often(took: list[float], timeout: float, more: float) -> None:
    tail = latency.Tail.of(took)
    assert tail.beyond(timeout + more) <= tail.beyond(timeout) + 1e-12
