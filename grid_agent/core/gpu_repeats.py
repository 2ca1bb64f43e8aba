"""Findings that come back: what helps when the last help did not. XIDs have their own counts (`gpu_events`).

Pure; called by `gpus` with what a sweep shows.
"""

from collections.abc import Iterable
from dataclasses import replace

from grid_agent.core.gpu_events import REPEAT_S
from grid_agent.core.gpu_model import Finding, Found, GpuBelief, Recurrence
from grid_agent.core.xids import Help

AGAIN_S = 600.0  # what comes and goes more often than that is one trouble
# What helps the first time, the second within a day, and so on; "": nothing is advised.
LADDERS = {
    Finding.HANGS: ("", Help.REBOOT, Help.HARDWARE),
    Finding.ECC: (Help.RESET, Help.HARDWARE),
    Finding.UNUSABLE: (Help.RESET, Help.REBOOT, Help.HARDWARE),
    Finding.THROTTLED: ("check its power and cooling", Help.HARDWARE),
}


def noted(known: GpuBelief, found: Iterable[Found], now: float) -> tuple[GpuBelief, tuple[Found, ...]]:
    """Count those that are new, and give each the help of its rung. `known.found` is what stood before."""
    before = {f.key for f in known.found}
    times = {r.key: r.times for r in known.recurred}
    told = []
    for one in found:
        if one.what in LADDERS:
            times[one.key] = _begun(times.get(one.key, ()), one.key in before, now)
        told.append(_escalated(one, len(times.get(one.key, ()))))
    stands = {f.key for f in told}
    kept = (Recurrence(k, begun) for k, begun in times.items() if k in stands or now - begun[-1] < REPEAT_S)
    return replace(known, recurred=tuple(kept)), tuple(told)


def _begun(times: tuple[float, ...], stood: bool, now: float) -> tuple[float, ...]:
    """When it began, each time within a day; while it stands nothing is added, however long that is."""
    if stood and times:
        return times
    recent = tuple(at for at in times if now - at < REPEAT_S)
    return recent if recent and now - recent[-1] < AGAIN_S else (*recent, now)


def _escalated(found: Found, times: int) -> Found:
    rungs = LADDERS.get(found.what)
    if rungs is None:
        return found
    again = f", {times} times within a day" if times > 1 else ""
    return replace(found, text=found.text + again, help=rungs[min(times, len(rungs)) - 1])
