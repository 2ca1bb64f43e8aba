"""`grid-agent slack test`: whether the token, the channel and the scopes are right, by doing it once."""

import asyncio
import os
import tempfile
from pathlib import Path
from typing import Any

import typer

from config.paths import StatePaths
from config.settings import Settings
from config.settings import Slack as SlackSettings
from grid_agent import show
from grid_agent.commands import common
from grid_agent.commands.common import Config, Format, Output
from grid_agent.exits import Exit

slack = typer.Typer(help="Slack, as the agent uses it.", no_args_is_help=True)


@slack.callback()
def _group() -> None:
    """Slack, as the agent uses it."""


@slack.command("test")
def try_out(config: Config = None, output: Output = Format.TEXT) -> None:
    """Who the token is, a post, an edit and a look at it: exit 0 pass, 1 warn, 2 not set up, 3 fail."""
    settings = common.load(config)
    if settings.slack is None:
        common.fail('the cluster file has no slack section: add slack: {channel: "C..."}', Exit.USAGE)
    from grid_agent import slack_check  # noqa: PLC0415 - no other command should wait for Slack's libraries

    with tempfile.TemporaryDirectory(prefix="grid-agent-") as folder:
        rows = asyncio.run(
            slack_check.rows(settings, settings.slack, _token_file(settings, settings.slack, Path(folder)))
        )
    status = next((s for s in ("fail", "warn") if any(row["status"] == s for row in rows)), "pass")
    common.show({"status": status, "checks": rows}, output, _lines)
    raise typer.Exit({"pass": Exit.PASS, "warn": Exit.WARN, "fail": Exit.FAIL}[status])


def _lines(body: dict[str, Any]) -> list[str]:
    rows = [(row["status"], row["name"], row["detail"]) for row in body["checks"]]
    return show.table(("STATUS", "CHECK", "DETAIL"), rows)


def _token_file(settings: Settings, wanted: SlackSettings, folder: Path) -> Path:
    """The token of this environment, else the one that `start.py` has kept."""
    kept = StatePaths.of(settings.cluster, os.environ).slack_token
    given = os.environ.get(wanted.token_env, "").strip()
    if not given:
        if not kept.exists():
            common.fail(
                f"there is no Slack token: set {wanted.token_env} to the bot token (xoxb-...)", Exit.USAGE
            )
        return kept
    file = folder / "token"
    file.touch(0o600)
    file.write_text(given, encoding="utf-8")
    return file
