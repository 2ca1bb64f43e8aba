"""`grid-agent validate`: asks, prints, and turns the checks into an exit code."""

import asyncio
import json
import os
from typing import Annotated

import typer
from rich.console import Console

from config.paths import StatePaths
from config.settings import Settings
from grid_agent import api_client, show
from grid_agent import validate as validation
from grid_agent import validate_address as by_address
from grid_agent import validate_report as reports
from grid_agent.commands import common
from grid_agent.core import raystart
from grid_agent.edges.transports import Transports
from grid_agent.exits import Exit
from grid_agent.monitor import SEVERITY, Monitor, watch
from grid_agent.ray_view import look


def validate(
    *,
    config: common.Config = None,
    address: Annotated[
        str | None,
        typer.Option(metavar="HOST:PORT", help="A GCS: check a cluster that grid-agent did not start."),
    ] = None,
    dashboard: Annotated[
        str | None,
        typer.Option(metavar="URL", help="With --address: Ray's dashboard, if not where its GCS says."),
    ] = None,
    monitor: Annotated[
        float | None, typer.Option(min=1, metavar="SECONDS", help="Then watch for so long, and sum up.")
    ] = None,
    schema: Annotated[bool, typer.Option("--schema", help="Print the JSON schema of -o json.")] = False,
    output: common.Output = common.Format.TEXT,
) -> None:
    """Check a cluster against its file. Exit 0 pass, 1 warn, 2 usage, 3 fail, 4 nobody answers.

    Looks at hosts, Ray's nodes and settings, dashboard, application, authentication, agent. Needs no agent.
    """
    if schema:
        typer.echo(reports.SCHEMA.read_text(encoding="utf-8"), nl=False)
        return
    if address is not None and (config is not None or monitor is not None):
        common.fail("--address goes without -c and --monitor: there is no file and no agent", Exit.USAGE)
    settings = None if address is not None else common.load(config)
    common.refuse_malformed(settings)
    if settings is None:
        report = asyncio.run(_of_address(common.gcs_address(address or ""), dashboard))
        url = token_file = ""
    else:
        exports = common.exports(common.in_force(settings))
        url, token_file = exports["GRID_AGENT_URL"], exports["GRID_AGENT_TOKEN_FILE"]
        report = asyncio.run(_of_file(settings, exports))
    code = validation.verdict(report.checks)
    if output is common.Format.TEXT:
        rows = [(c.status, c.name, c.detail) for c in report.checks]
        typer.echo("\n".join(show.table(("STATUS", "CHECK", "DETAIL"), rows)))
    seen = _watch(url, token_file, monitor, output) if monitor is not None else None
    if seen is not None:
        code = max(code, seen.worst, key=SEVERITY.index)
        if output is common.Format.TEXT:
            typer.echo("\n".join(seen.lines()))
    if output is common.Format.JSON:
        found = reports.document(report, code, seen.report() if seen else None)
        typer.echo(json.dumps(found, indent=2))
    raise typer.Exit(code)


def _watch(url: str, token_file: str, seconds: float, output: common.Format) -> Monitor:
    token = common.read_secret(token_file)
    as_text = output is common.Format.TEXT
    console = Console() if as_text else None
    return watch(
        lambda: api_client.get(url, "/health", token),
        seconds,
        typer.echo if as_text else lambda _: None,
        console,
    )


async def _of_file(settings: Settings, exports: dict[str, str]) -> reports.Report:
    ways = Transports(settings, StatePaths.of(settings.cluster, os.environ))
    environ = {**os.environ, "RAY_AUTH_MODE": exports["RAY_AUTH_MODE"]}
    if "RAY_AUTH_TOKEN_PATH" in exports:
        environ["RAY_AUTH_TOKEN_PATH"] = exports["RAY_AUTH_TOKEN_PATH"]
    return await validation.validate(
        settings,
        lambda node, request, timeout_s: ways(node).call(request, timeout_s),
        exports["GRID_AGENT_URL"],
        lambda: look(raystart.connect_address(settings), settings, environ),
        api_token=common.read_secret(exports["GRID_AGENT_TOKEN_FILE"]),
        ray_token=common.read_secret(exports.get("RAY_AUTH_TOKEN_PATH")),
        environ=dict(os.environ),
    )


async def _of_address(address: str, dashboard: str | None) -> reports.Report:
    environ = dict(os.environ)
    return await by_address.validate_address(
        address,
        lambda: look(address, None, environ),
        dashboard and dashboard.rstrip("/"),
        ray_token=common.read_secret(environ.get("RAY_AUTH_TOKEN_PATH")),
        environ=environ,
    )
