"""What a host says of a raylet: whether its port answers there, and the last words of one that is gone."""

import json
import os
import socket
import subprocess
import threading
from collections.abc import Iterator
from concurrent import futures
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from grid_agent.core import messages as m
from grid_agent.core.model import NodeBelief
from grid_agent.core.terms import State
from grid_agent.edges import ssh_errors
from grid_agent.edges.host import common, last_words, procs
from grid_agent.edges.host.ports import greet
from grid_agent.edges.host.program import handle
from grid_agent.edges.hosts import LocalHost
from grid_agent.edges.looks import Looks
from grid_agent.edges.node_probe import GridAgentProbe

HEAD = NodeBelief("head", "127.0.0.1", "head", State.ALIVE, 0.0)
RAYLET_OUT = """[2026-11-22 23:00:00,000 I 42 42] (raylet) main.cc:1: node_id: {id}
[2026-11-22 23:00:01,000 W 42 42] (raylet) main.cc:2: slow
[2026-11-22 23:00:02,000 C 42 42] (raylet) agent_manager.cc:103: \
The raylet exited immediately because one Ray agent failed, agent_name = dashboard_agent.
The raylet fate shares with the agent. This can happen because
- The version of `grpcio` doesn't follow Ray's requirement.
[2026-11-22 23:00:03,000 E 42 42] (raylet) x.cc:1: \x1b[31mred\x1b[0m {long}
"""


@contextmanager
def grpc_server() -> Iterator[int]:
    server = grpc.server(futures.ThreadPoolExecutor(1))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield port
    finally:
        server.stop(None)


@contextmanager
def listener(answer: bytes | None = None) -> Iterator[int]:
    """A port that accepts and says nothing, as that of a stopped process; or hangs up after `answer`."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            line, _ = server.accept()
            line.sendall(answer or b"")
            line.recv(100)
            line.close()

        if answer is not None:
            threading.Thread(target=serve, daemon=True).start()
        yield server.getsockname()[1]


def test_a_grpc_server_greets_and_the_others_do_not() -> None:
    with grpc_server() as port:
        assert greet("127.0.0.1", port, 2.0) == (None, "")
    assert greet("127.0.0.1", port, 2.0)[0] == "refused"
    with listener() as port:
        assert greet("127.0.0.1", port, 0.1)[0] == "timed out"
    with listener(b"") as port:
        assert greet("127.0.0.1", port, 2.0)[0] == "not serving"
    with listener(b"SSH-2.0-x\r\n") as port:
        assert greet("127.0.0.1", port, 2.0)[0] == "not serving"


def test_a_stopped_process_is_silent_although_its_port_accepts() -> None:
    code = "import socket as s; p = s.create_server(('127.0.0.1', 0)); print(p.getsockname()[1], flush=True)"
    code += "; p.accept()"
    with subprocess.Popen(["python3", "-c", code], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        port = int(process.stdout.readline())
        process.send_signal(19)
        try:
            assert greet("127.0.0.1", port, 0.2) == ("timed out", f"port {port} said nothing in 0.2 s")
        finally:
            process.kill()


def test_a_node_bears_witness_of_another_one() -> None:
    gpu = {"every_s": 0, "timeout_s": 1, "usable_every_s": 0, "kernel_log": "", "sources": {}}
    node = GridAgentProbe("/tmp", gpu)
    with grpc_server() as port:
        assert node.check_peer("127.0.0.1", port, 1.0) == {"how": None, "detail": ""}
    assert node.check_peer("127.0.0.1", port, 1.0)["how"] == "refused"


def session(folder: Path, node_id: str) -> str:
    logs = folder / "logs"
    logs.mkdir()
    (logs / "raylet.out").write_text(RAYLET_OUT.format(id="an older life", long=""))
    (logs / "raylet.1.out").write_text(RAYLET_OUT.format(id=node_id, long="x" * 1000))
    (logs / "raylet.1.err").write_text("")
    (logs / "dashboard_agent.1.log").write_text("fine\nImportError: no module named grpc\n")
    old = logs / "dashboard_agent.log"
    old.write_text("Error of another day\n")
    os.utime(old, (1.0, 1.0))
    return str(folder)


def test_the_last_words_of_a_raylet_that_is_gone(tmp_path: Path) -> None:
    request = {"op": "look", "gcs_address": "10.99.0.1:1", "node_name": "gpu1", "node_id": "ab" * 28}
    answer = handle({**request, "session_dir": session(tmp_path, "ab" * 28)})
    assert answer["ok"], answer
    first, last = answer["death"]
    assert "because one Ray agent failed" in first
    assert last.startswith("x.cc:1: red xxx")
    assert len(last) == common.WORD_CHARS
    assert answer["agent"] == ["dashboard_agent.1.log: ImportError: no module named grpc"]
    assert json.dumps(answer)


def kernel(*lines: str) -> list[tuple[float, str]]:
    return [(procs.uptime_s() - 10.0, line) for line in lines]


OOM = "Memory cgroup out of memory: Killed process 4242 (raylet) total-vm:5kB, anon-rss:4kB"


@pytest.mark.parametrize(
    ("inode", "pid", "quiet_s", "found"),
    [
        (last_words.FIRST_PID_NAMESPACE, 4242, 5.0, True),
        (last_words.FIRST_PID_NAMESPACE, 4243, 5.0, False),  # another raylet of this machine
        (last_words.FIRST_PID_NAMESPACE, None, 5.0, True),
        (1, 7, 5.0, True),  # in a container the kernel's pids are not ours
        (1, 7, -25.0, False),  # it has been heard of since
    ],
)
def test_the_kernel_says_whom_it_killed_for_memory(
    inode: int, pid: int | None, quiet_s: float, found: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = kernel("usb 1-1: new device", OOM, OOM.replace("raylet", "python3"))
    monkeypatch.setattr(last_words, "kernel_log", lambda: iter(lines))
    monkeypatch.setattr(last_words, "_inode", lambda _: inode)
    assert last_words._killed_for_memory(pid, quiet_s) == ([OOM] if found else [])


def test_the_kernel_log_of_this_machine_can_be_asked_for() -> None:
    for at, text in list(last_words.kernel_log())[:5]:
        assert at >= 0.0
        assert "\n" not in text


async def test_a_look_brings_how_the_host_is() -> None:
    with grpc_server() as port:
        looks = Looks(lambda by, node: LocalHost(), "10.99.0.1:1")
        event = await looks.look(m.LookAtHost("gpu1", "id1", "head", "127.0.0.1", port, None, 3.0), HEAD)
    assert isinstance(event, m.HostLooked)
    assert (event.facts.port, event.facts.listening, event.facts.greets) == (port, True, True)
    assert event.facts.cpus == os.cpu_count()
    assert event.facts.mem_total_mb
    assert event.facts.clock_ahead_s == pytest.approx(0.0, abs=1.0)
    closed = await looks.look(m.LookAtHost("gpu1", "id1", "head", "127.0.0.1", port, None, 3.0), HEAD)
    assert isinstance(closed, m.HostLooked)
    assert (closed.facts.listening, closed.facts.greets) == (False, False)


@pytest.mark.parametrize("error", sorted(ssh_errors.ADVICE))
async def test_a_failed_look_says_that_a_host_is_down_only_where_nothing_answers(error: str) -> None:
    class Way:
        async def call(self, request: dict[str, Any], timeout_s: float) -> dict[str, Any]:
            return ssh_errors.complaint(error)

    event = await Looks(lambda by, node: Way(), "10.99.0.1:1").look(m.LookAtHost("gpu1", "id1", "head"), HEAD)
    kind = m.HostUnreachable if error in ("no_route", "connect_timeout") else m.LookFailed
    assert isinstance(event, kind)
    assert event.detail.startswith(f"{error}: ")


class Host:
    """Plays a host that shows these raylets of gpu1, and logs when it is asked for them."""

    def __init__(self) -> None:
        self.raylets: list[str] = []
        self.asked: list[bool] = []

    async def call(self, request: dict[str, Any], timeout_s: float) -> dict[str, Any]:
        self.asked.append(request["bundle"])
        rows = [
            {"pid": 7, "node_id": i, "start_ticks": 1, "stat": "S", "session_dir": "/s"} for i in self.raylets
        ]
        bundle = {"bundle": {"files": [], "kernel": []}} if request["bundle"] else {}
        return {"ok": True, "raylets": rows, **bundle}


async def test_the_logs_of_a_raylet_are_read_until_it_is_gone_then_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    host = Host()
    looks = Looks(lambda by, node: host, "10.99.0.1:1")
    for host.raylets, node_id in (
        (["id1"], "id1"),  # suspected, and well
        ([], "id1"),  # it died later
        ([], "id1"),
        (["id2"], "id2"),
        ([], "id2"),
    ):
        await looks.look(m.LookAtHost("gpu1", node_id, "head"), HEAD)
    assert host.asked == [True, True, False, True, True]
    monkeypatch.setattr("grid_agent.edges.looks.BUNDLE_AGAIN_S", 0.0)
    await looks.look(m.LookAtHost("gpu1", "id2", "head"), HEAD)
    assert host.asked[-1]


MEMORY = Path("/sys/fs/cgroup/memory")
LIMITED = os.access(MEMORY, os.W_OK) and (MEMORY / "memory.limit_in_bytes").exists()


@pytest.mark.skipif(not LIMITED, reason="needs root and cgroup v1 to limit memory")
def test_a_process_that_the_kernel_killed_for_memory_is_found_in_its_log(tmp_path: Path) -> None:
    program = tmp_path / "raylet"
    program.write_bytes(Path("/bin/sh").resolve().read_bytes())
    program.chmod(0o755)
    group = MEMORY / f"grid-agent-{os.getpid()}"
    group.mkdir()
    try:
        (group / "memory.limit_in_bytes").write_text(str(8 * 2**20))
        eat = [str(program), "-c", "read x; a=x; while :; do a=$a$a; done"]
        with subprocess.Popen(eat, stdin=subprocess.PIPE) as process:
            (group / "cgroup.procs").write_text(str(process.pid))
            assert process.stdin is not None
            process.stdin.write(b"\n")
            process.stdin.close()
            assert process.wait(30) == -9
        assert "oom_kill 1" in (group / "memory.oom_control").read_text()
        if not list(last_words.kernel_log()):
            pytest.skip("the kernel's log is not ours to read")
        (line,) = last_words._killed_for_memory(process.pid, 1.0)[-1:]
        assert "(raylet)" in line
    finally:
        group.rmdir()
