"""One host of a lab: what runs on it, its cable, its power, its SSH server."""

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support import lab_ssh
from tests.support.netns import Box, argv_of, raylets_among, run_group, status_of, tool

_KINDS = ("mount", "uts", "ipc", "net", "pid")
_DISK = {"/tmp": 0o1777, lab_ssh.ROOT_HOME: 0o755, "/home": 0o755}
_MEMORY = {"/run": "755", "/dev/shm": "1777", "/var/log": "755"}


@dataclass(frozen=True)
class Site:
    """What all hosts of a lab have in common."""

    switch: Box
    addresses: dict[str, str]
    public_key: str
    keep: tuple[str, ...]
    """Paths that stay as they are on every host: the interpreter."""
    ours: tuple[str, ...]
    """Paths that stay on the head, and are empty on the workers: virtual environment and this project."""
    readonly: tuple[str, ...]


class Host:
    """A host with its own processes, network, name, /tmp, /root, /home, /run, /dev/shm and SSH server.

    Pids are those of the machine underneath; `inner` translates. What is below /tmp, /root and /home
    outlives `power_off`, as a disk does; see `path`.
    """

    def __init__(self, name: str, number: int, folder: Path, site: Site) -> None:
        self.name, self.address, self.folder = name, site.addresses[name], folder
        self.port = f"port{number}"  # its end of the cable on the switch
        self._mac = f"02:77:00:00:00:{number:02x}"
        self._site = site
        self._is_head = number == 0
        self._box: Box | None = None
        self._etc = folder / "etc"
        self._etc.mkdir(parents=True)
        for inside, mode in _DISK.items():
            self.path(inside).mkdir(parents=True)
            self.path(inside).chmod(mode)
        homes = {"root": self.path(lab_ssh.ROOT_HOME), lab_ssh.USER: self.path(f"/home/{lab_ssh.USER}")}
        lab_ssh.authorize(homes, site.public_key)
        self._files = lab_ssh.write_accounts(self._etc, name, site.addresses)
        self.change_host_key()
        lab_ssh.write_server_config(self._etc / "sshd_config", self._host_key)

    @property
    def _host_key(self) -> Path:
        return self._etc / "ssh_host_ed25519_key"

    @property
    def box(self) -> Box:
        """Its namespaces."""
        assert self._box is not None, f"{self.name} is powered off"
        return self._box

    @property
    def pid1(self) -> int:
        """Its first process."""
        return self.box.pid

    def path(self, inside: str) -> Path:
        """Where a file below its /tmp, /root or /home is for us."""
        assert any(Path(inside).is_relative_to(folder) for folder in _DISK), f"{inside} is not on its disk"
        return self.folder / "disk" / inside.lstrip("/")

    # What runs on it

    def popen(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        cwd: str = "/",
        user: str = "root",
        **more: Any,
    ) -> "subprocess.Popen[str]":
        """Start a command there, in a group of its own, with a clean environment and `env` on top."""
        home = lab_ssh.ROOT_HOME if user == "root" else f"/home/{user}"
        clean = {
            "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "HOME": home,
            "USER": user,
            "LOGNAME": user,
            "LANG": "C.UTF-8",
            "RAY_USAGE_STATS_ENABLED": "0",
        }
        return subprocess.Popen(
            self.box.command(argv, cwd, user),
            env={**clean, **(env or {})},
            start_new_session=True,
            text=True,
            **more,
        )

    def run(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        input: str | None = None,  # noqa: A002 - as in subprocess.run
        timeout_s: float = 60,
        cwd: str = "/",
        user: str = "root",
    ) -> subprocess.CompletedProcess[str]:
        """Run a command there to its end; after `timeout_s` kill its process group, raise TimeoutExpired."""
        pipe = subprocess.PIPE
        given = subprocess.DEVNULL if input is None else pipe
        process = self.popen(argv, env=env, cwd=cwd, user=user, stdin=given, stdout=pipe, stderr=pipe)
        return run_group(process, argv, input, timeout_s)

    def processes(self) -> dict[int, list[str]]:
        """Pid -> argv of everything that runs there, zombies and the first process left out."""
        return {pid: argv for pid in self.box.members() if (argv := argv_of(pid))}

    def raylets(self) -> dict[int, list[str]]:
        """Pid -> argv of the raylets there."""
        return raylets_among(self.processes())

    def zombies(self) -> list[int]:
        """Pids of the dead there that nobody has collected."""
        return [pid for pid in self.box.members() if status_of(pid, "State").startswith("Z")]

    def inner(self, pid: int) -> int:
        """The pid by which the host itself knows a process."""
        return int(status_of(pid, "NSpid").split()[-1])

    def kill(self, pid: int, sig: int = signal.SIGKILL) -> None:
        """Send a signal to one of its processes, and to no other."""
        assert pid in self.box.members(), f"process {pid} is not on {self.name}"
        os.kill(pid, sig)

    # Its cable and its power

    def cut(self) -> None:
        """Pull the cable: no packet comes or goes, and nobody is told."""
        self._ip(["link", "set", self.port, "down"])

    def heal(self) -> None:
        """Plug the cable in again."""
        self._ip(["link", "set", self.port, "up"])

    def power_on(self) -> None:
        """Start the host: same address, host key and disk as before, and only its SSH server running."""
        assert self._box is None, f"{self.name} is powered on"
        spec = {
            "hostname": self.name,
            "disk": {inside: str(self.path(inside)) for inside in _DISK},
            "memory": _MEMORY,
            "files": self._files,
            "keep": [*self._site.keep, *(self._site.ours if self._is_head else ())],
            "hide": [] if self._is_head else self._hidden(),
            "readonly": self._site.readonly,
            "stage": str(self.folder / "stage"),
        }
        self._box = Box(_KINDS, spec, self.folder / "init.log")
        peer = ["peer", "name", "eth0", "address", self._mac, "netns", str(self.pid1)]
        self._ip(["link", "add", "name", self.port, "type", "veth", *peer])
        self._ip(["link", "set", self.port, "master", "switch", "up"])
        gateway = self.address.rpartition(".")[0] + ".1"
        self._own_ip(
            "link set lo up",
            "link set eth0 up",
            f"address add {self.address}/24 dev eth0",
            f"route add default via {gateway}",
        )
        self.start_sshd()

    def power_off(self) -> None:
        """Take the power away: the cable first, so that no other host hears of it, then every process."""
        if self._box is None:
            return
        try:
            self._ip(["link", "set", self.port, "down"], check=False)
            self._box.close()
            self._ip(["link", "delete", self.port], check=False)
        finally:
            self._box = None

    def _hidden(self) -> list[str]:
        needed = [*self._site.keep, *self._site.readonly, str(self.folder)]
        return [path for path in self._site.ours if not any(Path(n).is_relative_to(path) for n in needed)]

    def reboot(self) -> None:
        """Power off and on, with an empty /tmp and the cable plugged in."""
        self.power_off()
        for entry in self.path("/tmp").iterdir():
            shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()
        self.power_on()

    def _ip(self, args: Sequence[str], *, check: bool = True) -> None:
        command = self._site.switch.command([tool("ip"), *args])
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0 or not check, f"ip {' '.join(args)}: {done.stderr}"

    def _own_ip(self, *lines: str) -> None:
        done = self.run([tool("ip"), "-batch", "-"], input="\n".join(lines) + "\n")
        assert done.returncode == 0, done.stderr

    # Its SSH server

    def start_sshd(self) -> None:
        """Start the SSH server and wait until it listens."""
        assert not self.sshd_pid(), f"{self.name} has a listening SSH server"
        self._pid_file.unlink(missing_ok=True)
        argv = [tool("sshd"), "-f", str(self._etc / "sshd_config"), "-E", str(self.folder / "sshd.log")]
        done = self.run(argv)
        assert done.returncode == 0, done.stderr
        deadline = time.monotonic() + 10
        while not self.sshd_pid():  # it writes its pid file once it listens
            assert time.monotonic() < deadline, (self.folder / "sshd.log").read_text()[-2000:]
            time.sleep(0.01)

    def stop_sshd(self) -> None:
        """End the listening server; sessions that are open stay, as with `systemctl stop ssh`."""
        pid = self.sshd_pid()
        if pid:
            self.kill(pid)
            self._pid_file.unlink()

    @property
    def _pid_file(self) -> Path:
        return Path(f"/proc/{self.pid1}/root/run/sshd.pid")

    def sshd_pid(self) -> int | None:
        """The listening SSH server. Stopped by SIGSTOP, it is a server that accepts and says nothing."""
        try:
            inside = int(self._pid_file.read_text())
        except (OSError, ValueError):
            return None
        return next((pid for pid in self.processes() if self.inner(pid) == inside), None)

    def change_host_key(self) -> None:
        """A new host key, as after a reinstallation; a server that runs uses it from its next start on."""
        self.public_host_key = lab_ssh.make_key(self._host_key, self.name)
