"""What runs on a node: one probe actor, pinned there, shipped by value. Stdlib, and NVML where it is.

Asked to, it bears witness: it checks the raylet of another node, which the head alone hears nothing of.
It reports what the node sees of itself. It never changes anything, and a hanging GPU driver costs it one
stuck thread, not the answer: `gpus_seen` is then None (unknown). Created by `remote`.
"""

import os
import shutil
import threading
from typing import Any

from grid_agent.edges import host_program

NVML_WAIT_S = 2.0


class NodeProbe:
    """The actor. One per incarnation; dies with the agent that made it."""

    def __init__(self, temp_dir: str) -> None:
        self._temp_dir = temp_dir
        self._nvml: Any = None
        self._stuck: threading.Thread | None = None

    def report(self) -> dict[str, Any]:
        """One report: GPUs seen, load, memory, free disk (MB), pressure (avg10, percent)."""
        seen, detail = self._gpus()
        return {
            "gpus_seen": seen,
            "raylet_pid": os.getppid(),  # a worker is a child of its raylet
            "load1": os.getloadavg()[0],
            "mem_available_mb": _mem_available_mb(),
            "disk_free_mb": _disk_free_mb(self._temp_dir),
            "pressure": {
                kind: some for kind in ("cpu", "memory", "io") if (some := _pressure(kind)) is not None
            },
            "detail": detail,
        }

    def check_peer(self, address: str, port: int, timeout_s: float) -> dict[str, Any]:
        """Bears witness: whether the raylet at this address answers this node. `how` is None when it does."""
        how, detail = host_program.greet(address, port, timeout_s)
        return {"how": how, "detail": detail}

    def _gpus(self) -> tuple[int | None, str]:
        """Count in a thread of its own; a thread that hangs is never joined by a second one."""
        if self._stuck is not None and self._stuck.is_alive():
            return None, "NVML still hangs"
        box: list[tuple[int | None, str]] = []
        thread = threading.Thread(target=lambda: box.append(self._count()), daemon=True)
        thread.start()
        thread.join(NVML_WAIT_S)
        self._stuck = thread if thread.is_alive() else None
        return box[0] if box else (None, f"NVML did not answer in {NVML_WAIT_S:g} s")

    def _count(self) -> tuple[int | None, str]:
        try:
            if self._nvml is None:
                import pynvml  # noqa: PLC0415 - only some nodes have it

                pynvml.nvmlInit()
                self._nvml = pynvml
            return int(self._nvml.nvmlDeviceGetCount()), ""
        except Exception as error:  # noqa: BLE001 - no library, no driver, no GPU: none is seen
            self._nvml = None
            return 0, f"{type(error).__name__}: {error}"


def _mem_available_mb() -> int | None:
    for line in _lines("/proc/meminfo"):
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) // 1024
    return None


def _disk_free_mb(path: str) -> int | None:
    try:
        return shutil.disk_usage(path).free // (1024 * 1024)
    except OSError:
        return None


def _pressure(kind: str) -> float | None:
    """The share of time that something waited for `kind`, avg10 of /proc/pressure (kernel docs: psi)."""
    for line in _lines(f"/proc/pressure/{kind}"):
        if line.startswith("some "):
            return float(line.split()[1].removeprefix("avg10="))
    return None


def _lines(path: str) -> list[str]:
    try:
        with open(path, encoding="ascii") as file:  # noqa: PTH123 - shipped by value: stdlib, short
            return file.readlines()
    except OSError:
        return []
