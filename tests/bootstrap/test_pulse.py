"""The one question to a gRPC server, put to a real one: alive, stopped, not serving, and to strangers."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import pytest

from bootstrap import pulse
from tests.support.cluster import ROOT


@contextlib.contextmanager
def server(*args: str) -> Iterator[tuple[int, int]]:
    argv = [sys.executable, "-m", "tests.support.health_server", *args]
    with subprocess.Popen(argv, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield int(process.stdout.readline()), process.pid
        finally:
            process.kill()


def test_a_server_that_serves_answers_and_a_stopped_one_does_not() -> None:
    with server("serving") as (port, pid):
        assert pulse.answers("127.0.0.1", port, 5)
        os.kill(pid, signal.SIGSTOP)
        began = time.monotonic()
        assert not pulse.answers("127.0.0.1", port, 0.3)
        assert time.monotonic() - began < 2
        os.kill(pid, signal.SIGCONT)
        assert pulse.answers("127.0.0.1", port, 5)


def test_an_address_that_is_not_ours_proves_nothing() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        assert pulse.answers_here("127.0.0.1", free.getsockname()[1], 1) is False
    assert pulse.answers_here("198.51.100.77", 9, 0.2) is None  # TEST-NET-2, nobody's


def test_not_serving_is_no_answer() -> None:
    with server("not-serving") as (port, _):
        assert not pulse.answers("127.0.0.1", port, 5)


def test_nobody_there() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        assert not pulse.answers("127.0.0.1", free.getsockname()[1], 1)


@pytest.mark.parametrize("said", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"\xff" * 64, b"", b"\0" * 9000])
def test_a_stranger_is_no_answer(said: bytes) -> None:
    with socket.create_server(("127.0.0.1", 0)) as stranger:

        def speak() -> None:
            link, _ = stranger.accept()
            with link, contextlib.suppress(OSError):
                link.sendall(said)

        threading.Thread(target=speak, daemon=True).start()
        assert not pulse.answers("127.0.0.1", stranger.getsockname()[1], 0.5)
