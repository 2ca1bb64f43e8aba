"""What the commands share: their options, reading the file, asking the agent, printing, failing."""

import json
import os
import re
import shlex
from collections.abc import Callable, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from config import loader, tuning
from config.checks import bracketed
from config.paths import StatePaths
from config.settings import Settings
from grid_agent import api_client
from grid_agent.core import raystart
from grid_agent.exits import Exit

_ADDRESS = re.compile(r"([A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\]):([0-9]{1,5})")


class Format(StrEnum):
    """How to print."""

    TEXT = "text"
    JSON = "json"


Output = Annotated[Format, typer.Option("-o", "--output", help="text, or one JSON document on stdout.")]
Url = Annotated[str, typer.Option("--url", envvar="GRID_AGENT_URL", help="Where the agent answers.")]
Config = Annotated[Path | None, typer.Option("-c", "--config", help="The cluster file.")]


def fail(message: str, code: Exit) -> NoReturn:
    """Say why on stderr, and exit."""
    typer.echo(f"grid-agent: {message}", err=True)
    raise typer.Exit(code)


def load(config: Path | None) -> Settings:
    """The cluster file, with the overrides of this environment; exit 2 with every problem it has."""
    try:
        return loader.load(config or loader.default_file(), os.environ)
    except loader.ConfigError as error:
        fail(str(error), Exit.USAGE)


def in_force(settings: Settings) -> Settings:
    """The settings that what runs was started with, as `start.py` wrote them down; else the file's.

    They hold what was given to start.py alone: its GRID_AGENT__ variables, or the file as it was then.
    """
    state = StatePaths.of(settings.cluster, os.environ)
    try:
        return loader.loads(state.settings.read_text(encoding="utf-8"), str(state.settings))
    except (OSError, UnicodeDecodeError, loader.ConfigError):
        return settings


def refuse_malformed(settings: Settings | None) -> None:
    """Exit 2 where a variable would crash Ray's processes, or this one when it loads Ray."""
    refused = tuning.malformed(os.environ)
    for node in settings.nodes if settings else ():
        refused += [f"env of {node.name}: {text}" for text in tuning.malformed(node.env)]
    if refused:
        fail("\n".join(refused), Exit.USAGE)


def gcs_address(text: str) -> str:
    """An address given on the command line; exit 2 where it is none."""
    found = _ADDRESS.fullmatch(text)
    if not found or not 1 <= int(found.group(2)) <= 65_535:
        fail(f"--address {text[:80]!r} is no address of a GCS: write it like 10.0.0.10:6379", Exit.USAGE)
    return text


def exports(settings: Settings) -> dict[str, str]:
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


def export_lines(values: dict[str, str]) -> list[str]:
    """Lines for a shell."""
    return [f"export {name}={shlex.quote(value)}" for name, value in values.items()]


def read_secret(path: str | None) -> str | None:
    """A token, where there is one; without it the check that needs it says so."""
    try:
        return Path(path).expanduser().read_text(encoding="utf-8").strip() if path else None
    except (OSError, UnicodeDecodeError):
        return None


def ask(url: str, path: str) -> dict[str, Any]:
    """The agent's answer; exit 4 where there is none."""
    try:
        return api_client.get(url, path, token())
    except api_client.ApiError as error:
        fail(str(error), Exit.UNREACHABLE)


def token() -> str | None:
    """The API token of GRID_AGENT_TOKEN_FILE, where it is set and readable."""
    path = os.environ.get("GRID_AGENT_TOKEN_FILE")
    if not path:
        return None
    try:
        return Path(path).expanduser().read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        fail(f"GRID_AGENT_TOKEN_FILE: cannot read {path}: {error}", Exit.USAGE)


def show(body: dict[str, Any], output: Format, text: Callable[[dict[str, Any]], Sequence[str]]) -> None:
    """As text, or as one JSON document."""
    if output is Format.JSON:
        typer.echo(json.dumps(body, indent=2))
    else:
        typer.echo("\n".join(text(body)))
