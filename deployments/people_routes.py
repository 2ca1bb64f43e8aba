"""The routes through which people steer the agent. Each changes something, so each asks for the token.

A web page in somebody's browser must not be able to use them: a request is refused for a Host that is not
ours (a name rebound to this address), for an Origin or Sec-Fetch-Site of another site, and for a body that
is not JSON (what a plain form can send). Errors are JSON with one sentence in `detail`. Mounted by `agent`.
"""

# No `from __future__ import annotations` here: FastAPI reads the annotations.
import hmac
import ipaddress
import socket
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NoReturn, TypeVar
from urllib.parse import urlsplit

from fastapi import APIRouter, Depends, HTTPException, Request
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError
from ray import serve

from config.checks import is_loopback
from config.settings import Settings
from grid_agent.core import messages as m
from grid_agent.exits import NotInChargeError, RefusedError

MAX_BODY = 8192
LONGEST_S = 30 * 86_400.0
router = APIRouter()


@dataclass(frozen=True)
class Desk:
    """What the routes need: whom to tell, what is said about a node, the token's file, and our own names."""

    say: Callable[[m.PersonSaid], Awaitable[str]]
    knows: Callable[[str], bool]
    token_file: str
    settings: Settings


def _one_line(text: str) -> str:
    """A sentence of a person: no control characters, which could forge lines of a log."""
    if not text.strip() or not text.isprintable():
        raise ValueError("must be one line of text")
    return text.strip()


Reason = Annotated[str, Field(min_length=1, max_length=500), AfterValidator(_one_line)]
Who = Annotated[str, Field(min_length=1, max_length=100), AfterValidator(_one_line)]
Shape = TypeVar("Shape", bound=BaseModel)
Seconds = Annotated[float, Field(ge=1, le=LONGEST_S, allow_inf_nan=False)]


class Words(BaseModel):
    """Who asks, and why."""

    model_config = ConfigDict(strict=True, extra="forbid")
    reason: Reason
    by: Who = "somebody through the API"


class Pause(Words):
    """For how long: every pause has an end."""

    for_s: Seconds


class Cordon(Words):
    """For how long; null: until uncordon."""

    for_s: Seconds | None = None


class Repair(Words):
    """Whether work that still runs there may be lost."""

    disrupt: bool = False


# --- who may -------------------------------------------------------------------------------------


def desk() -> Desk:
    """The desk of the replica that this request came to."""
    return serve.get_replica_context().servable_object.desk  # type: ignore[no-any-return]


AtDesk = Annotated[Desk, Depends(desk)]


def may_change(request: Request, at: AtDesk) -> None:
    """Refuse whoever may not change anything: 403, 415 or 401."""
    sent = request.headers
    host = _hostname(sent.get("host", ""))
    if host is None or not _ours(host, at.settings):
        _no(
            403,
            "this Host is not one of the agent's: ask it by its address, or by its name in the cluster file",
        )
    site = sent.get("sec-fetch-site", "none")
    if site not in ("none", "same-origin"):
        _no(403, f"a request from another site ({site[:20]!r}) is not carried out")
    origin = sent.get("origin")
    if origin is not None and urlsplit(origin).netloc.lower() != sent.get("host", "").lower():
        _no(403, "a request from another origin is not carried out")
    if sent.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        _no(415, "send the request as JSON, with 'Content-Type: application/json'")
    _check_token(sent.get("authorization", ""), at.token_file)


def _check_token(given: str, file: str) -> None:
    try:
        wanted = Path(file).expanduser().read_text(encoding="utf-8").strip()
    except (OSError, ValueError):
        wanted = ""
    if not wanted:
        _no(401, f"nothing can be changed: {file} holds no token; start.py makes one")
    scheme, _, word = given.partition(" ")
    if scheme.lower() != "bearer" or not hmac.compare_digest(word.strip().encode(), wanted.encode()):
        _no(401, f"send the token of {file} as 'Authorization: Bearer ...'")


def _hostname(netloc: str) -> str | None:
    """The host of a Host header, lower case and without a port; None when it is none."""
    try:
        parts = urlsplit(f"//{netloc}")
        _ = parts.port
    except ValueError:
        return None
    return None if parts.username is not None or parts.path else parts.hostname


def _ours(host: str, settings: Settings) -> bool:
    """On loopback only its names; elsewhere any address, and the names of the head and of this machine."""
    if host == "localhost" or host in (settings.http.host.lower(), settings.head.host.lower()):
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return not is_loopback(settings.http.host) and host in (
            socket.gethostname().lower(),
            socket.getfqdn().lower(),
        )
    return address.is_loopback or not is_loopback(settings.http.host)  # no name, so none to be rebound


def _no(status: int, why: str) -> NoReturn:
    headers = {"www-authenticate": "Bearer"} if status == 401 else None
    raise HTTPException(status, why, headers)


# --- what they say -------------------------------------------------------------------------------


async def _read(request: Request, shape: type[Shape]) -> Shape:
    """The body as `shape`; 413 when it is too long, 400 with the first fault otherwise."""
    body = b""
    async for piece in request.stream():
        body += piece
        if len(body) > MAX_BODY:
            _no(413, f"the body is longer than {MAX_BODY} bytes")
    try:
        return shape.model_validate_json(body or b"{}")
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        where = ".".join(map(str, first["loc"])) or "body"
        _no(400, f"{where}: {first['msg']}")


async def _say(at: Desk, said: m.PersonSaid) -> dict[str, Any]:
    """Tell the agent and answer with its sentence; 404, 409 and 503 say why it was not heard."""
    if said.node is not None and not at.knows(said.node):
        _no(404, f"there is no node {said.node[:80]!r} in this cluster")
    try:
        return {"ok": True, "text": await at.say(said)}
    except RefusedError as error:
        _no(409, str(error))
    except NotInChargeError as error:
        _no(503, str(error))


CHANGES = [Depends(may_change)]


@router.post("/pause", dependencies=CHANGES)
async def pause(request: Request, at: AtDesk) -> dict[str, Any]:
    """Repair nothing for a while: reason, for_s (seconds, at most 30 days), by. Needs the API token."""
    words = await _read(request, Pause)
    return await _say(at, m.PersonSaid(m.Verb.PAUSE, words.by, words.reason, for_s=words.for_s))


@router.post("/resume", dependencies=CHANGES)
async def resume(request: Request, at: AtDesk) -> dict[str, Any]:
    """End a pause: reason, by. 409: nothing is paused."""
    words = await _read(request, Words)
    return await _say(at, m.PersonSaid(m.Verb.RESUME, words.by, words.reason))


@router.post("/breaker/close", dependencies=CHANGES)
async def close_breaker(request: Request, at: AtDesk) -> dict[str, Any]:
    """Let repairs begin again after the breaker opened: reason, by. 409: it is closed."""
    words = await _read(request, Words)
    return await _say(at, m.PersonSaid(m.Verb.CLOSE_BREAKER, words.by, words.reason))


@router.post("/nodes/{node}/cordon", dependencies=CHANGES)
async def cordon(node: str, request: Request, at: AtDesk) -> dict[str, Any]:
    """Leave this node alone, whatever becomes of it: reason, for_s (null: until uncordon), by."""
    words = await _read(request, Cordon)
    return await _say(at, m.PersonSaid(m.Verb.CORDON, words.by, words.reason, node, words.for_s))


@router.post("/nodes/{node}/uncordon", dependencies=CHANGES)
async def uncordon(node: str, request: Request, at: AtDesk) -> dict[str, Any]:
    """Take the node into the agent's hands again: reason, by. 409: it is not cordoned."""
    words = await _read(request, Words)
    return await _say(at, m.PersonSaid(m.Verb.UNCORDON, words.by, words.reason, node))


@router.post("/nodes/{node}/repair", dependencies=CHANGES)
async def repair(node: str, request: Request, at: AtDesk) -> dict[str, Any]:
    """Restart this node, after a drain if it runs: reason, disrupt (work may be lost), by. 409: refused."""
    words = await _read(request, Repair)
    return await _say(at, m.PersonSaid(m.Verb.REPAIR, words.by, words.reason, node, disrupt=words.disrupt))
