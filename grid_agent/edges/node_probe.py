"""What runs on a node: one probe actor, pinned there, shipped by value. Standard library only.

Asked to, it bears witness: it checks the raylet of another node, which the head alone hears nothing of.
It reports what the node sees of itself. It never changes anything. GPUs are read by a child process
(`gpu_child`, asked by `gpu_watch`), so that a hanging driver costs a process, not the answer. Created by
`remote`.
"""

import os
import shutil
import time
from collections.abc import Mapping
from typing import Any

from grid_agent.edges import gpu_child, gpu_nvml, gpu_watch
from grid_agent.edges.host import ports

GPU_WAIT_S = 0.5  # a sweep takes milliseconds; one that takes longer is in a later report


class GridAgentProbe:
    """The actor. One per incarnation; dies with the agent that made it.

    Args:
        temp_dir: The folder whose free space is reported.
        gpu: {every_s, timeout_s, usable_every_s, kernel_log, sources} of the GPU reader; 0: not at all.
    """

    def __init__(self, temp_dir: str, gpu: Mapping[str, Any]) -> None:
        self._temp_dir = temp_dir
        begin = {"kernel_log": gpu["kernel_log"], "modules": {gpu_nvml.VENDOR: gpu_nvml.find_module()}}
        child = gpu_child.Child(gpu["sources"], begin)
        trial = gpu_child.Child(gpu["sources"], {"kernel_log": "", "modules": {}})
        usable = gpu_watch.Usable(trial, gpu["usable_every_s"], gpu["timeout_s"])
        self._gpus = gpu_watch.Watch(child, gpu["every_s"], gpu["timeout_s"], usable)

    def report(self) -> dict[str, Any]:
        """One report: GPUs, load, memory, free disk (MB), pressure (avg10, percent)."""
        return {
            "gpus": self._gpus.look(time.monotonic(), GPU_WAIT_S),
            "raylet_pid": os.getppid(),  # a worker is a child of its raylet
            "load1": os.getloadavg()[0],
            "mem_available_mb": _mem_available_mb(),
            "disk_free_mb": _disk_free_mb(self._temp_dir),
            "pressure": {
                kind: some for kind in ("cpu", "memory", "io") if (some := _pressure(kind)) is not None
            },
        }

    def check_peer(self, address: str, port: int, timeout_s: float) -> dict[str, Any]:
        """Bears witness: whether the raylet at this address answers this node. `how` is None when it does."""
        how, detail = ports.greet(address, port, timeout_s)
        return {"how": how, "detail": detail}


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
