"""`grid-agent validate`: is this cluster what its file says, seen from here, whether or not the agent runs?

A list of checks, each pass, warn or fail with one line that says what to do. It changes nothing. The order is
that of a person's search: the file, the hosts, Ray, its settings, its authentication, the agent, the nodes.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx

from config import ray_tokens
from config.checks import bracketed
from config.settings import Settings
from grid_agent import validate_http
from grid_agent.core import effective, variables
from grid_agent.core.messages import NodeRow
from grid_agent.exits import Exit
from grid_agent.ray_view import RayView
from grid_agent.validate_report import Check, Detection, NodeView, RayState, Report, Status

ASK_S = 10.0
Call = Callable[[str, dict[str, Any], float], Awaitable[dict[str, Any]]]
Look = Callable[[], Awaitable[RayView]]


async def validate(
    settings: Settings,
    call: Call,
    agent: str,
    look: Look,
    *,
    api_token: str | None,
    ray_token: str | None,
    environ: Mapping[str, str],
) -> Report:
    """Every check of one cluster.

    Args:
        settings: The cluster file.
        call: Sends one request of the host's program to a node's host: (node, request, timeout_s) -> answer.
        agent: Where the agent answers, "http://host:port".
        look: Asks the head what it says of itself and its nodes.
        api_token: For reading where the API asks for it.
        ray_token: For Ray's dashboard in token mode.
        environ: The person's environment, for RAY_ variables in it.
    """
    dashboard = f"http://127.0.0.1:{settings.ray.dashboard_port}"
    async with httpx.AsyncClient(timeout=validate_http.HTTP_S, trust_env=False) as http:
        hosts, view, ray, app, auth, health = await asyncio.gather(
            asyncio.gather(*(_host(settings, node.name, call) for node in settings.nodes)),
            look(),
            validate_http.dashboard(http, dashboard, ray_token),
            validate_http.application(http, dashboard, ray_token),
            validate_http.strangers(http, dashboard, settings.auth, local=settings.ssh is None),
            validate_http.health(http, agent, api_token),
        )
    rows = [
        *effective.of_file(settings, view.head, view.installed),
        *variables.of_variables(settings, environ, view.head, view.installed),
    ]
    reports, body = health
    checks = [
        Check("config", "pass", f"{len(settings.nodes)} nodes, auth {settings.auth}"),
        *hosts,
        gcs(view),
        *_ray_nodes(settings, view),
        *(Check(row.name, row.status, row.detail) for row in rows),
        detection(view, settings),
        ray,
        app,
        auth,
        *(
            Check("token here", "warn", text)
            for text in ray_tokens.strays(environ, Path.home(), settings.auth, ray_token)
        ),
        *reports,
        *_nodes(body),
    ]
    return Report(
        settings.cluster,
        tuple(checks),
        tuple(rows),
        Detection.of(effective.detection(view.head, view.installed, settings)),
        tuple(_views(settings, view, body)),
    )


def gcs(view: RayView) -> Check:
    """Whether the GCS answers."""
    if view.rows is not None:
        alive = sum(row.alive for row in view.rows)
        return Check("gcs", "pass", f"answers; {alive} nodes ALIVE in its table")
    if view.head.running:
        return Check("gcs", "fail", f"runs, but does not answer ({view.error}): see its gcs_server.out")
    return Check("gcs", "fail", f"nobody answers ({view.error}): run bootstrap/start.py", unreachable=True)


def newest(rows: Iterable[NodeRow], name: str) -> NodeRow | None:
    """The row of a node's latest life."""
    return max((row for row in rows if row.name == name), key=lambda row: row.started_at_ms, default=None)


def _ray_nodes(settings: Settings, view: RayView) -> Iterator[Check]:
    """Ray's own view of every node of the file, and nodes that are not in it."""
    if view.rows is None:
        return
    for node in settings.nodes:
        row = newest(view.rows, node.name)
        if row is None:
            text = "never joined: Ray's table does not know it; run bootstrap/start.py"
            yield Check(f"ray {node.name}", "fail", text)
            continue
        ghosts = sum(r.alive for r in view.rows if r.name == node.name and r is not row)
        status, text = of_row(row)
        if ghosts:
            status = "warn" if status == "pass" else status
            text += f"; {ghosts} earlier lives are ALIVE in the table too"
        yield Check(f"ray {node.name}", status, text)
    names = {node.name for node in settings.nodes}
    for row in view.rows:
        if row.alive and row.name not in names:
            text = f"ALIVE at {row.address}, but not in the file: stop it there, or add it"
            yield Check(f"ray {row.name or row.node_id[:8]}", "warn", text)


def of_row(row: NodeRow) -> tuple[Status, str]:
    """One row of Ray's node table."""
    if row.alive:
        return "pass", f"ALIVE at {bracketed(row.address)}:{row.port}"
    return "fail", f"DEAD: {row.death or 'Ray says no reason'}"


def detection(view: RayView, settings: Settings | None) -> Check:
    """How soon Ray itself notices a death."""
    found = effective.detection(view.head, view.installed, settings)
    if found is None:
        return Check("detection", "warn", "not known: what it follows from could not be read")
    killed, silent = found.killed, found.silent
    return Check(
        "detection",
        "pass",
        f"Ray itself notices a killed raylet after {killed.earliest_s:g} to {killed.latest_s:g} s, "
        f"a silent one after {silent.earliest_s:g} to {silent.latest_s:g} s",
    )


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


def _nodes(body: Mapping[str, Any] | None) -> Iterable[Check]:
    for node in (body or {}).get("nodes", ()):
        fine = node["state"] == "ALIVE"
        why = ", ".join(filter(None, (node["cause"], node["action"])))
        yield Check(
            f"node {node['name']}", "pass" if fine else "warn", node["state"] + (f": {why}" if why else "")
        )


def _views(settings: Settings, view: RayView, body: Mapping[str, Any] | None) -> Iterator[NodeView]:
    ours = {node["name"]: node for node in (body or {}).get("nodes", ())}
    for node in settings.nodes:
        row = newest(view.rows or (), node.name)
        mine = ours.get(node.name, {})
        state = None if view.rows is None else _state(row)
        yield NodeView(node.name, node.host, node.role, state, mine.get("state"), mine.get("cause"))


def _state(row: NodeRow | None) -> RayState:
    return "ABSENT" if row is None else "ALIVE" if row.alive else "DEAD"


def verdict(checks: Iterable[Check]) -> Exit:
    """The exit code: 4 when neither Ray nor the agent answers, else the worst check."""
    found = list(checks)
    silent = {c.name for c in found if c.unreachable}
    asked = {"gcs", "dashboard", "agent"} & {c.name for c in found}
    if asked <= silent:
        return Exit.UNREACHABLE
    statuses = {c.status for c in found}
    return Exit.FAIL if "fail" in statuses else Exit.WARN if "warn" in statuses else Exit.PASS
