"""nvidia-smi, where NVML cannot be loaded: recorded outputs, and a program that plays them."""

import inspect
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from grid_agent.core.gpu_model import Library, Reading, sweep_of
from grid_agent.edges import gpu_child, gpu_nvml, gpu_reader, gpu_smi, gpu_watch

RECORDED = Path(__file__).with_name("smi")
SOURCES = [(m.__name__.rsplit(".", 1)[-1], inspect.getsource(m)) for m in (gpu_nvml, gpu_smi, gpu_reader)]


@pytest.mark.parametrize(
    ("name", "uuid", "bus", "memory_mb", "temperatures", "ecc"),
    [
        ("a100", "GPU-513536b6-7d19-9063-b049-1e69664bb298", "0000:01:00", 81920, (27, 89), 0),
        ("rtx2080", "GPU-12345678-aaaa-bbbb-cccc-0123456789ab", "0000:01:00", 8192, (15, 97), None),
        ("a10g", "GPU-9a9a6c50-2a47-2f51-a902-b82c3b127e94", "0000:00:1e", 23028, (17, 95), 0),
        ("t4", "GPU-d37e67a5-91dd-3774-a5cb-99096249601a", "0000:00:1e", 15360, (40, 93), 0),
    ],
)
def test_a_recorded_output(
    name: str, uuid: str, bus: str, memory_mb: int, temperatures: tuple[int, int], ecc: int | None
) -> None:
    answer = gpu_smi.parsed((RECORDED / f"{name}.xml").read_text())
    (gpu,) = answer["gpus"]
    assert (gpu["uuid"], gpu["bus_id"], gpu["memory_mb"], gpu["error"]) == (uuid, bus, memory_mb, "")
    assert (gpu["temperature_c"], gpu["slowdown_c"]) == temperatures
    assert gpu["ecc_uncorrectable"] == ecc
    assert (gpu["throttled"], gpu["remap_pending"], gpu["remap_failed"]) == ([], False, False)
    held = [{"pid": 5762, "uuid": uuid, "memory_mb": 1005}] if name == "t4" else []
    assert answer["holders"] == held


@pytest.mark.parametrize(
    ("name", "well", "sick", "field", "value"),
    [
        (
            "a10g",
            "hw_thermal_slowdown>Not ",
            "hw_thermal_slowdown>",
            "throttled",
            ["hardware thermal slowdown"],
        ),
        ("a100", "brake_slowdown>Not ", "brake_slowdown>", "throttled", ["power brake"]),
        ("a10g", "pending>No", "pending>Yes", "remap_pending", True),
        ("a10g", "failure>No", "failure>Yes", "remap_failed", True),
        ("t4", "pending_retirement>No", "pending_retirement>Yes", "remap_pending", True),
        ("t4", "<dram_uncorrectable>0", "<dram_uncorrectable>3", "ecc_uncorrectable", 3),
        (
            "a100",
            "<uuid>GPU-513536b6-7d19-9063-b049-1e69664bb298",
            "<uuid>GPU is lost",
            "error",
            "GPU is lost",
        ),
    ],
)
def test_what_it_would_say_of_a_sick_gpu(name: str, well: str, sick: str, field: str, value: object) -> None:
    text = (RECORDED / f"{name}.xml").read_text()
    assert well in text
    (gpu,) = gpu_smi.parsed(text.replace(well, sick))["gpus"]
    assert gpu[field] == value


class Played:
    """A reader on a host without NVML, whose nvidia-smi is this script."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self._program = folder / "nvidia-smi"
        monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
        monkeypatch.setenv("LD_LIBRARY_PATH", "/nowhere")
        monkeypatch.setenv("TMPDIR", str(folder))
        self.play("exit 9")
        self.child = gpu_child.Child(SOURCES, {"kernel_log": "", "modules": {"nvidia": None}})
        self.watch = gpu_watch.Watch(self.child, 0.001, 1.5)

    def play(self, script: str) -> None:
        self._program.write_text(f"#!/bin/sh\n{script}\n")
        self._program.chmod(0o755)

    def until(self, state: Reading, library: Library) -> str:
        until = time.monotonic() + 20
        while True:
            shown = sweep_of(self.watch.look(time.monotonic(), 0.2))
            if (shown.state, shown.library) == (state, library):
                return shown.detail
            assert time.monotonic() < until, shown


@pytest.fixture
def played(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Played]:
    made = Played(tmp_path, monkeypatch)
    yield made
    made.child.kill()


def test_it_is_asked_where_there_is_no_nvml(played: Played) -> None:
    assert "nvidia-smi ended with 9" in played.until(Reading.OK, Library.NOT_LOADED)
    played.play("echo Failed to initialize NVML: Driver/library version mismatch; exit 18")
    assert "version mismatch" in played.until(Reading.OK, Library.MISMATCH)
    played.play(f"cat {RECORDED / 't4.xml'}")
    played.until(Reading.OK, Library.OK)
    played.play("echo '<nvidia_smi_log>'")
    assert "nvidia-smi: no element" in played.until(Reading.OK, Library.FAILED)


def test_one_that_hangs_is_ended_with_its_reader(played: Played, tmp_path: Path) -> None:
    played.play("exec sleep 1234.5")
    assert "the reader was ended" in played.until(Reading.HANGS, Library.ABSENT)
    played.play("exit 12")
    played.until(Reading.OK, Library.ABSENT)
    assert gpu_child._orphan() is None
    assert not list(tmp_path.glob("gpurd-*"))
