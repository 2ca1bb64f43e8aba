"""`grid-agent validate --monitor SECONDS`: watch the health report for a while, then sum it up.

Polls once a second; says each change as it happens. Pure bookkeeping but for the one loop at the end.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from grid_agent.api_client import ApiError
from grid_agent.exits import OF_STATUS, Exit
from grid_agent.show import table

EVERY_S = 1.0
SEVERITY = (Exit.PASS, Exit.WARN, Exit.FAIL, Exit.UNREACHABLE)


@dataclass
class Seen:
    """What was seen of one node."""

    state: str = "?"
    rtts_ms: list[float] = field(default_factory=list)
    alive: int = 0
    polls: int = 0
    worst_gap_s: float = 0.0


class Monitor:
    """Adds up health reports; `say` prints one line."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._nodes: dict[str, Seen] = {}
        self._silent = 0
        self._polls = 0
        self.worst = Exit.PASS

    def see(self, body: dict[str, Any]) -> None:
        """One report."""
        self._polls += 1
        self._worsen(OF_STATUS[body["status"]])
        for node in body["nodes"]:
            seen = self._nodes.setdefault(node["name"], Seen())
            seen.polls += 1
            seen.alive += node["state"] == "ALIVE"
            beat = node["heartbeat"]
            if beat["rtt_ms"] is not None:
                seen.rtts_ms.append(beat["rtt_ms"])
                seen.worst_gap_s = max(seen.worst_gap_s, beat["age_s"])
            if node["state"] != seen.state:
                cause = f" ({node['cause']})" if node["cause"] else ""
                self._say(f"{body['time']}  {node['name']}  {seen.state} -> {node['state']}{cause}")
                seen.state = node["state"]

    def nobody(self, why: str) -> None:
        """One poll that nobody answered."""
        self._polls += 1
        self._silent += 1
        self._worsen(Exit.UNREACHABLE)
        if self._silent == 1:
            self._say(why)

    def report(self) -> dict[str, Any]:
        """What the whole time showed."""
        return {
            "polls": self._polls,
            "unanswered": self._silent,
            "nodes": [
                {
                    "name": name,
                    "state": n.state,
                    "alive_percent": round(100.0 * n.alive / n.polls, 1),
                    "rtt_ms": {"p50": _quantile(n.rtts_ms, 0.5), "p99": _quantile(n.rtts_ms, 0.99)},
                    "worst_gap_s": round(n.worst_gap_s, 1),
                }
                for name, n in self._nodes.items()
            ],
        }

    def lines(self) -> list[str]:
        """The report as text."""
        found = self.report()
        rows = [
            (
                n["name"],
                n["state"],
                f"{n['alive_percent']:.1f} %",
                "-"
                if n["rtt_ms"]["p50"] is None
                else f"{n['rtt_ms']['p50']:.1f} / {n['rtt_ms']['p99']:.1f} ms",
                f"{n['worst_gap_s']:.1f} s",
            )
            for n in found["nodes"]
        ]
        head = f"{found['polls']} polls, {found['unanswered']} unanswered"
        return [head, *table(("NODE", "STATE", "ALIVE", "HEARTBEAT p50 / p99", "WORST GAP"), rows)]

    def _worsen(self, code: Exit) -> None:
        self.worst = max(self.worst, code, key=SEVERITY.index)


def watch(ask: Callable[[], dict[str, Any]], seconds: float, say: Callable[[str], None]) -> Monitor:
    """Poll for so long; returns what was seen."""
    monitor = Monitor(say)
    end = time.monotonic() + seconds
    while True:
        begun = time.monotonic()
        try:
            monitor.see(ask())
        except ApiError as error:
            monitor.nobody(str(error))
        if time.monotonic() >= end:
            return monitor
        time.sleep(max(0.0, min(begun + EVERY_S, end) - time.monotonic()))


def _quantile(values: list[float], q: float) -> float | None:
    ordered = sorted(values)
    return round(ordered[min(len(ordered) - 1, int(q * len(ordered)))], 3) if ordered else None
