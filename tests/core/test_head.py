"""A time without a head becomes one incident, whoever hears of it when."""

from dataclasses import replace

from grid_agent.core import head, incidents
from grid_agent.core import messages as m
from grid_agent.core.incident_model import Outage, Phase, Step
from grid_agent.core.model import Belief, NodeBelief
from grid_agent.core.policy import Policy
from grid_agent.core.resume import resume
from grid_agent.core.step import step
from grid_agent.core.terms import Cause, State
from tests.core.situations import Story, answered, refused, row, task_ran

POLICY = Policy()
DOWN = Outage(1000.0, "the GCS is gone", (Step(1000.0, "the GCS is gone: starting the GCS again"),))
BACK = replace(DOWN, steps=(*DOWN.steps, Step(1002.0, "it took 2 s")), restored_at=1002.0)


def belief(state: State = State.JOINING, started_at: float = 1001.0) -> Belief:
    node = NodeBelief("h", "10.0.0.1", "head", state, started_at)
    return Belief(started_at=started_at, stepped_at=started_at, nodes={"h": node})


def tell(before: Belief, *events: m.Event, now: float = 1003.0) -> tuple[Belief, list[m.Notify]]:
    after, orders = step(before, events, now, POLICY)
    return after, [order for order in orders if isinstance(order, m.Notify)]


def test_it_fires_when_heard_and_resolves_when_the_head_has_run_a_task() -> None:
    first, told = tell(belief(), m.HeadOutage(DOWN))
    (incident,) = first.incidents.values()
    assert (incident.phase, incident.cause, incident.nodes) == (Phase.FIRING, Cause.HEAD_DOWN, ("h",))
    assert incident.failed_at == 1000.0
    assert len(told) == 1

    second, told = tell(first, m.HeadOutage(BACK))  # the keeper is content, no task has run yet
    (incident,) = second.incidents.values()
    assert incident.open
    assert [s.text for s in incident.steps][-1] == "it took 2 s"

    alive = replace(second, nodes={"h": replace(second.nodes["h"], state=State.ALIVE)})
    third = head.settle(alive, 1004.0)
    (incident,) = third.incidents.values()
    assert (incident.phase, incident.resolved_at) == (Phase.RESOLVED, 1004.0)
    assert head.settle(third, 1005.0) is third


def test_the_same_word_again_changes_nothing() -> None:
    first, _ = tell(belief(), m.HeadOutage(DOWN))
    again, told = tell(first, m.HeadOutage(DOWN))
    assert again.incidents == first.incidents
    assert told == []


def test_a_second_outage_is_a_second_incident() -> None:
    first, _ = tell(belief(), m.HeadOutage(DOWN))
    other = Outage(1100.0, "the head's raylet is gone")
    second, _ = tell(first, m.HeadOutage(other), now=1101.0)
    assert [i.failed_at for i in second.incidents.values()] == [1000.0, 1100.0]


def test_an_outage_long_over_is_not_told_by_an_agent_that_came_later() -> None:
    late, told = tell(belief(started_at=1500.0), m.HeadOutage(BACK), now=1500.0)
    assert late.incidents == {}
    assert told == []


def test_an_agent_that_ends_meanwhile_leaves_the_incident_to_the_next_one() -> None:
    first, _ = tell(belief(), m.HeadOutage(DOWN))
    (number,) = first.incidents
    taken_over = resume(first, 1050.0)
    assert taken_over.incidents == first.incidents
    second, _ = tell(taken_over, m.HeadOutage(BACK), now=1051.0)
    alive = replace(second, nodes={"h": replace(second.nodes["h"], state=State.ALIVE)})
    told = head.settle(alive, 1052.0).incidents
    assert list(told) == [number]
    assert [s.text for s in told[number].steps] == [s.text for s in BACK.steps]
    assert told[number].phase is Phase.RESOLVED


def test_a_lost_store_makes_one_incident_of_the_head_and_all_workers() -> None:
    start = belief(State.ALIVE)
    workers = {f"w{i}": NodeBelief(f"w{i}", f"10.0.0.{i}", "worker", State.JOINING, 1001.0) for i in (2, 3)}
    cordoned = NodeBelief("w4", "10.0.0.4", "worker", State.CORDONED, 1001.0, stopped=True)
    start = replace(start, nodes={**start.nodes, **workers, "w4": cordoned})
    lost = replace(BACK, store_lost="it is damaged")
    first = head.settle(head.fold(start, m.HeadOutage(lost)), 1003.0)
    (incident,) = first.incidents.values()
    assert incident.nodes == ("h", "w2", "w3")
    assert incident.open  # although the head is well: its workers are not back
    assert any("new id" in s.text for s in incident.steps)

    for name in ("w2", "w3"):  # as each comes to its verdict, it joins; nothing new is opened
        dead = replace(first.nodes[name], state=State.DEAD, cause=Cause.PROCESS_GONE)
        first = incidents.open_for(replace(first, nodes={**first.nodes, name: dead}), dead, 1060.0, 10.0)
    assert len(first.incidents) == 1
    first = incidents.resolve(first, first.nodes["w2"], "w2 is ALIVE", 1070.0)
    assert head.settle(first, 1070.0).incidents[incident.id].open
    first = incidents.resolve(first, first.nodes["w3"], "w3 is ALIVE", 1080.0)
    assert not head.settle(first, 1080.0).incidents[incident.id].open


def test_the_record_of_the_keeper_is_read_as_it_is_written(tmp_path) -> None:
    from bootstrap import outage

    record = outage.Outage(tmp_path / "o.json", "x", 5.0)
    record.step("one")
    record.slack = {"channel_id": "C1", "ts": "1.2"}
    record.restored()
    import json

    found = head.outage(json.loads((tmp_path / "o.json").read_text()))
    assert (found.began_at, found.cause, found.channel_id, found.ts) == (5.0, "x", "C1", "1.2")
    assert [s.text for s in found.steps] == ["one"]
    assert found.restored_at is not None
    assert outage.open_one(tmp_path / "o.json") is None


def test_workers_that_come_back_after_the_store_was_lost_need_no_person() -> None:
    story = Story(3)
    lost = replace(BACK, began_at=story.now, restored_at=story.now + 2, store_lost="full disk")
    story.see(m.HeadOutage(lost), after=3)
    story.rows = {"head": row("head", "b")}
    gone = [refused(n) for n in story.names[1:]]
    story.see(story.listing(), after=1)
    story.see(answered("head", "b"), task_ran("head", "b"), *gone, after=1)
    story.see(story.listing(*(row(n, "b") for n in story.names)), after=1)
    well = [event for n in story.names for event in (answered(n, "b"), task_ran(n, "b"))]
    story.see(*well, after=1)
    phases = [order.incident.phase for order in story.given(m.Notify)]
    assert Phase.NEEDS_PERSON not in phases
    assert phases[-1] is Phase.RESOLVED
