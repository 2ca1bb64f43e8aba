"""The agent looks at itself: its own loopback connection, its CPU, its two clocks, the rounds it skipped.

It only measures; what follows is decided in `core.awareness`. Made and run by `compose`.
"""

import asyncio
import contextlib
import time
from pathlib import Path

from grid_agent.core import messages as m

WAIT_S = 1.0
PRESSURE = Path("/proc/pressure/cpu")


class SelfCheck:
    """Listens on a loopback port of its own and connects to it at every check."""

    def __init__(self, pressure: Path = PRESSURE) -> None:
        self._pressure = pressure
        self._server: asyncio.Server | None = None
        self._skipped = 0
        self._offset_s = _offset_s()

    def skipped(self) -> None:
        """A round was skipped because the one before it was still under way."""
        self._skipped += 1

    async def check(self) -> m.SelfChecked:
        """What has happened since the last check. Takes a second at most, longer only if we are stopped."""
        loopback_ms = await self._loopback_ms()
        skipped, self._skipped = self._skipped, 0
        offset_s = _offset_s()
        step_s, self._offset_s = offset_s - self._offset_s, offset_s
        return m.SelfChecked(skipped, loopback_ms, self._cpu_pressure(), step_s)

    async def close(self) -> None:
        """Stop listening."""
        if self._server is not None:
            self._server.close()

    async def _loopback_ms(self) -> float | None:
        begun = time.perf_counter()
        try:
            async with asyncio.timeout(WAIT_S):
                if self._server is None:
                    self._server = await asyncio.start_server(_echo, "127.0.0.1", 0)
                reader, writer = await asyncio.open_connection(*self._server.sockets[0].getsockname()[:2])
                try:
                    writer.write(b"x")
                    await reader.readexactly(1)
                finally:
                    writer.close()
        except (OSError, TimeoutError, asyncio.IncompleteReadError):
            return None
        return (time.perf_counter() - begun) * 1000.0

    def _cpu_pressure(self) -> float | None:
        """The share of time in percent that something here waited for a CPU (kernel docs: psi), if known."""
        with contextlib.suppress(OSError, ValueError, IndexError):
            some = self._pressure.read_text(encoding="ascii").splitlines()[0]
            return float(some.split()[1].removeprefix("avg10="))
        return None


async def _echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError, asyncio.IncompleteReadError):
        writer.write(await reader.readexactly(1))
        await writer.drain()
    writer.close()


def _offset_s() -> float:
    """Wall time less monotonic time: it changes only when the wall clock is set, or the machine slept."""
    return time.time() - time.monotonic()
