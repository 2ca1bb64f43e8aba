"""`grid-agent validate`: is this cluster what its file says, seen from here, whether or not the agent runs?

A list of checks, each pass, warn or fail with one line that says what to do. It changes nothing. The order is
that of a person's search: the file, the hosts, Ray, its authentication, the agent, the nodes.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import httpx

from config.settings import Settings
from grid_agent.exits import Exit

ASK_S = 10.0
HTTP_S = 5.0
Status = Literal["pass", "warn", "fail"]
Call = Callable[[str, dict[str, Any], float], Awaitable[dict[str, Any]]]


@dataclass(frozen=True, slots=True)
class Check:
    """One line of the report. `unreachable`: nobody answered, so that nothing is known."""

    name: str
    status: Status
    detail: str
    unreachable: bool = False


async def validate(
    settings: Settings,
    call: Call,
    agent: str,
    *,
    api_token: str | None,
    ray_token: str | None,
) -> list[Check]:
    """Every check of one cluster.

    Args:
        settings: The cluster file.
        call: Sends one request of `host_program` to a node's host: (node, request, timeout_s) -> answer.
        agent: Where the agent answers, "http://host:port".
        api_token: For reading where the API asks for it.
        ray_token: For Ray's dashboard in token mode.
    """
    dashboard = f"http://127.0.0.1:{settings.ray.dashboard_port}"
    async with httpx.AsyncClient(timeout=HTTP_S, trust_env=False) as http:
        hosts, ray, auth, health = await asyncio.gather(
            asyncio.gather(*(_host(settings, node.name, call) for node in settings.nodes)),
            _dashboard(http, dashboard, ray_token),
            _refuses_strangers(http, dashboard, settings),
            _health(http, agent, api_token),
        )
    report, body = health
    return [
        Check("config", "pass", f"{len(settings.nodes)} nodes, auth {settings.auth}"),
        *hosts,
        ray,
        auth,
        report,
        *_nodes(body),
    ]


async def _host(settings: Settings, node: str, call: Call) -> Check:
    """The host answers, and shows exactly one raylet of this name."""
    request = {"op": "look", "gcs_port": settings.ray.port, "node_name": node, "node_id": None}
    answer = await call(node, request, ASK_S)
    name = f"host {node}"
    if not answer.get("ok"):
        return Check(name, "fail", f"{answer.get('error')}: {answer.get('detail', '')}")
    raylets = answer["raylets"]
    if len(raylets) == 1:
        return Check(name, "pass", f"reached; raylet pid {raylets[0]['pid']}")
    if not raylets:
        return Check(name, "fail", "reached, but no raylet of this node runs there: run bootstrap/start.py")
    pids = ", ".join(str(r["pid"]) for r in raylets)
    return Check(
        name, "fail", f"{len(raylets)} raylets of this one node run there (pids {pids}): end all but one"
    )


async def _dashboard(http: httpx.AsyncClient, url: str, token: str | None) -> Check:
    headers = {"authorization": f"Bearer {token}"} if token else {}
    try:
        answer = await http.get(f"{url}/api/version", headers=headers)
    except httpx.HTTPError as error:
        return Check(
            "dashboard", "fail", f"nobody answers at {url} ({error}): is the head up?", unreachable=True
        )
    if answer.status_code in (httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN):
        return Check(
            "dashboard", "fail", f"{url} refuses our token: was the cluster started by somebody else?"
        )
    if answer.status_code != httpx.codes.OK:
        return Check("dashboard", "warn", f"{url} answers {answer.status_code}")
    return Check("dashboard", "pass", f"{url}, Ray {answer.json().get('ray_version', 'of unknown version')}")


async def _refuses_strangers(http: httpx.AsyncClient, url: str, settings: Settings) -> Check:
    """In token mode a request without the token must be refused; anything else is an open cluster."""
    if settings.auth == "disabled":
        local = settings.ssh is None
        text = "auth is disabled: whoever reaches Ray's ports can run code" + (
            " on this machine" if local else ""
        )
        return Check("auth", "pass" if local else "warn", text)
    try:
        answer = await http.get(f"{url}/api/serve/applications/")
    except httpx.HTTPError as error:
        return Check("auth", "fail", f"could not be tried: {error}", unreachable=True)
    if answer.status_code in (httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN):
        return Check("auth", "pass", f"a request without the token is refused ({answer.status_code})")
    return Check(
        "auth",
        "fail",
        f"a request without the token was answered ({answer.status_code}): run stop.py, start.py",
    )


async def _health(
    http: httpx.AsyncClient, agent: str, token: str | None
) -> tuple[Check, Mapping[str, Any] | None]:
    headers = {"authorization": f"Bearer {token}"} if token else {}
    try:
        answer = await http.get(f"{agent}/cluster/health", headers=headers)
        body = answer.json()
        status, age_s = body["status"], body["age_s"]
    except (httpx.HTTPError, ValueError, KeyError, TypeError) as error:
        text = f"no health report at {agent} ({type(error).__name__}): nobody heals until start.py deploys it"
        return Check("agent", "fail", text, unreachable=True), None
    doubts = body["observer"].get("detail", "")
    text = f"{agent} says {status}, {age_s:.1f} s old, {body['incidents']['open']} open incidents"
    within_s = body["observer"].get("silence_suspected_within_s")
    if within_s is not None:
        text += f"; crashes are news at once, silence is suspected within {within_s:g} s"
    return Check("agent", status, f"{text}{'; ' + doubts if doubts else ''}"), body


def _nodes(body: Mapping[str, Any] | None) -> Iterable[Check]:
    for node in (body or {}).get("nodes", ()):
        fine = node["state"] == "ALIVE"
        why = ", ".join(filter(None, (node["cause"], node["action"])))
        yield Check(
            f"node {node['name']}", "pass" if fine else "warn", node["state"] + (f": {why}" if why else "")
        )


def verdict(checks: Iterable[Check]) -> Exit:
    """The exit code: 4 when neither Ray nor the agent answers, else the worst check."""
    found = list(checks)
    silent = {c.name for c in found if c.unreachable}
    if {"dashboard", "agent"} <= silent:
        return Exit.UNREACHABLE
    statuses = {c.status for c in found}
    return Exit.FAIL if "fail" in statuses else Exit.WARN if "warn" in statuses else Exit.PASS


def as_json(settings: Settings, checks: Iterable[Check]) -> dict[str, Any]:
    """The report as one document."""
    rows = list(checks)
    status = {Exit.PASS: "pass", Exit.WARN: "warn"}.get(verdict(rows), "fail")
    named = [{k: v for k, v in asdict(c).items() if k != "unreachable"} for c in rows]
    return {"status": status, "cluster": settings.cluster, "checks": named}
