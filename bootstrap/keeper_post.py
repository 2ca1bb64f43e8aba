"""Posts to Slack of a head that is down, for the keeper: `python -m bootstrap.keeper_post STATE_FOLDER`.

A process of its own, so that the keeper need not load what it takes. Reads the outage as JSON on standard
input; writes {channel_id, ts} of the message, or {error}, to standard output. The agent, once it is back,
goes on with the same message.
"""

import asyncio
import json
import sys
import time
from pathlib import Path
from typing import Any

from config import loader
from config.paths import StatePaths
from grid_agent.core import head, slack_text
from grid_agent.edges.slack import Delivered, SlackClient


async def post(root: Path, body: dict[str, Any]) -> dict[str, Any]:
    """Post or edit the message of this outage.

    Args:
        root: The state folder.
        body: The outage (`bootstrap.outage`).

    Returns:
        channel_id and ts, or error.
    """
    state = StatePaths(root)
    settings = loader.loads(state.settings.read_text(encoding="utf-8"), str(state.settings), {})
    if settings.slack is None:
        return {"error": "no Slack in the file"}
    incident = head.incident(head.outage(body), settings.head.name, settings.head.host)
    message = slack_text.root(incident, time.time(), settings.cluster)
    client = SlackClient(state.slack_token, settings.slack.base_url)
    known = body.get("slack")
    try:
        if known:
            said = await client.update(known["channel_id"], known["ts"], message)
        else:
            said = await client.post(settings.slack.channel, message, key=head.key(body["began_at"]))
    finally:
        await client.close()
    if isinstance(said, Delivered):
        return known or {"channel_id": said.channel_id, "ts": said.ts}
    return {"error": said.reason}


def main() -> None:
    """Read, post, answer."""
    try:
        answer = asyncio.run(post(Path(sys.argv[1]), json.loads(sys.stdin.read())))
    except (OSError, ValueError, KeyError, IndexError) as error:
        answer = {"error": f"{type(error).__name__}: {error}"}
    print(json.dumps(answer))  # noqa: T201


if __name__ == "__main__":
    main()
