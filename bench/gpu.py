"""What watching GPUs costs: `python bench/gpu.py`, and `python bench/gpu.py --real` on a machine with a card.

Without --real it builds the stand-in of tests/gpu (two GPUs, gcc needed), so the figures are those of our own
code and of nvidia-ml-py; with --real the driver's share is in them. Measured: the time and CPU of a sweep in
the reader, the CPU of a sweep every 15 s as a share of a core for each GPU, and the memory (PSS) of the probe
actor with its reader beside an empty Ray actor in the same cluster. Writes bench/results/gpu.json.
"""

import argparse
import inspect
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
os.environ.setdefault("RAY_AUTH_MODE", "disabled")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

from grid_agent.edges import gpu_child, gpu_nvml, gpu_reader, gpu_smi

EVERY_S = 15.0
GOALS = "goals: below 0.1 % of a core per GPU; actor below 1.20 x an empty one"
SOURCES = [(r.__name__.rsplit(".", 1)[-1], inspect.getsource(r)) for r in (gpu_nvml, gpu_smi, gpu_reader)]


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--real", action="store_true", help="the machine's own driver and GPUs")
    parser.add_argument("--sweeps", type=int, default=200)
    parser.add_argument("--actors", type=int, default=5, help="of each kind, in turn; 0: no Ray")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if not args.real:
            from tests.gpu.standin import Standin

            os.environ.update(Standin(Path(folder)).env)
        result = sweeps(args.sweeps)
        if args.actors:
            result |= actors(args.actors)
    report(result, real=args.real)


def sweeps(count: int) -> dict[str, Any]:
    """Time and CPU of `count` sweeps in one reader, after the first."""
    begin = {"kernel_log": "/dev/kmsg", "modules": {gpu_nvml.VENDOR: gpu_nvml.find_module()}}
    child = gpu_child.Child(SOURCES, begin)
    begun = time.perf_counter()
    first = _sweep(child)
    first_ms = (time.perf_counter() - begun) * 1000
    assert child.pid is not None
    cpu_s = _cpu_s(child.pid)
    took_ms = [_sweep(child)["took_ms"] for _ in range(count)]
    cpu_ms = (_cpu_s(child.pid) - cpu_s) * 1000 / count
    pss_mb = _pss_mb(child.pid)
    child.kill()
    gpus = max(1, len(first["gpus"]))
    return {
        "gpus": len(first["gpus"]),
        "names": sorted({g["name"] for g in first["gpus"]}),
        "driver": first.get("driver", ""),
        "library": first["library"],
        "first_ms": first_ms,
        "sweep_ms": statistics.median(took_ms),
        "sweep_worst_ms": max(took_ms),
        "cpu_ms": cpu_ms,
        "core_percent_per_gpu": 100 * cpu_ms / 1000 / EVERY_S / gpus,
        "reader_mb": pss_mb,
    }


def actors(count: int) -> dict[str, Any]:
    """Memory of the probe actor with its reader, and of an empty actor, made in turn in one Ray."""
    import ray

    from grid_agent.edges import gpu_watch, node_probe
    from grid_agent.edges.host import common, ports, procs

    for module in (gpu_child, gpu_nvml, gpu_watch, common, procs, ports, node_probe):
        ray.cloudpickle.register_pickle_by_value(module)
    ray.init(num_cpus=2, log_to_driver=False, logging_level="ERROR", include_dashboard=False)
    gpu = {
        "every_s": 0.001,
        "timeout_s": 10,
        "usable_every_s": 0,
        "kernel_log": "/dev/kmsg",
        "sources": SOURCES,
    }

    class Empty:
        def pid(self) -> int:
            return os.getpid()

    class Probe(node_probe.GridAgentProbe):
        def pid(self) -> int:
            return os.getpid()

    empty_mb, probe_mb = [], []
    try:
        for _ in range(count):
            empty = ray.remote(num_cpus=0)(Empty).remote()
            probe = ray.remote(num_cpus=0)(Probe).remote("/tmp", gpu)
            for _ in range(20):
                ray.get([probe.report.remote(), empty.pid.remote()])
            shown = ray.get(probe.report.remote())["gpus"]
            assert shown["state"] == "ok", shown
            probe_pid = ray.get(probe.pid.remote())
            empty_mb.append(_pss_mb(ray.get(empty.pid.remote())))
            probe_mb.append(_pss_mb(probe_pid) + sum(map(_pss_mb, _children(probe_pid))))
            ray.kill(empty)
            ray.kill(probe)
    finally:
        ray.shutdown()
    return {
        "empty_actor_mb": statistics.median(empty_mb),
        "probe_actor_mb": statistics.median(probe_mb),
        "actor_ratio": statistics.median(p / e for p, e in zip(probe_mb, empty_mb, strict=True)),
    }


def _sweep(child: gpu_child.Child) -> dict[str, Any]:
    child.ask({"op": "sweep"})
    answer = child.answer(60)
    assert answer is not None, child.died
    return answer


def _cpu_s(pid: int) -> float:
    """User and system time of a process and its threads, from the nanoseconds of the scheduler."""
    tasks = Path(f"/proc/{pid}/task").glob("*/schedstat")
    return sum(int(task.read_text().split()[0]) for task in tasks) / 1e9


def _pss_mb(pid: int) -> float:
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    return int(next(line for line in text.splitlines() if line.startswith("Pss:")).split()[1]) / 1024


def _children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def report(result: dict[str, Any], *, real: bool) -> None:
    """Ratios first; then what they are made of."""
    if "actor_ratio" in result:
        print(f"probe actor with its reader / empty Ray actor = {result['actor_ratio']:.2f}   ({GOALS})")
        print(f"  {result['probe_actor_mb']:.1f} / {result['empty_actor_mb']:.1f} MiB PSS")
    print(f"a sweep every {EVERY_S:.0f} s: {result['core_percent_per_gpu']:.3f} % of a core per GPU")
    what = f"{result['gpus']} GPUs ({', '.join(result['names']) or result['library']})"
    print(f"  {what}, driver {result['driver'] or '-'}{'' if real else ', stand-in'}")
    print(
        f"  sweep {result['sweep_ms']:.2f} ms median, {result['sweep_worst_ms']:.2f} ms worst, "
        f"{result['cpu_ms']:.2f} ms CPU; first answer {result['first_ms']:.0f} ms; "
        f"reader {result['reader_mb']:.1f} MiB PSS"
    )
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    results = Path(__file__).parent / "results"
    results.mkdir(exist_ok=True)
    (results / "gpu.json").write_text(json.dumps({"real": real, **result}))


if __name__ == "__main__":
    main()
