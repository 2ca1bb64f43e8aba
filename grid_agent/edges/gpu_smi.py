"""NVIDIA where NVML has no binding for Python or cannot be loaded by it: what `nvidia-smi -q -x` prints.

The same names as in `gpu_nvml`, which comes first: a run takes a second, and it tells of no events. It hangs
where NVML hangs; it then bears the name by which the next probe knows it (see `gpu_child`).
Standard library of Python 3.9. The exit codes are NVML's: https://docs.nvidia.com/deploy/nvidia-smi/.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

VENDOR = "nvidia"
LIBRARIES = {9: "not loaded", 12: "absent", 18: "mismatch"}
THROTTLES = (
    ("hw_slowdown", "hardware slowdown"),
    ("hw_thermal_slowdown", "hardware thermal slowdown"),
    ("hw_power_brake_slowdown", "power brake"),
)
# Most of the output, never read, and not even well-formed in some versions:
# https://github.com/lollipopkit/flutter_server_box/issues/286
CLOCKS = re.compile(r"<supported_clocks>.*?</supported_clocks>", re.DOTALL)


def event_in(line: str) -> dict[str, Any] | None:  # noqa: ARG001  `gpu_nvml` reads the kernel log
    """No line tells this one anything."""
    return None


class Reader:
    """One run a sweep."""

    def __init__(self, module: str | None) -> None:  # noqa: ARG002  a program, not a module
        self._program = shutil.which("nvidia-smi")

    def read(self) -> dict[str, Any]:
        """One sweep, as `gpu_nvml.Reader` gives it."""
        if self._program is None:
            return {"library": "absent", "detail": "there is neither NVML nor nvidia-smi"}
        try:
            code, text = _run(self._program)
            if code == 0:
                return parsed(text)
        except (OSError, ElementTree.ParseError) as error:
            return {"library": "failed", "detail": f"nvidia-smi: {error}"}
        said = text.strip().partition("\n")[0][:200]
        return {"library": LIBRARIES.get(code, "failed"), "detail": f"nvidia-smi ended with {code}: {said}"}


def parsed(text: str) -> dict[str, Any]:
    """The answer that this output gives. Raises ElementTree.ParseError on what is no XML."""
    root = ElementTree.fromstring(CLOCKS.sub("", text))  # noqa: S314  a program of the host wrote it
    gpus = root.findall("gpu")
    return {
        "library": "ok",
        "driver": root.findtext("driver_version", ""),
        "gpus": [_gpu(index, gpu) for index, gpu in enumerate(gpus)],
        "holders": [holder for gpu in gpus for holder in _holders(gpu)],
    }


def _gpu(index: int, gpu: ElementTree.Element) -> dict[str, Any]:
    uuid = gpu.findtext("uuid", "").strip()
    domain, bus, device = gpu.get("id", "0:0:0").split(".")[0].split(":")
    wrong = [_number(e) for e in gpu.findall("ecc_errors/volatile/*") if "uncorrectable" in e.tag]
    known = [count for count in wrong if count is not None]
    reasons = [e for kind in ("throttle", "event") for e in gpu.findall(f"clocks_{kind}_reasons/*")]
    active = {e.tag.partition("_reason_")[2] for e in reasons if e.text == "Active"}
    pending = ("remapped_rows/remapped_row_pending", "retired_pages/pending_retirement")
    return {
        "index": index,
        "uuid": uuid if uuid.startswith("GPU-") else "",
        "error": "" if uuid.startswith("GPU-") else uuid or "it tells no UUID",
        "name": gpu.findtext("product_name", ""),
        "bus_id": f"{int(domain, 16):04x}:{int(bus, 16):02x}:{int(device, 16):02x}",
        "memory_mb": _number(gpu.find("fb_memory_usage/total")) or 0,
        "temperature_c": _number(gpu.find("temperature/gpu_temp")),
        "slowdown_c": _number(gpu.find("temperature/gpu_temp_slow_threshold")),
        "throttled": [name for tag, name in THROTTLES if tag in active],
        "ecc_uncorrectable": sum(known) if known else None,
        "remap_pending": any(gpu.findtext(path) == "Yes" for path in pending),
        "remap_failed": gpu.findtext("remapped_rows/remapped_row_failure") == "Yes",
    }


def _holders(gpu: ElementTree.Element) -> list[dict[str, Any]]:
    rows = [p for p in gpu.findall("processes/process_info") if "C" in p.findtext("type", "")]
    return [
        {
            "pid": int(row.findtext("pid", "0")),
            "uuid": gpu.findtext("uuid", ""),
            "memory_mb": _number(row.find("used_memory")) or 0,
        }
        for row in rows
    ]


def _number(element: ElementTree.Element | None) -> int | None:
    """The number of "81920 MiB" or "27 C"; None for "N/A" and the like."""
    word = (element.text or "").strip().partition(" ")[0] if element is not None else ""
    return int(word) if word.isdigit() else None


def _run(program: str) -> tuple[int, str]:
    """(exit code, output) of one run. A link gives the process its name; what killed readers left goes."""
    links = Path(tempfile.gettempdir())
    for old in links.glob("gpurd-*"):
        if old.is_symlink() and not Path("/proc", old.name.rpartition("-")[2]).exists():
            with contextlib.suppress(OSError):  # another user's
                old.unlink()
    link = links / f"gpurd-{os.getpid()}"
    link.symlink_to(program)
    try:
        ended = subprocess.run(
            [link, "-q", "-x"],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            preexec_fn=_end_with_us,  # safe: the reader has one thread
            check=False,
        )
    finally:
        link.unlink()
    return ended.returncode, ended.stdout.decode("utf-8", "replace")


def _end_with_us() -> None:
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def check_usable(uuid: str) -> str:
    """See `gpu_nvml.check_usable`, which is asked: both know the same vendor."""
    raise NotImplementedError(uuid)
