"""GPUs: what a node should have, has, and can still use. From sweeps to findings.

Three numbers make the contract: expected (the file), registered (Ray, fixed when the raylet starts) and seen
(the driver). Beside them stands the inventory with which the raylet was started. What differs, and what a GPU
complains of, is a finding; an answer that did not come disproves nothing. Pure. `noted` is called by
`evidence` with each report of a probe; `gpu_incidents` tells people.
"""

from collections.abc import Iterator
from dataclasses import replace

from grid_agent.core import gpu_events, gpu_repeats
from grid_agent.core.gpu_model import (
    Finding,
    Found,
    Gpu,
    GpuBelief,
    Holder,
    Library,
    Reading,
    Sweep,
)
from grid_agent.core.model import NodeBelief
from grid_agent.core.xids import Help

THROTTLED_SWEEPS = 3  # in a row: power and load have short peaks
UNREADABLE = {
    Reading.FAILED: Finding.FAILED,
    Reading.HANGS: Finding.HANGS,
    Reading.STUCK: Finding.STUCK,
}
CLOSED = {
    Library.NOT_LOADED: (Finding.NOT_LOADED, "the NVIDIA driver is not loaded", "load the driver, or reboot"),
    Library.MISMATCH: (
        Finding.MISMATCH,
        "driver and library are of different versions, as after an update",
        Help.REBOOT,
    ),
    Library.FAILED: (Finding.FAILED, "the NVIDIA library fails", ""),
}


def noted(node: NodeBelief, now: float) -> NodeBelief:
    """Return the node with its newest sweep judged: `gpus.found` says what is wrong."""
    sweep = node.probe.gpus if node.probe is not None else None
    if sweep is None or node.incarnation is None or sweep.state is Reading.WAITING:
        return node
    known = node.gpus
    if sweep.state is Reading.OFF:
        return replace(node, gpus=_off(known)) if known.found else node
    if sweep.state is not Reading.OK:
        return replace(node, gpus=_unreadable(known, sweep, now))
    known = gpu_events.noted(known, sweep, now)
    known = _accept(known, node, sweep)
    swept = f"{node.incarnation.node_id} {sweep.number}"
    fresh = known.swept != swept
    if fresh:  # counted once a sweep, however often it is reported
        known = replace(known, swept=swept, throttled=_throttled(known, sweep))
    known, found = gpu_repeats.noted(known, _findings(known, node, sweep, now), now)
    orphans = tuple(h.pid for h in sweep.holders if h.why) if fresh else known.orphans
    return replace(node, gpus=replace(known, found=found, orphans=orphans))


def forgiven(node: NodeBelief, now: float) -> NodeBelief:
    """A person has the node in hand: what was is dealt with, and what it comes back with is accepted."""
    fresh = replace(node.gpus, accepted=(), accepted_by="", events=(), recurred=(), forgiven_at=now)
    return replace(node, gpus=replace(fresh, excluded=(), drained_id="", drained_at=None, well_since_at=None))


def short(gpu: Gpu) -> str:
    """How a GPU is named to people."""
    return f"GPU {gpu.index} ({gpu.name or 'unknown'}, {gpu.bus_id or 'no address'}, {gpu.uuid or 'no UUID'})"


def counts_differ(expected: int | None, registered: int | None, seen: int | None) -> bool:
    """Fewer GPUs than the file expects or Ray registered; seeing more than asked for is no fault."""
    if expected is not None and registered is not None and registered != expected:
        return True
    return seen is not None and seen < max(expected or 0, registered or 0)


def _unreadable(known: GpuBelief, sweep: Sweep, now: float) -> GpuBelief:
    """The GPUs cannot be read: say so, and keep what was known to be wrong."""
    what = UNREADABLE[sweep.state]
    kept = (f for f in known.found if f.what not in UNREADABLE.values())
    cure = Help.REBOOT if what is Finding.STUCK else ""
    fresh = Found(what, str(what), f"{what}: {sweep.detail}", help=cure)
    known, told = gpu_repeats.noted(known, (fresh,), now)
    return replace(known, found=(*told, *kept))


def _off(known: GpuBelief) -> GpuBelief:
    """Nobody looks any more: nothing is known to be wrong, but what the node was restarted without."""
    left = tuple(f for f in known.found if f.what is Finding.DEGRADED)
    return replace(known, found=left, throttled=(), orphans=())


def _wanted(known: GpuBelief, node: NodeBelief) -> int:
    return max(node.expected_gpus or 0, node.registered_gpus or 0, len(known.accepted))


def _seen(sweep: Sweep) -> tuple[Gpu, ...]:
    return tuple(gpu for gpu in sweep.gpus if not gpu.error)


# --- the inventory -----------------------------------------------------------------------------


def _accept(known: GpuBelief, node: NodeBelief, sweep: Sweep) -> GpuBelief:
    """A raylet that starts with all that it should have makes that the inventory."""
    assert node.incarnation is not None
    seen = _seen(sweep)
    if known.accepted_by == node.incarnation.node_id or sweep.library is not Library.OK:
        return known
    if len(seen) < _wanted(known, node):
        return known
    changed = tuple(_differences(known.accepted, sweep)) if known.accepted else ()
    bare = tuple(Gpu(g.index, g.uuid, g.name, g.bus_id, g.memory_mb) for g in seen)
    return replace(known, accepted=bare, accepted_by=node.incarnation.node_id, changed=changed)


def _differences(accepted: tuple[Gpu, ...], sweep: Sweep) -> Iterator[Found]:
    """How what is seen differs from the inventory: replaced, missing, appeared."""
    seen = _seen(sweep)
    uuids = {gpu.uuid for gpu in seen}
    fresh = {gpu.bus_id: gpu for gpu in seen if gpu.uuid not in {one.uuid for one in accepted}}
    for gpu in accepted:
        if gpu.uuid in uuids:
            continue
        other = fresh.pop(gpu.bus_id, None)
        if other is not None:
            text = f"{short(gpu)} is replaced: now {other.name}, {other.uuid}"
            yield Found(Finding.REPLACED, f"replaced {gpu.uuid} {other.uuid}", text, other.uuid)
            continue
        silent = next((g for g in sweep.gpus if g.error and gpu.uuid == g.uuid), None)
        why = f" ({silent.error})" if silent is not None else ""
        yield Found(
            Finding.MISSING, f"missing {gpu.uuid}", f"{short(gpu)} is missing{why}", gpu.uuid, Help.REBOOT
        )
    for gpu in fresh.values():
        yield Found(Finding.APPEARED, f"appeared {gpu.uuid}", f"{short(gpu)} has appeared", gpu.uuid)


def _contract(known: GpuBelief, node: NodeBelief, sweep: Sweep) -> Iterator[Found]:
    """Expected, registered and seen, as far as the inventory does not already say it."""
    expected, registered, seen = node.expected_gpus, node.registered_gpus, len(_seen(sweep))
    if expected is not None and seen < expected and len(known.accepted) < expected:
        text = f"{expected - seen} of {expected} expected GPUs missing: {seen} seen"
        yield Found(Finding.MISSING, "missing", text, help=Help.REBOOT)
    if registered is not None and seen < registered:
        text = f"Ray hands out {registered} GPUs, {seen} are seen: registered but not seen"
        yield Found(Finding.NOT_SEEN, "not seen", text)
    full = len(known.accepted) if expected is None else expected
    if known.excluded and registered == max(0, full - len(known.excluded)):
        for uuid in known.excluded:
            text = f"{node.name} runs without {uuid} until the contract holds again: degraded"
            yield Found(Finding.DEGRADED, f"degraded {uuid}", text, uuid)
    elif expected is not None and registered is not None and expected != registered:
        text = f"{expected} GPUs expected, {registered} registered with Ray"
        yield Found(Finding.NOT_REGISTERED, "not registered", text)


# --- findings ----------------------------------------------------------------------------------


def _findings(known: GpuBelief, node: NodeBelief, sweep: Sweep, now: float) -> Iterator[Found]:
    foreign = bool(sweep.hardware) and "nvidia" not in sweep.hardware
    if sweep.library is Library.ABSENT and foreign:
        return  # GPUs of a vendor that nobody here can read: Ray's own count is all there is
    if sweep.library in CLOSED:
        here = node.expected_gpus is None and "nvidia" in sweep.hardware
        if _wanted(known, node) or here:
            what, text, cure = CLOSED[sweep.library]
            yield Found(what, str(what), f"{text} ({sweep.detail})", help=cure)
        return
    if known.accepted_by or known.accepted:
        yield from _differences(known.accepted, sweep)
    yield from _contract(known, node, sweep)
    for gpu in sweep.gpus:
        yield from _health(gpu, known)
    yield from gpu_events.findings(known, sweep, now, lambda bus: _at(known, sweep, bus))
    yield from _orphans(known, sweep)


def _health(gpu: Gpu, known: GpuBelief) -> Iterator[Found]:
    name, uuid = short(gpu), gpu.uuid
    if gpu.unusable:
        text = f"{name} is seen but unusable: {gpu.unusable}"
        yield Found(Finding.UNUSABLE, f"unusable {uuid}", text, uuid, Help.RESET)
    if gpu.ecc_uncorrectable:
        text = f"{name}: {gpu.ecc_uncorrectable} uncorrectable memory errors since the driver was loaded"
        yield Found(Finding.ECC, f"ecc {uuid}", text, uuid, Help.RESET)
    if gpu.remap_pending:
        text = f"{name}: a memory repair waits for a reset"
        yield Found(Finding.REMAP_PENDING, f"remap {uuid}", text, uuid, Help.RESET)
    if gpu.remap_failed:
        text = f"{name}: a memory repair failed"
        yield Found(Finding.REMAP_FAILED, f"remap failed {uuid}", text, uuid, Help.HARDWARE)
    if gpu.temperature_c is not None and gpu.slowdown_c and gpu.temperature_c >= gpu.slowdown_c:
        text = f"{name}: {gpu.temperature_c} °C, and it slows down at {gpu.slowdown_c} °C"
        yield Found(Finding.HOT, f"hot {uuid}", text, uuid, "check its cooling")
    if known.throttled.count(uuid) >= THROTTLED_SWEEPS:
        text = f"{name}: {', '.join(gpu.throttled)}"
        yield Found(Finding.THROTTLED, f"throttled {uuid}", text, uuid, "check its power and cooling")


def _at(known: GpuBelief, sweep: Sweep, bus: str) -> tuple[str, str]:
    """How the GPU at this address is named to people, and its UUID ("" where it is not known)."""
    gpu = next((g for g in (*known.accepted, *sweep.gpus) if g.bus_id == bus), None)
    return (f"the GPU at {bus or 'an unknown address'}", "") if gpu is None else (short(gpu), gpu.uuid)


def _throttled(known: GpuBelief, sweep: Sweep) -> tuple[str, ...]:
    """One entry for each sweep in a row in which a GPU was throttled, at most as many as are needed."""
    rows: list[str] = []
    for gpu in sweep.gpus:
        if gpu.throttled:
            rows += [gpu.uuid] * min(THROTTLED_SWEEPS, known.throttled.count(gpu.uuid) + 1)
    return tuple(rows)


def _orphans(known: GpuBelief, sweep: Sweep) -> Iterator[Found]:
    """Memory held by what a dead raylet or worker left behind; seen twice, for some are just ending."""
    for holder in sweep.holders:
        if holder.why and holder.pid in known.orphans:
            yield Found(
                Finding.ORPHAN, f"orphan {holder.pid}", orphan(holder), holder.uuid, "end that process"
            )


def orphan(holder: Holder) -> str:
    """One orphan in one line."""
    held = f"{holder.memory_mb} MiB of {holder.uuid}"
    who = f"{holder.name}, pid {holder.pid}, of {holder.owner}, {holder.age_s:.0f} s old"
    return f"{held} held by {who}: {holder.why}"
