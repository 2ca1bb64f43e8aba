"""Error events of GPUs (XIDs): what is kept of them, how often each came, and when one is a finding.

One fault is often a hundred lines, and the kernel log and NVML both tell it: what comes within a minute
counts once. Of each kind on each GPU in each boot the newest is kept with the times of its bursts, so that no
flood of one kind drives out another. Pure; called by `gpus`.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace

from grid_agent.core import xids
from grid_agent.core.gpu_model import Finding, Found, GpuBelief, GpuEvent, Sweep

REPEAT_S = 86_400.0  # events are counted over a day
BURST_S = 60.0  # as in `gpu_watch`: NVML tells up to a sweep later than the kernel log
KEEP_TIMES = 32  # more than any row of the table asks for
KEEP_MINOR = 64  # kinds; grave ones are all kept while their boot lasts


def noted(known: GpuBelief, sweep: Sweep, now: float) -> GpuBelief:
    """Add the sweep's events to what is known; what a person dealt with stays out, and what is over goes."""
    kept = {event.kind: event for event in known.events}
    for event in sweep.events:
        if event.at > known.forgiven_at:
            times = tuple(t for t in event.times if t > known.forgiven_at) or (event.at,)
            kept[event.kind] = _merged(kept.get(event.kind), replace(event, times=times))
    events = sorted((e for e in kept.values() if not _over(e, sweep, now)), key=lambda e: e.at)
    minor = [e for e in events if _minor(e)]
    dropped = {e.kind for e in minor[: max(0, len(minor) - KEEP_MINOR)]}
    return replace(known, events=tuple(e for e in events if e.kind not in dropped))


def findings(
    known: GpuBelief, sweep: Sweep, now: float, name: Callable[[str], tuple[str, str]]
) -> Iterator[Found]:
    """A grave one stands until the host is booted, a minor one counts.

    `name` gives, for the address of a GPU, how it is named to people, and its UUID.
    """
    latest = {(e.bus_id, e.number): e for e in sorted(known.events, key=lambda e: e.at)}
    for (bus, number), event in latest.items():
        row = xids.of(number, event.text)
        times = sum(_recent(e, now) for e in known.events if (e.bus_id, e.number) == (bus, number))
        repeated = row.repeats is not None and times >= row.repeats
        if not repeated and (row.minor or event.boot_id != sweep.boot_id):
            continue
        where, uuid = name(bus)
        again = f", {times} times within a day" if times > 1 else ""
        text = f"XID {number} on {where}: {row.meaning}{again}"
        key = f"xid {number} {bus}" + (" repeated" if repeated else "")
        yield Found(Finding.EVENT, key, text, uuid, row.then if repeated else row.help)


def _merged(old: GpuEvent | None, new: GpuEvent) -> GpuEvent:
    """Both as one. NVML tells no text, so that of the kernel log stays; one that says Fatal stays, too."""
    if old is None:
        return new
    older, newer = sorted((old, new), key=lambda e: e.at)
    times = bursts((*(old.times or (old.at,)), *new.times))
    keep = not newer.text or "Fatal" in older.text.split()
    return replace(newer, text=older.text if keep else newer.text, times=times)


def bursts(times: Iterable[float]) -> tuple[float, ...]:
    """When each burst began: what comes within a minute of the first belongs to it."""
    begun: list[float] = []
    for at in sorted(times):
        if not begun or at - begun[-1] >= BURST_S:
            begun.append(at)
    return tuple(begun[-KEEP_TIMES:])


def _recent(event: GpuEvent, now: float) -> int:
    return sum(now - at < REPEAT_S for at in event.times or (event.at,))


def _minor(event: GpuEvent) -> bool:
    return xids.of(event.number, event.text).minor


def _over(event: GpuEvent, sweep: Sweep, now: float) -> bool:
    """It counts no more, and is no grave one of this boot."""
    return not _recent(event, now) and (_minor(event) or event.boot_id != sweep.boot_id)
