"""How many of many checks to make in one round, so that a round stays within its share of one core.

It measures what checks have cost this process and says how many fit; it makes none itself. Small clusters are
never touched: up to `FLOOR` checks are always made. Called by `heartbeat`.
"""

import statistics
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

FLOOR = 25
TYPICAL_S = 0.0003  # CPU of one check before anything was measured
REMEMBERED = 9  # rounds
LATER = 1.25  # times that of a round: gRPC tidies up (2 ms for 29 ms), the core takes the answers in (5 ms)


class Pace:
    """The size of a round, from what the last rounds have cost.

    Args:
        every_s: From the start of a round to that of the next, in seconds.
        share: Of one core, that all rounds together may use (0.03 is 3 %).
    """

    def __init__(self, every_s: float, share: float) -> None:
        self._budget_s = every_s * share
        self._costs_s: deque[float] = deque([TYPICAL_S], maxlen=REMEMBERED)

    def room(self) -> int:
        """How many checks fit into one round."""
        return max(FLOOR, int(self._budget_s / statistics.median(self._costs_s)))

    @contextmanager
    def round(self, checks: int, quick_s: float) -> Iterator[None]:
        """Measure a round of so many checks.

        The CPU is that of the whole process, gRPC's own threads included. A round that lasted longer than
        `quick_s` waited for somebody, and what else ran meanwhile would be counted: it teaches nothing.
        """
        begun_s, used_s = time.monotonic(), time.process_time()
        yield
        if checks >= FLOOR and time.monotonic() - begun_s <= quick_s:
            self._costs_s.append(max(1e-6, LATER * (time.process_time() - used_s) / checks))
