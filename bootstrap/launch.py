"""Carries out the actions of a plan: the first stages one after another, the last ones side by side.

What it starts holds neither our standard output nor our error: nodes are started by the host's own
program with a log, the deployment writes to its log file.
"""

import os
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bootstrap.plan import Action
from bootstrap.progress import Progress
from bootstrap.reach import Reach
from bootstrap.summary import tail
from bootstrap.turns import Turns
from config.paths import StatePaths


@dataclass(frozen=True, slots=True)
class Outcome:
    """How one action ended. `lines` are the last ones of its own output."""

    ok: bool
    text: str
    took_s: float
    lines: tuple[str, ...] = ()


class Work:
    """Actions under way in threads of their own; a Ctrl-C does not wait for them.

    `session_dir` is that of a cluster that has lost its head and is to be cleared away.
    """

    def __init__(
        self, reach: Reach, state: StatePaths, progress: Progress, session_dir: str | None = None
    ) -> None:
        self._reach = reach
        self._session_dir = session_dir
        self._state = state
        self._progress = progress
        self._outcomes: dict[str, Outcome] = {}
        self._names: list[str] = []
        self._changed = threading.Condition()
        self._turns = Turns(reach.raylets)
        self._deploying: subprocess.Popen[bytes] | None = None

    def begin(self, actions: Sequence[Action]) -> None:
        """Start all of these side by side."""
        for action in actions:
            with self._changed:
                self._outcomes.pop(action.node, None)  # of an earlier stage
                self._names.append(action.node)
            threading.Thread(target=self._do, args=(action,), daemon=True, name=action.node).start()

    def refuse(self, refused: Mapping[str, Outcome]) -> None:
        """Take note of nodes that are not started at all."""
        for name, outcome in refused.items():
            self._progress.report(name, outcome.text, done=True)
            with self._changed:
                self._names.append(name)
                self._outcomes[name] = outcome

    def outcomes(self) -> Mapping[str, Outcome]:
        """What has ended so far, by name."""
        with self._changed:
            return dict(self._outcomes)

    def under_way(self) -> list[str]:
        """What has not ended yet."""
        with self._changed:
            return [name for name in self._names if name not in self._outcomes]

    def wait(self, seconds: float) -> None:
        """Until something ends, or for so long."""
        with self._changed:
            self._changed.wait(seconds)

    def finish(self, deadline: float) -> None:
        """Until everything begun so far has ended, or the deadline on the monotonic clock."""
        while self.under_way() and time.monotonic() < deadline:
            self.wait(0.5)

    def abandon(self) -> None:
        """End the deployment under way, if there is one; nodes that are starting go on by themselves."""
        if self._deploying is not None and self._deploying.poll() is None:
            self._deploying.terminate()

    def _do(self, action: Action) -> None:
        began = time.monotonic()
        try:
            outcome = (
                self._deploy(action, began) if action.kind == "deploy" else self._ask_host(action, began)
            )
        except Exception as error:  # noqa: BLE001 - an outcome for whoever waits, never a lost thread
            outcome = Outcome(False, f"{type(error).__name__}: {error}", time.monotonic() - began)
        self._progress.report(action.node, outcome.text, done=not outcome.ok or action.kind != "start")
        with self._changed:
            self._outcomes[action.node] = outcome
            self._changed.notify_all()

    def _ask_host(self, action: Action, began: float) -> Outcome:
        if action.kind == "clear":
            self._progress.report(action.node, "ending what is left of the cluster")
            answer = self._clear(action)
        elif action.kind == "end_head":
            self._progress.report(action.node, "ending what is left of the head")
            answer = self._reach.end_head(action.timeout_s, session_dir=self._session_dir)
        else:
            self._progress.report(action.node, "starting")
            answer = self._start(action)
        took = time.monotonic() - began
        if answer.get("ok") or answer.get("error") == "already_running":
            self._state.stopped_node(action.node).unlink(missing_ok=True)
            return Outcome(True, "raylet up" if action.kind == "start" else "ended what was left", took)
        detail = str(answer.get("detail", "")).strip()
        lines = tuple(detail.splitlines()[-12:]) or tuple(tail(self._state.node_log(action.node)))
        return Outcome(False, f"failed: {answer.get('error', 'unknown')}", took, lines)

    def _clear(self, action: Action) -> dict[str, Any]:
        """A host that cannot be asked holds nobody up: its own start will say so."""
        answers = self._reach.end_cluster(action.timeout_s, session_dir=self._session_dir)
        asked = (answer for name, answer in answers.items() if name not in self._reach.unreachable)
        return next((answer for answer in asked if not answer.get("ok")), {"ok": True})

    def _start(self, action: Action) -> dict[str, Any]:
        if self._reach.settings.ssh is not None:
            return self._reach.start(action)
        return self._turns.take(action.node, lambda: self._reach.start(action))

    def _deploy(self, action: Action, began: float) -> Outcome:
        self._progress.report(action.node, "deploying")
        log = self._state.deploy_log
        with os.fdopen(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as out:
            self._deploying = subprocess.Popen(
                action.argv,
                env=dict(action.env),
                cwd=action.cwd,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                close_fds=True,
                start_new_session=True,
            )
        try:
            code = self._deploying.wait(action.timeout_s)
        except subprocess.TimeoutExpired:
            self._deploying.kill()
            self._deploying.wait()
            return Outcome(
                False,
                f"failed: not RUNNING in {action.timeout_s:g} s",
                action.timeout_s,
                tuple(tail(Path(log))),
            )
        took = time.monotonic() - began
        if code == 0:
            return Outcome(True, "RUNNING", took)
        return Outcome(False, f"failed: the deployment ended with {code}", took, tuple(tail(Path(log))))
