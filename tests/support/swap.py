"""A swap file of our own, and one process whose pages are sent there again and again. Linux 5.10, root."""

import ctypes
import os
import subprocess
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from tests.support.netns import status_of, tool

PROCESS_MADVISE, MADV_PAGEOUT = 440, 21
MOST = 512  # ranges in one call
EVERY_S = 0.1


class Range(ctypes.Structure):
    """struct iovec"""

    _fields_ = [("base", ctypes.c_void_p), ("length", ctypes.c_size_t)]


@contextmanager
def swap_file(path: Path, size_mb: int = 512) -> Iterator[None]:
    """Room for pages, on this machine, until the end of the block."""
    with ExitStack() as ends:
        with path.open("wb") as room:
            os.posix_fallocate(room.fileno(), 0, size_mb * 2**20)
        ends.callback(path.unlink)
        path.chmod(0o600)
        subprocess.run([tool("mkswap"), str(path)], check=True, capture_output=True)
        subprocess.run([tool("swapon"), str(path)], check=True)
        ends.callback(subprocess.run, [tool("swapoff"), str(path)], check=True)
        yield


@contextmanager
def paged_out(pid: int) -> Iterator[None]:
    """Every page of this process leaves memory ten times a second; that it fetched some back is checked."""
    over, before = threading.Event(), _major_faults(pid)
    swapped_kb = [0]

    def push() -> None:
        with suppress(ProcessLookupError):
            handle = os.pidfd_open(pid)
            try:
                while not over.wait(EVERY_S):
                    _page_out(handle, pid)
                    swapped_kb.append(int(status_of(pid, "VmSwap").split()[0]))
            finally:
                os.close(handle)

    thread = threading.Thread(target=push, daemon=True)
    thread.start()
    try:
        yield
        assert max(swapped_kb) > 10_000, f"hardly anything of it was in the swap file: {max(swapped_kb)} kB"
        assert _major_faults(pid) > before, "it waited for no page"
    finally:
        over.set()
        thread.join()


def _page_out(handle: int, pid: int) -> None:
    spans = []
    for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
        first, _, last = line.split()[0].partition("-")
        if "[v" not in line:
            spans.append(Range(int(first, 16), int(last, 16) - int(first, 16)))
    libc = ctypes.CDLL(None, use_errno=True)
    for at in range(0, len(spans), MOST):
        some = spans[at : at + MOST]
        libc.syscall(PROCESS_MADVISE, handle, (Range * len(some))(*some), len(some), MADV_PAGEOUT, 0)


def _major_faults(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[9])
