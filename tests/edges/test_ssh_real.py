"""The SSH transport against a real sshd of our own on loopback, and against ports where there is none."""

import asyncio
import contextlib
import getpass
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from grid_agent.edges.hosts import SshHost
from grid_agent.edges.ssh_client import SshTarget

SSHD = shutil.which("sshd", path=f"{os.environ['PATH']}:/usr/sbin")
pytestmark = [
    pytest.mark.skipif(SSHD is None, reason="needs openssh-server: sshd is not installed"),
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to run an sshd of its own"),
]
LOOK = {"op": "look", "gcs_address": "192.0.2.9:1"}


@dataclass(frozen=True)
class Server:
    """A running sshd: how to reach it, its folder, and a folder for control sockets."""

    target: SshTarget
    folder: Path
    control: str


def keygen(path: Path) -> str:
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(path)], check=True)
    return path.with_suffix(".pub").read_text().strip()


@pytest.fixture
def server() -> Iterator[Server]:
    assert SSHD
    Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)  # where sshd shuts its unprivileged half in
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="gs", dir="/root")))
        control = stack.enter_context(tempfile.TemporaryDirectory(prefix="gc", dir="/tmp"))
        host_key = keygen(folder / "host")
        (folder / "authorized").write_text(keygen(folder / "id") + "\n")
        with socket.create_server(("127.0.0.1", 0)) as probe:
            port = probe.getsockname()[1]
        (folder / "known").write_text(f"[127.0.0.1]:{port} {host_key}\n")
        settings = {
            "ListenAddress": f"127.0.0.1:{port}",
            "HostKey": folder / "host",
            "AuthorizedKeysFile": folder / "authorized",
            "PidFile": "none",
            "PasswordAuthentication": "no",
            "KbdInteractiveAuthentication": "no",
            "UsePAM": "no",
            "PermitRootLogin": "prohibit-password",
        }
        (folder / "config").write_text("".join(f"{key} {value}\n" for key, value in settings.items()))
        with (folder / "log").open("w") as log:
            daemon = subprocess.Popen([SSHD, "-D", "-e", "-f", str(folder / "config")], stderr=log)
        try:
            listening(port)
            key, known = str(folder / "id"), str(folder / "known")
            yield Server(SshTarget("127.0.0.1", getpass.getuser(), port, key, known, 2.0), folder, control)
        finally:
            daemon.kill()
            daemon.wait()


def listening(port: int) -> None:
    until = time.monotonic() + 5
    while True:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        assert time.monotonic() < until
        time.sleep(0.02)


async def no_socket(control: str) -> None:
    """OpenSSH hangs up on whoever told it to exit before it removes its socket."""
    until = time.monotonic() + 5
    while left := list(Path(control).iterdir()):
        assert time.monotonic() < until, left
        await asyncio.sleep(0.01)


async def test_an_answer_comes_back_and_the_connection_is_kept(server: Server) -> None:
    host = SshHost(server.target, server.control)
    try:
        first = await host.call(LOOK, 10.0)
        assert first["ok"], first
        assert first["raylets"] == []
        assert len(list(Path(server.control).iterdir())) == 1
        assert (await host.call(LOOK, 10.0))["ok"]
        assert (server.folder / "log").read_text().count("Accepted publickey") == 1
    finally:
        await host.close()
    await no_socket(server.control)


async def test_a_connection_is_open_before_it_is_needed_and_opened_again(server: Server) -> None:
    host = SshHost(server.target, server.control)
    log = server.folder / "log"
    try:
        for logins in (1, 2):
            await host.keep_ready()
            await host.keep_ready()
            assert len(list(Path(server.control).iterdir())) == 1
            assert (await host.call(LOOK, 10.0))["ok"]
            assert log.read_text().count("Accepted publickey") == logins
            await host.close()
            await no_socket(server.control)
    finally:
        await host.close()


async def test_an_answer_comes_back_without_a_kept_connection(server: Server) -> None:
    assert (await SshHost(server.target, None).call(LOOK, 10.0))["ok"]


async def test_a_raylet_outlives_the_connection_that_started_it(server: Server) -> None:
    gcs, name = f"192.0.2.9:{server.target.port}", "gpu1; touch /root/pwned"
    script = server.folder / "ray"
    words = f"--gcs-address={gcs} --node_id={'e5' * 28}"
    program = f"{sys.executable} -Sc 'import time; time.sleep(60)' {words}"
    script.write_text(f'#!/bin/bash\n(exec -a /opt/raylet {program} "--node-name=$1") &\nsleep 0.5\n')
    script.chmod(0o700)
    request = {
        "op": "start",
        "argv": [str(script), name],
        "env": {"PATH": os.environ["PATH"]},
        "log": str(server.folder / "start.log"),
        "lock": str(server.folder / "start.lock"),
        "timeout_s": 10,
        "node_name": name,
        "gcs_address": gcs,
    }
    host = SshHost(server.target, None)
    started = await host.call(request, 15.0)
    assert started["ok"], started
    who = {"gcs_address": gcs, "node_name": name}
    try:
        seen = await host.call({"op": "look", **who}, 10.0)
        assert [row["pid"] for row in seen["raylets"]] == [started["raylet"]["pid"]]
    finally:
        ended = await host.call({"op": "end", **who, "all_of_name": True, "term_s": 1}, 10.0)
    assert [row["pid"] for row in ended["ended"]] == [started["raylet"]["pid"]]
    assert not Path("/root/pwned").exists()


async def failure(target: SshTarget) -> str:
    answer = await SshHost(target, None).call(LOOK, 5.0)
    assert not answer["ok"]
    assert answer["detail"].startswith(f"{target}: ")
    return str(answer["error"])


async def test_what_sshd_refuses_has_a_name(server: Server) -> None:
    target, folder = server.target, server.folder
    (folder / "none").write_text("")
    assert await failure(replace(target, known_hosts_file=str(folder / "none"))) == "host_key_unknown"
    changed = f"[127.0.0.1]:{target.port} {keygen(folder / 'other')}\n"
    (folder / "changed").write_text(changed)
    assert await failure(replace(target, known_hosts_file=str(folder / "changed"))) == "host_key_changed"
    assert await failure(replace(target, key_file=str(folder / "other"))) == "key_refused"
    assert await failure(replace(target, user="nobody")) == "key_refused"
    (folder / "open").write_text((folder / "id").read_text())
    (folder / "open").chmod(0o644)
    assert await failure(replace(target, key_file=str(folder / "open"))) == "key_refused"


async def test_where_no_sshd_is_has_a_name(server: Server) -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        closed = probe.getsockname()[1]
    assert await failure(replace(server.target, port=closed)) == "refused"
    assert await failure(replace(server.target, host="no-such-host.invalid")) == "unresolved"
    with socket.create_server(("127.0.0.1", 0)) as silent:
        silent_port = silent.getsockname()[1]
        assert (
            await failure(replace(server.target, port=silent_port, connect_timeout_s=1.0))
            == "connect_timeout"
        )


async def test_a_host_without_python_is_named(server: Server) -> None:
    keys = server.folder / "authorized"
    keys.write_text(f'command="PATH=/nowhere; eval \\"$SSH_ORIGINAL_COMMAND\\"" {keys.read_text()}')
    assert await failure(server.target) == "command_missing"


async def test_a_host_with_an_old_python_is_named(server: Server) -> None:
    known = [
        *Path.home().glob(".pyenv/versions/3.[678].*/bin/python3"),
        *Path("/usr/bin").glob("python3.[678]"),
    ]
    if not known:
        pytest.skip("no Python older than 3.9 here")
    (server.folder / "python3").symlink_to(known[0])
    keys = server.folder / "authorized"
    keys.write_text(f'command="PATH={server.folder}; eval \\"$SSH_ORIGINAL_COMMAND\\"" {keys.read_text()}')
    assert await failure(server.target) == "python_too_old"
