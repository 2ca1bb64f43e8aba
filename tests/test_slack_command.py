"""`grid-agent slack test` against a server that behaves as Slack does."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from grid_agent.cli import app
from tests.support.slack_server import SlackServer

TOKEN = "xoxb-CANARY-0123456789"
FILE = """
cluster: lab
nodes: [{{name: head, host: 127.0.0.1, role: head}}]
slack: {{channel: {channel}, base_url: "{url}"}}
"""


@pytest.fixture
def slack() -> Iterator[SlackServer]:
    with SlackServer(TOKEN) as server:
        yield server


def run(
    slack: SlackServer, folder: Path, *flags: str, channel: str = "C0123456789", token: str = TOKEN
) -> Result:
    file = folder / "lab.yaml"
    file.write_text(FILE.format(channel=channel, url=slack.base_url))
    environ = {"SLACK_BOT_TOKEN": token, "XDG_STATE_HOME": str(folder)}
    result = CliRunner().invoke(app, ["slack", "test", "-c", str(file), *flags], env=environ)
    assert TOKEN not in result.output
    return result


def test_all_is_well(slack: SlackServer, tmp_path: Path) -> None:
    result = run(slack, tmp_path, "-o", "json")
    assert result.exit_code == 0, result.output
    body = json.loads(result.stdout)
    assert [(r["status"], r["name"]) for r in body["checks"]] == [
        ("pass", "token"),
        ("pass", "post"),
        ("pass", "edit"),
        ("pass", "history"),
    ]
    (message,) = slack.messages
    assert "all is well" in message["text"]
    assert len(message["edits"]) == 1


def test_without_the_history_scope_it_warns_and_says_which(slack: SlackServer, tmp_path: Path) -> None:
    slack.history_scope = False
    result = run(slack, tmp_path)
    assert result.exit_code == 1
    assert "channels:history" in result.stdout


@pytest.mark.parametrize(
    ("trouble", "step", "words"),
    [
        ({"token": "xoxb-wrong-1234567"}, "token", "invalid_auth"),
        ({"channel": "C0NOSUCH00"}, "post", "channel_not_found"),
    ],
)
def test_what_is_wrong_is_said(
    slack: SlackServer, tmp_path: Path, trouble: dict[str, str], step: str, words: str
) -> None:
    result = run(slack, tmp_path, **trouble)
    assert result.exit_code == 3
    assert f"fail    {step}" in result.stdout
    assert words in result.stdout


def test_without_a_token_or_a_section_it_says_what_to_do(slack: SlackServer, tmp_path: Path) -> None:
    result = run(slack, tmp_path, token="")
    assert result.exit_code == 2
    assert "SLACK_BOT_TOKEN" in result.output
    (tmp_path / "bare.yaml").write_text("cluster: lab\nnodes: [{name: head, host: 127.0.0.1, role: head}]\n")
    result = CliRunner().invoke(app, ["slack", "test", "-c", str(tmp_path / "bare.yaml")])
    assert result.exit_code == 2
    assert "slack:" in result.output


def test_a_silent_slack_is_said(slack: SlackServer, tmp_path: Path) -> None:
    slack.fail("http500")
    assert run(slack, tmp_path).exit_code == 3
