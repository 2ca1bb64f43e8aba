"""The child process that reads GPUs: one JSON request a line in, one JSON answer a line out.

Vendor-neutral half of the reader; `gpu_nvml` is the other. It adds what the kernel log says, who holds GPU
memory and whether their raylet lives. Everything in here may hang (NVML, /proc of a stuck process), which is
why it is a process of its own: `gpu_child` ends it. Shipped as text; standard library of Python 3.9 only.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import pwd
import signal
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

CHUNK = 8192  # one read of /dev/kmsg gives one record, which is at most this long
PCI_VENDORS = {"0x10de": "nvidia", "0x1002": "amd", "0x8086": "intel"}
ACCELERATORS = ("0x0302", "0x0380", "0x1200")  # PCI classes of 3D and display controllers and accelerators
VGA = (
    "0x0300"  # a GeForce; of other vendors it is mostly the display of a server, or built into the processor
)


class KernelLog:
    """What is new in /dev/kmsg, or in a file of that format.

    https://www.kernel.org/doc/Documentation/ABI/testing/dev-kmsg: "level,number,microseconds,flags;text".
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._handle: int | None = None
        self._rest = b""
        self.trouble = ""

    def news(self) -> list[tuple[float, str]]:
        """(seconds since boot, text) of each record since the last call; at first of all of them."""
        if not self._path:
            return []
        try:
            if self._handle is None:
                self._handle = os.open(self._path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            self._fill(self._handle)
        except OSError as error:
            self.trouble = f"{self._path}: {error.strerror}"
            return []
        *lines, self._rest = self._rest.split(b"\n")
        return [record for record in map(self._record, lines) if record is not None]

    def _fill(self, handle: int) -> None:
        while True:
            try:
                data = os.read(handle, CHUNK)
            except BrokenPipeError:
                continue  # records were overwritten before we came; the next read goes on behind them
            except BlockingIOError:
                return
            if not data:
                return
            self._rest += data

    @staticmethod
    def _record(line: bytes) -> tuple[float, str] | None:
        head, _, text = line.partition(b";")
        fields = head.split(b",")
        try:
            return int(fields[2]) / 1e6, text.decode("utf-8", "replace")
        except (IndexError, ValueError):
            return None  # a continuation line (" SUBSYSTEM=...")


class Reading:
    """All that one child reads, for all vendors it knows."""

    def __init__(self, vendors: list[ModuleType], modules: dict[str, str | None], kernel_log: str) -> None:
        self._vendors = vendors
        self._readers = [vendor.Reader(modules.get(vendor.VENDOR)) for vendor in vendors]
        self._log = KernelLog(kernel_log)
        self._hardware = hardware()

    def sweep(self) -> dict[str, Any]:
        """One answer; the shape is that of `core.gpu_model.Sweep`."""
        begun = time.perf_counter()
        events = self._logged()
        answer: dict[str, Any] = {}
        for vendor, reader in zip(self._vendors, self._readers):  # noqa: B905  Python 3.9 has no strict=
            read = reader.read()
            if not answer or read["library"] != "absent":
                answer = {**read, "vendor": vendor.VENDOR}
            if read["library"] != "absent":
                break
        # The clock of the log drifts by minutes in months: what is new in both now is one.
        told = {(event["bus_id"], event["number"]) for event in events}
        fresh = (e for e in answer.pop("events", ()) if (e["bus_id"], e["number"]) not in told)
        events += [{**event, "at": time.time()} for event in fresh]
        holders = answer.pop("holders", ())
        return {
            "gpus": [],
            "driver": "",
            "detail": "",
            **answer,
            "boot_id": _read("/proc/sys/kernel/random/boot_id").strip(),
            "events": events,
            "holders": [{**holder, **lineage(holder["pid"])} for holder in holders],
            "kernel_log": self._log.trouble,
            "hardware": self._hardware,
            "took_ms": round((time.perf_counter() - begun) * 1000.0, 3),
        }

    def _logged(self) -> list[dict[str, Any]]:
        booted_at = time.time() - time.clock_gettime(time.CLOCK_MONOTONIC)
        found = []
        for after_s, text in self._log.news():
            for vendor in self._vendors:
                event = vendor.event_in(text)
                if event is not None:
                    found.append({**event, "at": booted_at + after_s})
        return found


def hardware(devices: str = "/sys/bus/pci/devices") -> list[str]:
    """Whose accelerators are on the PCI bus, by its own list; a GPU that has fallen off is in it for long."""
    found = set()
    for folder in Path(devices).glob("*"):
        kind = _read(str(folder / "class"))
        vendor = PCI_VENDORS.get(_read(str(folder / "vendor")).strip(), "")
        if kind.startswith(ACCELERATORS) or (kind.startswith(VGA) and vendor == "nvidia"):
            found.add(vendor)
    return sorted(found - {""})


def lineage(pid: int) -> dict[str, Any]:
    """Who a process is, and which raylet it belongs to: {name, owner, age_s, start_ticks, node_id, why}.

    `why` is "" for one that belongs to a live raylet or to no Ray at all, else why nobody is in charge of it.
    """
    stat = _stat(pid)
    if stat is None:
        return {"name": "?", "owner": "?", "age_s": 0.0, "start_ticks": 0, "node_id": "", "why": ""}
    start = int(stat[19])
    row = {
        "name": _read(f"/proc/{pid}/comm").strip(),
        "owner": _owner(pid),
        "age_s": round(
            max(0.0, float(_read("/proc/uptime").split()[0]) - start / os.sysconf("SC_CLK_TCK")), 1
        ),
        "start_ticks": start,
    }
    above = _raylet_above(stat)
    if above is not None:
        return {**row, "node_id": above, "why": ""}
    pairs = (word.partition("=") for word in _read(f"/proc/{pid}/environ").split("\0"))
    marks = {name: value for name, _, value in pairs if name.startswith("RAY_")}
    node_id, raylet = marks.get("RAY_NODE_ID", ""), marks.get("RAY_RAYLET_PID", "")
    if not node_id and not raylet:
        return {**row, "node_id": "", "why": ""}
    alive = _raylet_id(int(raylet)) if raylet.isdigit() else None
    lives = alive is not None and node_id in ("", alive)
    why = "its worker is gone, its raylet lives" if lives else "its raylet is gone"
    return {**row, "node_id": node_id or alive or "", "why": why}


def _raylet_above(stat: list[str]) -> str | None:
    parent = int(stat[1])
    for _ in range(64):
        found = _raylet_id(parent)
        if found is not None:
            return found
        above = _stat(parent)
        if above is None or parent <= 1:
            return None
        parent = int(above[1])
    return None


def _raylet_id(pid: int) -> str | None:
    """The node id of the raylet with this pid, or None where it is no raylet."""
    argv = _read(f"/proc/{pid}/cmdline").split("\0")
    if argv[0].rsplit("/", 1)[-1] != "raylet":
        return None
    return next((word.split("=", 1)[1] for word in argv if word.startswith("--node_id=")), None)


def _stat(pid: int) -> list[str] | None:
    """The fields of /proc/PID/stat from the state on (field 3 of proc(5))."""
    text = _read(f"/proc/{pid}/stat")
    return text.rsplit(")", 1)[1].split() if ")" in text else None


def _owner(pid: int) -> str:
    try:
        uid = Path(f"/proc/{pid}").stat().st_uid
    except OSError:
        return "?"
    with contextlib.suppress(KeyError):
        return pwd.getpwuid(uid).pw_name
    return str(uid)


def _read(path: str) -> str:
    try:
        return Path(path).read_bytes().decode("utf-8", "replace")
    except OSError:
        return ""


def _belong_to(probe: int) -> None:
    """Nothing outlives the probe; what the kernel does not let end is known by its name (see `gpu_child`)."""
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL(None)
        libc.prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
        libc.prctl(15, f"gpurd-{probe}".encode())  # PR_SET_NAME
    if os.getppid() != probe:
        sys.exit("the probe has ended already")


def main(vendors: list[ModuleType]) -> None:
    """Answer until standard input ends. First {modules, kernel_log, owner}, then {op, ...}, one a line."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what a library prints is no answer
    begin = json.loads(sys.stdin.buffer.readline())
    _belong_to(begin["owner"])
    reading = Reading(vendors, begin["modules"], begin["kernel_log"])
    for line in sys.stdin.buffer:
        request = json.loads(line)
        if request["op"] == "usable":
            vendor = next(v for v in vendors if request["vendor"] == v.VENDOR)
            answer = {"uuid": request["uuid"], "why_not": vendor.check_usable(request["uuid"])}
        else:
            answer = reading.sweep()
        answers.write(json.dumps(answer) + "\n")
        answers.flush()
