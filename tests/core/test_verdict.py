"""The table from evidence to verdict, enumerated in full and checked against the text of the rules."""

from dataclasses import replace
from itertools import product

import pytest

from grid_agent.core import facts, verdict
from grid_agent.core.model import NodeBelief
from grid_agent.core.policy import Policy
from grid_agent.core.seen import Heartbeat, HostFacts, HostView, Incarnation, PeerView, Raylet
from grid_agent.core.terms import Cause, Miss, State
from grid_agent.core.verdict import Grade

POLICY = Policy()
NOW = 10_000.0
HOWS = ("refused", "timed out", "unreachable", "not serving")
HEARTBEATS = ["answering", *(f"{n} {how}" for n in (1, 2) for how in HOWS)]
VIEWS = ["none", "stale", "not reached", "pid there", "no pid"]
PEERS = ["none", "stale", "answers", "refused", "timed out", "unreachable"]
GCS = ["alive", "dead", "unlisted"]
AGES = {"early": 1.0, "past the zombie wait": 6.0, "past hang_s": 91.0, "past unreachable_s": 121.0}


def situation(heartbeat: str, view: str, gcs: str, age_s: float, peer: str = "none") -> NodeBelief:
    """A SUSPECT whose trouble began `age_s` ago; views that are not stale have been so since then."""
    began = NOW - age_s
    beat = Heartbeat(answered_at=NOW - 0.5)
    if heartbeat != "answering":
        count, how = heartbeat.split(" ", 1)
        beat = Heartbeat(
            answered_at=began - 1,
            misses=int(count),
            first_missed_at=began,
            missed_at=NOW - 0.5,
            last_miss=Miss(how),
        )
    raylets = (Raylet(42, "a"),) if view == "pid there" else ()
    seen = None
    if view == "stale":
        seen = HostView(began - 60, "head", reached=True, since=began - 60)
    elif view != "none":
        seen = HostView(NOW, "head", reached=view != "not reached", raylets=raylets, since=began)
    asked = None
    if peer == "stale":
        asked = PeerView(began - 60, "gpu2", Miss.REFUSED)
    elif peer != "none":
        asked = PeerView(NOW - 0.2, "gpu2", None if peer == "answers" else Miss(peer))
    return NodeBelief(
        "gpu1",
        "h",
        "worker",
        State.SUSPECT,
        began,
        incarnation=Incarnation("a"),
        proven_id="a",
        answered_id="a",
        listed_alive=gcs == "alive",
        unlisted_at=None if gcs == "alive" else began,
        heartbeat=beat,
        host_view=seen,
        peer_view=asked,
        failed_at=began,
    )


def expected(  # noqa: C901 - a table in words
    heartbeat: str, view: str, gcs: str, age_s: float, peer: str
) -> tuple[str, Cause | None]:
    """The rules, written down again from the table of causes and not from the code."""
    misses = 0 if heartbeat == "answering" else int(heartbeat[0])
    how = heartbeat[2:]
    looked = view in ("pid there", "no pid")
    if view != "pid there":
        # Nobody listens: said by two of the head, a peer and the GCS, or by one of them and the host itself.
        says = (how == "refused") + (peer == "refused") + (gcs != "alive")
        if (view == "no pid" and says) or (peer == "refused" and says >= 2):
            return "dead", Cause.PROCESS_GONE
    if gcs != "alive":  # marked dead: the host decides what it is
        if view == "pid there":
            return ("dead" if age_s >= 5 else "suspect"), Cause.ZOMBIE
        if view == "not reached":
            return ("dead" if age_s >= 120 else "suspect"), Cause.HOST_DOWN
        return "suspect", None
    if misses == 0:
        return "well", None
    if how != "refused" and misses < 2:
        return "unknown", None  # one silence is nothing
    if peer == "answers":
        return "suspect", Cause.NO_PATH  # the head alone hears nothing
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
    for gcs, age, peer in product(GCS, AGES, PEERS):
        found = verdict.judge(situation(heartbeat, view, gcs, AGES[age], peer), NOW, POLICY)
        wanted = expected(heartbeat, view, gcs, AGES[age], peer)
        assert (found.grade.value, found.cause) == wanted, f"GCS {gcs}, {age}, peer {peer}"


def test_no_death_without_two_facts_in_writing() -> None:
    for heartbeat, view, gcs, age, peer in product(HEARTBEATS, VIEWS, GCS, AGES, PEERS):
        node = situation(heartbeat, view, gcs, AGES[age], peer)
        if verdict.judge(node, NOW, POLICY).grade is Grade.DEAD:
            assert len(facts.against(node)) >= 2
            assert {"host", "peer"} & set(facts.against(node)), "somebody besides the head and the GCS"


@pytest.mark.parametrize("how", ["timed out", "unreachable", "refused"])
def test_a_raylet_that_answers_on_its_own_host_is_cut_off_and_not_hung(how: str) -> None:
    node = with_facts(situation(f"2 {how}", "pid there", "alive", 600.0), HostFacts(greets=True))
    found = verdict.judge(node, NOW, POLICY)
    assert (found.grade, found.cause) == (Grade.SUSPECT, Cause.NO_PATH)


@pytest.mark.parametrize("listening", [True, False, None])
def test_a_port_that_never_answered(listening: bool | None) -> None:
    node = situation("2 timed out", "pid there", "alive", 600.0)
    node = with_facts(node, HostFacts(port=1, listening=listening))
    node = replace(node, heartbeat=replace(node.heartbeat, answered_at=None), answered_id=None)
    found = verdict.judge(node, NOW, POLICY)
    blocked = (Grade.SUSPECT, Cause.PORT_BLOCKED)
    assert (found.grade, found.cause) == (blocked if listening else (Grade.DEAD, Cause.HUNG))


@pytest.mark.parametrize(
    ("seen", "stat", "patience"),
    [
        (HostFacts(), "S", 1),
        (HostFacts(pressure={"cpu": 95.0}), "S", 3),
        (HostFacts(pressure={"memory": 30.0}), "D", 3),
        (HostFacts(pressure={"io": 10.0}, load1=5.0, cpus=8), "S", 1),
        (HostFacts(load1=40.0, cpus=8), "R", 3),
        (HostFacts(pressure={"cpu": 95.0}), "T", 1),  # no load stops a process
    ],
)
def test_a_host_under_strain_is_given_more_time(seen: HostFacts, stat: str, patience: int) -> None:
    for age_s, grade in ((90.0 * patience - 1, Grade.SUSPECT), (90.0 * patience, Grade.DEAD)):
        node = situation("2 timed out", "pid there", "alive", age_s)
        assert node.host_view is not None
        raylets = (replace(node.host_view.raylets[0], stat=stat),)
        node = replace(node, host_view=replace(node.host_view, raylets=raylets, facts=seen))
        found = verdict.judge(node, NOW, POLICY)
        assert (found.grade, found.cause) == (grade, Cause.HUNG), age_s


@pytest.mark.parametrize(
    ("seen", "death", "cause"),
    [
        (HostFacts(), "", Cause.PROCESS_GONE),
        (HostFacts(oom=("Killed process 42 (raylet)",)), "", Cause.OUT_OF_MEMORY),
        (
            HostFacts(death=("The raylet exited immediately because one Ray agent failed, x",)),
            "",
            Cause.AGENT_DIED,
        ),
        (HostFacts(), "dashboard_agent failed and raylet fate-shares with it.", Cause.AGENT_DIED),
        (HostFacts(death=("Check failed",)), "health check failed", Cause.PROCESS_GONE),
    ],
)
def test_what_ended_a_process_that_is_gone(seen: HostFacts, death: str, cause: Cause) -> None:
    node = with_facts(situation("1 refused", "no pid", "alive", 1.0), seen)
    found = verdict.judge(replace(node, gcs_detail=death), NOW, POLICY)
    assert (found.grade, found.cause) == (Grade.DEAD, cause)


def test_the_verdict_on_a_hang_says_what_lives_there() -> None:
    node = situation("2 timed out", "pid there", "alive", 91.0)
    assert node.host_view is not None
    raylets = (replace(node.host_view.raylets[0], stat="T", workers=3, busy=("ray::Counter", "ray::train")),)
    node = replace(node, host_view=replace(node.host_view, raylets=raylets))
    said = " ".join(verdict.judge(node, NOW, POLICY).evidence)
    assert "3 worker processes of it still run, with ray::Counter, ray::train" in said


def test_one_refusal_alone_and_one_silence_alone_prove_nothing() -> None:
    for heartbeat in ("1 refused", "1 timed out", "1 unreachable"):
        node = situation(heartbeat, "none", "alive", 600.0)
        assert verdict.judge(node, NOW, POLICY).grade is not Grade.DEAD
        assert len(facts.against(node)) < 2


def with_facts(node: NodeBelief, seen: HostFacts) -> NodeBelief:
    assert node.host_view is not None
    return replace(node, host_view=replace(node.host_view, facts=seen))


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
        proof_missed_at=NOW - tried_s,
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
