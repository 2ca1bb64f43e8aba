"""What a person types: words become one request with the token, answers become text and an exit code."""

import json
import socketserver
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from config import loader
from grid_agent.cli import app
from grid_agent.commands import people
from grid_agent.exits import Exit

RUN = CliRunner()


class Server(socketserver.TCPServer):
    """Plays the agent: keeps what it was asked, and answers as told."""

    allow_reuse_address = True
    answer: tuple[int, Any] = (200, {"ok": True, "text": "done"})

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked: list[tuple[str, dict[str, Any], str | None]] = []
        self.url = f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        assert isinstance(self.server, Server)
        self.server.asked.append((self.path, body, self.headers.get("authorization")))
        status, answer = self.server.answer
        data = answer.encode() if isinstance(answer, str) else json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    token = tmp_path / "token"
    token.write_text("t0k3n\n")
    monkeypatch.setenv("GRID_AGENT_TOKEN_FILE", str(token))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    with Server() as server:
        monkeypatch.setenv("GRID_AGENT_URL", server.url)
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        yield server
        server.shutdown()


@pytest.mark.parametrize(
    ("argv", "path", "body"),
    [
        (["pause", "--reason", "new switches"], "/pause", {"reason": "new switches", "for_s": 3600.0}),
        (["pause", "--reason", "x", "--for", "90s"], "/pause", {"reason": "x", "for_s": 90.0}),
        (["resume"], "/resume", {"reason": "done"}),
        (["cordon", "gpu1", "--reason", "fan"], "/nodes/gpu1/cordon", {"reason": "fan", "for_s": None}),
        (
            ["cordon", "gpu1", "--reason", "fan", "--for", "2d"],
            "/nodes/gpu1/cordon",
            {"reason": "fan", "for_s": 172800.0},
        ),
        (["uncordon", "gpu1"], "/nodes/gpu1/uncordon", {"reason": "done"}),
        (
            ["repair", "gpu1", "--reason", "driver"],
            "/nodes/gpu1/repair",
            {"reason": "driver", "disrupt": False},
        ),
        (
            ["repair", "gpu1", "--reason", "driver", "--disrupt"],
            "/nodes/gpu1/repair",
            {"reason": "driver", "disrupt": True},
        ),
        (["breaker", "close", "--reason", "looked"], "/breaker/close", {"reason": "looked"}),
        (["cordon", "../pause", "--reason", "x"], "/nodes/..%2Fpause/cordon", {"reason": "x", "for_s": None}),
    ],
)
def test_the_words_are_sent_with_the_token_and_who(
    server: Server, argv: list[str], path: str, body: dict[str, Any]
) -> None:
    said = RUN.invoke(app, argv)
    assert (said.exit_code, said.output) == (0, "done\n")
    (asked,) = server.asked
    assert asked[0] == f"/cluster{path}"
    assert "@" in asked[1].pop("by")
    assert asked[1:] == (body, "Bearer t0k3n")


@pytest.mark.parametrize(
    ("status", "code"),
    [(409, Exit.REFUSED), (403, Exit.REFUSED), (401, Exit.USAGE), (404, Exit.USAGE), (503, Exit.UNREACHABLE)],
)
def test_a_refusal_is_one_sentence_and_its_exit_code(server: Server, status: int, code: Exit) -> None:
    server.answer = (status, {"detail": "repairs are not paused"})
    said = RUN.invoke(app, ["resume"])
    assert said.exit_code == code
    assert said.stderr == "grid-agent: repairs are not paused\n"


def test_what_is_not_the_agent_is_said(server: Server) -> None:
    server.answer = (500, "<html>")
    said = RUN.invoke(app, ["resume"])
    assert said.exit_code == Exit.UNREACHABLE
    assert "not as grid-agent does" in said.stderr


@pytest.mark.parametrize("text", ["", "60", "1w", "-5m", "1h30m", "99999999999s", "m"])
def test_a_time_that_is_none_is_usage(server: Server, text: str) -> None:
    said = RUN.invoke(app, ["pause", "--reason", "x", f"--for={text}"])
    assert said.exit_code == Exit.USAGE
    assert "90s, 30m, 2h or 3d" in said.stderr
    assert server.asked == []


def test_a_reason_is_asked_for(server: Server) -> None:
    assert RUN.invoke(app, ["pause"]).exit_code == Exit.USAGE
    assert RUN.invoke(app, ["cordon", "gpu1"]).exit_code == Exit.USAGE
    assert server.asked == []


def test_json_is_one_document(server: Server) -> None:
    assert json.loads(RUN.invoke(app, ["resume", "-o", "json"]).stdout) == {"ok": True, "text": "done"}


def test_the_token_of_the_one_cluster_at_this_port_is_found_and_sent_to_loopback_only(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("GRID_AGENT_TOKEN_FILE")
    said = RUN.invoke(app, ["resume"])
    assert said.exit_code == Exit.USAGE
    assert "GRID_AGENT_TOKEN_FILE" in said.stderr
    settings = loader.loads(loader.default_file().read_text(), "local.yaml", {})
    port = server.server_address[1]
    for name in ("one", "two"):
        folder = tmp_path / "state" / "grid-agent" / name
        folder.mkdir(parents=True)
        mine = settings.model_copy(update={"http": settings.http.model_copy(update={"port": port})})
        (folder / "settings.json").write_text(mine.model_dump_json())
        (folder / "api_token").write_text("found-it\n")
        if name == "one":
            assert RUN.invoke(app, ["resume"]).exit_code == 0
            assert server.asked[-1][2] == "Bearer found-it"
    assert RUN.invoke(app, ["resume"]).exit_code == Exit.USAGE  # two of them: which one?
    assert people.own_token(f"http://10.0.0.1:{port}") is None
