"""Who may steer the agent, and what is said to everybody else. FastAPI for real, without Serve."""

import asyncio
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from config import loader
from config.settings import Settings
from deployments import people_routes
from grid_agent.core import messages as m
from grid_agent.exits import NotInChargeError, RefusedError

TOKEN = "canary-token-1f2e3d"
BODY = {"reason": "new switches", "for_s": 60, "by": "alice"}
ROUTES = (
    "/pause",
    "/resume",
    "/breaker/close",
    "/nodes/gpu1/cordon",
    "/nodes/gpu1/uncordon",
    "/nodes/gpu1/repair",
)


class Office:
    """Hears what is said, or refuses it."""

    def __init__(self, token_file: Path, settings: Settings) -> None:
        self.heard: list[m.PersonSaid] = []
        self.trouble: Exception | None = None
        self.desk = people_routes.Desk(self.say, lambda name: name == "gpu1", str(token_file), settings)

    async def say(self, said: m.PersonSaid) -> str:
        if self.trouble is not None:
            raise self.trouble
        self.heard.append(said)
        return f"{said.verb} it is"


@pytest.fixture
def office(tmp_path: Path) -> Office:
    token = tmp_path / "api_token"
    token.write_text(TOKEN + "\n")
    return Office(token, loader.loads(loader.default_file().read_text(), "local.yaml", {}))


class Client:
    """Sends requests straight to the application."""

    def __init__(self, app: FastAPI) -> None:
        self._app = app

    def request(self, verb: str, path: str, **more: Any) -> httpx.Response:
        headers = {"authorization": f"Bearer {TOKEN}", **more.pop("headers", {})}

        async def send() -> httpx.Response:
            transport = httpx.ASGITransport(self._app)
            async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:8000") as client:
                return await client.request(verb, path, headers=headers, **more)

        return asyncio.run(send())

    def post(self, path: str, **more: Any) -> httpx.Response:
        return self.request("POST", path, **more)


@pytest.fixture
def client(office: Office) -> Client:
    app = FastAPI()
    app.include_router(people_routes.router)
    app.dependency_overrides[people_routes.desk] = lambda: office.desk
    return Client(app)


def test_what_is_said_arrives_with_who_why_and_how_long(client: Client, office: Office) -> None:
    answer = client.post("/pause", json=BODY)
    assert (answer.status_code, answer.json()) == (200, {"ok": True, "text": "pause it is"})
    assert client.post("/nodes/gpu1/cordon", json={"reason": "fan"}).status_code == 200
    assert client.post("/nodes/gpu1/uncordon", json={"reason": "done"}).status_code == 200
    assert client.post("/breaker/close", json={"reason": "looked"}).status_code == 200
    assert client.post("/resume", json={"reason": "done"}).status_code == 200
    assert client.post("/nodes/gpu1/repair", json={"reason": "driver", "disrupt": True}).status_code == 200
    assert office.heard.pop() == m.PersonSaid(
        m.Verb.REPAIR, "somebody through the API", "driver", "gpu1", disrupt=True
    )
    assert office.heard[0] == m.PersonSaid(m.Verb.PAUSE, "alice", "new switches", None, 60.0)
    assert office.heard[1] == m.PersonSaid(m.Verb.CORDON, "somebody through the API", "fan", "gpu1")
    assert [s.verb for s in office.heard[2:]] == [m.Verb.UNCORDON, m.Verb.CLOSE_BREAKER, m.Verb.RESUME]


HOSTILE: list[tuple[str, dict[str, str], int]] = [
    ("no token", {"authorization": ""}, 401),
    ("a wrong token", {"authorization": "Bearer nope"}, 401),
    ("the token as a password", {"authorization": f"Basic {TOKEN}"}, 401),
    ("a name rebound to this address", {"host": "evil.example:8000"}, 403),
    ("a name that begins as ours", {"host": "localhost.evil.example"}, 403),
    ("a user in the host", {"host": "127.0.0.1@evil.example"}, 403),
    ("another machine's address on loopback", {"host": "10.9.8.7:8000"}, 403),
    ("no host", {"host": ""}, 403),
    ("a port that is none", {"host": "127.0.0.1:x"}, 403),
    ("a page of another site", {"sec-fetch-site": "cross-site"}, 403),
    ("a page of a neighbour site", {"sec-fetch-site": "same-site"}, 403),
    ("another origin", {"origin": "http://evil.example"}, 403),
    ("another port of ours", {"origin": "http://127.0.0.1:9999"}, 403),
    ("a sandboxed page", {"origin": "null"}, 403),
    ("what a form can send", {"content-type": "text/plain"}, 415),
    ("a form", {"content-type": "application/x-www-form-urlencoded"}, 415),
    ("a type that only begins as JSON", {"content-type": "application/json-seq"}, 415),
]


@pytest.mark.parametrize("path", ROUTES)
@pytest.mark.parametrize(("who", "headers", "status"), HOSTILE, ids=[h[0] for h in HOSTILE])
def test_nobody_else_changes_anything(
    client: Client, office: Office, path: str, who: str, headers: dict[str, str], status: int
) -> None:
    answer = client.post(path, json=BODY, headers=headers)
    assert answer.status_code == status, who
    detail = answer.json()["detail"]
    assert isinstance(detail, str)
    assert TOKEN not in answer.text
    assert office.heard == []


@pytest.mark.parametrize("host", ["127.0.0.1:8000", "localhost", "LOCALHOST:8000", "[::1]:8000", "127.0.0.2"])
def test_the_names_of_loopback_are_ours(client: Client, host: str) -> None:
    headers = {"host": host, "origin": f"http://{host}", "sec-fetch-site": "same-origin"}
    assert client.post("/pause", json=BODY, headers=headers).status_code == 200


def test_a_get_or_a_preflight_changes_nothing(client: Client, office: Office) -> None:
    for path in ROUTES:
        assert client.request("GET", path).status_code == 405
        preflight = client.request("OPTIONS", path, headers={"origin": "http://evil.example"})
        assert preflight.status_code == 405
        assert "access-control-allow-origin" not in preflight.headers
    assert office.heard == []


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"reason": ""},
        {"reason": "   ", "for_s": 60},
        {"reason": "two\nlines", "for_s": 60},
        {"reason": "x" * 501, "for_s": 60},
        {"reason": 7, "for_s": 60},
        {"reason": "x", "for_s": "60"},
        {"reason": "x", "for_s": 0},
        {"reason": "x", "for_s": 1e12},
        {"reason": "x", "for_s": None},
        {"reason": "x"},
        {"reason": "x", "for_s": 60, "extra": 1},
        {"reason": "x", "for_s": 60, "by": "a\x1b[2J"},
        [],
        "pause",
    ],
)
def test_a_body_that_is_not_as_asked_is_one_sentence(client: Client, office: Office, body: Any) -> None:
    answer = client.post("/pause", json=body)
    assert answer.status_code == 400
    assert isinstance(answer.json()["detail"], str)
    assert office.heard == []


def test_a_body_that_is_no_json_or_too_long(client: Client) -> None:
    headers = {"content-type": "application/json"}
    assert client.post("/pause", content=b"{", headers=headers).status_code == 400
    assert client.post("/pause", content=b"\xff\xfe", headers=headers).status_code == 400
    assert client.post("/pause", content=b" " * 10_000, headers=headers).status_code == 413


def test_an_unknown_node_a_refusal_and_an_agent_not_in_charge(client: Client, office: Office) -> None:
    assert client.post("/nodes/gpu9/cordon", json={"reason": "x"}).status_code == 404
    office.trouble = RefusedError("repairs are not paused")
    answer = client.post("/resume", json={"reason": "x"})
    assert (answer.status_code, answer.json()) == (409, {"detail": "repairs are not paused"})
    office.trouble = NotInChargeError("not in charge")
    assert client.post("/resume", json={"reason": "x"}).status_code == 503


@pytest.mark.parametrize("content", [None, "", "  \n"])
def test_without_a_token_in_the_file_nobody_may(
    client: Client, office: Office, tmp_path: Path, content: str | None
) -> None:
    file = tmp_path / "api_token"
    if content is None:
        file.unlink()
    else:
        file.write_text(content)
    answer = client.post("/pause", json=BODY, headers={"authorization": "Bearer "})
    assert answer.status_code == 401
    assert "holds no token" in answer.json()["detail"]


def test_on_an_open_address_any_ip_is_ours_and_only_our_names(office: Office) -> None:
    spec = {"host": "0.0.0.0", "port": 8000, "token_file": "/x"}
    settings = office.desk.settings.model_copy(
        update={
            "http": loader.loads(loader.default_file().read_text(), "local.yaml", {}).http.model_copy(
                update=spec
            )
        }
    )
    assert people_routes._ours("10.1.2.3", settings)
    assert people_routes._ours("127.0.0.1", settings)
    assert not people_routes._ours("evil.example", settings)
