"""What a person tells the agent: pause, cordon, repair, close the breaker. Exit 5: it refuses."""

import getpass
import json
import os
import re
import socket
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote, urlsplit

import typer

from config import loader
from config.checks import is_loopback
from config.paths import StatePaths
from grid_agent import api_client
from grid_agent.commands import common
from grid_agent.commands.common import Format, Output, Url
from grid_agent.exits import Exit

TIMES = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}
CODES = {404: Exit.USAGE, 400: Exit.USAGE, 401: Exit.USAGE, 409: Exit.REFUSED, 503: Exit.UNREACHABLE}
Reason = Annotated[str, typer.Option("--reason", help="Why; shown wherever it is in force.")]
Node = Annotated[str, typer.Argument(help="A node's name.")]
For = Annotated[str, typer.Option("--for", metavar="TIME", help="How long: 90s, 30m, 2h or 3d.")]


def pause(
    reason: Reason,
    for_: For = "1h",
    url: Url = api_client.DEFAULT_URL,
    output: Output = Format.TEXT,
) -> None:
    """Repair nothing for a while (default: an hour). Watching and reporting go on."""
    _tell(url, "/pause", {"reason": reason, "for_s": seconds(for_)}, output)


def resume(reason: Reason = "done", url: Url = api_client.DEFAULT_URL, output: Output = Format.TEXT) -> None:
    """End a pause. Exit 5: nothing is paused."""
    _tell(url, "/resume", {"reason": reason}, output)


def cordon(
    node: Node,
    reason: Reason,
    for_: Annotated[
        str | None, typer.Option("--for", metavar="TIME", help="How long; default: until uncordon.")
    ] = None,
    url: Url = api_client.DEFAULT_URL,
    output: Output = Format.TEXT,
) -> None:
    """Leave a node alone, whatever becomes of it. Ray goes on using it."""
    body = {"reason": reason, "for_s": None if for_ is None else seconds(for_)}
    _tell(url, f"/nodes/{quote(node, safe='')}/cordon", body, output)


def uncordon(
    node: Node, reason: Reason = "done", url: Url = api_client.DEFAULT_URL, output: Output = Format.TEXT
) -> None:
    """Take a node into the agent's hands again. Exit 5: it is not cordoned."""
    _tell(url, f"/nodes/{quote(node, safe='')}/uncordon", {"reason": reason}, output)


def repair(
    node: Node,
    reason: Reason,
    disrupt: Annotated[
        bool, typer.Option("--disrupt", help="Although work that still runs there may be lost.")
    ] = False,
    url: Url = api_client.DEFAULT_URL,
    output: Output = Format.TEXT,
) -> None:
    """Restart a node now; one that runs is drained first. Exit 5: a guard refuses, and says why."""
    body = {"reason": reason, "disrupt": disrupt}
    _tell(url, f"/nodes/{quote(node, safe='')}/repair", body, output)


breaker = typer.Typer(
    help="The breaker that stops every repair when repairs do not help.", no_args_is_help=True
)


@breaker.command()
def close(reason: Reason, url: Url = api_client.DEFAULT_URL, output: Output = Format.TEXT) -> None:
    """Let repairs begin again, after you have looked. Exit 5: it is closed already."""
    _tell(url, "/breaker/close", {"reason": reason}, output)


def seconds(text: str) -> float:
    """A time such as 30m, in seconds; exit 2 where it is none."""
    found = re.fullmatch(r"([0-9]{1,7}(?:\.[0-9]{1,3})?)([smhd])", text.strip())
    if not found:
        common.fail(f"--for {text[:40]!r} is no time: write it like 90s, 30m, 2h or 3d", Exit.USAGE)
    return float(found.group(1)) * TIMES[found.group(2)]


def _tell(url: str, path: str, body: dict[str, Any], output: Format) -> None:
    words = {**body, "by": f"{getpass.getuser()}@{socket.gethostname()}"}
    token = common.token() or own_token(url)
    if token is None:
        hint = 'eval "$(grid-agent env -c FILE)" sets it'
        common.fail(
            f"a change needs the API token: set GRID_AGENT_TOKEN_FILE to its file; {hint}", Exit.USAGE
        )
    try:
        answer = api_client.post(url, path, words, token)
    except api_client.ApiError as error:
        common.fail(str(error), Exit.UNREACHABLE)
    except api_client.DeclinedError as error:
        common.fail(str(error), CODES.get(error.status, Exit.REFUSED))
    typer.echo(json.dumps(answer, indent=2) if output is Format.JSON else str(answer.get("text", "")))


def own_token(url: str) -> str | None:
    """The API token of the one cluster of this user on this machine that answers at this port."""
    try:
        parts = urlsplit(url)
        if not is_loopback(parts.hostname or ""):
            return None
        port = parts.port or 80
    except ValueError:
        return None
    found = []
    for file in StatePaths.of("*", os.environ).root.parent.glob("*/settings.json"):
        try:
            settings = loader.loads(file.read_text(encoding="utf-8"), str(file))
        except (OSError, UnicodeDecodeError, loader.ConfigError):
            continue
        if settings.http.port == port:
            own = StatePaths(file.parent).api_token
            found.append(str(Path(settings.http.token_file or own).expanduser()))
    return common.read_secret(found[0]) if len(found) == 1 else None
