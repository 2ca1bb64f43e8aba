"""Our cluster on a lab, for tests of what the agent finds there: commands, answers, harm, processes."""

import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.support.cluster import ROOT, UNLIMITED, until
from tests.support.hosts import STATE, Lab
from tests.support.netns import status_of

GET = """
import sys, urllib.error, urllib.request
try:
    answer = urllib.request.urlopen(sys.argv[1], timeout=3)
except urllib.error.HTTPError as error:  # 503 has a body, too
    answer = error
print(answer.read().decode())
"""
CPU, MEMORY = Path("/sys/fs/cgroup/cpu"), Path("/sys/fs/cgroup/memory")


class LabCluster:
    """A head and two workers over SSH in token mode; `agent` and `guards` are those of the cluster file."""

    def __init__(self, lab: Lab, nodes: dict[str, dict[str, Any]] | None = None, **agent: float) -> None:
        self.lab = lab
        self.file = lab.write_cluster_file(nodes=nodes, agent=agent, guards=UNLIMITED)

    # --- the commands ---

    def python(self, *argv: str) -> Any:
        env = {"RAY_AUTH_MODE": "disabled", "PYTHONPATH": str(ROOT)}
        return self.lab.head.run([sys.executable, *argv], env=env, timeout_s=240)

    def start(self) -> Any:
        return self.python(str(ROOT / "bootstrap" / "start.py"), "-c", str(self.file))

    def stop(self) -> Any:
        return self.python(str(ROOT / "bootstrap" / "stop.py"), "-c", str(self.file))

    def clean(self) -> None:
        """Leave the lab as it was."""
        self.stop()
        for host in self.lab.hosts.values():
            host.reboot()
            shutil.rmtree(host.path("/root/.local"), ignore_errors=True)

    # --- what the agent says ---

    def get(self, path: str) -> dict[str, Any]:
        """What the agent answers on the head, empty while it does not."""
        python = [str(self.lab.worker_bin / "python"), "-I", "-S", "-c", GET]
        said = self.lab.head.run([*python, f"http://127.0.0.1:8000/cluster{path}"]).stdout
        return dict(json.loads(said)) if said else {}

    def why(self, name: str) -> dict[str, Any]:
        return self.get(f"/why/{name}")

    def in_health(self, name: str) -> dict[str, Any]:
        """The row of a node in the health answer, empty while there is none."""
        rows = self.get("/health").get("nodes", [])
        return dict(next((row for row in rows if row["name"] == name), {}))

    def state(self, name: str) -> tuple[str | None, str | None]:
        """State and cause of a node."""
        found = self.why(name)
        return found.get("state"), found.get("cause")

    def incidents(self) -> list[dict[str, Any]]:
        """Newest first."""
        return list(self.get("/incidents").get("incidents", []))

    def comes(self, name: str, state: str, cause: str | None, within_s: float) -> dict[str, Any]:
        """Wait until the node is so; returns its story at that moment."""
        seen: list[Any] = []

        def there() -> dict[str, Any]:
            story = self.why(name)
            now = (story.get("state"), story.get("cause"))
            if not seen or seen[-1] != now:
                seen.append(now)
            return story if now == (state, cause) else {}

        try:
            return dict(until(there, within_s, 0.2))
        except AssertionError as error:
            raise AssertionError(f"{name} was {seen}, never {(state, cause)}: {self.why(name)}") from error

    def stays(self, name: str, pid: int, seconds: float) -> set[tuple[str | None, str | None]]:
        """Watch for so long that the raylet is not restarted; returns the states and causes seen."""
        seen, end = set(), time.monotonic() + seconds
        while time.monotonic() < end:
            assert self.raylet(name) == pid, f"{name} was restarted: {self.why(name)}"
            seen.add(self.state(name))
            time.sleep(0.3)
        return seen

    def healed(self, name: str, old: int, within_s: float = 90) -> dict[str, Any]:
        """Wait for a new raylet that is ALIVE; returns the last incident."""
        try:
            until(lambda: self.raylet(name) not in (0, old) and self.state(name)[0] == "ALIVE", within_s, 0.3)
        except AssertionError as error:
            raise AssertionError(f"{name} was {old}, is {self.raylet(name)}: {self.why(name)}") from error
        return next(i for i in self.incidents() if name in i["nodes"])

    # --- what the hosts show, and harm ---

    def titled(self, host: str, title: str) -> list[int]:
        """Pids of the processes on a host that gave themselves a title that begins so."""
        return [pid for pid, argv in self.lab.hosts[host].processes().items() if argv[0].startswith(title)]

    def raylets(self, name: str) -> set[int]:
        """The pids of the raylets on a host."""
        return set(self.lab.hosts[name].raylets())

    def raylet(self, name: str) -> int:
        """The pid of our raylet on a host, 0 when there is none."""
        ours = self.raylets(name)
        assert len(ours) <= 1
        return ours.pop() if ours else 0

    def start_another(self, name: str) -> int:
        """One more raylet of the same name, as a person would start it on that host by hand; its pid."""
        before = self.raylets(name)
        host = self.lab.hosts[name]
        ray = [str(self.lab.worker_bin / "ray"), "start", f"--address={self.lab.head.address}:6379"]
        flags = [f"--node-name={name}", "--num-cpus=1", "--num-gpus=0", "--object-store-memory=80000000"]
        env = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": f"{STATE}/ray_token"}
        more = ["--dashboard-agent-listen-port=0", "--temp-dir=/tmp/another", "--disable-usage-stats"]
        said = host.run([*ray, *flags, *more], env={**env, "RAY_USAGE_STATS_ENABLED": "0"}, timeout_s=60)
        assert said.returncode == 0, said.stdout + said.stderr
        (new,) = self.raylets(name) - before
        return new

    @contextmanager
    def paused(self, host: str, pid: int) -> Iterator[None]:
        """A stopped process. That it was in fact stopped until the end is checked."""
        self.lab.hosts[host].kill(pid, signal.SIGSTOP)
        until(lambda: status_of(pid, "State").startswith("T"), 2)
        try:
            yield
            gone = not Path(f"/proc/{pid}").exists()
            assert gone or status_of(pid, "State").startswith("T"), "the process was not stopped all along"
        finally:
            if Path(f"/proc/{pid}").exists():
                os.kill(pid, signal.SIGCONT)

    @contextmanager
    def cut(self, *names: str) -> Iterator[None]:
        """Pulled cables; that nobody got through is checked."""
        for name in names:
            self.lab.hosts[name].cut()
        try:
            yield
            for name in names:
                assert self.lab.head.run(self.lab.ssh(name, "true", ConnectTimeout="1")).returncode == 255
        finally:
            for name in names:
                self.lab.hosts[name].heal()

    @contextmanager
    def no_new_connections(self, src: str, dst: str) -> Iterator[None]:
        """Drop what begins a TCP connection from one host to another, but to its SSH port."""
        match = f"iifname {self.lab.hosts[src].port} oifname {self.lab.hosts[dst].port} ether type ip"
        match += " tcp dport != 22 tcp flags & (syn | ack) == syn counter drop"
        before = self._rules()
        self.lab.nft("add", "rule", "bridge", "lab", "frames", *match.split())
        (rule,) = set(self._rules()) - set(before)
        try:
            yield
            assert "packets 0 " not in self._rules()[rule], "nobody tried to connect: the fault had no effect"
        finally:
            self.lab.nft("delete", "rule", "bridge", "lab", "frames", "handle", rule)

    def _rules(self) -> dict[str, str]:
        lines = self.lab.nft("--handle", "list", "chain", "bridge", "lab", "frames").splitlines()
        found = [line.partition(" # handle ") for line in lines if "counter" in line]
        return {handle.strip(): rule for rule, _, handle in found}

    @contextmanager
    def out_of_memory(self, pid: int) -> Iterator[None]:
        """Not a page more for this process; that the kernel killed it for that is checked. cgroup v1 only."""
        group = MEMORY / f"grid-agent-{os.getpid()}"
        group.mkdir()
        try:
            (group / "memory.limit_in_bytes").write_text(str(2**20))
            (group / "cgroup.procs").write_text(str(pid))
            yield
            assert "oom_kill 0" not in (group / "memory.oom_control").read_text(), "the kernel killed nobody"
        finally:
            for left in (group / "cgroup.procs").read_text().split():
                (MEMORY / "cgroup.procs").write_text(left)
            group.rmdir()

    @contextmanager
    def starved(self, pids: list[int], percent: float) -> Iterator[None]:
        """So little CPU for these processes; that they had to wait for it is checked. cgroup v1 only."""
        group = CPU / f"grid-agent-{os.getpid()}"
        group.mkdir()
        try:
            (group / "cpu.cfs_period_us").write_text(
                "1000000"
            )  # the longest: the quota has a least value, too
            (group / "cpu.cfs_quota_us").write_text(str(int(10_000 * percent)))
            for pid in pids:
                (group / "cgroup.procs").write_text(str(pid))
            yield
            throttled = dict(line.split() for line in (group / "cpu.stat").read_text().splitlines())
            assert int(throttled["nr_throttled"]) > 10, "they had all the CPU they wanted"
        finally:
            for pid in (group / "cgroup.procs").read_text().split():
                (CPU / "cgroup.procs").write_text(pid)
            group.rmdir()
