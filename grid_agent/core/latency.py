"""Measured health checks -> what Ray's own check would make of them, and a tuning that fits. Pure.

A check of Ray fails at its timeout T; N failures in a row are a death (`config.tuning.detection`). Of the
checks measured, a share p lasts longer than T, and of those a share r is followed, one wait later, by such
another. In a year of Y seconds a node then dies falsely about (Y / (P + m)) * p * r**(N-1) times, P being the
period and m the mean answer time: the checks of a year, times the chance that one begins a run of N failures.
This is the chain of E. N. Gilbert, "Capacity of a Burst-Noise Channel" (1960), with a check that
fails as its bad state.

Where no check was that slow, p is read off the tail: beyond the 99th percentile u it is taken to fall
exponentially with the mean excess over u, which is what exceedances of most distributions come to (J.
Pickands, "Statistical Inference Using Extreme Order Statistics", 1975, with shape zero). r is then the share
seen at u, at least p and at most one half.
"""

import bisect
import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

from config import tuning
from config.presets import PRESETS
from config.settings import RayConfig

Tuned = tuple[int, int, int]  # period in ms, timeout in ms, failures
YEAR_S = 365.25 * 86_400
TAIL = 0.99
LEAST_SAMPLES = 20
PERIODS_MS = (1_000, 2_000, 3_000, 5_000, 10_000)
TIMEOUTS_MS = (1_000, 2_000, 3_000, 5_000, 10_000, 20_000, 30_000)
FAILURES = range(3, 31)
# A tuning that fits must forgive this many times the longest silence seen, and never less than this.
MARGIN = 3.0
LEAST_FORGIVEN_S = 10.0
LATENCY_MARGIN = 4.0


@dataclass(frozen=True, slots=True)
class Check:
    """One health check: when it began (seconds), how long its answer took; None: none came in time."""

    at_s: float
    took_ms: float | None


@dataclass(frozen=True)
class Trace:
    """The checks of one node, in order; one without an answer counts as `given_up_ms`."""

    node: str
    checks: tuple[Check, ...]
    given_up_ms: float

    @cached_property
    def took_ms(self) -> tuple[float, ...]:
        """How long each took."""
        return tuple(self.given_up_ms if c.took_ms is None else c.took_ms for c in self.checks)

    @cached_property
    def tail(self) -> "Tail":
        """The chance of a slow check."""
        return Tail.of(self.took_ms)

    @cached_property
    def slow_ms(self) -> float:
        """Only one check in a thousand took longer."""
        return quantile(self.took_ms, 0.999)

    @property
    def unanswered(self) -> int:
        """Checks that got no answer."""
        return sum(check.took_ms is None for check in self.checks)

    @cached_property
    def longest_silence_s(self) -> float:
        """From the beginning of a check to the first answer at or after it, at the most."""
        longest, waiting_since = 0.0, None
        for check in self.checks:
            begun = check.at_s if waiting_since is None else waiting_since
            if check.took_ms is None:
                waiting_since = begun
                longest = max(longest, check.at_s + self.given_up_ms / 1000 - begun)
            else:
                waiting_since = None
                longest = max(longest, check.at_s + check.took_ms / 1000 - begun)
        return longest

    def jitter_ms(self) -> float:
        """Mean change from one answer to the next (RFC 3550, 6.4.1, without its smoothing)."""
        answered = [check.took_ms for check in self.checks if check.took_ms is not None]
        steps = [abs(b - a) for a, b in itertools.pairwise(answered)]
        return sum(steps) / len(steps) if steps else 0.0


@dataclass(frozen=True, slots=True)
class Tail:
    """Chance that a check lasts longer than a time: as measured, and beyond that by the exponential tail."""

    ordered_ms: tuple[float, ...]
    threshold_ms: float
    mean_excess_ms: float

    @classmethod
    def of(cls, took_ms: Sequence[float]) -> "Tail":
        """From the times of at least one check."""
        ordered = tuple(sorted(took_ms))
        threshold = ordered[min(len(ordered) - 1, int(TAIL * len(ordered)))]
        beyond = [value - threshold for value in ordered if value > threshold]
        mean = sum(beyond) / len(beyond) if beyond else max(threshold / 10, 0.01)
        return cls(ordered, threshold, mean)

    def beyond(self, timeout_ms: float) -> float:
        """The chance."""
        slower = len(self.ordered_ms) - bisect.bisect_right(self.ordered_ms, timeout_ms)
        if slower:
            return slower / len(self.ordered_ms)
        at_threshold = max(1.0 - TAIL, 1.0 / len(self.ordered_ms))
        return at_threshold * math.exp(-max(0.0, timeout_ms - self.threshold_ms) / self.mean_excess_ms)


def repeated(trace: Trace, timeout_ms: float, wait_s: float) -> float | None:
    """Of the checks that last longer than a timeout: the share after which the next one does, too.

    The next one is the first that began at least `wait_s` later, as Ray's would.

    Returns:
        The share; None where no such check has a next one.
    """
    times = [check.at_s for check in trace.checks]
    took = trace.took_ms
    runs = [
        took[after] > timeout_ms
        for index, value in enumerate(took)
        if value > timeout_ms and (after := bisect.bisect_left(times, times[index] + wait_s)) < len(times)
    ]
    return sum(runs) / len(runs) if runs else None


def false_deaths_per_year(trace: Trace, period_ms: int, timeout_ms: int, failures: int) -> float:
    """How often Ray would call this node dead although it lives, by the formula of this module."""
    tail = trace.tail
    fails = tail.beyond(timeout_ms)
    seen = repeated(trace, timeout_ms, (period_ms + timeout_ms) / 1000)
    if seen is None:  # nothing was that slow: how much runs stick together is seen at the slowest percentile
        bursty = repeated(trace, tail.threshold_ms, (period_ms + timeout_ms) / 1000)
        seen = min(bursty or 0.0, 0.5)
    again = max(fails, min(seen, 1.0))
    mean_s = sum(min(value, timeout_ms) for value in trace.took_ms) / len(trace.checks) / 1000
    checks = YEAR_S / (period_ms / 1000 + mean_s)
    return float(checks * fails * again ** (failures - 1))


@dataclass(frozen=True, slots=True)
class Proposal:
    """One tuning beside what was measured: what silence it forgives, false deaths of all nodes in a year."""

    name: str
    period_ms: int
    timeout_ms: int
    failures: int
    detection: tuning.Detection
    forgives_s: float
    false_deaths_per_year: float
    fits: bool

    def lines(self) -> list[str]:
        """As the `ray` section of a cluster file: the threshold follows from what is forgiven."""
        values = {
            "heartbeat_timeout_ms": round(self.forgives_s * 1000),
            "num_heartbeat_timeout_periods": 1,
            "health_check_period_ms": self.period_ms,
            "health_check_timeout_ms": self.timeout_ms,
        }
        return ["ray:", *(f"  {key}: {value}" for key, value in values.items())]


def judge(traces: Iterable[Trace], name: str, tuned: Tuned, most_per_year: float) -> Proposal:
    """One tuning beside the traces; it fits where it forgives enough, at `most_per_year` deaths."""
    period_ms, timeout_ms, failures = tuned
    found = tuning.detection(period_ms, timeout_ms, failures)
    assert found is not None
    rows = list(traces)
    deaths = sum(false_deaths_per_year(trace, period_ms, timeout_ms, failures) for trace in rows)
    fits = _forgives(rows, tuned) and deaths <= most_per_year
    return Proposal(name, period_ms, timeout_ms, failures, found, found.silent.earliest_s, deaths, fits)


def _forgives(traces: Sequence[Trace], tuned: Tuned) -> bool:
    """Whether a tuning stays well clear of all that was seen."""
    found = tuning.detection(*tuned)
    silence_s = max(trace.longest_silence_s for trace in traces)
    slow_ms = max(trace.slow_ms for trace in traces)
    return (
        found is not None
        and found.silent.earliest_s >= max(LEAST_FORGIVEN_S, MARGIN * silence_s)
        and tuned[1] >= LATENCY_MARGIN * slow_ms
    )


def candidates() -> Iterator[Tuned]:
    """Every tuning that is tried: period, timeout, failures; the fastest with a silent node first."""
    tried = [(p, t, n) for p in PERIODS_MS for t in TIMEOUTS_MS for n in FAILURES]

    def late(tuned: Tuned) -> tuple[float, float]:
        found = tuning.detection(*tuned)
        assert found is not None
        return found.silent.latest_s, found.killed.latest_s

    return iter(sorted(tried, key=late))


def fastest(traces: Sequence[Trace], most_per_year: float) -> Proposal | None:
    """The tuning that notices a silent node soonest and fits; None where none does."""
    clear = (tuned for tuned in candidates() if _forgives(traces, tuned))
    found = (judge(traces, "measured", tuned, most_per_year) for tuned in clear)
    return next((proposal for proposal in found if proposal.fits), None)


def presets(traces: Sequence[Trace], most_per_year: float) -> list[Proposal]:
    """The presets beside the same traces."""
    found = []
    for name in PRESETS:
        ray = RayConfig(preset=name)  # type: ignore[arg-type]  # a key of the table is a preset
        tuned = ray.health_check_period_ms, ray.health_check_timeout_ms, tuning.threshold(ray)
        found.append(judge(traces, name, tuned, most_per_year))
    return found


def quantile(values: Sequence[float], share: float) -> float:
    """The value below which that share of the values lies."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]
