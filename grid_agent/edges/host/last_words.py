"""What a raylet that is gone has left: in its log, in its agents' logs and in the kernel's."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from grid_agent.edges.host.common import TAIL_CHARS, TAIL_LINES, WORD_CHARS, WORDS, last_lines, size_of
from grid_agent.edges.host.parts import raylet_logs
from grid_agent.edges.host.procs import uptime_s

FIRST_PID_NAMESPACE = 0xEFFFFFFC  # PROC_PID_INIT_INO of the kernel: here pids are those of its log
OOM_MARGIN_S = 30.0
AGENT_LOGS = (
    "dashboard_agent*.err",
    "dashboard_agent*.log",
    "runtime_env_agent*.err",
    "runtime_env_agent*.log",
)


def words_of(request: dict[str, Any]) -> dict[str, Any]:
    """What a raylet that is gone left in its log, its agent's log and the kernel's."""
    node_id, session = request.get("node_id"), request.get("session_dir")
    death: list[str] = []
    agent: list[str] = []
    for path in raylet_logs(session, node_id) if node_id and session else ():
        death += _severe(last_lines(path))
        if "one Ray agent failed" in " ".join(death) and path.endswith(".out"):
            agent = _agent_words(Path(path))
    oom = _killed_for_memory(request.get("raylet_pid"), float(request.get("quiet_s", 0.0)))
    return {"death": death[-WORDS:], "agent": agent[-WORDS:], "oom": oom[-WORDS:]}


def bundle_of(request: dict[str, Any]) -> dict[str, Any]:
    """What a person would ask for first: the raylet's and its agents' last lines, and the kernel's."""
    node_id, session = request.get("node_id"), request.get("session_dir")
    paths = raylet_logs(session, node_id) if node_id and session else []
    for out in (Path(path) for path in paths if path.endswith(".out")):
        agents = [log for pattern in AGENT_LOGS for log in out.parent.glob(pattern)]
        near = [log for log in agents if abs(_changed_at(log) - _changed_at(out)) < OOM_MARGIN_S]
        paths = [*paths, *sorted(str(log) for log in near)[:4]]
    words = re.compile(r"oom|out of memory|killed process|xid|nvrm|i/o error|hung task|mce:", re.IGNORECASE)
    said = ((uptime_s() - at, text) for at, text in kernel_log() if words.search(text))
    kernel = [f"{ago_s:.0f} s ago: {text[:WORD_CHARS]}" for ago_s, text in said]
    files = [{"path": path, "tail": last_lines(path)} for path in paths[:8]]
    return {"files": [file for file in files if file["tail"]], "kernel": kernel[-TAIL_LINES:]}


def within(room: int, bundle: dict[str, Any]) -> dict[str, Any]:
    """The bundle in so many bytes of JSON, if it can be: of each text as much of the end as fits."""
    chars = TAIL_CHARS
    while size_of(bundle) > room and chars > 1:
        chars //= 2
        files = [{**file, "tail": file["tail"][-chars:]} for file in bundle["files"]]
        bundle = {"files": files, "kernel": [line[:chars] for line in bundle["kernel"]]}
    return bundle


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
                words = last_lines(str(log)).splitlines()
                lines = [line for line in words if re.search(r"rror|CRITICAL|Fatal", line)]
                found += [f"{log.name}: {line.strip()[:WORD_CHARS]}" for line in lines[-2:]]
    return found


def _killed_for_memory(pid: int | None, quiet_s: float) -> list[str]:
    """Lines of the kernel's log by which it killed a raylet for memory since it was last heard of.

    Pids in that log are those of the machine: inside a container only name and time can be compared.
    """
    found: list[str] = []
    first = _inode("/proc/self/ns/pid") == FIRST_PID_NAMESPACE
    now = uptime_s()
    for at, text in kernel_log():
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


def kernel_log() -> Iterator[tuple[float, str]]:
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


def logs(request: dict[str, Any]) -> dict[str, Any]:
    """Last lines of a raylet's own output. Request: session_dir, node_id. Answer: files [{path, tail}]."""
    paths = raylet_logs(request["session_dir"], request["node_id"])
    return {"ok": True, "files": [{"path": path, "tail": last_lines(path)} for path in paths]}
