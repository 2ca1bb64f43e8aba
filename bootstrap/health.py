"""Asks the agent how the cluster is, and decides whether that answer is the final one.

`judge` is pure; `Agent` is the only thing here that opens a connection.
"""

import http.client
import json
from collections.abc import Mapping, Set
from dataclasses import dataclass
from typing import Any, Literal

from config.settings import Settings

# A warning with every node ALIVE (a late loop while everything starts, an incident about to close)
# mostly passes. What has not passed after this long is for a person to read.
WARN_SETTLES_S = 15.0
ANSWER_S = 2.0
MAX_BYTES = 16 * 1024 * 1024
WILDCARDS = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - read here, not bound


@dataclass(frozen=True, slots=True)
class Verdict:
    """What an answer means. `waiting` names what is not there yet; `reasons` why it is not a pass."""

    status: Literal["pass", "warn", "fail", "unknown"]
    waiting: tuple[str, ...] = ()
    reasons: tuple[str, ...] = ()
    settled: bool = False


def url(settings: Settings) -> str:
    """Where the agent answers, as this machine reaches it."""
    host = reachable(settings.http.host)
    return f"http://{f'[{host}]' if ':' in host else host}:{settings.http.port}/cluster"


def reachable(host: str) -> str:
    """Where this machine reaches what is bound to `host`."""
    return WILDCARDS.get(host, host)


def judge(body: Mapping[str, Any], up: Set[str], failed: Set[str], all_alive_s: float) -> Verdict:
    """Whether the cluster has come to rest.

    Args:
        body: The answer of `/cluster/health`.
        up: Nodes that were started or were running.
        failed: Nodes that could not be started; nobody waits for them.
        all_alive_s: For how long every node in `up` has been ALIVE, in seconds.

    Returns:
        The verdict. It is settled when every node that can be ALIVE is, and the rest will not change
        by waiting.
    """
    states = {node["name"]: node["state"] for node in body["nodes"]}
    waiting = tuple(
        f"{name} {states.get(name, 'unknown to the agent')}"
        for name in sorted(up)
        if states.get(name) not in {"ALIVE", "CORDONED"}
    )
    status = body["status"]
    reasons = _reasons(body, failed)
    if waiting:
        return Verdict(status, waiting, reasons)
    lasting = bool(failed) or body.get("paused") is not None or all_alive_s >= WARN_SETTLES_S
    return Verdict(status, (), reasons, settled=status == "pass" or lasting)


def _reasons(body: Mapping[str, Any], failed: Set[str]) -> tuple[str, ...]:
    found = []
    for node in body["nodes"]:
        gpus = node.get("gpus") or {}
        if node["state"] != "ALIVE" and node["name"] not in failed:
            cause = f", {node['cause']}" if node.get("cause") else ""
            found.append(f"{node['name']} is {node['state']}{cause}")
        if _gpus_missing(gpus):
            expected, registered, seen = (
                "?" if gpus.get(key) is None else gpus[key] for key in ("expected", "registered", "seen")
            )
            found.append(f"{node['name']}: {expected} GPUs expected, {registered} registered, {seen} seen")
    if body.get("paused") is not None:
        found.append("the agent is paused")
    if body.get("observer", {}).get("status", "pass") != "pass":
        found.append(body["observer"].get("detail") or "the agent's own loop or its sources are late")
    if body.get("incidents", {}).get("open"):
        found.append(f"{body['incidents']['open']} open incidents")
    return tuple(found)


def _gpus_missing(gpus: Mapping[str, int | None]) -> bool:
    """Whether Ray has others than it should, or the node shows too few; more than configured is no fault."""
    expected, registered, seen = (gpus.get(key) for key in ("expected", "registered", "seen"))
    if None not in (expected, registered) and expected != registered:
        return True
    return seen is not None and seen < max(expected or 0, registered or 0)


class Agent:
    """The agent's API on this machine, as far as a start needs it.

    The standard library's client: it takes a tenth of the time to import, and ignores the proxies of the
    person's shell, which have no business on this road.
    """

    def __init__(self, settings: Settings, token: str | None = None) -> None:
        self._host = reachable(settings.http.host)
        self._port = settings.http.port
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}

    def health(self) -> dict[str, Any] | None:
        """The body of `/cluster/health`; None while nothing answers, or something that is not the agent."""
        link = http.client.HTTPConnection(self._host, self._port, timeout=ANSWER_S)
        try:
            link.request("GET", "/cluster/health", headers=self._headers)
            answer = link.getresponse()
            body = json.loads(answer.read(MAX_BYTES))
        except (OSError, http.client.HTTPException, ValueError):
            return None
        finally:
            link.close()
        known = isinstance(body, dict) and {"status", "nodes"} <= body.keys()
        return body if known and answer.status in {200, 503} else None
