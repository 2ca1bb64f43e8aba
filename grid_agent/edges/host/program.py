"""What runs on a host, from request to answer. Called by `hosts`; see the package for how it gets there."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Iterator
from typing import Any

from grid_agent.edges.host.clearing import clear
from grid_agent.edges.host.common import HostError, put_secret, to_json
from grid_agent.edges.host.ending import end, end_cluster, end_head
from grid_agent.edges.host.last_words import logs
from grid_agent.edges.host.locks import Held, locked, refuse_stale
from grid_agent.edges.host.looking import look
from grid_agent.edges.host.ports import port_owner
from grid_agent.edges.host.starter import Starter
from grid_agent.edges.host.starting import start


def _starts(request: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The starts among the steps of a request."""
    if request.get("op") == "start":
        yield request
    for one in request.get("requests", ()):
        yield from _starts(one)


def steps(request: dict[str, Any], held: Held = (), starter: Starter | None = None) -> dict[str, Any]:
    """Carries out several requests in one call, in order, and stops at the first that fails.

    The locks that any of them names are held from before the first until after the last. What a start needs
    is loaded while the steps before it are carried out. Request: requests; optional epoch, a number that
    rises with every agent: an older one than this node has seen is refused.
    Answer: that of the last one carried out, and answers: all of them, each with took_s. Errors, before
    anything is done: busy, disk, stale.
    """
    answers: list[dict[str, Any]] = []
    with locked(request, held, needed=True) as locks, contextlib.ExitStack() as ends:
        refuse_stale(request.get("epoch"), locks)
        first = next(_starts(request), None)
        if starter is None and first is not None:
            starter = ends.enter_context(Starter(first, locks))
            starter.load()
        for one in request["requests"]:
            began = time.monotonic()
            answer = handle(one, locks, starter)
            answers.append({"took_s": round(time.monotonic() - began, 3), **answer})
            if not answers[-1].get("ok"):
                break
    return {"ok": True, **(answers[-1] if answers else {}), "answers": answers}


def handle(request: dict[str, Any], held: Held = (), starter: Starter | None = None) -> dict[str, Any]:
    """Answers one request; every failure is an answer too: {ok: false, error, detail}.

    `held` are the locks that `steps` has taken for it, `starter` is what loads for its start.
    """
    free = {operation.__name__: operation for operation in (look, clear, put_secret, port_owner, logs)}
    locking = {operation.__name__: operation for operation in (end, end_head, end_cluster)}
    try:
        if request["op"] in ("start", "steps"):
            return (start if request["op"] == "start" else steps)(request, held, starter)
        if request["op"] in locking:
            return locking[request["op"]](request, held)
        if request["op"] not in free:
            return HostError("bad_request", f"There is no operation {str(request['op'])[:40]!r}.").answer
        return free[request["op"]](request)
    except HostError as error:
        return error.answer
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        return HostError("bad_request", f"{type(error).__name__}: {error}").answer
    except Exception as error:  # noqa: BLE001  an answer is the only way to say anything from here
        return HostError("internal", f"{type(error).__name__}: {error}").answer


def main() -> None:
    """One JSON request on standard input, one JSON answer on standard output."""
    try:
        answer = handle(json.loads(sys.stdin.buffer.read()))
    except ValueError as error:
        answer = HostError("bad_request", f"The request is not JSON: {error}").answer
    sys.stdout.buffer.write(to_json(answer) + b"\n")
    sys.stdout.buffer.flush()
