"""A world that answers what the core asks, truthfully or not, while the bookkeeper reads along.

Short here; `scripts/campaign` runs it for long.
"""

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from grid_agent.core import messages as m
from grid_agent.core.incident_model import Phase
from grid_agent.core.policy import Policy
from grid_agent.core.seen import HostFacts, LiveWork, Raylet
from grid_agent.core.step import begin, step
from grid_agent.core.terms import Miss, State
from tests.core.invariants import Witnesses, believed
from tests.core.situations import START, at_rest, configured, row

NAMES = ("head", "gpu1", "gpu2", "gpu3", "gpu4")
WORKERS = st.sampled_from(NAMES[1:])
SECONDS = st.sampled_from((0.0, 0.2, 1.0, 3.0, 11.0, 60.0, 130.0))
FACTS = st.builds(
    HostFacts,
    port=st.just(7),
    listening=st.sampled_from((None, True, False)),
    greets=st.sampled_from((None, True, False)),
    oom=st.sampled_from(((), ("Killed process 1 (raylet)",))),
    pressure=st.sampled_from(({}, {"cpu": 99.0})),
)


class Cluster(RuleBasedStateMachine):
    """The belief under test, the rows of its GCS, and the questions nobody has answered yet."""

    def __init__(self) -> None:
        super().__init__()
        self.policy, self.now = Policy(hang_s=20, unreachable_s=30, join_s=15, prove_again_s=30), START
        self.belief = begin((configured(n) for n in NAMES), self.now)
        self.bookkeeper = Witnesses(self.policy, frozenset(NAMES), "head")
        self.lives = dict.fromkeys(NAMES, "a")
        self.open: list[m.Order] = []
        self.see(self.listing(), *(m.TaskRan(n, self.id(n)) for n in NAMES))

    def id(self, name: str) -> str:
        return f"{name}-{self.lives[name]}"

    def listing(self, *dead: str) -> m.NodesListed:
        return m.NodesListed(tuple(row(n, life, alive=n not in dead) for n, life in self.lives.items()))

    def see(self, *events: m.Event) -> None:
        for event in events:
            self.bookkeeper.saw(self.now, event)
        self.belief, orders = step(self.belief, events, self.now, self.policy)
        for order in orders:
            self.noted(order)

    def noted(self, order: m.Order) -> None:
        self.bookkeeper.ordered(self.now, order)
        if not isinstance(order, m.Notify):
            self.open = [*self.open, order][-20:]

    @rule(seconds=SECONDS, lag_ms=st.sampled_from((0.0, 0.0, 0.0, 300.0, 1500.0, 60_000.0)))
    def time_passes(self, seconds: float, lag_ms: float) -> None:
        self.now += seconds
        self.see(m.LoopLagged(lag_ms))

    @rule(name=WORKERS, how=st.sampled_from((None, *Miss)), times=st.integers(1, 3))
    def a_heartbeat(self, name: str, how: Miss | None, times: int) -> None:
        for _ in range(times):
            self.now += 1.0
            beat = m.HeartbeatAnswered(name, self.id(name), 0.5)
            self.see(beat if how is None else m.HeartbeatMissed(name, self.id(name), how))

    @rule(dead=st.sets(WORKERS, max_size=2))
    def the_gcs_answers(self, dead: set[str]) -> None:
        self.see(self.listing(*dead))

    @rule()
    def the_gcs_is_silent(self) -> None:
        self.see(m.GcsWentSilent("no answer"))

    @rule(name=WORKERS)
    def a_raylet_is_born(self, name: str) -> None:
        self.lives[name] = chr(min(ord("z"), ord(self.lives[name]) + 1))
        self.see(self.listing())

    @rule(loopback=st.sampled_from((1.0, 400.0, None)), step_s=st.sampled_from((0.0, 2.0, 100.0)))
    def the_agent_looks_at_itself(self, loopback: float | None, step_s: float) -> None:
        self.see(m.SelfChecked(0, loopback, 50.0, step_s))

    @rule(names=st.sets(WORKERS, max_size=1))
    def people_stop(self, names: set[str]) -> None:
        self.see(m.PeopleStopped(frozenset(names)))

    @rule(
        verb=st.sampled_from(m.Verb), name=WORKERS, for_s=st.sampled_from((None, 30.0)), disrupt=st.booleans()
    )
    def a_person_says(self, verb: m.Verb, name: str, for_s: float | None, disrupt: bool) -> None:
        self.see(m.PersonSaid(verb, "alice", "because", name, for_s, disrupt))

    @precondition(lambda self: self.open)
    @rule(data=st.data(), how=st.sampled_from((None, *Miss)), ok=st.booleans(), seen=FACTS)
    def a_question_is_answered(
        self, data: st.DataObject, how: Miss | None, ok: bool, seen: HostFacts
    ) -> None:
        order = self.open.pop(data.draw(st.integers(0, len(self.open) - 1)))
        self.see(self.answer(order, how, ok, seen))

    def answer(self, order: m.Order, how: Miss | None, ok: bool, seen: HostFacts) -> m.Event:
        match order:
            case m.LookAtHost(name, node_id, by) if how is Miss.UNREACHABLE:
                return m.HostUnreachable(name, by, "no route", node_id)
            case m.LookAtHost(name, _, by) if how is Miss.NOT_SERVING:
                return m.LookFailed(name, by, "key_refused")
            case m.LookAtHost(name, node_id, by):
                there = (Raylet(1, self.id(name)),) if ok else ()
                return m.HostLooked(name, by, there, asked_about=node_id, facts=seen)
            case m.AskPeer(name, node_id, by):
                return m.PeerChecked(name, node_id, by, how)
            case m.ProveFromPeer(name, node_id, by):
                return m.PeerPlaced(name, node_id, by, ok)
            case m.ProveNode(name, node_id):
                return m.TaskRan(name, node_id) if ok else m.TaskMissed(name, node_id, "late")
            case m.TellRay(name, node_id):
                return m.RayTold(name, node_id, ok)
            case m.ListWork() | m.DrainNode():
                return self.answer_of_ray(order, how, ok)
            case m.RestartWorker(name, _, attempt):
                return m.RepairEnded(name, attempt, ok, "said so", curable=how is not Miss.REFUSED)
        raise AssertionError(order)

    def answer_of_ray(self, order: m.ListWork | m.DrainNode, how: Miss | None, ok: bool) -> m.Event:
        if isinstance(order, m.DrainNode):
            return m.DrainAnswered(order.node, order.node_id, ok)
        trouble = "no dashboard" if how is Miss.TIMED_OUT else None
        found = LiveWork(0.0, order.node_id, {"tasks": int(ok)}, trouble=trouble)
        return m.WorkListed(order.node, order.node_id, found)

    @invariant()
    def what_is_believed_makes_sense(self) -> None:
        believed(self.belief)
        self.belief, late = at_rest(self.belief, self.now, self.policy)
        for order in late:
            self.noted(order)

    def teardown(self) -> None:
        """From wherever it was left, in a world that is well again: nobody is dead, or a person was told."""
        self.see(m.PeopleStopped(frozenset()))
        for verb in (m.Verb.RESUME, m.Verb.CLOSE_BREAKER):
            self.see(m.PersonSaid(verb, "alice", "all is well"))
        for _ in range(60):
            self.now += 5.0
            beats = (m.HeartbeatAnswered(n, self.id(n), 0.5) for n in NAMES)
            self.see(m.LoopLagged(0.0), m.SelfChecked(0, 1.0, 0.0, 0.0), self.listing(), *beats)
            asked, self.open = self.open, []
            for order in asked:
                self.see(self.truth(order))
        for node in self.belief.nodes.values():
            told = self.belief.incidents.get(node.incident_id or 0)
            given_up = node.state is State.GAVE_UP and told is not None and told.phase is Phase.NEEDS_PERSON
            assert given_up or node.state in (State.ALIVE, State.CORDONED), (
                f"{node.name} is left {node.state}"
            )

    def truth(self, order: m.Order) -> m.Event:
        """Every raylet lives; what is ended is born again."""
        name = getattr(order, "node", "")
        if isinstance(order, m.RestartWorker) or (
            isinstance(order, m.TellRay) and order.node_id == self.id(name)
        ):
            self.lives[name] = chr(ord(self.lives[name]) + 1)
        if isinstance(order, m.ProveNode | m.ProveFromPeer) and order.node_id != self.id(name):
            return self.answer(order, None, False, HostFacts())
        return self.answer(order, None, True, HostFacts(greets=True))


def run(examples: int, steps: int) -> None:
    quiet = [HealthCheck.too_slow, HealthCheck.data_too_large]
    run_state_machine_as_test(
        Cluster,
        settings=settings(
            max_examples=examples, stateful_step_count=steps, deadline=None, suppress_health_check=quiet
        ),
    )


def test_no_rule_is_broken_whatever_the_world_answers() -> None:
    run(25, 40)


@pytest.mark.slow
def test_no_rule_is_broken_however_long_it_goes_on() -> None:
    run(1500, 120)
