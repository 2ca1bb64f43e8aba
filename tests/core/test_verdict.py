"""The table from evidence to verdict, enumerated in full and checked against the text of the rules."""

from itertools import product

import pytest

from grid_agent.core import verdict
from grid_agent.core.model import (
    Cause,
    Heartbeat,
    HostView,
    Incarnation,
    Miss,
    NodeBelief,
    Policy,
    Raylet,
    State,
)
from grid_agent.core.verdict import Grade

POLICY = Policy()
NOW = 10_000.0
HEARTBEATS = ["answering", *(f"{n} {how}" for n in (1, 2) for how in ("refused", "timed out", "unreachable"))]
VIEWS = ["none", "stale", "not reached", "pid there", "no pid"]
GCS = ["alive", "dead", "unlisted"]
AGES = {"early": 1.0, "past the zombie wait": 6.0, "past hang_s": 91.0, "past unreachable_s": 121.0}


def situation(heartbeat: str, view: str, gcs: str, age_s: float) -> NodeBelief:
    """A SUSPECT whose trouble began `age_s` ago; views that are not stale have been so since then."""
    began = NOW - age_s
    beat = Heartbeat(answered_at=NOW - 0.5)
    if heartbeat != "answering":
        count, how = heartbeat.split(" ", 1)
        beat = Heartbeat(misses=int(count), first_missed_at=began, last_miss=Miss(how))
    raylets = (Raylet(42, "a"),) if view == "pid there" else ()
    seen = None
    if view == "stale":
        seen = HostView(began - 60, "head", reached=True, since=began - 60)
    elif view != "none":
        seen = HostView(NOW, "head", reached=view != "not reached", raylets=raylets, since=began)
    return NodeBelief(
        "gpu1",
        "h",
        "worker",
        State.SUSPECT,
        began,
        incarnation=Incarnation("a"),
        proven_id="a",
        listed_alive=gcs == "alive",
        unlisted_at=None if gcs == "alive" else began,
        heartbeat=beat,
        host_view=seen,
        failed_at=began,
    )


def expected(heartbeat: str, view: str, gcs: str, age_s: float) -> tuple[str, Cause | None]:
    """The rules, written down again from the table of causes and not from the code."""
    misses = 0 if heartbeat == "answering" else int(heartbeat[0])
    how = heartbeat[2:]
    looked = view in ("pid there", "no pid")
    if gcs != "alive":  # marked dead: the host decides what it is
        if view == "no pid":
            return "dead", Cause.PROCESS_GONE
        if view == "pid there":
            return ("dead" if age_s >= 5 else "suspect"), Cause.ZOMBIE
        if view == "not reached":
            return ("dead" if age_s >= 120 else "suspect"), Cause.HOST_DOWN
        return "suspect", None
    if misses == 0:
        return "well", None
    if how != "refused" and misses < 2:
        return "unknown", None  # one silence is nothing
    if not looked and view != "not reached":
        return "suspect", None  # one witness only
    if view == "no pid":
        # Refused needs no second miss. Silence does not go with a process that is gone: wait for more.
        return ("dead" if how == "refused" or age_s >= 90 else "suspect"), Cause.PROCESS_GONE
    if view == "pid there":
        return ("dead" if misses >= 2 and age_s >= 90 else "suspect"), Cause.HUNG
    return ("dead" if misses >= 2 and age_s >= 120 else "suspect"), Cause.HOST_DOWN


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("heartbeat", HEARTBEATS)
def test_the_table(heartbeat: str, view: str) -> None:
    for gcs, age in product(GCS, AGES):
        found = verdict.judge(situation(heartbeat, view, gcs, AGES[age]), NOW, POLICY)
        wanted = expected(heartbeat, view, gcs, AGES[age])
        assert (found.grade.value, found.cause) == wanted, f"GCS {gcs}, {age}"


def test_no_death_without_two_facts_in_writing() -> None:
    for heartbeat, view, gcs, age in product(HEARTBEATS, VIEWS, GCS, AGES):
        found = verdict.judge(situation(heartbeat, view, gcs, AGES[age]), NOW, POLICY)
        if found.grade is Grade.DEAD:
            assert len(found.evidence) >= 2
            assert any("host" in line for line in found.evidence)


def test_after_a_cut_the_first_look_is_no_proof_of_a_hang() -> None:
    cut = situation("2 unreachable", "pid there", "alive", 600.0)
    assert cut.host_view is not None
    back = HostView(NOW, "head", reached=True, raylets=cut.host_view.raylets, since=NOW)
    at_once = NodeBelief(**{**{f: getattr(cut, f) for f in cut.__slots__}, "host_view": back})
    assert verdict.judge(at_once, NOW, POLICY).grade is Grade.SUSPECT
    assert verdict.judge(at_once, NOW + POLICY.hang_s, POLICY).grade is Grade.DEAD


def never_joined(waited_s: float, view: HostView | None) -> verdict.Verdict:
    node = NodeBelief("gpu1", "h", "worker", State.JOINING, NOW - waited_s, host_view=view)
    return verdict.judge(node, NOW, POLICY)


def test_a_node_that_never_joined() -> None:
    gone = HostView(NOW, "head", reached=True)
    there = HostView(NOW, "head", reached=True, raylets=(Raylet(1, "x"),))
    away = HostView(NOW, "head", reached=False)
    assert never_joined(59, gone).grade is Grade.UNKNOWN
    assert never_joined(61, None).grade is Grade.UNKNOWN
    assert never_joined(61, HostView(NOW - 62, "head", reached=True)).grade is Grade.UNKNOWN
    assert never_joined(61, gone).cause is Cause.PROCESS_GONE
    assert never_joined(61, there).cause is Cause.CANNOT_JOIN
    assert never_joined(61, away).cause is Cause.HOST_DOWN
    assert {never_joined(61, v).grade for v in (gone, there, away)} == {Grade.DEAD}


def no_task_runs(misses: int, tried_s: float) -> verdict.Verdict:
    node = NodeBelief(
        "gpu1",
        "h",
        "worker",
        State.JOINING,
        NOW - tried_s,
        incarnation=Incarnation("b"),
        listed_alive=True,
        heartbeat=Heartbeat(answered_at=NOW),
        proof_misses=misses,
    )
    return verdict.judge(node, NOW, POLICY)


def test_a_node_that_answers_but_runs_no_task() -> None:
    assert no_task_runs(1, 600).grade is Grade.WELL
    assert no_task_runs(2, 30).grade is Grade.SUSPECT
    assert no_task_runs(2, 60).grade is Grade.DEAD
    assert no_task_runs(2, 60).cause is Cause.CANNOT_RUN_TASKS


def test_a_new_life_of_which_nothing_is_known_stays_as_it_is() -> None:
    node = NodeBelief(
        "gpu1", "h", "worker", State.JOINING, NOW, incarnation=Incarnation("b"), listed_alive=True
    )
    assert verdict.judge(node, NOW, POLICY).grade is Grade.UNKNOWN
