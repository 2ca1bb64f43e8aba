"""From sweeps to findings to the incident: what a node should have, has, and can still use."""

from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grid_agent.core import gpu_report, gpus, report, xids
from grid_agent.core import messages as m
from grid_agent.core.gpu_events import BURST_S, KEEP_MINOR, bursts
from grid_agent.core.gpu_model import (
    Finding,
    Gpu,
    GpuEvent,
    Holder,
    Library,
    Reading,
    Sweep,
    sweep_of,
)
from grid_agent.core.incident_model import Incident, Phase
from grid_agent.core.resume import resume
from grid_agent.core.seen import ProbeReport
from grid_agent.core.terms import Cause, State
from grid_agent.core.xids import Help
from tests.core.situations import Story, answered, row, task_ran

ONE = Gpu(0, "GPU-1", "NVIDIA-Test", "0000:81:00", 81920, temperature_c=40, slowdown_c=90)
TWO = Gpu(1, "GPU-2", "NVIDIA-Test", "0000:c1:00", 81920, temperature_c=40, slowdown_c=90)
BOTH = (ONE, TWO)


class Watched(Story):
    """gpu1 should have two GPUs, Ray has registered two, and both were seen."""

    def __init__(self, expected: int | None = 2, registered: int = 2, gpus: tuple[Gpu, ...] = BOTH) -> None:
        super().__init__()
        self.number = 0
        self.life = "a"
        self.change("gpu1", expected_gpus=expected)
        self.see(self.listing(row("gpu1", gpus=registered)))
        if gpus:
            self.sweep(*gpus)

    def sweep(self, *gpus: Gpu, after: float = 15.0, **fields: Any) -> None:
        """One sweep shows these GPUs."""
        self.number += 1
        fields = {"library": Library.OK, "boot_id": "boot1", **fields}
        shown = Sweep(self.number, Reading.OK, gpus=gpus, **fields)
        self.probe(shown, after)

    def probe(self, shown: Sweep, after: float = 15.0) -> None:
        about = ProbeReport(0.0, shown.seen, shown)
        self.see(m.NodeProbed("gpu1", f"gpu1-{self.life}", about), after=after)

    def restart(self, registered: int = 2) -> None:
        """A new incarnation of gpu1."""
        self.life = chr(ord(self.life) + 1)
        self.number = 0
        self.see(self.listing(row("gpu1", self.life, gpus=registered)), after=5)
        self.see(answered("gpu1", self.life), task_ran("gpu1", self.life))

    @property
    def found(self) -> list[Finding]:
        return [f.what for f in self.node("gpu1").gpus.found]

    @property
    def texts(self) -> str:
        return "\n".join(f.text for f in self.node("gpu1").gpus.found)

    @property
    def incident(self) -> Incident:
        return self.incidents[-1]

    def health(self) -> dict[str, Any]:
        return report.health(self.belief, self.now, self.policy)


def xid(number: int, at: float = 1010.0, bus: str = "0000:81:00", text: str = "") -> GpuEvent:
    return GpuEvent(bus, number, at, text, "boot1", (at,))


def test_a_contract_that_holds_is_silent() -> None:
    story = Watched()
    assert story.found == []
    assert story.incidents == []
    assert story.health()["status"] == "pass"
    assert [g.uuid for g in story.node("gpu1").gpus.accepted] == ["GPU-1", "GPU-2"]


def test_a_gpu_that_falls_off_the_bus_is_one_incident_until_it_is_back() -> None:
    story = Watched()
    lost = replace(ONE, error="GPU is lost")
    story.sweep(lost, TWO)
    assert story.found == [Finding.MISSING, Finding.NOT_SEEN]
    assert "GPU 0 (NVIDIA-Test, 0000:81:00, GPU-1) is missing (GPU is lost)" in story.texts
    assert "Ray hands out 2 GPUs, 1 are seen: registered but not seen" in story.texts
    body = story.health()
    assert body["status"] == "warn"
    node = next(n for n in body["nodes"] if n["name"] == "gpu1")
    assert (node["gpus"]["expected"], node["gpus"]["registered"], node["gpus"]["seen"]) == (2, 2, 1)
    assert node["state"] == "ALIVE"
    assert node["cause"] is None
    assert node["action"].startswith("reported: GPU 0")
    steps = len(story.incident.steps)
    for _ in range(3):
        story.sweep(lost, TWO)
    assert (story.incident.cause, story.incident.phase) == (Cause.GPU_DIFFERS, Phase.FIRING)
    assert len(story.incident.steps) == steps  # said once
    story.sweep(*BOTH)
    assert story.incident.phase is Phase.RESOLVED
    assert story.incident.steps[-1].text == "the GPUs of gpu1 are as they should be: 2 seen"
    assert story.health()["status"] == "pass"


def test_nothing_is_restarted_or_killed_for_a_gpu_by_default() -> None:
    story = Watched()
    story.sweep(TWO)
    story.sweep(replace(ONE, remap_failed=True), events=(xid(79),))
    assert all(isinstance(order, m.Notify) for order in story.orders)


def test_a_uuid_that_changes_under_a_raylet_is_replaced_until_a_raylet_starts_with_it() -> None:
    story = Watched()
    other = replace(ONE, uuid="GPU-9")
    story.sweep(other, TWO)
    assert story.found == [Finding.REPLACED]
    assert "is replaced: now NVIDIA-Test, GPU-9" in story.texts
    story.restart()
    story.sweep(other, TWO)
    assert story.found == []
    assert all(i.phase is Phase.RESOLVED for i in story.incidents)


def test_a_gpu_replaced_while_the_host_was_off_is_told_once() -> None:
    story = Watched()
    story.restart()
    story.sweep(replace(ONE, uuid="GPU-9"), TWO)
    assert story.found == []
    assert [i.phase for i in story.incidents] == [Phase.RESOLVED]
    assert "is replaced" in story.incident.steps[0].text
    story.sweep(replace(ONE, uuid="GPU-9"), TWO)
    assert len(story.incidents) == 1


def test_a_gpu_missing_after_a_reboot_is_noticed_even_where_the_file_expects_nothing() -> None:
    story = Watched(expected=None)
    story.restart(registered=1)
    story.sweep(replace(TWO, index=0))
    assert story.found == [Finding.MISSING]
    story.see(m.PeopleStopped(frozenset({"gpu1"})), after=5)
    story.see(m.PeopleStopped(frozenset()), after=5)  # a person had it in hand: this is what it has now
    story.restart(registered=1)
    story.sweep(replace(TWO, index=0))
    assert story.found == []
    assert story.incident.phase is Phase.RESOLVED


def test_a_gpu_that_appears() -> None:
    story = Watched(expected=None, registered=1, gpus=(ONE,))
    story.sweep(*BOTH)
    assert story.found == [Finding.APPEARED]
    assert "has appeared" in story.texts


@pytest.mark.parametrize(
    ("expected", "registered", "seen", "finding"),
    [
        (2, 2, 1, [Finding.MISSING, Finding.NOT_SEEN]),
        (2, 1, 2, [Finding.NOT_REGISTERED]),
        (None, 2, 1, [Finding.NOT_SEEN]),
        (0, 0, 2, []),
        (1, 1, 2, []),  # more than asked for is no fault
        (None, 2, 2, []),
    ],
)
def test_expected_registered_and_seen(
    expected: int | None, registered: int, seen: int, finding: list[Finding]
) -> None:
    story = Watched(expected, registered, BOTH[:seen])
    assert story.found == finding
    assert gpu_report.differ(story.node("gpu1")) is bool(finding)


@pytest.mark.parametrize(
    ("library", "finding"),
    [
        (Library.NOT_LOADED, Finding.NOT_LOADED),
        (Library.MISMATCH, Finding.MISMATCH),
        (Library.FAILED, Finding.FAILED),
        (Library.ABSENT, Finding.NOT_SEEN),
    ],
)
def test_the_driver_is_named_where_gpus_are_wanted_and_only_there(library: Library, finding: Finding) -> None:
    story = Watched()
    story.sweep(library=library, detail="words")
    assert finding in story.found
    bare = Watched(expected=None, registered=0, gpus=())
    bare.sweep(library=library)
    assert bare.found == []
    assert bare.health()["status"] == "pass"


def test_a_driver_that_is_not_loaded_beside_a_gpu_of_its_vendor_is_said_without_a_number_in_the_file() -> (
    None
):
    story = Watched(expected=None, registered=0, gpus=())
    story.sweep(library=Library.NOT_LOADED, hardware=("nvidia",))
    assert story.found == [Finding.NOT_LOADED]


def test_gpus_of_a_vendor_that_cannot_be_read_are_no_difference() -> None:
    story = Watched(expected=8, registered=8, gpus=())
    story.sweep(library=Library.ABSENT, hardware=("amd",))
    assert story.found == []
    assert story.health()["status"] == "pass"


def test_a_hang_disproves_nothing() -> None:
    story = Watched()
    story.sweep(replace(ONE, error="GPU is lost"), TWO)
    story.probe(Sweep(9, Reading.HANGS, "no answer in 10 s"))
    assert story.found == [Finding.HANGS, Finding.MISSING, Finding.NOT_SEEN]
    node = next(n for n in story.health()["nodes"] if n["name"] == "gpu1")
    assert node["gpus"]["seen"] is None
    story.probe(Sweep(10, Reading.STUCK, "state D"))
    assert story.found[0] is Finding.STUCK
    assert story.node("gpu1").gpus.found[0].help == Help.REBOOT
    story.sweep(*BOTH)
    assert story.found == []


@pytest.mark.parametrize(
    ("change", "finding"),
    [
        ({"ecc_uncorrectable": 3}, Finding.ECC),
        ({"remap_pending": True}, Finding.REMAP_PENDING),
        ({"remap_failed": True}, Finding.REMAP_FAILED),
        ({"temperature_c": 91}, Finding.HOT),
        ({"unusable": "cuInit: CUDA_ERROR_NO_DEVICE"}, Finding.UNUSABLE),
    ],
)
def test_what_a_gpu_complains_of(change: dict[str, Any], finding: Finding) -> None:
    story = Watched()
    story.sweep(replace(ONE, **change), TWO)
    assert story.found == [finding]
    assert (story.incident.cause, story.incident.phase) == (Cause.GPU_UNWELL, Phase.FIRING)
    story.sweep(*BOTH)
    assert story.incident.phase is Phase.RESOLVED


def test_throttled_three_times_in_a_row() -> None:
    story = Watched()
    hot = replace(ONE, throttled=("power brake",))
    story.sweep(hot, TWO)
    story.sweep(hot, TWO)
    shown = story.node("gpu1").probe
    assert shown is not None
    assert shown.gpus is not None
    story.probe(shown.gpus, after=5)  # the same sweep reported again counts once
    assert story.found == []
    story.sweep(hot, TWO)
    assert story.found == [Finding.THROTTLED]
    story.sweep(*BOTH)
    assert story.found == []


def test_a_grave_xid_stands_until_the_host_was_booted() -> None:
    story = Watched()
    story.sweep(*BOTH, events=(xid(79),))
    (found,) = story.node("gpu1").gpus.found
    assert (found.what, found.help, found.uuid) == (Finding.EVENT, Help.REBOOT, "GPU-1")
    assert "XID 79 on GPU 0" in found.text
    story.sweep(*BOTH)
    assert story.found == [Finding.EVENT]
    story.restart()
    story.sweep(*BOTH, events=(xid(79),))  # the kernel log still has it
    assert story.found == [Finding.EVENT]
    assert len(story.node("gpu1").gpus.events) == 1
    story.restart()
    story.sweep(*BOTH, boot_id="boot2")
    assert story.found == []


def test_what_a_person_dealt_with_is_not_told_again() -> None:
    story = Watched()
    story.sweep(*BOTH, events=(xid(48),))
    story.see(m.PeopleStopped(frozenset({"gpu1"})), after=5)
    assert story.state("gpu1") is State.CORDONED
    story.see(m.PeopleStopped(frozenset()), after=5)
    story.restart()
    story.sweep(*BOTH, events=(xid(48),))
    assert story.found == []


def test_a_minor_xid_counts_and_repetition_escalates() -> None:
    story = Watched()
    for _ in range(4):
        story.sweep(*BOTH, events=(xid(31, story.now),), after=70)
        assert story.found == []
    story.sweep(*BOTH, events=(xid(31, story.now),), after=70)
    (found,) = story.node("gpu1").gpus.found
    assert found.help == Help.HARDWARE
    assert "5 times within a day" in found.text
    story.sweep(*BOTH, after=90_000)
    assert story.found == []


def test_what_comes_within_a_minute_counts_once() -> None:
    story = Watched()
    for after_s in (0.0, 0.5, 14.0, 59.0):  # lines of the kernel log, and NVML in a later sweep
        story.sweep(*BOTH, events=(xid(109, 1000.0 + after_s),))
    (found,) = story.node("gpu1").gpus.found
    assert (found.help, "times" in found.text) == (Help.RESET, False)
    story.sweep(*BOTH, events=(xid(13, 1000.0), xid(13, 1010.0), xid(13, 1020.0)))
    assert len(story.found) == 1


def test_a_grave_xid_is_not_driven_out_by_a_flood() -> None:
    story = Watched()
    flood = [xid(1000 + n, 1020.0 + n) for n in range(80)]
    story.sweep(*BOTH, events=(xid(79), *[xid(45, 1011.0 + n) for n in range(40)], *flood))
    assert story.found == [Finding.EVENT]
    assert len(story.node("gpu1").gpus.events) == 1 + KEEP_MINOR
    assert story.node("gpu1").gpus.events[-1].number == 1079  # the newest of the others


def test_events_that_count_no_more_are_forgotten() -> None:
    story = Watched()
    story.sweep(*BOTH, events=(xid(79), xid(31)))
    story.sweep(*BOTH, after=90_000)
    assert [e.number for e in story.node("gpu1").gpus.events] == [79]  # it stands until the host is booted
    story.sweep(*BOTH, boot_id="boot2")
    assert story.node("gpu1").gpus.events == ()


@given(
    st.lists(st.floats(1000, 3000), min_size=1, max_size=60),
    st.integers(0, 60),
)
def test_bursts_are_the_same_however_they_are_told(times: list[float], cut: int) -> None:
    """Told again, all of them or the later ones only, nothing is counted twice."""
    begun = bursts(times)
    assert bursts((*begun, *sorted(times)[cut:])) == begun
    assert all(b - a >= BURST_S for a, b in pairwise(begun))
    assert begun == bursts(reversed(times))


def test_a_grave_xid_that_repeats_asks_for_hardware() -> None:
    story = Watched()
    story.sweep(*BOTH, events=(xid(95),))
    assert story.node("gpu1").gpus.found[0].help == Help.RESET
    story.sweep(*BOTH, events=(xid(95), xid(95, 1100.0)))
    assert story.node("gpu1").gpus.found[0].help == Help.HARDWARE
    assert any("hardware checked" in s.text for s in story.incident.steps)


@pytest.mark.parametrize(
    ("text", "helps"),
    [
        ("GPU recovery action changed from 0x0 (None) to 0x1 (GPU Reset Required)", Help.RESET),
        ("GPU recovery action changed from 0x0 (None) to 0x2 (Node Reboot Required)", Help.REBOOT),
        ("GPU recovery action changed from 0x0 (None) to 0x1 (PF FLR)", Help.RESET),
        ("GPU recovery action changed from 0x0 (None) to 0x4 (Drain and Reset)", Help.RESET),
        ("GPU recovery action changed from 0x2 (Node Reboot Required) to 0x0 (None)", Help.NOTHING),
    ],
)
def test_xid_154_says_itself_what_is_wanted(text: str, helps: Help) -> None:
    row_ = xids.of(154, text)
    assert (row_.help, row_.minor) == (helps, helps is Help.NOTHING)


def test_xid_154_is_over_when_the_driver_wants_nothing_more() -> None:
    story = Watched()
    wants = "GPU recovery action changed from 0x0 (None) to 0x1 (GPU Reset Required)"
    nothing = "GPU recovery action changed from 0x1 (GPU Reset Required) to 0x0 (None)"
    story.sweep(*BOTH, events=(xid(154, 1010.0, text=wants),))
    assert story.node("gpu1").gpus.found[0].help == Help.RESET
    story.sweep(*BOTH, events=(xid(154, 1020.0),))  # as NVML tells it, which knows no more
    assert story.node("gpu1").gpus.found[0].help == Help.RESET
    story.sweep(*BOTH, events=(xid(154, 1200.0, text=nothing),))
    assert story.found == []


def test_an_nvlink_error_is_grave_where_it_says_fatal() -> None:
    fatal = "NETIR_LINK_EVT Fatal XC0 i0 Link 00 (0x025001c6 0x00000000)"
    assert (xids.of(149, fatal).help, xids.of(149, fatal).minor) == (Help.RESET, False)
    assert xids.of(145, "RLW_RXPIPE Nonfatal XC0 i0 Link 13 (0x0409a0c2 0x00000008)").minor
    assert xids.of(145).minor  # told by NVML alone
    story = Watched()
    story.sweep(*BOTH, events=(xid(149, 1010.0, text=fatal),))
    story.sweep(*BOTH, events=(xid(149, 1200.0, text="NETIR_LINK_EVT Nonfatal XC0 i0 Link 01"),))
    assert story.found == [Finding.EVENT]


def test_what_only_goes_with_other_errors_is_never_a_finding() -> None:
    story = Watched()
    flood = (xid(n, 1010.0 + 70 * i) for n in (45, 63, 137, 154, 171, 172) for i in range(30))
    for event in flood:
        story.sweep(*BOTH, events=(event,), after=1)
    assert story.found == []


def test_the_catalogue_is_consistent() -> None:
    assert len(xids.KNOWN) == len(xids.TABLE)
    order = list(Help)
    for row_ in xids.TABLE:
        assert row_.source.startswith("https://docs.nvidia.com/")
        assert order.index(row_.then) >= order.index(row_.help), row_
        assert row_.repeats is None or row_.repeats > 1
        assert row_.minor or row_.help is not Help.NOTHING
    assert xids.of(999).minor


def test_the_page_on_gpus_has_the_catalogue_as_it_is() -> None:
    page = Path(__file__).parents[2] / "docs" / "gpu.md"
    assert xids.markdown() in page.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("change", "helps"),
    [
        ({"ecc_uncorrectable": 3}, [Help.RESET, Help.HARDWARE, Help.HARDWARE]),
        ({"unusable": "cuInit: CUDA_ERROR_NO_DEVICE"}, [Help.RESET, Help.REBOOT, Help.HARDWARE]),
    ],
)
def test_what_comes_back_within_a_day_asks_for_more(change: dict[str, Any], helps: list[Help]) -> None:
    story = Watched()
    for times, help_ in enumerate(helps, start=1):
        for _ in range(3):  # while it stands it is one
            story.sweep(replace(ONE, **change), TWO, after=300)
            (found,) = story.node("gpu1").gpus.found
            assert found.help == help_
            assert ("within a day" in found.text) is (times > 1)
        story.sweep(*BOTH, after=300)
    story.sweep(replace(ONE, **change), TWO, after=300)
    for _ in range(3):
        story.sweep(replace(ONE, **change), TWO, after=40_000)
        assert story.node("gpu1").gpus.found[0].help == helps[-1]  # as long as it stands
    story.sweep(*BOTH, after=90_000)
    story.sweep(replace(ONE, **change), TWO)
    assert story.node("gpu1").gpus.found[0].help == helps[0]


def test_a_driver_that_hangs_again_and_again_asks_for_more() -> None:
    story = Watched()
    helps = []
    for _ in range(3):
        for after in (700, 15, 15):  # what comes and goes within minutes is one trouble
            story.probe(Sweep(9, Reading.HANGS, "no answer in 10 s"), after=after)
            helps.append(story.node("gpu1").gpus.found[0].help)
            story.sweep(*BOTH)
    assert helps == [*[""] * 3, *[Help.REBOOT] * 3, *[Help.HARDWARE] * 3]


def test_an_orphan_is_told_after_it_was_seen_twice() -> None:
    story = Watched()
    held = Holder(77, "GPU-1", 2048, "python", "ann", 3600.0, 5, "gpu1-z", "its raylet is gone")
    story.sweep(*BOTH, holders=(held, Holder(78, "GPU-2", 100, "own", "ann")))
    assert story.found == []
    story.sweep(*BOTH, holders=(held,))
    assert story.found == [Finding.ORPHAN]
    assert story.texts == ("2048 MiB of GPU-1 held by python, pid 77, of ann, 3600 s old: its raylet is gone")
    story.sweep(*BOTH)
    assert story.found == []


def test_the_incident_of_a_gpu_outlives_a_restart_of_its_node() -> None:
    story = Watched()
    story.sweep(replace(ONE, remap_failed=True), TWO)
    story.die("gpu1")
    story.come_back("gpu1")
    gpu, death = story.incidents
    assert (gpu.phase, death.phase) == (Phase.FIRING, Phase.RESOLVED)


def test_a_restarted_agent_goes_on_with_the_incident_of_a_gpu() -> None:
    story = Watched()
    story.sweep(replace(ONE, error="GPU is lost"), TWO)
    story.belief = resume(story.belief, story.now)
    story.sweep(replace(ONE, error="GPU is lost"), TWO)
    assert [i.phase for i in story.incidents] == [Phase.FIRING]
    story.sweep(*BOTH)
    assert [i.phase for i in story.incidents] == [Phase.RESOLVED]


def test_why_tells_each_gpu() -> None:
    story = Watched()
    story.sweep(
        replace(ONE, error="GPU is lost"), TWO, driver="550.54.15", took_ms=3.2, kernel_log="no right"
    )
    lines = report.why(story.belief, story.node("gpu1"), story.now, story.policy)["gpus_seen"]
    assert any("GPU-1), 81920 MiB: GPU is lost" in text for text in lines)
    assert any("40 °C" in text for text in lines)
    assert "driver 550.54.15, read in 3.2 ms" in lines
    assert any("kernel log cannot be read (no right)" in text for text in lines)


def test_usable_is_told_where_it_was_tried() -> None:
    story = Watched()
    told = gpu_report.counts(story.node("gpu1"))
    assert told == {"expected": 2, "registered": 2, "seen": 2}
    story.sweep(ONE, replace(TWO, unusable="cuInit: CUDA_ERROR_NO_DEVICE"), usable=1)
    assert gpu_report.counts(story.node("gpu1"))["usable"] == 1


def test_switched_off_means_unknown_and_no_warning() -> None:
    story = Watched(gpus=())
    story.probe(Sweep(0, Reading.OFF))
    assert story.found == []
    assert story.health()["status"] == "pass"
    assert gpus.counts_differ(2, 2, None) is False


def test_what_is_no_longer_looked_for_is_no_longer_told() -> None:
    story = Watched()
    story.sweep(replace(ONE, error="GPU is lost"), TWO)
    story.restart()
    story.probe(Sweep(0, Reading.OFF))
    assert story.found == []
    assert story.incident.phase is Phase.RESOLVED
    assert story.incident.steps[-1].text == "the GPUs of gpu1 are not read any more"
    assert story.health()["status"] == "pass"


def test_a_report_of_another_shape_is_refused() -> None:
    with pytest.raises((KeyError, TypeError, ValueError)):
        sweep_of({"state": "ok", "gpus": [{"colour": "red"}]})
    with pytest.raises(KeyError):
        sweep_of({})
