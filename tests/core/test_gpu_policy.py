"""What follows from a finding by the file: nothing, a person, a quarantine, a restart without the GPU."""

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from config.settings import Node
from grid_agent.core import codec, people, report
from grid_agent.core import messages as m
from grid_agent.core.gpu_model import Finding, Gpu, GpuBelief, Library, Reading, Sweep
from grid_agent.core.incident_model import Phase
from grid_agent.core.policy import Policy
from grid_agent.core.resume import resume
from grid_agent.core.seen import ProbeReport
from grid_agent.core.terms import Cause, GpuAction, State
from grid_agent.repair_plan import without
from tests.core.situations import Story, answered, refused, row, task_missed, task_ran, timed_out
from tests.core.test_gpus import BOTH, ONE, TWO, Watched, xid

SICK = replace(ONE, ecc_uncorrectable=3)


def watched(action: GpuAction, **policy: Any) -> Watched:
    story = Watched()
    story.policy = Policy(gpu={"memory": action, "xid": action, "inventory": action}, **policy)
    return story


def planned(story: Story) -> list[m.DrainNode]:
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


def test_a_sick_node_that_has_not_left_its_quarantine_stays_there() -> None:
    story = watched(GpuAction.QUARANTINE)
    story.sweep(SICK, TWO)
    back = m.PersonSaid(m.Verb.UNCORDON, "ann", "mended", node="gpu1")
    no = people.objection(story.belief, back)
    assert no is not None
    assert "still runs, and GPU 0 (NVIDIA-Test, 0000:81:00, GPU-1): 3 uncorrectable" in no
    story.see(back, after=5)
    assert story.state("gpu1") is State.CORDONED
    story.sweep(*BOTH)
    assert people.objection(story.belief, back) is None


def test_a_person_s_own_cordon_of_a_sick_node_is_theirs_to_end() -> None:
    story = watched(GpuAction.REPORT)
    story.sweep(SICK, TWO)
    story.see(m.PersonSaid(m.Verb.CORDON, "ann", "looking", node="gpu1"), after=5)
    back = m.PersonSaid(m.Verb.UNCORDON, "ann", "looked", node="gpu1")
    assert people.objection(story.belief, back) is None


@pytest.mark.parametrize(
    ("key", "sick"),
    [
        ("memory", (replace(ONE, remap_pending=True), TWO)),
        ("inventory", (ONE,)),
    ],
)
def test_what_waits_for_a_reset_and_what_is_not_seen_have_a_policy(key: str, sick: tuple[Gpu, ...]) -> None:
    story = Watched(expected=None)
    story.policy = Policy(gpu={key: GpuAction.QUARANTINE})
    story.change("gpu1", gpus=GpuBelief())  # its inventory is not known: nothing is missing from it
    story.sweep(*sick)
    assert story.found == [Finding.REMAP_PENDING if key == "memory" else Finding.NOT_SEEN]
    assert story.state("gpu1") is State.ALIVE
    story.pass_time(5, every=5)
    assert story.state("gpu1") is State.CORDONED


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


def test_without_is_degraded_and_returns_where_the_file_has_no_number() -> None:
    story = watched(GpuAction.WITHOUT)
    story.change("gpu1", expected_gpus=None)
    story.sweep(SICK, TWO)
    left_and_came_back(story, registered=1)
    story.sweep(SICK, TWO)
    assert story.found == [Finding.DEGRADED, Finding.ECC]
    story.sweep(*BOTH)
    assert story.found == [Finding.DEGRADED]
    story.sweep(*BOTH, after=61)
    left_and_came_back(story, registered=2)
    story.sweep(*BOTH)
    assert story.found == []


def test_a_node_whose_gpus_are_not_read_any_more_stays_without_what_it_was_without() -> None:
    story = watched(GpuAction.WITHOUT)
    story.sweep(SICK, TWO)
    left_and_came_back(story, registered=1)
    story.sweep(SICK, TWO)
    story.probe(Sweep(0, Reading.OFF))
    story.pass_time(300, every=5)
    assert story.found == [Finding.DEGRADED]
    assert len(planned(story)) == 1


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


NODES = ("gpu1", "gpu2", "gpu3")
SEEN = {
    "well": BOTH,
    "lost": (replace(ONE, error="GPU is lost"), TWO),
    "gone": (TWO,),
    "replaced": (replace(ONE, uuid="GPU-9"), TWO),
    "ecc": (SICK, TWO),
    "hot": (ONE, replace(TWO, temperature_c=99)),
}
HAPPENS = st.one_of(
    st.tuples(st.sampled_from(NODES), st.sampled_from([*SEEN, "hang", "mismatch", "xid"])),
    st.tuples(st.sampled_from(NODES), st.sampled_from(["die", "refuse", "stop", "go on", "uncordon"])),
    st.tuples(st.just("all"), st.sampled_from(["pause", "resume", "a minute"])),
)


class Anything(Story):
    """Three nodes of two GPUs, to which things happen by name."""

    def __init__(self, **policy: Any) -> None:
        super().__init__()
        self.policy = Policy(**policy)
        self.life = dict.fromkeys(NODES, "a")
        self.number = 0
        self.gone: set[str] = set()
        for name in NODES:
            self.change(name, expected_gpus=2)
            self.see(self.listing(row(name, gpus=2)))

    def happen(self, name: str, what: str) -> None:
        if name != "all" and what in (*SEEN, "hang", "mismatch", "xid"):
            self.shown(name, what)
        elif what == "die" and self.state(name) is State.ALIVE:
            self.reborn(name)
        else:
            self.said(name, what)

    def shown(self, name: str, what: str) -> None:
        self.number += 1
        fields: dict[str, Any] = {"library": Library.OK, "boot_id": "b", "gpus": SEEN.get(what, BOTH)}
        fields |= {"library": Library.MISMATCH, "gpus": ()} if what == "mismatch" else {}
        fields |= {"events": (xid(79, 1000.0 + self.number),)} if what == "xid" else {}
        sweep = Sweep(self.number, Reading.HANGS if what == "hang" else Reading.OK, "words", **fields)
        self.see(
            m.NodeProbed(name, f"{name}-{self.life[name]}", ProbeReport(0.0, sweep.seen, sweep)), after=15
        )

    def reborn(self, name: str) -> None:
        self.die(name, life=self.life[name])
        self.life[name] = life = chr(ord(self.life[name]) + 1)
        self.see(self.listing(row(name, life, gpus=2 - len(self.node(name).gpus.excluded))), after=5)
        self.see(answered(name, life), task_ran(name, life), after=1)

    def said(self, name: str, what: str) -> None:
        match what:
            case "refuse":
                no = m.DrainAnswered(name, f"{name}-{self.life[name]}", accepted=False, detail="no")
                self.see(no, after=1)
            case "stop" | "go on":
                self.gone = self.gone | {name} if what == "stop" else self.gone - {name}
                self.see(m.PeopleStopped(frozenset(self.gone)), after=1)
            case "uncordon":
                self.see(m.PersonSaid(m.Verb.UNCORDON, "ann", "mended", node=name), after=1)
            case "pause" | "resume":
                verb = m.Verb.PAUSE if what == "pause" else m.Verb.RESUME
                self.see(m.PersonSaid(verb, "ann", "why not", for_s=600.0), after=1)
            case "a minute":
                self.pass_time(60, every=20)


@given(
    happens=st.lists(HAPPENS, max_size=20),
    actions=st.lists(st.sampled_from(list(GpuAction)), min_size=4, max_size=4),
    mode=st.sampled_from(["heal", "observe"]),
)
@settings(max_examples=30, deadline=None)
def test_whatever_happens(happens: list[tuple[str, str]], actions: list[GpuAction], mode: Any) -> None:
    """One drain at a time, never the head; an incident as long as there is a finding, and no longer."""
    keys = ("inventory", "memory", "thermal", "hang")
    story = Anything(mode=mode, gpu=dict(zip(keys, actions, strict=True)))
    for name, what in happens:
        story.happen(name, what)
        hold_together(story)
    assert mode == "heal" or not planned(story)


def hold_together(story: Story) -> None:
    nodes = story.belief.nodes.values()
    leaving = [n for n in nodes if n.drained and n.state is not State.CORDONED]
    assert len(leaving) <= 1
    assert all(d.node != "head" for d in planned(story))
    for node in nodes:
        known = node.gpus
        told = known.incident_id is not None and story.belief.incidents[known.incident_id].open
        assert told is bool(known.found), (known.found, known.incident_id)
        assert codec.decode(GpuBelief, json.loads(json.dumps(codec.encode(known)))) == known
    json.dumps(report.health(story.belief, story.now, story.policy))


def test_a_drained_node_that_was_suspect_when_the_agent_was_restarted_needs_no_task_to_be_well() -> None:
    story = Story()
    story.change("gpu1", gpus=replace(story.node("gpu1").gpus, drained_id="gpu1-a", drained_at=story.now))
    story.pass_time(3, timed_out("gpu1"))
    assert story.state("gpu1") is State.SUSPECT
    story.belief = resume(story.belief, story.now)
    story.see(story.listing(), answered("gpu1"), task_missed("gpu1"), after=1)
    assert story.state("gpu1") is State.ALIVE
