"""Ends exactly one raylet with all that is its own, one cluster, or its head; softly, then hard.

Must never call `ray stop`, choose a process by a name pattern, or signal a pid whose start time was not
checked just before.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from grid_agent.edges.host.common import POLL_S, HostError, expanded
from grid_agent.edges.host.locks import Held, locked
from grid_agent.edges.host.parts import chosen, live_raylets, members, raylets_of
from grid_agent.edges.host.procs import Proc, descendants, is_alive, process_table, read_proc, state_of
from grid_agent.edges.host.remains import holders_of, log_monitors, marks_of, remains_of


def _signal(proc: Proc, number: int) -> str | None:
    """Signals this very process; returns why not. A pidfd taken before the check outlasts any reuse."""
    handle = -1
    try:
        if hasattr(os, "pidfd_open") and hasattr(signal, "pidfd_send_signal"):
            with contextlib.suppress(OSError):
                handle = os.pidfd_open(proc.pid)
        if not is_alive(proc):
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
    left = [proc for proc in procs if is_alive(proc)]
    while left and time.monotonic() < until:
        time.sleep(POLL_S)
        left = [proc for proc in left if is_alive(proc)]
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
        stopped = [proc for proc in procs if state_of(proc) in ("T", "t")]
        self._send(stopped, signal.SIGKILL)
        self._send([proc for proc in procs if proc not in stopped], signal.SIGTERM)
        return _wait(procs, self.term_s)

    def hard(self, procs: list[Proc]) -> list[Proc]:
        """SIGKILL; returns what stays."""
        self._send(procs, signal.SIGKILL)
        return _wait(procs, self.kill_s)

    def answer(self) -> dict[str, Any]:
        """What was ended and by what, and what is left and why."""
        left = [proc for proc in self.sent if is_alive(proc)]
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
        state, sent = state_of(proc), self.sent[proc]
        stuck = "waits in the kernel (state D), which no signal ends; usually a disk or a network mount"
        why = sent if " " in sent else stuck if state == "D" else f"outlived {sent} (state {state})"
        return {"pid": proc.pid, "start_ticks": proc.start, "name": proc.name, "stat": state, "why": why}


def ending_of(request: dict[str, Any]) -> Ending:
    """How patiently a request wants things ended."""
    return Ending(float(request.get("term_s", 3.0)), float(request.get("kill_s", 5.0)))


def _end_raylets(ending: Ending, request: dict[str, Any], raylets: list[Proc]) -> None:
    """Ends these raylets and all that belongs to them; descendants are noted before anything is signalled."""
    table = process_table()
    marks = marks_of(table, request, raylets)
    spared = live_raylets(table) - {proc.pid for proc in raylets}
    below = descendants(table, [proc.pid for proc in raylets], spared)
    family = [table[pid] for pid in below - {os.getpid()}]
    ending.hard(ending.soft(raylets))
    # The raylet's death takes most of the rest along; what has not gone is asked, and then made to.
    table = process_table()
    fresh = [proc for proc, _ in [*remains_of(table, marks, spared), *log_monitors(table, request)]]
    fresh += [proc for proc in holders_of(table, request, spared) if proc not in fresh]
    known = [proc for proc in family if is_alive(proc) and proc.pid not in {one.pid for one in fresh}]
    left = ending.soft([*known, *fresh])
    # One more look, for what a hung worker started meanwhile.
    late = [proc for proc, _ in remains_of(process_table(), marks, spared)] if known or fresh else []
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
    with locked(request, held, needed=False):
        ending = ending_of(request)
        _end_raylets(ending, request, chosen(process_table(), request, name, request.get("node_id")))
        return ending.answer()


def end_process(pid: int, start: int, term_s: float, kill_s: float) -> bool:
    """Ends exactly this process, softly and then hard; whether it is gone."""
    proc = read_proc(pid)
    if proc is None or proc.start != start or proc.ended:
        return True
    ending = Ending(term_s, kill_s)
    return not ending.hard(ending.soft([proc]))


def _forget_address(temp_dir: str | None, address: str) -> None:
    """Ray refuses a new head while this note names an address that some raylet on the host still uses."""
    note = Path(expanded(temp_dir or "/nonexistent")) / "ray_current_cluster"
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
    with locked(request, held, needed=False):
        return _end_cluster(request)


def _end_cluster(request: dict[str, Any]) -> dict[str, Any]:
    wanted, ending, table = {"gcs_address": request["gcs_address"]}, ending_of(request), process_table()
    raylets = raylets_of(table, wanted)
    before = members(table, request)
    others = live_raylets(table) - {proc.pid for proc in [*raylets, *before]}
    family = descendants(table, [proc.pid for proc in before], others) - {os.getpid()}
    for head in (False, True):
        _end_raylets(ending, wanted, [proc for proc in raylets if ("--head" in proc.argv) is head])
    known = [*before, *(table[pid] for pid in family), *members(process_table(), request)]
    left = {(proc.pid, proc.start): proc for proc in known if is_alive(proc)}.values()
    for is_gcs in (False, True):
        ending.hard(ending.soft([proc for proc in left if (proc.program == "gcs_server") is is_gcs]))
    _forget_address(request.get("temp_dir"), request["gcs_address"])
    answer = ending.answer()
    for path in request.get("secrets", ()) if answer["ok"] else ():
        Path(expanded(path)).unlink(missing_ok=True)
    return answer


def end_head(request: dict[str, Any], held: Held = ()) -> dict[str, Any]:
    """Ends the head of one cluster on this host: its raylet with all below it, dashboard, log monitor, GCS.

    Other raylets here, and what runs below them, live on. Request: gcs_address; optional session_dir,
    temp_dir (its note of the current cluster goes), node_id and raylet_pid of a head's raylet that is gone,
    term_s and kill_s in seconds. Answer as for `end`.
    """
    with locked(request, held, needed=False):
        ending, table = ending_of(request), process_table()
        heads = [proc for proc in raylets_of(table, request) if "--head" in proc.argv]
        others = live_raylets(table) - {proc.pid for proc in heads}
        _end_raylets(ending, request, heads)
        table = process_table()
        kept = descendants(table, others) | others | {os.getpid()}
        left = [proc for proc in members(table, request) if proc.pid not in kept and is_alive(proc)]
        for is_gcs in (False, True):
            ending.hard(ending.soft([proc for proc in left if (proc.program == "gcs_server") is is_gcs]))
        _forget_address(request.get("temp_dir"), request["gcs_address"])
        return ending.answer()
