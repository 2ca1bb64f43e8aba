"""`grid-agent validate --monitor SECONDS`: watch the health report for a while, then sum it up.

The report is the agent's, or, where there is none, made of direct checks (`watch_raylets`). Polls once a
second; shows a live table on a terminal, and says each change as it happens elsewhere.
"""

import contextlib
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.table import Table

from grid_agent.api_client import ApiError
from grid_agent.exits import OF_STATUS, Exit
from grid_agent.show import table
from grid_agent.validate_report import Asked, Change, Monitored, Quantiles, Watched

EVERY_S = 1.0
LATE_S = 2 * EVERY_S  # where the agent does not say how soon it suspects a silence
SEVERITY = (Exit.PASS, Exit.WARN, Exit.FAIL, Exit.UNREACHABLE)
HEAD = ("NODE", "STATE", "SINCE", "RTT now", "p50", "p99 ms", "MISSED", "ALIVE")
RECENT = 4


@dataclass
class Seen:
    """What was seen of one node."""

    state: str = "?"
    since: str = "?"
    rtts_ms: list[float] = field(default_factory=list)
    rtt_now_ms: float | None = None
    age_s: float = 0.0
    alive: int = 0
    polls: int = 0
    missed: int = 0
    worst_gap_s: float = 0.0
    changes: list[Change] = field(default_factory=list)


class Monitor:
    """Adds up health reports; `say` prints one line, `asked` is whose reports they are."""

    def __init__(self, say: Callable[[str], None], asked: Asked = "agent") -> None:
        self._say = say
        self._asked = asked
        self._nodes: dict[str, Seen] = {}
        self._unanswered = 0
        self._silent = False
        self._polls = 0
        self._begun = time.monotonic()
        self.worst = Exit.PASS

    def see(self, body: dict[str, Any]) -> None:
        """One report."""
        self._polls += 1
        self._silent = False
        self._worsen(OF_STATUS[body["status"]])
        # With a long pace, or many nodes that take turns, a healthy node's answer is older.
        late_s = body["observer"].get("silence_suspected_within_s", LATE_S)
        for node in body["nodes"]:
            seen = self._nodes.setdefault(node["name"], Seen())
            seen.polls += 1
            seen.alive += node["state"] == "ALIVE"
            seen.since = node.get("since") or "?"
            self._beat(seen, node["heartbeat"], late_s)
            if node["state"] != seen.state:
                cause = f" ({node['cause']})" if node["cause"] else ""
                self._say(f"{body['time']}  {node['name']}  {seen.state} -> {node['state']}{cause}")
                if seen.state != "?":
                    seen.changes.append(Change(body["time"], seen.state, node["state"], node["cause"]))
                seen.state = node["state"]

    def nobody(self, why: str) -> None:
        """One poll that nobody answered."""
        self._polls += 1
        self._unanswered += 1
        self._worsen(Exit.UNREACHABLE)
        if not self._silent:
            self._say(why)
        self._silent = True

    def report(self) -> Monitored:
        """What the whole time showed."""
        alive, polls = (
            sum(n.alive for n in self._nodes.values()),
            sum(n.polls for n in self._nodes.values()),
        )
        return Monitored(
            asked=self._asked,
            seconds=round(time.monotonic() - self._begun, 1),
            polls=self._polls,
            unanswered=self._unanswered,
            availability_percent=round(100.0 * alive / polls, 2) if polls else 0.0,
            nodes=tuple(
                Watched(
                    name=name,
                    state=n.state,
                    since=n.since,
                    alive_percent=round(100.0 * n.alive / n.polls, 1),
                    missed=n.missed,
                    rtt_ms=Quantiles(quantile(n.rtts_ms, 0.5), quantile(n.rtts_ms, 0.99)),
                    worst_gap_s=round(n.worst_gap_s, 1),
                    changes=tuple(n.changes),
                )
                for name, n in self._nodes.items()
            ),
        )

    def rows(self) -> list[tuple[str, ...]]:
        """The live table, below `HEAD`."""
        return [
            (
                name,
                n.state,
                n.since,
                _ms(n.rtt_now_ms),
                _ms(quantile(n.rtts_ms, 0.5)),
                _ms(quantile(n.rtts_ms, 0.99)),
                str(n.missed),
                f"{100.0 * n.alive / n.polls:.1f} %",
            )
            for name, n in self._nodes.items()
        ]

    def lines(self) -> list[str]:
        """The report as text."""
        found = self.report()
        rows = [
            (
                n.name,
                n.state,
                n.since,
                f"{n.alive_percent:.1f} %",
                "-" if n.rtt_ms.p50 is None else f"{n.rtt_ms.p50:.1f} / {n.rtt_ms.p99:.1f} ms",
                str(n.missed),
                f"{n.worst_gap_s:.1f} s",
            )
            for n in found.nodes
        ]
        head = (
            f"{found.polls} polls, {found.unanswered} unanswered; nodes were ALIVE "
            f"{found.availability_percent:.2f} % of the time"
        )
        columns = ("NODE", "STATE", "SINCE", "ALIVE", "HEARTBEAT p50 / p99", "MISSED", "WORST GAP")
        changes = [
            f"{c.at}  {n.name}  {c.before} -> {c.after}{f' ({c.cause})' if c.cause else ''}"
            for n in found.nodes
            for c in n.changes
        ]
        return [head, *table(columns, rows), *sorted(changes)]

    def _beat(self, seen: Seen, beat: dict[str, Any], late_s: float) -> None:
        # The report keeps the last round trip of a node that no longer answers: only its age tells.
        age_s, before_s = beat["age_s"] or 0.0, seen.age_s
        now_ms = beat["rtt_ms"] if beat.get("last_rtt_ms") is None else beat["last_rtt_ms"]
        late = now_ms is None or age_s > late_s
        repeated = now_ms == seen.rtt_now_ms and age_s > before_s  # no new answer since the last poll
        if not late and not repeated:
            seen.rtts_ms.append(now_ms)
        seen.missed += late
        seen.age_s, seen.rtt_now_ms = age_s, None if late else now_ms
        seen.worst_gap_s = max(seen.worst_gap_s, age_s)

    def _worsen(self, code: Exit) -> None:
        self.worst = max(self.worst, code, key=SEVERITY.index)


def watch(
    ask: Callable[[], dict[str, Any]],
    seconds: float,
    say: Callable[[str], None],
    console: Console | None = None,
    asked: Asked = "agent",
) -> Monitor:
    """Poll for so long; returns what was seen. With a terminal as `console` there is a live table on it."""
    recent: deque[str] = deque(maxlen=RECENT)
    live_here = console is not None and console.is_terminal
    monitor = Monitor(recent.append if live_here else say, asked)
    end = time.monotonic() + seconds
    with _shown(monitor, recent, console if live_here else None) as refresh:
        while True:
            begun = time.monotonic()
            try:
                monitor.see(ask())
            except ApiError as error:
                monitor.nobody(str(error))
            refresh()
            if time.monotonic() >= end:
                return monitor
            time.sleep(max(0.0, min(begun + EVERY_S, end) - time.monotonic()))


@contextlib.contextmanager
def _shown(monitor: Monitor, recent: deque[str], console: Console | None) -> Iterator[Callable[[], None]]:
    """The live table, and how to refresh it; nothing without a console."""
    if console is None:
        yield lambda: None
        return
    with Live(console=console, auto_refresh=False, transient=True) as live:
        yield lambda: live.update(_table(monitor, recent), refresh=True)


def _table(monitor: Monitor, recent: deque[str]) -> Table:
    made = Table(*HEAD, box=None, caption="\n".join(recent) or None, caption_justify="left")
    for row in monitor.rows():
        made.add_row(*row)
    return made


def quantile(values: list[float], q: float) -> float | None:
    """The value below which a share `q` of the values lies; None where there are none."""
    ordered = sorted(values)
    return round(ordered[min(len(ordered) - 1, int(q * len(ordered)))], 3) if ordered else None


def _ms(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"
