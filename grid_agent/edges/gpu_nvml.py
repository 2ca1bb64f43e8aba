"""NVIDIA: what NVML, the driver's lines in the kernel log and the CUDA driver say. The one file on them.

Runs in a child process of the probe (`gpu_reader` is its other half): NVML and CUDA hang on sick GPUs.
Another vendor is another file with the same names: VENDOR, Reader, event_in and check_usable.

NVML comes from the `pynvml` that is installed there (nvidia-ml-py), else from the copy that Ray carries. That
is private to Ray: it is loaded by its path, never by importing Ray, and only where the file is there.
Standard library of Python 3.9 and one of the two. NVML: https://docs.nvidia.com/deploy/nvml-api/.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
import re
import sys
from pathlib import Path
from typing import Any

VENDOR = "nvidia"
RAYS_COPY = ("_private", "thirdparty", "pynvml", "pynvml.py")
# "NVRM: Xid (PCI:0000:03:00): 79, ..."; old drivers leave out "PCI:". https://docs.nvidia.com/deploy/xid-errors/
XID = re.compile(
    r"NVRM: Xid \((?:PCI:)?([0-9a-fA-F]{4,8}:[0-9a-fA-F]{2}:[0-9a-fA-F]{2})[^)]*\): (\d+)(?:, (.*))?"
)
# Bits of nvmlDeviceGetCurrentClocksThrottleReasons that mean trouble; idle, caps and settings do not.
THROTTLES = ((0x08, "hardware slowdown"), (0x40, "hardware thermal slowdown"), (0x80, "power brake"))
RENEW_SWEEPS = 20  # NVML lists devices once, at its start: begin anew now and then, to see one that appeared
WAIT_EVENTS = 16


def find_module() -> str | None:
    """The file of pynvml, or None. Does not import Ray: that would cost more than the whole child."""
    found = importlib.util.find_spec("pynvml")
    if found is not None and found.origin:
        return found.origin
    ray = importlib.util.find_spec("ray")
    if ray is None or not ray.submodule_search_locations:
        return None
    path = Path(next(iter(ray.submodule_search_locations)), *RAYS_COPY)
    return str(path) if path.is_file() else None


def bus_id(text: str) -> str:
    """One spelling of a PCI address: domain:bus:device, lower case, as in the kernel log."""
    domain, bus, device = text.split(".", maxsplit=1)[0].split(":")[-3:]
    return f"{int(domain, 16):04x}:{int(bus, 16):02x}:{int(device, 16):02x}"


def event_in(line: str) -> dict[str, Any] | None:
    """The XID that a line of the kernel log tells of: {bus_id, number, text}, or None."""
    found = XID.search(line)
    if found is None:
        return None
    return {"bus_id": bus_id(found[1]), "number": int(found[2]), "text": (found[3] or "").strip()[:200]}


class Reader:
    """One session with NVML, begun at the first sweep, and anew after an error."""

    def __init__(self, module: str | None) -> None:
        self._nvml: Any = None
        self._module = module
        self._sweeps = 0
        self._handles: list[tuple[int, Any]] = []
        self._known: dict[int, dict[str, Any]] = {}
        self._set: Any = None
        self._silent: list[int] = []

    def read(self) -> dict[str, Any]:
        """One sweep: {library, detail, driver, gpus, events, holders}, or {library, detail} and why."""
        if self._module is None:
            return {"library": "absent", "detail": "neither pynvml nor Ray's copy of it is installed"}
        try:
            self._begin()
            gpus = [self._gpu(index, handle) for index, handle in self._handles]
            answer = {
                "library": "ok",
                "driver": str(self._nvml.nvmlSystemGetDriverVersion()),
                "gpus": gpus,
                "events": self._events(),
                "holders": [holder for at, handle in self._handles for holder in self._holders(at, handle)],
            }
        except Exception as error:  # noqa: BLE001  whatever the library raises is an answer
            answer = {"library": self._named(error), "detail": f"{type(error).__name__}: {error}"}
            self._close()
        else:
            silent = [gpu["index"] for gpu in gpus if gpu["error"]]
            if silent != self._silent:
                self._close()  # so that the next sweep sees what is there then; but not at every sweep
            self._silent = silent
        return answer

    def _begin(self) -> None:
        self._sweeps += 1
        if self._nvml is None:
            spec = importlib.util.spec_from_file_location("pynvml", self._module)
            assert spec is not None and spec.loader is not None  # noqa: PT018
            self._nvml = importlib.util.module_from_spec(spec)
            sys.modules["pynvml"] = self._nvml
            spec.loader.exec_module(self._nvml)
        if self._handles and self._sweeps % RENEW_SWEEPS == 0:
            self._close()
        if not self._handles:
            self._nvml.nvmlInit()
            self._handles = [(i, self._handle(i)) for i in range(self._nvml.nvmlDeviceGetCount())]
            self._listen()
        else:
            self._nvml.nvmlDeviceGetCount()
            self._handles = [
                (i, self._handle(i) if isinstance(h, Exception) else h) for i, h in self._handles
            ]

    def _handle(self, index: int) -> Any:
        try:
            return self._nvml.nvmlDeviceGetHandleByIndex(index)
        except self._nvml.NVMLError as error:
            return error

    def _listen(self) -> None:
        """XID events, which need no right to read the kernel log; not every GPU has them."""
        self._set = None
        try:
            self._set = self._nvml.nvmlEventSetCreate()
        except self._nvml.NVMLError:
            return
        for _, handle in self._handles:
            if not isinstance(handle, Exception):
                self._try(self._nvml.nvmlDeviceRegisterEvents, handle, 0x8, self._set)

    def _close(self) -> None:
        self._handles = []
        if self._nvml is None:
            return
        try:
            if self._set is not None:
                self._nvml.nvmlEventSetFree(self._set)
            self._nvml.nvmlShutdown()
        except self._nvml.NVMLError:
            pass  # it was not begun, or has ended by itself
        self._set = None

    def _named(self, error: Exception) -> str:
        names = {
            "NVMLError_LibraryNotFound": "absent",
            "NVMLError_DriverNotLoaded": "not loaded",
            "NVMLError_LibRmVersionMismatch": "mismatch",
        }
        return names.get(type(error).__name__, "failed")

    def _gpu(self, index: int, handle: Any) -> dict[str, Any]:
        """One GPU. `error` says why it does not answer; what it was is then from memory.

        Only a handle and a UUID does every GPU have. What else one does not tell is unknown, and no error.
        """
        known = self._known.get(index, {"uuid": "", "name": "", "bus_id": "", "memory_mb": 0})
        if isinstance(handle, Exception):
            return {**known, "index": index, "error": str(handle)}
        nvml = self._nvml
        try:
            self._known[index] = {**self._identity(handle), "uuid": _text(nvml.nvmlDeviceGetUUID(handle))}
            return {**self._known[index], "index": index, "error": "", **self._health(handle)}
        except nvml.NVMLError as error:
            return {**known, "index": index, "error": str(error)}

    def _identity(self, handle: Any) -> dict[str, Any]:
        nvml = self._nvml
        pci = self._ask(nvml.nvmlDeviceGetPciInfo, handle)
        memory = self._ask(nvml.nvmlDeviceGetMemoryInfo, handle)  # not where it is the host's, as on GB10
        return {
            "name": _text(self._ask(nvml.nvmlDeviceGetName, handle) or ""),
            "bus_id": f"{pci.domain:04x}:{pci.bus:02x}:{pci.device:02x}" if pci is not None else "",
            "memory_mb": memory.total // 2**20 if memory is not None else 0,
        }

    def _health(self, handle: Any) -> dict[str, Any]:
        nvml = self._nvml
        mask = self._ask(nvml.nvmlDeviceGetCurrentClocksThrottleReasons, handle) or 0
        rows = self._ask(nvml.nvmlDeviceGetRemappedRows, handle)
        retired = self._ask(nvml.nvmlDeviceGetRetiredPagesPendingStatus, handle)
        return {
            "temperature_c": self._ask(nvml.nvmlDeviceGetTemperature, handle, 0),
            "slowdown_c": self._ask(nvml.nvmlDeviceGetTemperatureThreshold, handle, 1),
            "throttled": [name for bit, name in THROTTLES if mask & bit],
            "ecc_uncorrectable": self._ask(nvml.nvmlDeviceGetTotalEccErrors, handle, 1, 0),
            "remap_pending": bool(rows[2]) if rows else bool(retired),
            "remap_failed": bool(rows[3]) if rows else False,
        }

    def _ask(self, call: Any, *arguments: Any) -> Any:
        """The answer, or None where this GPU or driver does not have it. Raises where the GPU is lost."""
        try:
            return call(*arguments)
        except self._nvml.NVMLError as error:
            if type(error).__name__ == "NVMLError_GpuIsLost":
                raise
            return None

    def _try(self, call: Any, *arguments: Any) -> Any:
        """The answer, or None whatever went wrong."""
        try:
            return call(*arguments)
        except self._nvml.NVMLError:
            return None

    def _events(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        buses = [self._known.get(index, {}).get("bus_id", "") for index, _ in self._handles]
        while self._set is not None and len(found) < WAIT_EVENTS:
            event = self._try(self._nvml.nvmlEventSetWait_v2, self._set, 0)
            if event is None:
                break
            handles = [h for _, h in self._handles]
            at = next((i for i, h in enumerate(handles) if _address(h) == _address(event.device)), None)
            bus = "" if at is None else buses[at]
            found.append({"bus_id": bus, "number": int(event.eventData), "text": ""})
        return found

    def _holders(self, index: int, handle: Any) -> list[dict[str, Any]]:
        """Who holds memory of this GPU: [{pid, uuid, memory_mb}]; the pids are the host's."""
        if isinstance(handle, Exception):
            return []
        rows = self._try(self._nvml.nvmlDeviceGetComputeRunningProcesses, handle) or []
        uuid = self._known[index]["uuid"] if rows else ""
        return [{"pid": r.pid, "uuid": uuid, "memory_mb": (r.usedGpuMemory or 0) // 2**20} for r in rows]


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def _address(handle: Any) -> Any:
    return getattr(ctypes.cast(handle, ctypes.c_void_p), "value", None) if handle else None


def check_usable(uuid: str) -> str:
    """Make a CUDA context on this GPU and let go of it; "" when that worked, else why not.

    To be called in a process of its own: it sees one GPU only, takes some hundred MiB of it for a moment, and
    may hang or crash. https://docs.nvidia.com/cuda/cuda-driver-api/group__CUDA__PRIMARY__CTX.html
    """
    os.environ["CUDA_VISIBLE_DEVICES"] = uuid
    try:
        cuda = ctypes.CDLL("libcuda.so.1")
    except OSError as error:
        return f"no CUDA driver library: {error}"
    device, context = ctypes.c_int(), ctypes.c_void_p()
    for name, arguments in (
        ("cuInit", (0,)),
        ("cuDeviceGet", (ctypes.byref(device), 0)),
        ("cuDevicePrimaryCtxRetain", (ctypes.byref(context), device)),
        ("cuDevicePrimaryCtxRelease_v2", (device,)),
    ):
        code = getattr(cuda, name)(*arguments)
        if code:
            text = ctypes.c_char_p()
            cuda.cuGetErrorName(code, ctypes.byref(text))
            return f"{name}: {(text.value or b'').decode() or code}"
    return ""
