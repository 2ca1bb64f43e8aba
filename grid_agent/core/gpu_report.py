"""GPUs as people read them: the counts in health, the details in `why`. Pure views. Called by `report`."""

from typing import Any

from grid_agent.core import gpus
from grid_agent.core.gpu_incidents import line
from grid_agent.core.gpu_model import Gpu, Library, Reading, Sweep
from grid_agent.core.model import NodeBelief


def counts(node: NodeBelief) -> dict[str, Any]:
    """The contract in three numbers; `usable` where it was tried, `findings` where there are some."""
    body: dict[str, Any] = {
        "expected": node.expected_gpus,
        "registered": node.registered_gpus,
        "seen": node.probe.gpus_seen if node.probe else None,
    }
    sweep = node.probe.gpus if node.probe else None
    if sweep is not None and sweep.state is Reading.OK and sweep.usable is not None:
        body["usable"] = sweep.usable
    return {**body, "findings": [f.text for f in node.gpus.found]} if node.gpus.found else body


def differ(node: NodeBelief) -> bool:
    """Whether health warns: a finding, or counts that say so before the first sweep was judged."""
    if node.gpus.found:
        return True
    sweep = node.probe.gpus if node.probe else None
    if sweep is not None and sweep.state is Reading.OK:
        return False  # judged, and nothing found
    seen = node.probe.gpus_seen if node.probe else None
    return gpus.counts_differ(node.expected_gpus, node.registered_gpus, seen)


def action(node: NodeBelief) -> str | None:
    """What a person should know of a node that is otherwise well."""
    found = node.gpus.found
    if not found:
        return None
    more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
    return f"reported: {line(found[0])}{more}"


def details(node: NodeBelief) -> list[str]:
    """One line for each GPU, each finding, and what hinders the reading; empty on a node without GPUs."""
    sweep = node.probe.gpus if node.probe else None
    if sweep is None or (not sweep.gpus and not node.gpus.found):
        return []
    lines = [line(f) for f in node.gpus.found]
    lines += [_gpu(gpu) for gpu in sweep.gpus]
    lines += [_reading(sweep)]
    if sweep.kernel_log:
        lines.append(f"the kernel log cannot be read ({sweep.kernel_log}); only what NVML tells is known")
    return lines


def _gpu(gpu: Gpu) -> str:
    state = gpu.error or (f"{gpu.temperature_c} °C" if gpu.temperature_c is not None else "answers")
    memory = f"{gpu.memory_mb} MiB" if gpu.memory_mb else "memory not told"
    return f"{gpus.short(gpu)}, {memory}: {state}"


def _reading(sweep: Sweep) -> str:
    if sweep.state is not Reading.OK:
        return f"reading: {sweep.state}: {sweep.detail}"
    if sweep.library is not Library.OK:
        return f"library: {sweep.library}: {sweep.detail}"
    return f"driver {sweep.driver}, read in {sweep.took_ms:.1f} ms"
