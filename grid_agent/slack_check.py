"""Whether Slack's token, channel and scopes are right, by doing once what the agent does.

Apart from the command, because Slack's libraries take a while to import.
"""

from pathlib import Path
from uuid import uuid4

from config.settings import Settings, Slack
from grid_agent.core.slack_text import Message, escape
from grid_agent.edges.slack import Delivered, Refused, Retry, SlackClient

Row = dict[str, str]


async def rows(settings: Settings, wanted: Slack, token_file: Path) -> list[Row]:
    """One row for each step: {status pass|warn|fail, name, detail}; after a failure no further step."""
    client = SlackClient(token_file, wanted.base_url)
    try:
        return await _checks(client, settings.cluster, wanted.channel)
    finally:
        await client.close()


async def _checks(client: SlackClient, cluster: str, channel: str) -> list[Row]:
    """Each step needs the one before."""
    who = await client.who()
    if isinstance(who, Retry | Refused):
        return [_row("fail", "token", _why(who))]
    name = f"{who.get('user', '?')} in {who.get('team', '?')}"
    rows = [_row("pass", "token", name)]
    key = str(uuid4())
    said = await client.post(
        channel, _message(cluster, "can post here. In a moment this line is edited."), key=key
    )
    if not isinstance(said, Delivered):
        return [*rows, _row("fail", "post", _why(said))]
    rows.append(_row("pass", "post", f"to {said.channel_id}, message {said.ts}"))
    found = await client.find(said.channel_id, key)
    edited = await client.update(
        said.channel_id, said.ts, _message(cluster, "can post and edit here: all is well.")
    )
    ok = isinstance(edited, Delivered)
    rows.append(_row("pass", "edit", "done") if ok else _row("fail", "edit", _why(edited)))
    if found == said:
        return [*rows, _row("pass", "history", "the message was found in the channel")]
    why = "the message was not found" if found is None or isinstance(found, Delivered) else found.reason
    advice = "a post whose answer got lost may appear twice; add channels:history (private: groups:history)"
    return [*rows, _row("warn", "history", f"{why}: {advice}")]


def _message(cluster: str, text: str) -> Message:
    line = f"grid-agent of cluster {escape(cluster, 60)} {text}"
    block = {"type": "section", "text": {"type": "mrkdwn", "text": line, "verbatim": True}}
    return Message(line, (block,))


def _why(said: Retry | Refused | Delivered) -> str:
    if isinstance(said, Refused):
        return f"{said.reason}: {said.what_to_do}"
    return said.reason if isinstance(said, Retry) else ""


def _row(status: str, name: str, detail: str) -> Row:
    return {"status": status, "name": name, "detail": detail}
