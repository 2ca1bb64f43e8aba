"""`grid-agent validate`: asks, prints, and turns the checks into an exit code."""

import asyncio
import json
import os
from collections.abc import Callable
from typing import Annotated, Any

import typer
from rich.console import Console

from config.paths import StatePaths
from config.settings import Settings
from grid_agent import api_client, ray_view, show
from grid_agent import validate as validation
from grid_agent import validate_address as by_address
from grid_agent import validate_report as reports
from grid_agent.commands import common
from grid_agent.core import raystart
from grid_agent.edges.transports import Transports
from grid_agent.exits import Exit
from grid_agent.monitor import SEVERITY, Monitor, watch

Ask = Callable[[], dict[str, Any]]


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
    if address is not None and config is not None:
        common.fail("--address goes without -c: there is no file of it", Exit.USAGE)
    settings = None if address is not None else common.load(config)
    common.refuse_malformed(settings)
    environ = dict(os.environ)
    if settings is None:
        where, exports = common.gcs_address(address or ""), {}
        report = asyncio.run(_of_address(where, dashboard, environ))
    else:
        where, exports = raystart.connect_address(settings), common.exports(common.in_force(settings))
        environ |= {name: value for name, value in exports.items() if name.startswith("RAY_AUTH")}
        report = asyncio.run(_of_file(settings, exports, environ))
    code = validation.verdict(report.checks)
    if output is common.Format.TEXT:
        rows = [(c.status, c.name, c.detail) for c in report.checks]
        typer.echo("\n".join(show.table(("STATUS", "CHECK", "DETAIL"), rows)))
    has_agent = any(check.name == "agent" and not check.unreachable for check in report.checks)
    ask = _agent(exports) if has_agent else _raylets(where, environ)
    asked: reports.Asked = "agent" if has_agent else "raylets"
    seen = _watch(ask, monitor, output, asked) if monitor is not None else None
    if seen is not None:
        code = max(code, seen.worst, key=SEVERITY.index)
        if output is common.Format.TEXT:
            typer.echo("\n".join(seen.lines()))
    if output is common.Format.JSON:
        found = reports.document(report, code, seen.report() if seen else None)
        typer.echo(json.dumps(found, indent=2))
    raise typer.Exit(code)


def _agent(exports: dict[str, str]) -> Ask:
    """Reads the agent's health report."""
    token = common.read_secret(exports["GRID_AGENT_TOKEN_FILE"])
    return lambda: api_client.get(exports["GRID_AGENT_URL"], "/health", token)


def _raylets(where: str, environ: dict[str, str]) -> Ask:
    """Asks the GCS, and every raylet."""
    from grid_agent.watch_raylets import Raylets  # noqa: PLC0415 - it loads gRPC

    return Raylets(lambda: ray_view.ask(where, environ), where)


def _watch(ask: Ask, seconds: float, output: common.Format, asked: reports.Asked) -> Monitor:
    if output is not common.Format.TEXT:
        return watch(ask, seconds, lambda _: None, asked=asked)
    if asked == "raylets":
        typer.echo("no agent is asked: what follows is from the GCS and a check of every raylet")
    return watch(ask, seconds, typer.echo, Console(), asked)


async def _of_file(settings: Settings, exports: dict[str, str], environ: dict[str, str]) -> reports.Report:
    ways = Transports(settings, StatePaths.of(settings.cluster, os.environ))
    return await validation.validate(
        settings,
        ways.call,
        exports["GRID_AGENT_URL"],
        lambda: ray_view.look(raystart.connect_address(settings), settings, environ),
        api_token=common.read_secret(exports["GRID_AGENT_TOKEN_FILE"]),
        ray_token=common.read_secret(exports.get("RAY_AUTH_TOKEN_PATH")),
        environ=dict(os.environ),
    )


async def _of_address(address: str, dashboard: str | None, environ: dict[str, str]) -> reports.Report:
    return await by_address.validate_address(
        address,
        lambda: ray_view.look(address, None, environ),
        dashboard and dashboard.rstrip("/"),
        ray_token=common.read_secret(environ.get("RAY_AUTH_TOKEN_PATH")),
        environ=environ,
    )
