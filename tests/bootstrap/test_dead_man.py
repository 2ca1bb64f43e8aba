"""The dead-man URL, at a real server: called while all is well and only then; its failure disturbs nobody."""

import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from bootstrap import keeper as shell
from bootstrap import state
from config.paths import StatePaths
from grid_agent.edges import keeper
from tests.bootstrap.test_keeper import plan_for
from tests.support.cluster import free_port, until
from tests.support.fake_head import ALL, FakeHead


class Site(ThreadingHTTPServer):
    """The agent's `/cluster/readyz` and somebody's watch at `/watch/PATH`, which may misbehave."""

    daemon_threads = True
    block_on_close = False

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.calls: Counter[str] = Counter()
        self.ready, self.mode = True, "ok"
        self.over = threading.Event()


class Handler(BaseHTTPRequestHandler):
    server: Site

    def do_GET(self) -> None:
        site = self.server
        site.calls[self.path] += 1
        if self.path == "/cluster/readyz":
            return self.send(200 if site.ready else 503)
        if site.mode == "hang":
            site.over.wait(20)
        elif site.mode == "garbage":
            self.wfile.write(b"\0 this is no HTTP\r\n\r\n")
        else:
            self.send(500 if site.mode == "error" else 200)
        return None

    def send(self, code: int) -> None:
        self.send_response(code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *args: Any) -> None:
        """Quiet."""


@pytest.fixture
def site() -> Iterator[Site]:
    with Site() as made:
        thread = threading.Thread(target=made.serve_forever, daemon=True)
        thread.start()
        yield made
        made.over.set()
        made.shutdown()
        thread.join()


@contextmanager
def watching(site: Site, head: FakeHead, tmp_path: Path, url: str) -> Iterator[keeper.Files]:
    """A keeper at work on this head, until the end of the block."""
    paths = StatePaths(tmp_path / "state" / "grid-agent" / "mine")
    state.prepare(paths)
    api = {"host": "127.0.0.1", "port": site.server_port, "token_file": None}
    plan = plan_for(paths, slack=False, api=api, dead_man_url=url)
    files = keeper.Files(paths.root)
    files.plan.touch()
    kept = shell.Keeper(files, plan)
    kept.head = head
    thread = threading.Thread(target=kept.run)
    thread.start()
    try:
        yield files
    finally:
        files.stopped("h").touch()
        thread.join()


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shell, "DEAD_MAN_S", 0.1)
    monkeypatch.setattr(shell, "BUSY_LOOK_S", 0.02)
    monkeypatch.setenv("no_proxy", "127.0.0.1")


def more(count: Any, by: int = 3) -> None:
    """Wait until something has happened several times more."""
    before = count()
    until(lambda: count() >= before + by, 20, 0.02)


def test_it_is_called_again_and_again_while_all_is_well_and_only_then(site: Site, tmp_path: Path) -> None:
    path = "/watch/me?token=1"
    head = FakeHead(*ALL)

    def called() -> int:
        return site.calls[path]

    def silent() -> None:
        more(lambda: head.looks)  # what was begun before has arrived
        time.sleep(0.2)
        before = called()
        time.sleep(0.5)
        more(lambda: head.looks)
        assert called() == before

    with watching(site, head, tmp_path, f"http://127.0.0.1:{site.server_port}{path}"):
        more(called)
        head.parts.discard("dashboard")
        silent()
        assert head.restarted
        head.parts.add("dashboard")
        more(called)
        site.ready = False
        silent()
        site.ready = True
        more(called)


def test_it_is_called_once_a_period_and_not_at_every_look(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shell, "DEAD_MAN_S", 60.0)
    head = FakeHead(*ALL)
    with watching(site, head, tmp_path, f"http://127.0.0.1:{site.server_port}/watch"):
        until(lambda: site.calls["/watch"], 20)
        more(lambda: head.looks, 10)
        assert site.calls["/watch"] == 1


@pytest.mark.parametrize("mode", ["error", "garbage", "hang", "nobody"])
def test_its_failure_does_not_disturb_the_keeper(
    site: Site, tmp_path: Path, mode: str, caplog: pytest.LogCaptureFixture
) -> None:
    site.mode = mode
    port = free_port() if mode == "nobody" else site.server_port
    head = FakeHead(*ALL)
    with watching(site, head, tmp_path, f"http://127.0.0.1:{port}/watch?secret=s3cret") as files:
        until(lambda: site.calls["/watch?secret=s3cret"] if mode == "hang" else "dead-man" in caplog.text, 20)
        began = time.monotonic()
        more(lambda: head.looks, 10)
        assert time.monotonic() - began < 5
        head.parts.discard("dashboard")
        until(lambda: head.restarted == ["dashboard"], 5, 0.02)
        assert time.time() - files.beat.stat().st_mtime < 5
    assert "the keeper failed at a look" not in caplog.text
    assert "s3cret" not in caplog.text
