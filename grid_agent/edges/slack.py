"""One message to Slack, and what became of it: Delivered | Retry | Refused. Never an exception.

Owns the HTTP session and the token; `edges.outbox` decides about order and repetition.
Protocol: https://docs.slack.dev/reference/methods/chat.postMessage and chat.update (errors, limits),
https://docs.slack.dev/apis/web-api/rate-limits (429 with Retry-After in seconds).
"""

import logging
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import aiohttp
from slack_sdk.errors import SlackApiError
from slack_sdk.web.async_client import AsyncWebClient

from grid_agent.core.slack_text import Message

SLACK = "https://slack.com/api/"
RETRY_AFTER_CAP_S = 30.0

_INVITE = "invite the app: /invite @grid-agent in the channel"
_ADMIN = "ask a workspace admin to let the app post in this channel"
_REPLACE = "put the bot token (xoxb-...) of an installed app into the token file"
_SCOPE = "add the scope chat:write to the app and reinstall it"
_TOKEN_ERRORS = {"invalid_auth", "not_authed", "account_inactive", "token_revoked", "token_expired"}
_CHANNEL = {
    "not_in_channel": _INVITE,
    "channel_not_found": f"check slack.channel; for a private channel {_INVITE}",
    "is_archived": "unarchive the channel or set another slack.channel",
    "restricted_action": _ADMIN,
    "restricted_action_read_only_channel": _ADMIN,
    "restricted_action_thread_only_channel": _ADMIN,
}
_SETTINGS = {
    **dict.fromkeys({*_TOKEN_ERRORS, "not_allowed_token_type"}, _REPLACE),
    **dict.fromkeys(("missing_scope", "no_permission"), _SCOPE),
    **dict.fromkeys(("ekm_access_denied", "access_denied", "team_access_not_granted"), _ADMIN),
    "unknown_method": "check slack.base_url",
}
_GONE = {"message_not_found", "cant_update_message", "edit_window_closed"}
_GONE |= {"thread_not_found", "cannot_reply_to_message"}
_BLOCKS = {"invalid_blocks", "invalid_blocks_format", "msg_blocks_too_long"}
_KEY = {"duplicate_message_not_found", "duplicate_channel_not_found"}
_CONTENT = {*_BLOCKS, *_KEY, "msg_too_long", "no_text", "invalid_arguments"}

# Slack's SDK logs bodies and proxy addresses at DEBUG whatever the root says: give it a logger that cannot.
_sdk_log = logging.getLogger("grid_agent.slack_sdk")
_sdk_log.setLevel(logging.WARNING)


@dataclass(frozen=True, slots=True)
class Delivered:
    """Slack shows it. `channel_id` is the id even where a name was given: only ids work in chat.update."""

    channel_id: str
    ts: str


@dataclass(frozen=True, slots=True)
class Retry:
    """Not now. `after_s` is what Slack asked for (at most 30), None: the caller's own backoff."""

    after_s: float | None
    reason: str


@dataclass(frozen=True, slots=True)
class Refused:
    """Not before somebody changes something.

    Attributes:
        reason: Slack's error code, or a sentence.
        what_to_do: One sentence for a person.
        kind: `settings`: every message would be refused; `channel`: every one to this channel; `gone`:
            the message or thread no longer exists, post anew; `content`: this message is unacceptable.
    """

    reason: str
    what_to_do: str
    kind: Literal["settings", "channel", "gone", "content"] = "settings"


Outcome = Delivered | Retry | Refused


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
        self, channel: str, message: Message, thread_ts: str | None = None, key: str | None = None
    ) -> Outcome:
        """Post a new message, or a reply when `thread_ts` is given.

        Args:
            channel: Name or id.
            message: What to show.
            thread_ts: `ts` of the thread's first message.
            key: A UUID, the same when this message is sent again after an unclear end. Sent as
                `client_msg_id`, which Slack documents in its errors only; where it is ignored, a message
                that was accepted without an answer appears twice.
        """
        body = {"channel": channel, "thread_ts": thread_ts, "client_msg_id": key}
        return await self._say("chat.postMessage", body, message)

    async def update(self, channel_id: str, ts: str, message: Message) -> Outcome:
        """Replace the content of an own message. `channel_id` and `ts` as `Delivered` gave them."""
        return await self._say("chat.update", {"channel": channel_id, "ts": ts}, message)

    async def close(self) -> None:
        """Close the HTTP session. The client may be used again afterwards."""
        session, self._session, self._web = self._session, None, None
        if session is not None:
            await session.close()

    async def _say(self, method: str, fields: dict[str, str | None], message: Message) -> Outcome:
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
        if error in _BLOCKS and body.pop("blocks", None):
            return True
        if error in _KEY and body.pop("client_msg_id", None):
            return True
        if error in _TOKEN_ERRORS and self._web is not None:
            token = _read_token(self._token_file)
            if isinstance(token, str) and token != self._web.token:
                self._web = None
                return True
        return False

    async def _call(self, method: str, body: dict[str, Any]) -> Outcome:
        web = self._connect()
        if isinstance(web, Refused):
            return web
        try:
            answer = await web.api_call(method, json=dict(body))
        except SlackApiError as exc:
            return _judge(exc.response, threaded=method == "chat.update" or "thread_ts" in body)
        except TimeoutError:
            return Retry(None, f"Slack did not answer within {self._timeout_s:g} s")
        except Exception as exc:  # noqa: BLE001  whatever else the libraries raise, the agent must go on
            return Retry(None, _describe(exc))
        if isinstance(answer.get("channel"), str) and isinstance(answer.get("ts"), str):
            return Delivered(answer["channel"], answer["ts"])
        return Retry(None, "Slack's answer lacks channel and ts")

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


def _read_token(path: Path) -> str | Refused:
    """The token, or what is wrong with its file. The content never gets into a message."""
    try:
        mode = path.stat().st_mode & 0o777
        token = path.read_text(encoding="ascii").strip()
    except (OSError, ValueError) as exc:
        return Refused(f"the Slack token file {path} cannot be read ({type(exc).__name__})", _REPLACE)
    if mode & 0o077:
        return Refused(f"the Slack token file {path} is open to other users", f"chmod 600 {path}")
    if not re.fullmatch(r"[!-~]+", token):
        return Refused(f"the Slack token file {path} does not hold one token", _REPLACE)
    return token


def _proxy(base_url: str) -> str | None:
    """The environment's proxy for exactly this scheme, unless NO_PROXY or loopback says otherwise."""
    url = urlsplit(base_url)
    host = url.hostname or ""
    if host in {"localhost", "::1"} or host.startswith("127.") or proxy_bypass(host):
        return None
    return getproxies().get(url.scheme)


def _judge(response: Any, *, threaded: bool) -> Outcome:
    """Read an answer that is not a success: AsyncSlackResponse, or aiohttp's own when it is not JSON."""
    status = int(getattr(response, "status_code", None) or response.status)
    data = getattr(response, "data", None)
    error = str(data.get("error", "")) if isinstance(data, dict) else ""
    if status == 429 or error in {"ratelimited", "rate_limited"}:
        return Retry(_retry_after(response.headers.get("Retry-After")), "Slack's rate limit")
    if status >= 500 or not re.fullmatch(r"[a-z0-9_]{1,80}", error):
        return Retry(None, f"Slack answered HTTP {status} and nothing that can be used")
    if threaded and error in _GONE:
        return Refused(error, "post it anew", "gone")
    if error in _CHANNEL:
        return Refused(error, _CHANNEL[error], "channel")
    if error in _SETTINGS:
        return Refused(error, _SETTINGS[error])
    if error in _CONTENT:
        return Refused(error, "report this as a bug of grid-agent", "content")
    return Retry(None, f"Slack says {error}")


def _retry_after(header: str | None) -> float | None:
    try:
        return max(0.1, min(RETRY_AFTER_CAP_S, float(header or "")))
    except ValueError:
        return None


def _describe(exc: Exception) -> str:
    # The class and the system's error text only: anything else may quote headers or a proxy's password.
    name = type(exc).__name__
    if isinstance(exc, OSError | aiohttp.ClientError):
        return f"cannot reach Slack: {(isinstance(exc, OSError) and exc.strerror) or name}"
    return f"Slack's answer cannot be read ({name})"
