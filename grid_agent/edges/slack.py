"""One message to Slack, and what became of it: Delivered | Retry | Refused. Never an exception.

Owns the HTTP session and the token; `edges.outbox` decides about order and repetition, and
`slack_answers` what an answer means. Protocol: https://docs.slack.dev/reference/methods/chat.postMessage,
chat.update, conversations.history and conversations.replies.
"""

import logging
import re
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import aiohttp
from slack_sdk.errors import SlackApiError
from slack_sdk.web.async_client import AsyncWebClient

from grid_agent.core.slack_text import Message
from grid_agent.edges.slack_answers import (
    BLOCKS,
    KEY,
    REPLACE,
    TOKEN_ERRORS,
    Delivered,
    Outcome,
    Refused,
    Retry,
    failed,
    judge,
)

__all__ = ["Delivered", "Outcome", "Refused", "Retry", "SlackClient"]

SLACK = "https://slack.com/api/"
PAGES = 5  # of a channel's history, 200 messages each

# Slack's SDK logs bodies and proxy addresses at DEBUG whatever the root says: give it a logger that cannot.
_sdk_log = logging.getLogger("grid_agent.slack_sdk")
_sdk_log.setLevel(logging.WARNING)


class SlackClient:
    """Posts and edits messages. One event loop; close it with `close()`.

    Args:
        token_file: Holds the bot token, mode 0600. Read at first use, again when Slack refuses the token.
        base_url: Slack's, or a server that behaves like it.
        timeout_s: For one whole request, connecting included.
    """

    def __init__(self, token_file: Path, base_url: str = SLACK, timeout_s: float = 10.0) -> None:
        self._token_file = token_file
        self._base_url = base_url
        self._timeout_s = timeout_s
        self._session: aiohttp.ClientSession | None = None
        self._web: AsyncWebClient | None = None

    def __repr__(self) -> str:
        return f"SlackClient({self._base_url!r})"

    async def post(
        self,
        channel: str,
        message: Message,
        thread_ts: str | None = None,
        key: str | None = None,
        *,
        broadcast: bool = False,
    ) -> Outcome:
        """Post a new message, or a reply when `thread_ts` is given.

        Args:
            channel: Name or id.
            message: What to show.
            thread_ts: `ts` of the thread's first message.
            key: A UUID, the same when this message is sent again after an unclear end. Sent as
                `client_msg_id`, which Slack documents in its errors only, and as the id of the first
                block, by which `find` knows the message again.
            broadcast: Show a reply in the channel, too, which notifies those who follow it.
        """
        body: dict[str, Any] = {"channel": channel, "thread_ts": thread_ts, "client_msg_id": key}
        body |= {"reply_broadcast": True} if broadcast else {}
        if key is not None and message.blocks:
            first, *rest = message.blocks
            message = Message(message.text, ({**first, "block_id": key}, *rest))
        return await self._say("chat.postMessage", body, message)

    async def find(
        self, channel_id: str, key: str, thread_ts: str | None = None
    ) -> Delivered | Retry | Refused | None:
        """The message that was posted with this key, in the channel or in a thread of it.

        Args:
            channel_id: An id; a name is refused.
            key: As given to `post`.
            thread_ts: `ts` of the thread's first message, for a reply.

        Returns:
            None when Slack does not have it among the newest messages. Refused above all without the scope
            channels:history.
        """
        method = "conversations.history" if thread_ts is None else "conversations.replies"
        body: dict[str, Any] = {"channel": channel_id, "limit": 200}
        body |= {} if thread_ts is None else {"ts": thread_ts}
        for _ in range(PAGES):
            answer = await self._ask(method, body)
            if isinstance(answer, Retry | Refused):
                return answer
            for message in answer.get("messages", ()):
                if _has_key(message, key):
                    return Delivered(channel_id, str(message["ts"]))
            cursor = (answer.get("response_metadata") or {}).get("next_cursor")
            if not cursor:
                return None
            body["cursor"] = cursor
        return None

    async def who(self) -> dict[str, Any] | Retry | Refused:
        """What auth.test says of the token: team, user, url."""
        return await self._ask("auth.test", {})

    async def update(self, channel_id: str, ts: str, message: Message) -> Outcome:
        """Replace the content of an own message. `channel_id` and `ts` as `Delivered` gave them."""
        return await self._say("chat.update", {"channel": channel_id, "ts": ts}, message)

    async def close(self) -> None:
        """Close the HTTP session. The client may be used again afterwards."""
        session, self._session, self._web = self._session, None, None
        if session is not None:
            await session.close()

    async def _say(self, method: str, fields: dict[str, Any], message: Message) -> Outcome:
        body: dict[str, Any] = {name: value for name, value in fields.items() if value is not None}
        # parse=none, link_names=False: what looks like a mention or an address stays text.
        body |= {"text": message.text, "blocks": list(message.blocks), "parse": "none", "link_names": False}
        if method == "chat.postMessage":
            body |= {"unfurl_links": False, "unfurl_media": False}
        outcome = await self._call(method, body)
        while isinstance(outcome, Refused) and self._another_way(outcome.reason, body):
            outcome = await self._call(method, body)
        return outcome

    def _another_way(self, error: str, body: dict[str, Any]) -> bool:
        """Take away what Slack objects to, each thing once. False: nothing left to try."""
        if error in BLOCKS and body.pop("blocks", None):
            return True
        if error in KEY and body.pop("client_msg_id", None):
            return True
        if error in TOKEN_ERRORS and self._web is not None:
            token = _read_token(self._token_file)
            if isinstance(token, str) and token != self._web.token:
                self._web = None
                return True
        return False

    async def _call(self, method: str, body: dict[str, Any]) -> Outcome:
        answer = await self._ask(method, body)
        if isinstance(answer, Retry | Refused):
            return answer
        if isinstance(answer.get("channel"), str) and isinstance(answer.get("ts"), str):
            return Delivered(answer["channel"], answer["ts"])
        return Retry(None, "Slack's answer lacks channel and ts", unclear=True)

    async def _ask(self, method: str, body: dict[str, Any]) -> dict[str, Any] | Retry | Refused:
        web = self._connect()
        if isinstance(web, Refused):
            return web
        try:
            answer = await web.api_call(method, json=dict(body))
        except SlackApiError as exc:
            return judge(exc.response, threaded=method == "chat.update" or "thread_ts" in body)
        except TimeoutError:
            return Retry(None, f"Slack did not answer within {self._timeout_s:g} s", unclear=True)
        except Exception as exc:  # noqa: BLE001  whatever else the libraries raise, the agent must go on
            return failed(exc)
        return answer.data if isinstance(answer.data, dict) else {}

    def _connect(self) -> AsyncWebClient | Refused:
        if self._web is None:
            token = _read_token(self._token_file)
            if isinstance(token, Refused):
                return token
            if self._session is None:
                # No connection is kept: one that Slack closed meanwhile would end in an unclear post.
                self._session = aiohttp.ClientSession(
                    timeout=aiohttp.ClientTimeout(total=self._timeout_s),
                    connector=aiohttp.TCPConnector(force_close=True),
                    trust_env=False,
                )
            self._web = AsyncWebClient(
                token, self._base_url, session=self._session, retry_handlers=[], logger=_sdk_log
            )
            # The SDK takes any proxy of the environment, for loopback and in spite of NO_PROXY too.
            self._web.proxy = _proxy(self._base_url)
        return self._web


def _has_key(message: Any, key: str) -> bool:
    if not isinstance(message, dict):
        return False
    blocks = message.get("blocks") or ()
    return message.get("client_msg_id") == key or any(
        isinstance(block, dict) and block.get("block_id") == key for block in blocks
    )


def _read_token(path: Path) -> str | Refused:
    """The token, or what is wrong with its file. The content never gets into a message."""
    try:
        mode = path.stat().st_mode & 0o777
        token = path.read_text(encoding="ascii").strip()
    except (OSError, ValueError) as exc:
        return Refused(f"the Slack token file {path} cannot be read ({type(exc).__name__})", REPLACE)
    if mode & 0o077:
        return Refused(f"the Slack token file {path} is open to other users", f"chmod 600 {path}")
    if not re.fullmatch(r"[!-~]+", token):
        return Refused(f"the Slack token file {path} does not hold one token", REPLACE)
    return token


def _proxy(base_url: str) -> str | None:
    """The environment's proxy for exactly this scheme, unless NO_PROXY or loopback says otherwise."""
    url = urlsplit(base_url)
    host = url.hostname or ""
    if host in {"localhost", "::1"} or host.startswith("127.") or proxy_bypass(host):
        return None
    return getproxies().get(url.scheme)
