"""Any sequence of events, sensible or not, against the invariants."""

from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from grid_agent.core import messages as m
from grid_agent.core import rest
from grid_agent.core.model import Belief
from grid_agent.core.policy import Policy
from grid_agent.core.seen import NO_FACTS, HostFacts, ProbeReport, Raylet
from grid_agent.core.step import begin, step
from grid_agent.core.terms import Miss, State
from tests.core.invariants import Witnesses, believed
from tests.core.situations import START, Story, at_rest, configured, repair_failed, row

NAMES = ("head", "gpu1", "gpu2", "gpu3", "gpu4")
Batch = tuple[float, tuple[m.Event, ...]]

nodes = st.sampled_from((*NAMES, "gpu1", "gpu1", "nobody"))
lives = st.sampled_from("aaabbc")
ids = st.builds(lambda name, life: (name, f"{name}-{life}"), nodes, lives)
peers = st.just("gpu9")  # of none of the nodes that have trouble here
rows = st.builds(lambda n, life, alive: row(n, life, alive=alive), nodes, lives, st.booleans())


def raylets_of(name: str, found: Sequence[str], seen: HostFacts = NO_FACTS) -> m.HostLooked:
    raylets = tuple(Raylet(i, f"{name}-{life}") for i, life in enumerate(found))
    return m.HostLooked(name, "head", raylets, facts=seen)


host_facts = st.sampled_from(
    (
        NO_FACTS,
        HostFacts(listening=True, greets=True, port=1),
        HostFacts(listening=True, greets=False, port=1),
        HostFacts(oom=("Killed process 1 (raylet)",)),
        HostFacts(death=("agent failed and raylet fate-shares with it.",)),
        HostFacts(pressure={"cpu": 99.0}, load1=50.0, cpus=2),
    )
)


def healthy_listing(changed: list[m.NodeRow]) -> m.NodesListed:
    return m.NodesListed((*(row(n) for n in NAMES), *changed))


one_event = st.one_of(
    st.just(m.LoopLagged(0.0)),
    st.builds(lambda i: m.HeartbeatAnswered(*i, 0.5), ids),
    st.builds(lambda i, how: m.HeartbeatMissed(*i, how), ids, st.sampled_from(Miss)),
    st.builds(healthy_listing, st.lists(rows, max_size=3)),
    st.builds(lambda r: m.NodesListed(tuple(r)), st.lists(rows, max_size=6)),
    st.just(m.GcsWentSilent("no answer")),
    st.builds(raylets_of, nodes, st.lists(lives, max_size=2, unique=True), host_facts),
    st.builds(lambda n: m.HostUnreachable(n, "head", "no route"), nodes),
    st.builds(lambda i, by, how: m.PeerChecked(*i, by, how), ids, peers, st.sampled_from((None, *Miss))),
    st.builds(lambda i, by, ran: m.PeerPlaced(*i, by, ran), ids, peers, st.booleans()),
    st.builds(lambda n, by: m.PeerFailed(n, by, "no worker process"), nodes, peers),
    st.builds(lambda i: m.TaskRan(*i), ids),
    st.builds(lambda i: m.TaskMissed(*i, "late"), ids),
    st.builds(lambda i, seen: m.NodeProbed(*i, ProbeReport(0.0, seen)), ids, st.sampled_from((None, 0, 1))),
    st.builds(lambda i, ok: m.RayTold(*i, ok), ids, st.booleans()),
    st.builds(
        lambda n, a, ok, curable, begun: m.RepairEnded(n, a, ok, "said so", curable, begun),
        nodes,
        st.integers(1, 6),
        st.booleans(),
        st.sampled_from((True, True, False, None)),
        st.sampled_from((True, True, False)),
    ),
    st.builds(m.LoopLagged, st.sampled_from((0.0, 0.0, 1500.0))),
    st.builds(lambda s: m.PeopleStopped(frozenset(s)), st.sets(nodes, max_size=2)),
    st.builds(
        lambda verb, node, for_s: m.PersonSaid(verb, "alice", "because", node, for_s),
        st.sampled_from(m.Verb),
        nodes,
        st.sampled_from((None, 30.0, 3600.0)),
    ),
    st.builds(m.SlackChanged, st.sampled_from((None, "invalid_auth"))),
)


def refusing(i: tuple[str, str]) -> m.PeerChecked:
    return m.PeerChecked(*i, "gpu9", Miss.REFUSED)


# Short stories give the sequences a chance to get somewhere; alone, single events rarely make a death.
whole_story = st.one_of(
    st.builds(lambda i: (m.HeartbeatMissed(*i, Miss.REFUSED), raylets_of(i[0], ())), ids),
    st.builds(lambda i: (m.HeartbeatMissed(*i, Miss.TIMED_OUT), raylets_of(i[0], i[1][-1])), ids),
    st.builds(
        lambda i: (m.HeartbeatAnswered(*i, 0.5), m.HeartbeatMissed(*i, Miss.REFUSED), refusing(i)), ids
    ),
    st.builds(lambda i: (m.HeartbeatAnswered(*i, 0.5), m.TaskMissed(*i, ""), m.TaskMissed(*i, "")), ids),
    st.builds(lambda i: (m.HeartbeatMissed(*i, Miss.UNREACHABLE), m.HostUnreachable(i[0], "h", "")), ids),
    st.builds(lambda i: (m.HeartbeatAnswered(*i, 0.5), m.TaskRan(*i)), ids),
    st.just((healthy_listing([]), *(m.TaskRan(n, f"{n}-a") for n in NAMES))),
)
batches: st.SearchStrategy[list[Batch]] = st.lists(
    st.tuples(
        st.sampled_from((0.0, 0.1, 1.0, 2.0, 5.0, 15.0, 60.0, 130.0)),
        st.one_of(whole_story, st.lists(one_event, max_size=3).map(tuple)),
    ),
    min_size=1,
    max_size=40,
)
policies = st.sampled_from((Policy(), Policy(), Policy(hang_s=5, join_s=10), Policy(mode="observe")))


def play(history: Sequence[Batch], policy: Policy, *, joined: bool) -> tuple[Belief, list[m.Order]]:
    """Run a history through the core, with the bookkeeper reading along."""
    now = START
    belief = begin((configured(n) for n in NAMES), now)
    witnesses = Witnesses(policy, frozenset(NAMES), "head")
    everything: list[m.Order] = []
    first = (healthy_listing([]), *(m.TaskRan(n, f"{n}-a") for n in NAMES)) if joined else ()
    for after, events in ((0.0, first), *history):
        now += after
        for event in events:
            witnesses.saw(now, event)
        belief, orders = step(belief, events, now, policy)
        everything += orders
        for order in orders:
            witnesses.ordered(now, order)
        believed(belief)

        belief, late = at_rest(belief, now, policy)
        for order in late:
            witnesses.ordered(now, order)
        everything += late
        believed(belief)
    return belief, everything


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(history=batches, policy=policies, joined=st.booleans())
def test_the_invariants_hold_whatever_is_seen(history: list[Batch], policy: Policy, joined: bool) -> None:
    play(history, policy, joined=joined)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(history=batches)
def test_the_same_night_gives_the_same_belief_and_orders(history: list[Batch]) -> None:
    assert play(history, Policy(), joined=True) == play(history, Policy(), joined=True)


@settings(max_examples=60, deadline=None)
@given(history=batches)
def test_the_given_belief_is_never_changed(history: list[Batch]) -> None:
    story = Story(4)
    for after, events in history:
        before = story.belief
        copy = replace(before, nodes=dict(before.nodes), incidents=dict(before.incidents))
        story.see(*events, after=after)
        assert before == copy


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(history=batches, policy=policies)
def test_nodes_at_rest_need_no_judging(history: list[Batch], policy: Policy) -> None:
    """Large clusters judge only who is not at rest: that makes no difference but to when they are proved."""
    policy = replace(policy, prove_again_s=1e9)
    whole, orders = play(history, policy, joined=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rest, "SMALL", 0)
        some, same_orders = play(history, policy, joined=True)
    assert same_orders == orders
    assert replace(some, everyone_at=whole.everyone_at) == whole  # `busy` too: it forgets nobody


# --- the bookkeeper itself is awake --------------------------------------------------------------


def restart_of(name: str, run_on: str = "head", fence: str | None = "gpu1-a") -> m.RestartWorker:
    return m.RestartWorker(name, run_on, 1, fence)


def awake(**policy: str) -> Witnesses:
    """A bookkeeper who has seen gpu1 die, with two witnesses."""
    witnesses = Witnesses(Policy(**policy), frozenset(NAMES), "head")  # type: ignore[arg-type]
    witnesses.saw(1.0, healthy_listing([]))
    witnesses.saw(2.0, m.HeartbeatMissed("gpu1", "gpu1-a", Miss.REFUSED))
    witnesses.saw(3.0, raylets_of("gpu1", ()))
    return witnesses


def test_the_bookkeeper_permits_what_is_right() -> None:
    awake().ordered(4.0, restart_of("gpu1"))


@pytest.mark.parametrize(
    ("event", "order", "complaint"),
    [
        (m.HeartbeatAnswered("gpu1", "gpu1-a", 0.5), restart_of("gpu1"), "only nobody complained"),
        (m.LoopLagged(0.0), restart_of("gpu1", "gpu1"), "repair itself"),
        (m.LoopLagged(0.0), restart_of("head", "gpu1", "head-a"), "the head"),
        (m.LoopLagged(0.0), restart_of("gpu2", fence="gpu2-a"), "only nobody complained"),
        (m.PeopleStopped(frozenset({"gpu1"})), restart_of("gpu1"), "a person stopped"),
        (m.GcsWentSilent("x"), restart_of("gpu1"), "the GCS silent"),
    ],
)
def test_the_bookkeeper_finds_what_is_wrong(event: m.Event, order: m.Order, complaint: str) -> None:
    witnesses = awake()
    witnesses.saw(4.0, event)
    with pytest.raises(AssertionError, match=complaint):
        witnesses.ordered(8.0, order)


def test_the_bookkeeper_finds_two_at_once_and_acts_in_observe_mode() -> None:
    witnesses = awake()
    witnesses.ordered(4.0, restart_of("gpu1"))
    with pytest.raises(AssertionError, match="under way"):
        witnesses.ordered(5.0, replace(restart_of("gpu1"), attempt=2))
    with pytest.raises(AssertionError, match="observe"):
        awake(mode="observe").ordered(5.0, restart_of("gpu1"))


def test_the_histories_get_somewhere() -> None:
    """A guard against strategies that prove nothing: this night reaches the far states."""
    death = (m.HeartbeatMissed("gpu1", "gpu1-a", Miss.REFUSED), raylets_of("gpu1", ()))
    night: list[Batch] = [(1.0, death)]
    night += [(60.0, (repair_failed("gpu1", n),)) for n in (1, 2, 3, 4)]
    for n in (1, 2, 3):
        night.insert(2 * n, (60.0, (m.LoopLagged(0.0),)))
    belief, orders = play(night, Policy(), joined=True)
    assert belief.nodes["gpu1"].state is State.GAVE_UP
    assert sum(isinstance(o, m.RestartWorker) for o in orders) == 4
