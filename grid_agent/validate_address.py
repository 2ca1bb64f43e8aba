"""`validate --address`: a cluster that grid-agent did not start, and of which there is no file here.

It says what it cannot know, and asks no dashboard but that of this cluster.
"""

import asyncio
from collections.abc import Iterator, Mapping

import httpx

from config.checks import is_loopback
from grid_agent import validate, validate_http
from grid_agent.core import effective, variables
from grid_agent.ray_view import RayView, is_here, split
from grid_agent.validate_report import Check, Detection, NodeView, Report


async def validate_address(
    address: str,
    look: validate.Look,
    dashboard: str | None,
    *,
    ray_token: str | None,
    environ: Mapping[str, str],
) -> Report:
    """What can be said of a cluster of which there is no file here.

    Args:
        address: Of its GCS, "host:port".
        look: As for `validate`.
        dashboard: Where its dashboard answers; None: where its GCS says.
        ray_token: For the dashboard in token mode.
        environ: The person's environment.
    """
    view = await look()
    rows = [
        *effective.of_cluster(view.head, view.installed),
        *variables.of_variables(None, environ, view.head, view.installed),
    ]
    checks = [
        validate.gcs(view),
        *(
            Check(f"ray {row.name or row.node_id[:8]}", *validate.of_row(row))
            for row in sorted(view.rows or (), key=lambda r: r.name)
            if row.alive
        ),
        *(Check(row.name, row.status, row.detail) for row in rows),
        validate.detection(view, None),
        *await _of_dashboard(address, view, dashboard, ray_token),
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


async def _of_dashboard(address: str, view: RayView, given: str | None, token: str | None) -> list[Check]:
    """The dashboard of a cluster without a file, and what it says to strangers. Another one is not asked."""
    host = split(view.dashboard)[0] if view.dashboard else None
    unknown = Check("auth", "warn", "not known: it is tried on the dashboard")
    if given is None and (host is None or (is_loopback(host) and not is_here(split(address)[0]))):
        text = "not known: the GCS does not say where it listens"
        if host is not None:
            text = f"it listens on {view.dashboard} of the head host only: go there, or take ssh -L"
        return [Check("dashboard", "warn", f"{text}. Name it with --dashboard", unreachable=True), unknown]
    url = given or f"http://{view.dashboard}"
    async with httpx.AsyncClient(timeout=validate_http.HTTP_S, trust_env=False) as http:
        ray, auth = await asyncio.gather(
            validate_http.dashboard(http, url, token), validate_http.strangers(http, url, None, local=False)
        )
    if ray.unreachable:
        text = f"{ray.detail} Name it with --dashboard"
        return [Check("dashboard", "warn", text, unreachable=True), unknown]
    return [ray, auth]


def _cannot_know(view: RayView) -> Iterator[Check]:
    yield Check("not known", "pass", "hosts, processes, disks: there is no file that says how to reach them")
    if view.head.running and view.head.environ is None:
        text = "RAY_ variables and defaults of the GCS: it runs elsewhere, or as another user"
        yield Check("not known", "pass", text)
    yield Check("not known", "pass", "whether somebody heals it: grid-agent did not start it")
