"""The application that Ray Serve runs: one replica on the head, FastAPI in front of the agent's snapshot.

Thin: routes and status codes only. `build` is what `serve deploy` and `deployments.deploy` call.
"""

# No `from __future__ import annotations` here: Serve reads build's annotation to validate the arguments.
import hmac
import html
import os
from pathlib import Path
from typing import Any

import ray
from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.responses import HTMLResponse, JSONResponse
from ray import serve

from config.checks import is_loopback
from config.settings import Settings
from deployments import people_routes
from grid_agent.compose import Agent
from grid_agent.core.raystart import HEAD_LABEL

HTTP = {"pass": 200, "warn": 200, "fail": 503}
METRICS = "text/plain; version=0.0.4; charset=utf-8"
# The built-in pages load scripts from the internet, which a cluster may not have; /docs is ours.
app = FastAPI(title="grid-agent", docs_url=None, redoc_url=None, openapi_url=None)
app.include_router(people_routes.router)


# Above the class: Serve pickles the routes, with what they refer to, as the class is decorated.
def _docs_page(schema: dict[str, Any]) -> str:
    rows = "".join(
        f"<tr><td><code>{verb.upper()} /cluster{html.escape(path)}</code></td>"
        f"<td>{html.escape(spec.get('description', ''))}</td></tr>"
        for path, verbs in schema["paths"].items()
        for verb, spec in verbs.items()
    )
    return (
        "<!doctype html><html lang=en><meta charset=utf-8><title>grid-agent API</title>"
        "<style>body{font:16px sans-serif;max-width:60em;margin:2em auto;padding:0 1em}"
        "td{padding:.4em 1em .4em 0;vertical-align:top}</style>"
        f"<h1>grid-agent API</h1><table>{rows}</table>"
        "<p>Machine-readable: <a href=openapi.json>openapi.json</a></p></html>"
    )


@serve.deployment(
    num_replicas=1,
    max_ongoing_requests=100,
    health_check_period_s=5,
    health_check_timeout_s=10,
    graceful_shutdown_timeout_s=5,
    logging_config={"enable_access_log": False},
    ray_actor_options={
        "num_cpus": 0,
        "resources": {"node:__internal_head__": 0.001},
        "label_selector": dict([HEAD_LABEL]),
    },
)
@serve.ingress(app)
class GridAgent:
    """One replica: the agent, and its HTTP face."""

    async def __init__(self, settings: dict[str, Any]) -> None:  # type: ignore[misc]
        parsed = Settings.model_validate(settings)
        self._agent = Agent(parsed, ray.get_runtime_context().gcs_address, os.environ)
        # On loopback reading is free; an API that is open to other machines asks for the token.
        self._token_file = None if is_loopback(parsed.http.host) else parsed.http.token_file
        self.desk = people_routes.Desk(
            say=self._agent.say,
            knows=lambda name: self._agent.why(name) is not None,
            token_file=parsed.http.token_file or str(self._agent.paths.api_token),
            settings=parsed,
        )
        await self._agent.start()

    async def check_health(self) -> None:
        """Serve restarts the replica when the loop has stopped, or when a newer agent has acted."""
        if self._agent.gate.deposed is not None:
            raise RuntimeError(self._agent.gate.deposed)
        late_s = self._agent.late_s()
        if late_s is not None and self._agent.ever_ran():
            message = f"the agent's loop has not run for {late_s:.1f} s"
            raise RuntimeError(message)

    async def __del__(self) -> None:
        await self._agent.stop()

    @app.get("/health")
    async def health(self, request: Request) -> JSONResponse:
        """State of the cluster: 200 on pass and warn, 503 on fail."""
        self._may_read(request)
        body = self._agent.health()
        return JSONResponse(body, status_code=HTTP[body["status"]])

    @app.get("/livez")
    async def livez(self, request: Request) -> JSONResponse:
        """503 when the agent's loop has not run for three intervals."""
        self._may_read(request)
        late_s = self._agent.late_s()
        if late_s is not None:
            return JSONResponse({"status": "fail", "late_s": round(late_s, 3)}, status_code=503)
        return JSONResponse({"status": "pass"})

    @app.get("/readyz")
    async def readyz(self, request: Request) -> JSONResponse:
        """503 until the agent runs and has heard from the GCS."""
        self._may_read(request)
        ready = self._agent.ready()
        return JSONResponse({"status": "pass" if ready else "fail"}, status_code=200 if ready else 503)

    @app.get("/metrics")
    async def metrics(self, request: Request) -> Response:
        """State, heartbeats, repairs and incidents as Prometheus text."""
        self._may_read(request)
        return Response(self._agent.metrics(), media_type=METRICS)

    @app.get("/incidents")
    async def incidents(self, request: Request) -> JSONResponse:
        """Every incident this agent knows, newest first, each with its timeline."""
        self._may_read(request)
        return JSONResponse({"incidents": self._agent.incidents()})

    @app.get("/incidents/{number}")
    async def incident(self, number: int, request: Request) -> JSONResponse:
        """One incident: timeline, history, and what its hosts showed before anything was done. 404: none."""
        self._may_read(request)
        story = await self._agent.incident(number)
        if story is None:
            raise HTTPException(404, f"there is no incident {number}")
        return JSONResponse(story)

    @app.get("/why/{node}")
    async def why(self, node: str, request: Request) -> JSONResponse:
        """One node: what is seen, concluded, done, refused, and what comes next. 404: no such node."""
        self._may_read(request)
        story = self._agent.why(node)
        if story is None:
            raise HTTPException(404, f"there is no node {node[:80]!r} in this cluster")
        return JSONResponse(story)

    @app.get("/docs", include_in_schema=False)
    async def docs(self, request: Request) -> HTMLResponse:
        """A page of the routes, without scripts."""
        self._may_read(request)
        return HTMLResponse(_docs_page(request.app.openapi()))

    @app.get("/openapi.json", include_in_schema=False)
    async def openapi(self, request: Request) -> JSONResponse:
        """The same for machines."""
        self._may_read(request)
        return JSONResponse(request.app.openapi())

    def _may_read(self, request: Request) -> None:
        """A cluster whose API is open to other machines asks for the token for reads too."""
        if self._token_file is None:
            return
        given = request.headers.get("authorization", "").removeprefix("Bearer ").strip()
        try:
            wanted = Path(self._token_file).expanduser().read_text(encoding="utf-8").strip()
        except (OSError, ValueError):
            wanted = ""
        if not wanted:
            raise HTTPException(401, f"nobody may read: {self._token_file} holds no token")
        if not hmac.compare_digest(given.encode(), wanted.encode()):
            raise HTTPException(401, "send the token of http.token_file as 'Authorization: Bearer ...'")


def build(settings: Settings) -> serve.Application:
    """The application for a cluster file. Typed, so that `serve deploy` validates its `args`."""
    return GridAgent.bind(settings.model_dump(mode="json"))  # type: ignore[attr-defined]
