"""Waits until every node's outcome is known: conditions with a deadline, never a fixed sleep.

Watches the tasks under way and the agent's health side by side and reports what changes.
"""

import time
from collections.abc import Callable, Set
from dataclasses import dataclass, field
from typing import Any

from bootstrap import health
from bootstrap.launch import Outcome, Work
from bootstrap.plan import APP
from bootstrap.progress import Progress

POLL_S = 0.2
UNKNOWN = health.Verdict("unknown")


@dataclass(slots=True)
class Result:
    """How the start ended. `body` is the last answer of the agent."""

    outcomes: dict[str, Outcome] = field(default_factory=dict)
    body: dict[str, Any] | None = None
    verdict: health.Verdict = UNKNOWN
    in_time: bool = True

    @property
    def failed(self) -> dict[str, Outcome]:
        """What could not be started, by name."""
        return {name: outcome for name, outcome in self.outcomes.items() if not outcome.ok}


def settle(
    work: Work,
    running: frozenset[str],
    ask: Callable[[], dict[str, Any] | None],
    progress: Progress,
    *,
    deadline: float,
) -> Result:
    """Wait for the work under way, and then for the agent's word that the cluster has come to rest.

    Args:
        work: What was begun.
        running: Nodes that were running before.
        ask: Gives the agent's health, or None while it does not answer.
        progress: Where to report.
        deadline: On the monotonic clock.

    Returns:
        The outcome of everything, also when the deadline passed or the application could not be deployed.
    """
    result = Result(outcomes=dict(work.outcomes()))
    alive_since: float | None = None
    while True:
        now = time.monotonic()
        result.outcomes = dict(work.outcomes())
        under_way = work.under_way()
        app = result.outcomes.get(APP)
        if app is not None and not app.ok and not under_way:
            return result  # nobody is there who could say more
        answer = ask()
        result.body = answer or result.body
        if result.body is not None:
            _show(result.body, progress, {*result.failed, *under_way})
            up = (running | {name for name, outcome in result.outcomes.items() if outcome.ok}) - {APP}
            result.verdict = health.judge(
                result.body, up, result.failed.keys(), now - alive_since if alive_since else 0.0
            )
            # Counted from the last start's end: until then the agent may be one that is being replaced, and a
            # node that is just being started still says CORDONED.
            alive_since = None if result.verdict.waiting or under_way else alive_since or now
            if result.verdict.settled and not under_way and answer is not None:
                return result
        if now >= deadline:
            result.in_time = False
            return result
        work.wait(POLL_S)


def _show(body: dict[str, Any], progress: Progress, others: Set[str]) -> None:
    """The agent's word on every node, except on those (`others`) of which the start itself knows more."""
    for node in body["nodes"]:
        if node["name"] in others:
            continue
        if node["state"] == "ALIVE":
            progress.report(node["name"], "ALIVE", done=True)
        elif node["state"] != "JOINING":
            cause = f" ({node['cause']})" if node.get("cause") else ""
            progress.report(node["name"], f"{node['state']}{cause}")
