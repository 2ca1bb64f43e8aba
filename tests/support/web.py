"""A real HTTP server on loopback with fixed answers, for clients under test."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@contextmanager
def answering(answers: dict[str, tuple[int, Any]], token: str | None = None) -> Iterator[str]:
    """Its URL. `answers`: path -> (code, JSON value or bytes). With `token`, others get 401."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            known = token is None or self.headers.get("authorization") == f"Bearer {token}"
            code, content = (
                answers.get(self.path, (404, {"detail": "no"})) if known else (401, {"detail": "no"})
            )
            raw = content if isinstance(content, bytes) else json.dumps(content).encode()
            self.send_response(code)
            self.end_headers()
            self.wfile.write(raw)

        def log_message(self, *args: Any) -> None:
            """Quiet."""

    with serving(Handler) as url:
        yield url


@contextmanager
def serving(handler: type[BaseHTTPRequestHandler]) -> Iterator[str]:
    """The URL of a server that answers with this handler, in a thread of its own."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
