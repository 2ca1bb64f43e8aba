"""The `grid-agent` command. Each command asks one thing and turns the answer into text and exit code."""

import asyncio
import json
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from config import loader
from config.checks import bracketed
from config.paths import StatePaths
from config.settings import Settings
from grid_agent import api_client, show
from grid_agent import validate as validation
from grid_agent.core import raystart
from grid_agent.edges.transports import Transports
from grid_agent.exits import OF_STATUS, Exit
from grid_agent.monitor import SEVERITY, watch

app = typer.Typer(
    name="grid-agent",
    help="Watch and heal a Ray cluster on your own machines.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


class Format(StrEnum):
    """How to print."""

    TEXT = "text"
    JSON = "json"


Output = Annotated[Format, typer.Option("-o", "--output", help="text, or one JSON document on stdout.")]
Url = Annotated[str, typer.Option("--url", envvar="GRID_AGENT_URL", help="Where the agent answers.")]
Config = Annotated[Path | None, typer.Option("-c", "--config", help="The cluster file.")]


@app.command()
def status(url: Url = api_client.DEFAULT_URL, output: Output = Format.TEXT) -> None:
    """Show every node: exit 0 pass, 1 warn, 3 fail, 4 nobody answers."""
    body = _ask(url, "/health")
    _print(body, output, show.health)
    raise typer.Exit(OF_STATUS[body["status"]])


@app.command()
def validate(
    config: Config = None,
    monitor: Annotated[
        float | None, typer.Option(min=1, metavar="SECONDS", help="Then watch for so long, and sum up.")
    ] = None,
    output: Output = Format.TEXT,
) -> None:
    """Check a cluster against its file: hosts, Ray, authentication, agent, nodes. Needs no agent running."""
    settings = _load(config)
    exports = _exports(settings)
    url = exports["GRID_AGENT_URL"]
    checks = asyncio.run(_checks(settings, exports))
    code = validation.verdict(checks)
    body = validation.as_json(settings, checks)
    if output is Format.TEXT:
        rows = [(c["status"], c["name"], c["detail"]) for c in body["checks"]]
        typer.echo("\n".join(show.table(("STATUS", "CHECK", "DETAIL"), rows)))
    if monitor is not None:
        say = typer.echo if output is Format.TEXT else lambda _: None
        token = _read(exports["GRID_AGENT_TOKEN_FILE"])
        seen = watch(lambda: api_client.get(url, "/health", token), monitor, say)
        code = max(code, seen.worst, key=SEVERITY.index)
        body["monitor"] = seen.report()
        if output is Format.TEXT:
            typer.echo("\n".join(seen.lines()))
    if output is Format.JSON:
        typer.echo(json.dumps(body, indent=2))
    raise typer.Exit(code)


async def _checks(settings: Settings, exports: dict[str, str]) -> list[validation.Check]:
    ways = Transports(settings, StatePaths.of(settings.cluster, os.environ))
    return await validation.validate(
        settings,
        lambda node, request, timeout_s: ways(node).call(request, timeout_s),
        exports["GRID_AGENT_URL"],
        api_token=_read(exports["GRID_AGENT_TOKEN_FILE"]),
        ray_token=_read(exports.get("RAY_AUTH_TOKEN_PATH")),
    )


def _read(path: str | None) -> str | None:
    """A token, where there is one; without it the check that needs it says so."""
    try:
        return Path(path).expanduser().read_text(encoding="utf-8").strip() if path else None
    except (OSError, UnicodeDecodeError):
        return None


@app.command()
def incidents(
    incident_id: Annotated[int | None, typer.Argument(metavar="[ID]", help="One incident, in full.")] = None,
    url: Url = api_client.DEFAULT_URL,
    output: Output = Format.TEXT,
) -> None:
    """List the incidents, newest first, or tell one from beginning to end."""
    body = _ask(url, "/incidents")
    if incident_id is None:
        _print(body, output, show.incidents)
        return
    found = next((i for i in body["incidents"] if i["id"] == incident_id), None)
    if found is None:
        _fail(f"there is no incident {incident_id}: `grid-agent incidents` lists them", Exit.USAGE)
    _print(found, output, show.incident)


@app.command()
def why(
    node: Annotated[str, typer.Argument(help="A node's name.")],
    url: Url = api_client.DEFAULT_URL,
    output: Output = Format.TEXT,
) -> None:
    """Tell one node's story: what is seen, concluded, done, refused, and what comes next."""
    known = [n["name"] for n in _ask(url, "/health")["nodes"]]
    if node not in known:
        _fail(f"there is no node {node!r}; this cluster has {', '.join(known)}", Exit.USAGE)
    _print(_ask(url, f"/why/{node}"), output, show.why)


@app.command()
def env(config: Config = None) -> None:
    """Print export lines for `serve status`, `ray job submit` and drivers: eval "$(grid-agent env)"."""
    for name, value in _exports(_load(config)).items():
        typer.echo(f"export {name}={shlex.quote(value)}")


def _exports(settings: Settings) -> dict[str, str]:
    """What Ray's own tools and drivers need to reach this cluster."""
    state = StatePaths.of(settings.cluster, os.environ)
    dashboard = f"http://127.0.0.1:{settings.ray.dashboard_port}"
    host = settings.http.host if settings.http.host not in ("0.0.0.0", "::") else "127.0.0.1"  # noqa: S104
    lines = {
        "RAY_ADDRESS": raystart.connect_address(settings),
        "RAY_API_SERVER_ADDRESS": dashboard,
        "RAY_DASHBOARD_ADDRESS": dashboard,
        "RAY_AUTH_MODE": settings.auth,
        "GRID_AGENT_URL": f"http://{bracketed(host)}:{settings.http.port}",
        "GRID_AGENT_TOKEN_FILE": settings.http.token_file or str(state.api_token),
    }
    if settings.auth == "token":
        lines["RAY_AUTH_TOKEN_PATH"] = str(state.ray_token)
    return lines


def _load(config: Path | None) -> Settings:
    try:
        return loader.load(config or loader.default_file(), os.environ)
    except loader.ConfigError as error:
        _fail(str(error), Exit.USAGE)


def _ask(url: str, path: str) -> dict[str, Any]:
    try:
        return api_client.get(url, path, _token())
    except api_client.ApiError as error:
        _fail(str(error), Exit.UNREACHABLE)


def _token() -> str | None:
    """The API token of GRID_AGENT_TOKEN_FILE, where it is set and readable."""
    path = os.environ.get("GRID_AGENT_TOKEN_FILE")
    if not path:
        return None
    try:
        return Path(path).expanduser().read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        _fail(f"GRID_AGENT_TOKEN_FILE: cannot read {path}: {error}", Exit.USAGE)


def _print(body: dict[str, Any], output: Format, text: Callable[[dict[str, Any]], Sequence[str]]) -> None:
    if output is Format.JSON:
        typer.echo(json.dumps(body, indent=2))
    else:
        typer.echo("\n".join(text(body)))


def _fail(message: str, code: Exit) -> NoReturn:
    typer.echo(f"grid-agent: {message}", err=True)
    raise typer.Exit(code)


def main() -> None:
    """Run; Ctrl-C is exit 130, a closed pipe is no error."""
    try:
        app()
    except KeyboardInterrupt:
        sys.exit(Exit.INTERRUPTED)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(Exit.PASS)
