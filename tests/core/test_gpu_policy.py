"""What follows from a finding by the file: nothing, a person, a quarantine, a restart without the GPU."""

from dataclasses import replace
from typing import Any

import pytest

from config.settings import Node
from grid_agent.core import messages as m
from grid_agent.core.gpu_model import Finding
from grid_agent.core.model import Cause, GpuAction, Phase, Policy, State
from grid_agent.repair_plan import without
from tests.core.situations import answered, refused
from tests.core.test_gpus import BOTH, ONE, TWO, Watched, xid

SICK = replace(ONE, ecc_uncorrectable=3)


def watched(action: GpuAction, **policy: Any) -> Watched:
    story = Watched()
    story.policy = Policy(gpu={"memory": action, "xid": action, "inventory": action}, **policy)
    return story


def planned(story: Watched) -> list[m.DrainNode]:
    return story.given(m.DrainNode)


def left_and_came_back(story: Watched, registered: int) -> None:
    """The drained raylet leaves, the ordinary repair starts the next one."""
    story.die("gpu1", life=story.life)
    (order,) = story.given(m.RestartWorker)[-1:]
    assert order.node == "gpu1"
    story.see(m.RepairEnded("gpu1", order.attempt, ok=True, detail="the raylet was started"), after=3)
    story.restart(registered=registered)
    assert story.state("gpu1") is State.ALIVE


def test_report_changes_nothing() -> None:
    story = watched(GpuAction.REPORT)
    story.sweep(SICK, TWO)
    story.pass_time(600, every=5)
    assert planned(story) == []
    assert story.incident.phase is Phase.FIRING


def test_hand_over_waits_for_a_person_and_does_nothing() -> None:
    story = watched(GpuAction.HAND_OVER)
    story.sweep(SICK, TWO)
    assert story.incident.phase is Phase.NEEDS_PERSON
    assert planned(story) == []
    story.sweep(*BOTH)
    assert story.incident.phase is Phase.RESOLVED


def test_a_quarantine_drains_and_cordons_until_a_person_says_so() -> None:
    story = watched(GpuAction.QUARANTINE)
    story.sweep(SICK, TWO)
    (drain,) = planned(story)
    assert (drain.node, drain.node_id, drain.until_at) == ("gpu1", "gpu1-a", None)
    assert story.incident.phase is Phase.NEEDS_PERSON
    story.see(m.DrainAnswered("gpu1", "gpu1-a", accepted=True), after=1)
    assert story.state("gpu1") is State.CORDONED
    story.see(refused("gpu1"), after=60)  # it was idle and has left: nothing is started
    story.pass_time(300, every=5)
    assert story.given(m.RestartWorker) == []
    story.see(m.PersonSaid(m.Verb.UNCORDON, "ann", "mended", node="gpu1"), after=5)
    story.restart()
    story.sweep(*BOTH)
    assert story.state("gpu1") is State.ALIVE
    assert all(i.phase is Phase.RESOLVED for i in story.incidents)


def test_without_drains_restarts_less_one_and_returns_when_the_contract_holds() -> None:
    story = watched(GpuAction.WITHOUT)
    story.sweep(SICK, TWO)
    (drain,) = planned(story)
    assert drain.until_at == story.now + 300
    assert story.node("gpu1").gpus.excluded == ("GPU-1",)
    left_and_came_back(story, registered=1)
    story.sweep(SICK, TWO)
    assert story.found == [Finding.DEGRADED, Finding.ECC]  # not "registered 1 of 2"
    assert story.health()["status"] == "warn"
    assert len(planned(story)) == 1
    story.sweep(*BOTH)  # reset, and well again: restarted with it once it has stayed so
    assert len(planned(story)) == 1
    story.sweep(*BOTH, after=61)
    assert len(planned(story)) == 2
    assert story.node("gpu1").gpus.excluded == ()
    left_and_came_back(story, registered=2)
    story.sweep(*BOTH)
    assert story.found == []
    assert all(i.phase is Phase.RESOLVED for i in story.incidents)


def test_a_gpu_that_is_well_for_a_moment_only_stays_out() -> None:
    story = watched(GpuAction.WITHOUT)
    story.sweep(SICK, TWO)
    left_and_came_back(story, registered=1)
    for _ in range(4):
        story.sweep(*BOTH, after=30)
        story.sweep(SICK, TWO, after=30)
    assert len(planned(story)) == 1


def test_a_raylet_that_is_busy_at_the_end_of_its_drain_is_told_to_leave() -> None:
    story = watched(GpuAction.WITHOUT, gpu_drain_s=100.0)
    story.sweep(SICK, TWO)
    story.see(m.DrainAnswered("gpu1", "gpu1-a", accepted=True))
    story.pass_time(95, answered("gpu1"), every=5)
    assert story.given(m.TellRay) == []
    story.pass_time(30, answered("gpu1"), every=5)
    (told,) = story.given(m.TellRay)
    assert (told.node, told.node_id, told.cause) == ("gpu1", "gpu1-a", Cause.GPU_DIFFERS)


def test_a_drain_that_ray_refuses_is_asked_for_again() -> None:
    story = watched(GpuAction.WITHOUT)
    story.sweep(SICK, TWO)
    story.see(m.DrainAnswered("gpu1", "gpu1-a", accepted=False, detail="no"), after=1)
    story.sweep(SICK, TWO)
    assert len(planned(story)) == 1  # not at every step
    story.sweep(SICK, TWO, after=20)
    assert len(planned(story)) == 2
    assert any("Ray did not drain gpu1: no" in s.text for s in story.incident.steps)


@pytest.mark.parametrize("action", [GpuAction.WITHOUT, GpuAction.QUARANTINE])
@pytest.mark.parametrize("why", ["observe", "paused", "alone", "silent"])
def test_no_guard_is_passed_over(action: GpuAction, why: str) -> None:
    story = watched(action, mode="observe" if why == "observe" else "heal")
    if why == "paused":
        story.see(m.PersonSaid(m.Verb.PAUSE, "ann", "maintenance", for_s=3600.0))
    if why == "alone":
        story.see(m.PeopleStopped(frozenset({"gpu2", "gpu3"})))
    if why == "silent":
        story.see(m.GcsWentSilent("no answer"))
    story.sweep(SICK, TWO)
    story.pass_time(30, every=5)
    assert planned(story) == []
    assert story.state("gpu1") is State.ALIVE
    waits = [s.text for s in story.incident.steps if "has to wait" in s.text]
    assert len(waits) == 1


def test_one_node_at_a_time() -> None:
    story = watched(GpuAction.WITHOUT)
    story.change("gpu2", gpus=story.node("gpu1").gpus)
    story.change("gpu2", gpus=replace(story.node("gpu2").gpus, drained_id="gpu2-a", drained_at=story.now))
    story.sweep(SICK, TWO)
    assert planned(story) == []
    assert any("one at a time" in s.text for s in story.incident.steps)


def test_the_head_is_never_drained() -> None:
    story = watched(GpuAction.QUARANTINE)
    story.change("gpu1", role="head")
    story.sweep(SICK, TWO)
    assert planned(story) == []


def test_what_names_no_gpu_is_only_reported() -> None:
    story = watched(GpuAction.WITHOUT)
    story.sweep(*BOTH, events=(xid(79, bus="0000:ff:00"),))
    assert story.found == [Finding.EVENT]
    assert planned(story) == []


@pytest.mark.parametrize(("num_gpus", "left"), [(2, 1), (None, 1), (1, 1)])
def test_the_start_names_what_is_left(num_gpus: int | None, left: int) -> None:
    node = Node(name="w", host="127.0.0.1", num_gpus=num_gpus, env={"A": "b"})
    story = watched(GpuAction.WITHOUT)
    known = story.node("gpu1").gpus
    assert without(node, known) is node
    less = without(node, replace(known, excluded=("GPU-1",)))
    assert (less.num_gpus, less.env) == (left, {"A": "b", "CUDA_VISIBLE_DEVICES": "GPU-2"})
    none = without(node, replace(known, excluded=("GPU-1", "GPU-2")))
    assert (none.num_gpus, none.env["CUDA_VISIBLE_DEVICES"]) == (0, "")
