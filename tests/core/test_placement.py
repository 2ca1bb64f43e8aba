"""Who looks and who repairs: the head, or the nearest peer that reaches what the head does not."""

from dataclasses import replace

from grid_agent.core import messages as m
from grid_agent.core import placement
from grid_agent.core.model import Belief, NodeBelief
from grid_agent.core.policy import Policy
from grid_agent.core.seen import HostView, Raylet
from grid_agent.core.step import begin, step
from grid_agent.core.terms import Cause, Miss, State

RACK_A, RACK_B = {"rack": "a"}, {"rack": "b"}


def node(name: str, **more: object) -> NodeBelief:
    role = "head" if name == "head" else "worker"
    return NodeBelief(name, f"host-of-{name}", role, State.ALIVE, 0.0, **more)  # type: ignore[arg-type]


def world(view: HostView | None = None, *, peer_state: State = State.ALIVE) -> tuple[Belief, NodeBelief]:
    sick = replace(node("sick", labels=RACK_B, host_view=view), state=State.SUSPECT)
    far = node("far", labels=RACK_A, can_repair=True)
    near = replace(node("near", labels=RACK_B, can_repair=True), state=peer_state)
    nodes = (node("head"), far, near, node("unable", labels=RACK_B), sick)
    return Belief(0.0, 0.0, {n.name: n for n in nodes}), sick


def unreached(by: str) -> HostView:
    return HostView(10.0, by, reached=False)


def reached(by: str) -> HostView:
    return HostView(10.0, by, reached=True)


def test_the_head_looks_and_repairs_first() -> None:
    belief, sick = world()
    assert placement.looker(belief, sick) == "head"
    assert placement.choose(belief, sick) == "head"


def test_where_the_head_cannot_reach_the_peers_take_turns_nearest_first() -> None:
    turns = [placement.looker(*world(unreached(by))) for by in ("head", "near", "far")]
    assert turns == ["near", "far", "head"]


def test_the_peer_that_reached_the_host_repairs_it() -> None:
    belief, sick = world(reached("near"))
    assert placement.looker(belief, sick) == "near"
    assert placement.choose(belief, sick) == "near"


def test_a_peer_that_is_not_alive_or_not_allowed_never_acts() -> None:
    belief, sick = world(reached("near"), peer_state=State.SUSPECT)
    assert placement.choose(belief, sick) == "head"
    assert placement.peers(belief, sick) == ["far"]
    belief, sick = world(reached("unable"))
    assert placement.choose(belief, sick) == "head"


def test_the_sick_node_never_acts_on_itself() -> None:
    belief, sick = world(reached("sick"))
    able = replace(sick, can_repair=True, state=State.ALIVE)
    belief = replace(belief, nodes={**belief.nodes, "sick": able})
    assert "sick" not in (placement.choose(belief, able), placement.looker(belief, able))


def listed(now_ms: int) -> m.NodesListed:
    rows = [m.NodeRow(n, f"{n}-1", n, 1, True, now_ms, n == "head") for n in ("head", "near", "sick")]
    return m.NodesListed(tuple(rows))


def watching() -> tuple[Belief, Policy]:
    policy = Policy()
    nodes = [replace(node(n), state=State.JOINING) for n in ("head", "sick")]
    belief = begin([*nodes, replace(node("near", can_repair=True), state=State.JOINING)], 0.0)
    ran = [m.TaskRan(n, f"{n}-1") for n in belief.nodes]
    belief, _ = step(belief, [listed(1), *ran], 1.0, policy)
    return belief, policy


def test_a_killed_raylet_that_only_a_peer_can_look_at_is_repaired_by_that_peer() -> None:
    belief, policy = watching()
    belief, orders = step(belief, [m.HeartbeatMissed("sick", "sick-1", Miss.REFUSED)], 2.0, policy)
    assert m.LookAtHost("sick", "sick-1", "head", "sick", 1, quiet_s=0.0) in orders
    belief, _ = step(belief, [m.HostUnreachable("sick", "head", "no route")], 2.1, policy)
    belief, orders = step(belief, [m.HeartbeatMissed("sick", "sick-1", Miss.REFUSED)], 4.1, policy)
    assert [o.by for o in orders if isinstance(o, m.LookAtHost)] == ["near"]
    belief, orders = step(belief, [m.HostLooked("sick", "near", ())], 4.2, policy)
    (restart,) = [o for o in orders if isinstance(o, m.RestartWorker)]
    assert restart.run_on == "near"


def test_a_node_that_a_peer_sees_running_is_left_alone_and_the_path_is_named() -> None:
    belief, policy = watching()
    seen = m.HostLooked("sick", "near", (Raylet(7, "sick-1"),))
    for at in range(2, 400):
        missed = m.HeartbeatMissed("sick", "sick-1", Miss.TIMED_OUT)
        events = [missed, m.HostUnreachable("sick", "head", "no route") if at < 4 else seen]
        belief, orders = step(belief, [listed(1), *events], float(at), policy)
        assert not [o for o in orders if isinstance(o, m.RestartWorker | m.TellRay)]
    assert belief.nodes["sick"].state is State.SUSPECT
    assert belief.nodes["sick"].cause is Cause.NO_PATH
