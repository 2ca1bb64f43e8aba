"""What Slack's answers mean: Delivered | Retry | Refused, and what a person can do about a refusal.

Pure. Error codes: https://docs.slack.dev/reference/methods/chat.postMessage and chat.update; rate limits:
https://docs.slack.dev/apis/web-api/rate-limits (429 with Retry-After in seconds).
"""

import re
from dataclasses import dataclass
from typing import Any, Literal

import aiohttp

RETRY_AFTER_CAP_S = 3600.0  # what Slack asks for is obeyed; more than this is not believed

_INVITE = "invite the app: /invite @grid-agent in the channel"
_ADMIN = "ask a workspace admin to let the app post in this channel"
REPLACE = "put the bot token (xoxb-...) of an installed app into the token file"
_SCOPE = "add the scope chat:write to the app and reinstall it"
TOKEN_ERRORS = {"invalid_auth", "not_authed", "account_inactive", "token_revoked", "token_expired"}
_CHANNEL = {
    "not_in_channel": _INVITE,
    "channel_not_found": f"check slack.channel; for a private channel {_INVITE}",
    "is_archived": "unarchive the channel or set another slack.channel",
    "restricted_action": _ADMIN,
    "restricted_action_read_only_channel": _ADMIN,
    "restricted_action_thread_only_channel": _ADMIN,
}
_SETTINGS = {
    **dict.fromkeys({*TOKEN_ERRORS, "not_allowed_token_type"}, REPLACE),
    **dict.fromkeys(("missing_scope", "no_permission"), _SCOPE),
    **dict.fromkeys(("ekm_access_denied", "access_denied", "team_access_not_granted"), _ADMIN),
    "unknown_method": "check slack.base_url",
}
_GONE = {"message_not_found", "cant_update_message", "edit_window_closed"}
_GONE |= {"thread_not_found", "cannot_reply_to_message"}
BLOCKS = {"invalid_blocks", "invalid_blocks_format", "msg_blocks_too_long"}
KEY = {"duplicate_message_not_found", "duplicate_channel_not_found"}
_CONTENT = {*BLOCKS, *KEY, "msg_too_long", "no_text", "invalid_arguments"}


@dataclass(frozen=True, slots=True)
class Delivered:
    """Slack shows it. `channel_id` is the id even where a name was given: only ids work in chat.update."""

    channel_id: str
    ts: str


@dataclass(frozen=True, slots=True)
class Retry:
    """Not now.

    Attributes:
        after_s: What Slack asked for, None: the caller's own backoff.
        reason: For people.
        unclear: Slack may have done what was asked all the same: look before asking again.
    """

    after_s: float | None
    reason: str
    unclear: bool = False


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


def judge(response: Any, *, threaded: bool) -> Retry | Refused:
    """Read an answer that is not a success: AsyncSlackResponse, or aiohttp's own when it is not JSON."""
    status = int(getattr(response, "status_code", None) or response.status)
    data = getattr(response, "data", None)
    error = str(data.get("error", "")) if isinstance(data, dict) else ""
    if status == 429 or error in {"ratelimited", "rate_limited"}:
        after_s = _retry_after(response.headers.get("Retry-After"))
        asks = "" if after_s is None else f": it asks to wait {after_s:g} s"
        return Retry(after_s, f"Slack's rate limit{asks}")
    if status >= 500 or not re.fullmatch(r"[a-z0-9_]{1,80}", error):
        return Retry(None, f"Slack answered HTTP {status} and nothing that can be used", unclear=True)
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


def failed(exc: Exception) -> Retry:
    """An exception instead of an answer. Only a connection that was never made did certainly nothing."""
    return Retry(None, _describe(exc), unclear=not isinstance(exc, aiohttp.ClientConnectorError))


def _describe(exc: Exception) -> str:
    # The class and the system's error text only: anything else may quote headers or a proxy's password.
    name = type(exc).__name__
    if isinstance(exc, OSError | aiohttp.ClientError):
        return f"cannot reach Slack: {(isinstance(exc, OSError) and exc.strerror) or name}"
    return f"Slack's answer cannot be read ({name})"
