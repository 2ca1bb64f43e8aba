"""The clusters that are measured, each node on a host of its own, made of namespaces."""

import asyncio
import ctypes
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from bench.support.contender import LOST_TASK, Contender
from bench.support.contenders import Bare, WithAgent
from tests.support.cluster import ROOT, UNLIMITED
from tests.support.hosts import STATE, Lab, Rule
from tests.support.lab_host import Host

NODES = ("head", "w1", "w2")
PORT = 6379
QUIET_S = 300  # TCP waits at most 120 s until it sends again
ENV = {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}
CLONE_NEWNET = 0x40000000


def enter(host: Host) -> None:
    """Make the network of a host ours. Before this process has a second thread: each has its own."""
    namespace = os.open(f"/proc/{host.pid1}/ns/net", os.O_RDONLY)
    try:
        if ctypes.CDLL(None, use_errno=True).setns(namespace, CLONE_NEWNET) != 0:
            raise OSError(ctypes.get_errno(), "setns")
    finally:
        os.close(namespace)


class OnHosts(Contender):
    """A cluster whose nodes are `hosts` of a lab, by the names that Ray knows."""

    lab: Lab
    hosts: dict[str, Host]

    def raylet(self, worker: str) -> int | None:
        """By the process list of its host."""
        return next(iter(self.hosts[worker].raylets()), None)

    def cut(self, worker: str) -> None:
        """Pull its cable."""
        self.hosts[worker].cut()

    def heal(self, worker: str) -> None:
        """Plug it in again."""
        self.hosts[worker].heal()

    async def cut_off(self, worker: str) -> bool:
        """Nobody answers a connect to its SSH server, not even with a refusal."""
        try:
            await asyncio.wait_for(asyncio.open_connection(self.hosts[worker].address, 22), 1.0)
        except TimeoutError:
            return True
        except OSError as error:
            return not isinstance(error, ConnectionError)
        return False

    async def quiet(self, worker: str) -> None:
        """TCP sends again after waits that double: a minute after a cut some connections still are silent."""
        for _ in range(QUIET_S):
            if not any(self._resending(node) for node in ("head", worker)):
                return
            await asyncio.sleep(1.0)
        raise TimeoutError(
            f"{self.name}: connections of {worker} are not back {QUIET_S} s after a disturbance"
        )

    def _resending(self, node: str) -> bool:
        """Whether an established connection of this host waits to send something again (proc(5), net/tcp)."""
        net = Path(f"/proc/{self.hosts[node].pid1}/net")
        rows = [row.split() for name in ("tcp", "tcp6") for row in (net / name).read_text().splitlines()[1:]]
        return any(state == "01" and int(tries, 16) for _, _, _, state, _, _, tries, *_ in rows)

    def lose(self, worker: str, percent: int) -> Callable[[], int]:
        """At the switch, in both directions."""
        rules = self.lab.loss(self.hosts[worker].name, percent)

        def end() -> int:
            lost = sum(self._dropped(rule) for rule in rules)
            for rule in rules:
                rule.undo()
            return lost

        return end

    def _dropped(self, rule: Rule) -> int:
        listed = self.lab.nft("--handle", "list", "chain", "bridge", "lab", "frames")
        line = next(line for line in listed.splitlines() if line.endswith(f"# handle {rule.handle}"))
        found = re.search(r"counter packets (\d+)", line)
        assert found, line
        return int(found[1])

    @property
    def address(self) -> str:
        """The GCS, as everybody reaches it."""
        return f"{self.hosts['head'].address}:{PORT}"

    async def _spawn(self, script: Path, *argv: str) -> "asyncio.subprocess.Process":
        """Run a script on the head."""
        copy = self.lab.folder / script.name
        shutil.copy(LOST_TASK if script == LOST_TASK else script, copy)
        return await self._on(
            "head",
            str(self.lab.worker_bin / "python"),
            str(copy),
            *argv,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )

    async def _on(self, node: str, *argv: str, stdout: int, stderr: int) -> "asyncio.subprocess.Process":
        """Begin a command on a host, with a clean environment."""
        path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
        env = {"PATH": path, "HOME": "/root", "USER": "root", "LANG": "C.UTF-8", **ENV}
        return await asyncio.create_subprocess_exec(
            *self.hosts[node].box.command(argv),
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=stderr,
            start_new_session=True,
        )


class LabAgent(OnHosts, WithAgent):
    """grid-agent with its own tuning, over SSH."""

    def __init__(self, lab: Lab, hosts: dict[str, Host], hang_s: float, unreachable_s: float) -> None:
        self.name, self.port, self.url = "grid-agent", PORT, "http://127.0.0.1:8000"
        self.lab, self.hosts = lab, hosts
        agent = {"hang_s": hang_s, "unreachable_s": unreachable_s}
        self._file = lab.write_cluster_file(ray={"auth": "disabled"}, guards=UNLIMITED, agent=agent)
        spec = json.loads(self._file.read_text())
        names = {host.name: node for node, host in hosts.items()}
        spec["nodes"] = [{**n, "name": names[n["name"]]} for n in spec["nodes"] if n["name"] in names]
        self._file.write_text(json.dumps(spec))

    async def start(self) -> None:
        """Run bootstrap/start.py on the head."""
        start = [sys.executable, str(ROOT / "bootstrap" / "start.py"), "-c", str(self._file)]
        run = self.hosts["head"].run
        for _ in range(3):  # on a busy machine Ray's own start gives up; the next one starts what is missing
            done = await asyncio.to_thread(run, [*start, "--timeout", "400"], env=ENV, timeout_s=420)
            if done.returncode == 0:
                return
        assert done.returncode == 0, done.stdout + done.stderr

    def close(self) -> None:
        """All of it ends with its hosts; what the agent has said stays in bench/results/detect_hosts.log."""
        log = self.hosts["head"].path(f"{STATE}/logs/agent.log")
        if log.exists():
            kept = ROOT / "bench" / "results" / "detect_hosts.log"
            kept.parent.mkdir(exist_ok=True)
            kept.write_text(log.read_text())
        for host in self.hosts.values():
            host.power_off()


class LabBare(OnHosts, Bare):
    """Ray alone, on hosts."""

    def __init__(self, lab: Lab, hosts: dict[str, Host], name: str, system_config: dict[str, int]) -> None:
        self.name, self.port, self.system_config = name, PORT, system_config
        self.lab, self.hosts = lab, hosts
        self._home = Path("/tmp/r")
        self._log = lab.folder / f"{hosts['head'].name}.log"

    def address_of(self, node: str) -> str:
        """Its own."""
        return self.hosts[node].address

    def close(self) -> None:
        """All of it ends with its hosts."""
        for host in self.hosts.values():
            host.power_off()

    def _end_all(self) -> None:
        self.hosts["head"].reboot()

    async def _start_once(self, node: str, *flags: str) -> int:
        ray = str(self.lab.worker_bin / "ray")
        with self._log.open("ab") as log:
            out = log.fileno()
            return await (await self._on(node, ray, "start", *flags, stdout=out, stderr=out)).wait()
