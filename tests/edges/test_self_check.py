"""The agent's look at itself, on this machine."""

import asyncio
import time
from pathlib import Path

import pytest

from grid_agent.edges.self_check import SelfCheck


async def test_a_healthy_process_finds_nothing() -> None:
    check = SelfCheck()
    seen = await check.check()
    assert seen.loopback_ms is not None
    assert 0.0 < seen.loopback_ms < 1000.0
    assert abs(seen.clock_step_s) < 0.5
    assert seen.missed_jobs == 0
    await check.close()


async def test_pressure_is_read_where_the_kernel_has_it(tmp_path: Path) -> None:
    psi = tmp_path / "cpu"
    psi.write_text("some avg10=42.50 avg60=1.00 avg300=0.10 total=5\nfull avg10=0.00\n")
    check = SelfCheck(psi)
    assert (await check.check()).cpu_pressure == 42.5
    psi.write_text("something else")
    assert (await check.check()).cpu_pressure is None
    psi.unlink()
    assert (await check.check()).cpu_pressure is None
    await check.close()


async def test_skipped_rounds_and_a_stepped_clock_count_from_check_to_check(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    check = SelfCheck()
    for _ in range(3):
        check.skipped()
    assert (await check.check()).missed_jobs == 3
    wall = time.time
    monkeypatch.setattr(time, "time", lambda: wall() + 3600.0)
    seen = await check.check()
    assert seen.missed_jobs == 0
    assert seen.clock_step_s == pytest.approx(3600.0, abs=1.0)
    assert (await check.check()).clock_step_s == pytest.approx(0.0, abs=1.0)
    await check.close()


async def test_a_blocked_loop_shows_in_the_loopback() -> None:
    check = SelfCheck()
    await check.check()
    asyncio.get_running_loop().call_later(0.0, time.sleep, 0.3)
    seen = await check.check()
    assert seen.loopback_ms is not None
    assert seen.loopback_ms >= 200.0
    await check.close()
