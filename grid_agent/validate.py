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
from grid_agent.core import effective, variables
from grid_agent.core.messages import NodeRow
from grid_agent.exits import Exit
from grid_agent.ray_view import RayView
from grid_agent.validate_report import Check, Detection, NodeView, RayState, Report, Status

ASK_S = 10.0
HTTP_S = 5.0
STALE_S = 10.0
APP = "grid-agent"
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
        call: Sends one request of `host_program` to a node's host: (node, request, timeout_s) -> answer.
        agent: Where the agent answers, "http://host:port".
        look: Asks the head what it says of itself and its nodes.
        api_token: For reading where the API asks for it.
        ray_token: For Ray's dashboard in token mode.
        environ: The person's environment, for RAY_ variables in it.
    """
    dashboard = f"http://127.0.0.1:{settings.ray.dashboard_port}"
    async with httpx.AsyncClient(timeout=HTTP_S, trust_env=False) as http:
        hosts, view, ray, app, auth, health = await asyncio.gather(
            asyncio.gather(*(_host(settings, node.name, call) for node in settings.nodes)),
            look(),
            _dashboard(http, dashboard, ray_token),
            _application(http, dashboard, ray_token),
            _refuses_strangers(http, dashboard, settings.auth, local=settings.ssh is None),
            _health(http, agent, api_token),
        )
    rows = [
        *effective.of_file(settings, view.head, view.installed),
        *variables.of_variables(settings, environ, view.head, view.installed),
    ]
    reports, body = health
    checks = [
        Check("config", "pass", f"{len(settings.nodes)} nodes, auth {settings.auth}"),
        *hosts,
        _gcs(view),
        *_ray_nodes(settings, view),
        *(Check(row.name, row.status, row.detail) for row in rows),
        _detection(view, settings),
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


async def validate_address(
    address: str, look: Look, dashboard: str, *, ray_token: str | None, environ: Mapping[str, str]
) -> Report:
    """What can be said of a cluster of which there is no file here.

    Args:
        address: Of its GCS, "host:port".
        look: As for `validate`.
        dashboard: Where its dashboard would answer.
        ray_token: For the dashboard in token mode.
        environ: The person's environment.
    """
    async with httpx.AsyncClient(timeout=HTTP_S, trust_env=False) as http:
        view, ray, auth = await asyncio.gather(
            look(),
            _dashboard(http, dashboard, ray_token),
            _refuses_strangers(http, dashboard, environ.get("RAY_AUTH_MODE", "disabled"), local=False),
        )
    rows = [
        *effective.of_cluster(view.head, view.installed),
        *variables.of_variables(None, environ, view.head, view.installed),
    ]
    if ray.unreachable:
        ray = Check("dashboard", "warn", f"{ray.detail} Name it with --dashboard", unreachable=True)
        auth = Check("auth", "warn", "not known: it is tried on the dashboard")
    checks = [
        _gcs(view),
        *(
            Check(f"ray {row.name or row.node_id[:8]}", *_of_row(row))
            for row in sorted(view.rows or (), key=lambda r: r.name)
            if row.alive
        ),
        *(Check(row.name, row.status, row.detail) for row in rows),
        _detection(view, None),
        ray,
        auth,
        *_cannot_know(view),
    ]
    return Report(
        address,
        tuple(checks),
        tuple(rows),
        Detection.of(effective.detection(view.head, view.installed, None)),
        tuple(
            NodeView(row.name, row.address, "head" if row.is_head else "worker", "ALIVE", None, None)
            for row in view.rows or ()
            if row.alive
        ),
    )


def _cannot_know(view: RayView) -> Iterator[Check]:
    yield Check("not known", "pass", "hosts, processes, disks: there is no file that says how to reach them")
    if view.head.running and view.head.environ is None:
        text = "RAY_ variables and defaults of the GCS: it runs elsewhere, or as another user"
        yield Check("not known", "pass", text)
    yield Check("not known", "pass", "whether somebody heals it: grid-agent did not start it")


def _gcs(view: RayView) -> Check:
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
        status, text = _of_row(row)
        if ghosts:
            status = "warn" if status == "pass" else status
            text += f"; {ghosts} earlier lives are ALIVE in the table too"
        yield Check(f"ray {node.name}", status, text)
    names = {node.name for node in settings.nodes}
    for row in view.rows:
        if row.alive and row.name not in names:
            text = f"ALIVE at {row.address}, but not in the file: stop it there, or add it"
            yield Check(f"ray {row.name or row.node_id[:8]}", "warn", text)


def _of_row(row: NodeRow) -> tuple[Status, str]:
    if row.alive:
        return "pass", f"ALIVE at {bracketed(row.address)}:{row.port}"
    return "fail", f"DEAD: {row.death or 'Ray says no reason'}"


def _detection(view: RayView, settings: Settings | None) -> Check:
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


async def _dashboard(http: httpx.AsyncClient, url: str, token: str | None) -> Check:
    headers = {"authorization": f"Bearer {token}"} if token else {}
    try:
        answer = await http.get(f"{url}/api/version", headers=headers)
    except httpx.HTTPError as error:
        said = str(error) or type(error).__name__
        return Check(
            "dashboard", "fail", f"nobody answers at {url} ({said}): is the head up?", unreachable=True
        )
    if answer.status_code in (httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN):
        return Check(
            "dashboard", "fail", f"{url} refuses our token: was the cluster started by somebody else?"
        )
    if answer.status_code != httpx.codes.OK:
        return Check("dashboard", "warn", f"{url} answers {answer.status_code}")
    try:
        version = answer.json().get("ray_version", "of unknown version")
    except (ValueError, AttributeError):
        return Check("dashboard", "fail", f"{url} answers, and not as Ray does: is ray.dashboard_port right?")
    return Check("dashboard", "pass", f"{url}, Ray {version}")


async def _application(http: httpx.AsyncClient, url: str, token: str | None) -> Check:
    """The application is deployed, and Ray Serve says that it runs."""
    headers = {"authorization": f"Bearer {token}"} if token else {}
    try:
        answer = await http.get(f"{url}/api/serve/applications/", headers=headers)
        apps = answer.json().get("applications", {}) if answer.status_code == httpx.codes.OK else None
        app = apps.get(APP) if apps is not None else None
        status, message = (app["status"], app.get("message") or "") if app else (None, "")
    except (httpx.HTTPError, ValueError, AttributeError, KeyError, TypeError) as error:
        text = f"Ray Serve could not be asked ({type(error).__name__}): see the line of the dashboard"
        return Check("application", "fail", text)
    if apps is None:
        return Check("application", "fail", f"Ray Serve answers {answer.status_code}")
    if status is None:
        return Check("application", "fail", f"{APP} is not deployed: start.py deploys it")
    if status != "RUNNING":
        return Check("application", "fail", f"{APP} is {status}: {message or 'see serve status'}")
    return Check("application", "pass", f"{APP} is RUNNING")


async def _refuses_strangers(http: httpx.AsyncClient, url: str, auth: str, *, local: bool) -> Check:
    """In token mode a request without the token must be refused; anything else is an open cluster."""
    if auth == "disabled":
        text = "auth is disabled: whoever reaches Ray's ports can run code" + (
            " on this machine" if local else ""
        )
        return Check("auth", "pass" if local else "warn", text)
    try:
        answer = await http.get(f"{url}/api/serve/applications/")
    except httpx.HTTPError as error:
        return Check("auth", "fail", f"could not be tried: {error or type(error).__name__}", unreachable=True)
    if answer.status_code in (httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN):
        return Check("auth", "pass", f"a request without the token is refused ({answer.status_code})")
    return Check(
        "auth",
        "fail",
        f"a request without the token was answered ({answer.status_code}): run stop.py, start.py",
    )


async def _health(
    http: httpx.AsyncClient, agent: str, token: str | None
) -> tuple[list[Check], Mapping[str, Any] | None]:
    headers = {"authorization": f"Bearer {token}"} if token else {}
    try:
        answer = await http.get(f"{agent}/cluster/health", headers=headers)
        body = answer.json()
        status, age_s, still_open = body["status"], float(body["age_s"]), body["incidents"]["open"]
        doubts = body["observer"].get("detail", "")
    except (httpx.HTTPError, ValueError, KeyError, TypeError) as error:
        text = f"no health report at {agent} ({type(error).__name__}): nobody heals until start.py deploys it"
        return [Check("agent", "fail", text, unreachable=True)], None
    text = f"{agent} says {status}"
    within_s = body["observer"].get("silence_suspected_within_s")
    if within_s is not None:
        text += f"; crashes are news at once, silence is suspected within {within_s:g} s"
    fresh = "is fresh" if age_s <= STALE_S else "is stale: its loop hangs; start.py --redeploy"
    return [
        Check("agent", status, f"{text}{'; ' + doubts if doubts else ''}"),
        Check("agent age", "pass" if age_s <= STALE_S else "fail", f"{age_s:.1f} s, which {fresh}"),
        Check(
            "incidents",
            "warn" if still_open else "pass",
            f"{still_open} open" + (": grid-agent incidents tells them" if still_open else ""),
        ),
    ], body


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
