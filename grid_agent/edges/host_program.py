"""What runs on a host: looks at, ends and starts exactly one raylet; one function from request to answer.

Must never call `ray stop`, choose a process by a name pattern, or signal a pid whose start time was not
checked just before. Called by `hosts`: in a thread here, by value inside a Ray task, or piped to `python3`
over SSH; therefore one file, the standard library of Python 3.9 only, and nothing kept between two calls.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import ipaddress
import json
import os
import pwd
import re
import shutil
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

POLL_S = 0.02
RESOLVE_S = 1.0  # for one host name in another process's arguments
SETTLE_S = 1.0  # for a raylet that is just beginning or just ending, and shows no arguments
# Reads a program from standard input, which goes on after it. The program's length comes first.
LOADER = "import sys;i=sys.stdin.buffer;exec(compile(i.read(int(i.readline())),'ray_start','exec'))"
ENTRY_POINT = b"from ray.scripts.scripts import main"  # in the `ray` that pip and uv write
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
TAIL_LINES = 20
TAIL_CHARS = 4000
FAILURE_LINES = 8  # of a failure that has a name
WORDS = 5  # last words of a log, and workers named
WORD_CHARS = 300
LOOK_BYTES = 48 * 1024  # of a look's answer; whoever asks over SSH reads no more than 64 KiB
MOST_REMAINS = 100  # listed; that there are any is what counts
AGENT_TITLES = ("ray::DashboardAgent", "ray::RuntimeEnvAgent")  # beside the workers
NOT_BUSY = ("ray::IDLE", "ray::GridAgent", "ray::grid-agent: ")  # what waits, and what is the agent's own
LEAVE_S = 3.0
GREET_S = 0.5
# RFC 9113, 3.4: a client says this and SETTINGS; a server's first frame is SETTINGS: so gRPC greets.
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes((0, 0, 0, 4, 0, 0, 0, 0, 0))
SETTINGS = 4
FIRST_PID_NAMESPACE = 0xEFFFFFFC  # PROC_PID_INIT_INO of the kernel: here pids are those of its log
OOM_MARGIN_S = 30.0
AGENT_LOGS = (
    "dashboard_agent*.err",
    "dashboard_agent*.log",
    "runtime_env_agent*.err",
    "runtime_env_agent*.log",
)
# Ray's own programs, as they stand in argv, and the titles they give themselves. Arguments alone do not make
# a process part of Ray: a driver or an editor may carry the same address or session directory.
SCRIPTS = (
    "/ray/_private/log_monitor.py",
    "/ray/autoscaler/_private/monitor.py",
    "/ray/dashboard/dashboard.py",
    "/ray/dashboard/agent.py",
    "/ray/_private/runtime_env/agent/main.py",
    "/ray/_private/workers/setup_worker.py",
    "/ray/_private/workers/default_worker.py",
)
TITLES = ("ray::", "ray-dashboard-")
# What `ray start` says -> the name of the failure, and what to do. None of them goes away by trying again.
FAILURES = (
    (
        ("Version mismatch",),
        "version",
        "Ray and Python, to the last digit, must be those of the head: install them, or set ssh.ray_bin.",
    ),
    (
        (
            "UNAUTHENTICATED",
            "Unauthenticated",
            "InvalidAuthToken",
            "AuthenticationError",
            "uthentication token",
        ),
        "auth",
        "This host's Ray token is not the cluster's: stop.py, then start.py, gives every node the same.",
    ),
    (
        ("certificate is not yet valid", "certificate has expired"),
        "clock",
        "The clocks of this host and of the head differ: set them, with chrony or systemd-timesyncd.",
    ),
    (
        ("No space left on device", "Disk quota exceeded", "Read-only file system"),
        "disk",
        "Free some space there, or set temp_dir of this node to a folder on another disk.",
    ),
    (
        ("No such option", "Invalid value for", "unexpected extra argument", "invalid choice"),
        "config",
        "`ray start` does not take what the cluster file makes of this node: change that, or Ray's version.",
    ),
)


Held = tuple[int, ...]  # descriptors of the locks held


class HostError(Exception):
    """An operation's named failure; becomes the error answer."""

    def __init__(self, error: str, detail: str, **more: Any) -> None:
        super().__init__(detail)
        self.answer = {"ok": False, "error": error, "detail": detail, **more}


class Proc(NamedTuple):
    """One row of /proc. `start` is in clock ticks since boot: with the pid it names a process for good."""

    pid: int
    start: int
    state: str
    ppid: int
    sid: int
    comm: str
    argv: tuple[str, ...]

    @property
    def program(self) -> str:
        """Base name of argv[0], `raylet` for example."""
        return self.argv[0].rsplit("/", 1)[-1] if self.argv else self.comm

    @property
    def name(self) -> str:
        """What a person calls it: the script of an interpreter, else the program."""
        scripts = [word for word in self.argv[1:] if not word.startswith("-")]
        word = scripts[0] if scripts and self.program.startswith("python") else self.program
        return word.rsplit("/", 1)[-1][:40].rstrip()

    @property
    def ended(self) -> bool:
        """Whether nothing runs any more, although the row is still there: a zombie."""
        return self.state in ("Z", "X")

    def option(self, name: str) -> str | None:
        """Value of `--name=value`, a whole argument, or None."""
        prefix = f"--{name}="
        return next((word[len(prefix) :] for word in self.argv if word.startswith(prefix)), None)

    def runs(self, script: str) -> bool:
        """Whether its interpreter was given this script."""
        return any(word.endswith(script) for word in self.argv[1:5])


def _read(path: str) -> bytes:
    """The file, or nothing when it has gone or is not ours to read."""
    try:
        return Path(path).read_bytes()
    except OSError:
        return b""


def _pids() -> list[int]:
    return [int(entry) for entry in os.listdir("/proc") if entry.isdigit()]  # noqa: PTH208


def _proc(pid: int, *, argv: bool = True) -> Proc | None:
    data = _read(f"/proc/{pid}/stat")
    if b")" not in data:
        return None
    end = data.rindex(b")")
    rest = data[end + 2 :].split()
    words = _read(f"/proc/{pid}/cmdline").split(b"\0") if argv else []
    return Proc(
        pid=pid,
        start=int(rest[19]),
        state=rest[0].decode(),
        ppid=int(rest[1]),
        sid=int(rest[3]),
        comm=data[data.index(b"(") + 1 : end].decode("utf-8", "replace"),
        argv=tuple(word.decode("utf-8", "replace") for word in words if word),
    )


def _table() -> dict[int, Proc]:
    return {proc.pid: proc for proc in map(_proc, _pids()) if proc is not None}


def _alive(proc: Proc) -> bool:
    """Whether this very process still runs: same pid, same start, not a zombie."""
    now = _proc(proc.pid, argv=False)
    return now is not None and now.start == proc.start and not now.ended


def _state(proc: Proc) -> str:
    return getattr(_proc(proc.pid, argv=False), "state", "?")


def _descendants(table: dict[int, Proc], roots: Iterable[int], spared: Iterable[int] = ()) -> set[int]:
    """All that descends from the roots, except the processes `spared` and what descends through them."""
    children: dict[int, list[int]] = {}
    for proc in table.values():
        if proc.pid not in spared:
            children.setdefault(proc.ppid, []).append(proc.pid)
    found: set[int] = set()
    queue = list(roots)
    while queue:
        fresh = [pid for pid in children.get(queue.pop(), []) if pid not in found]
        found.update(fresh)
        queue.extend(fresh)
    return found


def _environ(pid: int) -> dict[str, str]:
    """What is left of the environment: a title set later may have overwritten part of it."""
    rows = _read(f"/proc/{pid}/environ").decode("utf-8", "replace").split("\0")
    return {key: value for key, _, value in (row.partition("=") for row in rows)}


def _open_files(pid: int) -> Iterator[tuple[str, str]]:
    """Descriptor number and target of each open file that we may see."""
    with contextlib.suppress(OSError):
        for number in os.listdir(f"/proc/{pid}/fd"):  # noqa: PTH208
            with contextlib.suppress(OSError):
                yield number, os.readlink(f"/proc/{pid}/fd/{number}")  # noqa: PTH115


def _writes_to(pid: int, wanted: Callable[[str], bool]) -> bool:
    """Whether it holds such a path open for writing; readers (`tail -f`, the log monitor) do not count."""
    for number, target in _open_files(pid):
        if wanted(target):
            flags = re.search(rb"flags:\s+(\d+)", _read(f"/proc/{pid}/fdinfo/{number}"))
            if flags and int(flags.group(1), 8) & 3:
                return True
    return False


def _addresses(host: str) -> set[str]:
    """The IP addresses of a host; none when its name says nothing here, or not in time."""
    with contextlib.suppress(ValueError):
        return {_plain(host)}
    found: set[str] = set()

    def ask() -> None:
        with contextlib.suppress(OSError, UnicodeError):
            found.update(_plain(str(row[4][0])) for row in socket.getaddrinfo(host, None))

    thread = threading.Thread(target=ask, daemon=True)  # a resolver without its servers waits for long
    thread.start()
    thread.join(RESOLVE_S)
    return set(found)


def _plain(address: str) -> str:
    """The one spelling of an IP address."""
    ip = ipaddress.ip_address(address.strip("[]").partition("%")[0])
    return str(getattr(ip, "ipv4_mapped", None) or ip)


def _same_gcs(one: str | None, other: str) -> bool:
    """Whether both name the same port of the same host, however they spell the host."""
    if not one or one == other:
        return one == other
    (host, _, port), (host2, _, port2) = one.rpartition(":"), other.rpartition(":")
    return port == port2 and not _addresses(host).isdisjoint(_addresses(host2))


def _raylets(table: dict[int, Proc], request: dict[str, Any]) -> list[Proc]:
    """Every live raylet of the cluster of this request."""
    address, port = request.get("gcs_address"), request.get("gcs_port")
    if not address and not port:
        raise HostError("bad_request", "The request names neither gcs_address nor gcs_port.")
    rows = [table[pid] for pid in sorted(_live(table))]
    if address:
        return [proc for proc in rows if _same_gcs(proc.option("gcs-address"), address)]
    return [proc for proc in rows if (proc.option("gcs-address") or "").endswith(f":{port}")]


def _chosen(
    table: dict[int, Proc], request: dict[str, Any], name: str | None, node_id: str | None
) -> list[Proc]:
    """The cluster's raylets of this name, and the one of this node id; all when neither is given.

    Whole values: gpu1 is not gpu10. A node id is unique, so the address says nothing beside it.
    """
    own = _raylets(table, request)
    if name is None and node_id is None:
        return own
    named = [proc for proc in own if name is not None and proc.option("node-name") == name]
    live = (table[pid] for pid in _live(table) if node_id is not None)
    return [*named, *(proc for proc in live if proc.option("node_id") == node_id and proc not in named)]


def _forked(table: dict[int, Proc], proc: Proc) -> bool:
    """It is its raylet's own child, about to become a worker: no second raylet."""
    above, mine = table.get(proc.ppid), proc.option("node_id")
    return (
        above is not None
        and above.program == "raylet"
        and mine is not None
        and above.option("node_id") == mine
    )


def _unsure(table: dict[int, Proc]) -> list[Proc]:
    """Raylets whose arguments cannot be read, so that nobody can say whose they are."""
    return [proc for proc in table.values() if proc.comm == "raylet" and not proc.argv and not proc.ended]


class Marks(NamedTuple):
    """By what the processes of a raylet are known once it is gone."""

    node_ids: set[str]
    pids: set[int]
    logs: set[str]


def _marks(table: dict[int, Proc], request: dict[str, Any], raylets: Iterable[Proc]) -> Marks:
    """Marks of the raylets given, and of the one that the request names by node id and pid."""
    node_id, pid = request.get("node_id"), request.get("raylet_pid")
    marks = Marks({node_id} if node_id else set(), {pid} if pid else set(), set())
    for folder in _session_dirs(table, request) if node_id else ():
        marks.logs.update(_raylet_logs(folder, str(node_id)))
    for proc in raylets:
        marks.pids.add(proc.pid)
        marks.node_ids.update(filter(None, [proc.option("node_id")]))
        marks.logs.update(filter(None, map(proc.option, ("stdout_filepath", "stderr_filepath"))))
    return marks


def _why_remains(proc: Proc, marks: Marks) -> str | None:
    """Why this process belonged to one of those raylets, or None."""
    environ = _environ(proc.pid)
    if environ.get("RAY_NODE_ID") in marks.node_ids:
        return "RAY_NODE_ID in its environment"
    if environ.get("RAY_RAYLET_PID") in {str(pid) for pid in marks.pids}:
        return "RAY_RAYLET_PID in its environment"
    if proc.option("node-id") in marks.node_ids:
        return "--node-id among its arguments"
    # Ray's agents lose their environment to their new titles, but keep the raylet's output open.
    if marks.logs and _is_part(proc) and _writes_to(proc.pid, marks.logs.__contains__):
        return "writes to the raylet's log"
    return None


def _live(table: dict[int, Proc]) -> set[int]:
    """Raylets of any cluster on this host."""
    return {pid for pid, proc in table.items() if proc.program == "raylet" and not proc.ended}


def _remains(table: dict[int, Proc], marks: Marks, spared: set[int]) -> list[tuple[Proc, str]]:
    """Live processes of those raylets, except what descends from a raylet that is to live (`spared`)."""
    if not any(marks):
        return []
    kept = _descendants(table, spared) | spared | {os.getpid()}
    marks = marks._replace(pids=marks.pids - spared)  # a pid used again by another raylet
    rows = [
        proc
        for pid, proc in table.items()
        if pid not in kept and not proc.ended and proc.program not in ("raylet", "gcs_server")
    ]
    return [(proc, why) for proc, why in ((proc, _why_remains(proc, marks)) for proc in rows) if why]


def _holders(table: dict[int, Proc], request: dict[str, Any], spared: set[int]) -> list[Proc]:
    """What was seen to hold GPU memory while its raylet lived; it may have no marks, so by pid and start."""
    named = {(row["pid"], row["start_ticks"]) for row in request.get("holders", ())}
    kept = _descendants(table, spared) | spared | {os.getpid()}
    return [p for p in table.values() if (p.pid, p.start) in named and p.pid not in kept and not p.ended]


def _log_monitors(table: dict[int, Proc], request: dict[str, Any]) -> list[tuple[Proc, str]]:
    """This cluster's log monitors, if asked for and none of its raylets is left here to need one."""
    if not request.get("log_monitor") or _raylets(table, request):
        return []
    rows = [proc for proc in table.values() if proc.runs(SCRIPTS[0]) and not proc.ended]
    why = "log monitor of this cluster, which has no raylet here"
    return [(proc, why) for proc in rows if proc.option("gcs-address") == request.get("gcs_address")]


def _signal(proc: Proc, number: int) -> str | None:
    """Signals this very process; returns why not. A pidfd taken before the check outlasts any reuse."""
    handle = -1
    try:
        if hasattr(os, "pidfd_open") and hasattr(signal, "pidfd_send_signal"):
            with contextlib.suppress(OSError):
                handle = os.pidfd_open(proc.pid)
        if not _alive(proc):
            return "gone"
        if handle >= 0:
            signal.pidfd_send_signal(handle, number)
        else:
            os.kill(proc.pid, number)
    except ProcessLookupError:
        return "gone"
    except OSError as error:
        return f"cannot be signalled: {error.strerror}"
    finally:
        if handle >= 0:
            os.close(handle)
    return None


def _wait(procs: Iterable[Proc], seconds: float) -> list[Proc]:
    """Waits until none of them runs, at most so long; returns those that still do."""
    until = time.monotonic() + seconds
    left = [proc for proc in procs if _alive(proc)]
    while left and time.monotonic() < until:
        time.sleep(POLL_S)
        left = [proc for proc in left if _alive(proc)]
    return left


class Ending:
    """Ends processes, softly and then hard, and keeps the record of it."""

    def __init__(self, term_s: float, kill_s: float) -> None:
        self.term_s = term_s
        self.kill_s = kill_s
        self.sent: dict[Proc, str] = {}

    def _send(self, procs: Iterable[Proc], number: signal.Signals) -> None:
        for proc in procs:
            problem = _signal(proc, number)
            if problem != "gone" or proc not in self.sent:
                self.sent[proc] = problem or number.name

    def soft(self, procs: list[Proc]) -> list[Proc]:
        """SIGTERM, or SIGKILL for one that is stopped and would not act on it; returns what stays."""
        stopped = [proc for proc in procs if _state(proc) in ("T", "t")]
        self._send(stopped, signal.SIGKILL)
        self._send([proc for proc in procs if proc not in stopped], signal.SIGTERM)
        return _wait(procs, self.term_s)

    def hard(self, procs: list[Proc]) -> list[Proc]:
        """SIGKILL; returns what stays."""
        self._send(procs, signal.SIGKILL)
        return _wait(procs, self.kill_s)

    def answer(self) -> dict[str, Any]:
        """What was ended and by what, and what is left and why."""
        left = [proc for proc in self.sent if _alive(proc)]
        ended = [
            {"pid": proc.pid, "name": proc.name, "signal": sent}
            for proc, sent in self.sent.items()
            if proc not in left
        ]
        if not left:
            return {"ok": True, "ended": ended, "left": []}
        rows = [self._left(proc) for proc in left]
        words = "; ".join(f"{row['name']} (pid {row['pid']}) {row['why']}" for row in rows[:5])
        return {**HostError("not_ended", f"Still running: {words}.").answer, "ended": ended, "left": rows}

    def _left(self, proc: Proc) -> dict[str, Any]:
        state, sent = _state(proc), self.sent[proc]
        stuck = "waits in the kernel (state D), which no signal ends; usually a disk or a network mount"
        why = sent if " " in sent else stuck if state == "D" else f"outlived {sent} (state {state})"
        return {"pid": proc.pid, "start_ticks": proc.start, "name": proc.name, "stat": state, "why": why}


def _ending(request: dict[str, Any]) -> Ending:
    return Ending(float(request.get("term_s", 3.0)), float(request.get("kill_s", 5.0)))


def _end_raylets(ending: Ending, request: dict[str, Any], raylets: list[Proc]) -> None:
    """Ends these raylets and all that belongs to them; descendants are noted before anything is signalled."""
    table = _table()
    marks = _marks(table, request, raylets)
    spared = _live(table) - {proc.pid for proc in raylets}
    below = _descendants(table, [proc.pid for proc in raylets], spared)
    family = [table[pid] for pid in below - {os.getpid()}]
    ending.hard(ending.soft(raylets))
    # The raylet's death takes most of the rest along; what has not gone is asked, and then made to.
    table = _table()
    fresh = [proc for proc, _ in [*_remains(table, marks, spared), *_log_monitors(table, request)]]
    fresh += [proc for proc in _holders(table, request, spared) if proc not in fresh]
    known = [proc for proc in family if _alive(proc) and proc.pid not in {one.pid for one in fresh}]
    left = ending.soft([*known, *fresh])
    # One more look, for what a hung worker started meanwhile.
    late = [proc for proc, _ in _remains(_table(), marks, spared)] if known or fresh else []
    ending.hard([*left, *(proc for proc in late if proc.pid not in {one.pid for one in left})])


def end(request: dict[str, Any], held: Held = ()) -> dict[str, Any]:
    """Ends one raylet (or all of its name) and what belongs to it.

    Request: gcs_address, and node_id or (node_name with all_of_name); optional raylet_pid and session_dir
    (from an earlier look, to find the remains of a raylet that is gone), holders [{pid, start_ticks}] of GPU
    memory that belonged to it, log_monitor, term_s and kill_s in
    seconds, each of which is waited at most twice; lock (of the node's start, which then ends first) and
    lock_wait_s (5). Answer: ended [{pid, name, signal}], left []. Errors: busy; not_ended, with
    left [{pid, start_ticks, name, stat, why}].
    """
    name = request.get("node_name") if request.get("all_of_name") else None
    if not name and not request.get("node_id"):
        raise HostError("bad_request", "To end a raylet, give node_id, or node_name with all_of_name.")
    with _locked(request, held, needed=False):
        ending = _ending(request)
        _end_raylets(ending, request, _chosen(_table(), request, name, request.get("node_id")))
        return ending.answer()


def start_ticks(pid: int) -> int | None:
    """When a process began, in clock ticks since boot: with the pid it names the process for good."""
    proc = _proc(pid, argv=False)
    return proc.start if proc else None


def ended(pid: int) -> bool:
    """Whether nothing runs under this pid, or only a zombie."""
    proc = _proc(pid, argv=False)
    return proc is None or proc.ended


def environ(pid: int) -> dict[str, str]:
    """The environment that a process was started with."""
    return _environ(pid)


def ports_of(pid: int) -> list[int]:
    """The TCP ports on which a process listens, lowest first."""
    own = {target for _, target in _open_files(pid)}
    return sorted(port for port, socket in _listeners(None).items() if socket in own)


def head_parts(gcs_address: str) -> dict[str, Proc]:
    """The parts of this cluster's head that run here: gcs, raylet, dashboard."""
    parts = [p for p in _table().values() if not p.ended]
    return {
        name: proc
        for proc in parts
        for name, found in (
            ("gcs", proc.program == "gcs_server" and _at_address(proc, gcs_address)),
            (
                "raylet",
                proc.program == "raylet"
                and "--head" in proc.argv
                and _same_gcs(proc.option("gcs-address"), gcs_address),
            ),
            ("dashboard", proc.runs(SCRIPTS[2]) and proc.option("gcs-address") == gcs_address),
        )
        if found
    }


def end_process(pid: int, start: int, term_s: float, kill_s: float) -> bool:
    """Ends exactly this process, softly and then hard; whether it is gone."""
    proc = _proc(pid)
    if proc is None or proc.start != start or proc.ended:
        return True
    ending = Ending(term_s, kill_s)
    return not ending.hard(ending.soft([proc]))


def _uptime() -> float:
    return float(_read("/proc/uptime").split()[0])


def _uid(pid: int) -> int | None:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}").stat().st_uid
    return None


def _row(proc: Proc) -> dict[str, Any]:
    return {
        "pid": proc.pid,
        "start_ticks": proc.start,
        "node_id": proc.option("node_id"),
        "node_name": proc.option("node-name"),
        "gcs_address": proc.option("gcs-address"),
        "node_ip": proc.option("node_ip_address"),
        "session_dir": proc.option("session_dir"),
        "head": "--head" in proc.argv,
        "uid": _uid(proc.pid),
        "stat": proc.state,
        "age_s": round(max(0.0, _uptime() - proc.start / os.sysconf("SC_CLK_TCK")), 2),
    }


def _pressure(kind: str) -> float | None:
    found = re.search(rb"some avg10=([\d.]+)", _read(f"/proc/pressure/{kind}"))
    return float(found.group(1)) if found else None


def _host() -> dict[str, Any]:
    memory = dict(re.findall(r"(MemTotal|MemAvailable):\s+(\d+) kB", _read("/proc/meminfo").decode()))
    return {
        "load1": round(os.getloadavg()[0], 2),
        "cpus": os.cpu_count(),
        "mem_total_mb": int(memory.get("MemTotal", 0)) // 1024,
        "mem_available_mb": int(memory.get("MemAvailable", 0)) // 1024,
        "psi": {kind: _pressure(kind) for kind in ("cpu", "memory", "io")},
        "uptime_s": _uptime(),
        "time": time.time(),
        "boot_id": _read("/proc/sys/kernel/random/boot_id").decode().strip(),
    }


def greet(address: str, port: int, timeout_s: float) -> tuple[str | None, str]:
    """Connects and waits for the first frame of an HTTP/2 server, as every gRPC server is.

    A stopped process has its connections accepted by the kernel, and says nothing. Answer: how it failed, in
    the words of `Miss` (None: it greeted), and a detail.
    """
    until = time.monotonic() + timeout_s
    got = b""
    try:
        with socket.create_connection((address, port), timeout_s) as line:
            line.sendall(PREFACE)
            while len(got) < 9:
                line.settimeout(max(0.001, until - time.monotonic()))
                more = line.recv(64)
                if not more:
                    return "not serving", f"port {port} hung up"
                got += more
    except ConnectionRefusedError:
        return "refused", f"port {port} refused"
    except TimeoutError:
        return "timed out", f"port {port} said nothing in {timeout_s:g} s"
    except ConnectionError as error:
        return "not serving", f"port {port}: {error.strerror}"
    except OSError as error:
        return "unreachable", f"{error.strerror or error} (port {port})"
    return (None, "") if got[3] == SETTINGS else ("not serving", f"port {port} speaks something else")


def _port(request: dict[str, Any]) -> dict[str, Any]:
    """Whether anybody listens on the raylet's port, and answers there, seen from its own host."""
    address, port = request.get("address"), request.get("port")
    if not address or not port:
        return {}
    listening = port in _listeners(None)
    how, _ = greet(address, port, GREET_S) if listening else ("refused", "")
    return {"port": {"port": port, "listening": listening, "greets": how is None}}


def _below(table: dict[int, Proc], raylet: Proc) -> dict[str, Any]:
    """Worker processes of a raylet, and the titles of those that have an actor or a task."""
    titles = [table[pid].argv[0] for pid in _descendants(table, [raylet.pid]) if table[pid].argv]
    workers = sorted(title for title in titles if title.startswith("ray::") and title not in AGENT_TITLES)
    busy = [title[:40] for title in workers if not title.startswith(NOT_BUSY)]
    return {"workers": len(workers), "busy": busy[:WORDS]}


def _last_words(request: dict[str, Any]) -> dict[str, Any]:
    """What a raylet that is gone left in its log, its agent's log and the kernel's."""
    node_id, session = request.get("node_id"), request.get("session_dir")
    death: list[str] = []
    agent: list[str] = []
    for path in _raylet_logs(session, node_id) if node_id and session else ():
        death += _severe(_last(path))
        if "one Ray agent failed" in " ".join(death) and path.endswith(".out"):
            agent = _agent_words(Path(path))
    oom = _killed_for_memory(request.get("raylet_pid"), float(request.get("quiet_s", 0.0)))
    return {"death": death[-WORDS:], "agent": agent[-WORDS:], "oom": oom[-WORDS:]}


def _bundle(request: dict[str, Any]) -> dict[str, Any]:
    """What a person would ask for first: the raylet's and its agents' last lines, and the kernel's."""
    node_id, session = request.get("node_id"), request.get("session_dir")
    paths = _raylet_logs(session, node_id) if node_id and session else []
    for out in (Path(path) for path in paths if path.endswith(".out")):
        agents = [log for pattern in AGENT_LOGS for log in out.parent.glob(pattern)]
        near = [log for log in agents if abs(_changed_at(log) - _changed_at(out)) < OOM_MARGIN_S]
        paths = [*paths, *sorted(str(log) for log in near)[:4]]
    words = re.compile(r"oom|out of memory|killed process|xid|nvrm|i/o error|hung task|mce:", re.IGNORECASE)
    said = ((_uptime() - at, text) for at, text in _kernel_log() if words.search(text))
    kernel = [f"{ago_s:.0f} s ago: {text[:WORD_CHARS]}" for ago_s, text in said]
    files = [{"path": path, "tail": _last(path)} for path in paths[:8]]
    return {"files": [file for file in files if file["tail"]], "kernel": kernel[-TAIL_LINES:]}


def _within(room: int, bundle: dict[str, Any]) -> dict[str, Any]:
    """The bundle in so many bytes of JSON, if it can be: of each text as much of the end as fits."""
    chars = TAIL_CHARS
    while _size(bundle) > room and chars > 1:
        chars //= 2
        files = [{**file, "tail": file["tail"][-chars:]} for file in bundle["files"]]
        bundle = {"files": files, "kernel": [line[:chars] for line in bundle["kernel"]]}
    return bundle


def _size(value: Any) -> int:
    return len(_json(value))


def _json(value: Any) -> bytes:
    """JSON in UTF-8: what is escaped into ASCII is up to six times as long. Stray bytes of file names are."""
    return json.dumps(value, ensure_ascii=False).encode("utf-8", "backslashreplace")


def _changed_at(path: Path) -> float:
    with contextlib.suppress(OSError):
        return path.stat().st_mtime
    return 0.0


def _severe(text: str) -> list[str]:
    """Errors and fatal lines of a log of Ray's C++ processes, without their time and place."""
    found = re.findall(r"^\[[^\]]* [EFC] [^\]]*\] (?:\([^)]*\) )?(.*)$", text, re.MULTILINE)
    return [line[:WORD_CHARS] for line in found]


def _agent_words(raylet_log: Path) -> list[str]:
    """Errors in the logs of agents that were still written to when the raylet ended."""
    found: list[str] = []
    for log in (log for pattern in AGENT_LOGS for log in sorted(raylet_log.parent.glob(pattern))):
        with contextlib.suppress(OSError):
            if abs(log.stat().st_mtime - raylet_log.stat().st_mtime) < OOM_MARGIN_S:
                words = _last(str(log)).splitlines()
                lines = [line for line in words if re.search(r"rror|CRITICAL|Fatal", line)]
                found += [f"{log.name}: {line.strip()[:WORD_CHARS]}" for line in lines[-2:]]
    return found


def _killed_for_memory(pid: int | None, quiet_s: float) -> list[str]:
    """Lines of the kernel's log by which it killed a raylet for memory since it was last heard of.

    Pids in that log are those of the machine: inside a container only name and time can be compared.
    """
    found: list[str] = []
    first = _inode("/proc/self/ns/pid") == FIRST_PID_NAMESPACE
    now = _uptime()
    for at, text in _kernel_log():
        killed = re.search(r"Killed process (\d+) \(raylet\)", text)
        if killed is None or now - at > quiet_s + OOM_MARGIN_S:
            continue
        if not first or pid is None or int(killed.group(1)) == pid:
            found.append(text[:WORD_CHARS])
    return found


def _inode(path: str) -> int:
    with contextlib.suppress(OSError):
        return Path(path).stat().st_ino
    return 0


def _kernel_log() -> Iterator[tuple[float, str]]:
    """Seconds since boot and text of each record of /dev/kmsg; none where it is not ours to read."""
    try:
        handle = os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return
    try:
        while True:
            try:
                record = os.read(handle, 8192)
            except BrokenPipeError:  # overwritten while we read; the next read goes on after it
                continue
            except OSError:  # no more, or not for us
                return
            head, _, text = record.decode("utf-8", "replace").partition(";")
            with contextlib.suppress(IndexError, ValueError):
                yield int(head.split(",")[2]) / 1e6, re.sub(r"[\x00-\x1f\x7f]", " ", text.partition("\n")[0])
    finally:
        os.close(handle)


def look(request: dict[str, Any]) -> dict[str, Any]:
    """Raylets of one cluster on this host, what a dead one left behind, and how the host is.

    Request: gcs_address or gcs_port; node_name, node_id (either selects; neither: all); optional raylet_pid
    and session_dir of a raylet that may be gone, quiet_s (for how long nothing has been heard of it), address
    and port where it listened, log_monitor. Answer beside the lists and `host`: `port` {port, listening,
    greets}, and of a raylet that is gone `death`, `agent` and `oom`: the last words of its log, of its
    agent's and of the kernel's. A zombie is listed apart: it does not live, and it has no arguments left to
    tell whose it was. `unreadable` counts Ray processes that another user hides, `unsure` the raylets that do
    not show whose they are: one of them may be the one sought. With `lock` (of the node's start), `starting`
    tells whether a start or stop of it is under way; with `bundle`, `bundle` {files [{path, tail}], kernel}
    holds the ends of the logs.
    """
    starting = {"starting": _is_held(_home(request["lock"]))} if request.get("lock") else {}
    table = _table()
    raylets = _chosen(table, request, request.get("node_name"), request.get("node_id"))
    lives = any(proc.option("node_id") == request.get("node_id") for proc in raylets)
    gone = Marks(set(), set(), set()) if lives else _marks(table, request, [])
    remains = [*_remains(table, gone, _live(table)), *_log_monitors(table, request)]
    zombies = [proc for proc in table.values() if proc.comm == "raylet" and proc.ended]
    parts = [proc for proc in table.values() if _is_part(proc)]
    hidden = [proc for proc in parts if not os.access(f"/proc/{proc.pid}/fd", os.R_OK)]
    answer = {
        "ok": True,
        "raylets": [{**_row(proc), **_below(table, proc)} for proc in raylets if not _forked(table, proc)],
        "remains": [
            {"pid": p.pid, "start_ticks": p.start, "name": p.name, "why": why}
            for p, why in remains[:MOST_REMAINS]
        ],
        **starting,
        "zombies": [{"pid": p.pid, "start_ticks": p.start, "name": p.comm} for p in zombies],
        "host": _host(),
        **_port(request),
        **({} if lives else _last_words(request)),
    }
    if request.get("bundle"):
        answer["bundle"] = _within(LOOK_BYTES - _size(answer), _bundle(request))
    counts = {"unreadable": len(hidden), "unsure": len(_unsure(table))}
    return {**answer, **{name: count for name, count in counts.items() if count}}


def _home(text: str) -> str:
    """The text with `~/` at its beginning turned into this user's home folder."""
    return str(Path.home()) + text[1:] if text.startswith("~/") else text


def _at_home(name: str, value: str) -> str:
    """One variable's value, or one `--name=value`, as a shell here would expand it."""
    return ":".join(map(_home, value.split(":"))) if name == "PATH" else _home(value)


def _argv(words: list[str]) -> list[str]:
    """The command with every `~/` expanded, in the program and in `--temp-dir`."""
    flag = "--temp-dir="
    rest = (flag + _home(word[len(flag) :]) if word.startswith(flag) else word for word in words[1:])
    return [_home(words[0]), *rest]


def _env(request: dict[str, Any]) -> dict[str, str]:
    """The environment asked for, and from this login what it shall inherit."""
    own = {name: os.environ[name] for name in request.get("inherit", ()) if os.environ.get(name)}
    given = {name: _at_home(name, value) for name, value in request["env"].items()}
    return {**own, **given}


def _private_file(path: str, flags: int) -> int:
    """Opens a file that only we may read; folders that have to be made for it only we may enter."""
    missing = [folder for folder in Path(path).parents if not folder.exists()]
    for folder in reversed(missing):
        folder.mkdir(mode=0o700, exist_ok=True)
    handle = os.open(path, flags | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    os.fchmod(handle, 0o600)
    return handle


def _lock_paths(request: dict[str, Any]) -> set[str]:
    """The lock files of a request (`lock`: a path or a list of them) and of all its steps."""
    given = request.get("lock") or []
    found = {_home(path) for path in ([given] if isinstance(given, str) else given)}
    return found.union(*map(_lock_paths, request.get("requests", ())))


def _lock_wait_s(request: dict[str, Any]) -> float:
    """The longest of the waits that a request and its steps allow."""
    own = float(request.get("lock_wait_s", 5.0 if request.get("lock") else 0.0))
    return max([own, *map(_lock_wait_s, request.get("requests", ()))])


@contextlib.contextmanager
def _locked(request: dict[str, Any], held: Held, *, needed: bool) -> Iterator[Held]:
    """Holds the lock files of a request, unless a caller does; without `needed` only those that are there.

    Whoever ends something needs no lock that nobody has ever taken, and no room on the disk to make one. The
    kernel lets go of them when the last process with these descriptors ends, however it ends: this one, and
    a command that was given them.
    """
    if held:
        yield held
        return
    until = time.monotonic() + _lock_wait_s(request)
    handles: list[int] = []
    try:
        for path in sorted(_lock_paths(request)):
            handle = _open_lock(path, needed=needed)
            if handle is not None:
                handles.append(handle)
                _lock(handle, path, until)
        yield tuple(handles)
    finally:
        for handle in handles:
            # By itself, closing would leave it to whatever the command has left running with it.
            with contextlib.suppress(OSError):
                fcntl.flock(handle, fcntl.LOCK_UN)
            os.close(handle)


def _open_lock(path: str, *, needed: bool) -> int | None:
    """A descriptor of the lock file, made if it is `needed`; None where there is none."""
    try:
        if needed:
            return _private_file(path, os.O_RDWR)
        return os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        if not needed:
            return None
        raise
    except OSError as error:
        if error.errno not in NO_ROOM:
            raise
        raise HostError("disk", f"Cannot make {path}: {error.strerror}. Check the disk.") from None


def _is_held(path: str) -> bool:
    """Whether somebody holds this lock; asking holds it for no time at all."""
    try:
        handle = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return False  # nobody has ever made it
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(handle)
    return False


def _lock(handle: int, path: str, until: float) -> None:
    while True:
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        if time.monotonic() >= until:
            raise HostError(
                "busy", f"A start or stop of this node holds {path}; try again when it has ended."
            )
        time.sleep(POLL_S)


def tail(data: bytes) -> str:
    """The last lines that say something: no colours, at most 20 lines and 4000 characters."""
    text = re.sub(r"\x1b\[[0-9;?]*[ -/]*[@-~]|[\x00-\x08\x0b-\x1f\x7f]", "", data.decode("utf-8", "replace"))
    lines = [line.rstrip() for line in text.splitlines() if line.strip(" -\t")]
    return "\n".join(lines[-TAIL_LINES:])[-TAIL_CHARS:]


def _last(path: str, size: int = 65536) -> str:
    with contextlib.suppress(OSError), Path(path).open("rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - size))
        return tail(file.read(size))
    return ""


def _own_python(command: str, env: dict[str, str]) -> str | None:
    """The Python of this `ray`, where that is the entry point an installer wrote; None for anything else."""
    try:
        text = Path(shutil.which(command, path=env.get("PATH", os.defpath)) or command).read_bytes()[:4096]
    except OSError:
        return None
    first = text.partition(b"\n")[0].decode("utf-8", "replace").split()
    if ENTRY_POINT not in text or len(first) != 1 or not first[0].startswith("#!/"):
        return None
    python = first[0][2:]
    return python if Path(python).name.startswith("python") else None


def _spawn(argv: list[str], env: dict[str, str], log: str, held: Held, stdin: int) -> subprocess.Popen[bytes]:
    output = _private_file(log, os.O_WRONLY | os.O_TRUNC)
    try:
        # A session of its own: Ray cleans up the process groups of its workers, and this may run inside one.
        return subprocess.Popen(
            argv,
            env=env,
            cwd="/",
            stdin=stdin,
            stdout=output,
            stderr=output,
            start_new_session=True,
            close_fds=True,
            # The lock outlives us with the command, if need be. The daemons that it starts do not get it:
            # Ray starts them with all but the standard descriptors closed.
            pass_fds=held,
        )
    except OSError as error:
        raise _no_ray(argv[0], env, error.strerror) from None
    finally:
        os.close(output)


class Starter:
    """The process of a start: `ray start`, or `ray_start` in its place, which loads and waits for a word."""

    def __init__(self, request: dict[str, Any], held: Held) -> None:
        self._argv, self._env, self._log = _argv(request["argv"]), _env(request), _home(request["log"])
        self._held = held
        self._program: bytes | None = request["program"].encode() if request.get("program") else None
        self._child: subprocess.Popen[bytes] | None = None

    def load(self) -> None:
        """Has the program load meanwhile, where it can; whatever goes wrong with that is said by `go`."""
        python = _own_python(self._argv[0], self._env) if self._program is not None else None
        if python is None or self._program is None:
            return
        argv = [python, "-c", LOADER, *self._argv]
        with contextlib.suppress(OSError, HostError):
            self._child = _spawn(argv, self._env, self._log, self._held, subprocess.PIPE)
            self._write(b"%d\n" % len(self._program) + self._program)

    def go(self) -> subprocess.Popen[bytes]:
        """Starts; raises HostError where there is no such command."""
        if self._child is None:
            self.load()
        if self._child is not None:
            self._write(b"go\n")
            self._close()
            return self._child
        self._child = _spawn(self._argv, self._env, self._log, self._held, subprocess.DEVNULL)
        return self._child

    def end(self) -> None:
        """Ends what was not told to start: at the end of its input it exits by itself."""
        if self._child is None or self._child.returncode is not None:
            return
        self._close()
        if _exit_code(self._child.pid, LEAVE_S) is None:
            _end_session(self._child.pid)
        self._child.wait()

    def _write(self, data: bytes) -> None:
        """One that is gone already leaves an exit code."""
        assert self._child is not None
        assert self._child.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._child.stdin.write(data)
            self._child.stdin.flush()

    def _close(self) -> None:
        assert self._child is not None
        if self._child.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                self._child.stdin.close()


def _no_ray(command: str, env: dict[str, str], why: str | None) -> HostError:
    where = "" if "/" in command else f" in {env.get('PATH', '')}"
    advice = "Install Ray there, or set ssh.ray_bin (or ray_bin of the node) to the folder of `ray`."
    return HostError("no_ray", f"Cannot run {command}{where}: {why}. {advice}")


def _installed(command: str) -> set[tuple[str, str]]:
    """Versions of Ray and Python ("3.11") beside this command: read, since asking Ray takes seconds."""
    found = set()
    for path in {Path(command), Path(command).resolve()}:
        for info in path.parent.parent.glob("lib*/python3*/*-packages/ray-*.dist-info"):
            python = info.parent.parent.name[len("python") :]
            found.add((info.name[len("ray-") : -len(".dist-info")], python))
    return found


def _check_versions(command: str, env: dict[str, str], expect: dict[str, str]) -> None:
    """Raises HostError when the command is missing or is another Ray or Python than `expect`.

    Where nothing can be read the start goes on: Ray compares for itself, too, and Python to the last digit.
    """
    path = shutil.which(command, path=env.get("PATH", os.defpath))
    if path is None:
        raise _no_ray(command, env, "there is no such command")
    found = _installed(path)
    minor = ".".join(expect["python"].split(".")[:2])
    if not found or (expect["ray"], minor) in found:
        return
    here = " and ".join(f"Ray {ray} on Python {python}" for ray, python in sorted(found))
    raise HostError(
        "version",
        f"{path} is {here}; the head has Ray {expect['ray']} on Python {expect['python']}. "
        "Install the head's versions there, or set ssh.ray_bin to where they are.",
    )


def _failed(lines: str, code: int | None) -> HostError:
    """The failure that the last lines of `ray start` name, with those lines."""
    for signs, error, advice in FAILURES:
        if any(sign in lines for sign in signs):
            said = "\n".join(lines.splitlines()[-FAILURE_LINES:])
            return HostError(error, f"{advice}\n{said}"[:TAIL_CHARS], code=code)
    said = lines or f"The command ended with code {code} and said nothing."
    return HostError("start_failed", said, code=code)


def _exit_code(pid: int, seconds: float) -> int | None:
    """Exit code of our child, or None when time is up. It is not reaped, so that its pid stays its own."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        found = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        if found is not None:
            return found.si_status
        time.sleep(POLL_S)
    return None


def _end_session(pid: int) -> None:
    """Ends what our unreaped child `pid` brought up: its session, and what descends from it."""
    ending = Ending(0.5, 3.0)
    for _ in range(2):  # twice, for what was being forked
        table = _table()
        session = {proc.pid for proc in table.values() if proc.sid == pid}
        found = session | _descendants(table, session)
        ending.hard(ending.soft([table[one] for one in found if one != os.getpid() and not table[one].ended]))


def _launch(request: dict[str, Any], wanted: dict[str, Any], timeout_s: float, starter: Starter) -> Proc:
    argv, env, log = _argv(request["argv"]), _env(request), _home(request["log"])
    if request.get("expect"):
        _check_versions(argv[0], env, request["expect"])
    child = starter.go()
    born: list[Proc] = []
    try:
        code = _exit_code(child.pid, timeout_s)
        born = _chosen(_table(), wanted, wanted["node_name"], None) if code == 0 else []
        if born:
            return max(born, key=lambda proc: proc.start)
    finally:
        if not born:
            _end_session(child.pid)
        child.wait()
    lines = _last(log)
    if code is None:
        late = f"Not up within {timeout_s} s; what this start had brought up was ended."
        raise HostError("timeout", f"{late} {lines}".strip())
    if code == 0:
        lines = f"The command said that it had succeeded, but no such raylet runs. {lines}"
    raise _failed(lines, code)


def refuse_stopped(path: str) -> None:
    """Raises HostError when the file is there that says a person stopped the node."""
    if Path(_home(path)).exists():
        detail = f"A person stopped this node ({path}); nothing was started. start.py brings it back."
        raise HostError("stopped", detail)


def _settled() -> dict[int, Proc]:
    """The processes, as soon as every raylet among them shows its arguments, at the latest after SETTLE_S."""
    until = time.monotonic() + SETTLE_S
    table = _table()
    while _unsure(table) and time.monotonic() < until:
        time.sleep(POLL_S)
        table = _table()
    return table


def _refuse_second(wanted: dict[str, Any]) -> None:
    """Raises HostError when a raylet of this name runs, or one runs that may be it."""
    table = _settled()
    name, running = wanted["node_name"], _chosen(table, wanted, wanted["node_name"], None)
    if running:
        words = f"A raylet named {name} of {wanted['gcs_address']} runs here already"
        raise HostError("already_running", f"{words}, pid {running[0].pid}.", raylet=_row(running[0]))
    unsure = ", ".join(str(proc.pid) for proc in _unsure(table))
    if unsure:
        words = f"A raylet runs here that does not show whose it is (pid {unsure})"
        raise HostError(
            "unsure", f"{words}: it may be {name}, so none was started. End it if it is not needed."
        )


def start(request: dict[str, Any], held: Held = (), starter: Starter | None = None) -> dict[str, Any]:
    """Starts one raylet with exactly this command and environment, under a lock, unless it runs already.

    Request: argv, env, log and lock (paths), timeout_s, node_name, gcs_address; optional lock_wait_s (5),
    inherit (names of variables taken from this login where env does not give them), expect {ray, python} (the
    head's versions), unless (a file: where it exists a person stopped the node), program (`ray_start`, run in
    place of the command where that is Ray's own entry point). A leading `~/` is this host's home folder in
    paths, argv[0], --temp-dir and the values of env. Answer: raylet (as in `look`), took_s. Errors: busy,
    stopped, already_running (with raylet), unsure (a raylet hides whose it is), no_ray, version, auth, disk,
    timeout, start_failed (the last lines of its output, and code). After an error nothing of this start is
    left.
    """
    began, timeout_s = time.monotonic(), float(request["timeout_s"])
    wanted = {"gcs_address": request["gcs_address"], "node_name": request["node_name"]}
    if not request["lock"]:
        raise HostError("bad_request", "To start a raylet, give its lock.")
    with _locked(request, held, needed=True) as locks:
        if request.get("unless"):
            refuse_stopped(request["unless"])
        _refuse_second(wanted)
        raylet = _launch(request, wanted, timeout_s, starter or Starter(request, locks))
        return {"ok": True, "raylet": _row(raylet), "took_s": round(time.monotonic() - began, 3)}


def put_secret(request: dict[str, Any]) -> dict[str, Any]:
    """Puts a secret into a file that only this user may read, in one step. Request: path, content.

    The content is in no answer and no message. A file that holds it already stays as it is.
    """
    path = Path(_home(request["path"]))
    content = request["content"].encode()
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        if _read(str(path)) == content and path.lstat().st_mode & 0o7777 == 0o600:
            return {"ok": True}
        draft.unlink(missing_ok=True)
        handle = _private_file(str(draft), os.O_WRONLY | os.O_EXCL)
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        draft.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            draft.unlink()
        full = error.errno in NO_ROOM
        detail = f"Cannot write {path}: {error.strerror}. Check the disk and the owner of its folder."
        raise HostError("disk" if full else "no_secret", detail) from None
    return {"ok": True}


def _refuse_stale(epoch: int | None, locks: Held) -> None:
    """Raises HostError when a newer agent than the sender has acted on this node; else notes the sender.

    The number stands in the node's lock file: it is read and written by whoever holds the lock.
    """
    if epoch is None:
        return
    for handle in locks:
        text = os.pread(handle, 32, 0).split(b"\n")[0].strip()
        seen = int(text) if text.isdigit() else 0
        if seen > epoch:
            words = f"A newer agent (number {seen}) has acted on this node; this one is number {epoch}."
            raise HostError("stale", f"{words} Nothing was done.")
        try:
            os.pwrite(handle, b"%020d\n" % epoch, 0)  # one write of always the same length
        except OSError as error:
            if error.errno not in NO_ROOM:
                raise


STALE_S = 60.0  # a socket younger than this may be about to be listened on
SPILLED = "ray_spilled_objects_"


def clear(request: dict[str, Any]) -> dict[str, Any]:
    """Removes what dead raylets of one node have left in their session's folder.

    Those are sockets of ours that nobody listens on, and objects that the node ids given had spilled, unless
    such a raylet lives. Request: session_dir (None: nothing is done), node_ids. Answer: removed [path].
    Nothing outside that folder, no link and nothing of another user or node is touched.
    """
    removed: list[str] = []
    folder = Path(_home(request.get("session_dir") or "/nonexistent"))
    if not folder.name.startswith("session_") or not _is_own_folder(folder):
        return {"ok": True, "removed": removed}
    for path in sorted(folder.glob("sockets/*")):
        if _is_deserted(path):
            with contextlib.suppress(OSError):
                path.unlink()
                removed.append(str(path))
    live = {table.option("node_id") for table in _table().values()}
    for node_id in map(str, request.get("node_ids", ())):
        path = folder / (SPILLED + node_id)
        if node_id.isalnum() and node_id not in live and _is_own_folder(path):
            shutil.rmtree(path, ignore_errors=True)
            removed.append(str(path))
    return {"ok": True, "removed": removed}


def _is_own_folder(path: Path) -> bool:
    with contextlib.suppress(OSError):
        found = path.lstat()
        return stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid()
    return False


def _is_deserted(path: Path) -> bool:
    """Whether it is a socket of ours, not just made, at which nobody listens."""
    try:
        found = path.lstat()
        if not stat.S_ISSOCK(found.st_mode) or found.st_uid != os.geteuid():
            return False
        if time.time() - found.st_mtime < STALE_S:
            return False
        return _refuses(path)
    except OSError:
        return False


def _refuses(path: Path) -> bool:
    """Whether nobody listens there; asked by way of the folder, since a socket's path must be short."""
    folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with socket.socket(socket.AF_UNIX) as probe:
            probe.settimeout(1.0)
            probe.connect(f"/proc/self/fd/{folder}/{path.name}")
    except ConnectionRefusedError:
        return True
    finally:
        os.close(folder)
    return False


def _starts(request: dict[str, Any]) -> list[dict[str, Any]]:
    """The starts among the steps of a request."""
    within = [start for one in request.get("requests", ()) for start in _starts(one)]
    return [request] if request.get("op") == "start" else within


def steps(request: dict[str, Any], held: Held = (), starter: Starter | None = None) -> dict[str, Any]:
    """Carries out several requests in one call, in order, and stops at the first that fails.

    The locks that any of them names are held from before the first until after the last. What a start needs
    is loaded while the steps before it are carried out. Request: requests; optional epoch, a number that
    rises with every agent: an older one than this node has seen is refused.
    Answer: that of the last one carried out, and answers: all of them, each with took_s. Errors, before
    anything is done: busy, disk, stale.
    """
    answers: list[dict[str, Any]] = []
    with _locked(request, held, needed=True) as locks:
        _refuse_stale(request.get("epoch"), locks)
        own = [Starter(one, locks) for one in _starts(request)[:1]] if starter is None else []
        try:
            for loading in own:
                loading.load()
            for one in request["requests"]:
                began = time.monotonic()
                answer = handle(one, locks, own[0] if own else starter)
                answers.append({"took_s": round(time.monotonic() - began, 3), **answer})
                if not answers[-1].get("ok"):
                    break
        finally:
            for loading in own:
                loading.end()
    return {"ok": True, **(answers[-1] if answers else {}), "answers": answers}


def _is_part(proc: Proc) -> bool:
    """Whether this is one of Ray's own programs."""
    if proc.program in ("raylet", "gcs_server") or proc.program.startswith(TITLES):
        return True
    return any(map(proc.runs, SCRIPTS)) or "ray.util.client.server" in proc.argv[1:5]


def _at_address(proc: Proc, address: str | None) -> bool:
    if not address:
        return False
    host, _, port = address.rpartition(":")
    if proc.program == "gcs_server":
        return proc.option("node-ip-address") == host and proc.option("gcs_server_port") == port
    if "ray.util.client.server" in proc.argv:
        return proc.option("address") == address
    return proc.option("gcs-address") == address


def _session_dirs(table: dict[int, Proc], request: dict[str, Any]) -> set[str]:
    """Session directories of this cluster: the one given, and those that its processes here name."""
    own = [
        proc for proc in table.values() if _is_part(proc) and _at_address(proc, request.get("gcs_address"))
    ]
    named = {proc.option("session_dir") or proc.option("session-dir") for proc in own}
    return {_home(path).rstrip("/") for path in named | {request.get("session_dir")} if path}


def _members(table: dict[int, Proc], request: dict[str, Any]) -> list[Proc]:
    """Ray's own live processes of this cluster, by its address and by its session directories."""
    parts = [proc for proc in table.values() if _is_part(proc) and not proc.ended]
    folders = tuple(path + "/" for path in _session_dirs(table, request))

    def inside(path: str) -> bool:
        return f"{path}/".startswith(folders)

    def in_session(proc: Proc) -> bool:
        if proc.option("gcs-address") not in (None, request["gcs_address"]):
            return False
        if any(inside(word.partition("=")[2]) for word in proc.argv if word.startswith("--")):
            return True
        # A dashboard module has lost its arguments and environment to its title, not its log file.
        return proc.program.startswith(TITLES) and _writes_to(proc.pid, inside)

    at_address = (proc for proc in parts if _at_address(proc, request["gcs_address"]))
    return [*at_address, *filter(in_session, parts if folders else ())]


def _forget_address(temp_dir: str | None, address: str) -> None:
    """Ray refuses a new head while this note names an address that some raylet on the host still uses."""
    note = Path(_home(temp_dir or "/nonexistent")) / "ray_current_cluster"
    with contextlib.suppress(OSError):
        if note.read_text().strip() == address:
            note.unlink()


def end_cluster(request: dict[str, Any], held: Held = ()) -> dict[str, Any]:
    """Ends everything of one cluster on this host: raylets of workers, the head's raylet, the rest, GCS.

    Request: gcs_address; optional session_dir, temp_dir (its note of the current cluster goes when it names
    this one), secrets (files to remove when nothing is left), term_s, kill_s in seconds, lock (one, or a list
    for all nodes of this host) and lock_wait_s (5, for all together). Answer as for `end`. Another Ray on the
    host is left alone.
    """
    with _locked(request, held, needed=False):
        return _end_cluster(request)


def _end_cluster(request: dict[str, Any]) -> dict[str, Any]:
    wanted, ending, table = {"gcs_address": request["gcs_address"]}, _ending(request), _table()
    raylets = _raylets(table, wanted)
    before = _members(table, request)
    others = _live(table) - {proc.pid for proc in [*raylets, *before]}
    family = _descendants(table, [proc.pid for proc in before], others) - {os.getpid()}
    for head in (False, True):
        _end_raylets(ending, wanted, [proc for proc in raylets if ("--head" in proc.argv) is head])
    known = [*before, *(table[pid] for pid in family), *_members(_table(), request)]
    left = {(proc.pid, proc.start): proc for proc in known if _alive(proc)}.values()
    for is_gcs in (False, True):
        ending.hard(ending.soft([proc for proc in left if (proc.program == "gcs_server") is is_gcs]))
    _forget_address(request.get("temp_dir"), request["gcs_address"])
    answer = ending.answer()
    for path in request.get("secrets", ()) if answer["ok"] else ():
        Path(_home(path)).unlink(missing_ok=True)
    return answer


def end_head(request: dict[str, Any], held: Held = ()) -> dict[str, Any]:
    """Ends the head of one cluster on this host: its raylet with all below it, dashboard, log monitor, GCS.

    Other raylets here, and what runs below them, live on. Request: gcs_address; optional session_dir,
    temp_dir (its note of the current cluster goes), node_id and raylet_pid of a head's raylet that is gone,
    term_s and kill_s in seconds. Answer as for `end`.
    """
    with _locked(request, held, needed=False):
        ending, table = _ending(request), _table()
        heads = [proc for proc in _raylets(table, request) if "--head" in proc.argv]
        others = _live(table) - {proc.pid for proc in heads}
        _end_raylets(ending, request, heads)
        table = _table()
        kept = _descendants(table, others) | others | {os.getpid()}
        left = [proc for proc in _members(table, request) if proc.pid not in kept and _alive(proc)]
        for is_gcs in (False, True):
            ending.hard(ending.soft([proc for proc in left if (proc.program == "gcs_server") is is_gcs]))
        _forget_address(request.get("temp_dir"), request["gcs_address"])
        return ending.answer()


def _ip(text: str) -> str:
    """`0100007F` of /proc/net/tcp to `127.0.0.1`: words of four bytes in the host's byte order."""
    raw = bytes.fromhex(text)
    words = [raw[at : at + 4] for at in range(0, len(raw), 4)]
    address = ipaddress.ip_address(b"".join(w[::-1] if sys.byteorder == "little" else w for w in words))
    return str(getattr(address, "ipv4_mapped", None) or address)


def _listeners(host: str | None) -> dict[int, str]:
    """Port -> socket of every TCP listener (with `host`: of this address or of all addresses)."""
    found: dict[int, str] = {}
    for line in [row for name in ("tcp", "tcp6") for row in _read(f"/proc/net/{name}").decode().splitlines()]:
        fields = line.split()
        if fields[3] == "0A":
            address, _, port = fields[1].partition(":")
            if host is None or _ip(address) in (host, "0.0.0.0", "::"):  # noqa: S104
                found.setdefault(int(port, 16), f"socket:[{fields[9]}]")
    return found


def _owner(sockets: dict[str, int], socket: str) -> dict[str, Any]:
    proc = _proc(sockets[socket]) if socket in sockets else None
    if proc is None:
        return {"pid": None}
    user: Any = _uid(proc.pid)
    with contextlib.suppress(KeyError, TypeError):
        user = pwd.getpwuid(user).pw_name
    return {"pid": proc.pid, "name": proc.name, "cmdline": " ".join(proc.argv)[:120], "user": user}


def port_owner(request: dict[str, Any]) -> dict[str, Any]:
    """Who listens on each TCP port.

    Request: ports; optional host, an address. Answer: ports {"6379": {pid, name, cmdline, user}}, where a
    listener that another user hides is {pid: null}, and null says that nobody listens.
    """
    listeners = _listeners(request.get("host"))
    wanted = {int(port): listeners.get(int(port)) for port in request["ports"]}
    sought = {socket for socket in wanted.values() if socket}
    pids = _pids() if sought else []
    sockets = {target: pid for pid in pids for _, target in _open_files(pid) if target in sought}
    return {
        "ok": True,
        "ports": {str(port): socket and _owner(sockets, socket) for port, socket in wanted.items()},
    }


def _raylet_logs(session_dir: str, node_id: str) -> list[str]:
    """Output files of the raylet with this id: it writes the id into its first lines."""
    found = []
    for out in sorted(Path(_home(session_dir), "logs").glob("raylet*.out")):
        with contextlib.suppress(OSError), out.open("rb") as file:
            if node_id.encode() in file.read(16384):
                found += [str(out), str(out.with_suffix(".err"))]
    return found


def logs(request: dict[str, Any]) -> dict[str, Any]:
    """Last lines of a raylet's own output. Request: session_dir, node_id. Answer: files [{path, tail}]."""
    paths = _raylet_logs(request["session_dir"], request["node_id"])
    return {"ok": True, "files": [{"path": path, "tail": _last(path)} for path in paths]}


def handle(request: dict[str, Any], held: Held = (), starter: Starter | None = None) -> dict[str, Any]:
    """Answers one request; every failure is an answer too: {ok: false, error, detail}.

    `held` are the locks that `steps` has taken for it, `starter` is what loads for its start.
    """
    free = {operation.__name__: operation for operation in (look, clear, put_secret, port_owner, logs)}
    locking = {operation.__name__: operation for operation in (end, end_head, end_cluster)}
    try:
        if request["op"] in ("start", "steps"):
            return (start if request["op"] == "start" else steps)(request, held, starter)
        if request["op"] in locking:
            return locking[request["op"]](request, held)
        if request["op"] not in free:
            return HostError("bad_request", f"There is no operation {str(request['op'])[:40]!r}.").answer
        return free[request["op"]](request)
    except HostError as error:
        return error.answer
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        return HostError("bad_request", f"{type(error).__name__}: {error}").answer
    except Exception as error:  # noqa: BLE001  an answer is the only way to say anything from here
        return HostError("internal", f"{type(error).__name__}: {error}").answer


def main() -> None:
    """One JSON request on standard input, one JSON answer on standard output."""
    try:
        answer = handle(json.loads(sys.stdin.buffer.read()))
    except ValueError as error:
        answer = HostError("bad_request", f"The request is not JSON: {error}").answer
    sys.stdout.buffer.write(_json(answer) + b"\n")
    sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
