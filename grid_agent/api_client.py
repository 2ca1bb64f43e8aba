"""Asks a running agent over HTTP. Every failure is one sentence that says what to do.

Used by the command line; knows the paths of the API and nothing of its content.
"""

from typing import Any
from urllib.parse import urlsplit

import httpx

DEFAULT_URL = "http://127.0.0.1:8000"
TIMEOUT_S = 5.0
CHANGE_S = 20.0  # for a change: what runs on a node may have to be listed first
REPORT = {"status", "age_s", "mode", "observer", "nodes", "incidents"}


class ApiError(Exception):
    """The agent could not be asked; the message is for people."""


class DeclinedError(Exception):
    """The agent answered, and does not do it: `status` is that of HTTP, the message the agent's sentence."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


def get(url: str, path: str, token: str | None = None) -> dict[str, Any]:
    """The JSON object at `url` + `/cluster` + `path`. 503 with a body is an answer too.

    Raises:
        ApiError: Nobody answered, or not the agent.
    """
    where = f"{_checked(url)}/cluster{path}"
    answer = _send("GET", where, token)
    if answer.status_code == httpx.codes.UNAUTHORIZED:
        raise ApiError(f"{where} asks for the API token: set GRID_AGENT_TOKEN_FILE to the file that holds it")
    try:
        body = answer.json()
    except ValueError:
        body = None
    if not isinstance(body, dict) or answer.status_code not in (
        httpx.codes.OK,
        httpx.codes.SERVICE_UNAVAILABLE,
    ):
        raise ApiError(f"{where} answered {answer.status_code}, and not as grid-agent does: is --url right?")
    if path == "/health" and not body.keys() >= REPORT:
        raise ApiError(f"{where} answered, and not as grid-agent does: is --url right?")
    return body


def post(url: str, path: str, body: dict[str, Any], token: str | None) -> dict[str, Any]:
    """The JSON object that answers a change.

    Raises:
        ApiError: Nobody answered, or not the agent.
        DeclinedError: It answered that it will not.
    """
    where = f"{_checked(url)}/cluster{path}"
    answer = _send("POST", where, token, body, CHANGE_S)
    try:
        said = answer.json()
    except ValueError:
        said = None
    if isinstance(said, dict) and answer.status_code == httpx.codes.OK:
        return said
    if isinstance(said, dict) and isinstance(said.get("detail"), str):
        raise DeclinedError(answer.status_code, said["detail"])
    raise ApiError(f"{where} answered {answer.status_code}, and not as grid-agent does: is --url right?")


def _send(
    verb: str,
    where: str,
    token: str | None,
    body: dict[str, Any] | None = None,
    timeout_s: float = TIMEOUT_S,
) -> httpx.Response:
    headers = {"authorization": f"Bearer {token}"} if token else {}
    try:
        return httpx.request(verb, where, headers=headers, json=body, timeout=timeout_s, trust_env=False)
    except httpx.TimeoutException:
        raise ApiError(
            f"{where} did not answer in {timeout_s:g} s: is the head overloaded or stopped?"
        ) from None
    except httpx.HTTPError as error:
        raise ApiError(
            f"nobody answers at {where} ({error}): start the cluster with bootstrap/start.py, "
            "or name the agent with --url or GRID_AGENT_URL"
        ) from None


def _checked(url: str) -> str:
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError as error:
        raise ApiError(f"{url!r} is not a URL ({error}): write it like {DEFAULT_URL}") from None
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ApiError(f"{url!r} is not a URL: write it like {DEFAULT_URL}")
    return url.rstrip("/")
