"""The child process that reads GPUs, with the real nvidia-ml-py (and Ray's copy) on the stand-in."""

import inspect
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from grid_agent.core.gpu_model import Library, Reading, Sweep, sweep_of
from grid_agent.edges import gpu_child, gpu_nvml, gpu_reader, gpu_watch
from tests.gpu.standin import UUIDS, Standin

SOURCES = [(m.__name__.rsplit(".", 1)[-1], inspect.getsource(m)) for m in (gpu_nvml, gpu_reader)]
TIMEOUT_S = 1.5


class Probe:
    """A Watch whose sweeps come when they are asked for."""

    def __init__(
        self, standin: Standin, module: str | None, kill: Callable[[int, int], None] = os.kill
    ) -> None:
        begin = {"kernel_log": str(standin.kernel_log), "modules": {"nvidia": module}}
        self.child = gpu_child.Child(SOURCES, begin, kill)
        self.watch = gpu_watch.Watch(self.child, 0.001, TIMEOUT_S)

    def sweep(self, wait_s: float = 20.0) -> Sweep:
        """The next sweep, however it goes."""
        number = self.watch._count
        until = time.monotonic() + wait_s
        while True:
            shown = sweep_of(self.watch.look(time.monotonic(), 0.2))
            if self.watch._count != number:
                return shown
            assert time.monotonic() < until

    def close(self) -> None:
        self.child._kill = os.kill
        self.child.kill()


def rays_copy() -> str:
    import ray

    return str(Path(ray.__file__).parent.joinpath(*gpu_nvml.RAYS_COPY))


@pytest.fixture(params=["nvidia-ml-py", "Ray's copy"])
def probe(standin: Standin, request: pytest.FixtureRequest) -> Iterator[Probe]:
    module = gpu_nvml.find_module() if request.param == "nvidia-ml-py" else rays_copy()
    made = Probe(standin, module)
    yield made
    made.close()


@pytest.fixture
def one(standin: Standin) -> Iterator[Probe]:
    made = Probe(standin, gpu_nvml.find_module())
    yield made
    made.close()


def test_two_healthy_gpus(probe: Probe) -> None:
    shown = probe.sweep()
    assert (shown.state, shown.library, shown.seen) == (Reading.OK, Library.OK, 2)
    assert [g.uuid for g in shown.gpus] == list(UUIDS)
    assert [g.bus_id for g in shown.gpus] == ["0000:81:00", "0000:c1:00"]
    first = shown.gpus[0]
    assert (first.name, first.memory_mb, first.temperature_c, first.slowdown_c) == (
        "NVIDIA-Standin",
        81920,
        40,
        90,
    )
    assert shown.driver == "550.54.15"
    assert probe.sweep().number == 2


def test_every_complaint_of_a_gpu_is_read(probe: Probe, standin: Standin) -> None:
    probe.sweep()
    standin.set(0, temperature=93, throttle=0xC8, ecc=5, pending=1, failed=1)
    sick, well = probe.sweep().gpus
    assert sick.temperature_c == 93
    assert sick.throttled == ("hardware slowdown", "hardware thermal slowdown", "power brake")
    assert (sick.ecc_uncorrectable, sick.remap_pending, sick.remap_failed) == (5, True, True)
    assert (well.throttled, well.ecc_uncorrectable, well.remap_pending) == ((), 0, False)
    standin.set(0, throttle=0x5)  # idle and a power cap are no trouble
    assert probe.sweep().gpus[0].throttled == ()


def test_what_a_gpu_does_not_tell_is_unknown_and_no_error(probe: Probe, standin: Standin) -> None:
    """A GPU that shares the host's memory (GB10) has no memory of its own to tell of."""
    standin.set(0, unsupported="memory,temperature,threshold,throttle,ecc,remapped,retired,pci,name")
    shown = probe.sweep()
    assert shown.seen == 2
    bare = shown.gpus[0]
    assert (bare.uuid, bare.error, bare.memory_mb, bare.bus_id, bare.name) == (UUIDS[0], "", 0, "", "")
    assert (bare.temperature_c, bare.slowdown_c, bare.ecc_uncorrectable) == (None, None, None)
    standin.set(0, unsupported="memory")
    shown = probe.sweep()
    assert (shown.gpus[0].memory_mb, shown.gpus[0].temperature_c) == (0, 40)
    assert shown.gpus[0].bus_id == "0000:81:00"
    standin.set(0, unsupported="uuid")
    assert probe.sweep().gpus[0].error == "Not Supported"


def test_a_lost_gpu_is_remembered_by_name_and_comes_back(probe: Probe, standin: Standin) -> None:
    probe.sweep()
    standin.set(0, state="lost")
    for _ in range(3):
        shown = probe.sweep()
        assert shown.seen == 1
        assert (shown.gpus[0].uuid, shown.gpus[0].error) == (UUIDS[0], "GPU is lost")
    standin.set(0, state="ok")
    assert probe.sweep().seen == 2


def test_a_gpu_that_appears_is_seen_when_the_session_is_renewed(one: Probe, standin: Standin) -> None:
    standin.set(1, state="absent")
    assert one.sweep().seen == 1
    standin.set(1, state="ok")
    seen = [one.sweep().seen for _ in range(gpu_nvml.RENEW_SWEEPS)]
    assert seen[0] == 1  # NVML lists devices once
    assert seen[-1] == 2


def test_a_uuid_that_changes(one: Probe, standin: Standin) -> None:
    one.sweep()
    standin.set(1, uuid="GPU-other")
    assert one.sweep().gpus[1].uuid == "GPU-other"


@pytest.mark.parametrize(
    ("init", "library"),
    [("not_loaded", Library.NOT_LOADED), ("mismatch", Library.MISMATCH), ("no_permission", Library.FAILED)],
)
def test_a_driver_that_cannot_be_opened(one: Probe, standin: Standin, init: str, library: Library) -> None:
    standin.set(init=init)
    shown = one.sweep()
    assert (shown.state, shown.library, shown.seen) == (Reading.OK, library, 0)
    assert shown.detail
    standin.set(init="ok")
    assert one.sweep().seen == 2


def test_without_nvidia_software_it_is_a_cpu_node(standin: Standin, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LD_LIBRARY_PATH", "/nowhere")
    for module in (gpu_nvml.find_module(), None):
        probe = Probe(standin, module)
        shown = probe.sweep()
        assert (shown.state, shown.library, shown.seen) == (Reading.OK, Library.ABSENT, 0)
        probe.close()


def test_a_kernel_line_and_an_nvml_event_of_one_error_are_one(one: Probe, standin: Standin) -> None:
    standin.kernel("NVRM: Xid (PCI:0000:c1:00): 63, pid='<unknown>', Row Remapper", at_us=1)
    shown = one.sweep()
    assert [(e.bus_id, e.number) for e in shown.events] == [("0000:c1:00", 63)]  # from before we looked
    standin.kernel("usb 1-1: new device")
    standin.kernel("NVRM: Xid (PCI:0000:81:00): 79, pid=1234, GPU has fallen off the bus.")
    standin.event(0, 79)
    standin.event(1, 31)
    shown = one.sweep()
    told = [(e.bus_id, e.number, e.text, len(e.times)) for e in shown.events]
    assert told[1:] == [
        ("0000:81:00", 79, "pid=1234, GPU has fallen off the bus.", 1),
        ("0000:c1:00", 31, "", 1),
    ]
    assert one.sweep().events == shown.events  # told again
    standin.event(0, 79)  # told by NVML a sweep later
    assert one.sweep().events[1].text == "pid=1234, GPU has fallen off the bus."
    assert len(one.sweep().events[1].times) == 1


def test_what_is_fatal_stays_fatal(one: Probe, standin: Standin) -> None:
    for word in ("Nonfatal", "Fatal", "Nonfatal"):
        standin.kernel(f"NVRM: Xid (PCI:0000:81:00): 149, NETIR_LINK_EVT {word} XC0 i0 Link 01")
        (event,) = one.sweep().events
    assert event.text.startswith("NETIR_LINK_EVT Fatal")


def test_a_flood_of_lines_drives_nothing_out(one: Probe, standin: Standin) -> None:
    standin.kernel("NVRM: Xid (PCI:0000:81:00): 79, GPU has fallen off the bus.", at_us=1)
    for second in range(100):
        line = f"NVRM: Xid (PCI:0000:81:00): 45, pid=7, Ch {second:08x}"
        standin.kernel(line, at_us=second * 1_000_000)
    shown = one.sweep()
    assert [e.number for e in shown.events] == [79, 45]
    assert len(shown.events[1].times) == 2  # a hundred seconds of it
    assert shown.events[1].text == "pid=7, Ch 00000063"


def test_a_kernel_log_that_may_not_be_read_is_named_and_nvml_still_tells(
    standin: Standin,
) -> None:
    standin_log = standin.kernel_log
    standin.kernel_log = standin.folder / "missing"
    probe = Probe(standin, gpu_nvml.find_module())
    standin.kernel_log = standin_log
    assert "No such file" in probe.sweep().kernel_log
    standin.event(1, 48)
    assert [e.number for e in probe.sweep().events] == [48]
    probe.close()


@pytest.mark.parametrize("where", ["init", "temperature", "events"])
def test_a_hanging_driver_costs_a_process_and_not_the_answer(
    one: Probe, standin: Standin, where: str
) -> None:
    if where != "init":
        one.sweep()
    standin.set(hang=where)
    begun = time.monotonic()
    shown = one.watch.look(begun, 0.2)
    assert time.monotonic() - begun < 1.0  # the probe itself never waits longer than it was told to
    assert shown["state"] in ("waiting", "ok")
    first = one.child.pid
    shown = one.sweep()
    assert (shown.state, shown.seen) == (Reading.HANGS, None)
    assert first is not None
    assert not Path(f"/proc/{first}").exists()
    standin.set(hang="nothing")
    assert one.sweep().seen == 2


def test_a_reader_that_cannot_be_killed_is_said_and_never_joined_by_a_second(
    standin: Standin,
) -> None:
    probe = Probe(standin, gpu_nvml.find_module(), kill=lambda pid, number: None)
    probe.sweep()
    standin.set(hang="temperature")
    shown = probe.sweep()
    stuck = probe.child.pid
    assert shown.state is Reading.STUCK
    assert f"pid {stuck}" in shown.detail
    for _ in range(5):
        assert sweep_of(probe.watch.look(time.monotonic(), 0.1)).state is Reading.STUCK
        assert probe.child.pid == stuck
    assert readers_of(os.getpid()) == [stuck]
    standin.set(hang="nothing")
    assert stuck is not None
    os.kill(stuck, signal.SIGKILL)  # the kernel lets go of it
    assert probe.sweep().seen == 2
    probe.close()


LEFT = (
    "import ctypes,time;ctypes.CDLL(None).prctl(15,b'gpurd-999999');print('named',flush=True);time.sleep(60)"
)


def test_a_reader_that_an_earlier_probe_left_in_the_kernel_is_not_joined(standin: Standin) -> None:
    left = subprocess.Popen([sys.executable, "-c", LEFT], stdout=subprocess.PIPE)
    probe = Probe(standin, gpu_nvml.find_module(), kill=lambda pid, number: None)
    try:
        assert left.stdout is not None
        left.stdout.readline()
        shown = probe.sweep()
        assert shown.state is Reading.STUCK
        assert f"pid {left.pid}, state S" in shown.detail
        assert readers_of(os.getpid()) == []
        left.kill()  # the kernel lets go of it
        left.wait()
        assert probe.sweep().seen == 2
    finally:
        left.kill()
        left.wait()
        left.stdout.close()
        probe.close()


def test_a_reader_that_an_earlier_probe_left_is_ended(standin: Standin) -> None:
    with subprocess.Popen([sys.executable, "-c", LEFT], stdout=subprocess.PIPE) as left:
        assert left.stdout is not None
        left.stdout.readline()
        probe = Probe(standin, gpu_nvml.find_module())
        assert probe.sweep().seen == 2
        assert left.wait(5) == -signal.SIGKILL
        probe.close()


def test_a_reader_that_crashes_is_said_and_replaced(one: Probe) -> None:
    one.sweep()
    assert one.child.pid is not None
    os.kill(one.child.pid, signal.SIGSEGV)
    shown = one.sweep()
    assert shown.state is Reading.FAILED
    assert "signal 11" in shown.detail
    assert one.sweep().seen == 2


def test_the_reader_ends_with_whoever_started_it(standin: Standin) -> None:
    code = (
        "import sys,time;from tests.gpu.test_reader import *;from tests.gpu.standin import Standin\n"
        "class S: kernel_log=''\n"
        "p=Probe(S(), gpu_nvml.find_module());p.sweep();print(p.child.pid,flush=True);time.sleep(60)"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    reader = int(parent.stdout.readline())
    parent.kill()
    parent.wait()
    parent.stdout.close()
    until = time.monotonic() + 5
    while Path(f"/proc/{reader}/stat").exists() and time.monotonic() < until:
        time.sleep(0.01)
    assert not Path(f"/proc/{reader}/stat").exists()


def test_who_holds_memory_and_whether_anybody_is_in_charge(one: Probe, standin: Standin) -> None:
    one.sweep()
    marks = {**os.environ, "RAY_NODE_ID": "ab" * 28, "RAY_RAYLET_PID": "999999"}
    orphan = subprocess.Popen(["sleep", "60"], env=marks)
    own = subprocess.Popen(["sleep", "60"])
    try:
        standin.set(0, process=f"{orphan.pid}:2048")
        standin.set(1, process=f"{own.pid}:512")
        held = {h.pid: h for h in one.sweep().holders}
        one_, other = held[orphan.pid], held[own.pid]
        assert (one_.uuid, one_.memory_mb, one_.node_id) == (UUIDS[0], 2048, "ab" * 28)
        assert one_.why == "its raylet is gone"
        assert (one_.name, one_.start_ticks > 0) == ("sleep", True)
        assert one_.age_s < 60
        assert (other.why, other.node_id) == ("", "")
        standin.set(0, process="999999:5")  # it is in another PID namespace, or has just gone
        assert {h.why for h in one.sweep().holders} == {""}
    finally:
        for process in (orphan, own):
            process.kill()
            process.wait()


class Trial:
    """GPUs tried again and again."""

    def __init__(self, kill: Callable[[int, int], None] = os.kill) -> None:
        self.child = gpu_child.Child(SOURCES, {"kernel_log": "", "modules": {}}, kill)
        self.usable = gpu_watch.Usable(self.child, 0.001, TIMEOUT_S)

    def until(self, wanted: dict[str, str], timeout_s: float = 20.0) -> None:
        until = time.monotonic() + timeout_s
        while {u: w[: len(wanted[u])] for u, w in self.usable.why_not.items()} != wanted:
            assert time.monotonic() < until, self.usable.why_not
            self.usable.look(time.monotonic(), UUIDS, "nvidia")
            time.sleep(0.01)


def test_a_context_is_made_on_each_gpu_in_a_process_of_its_own(standin: Standin) -> None:
    trial = Trial()
    trial.until(dict.fromkeys(UUIDS, ""))
    standin.set(1, cuda=46)
    trial.until({UUIDS[0]: "", UUIDS[1]: "cuDevicePrimaryCtxRetain: CUDA_ERROR_DEVICE_UNAVAILABLE"})
    standin.set(1, cuda=0)
    standin.set(hang="cuda")
    trial.until(dict.fromkeys(UUIDS, "making a CUDA context takes longer than"))
    standin.set(hang="nothing")
    trial.until(dict.fromkeys(UUIDS, ""))
    trial.child.kill()
    assert readers_of(os.getpid()) == []


def test_how_many_gpus_can_be_used_is_counted_once_all_were_tried(standin: Standin) -> None:
    standin.set(1, cuda=46)
    probe, trial = Probe(standin, gpu_nvml.find_module()), Trial()
    probe.watch._usable = trial.usable
    assert probe.sweep().usable is None
    until = time.monotonic() + 20
    while (shown := probe.sweep()).usable is None:
        assert time.monotonic() < until
    assert shown.usable == 1
    assert [bool(gpu.unusable) for gpu in shown.gpus] == [False, True]
    probe.close()
    trial.child.kill()


def test_a_trial_that_cannot_be_ended_is_the_last(standin: Standin) -> None:
    trial = Trial(kill=lambda pid, number: None)
    standin.set(hang="cuda")
    trial.until({UUIDS[0]: "making a CUDA context takes longer than"})
    stuck = trial.child.pid
    for _ in range(3):
        trial.usable.look(time.monotonic(), UUIDS, "nvidia")
    assert readers_of(os.getpid()) == [stuck]
    assert stuck is not None
    os.kill(stuck, signal.SIGKILL)
    trial.child._kill = os.kill
    trial.child.kill()


@pytest.mark.parametrize(
    ("kind", "vendor", "whose"),
    [
        ("0x030000", "0x10de", ["nvidia"]),  # a GeForce
        ("0x030200", "0x10de", ["nvidia"]),
        ("0x120000", "0x1002", ["amd"]),
        ("0x030000", "0x8086", []),  # built into the processor
        ("0x030000", "0x1a03", []),  # a server's own display
        ("0x040300", "0x10de", []),  # the sound of a GPU
    ],
)
def test_whose_gpus_the_pci_bus_shows(tmp_path: Path, kind: str, vendor: str, whose: list[str]) -> None:
    device = tmp_path / "0000:01:00.0"
    device.mkdir()
    (device / "class").write_text(kind + "\n")
    (device / "vendor").write_text(vendor + "\n")
    assert gpu_reader.hardware(str(tmp_path)) == whose


def readers_of(parent: int) -> list[int]:
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if int((folder / "stat").read_text().rsplit(")", 1)[1].split()[1]) == parent:
                argv = (folder / "cmdline").read_bytes().decode().split("\0")
                found += [int(folder.name)] if gpu_child.TITLE in argv else []
        except OSError:
            continue
    return found


PUBLISHED = Path(__file__).with_name("kernel_lines.txt").read_text().splitlines()


@pytest.mark.parametrize("row", [row for row in PUBLISHED if not row.startswith("#")])
def test_kernel_lines_as_published(row: str) -> None:
    bus, number, line = row.split(" ", maxsplit=2)
    found = gpu_nvml.event_in(line)
    if number == "-":
        assert found is None
    else:
        text = line.partition(f"): {number}, ")[2]
        assert found == {"bus_id": bus, "number": int(number), "text": text}
        assert text


def test_other_kernel_lines_are_no_events() -> None:
    assert gpu_nvml.event_in("usb 3-2: new high-speed USB device") is None
