"""Time for a simulation."""

import heapq
from collections.abc import Callable


class VirtualClock:
    """Time that passes only when asked to: calls wait in a queue, and `run_until` makes them in order."""

    def __init__(self, start: float = 0.0) -> None:
        self.now = start
        self._queue: list[tuple[float, int, Callable[[], None]]] = []
        self._count = 0

    def call_later(self, delay_s: float, call: Callable[[], None]) -> None:
        """Make this call after `delay_s`; calls of one moment keep their order."""
        self._count += 1
        heapq.heappush(self._queue, (self.now + max(0.0, delay_s), self._count, call))

    def run_until(self, at: float) -> None:
        """Let time pass until `at`, with every call that is due."""
        while self._queue and self._queue[0][0] <= at:
            self.now, _, call = heapq.heappop(self._queue)
            call()
        self.now = max(self.now, at)
