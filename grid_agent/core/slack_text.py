"""An incident as people read it in Slack: one message, and one thread reply per step.

Pure: values in, Block Kit values out. Text from hosts (evidence, steps, names) is treated as hostile:
it can neither mention, nor link, nor break Slack's limits. Used by `edges.outbox`; sent by `edges.slack`.

Rules and limits: https://docs.slack.dev/messaging/formatting-message-text and
https://docs.slack.dev/reference/block-kit (header 150 characters, section text 3000).
"""

import re
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from grid_agent.core import names
from grid_agent.core.incident_model import Incident, Phase

Block = dict[str, Any]

HEADER_LIMIT = 150
SECTION_LIMIT = 3000
TEXT_LIMIT = 3000
MANY = 3  # nodes; an incident of more names the first ones in its header, all in its body

_MARK = {Phase.FIRING: "🔴", Phase.REPAIRING: "🟠", Phase.NEEDS_PERSON: "🆘", Phase.RESOLVED: "🟢"}
_LAST = {
    Phase.FIRING: "Now",
    Phase.REPAIRING: "Under way",
    Phase.NEEDS_PERSON: "Waiting for a person",
    Phase.RESOLVED: "What helped",
}
# A zero-width space keeps Slack (and every client) from making a mention or a link of it.
_SPECIAL = {"&": "&amp;", "<": "&lt;", ">": "&gt;", "@": "@\u200b", "://": ":\u200b//"}
_TOKEN = re.compile(r"://|.", re.DOTALL)
_LAST_SECOND = 253402300799.0  # 9999-12-31, the end of datetime


@dataclass(frozen=True, slots=True)
class Message:
    """What Slack is asked to show.

    Attributes:
        text: Fallback for notifications and screen readers, at most 3000 characters.
        blocks: Block Kit blocks, JSON-ready.
    """

    text: str
    blocks: tuple[Block, ...]


def root(incident: Incident, now: float, cluster: str) -> Message:
    """The one message of an incident, as it is at `now`.

    Args:
        incident: Any phase, one node or many.
        now: Seconds on the clock of the incident; only an open incident's duration depends on it.
        cluster: The cluster's name.
    """
    head = f"{_MARK[incident.phase]} {incident.phase.value}: {_who(incident.nodes)}"
    evidence = [escape(line, 500) for line in incident.evidence[:2]]
    last = escape(incident.steps[-1].text, 1000) if incident.steps else "nothing done yet"
    doing = f"{_LAST[incident.phase]}: {last}{_next(incident)}"
    lasted = _lasted(incident, now)
    where = ", ".join(part for part in (escape(incident.host, 100), escape(cluster, 60)) if part)
    text = "\n".join((f"{head}: {incident.cause.value} ({where})", *evidence, doing, lasted))
    body = [f"*{incident.cause.value}* ({where})", *evidence]
    if len(incident.nodes) > MANY:
        body.append(f"Nodes: {escape(names.fold(incident.nodes), 1000)}")
    blocks = (
        {"type": "header", "text": {"type": "plain_text", "text": head, "emoji": False}},
        _section("\n".join(body)),
        _section(doing),
        {"type": "context", "elements": [_mrkdwn(_footer(incident, lasted))]},
    )
    return Message(text, blocks)


def step(incident: Incident, index: int) -> Message:
    """The thread reply that tells step `index` (from 0) of the incident.

    Raises:
        IndexError: The incident has no such step.
    """
    told = incident.steps[index]
    after = _duration(told.at - incident.failed_at)
    text = f"{_utc(told.at)}, {after} after the failure: {escape(told.text, 2000)}"
    return Message(text, (_section(text),))


def summary(incident: Incident) -> str:
    """The incident in one printable line, not escaped: for a log file."""
    last = f"; {_printable(incident.steps[-1].text)[:300]}" if incident.steps else ""
    who = _printable(", ".join(incident.nodes))[:300] or "cluster"
    return f"incident {incident.id} {incident.phase.value}: {who}: {incident.cause.value}{last}"


def escape(text: str, limit: int) -> str:
    """Make hostile text safe for mrkdwn, on one line, at most `limit` characters after escaping.

    Control characters, line breaks and invisible or reversing characters become a space.
    """
    pieces = [_SPECIAL.get(token, token) for token in _TOKEN.findall(_printable(text[: 2 * limit]))]
    if sum(map(_units, pieces)) <= limit:
        return "".join(pieces)
    kept, size = [], 1
    for piece in pieces:
        size += _units(piece)
        if size > limit:
            break
        kept.append(piece)
    return "".join(kept) + "…"


def _printable(text: str) -> str:
    return " ".join("".join(char if char.isprintable() else " " for char in text).split())


def _units(piece: str) -> int:
    # Slack does not say how it counts characters outside the BMP: count them as JavaScript does.
    return len(piece) + (ord(piece[0]) > 0xFFFF)


def _who(nodes: tuple[str, ...]) -> str:
    if not nodes:
        return "the cluster"
    if len(nodes) == 1:
        return escape(nodes[0], 100)
    more = f" … and {len(nodes) - MANY} more" if len(nodes) > MANY else ""
    return f"{len(nodes)} nodes: {', '.join(escape(name, 25) for name in nodes[:MANY])}{more}"


def _lasted(incident: Incident, now: float) -> str:
    if incident.phase is Phase.RESOLVED:
        end = now if incident.resolved_at is None else incident.resolved_at
        return f"resolved after {_duration(end - incident.failed_at)}, at {_utc(end)}"
    # A message is edited only when something changes, so the age is dated.
    age = _duration(now - incident.failed_at)
    return f"since {_utc(incident.failed_at)}, for {age} at {_utc(now)}"


def _next(incident: Incident) -> str:
    if incident.next_attempt_at is None or incident.phase is not Phase.FIRING:
        return ""
    return f"\nNext attempt at {_utc(incident.next_attempt_at)}"


def _footer(incident: Incident, lasted: str) -> str:
    more = f"; every step: `grid-agent incidents {incident.id}`" if len(incident.nodes) > MANY else ""
    return f"incident {incident.id}, {lasted}{more}"


def _duration(seconds: float) -> str:
    if not seconds >= 60:
        return f"{max(seconds, 0.0):.1f} s"
    minutes, rest = divmod(int(min(seconds, _LAST_SECOND)), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def _utc(at: float) -> str:
    if not 0 <= at <= _LAST_SECOND:
        return "an unknown time"
    return f"{datetime.fromtimestamp(at, UTC):%Y-%m-%d %H:%M:%S} UTC"


def _section(text: str) -> Block:
    return {"type": "section", "text": _mrkdwn(text)}


def _mrkdwn(text: str) -> Block:
    # verbatim: Slack adds no links of its own to plain text.
    return {"type": "mrkdwn", "text": text, "verbatim": True}
