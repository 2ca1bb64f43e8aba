"""Several hosts on one machine: namespaces on one switch, each with its own SSH server. Needs root."""

import contextlib
import fcntl
import json
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support import lab_ssh
from tests.support.lab_host import Host, Site
from tests.support.netns import Box, tool
from tests.support.worker_venv import CACHE, ROOT, uv, worker_venv

_TOOLS = ("ip", "nft", "sshd", "ssh", "ssh-keygen", "unshare", "nsenter", "setpriv", "mount")
_PREFIX = "grid-agent-lab-"
STATE = "/root/.local/state/grid-agent/lab"  # of the cluster, on each of its hosts
# The switch is also the hosts' gateway, and answers that what lies beyond is unreachable.
_SWITCH = """
{ip} link add name switch type bridge
{ip} link set lo up
{ip} link set switch up
{ip} address add 10.77.0.1/24 dev switch
{ip} route add unreachable default
echo 1 > /proc/sys/net/ipv4/ip_forward
echo 0 > /proc/sys/net/ipv4/icmp_ratelimit
"""


def missing_tools() -> str | None:
    """Why no lab can be made here, and what to do about it; None when one can."""
    if os.geteuid() != 0:
        return "several hosts on one machine need root"
    for name in _TOOLS:
        try:
            tool(name)
        except FileNotFoundError as error:
            return f"{error}: run scripts/hosts-tools"
    if not uv():
        return "no uv for the workers' virtual environment: run scripts/setup"
    new = [f"--{kind}" for kind in ("net", "pid", "mount", "uts", "ipc")]
    try_it = subprocess.run(
        [tool("unshare"), *new, "--fork", "true"], capture_output=True, text=True, check=False
    )
    return f"may not make namespaces: {try_it.stderr.strip()}" if try_it.returncode else None


@dataclass(frozen=True)
class Rule:
    """Frames that the switch drops until `undo`, or until the end of a with block."""

    lab: "Lab"
    handle: str

    def __enter__(self) -> "Rule":
        return self

    def __exit__(self, *_: object) -> None:
        self.undo()

    def undo(self) -> None:
        """Let the frames pass again."""
        self.lab.nft("delete", "rule", "bridge", "lab", "frames", "handle", self.handle)


class Lab:
    """A head `gpu-master` and workers `gpu1`, `gpu2`, ... Nothing of it can be reached from outside.

    Everything of it lies in one folder below /var/tmp, which all hosts see under the same path, and ends
    when it is closed or when this process dies. The head has the interpreter that runs us, and this project;
    the workers see neither, but `worker_bin`, a Python with only Ray.
    """

    def __init__(self, workers: int = 2) -> None:
        _sweep()
        self.folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=CACHE))
        self.folder.chmod(0o755)
        self._ends = contextlib.ExitStack()
        self._ends.callback(shutil.rmtree, self.folder, ignore_errors=True)
        self.hosts: dict[str, Host] = {}
        try:
            self._make(["gpu-master", *(f"gpu{n + 1}" for n in range(workers))])
        except BaseException:
            self.close()
            raise

    def _make(self, names: list[str]) -> None:
        self._ends.enter_context(_claimed(self.folder))
        self.worker_bin = worker_venv() / "bin"
        self.key, self.known_hosts = self.folder / "id_ed25519", self.folder / "known_hosts"
        self._switch = Box(["net"], {}, self.folder / "switch.log")
        self._ends.callback(self._switch.close)
        script = self._switch.command(["sh", "-euc", _SWITCH.format(ip=tool("ip"))])
        subprocess.run(script, check=True)
        self.nft("add", "table", "bridge", "lab")
        self.nft("add", "chain", "bridge", "lab", "frames", "{ type filter hook forward priority 0 ; }")
        site = Site(
            switch=self._switch,
            addresses={name: f"10.77.0.{10 + n}" for n, name in enumerate(names)},
            public_key=lab_ssh.make_key(self.key, "lab"),
            keep=tuple(dict.fromkeys([sys.base_prefix, _real_prefix()])),
            ours=(sys.prefix, str(ROOT)),
            readonly=(str(self.worker_bin.parent),),
        )
        for number, name in enumerate(names):
            host = self.hosts[name] = Host(name, number, self.folder / name, site)
            self._ends.callback(host.power_off)
            host.power_on()
        self.write_known_hosts()

    @property
    def head(self) -> Host:
        """The host on which the cluster is started."""
        return self.hosts["gpu-master"]

    def write_known_hosts(self) -> None:
        """Write `known_hosts` anew, from the hosts' present keys."""
        lines = [f"{host.name},{host.address} {host.public_host_key}\n" for host in self.hosts.values()]
        self.known_hosts.write_text("".join(lines))

    def ssh(self, to: str, *command: str, user: str = "root", **options: str) -> list[str]:
        """The argv of ssh to a host, with strict host keys; more options as Name="value"."""
        chosen = {
            "BatchMode": "yes",
            "StrictHostKeyChecking": "yes",
            "UserKnownHostsFile": str(self.known_hosts),
            "IdentityFile": str(self.key),
            "IdentitiesOnly": "yes",
            "ConnectTimeout": "5",
            **options,
        }
        flags = [part for name, value in chosen.items() for part in ("-o", f"{name}={value}")]
        return ["ssh", *flags, f"{user}@{self.hosts[to].address}", *command]

    def drop(self, src: str, dst: str, protocol: str | None = None, port: int | None = None) -> Rule:
        """Drop the packets from one host to another, the other way stays open; `port` is that of `dst`."""
        match = ["iifname", self.hosts[src].port, "oifname", self.hosts[dst].port, "ether", "type", "ip"]
        if protocol:
            match += ["ip", "protocol", protocol]
        if port:
            match += [protocol or "tcp", "dport", str(port)]
        return self._rule(*match, "counter", "drop")

    def loss(self, host: str, percent: int) -> list[Rule]:
        """Lose so many of the frames to and from a host, at random."""
        port = self.hosts[host].port
        chance = ["numgen", "random", "mod", "100", "<", str(percent), "counter", "drop"]
        return [self._rule(side, port, *chance) for side in ("iifname", "oifname")]

    def _rule(self, *match: str) -> Rule:
        answer = self.nft("--echo", "--handle", "add", "rule", "bridge", "lab", "frames", *match)
        return Rule(self, answer.rpartition("# handle ")[2].split()[0])

    def nft(self, *args: str) -> str:
        """nft(8) on the switch."""
        return self._run_on_switch("nft", *args)

    def ip(self, *args: str) -> str:
        """ip(8) on the switch."""
        return self._run_on_switch("ip", *args)

    def on_switch(self, argv: list[str]) -> list[str]:
        """The argv that runs a program of this project on the switch."""
        return self._switch.command(argv, cwd=str(ROOT))

    def _run_on_switch(self, name: str, *args: str) -> str:
        command = self._switch.command([tool(name), *args])
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{name} {' '.join(args)}: {done.stderr}"
        return done.stdout

    def write_cluster_file(self, nodes: dict[str, dict[str, Any]] | None = None, **more: Any) -> Path:
        """A cluster file, under one path on all hosts: `nodes` adds to single nodes, `more` to the file."""
        spec = {
            "cluster": "lab",
            "nodes": [
                {
                    "name": host.name,
                    "host": host.address,
                    "role": "head" if host is self.head else "worker",
                    "num_cpus": 0 if host is self.head else 1,
                    "num_gpus": 0,
                    "object_store_memory_mb": 80,
                    **(nodes or {}).get(host.name, {}),
                }
                for host in self.hosts.values()
            ],
            "ssh": {
                "user": "root",
                "key_file": str(self.key),
                "known_hosts_file": str(self.known_hosts),
                "ray_bin": str(self.worker_bin),
            },
            **more,
        }
        file = self.folder / "cluster.json"
        file.write_text(json.dumps(spec, indent=1))  # JSON is YAML
        return file

    def close(self) -> None:
        """End and remove everything. May be called again."""
        self._ends.close()

    def __enter__(self) -> "Lab":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _real_prefix() -> str:
    """The folder of the interpreter itself, behind all links."""
    return str(Path(os.path.realpath(sys.executable)).parents[1])


@contextlib.contextmanager
def _claimed(folder: Path) -> Any:
    """Hold the folder's lock, so that others know that its lab is alive."""
    with (folder / "owner").open("w") as owner:
        fcntl.flock(owner, fcntl.LOCK_EX)
        yield


def _sweep() -> None:
    """Remove folders of labs whose owner was killed; their processes ended with it."""
    for folder in CACHE.glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError), (folder / "owner").open() as owner:
            fcntl.flock(owner, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)
