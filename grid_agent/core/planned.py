"""A restart of a node that still runs: a person asked for it, or it answers and yet runs no tasks.

First it is asked what work would be lost. Where that is something and nobody has allowed it, nothing is done.
Else Ray drains the node: no new work comes, what runs may end until the deadline. Only then it is restarted.
Pure; called by `repair` once every guard permits.
"""

from dataclasses import replace

from grid_agent.core import evidence
from grid_agent.core import messages as m
from grid_agent.core.model import Belief, NodeBelief
from grid_agent.core.policy import Policy
from grid_agent.core.seen import LiveWork
from grid_agent.core.terms import GONE, Cause, Refusal, State

LIST_AGAIN_S = 2.0
HELD_S = 10.0
LIST_LOST_S = 15.0  # an answer that has not come by then never will
ASK_S = 60.0  # what a person asked for and could not be begun by then is dropped
# Nothing of it can be asked, or waiting was long enough: the file says after what time a hang is ended.
NOT_ASKED = GONE | {Cause.HOST_DOWN, Cause.HUNG, Cause.ZOMBIE}


def running(node: NodeBelief) -> bool:
    """The raylet is there and belongs to the cluster: a restart may end work. A suspicion is no verdict."""
    ended = node.cause in NOT_ASKED and node.state is not State.SUSPECT
    return node.incarnation is not None and bool(node.listed_alive) and not ended


def known(node: NodeBelief) -> LiveWork | None:
    """What runs on the present incarnation, as far as it was listed since somebody wanted to know."""
    work, now_there = node.work, node.incarnation
    return work if work is not None and now_there is not None and work.node_id == now_there.node_id else None


def allowed(node: NodeBelief, policy: Policy) -> bool:
    """Somebody has said that the work on it may be lost."""
    return policy.disrupt or (node.asked is not None and node.asked.disrupt)


def in_the_way(node: NodeBelief, policy: Policy) -> bool:
    """Work that nobody has allowed to be lost, or that could not be listed."""
    work = known(node)
    return running(node) and not allowed(node, policy) and work is not None and not work.nothing


def prepare(
    belief: Belief, node: NodeBelief, now: float, policy: Policy
) -> tuple[Belief, tuple[m.Order, ...], bool]:
    """Return the belief, what to do first, and whether the node is ready to be restarted."""
    if node.incarnation is None and not evidence.listed(belief, node):
        return belief, (), False  # it may run: we have only just begun to follow it
    if not running(node) or node.incarnation is None:
        return belief, (), True
    node_id, work = node.incarnation.node_id, known(node)
    over = node.drain_ends_at is not None and now >= node.drain_ends_at
    if over or (node.drain_ends_at is not None and work is not None and work.nothing):
        return belief, (), True
    orders: list[m.Order] = []
    if work is not None and node.drain_ends_at is None:
        node = replace(node, drain_ends_at=now + policy.drain_s)
        why = f"restart asked by {node.asked.by}: {node.asked.reason}" if node.asked else str(node.cause)
        orders.append(m.DrainNode(node.name, node_id, f"grid-agent: {why}", node.drain_ends_at))
    wait_s = LIST_LOST_S if node.work_asked_at is not None and work is None else LIST_AGAIN_S
    if node.work_asked_at is None or now - node.work_asked_at >= wait_s:
        node = replace(node, work_asked_at=now)
        orders.append(m.ListWork(node.name, node_id))
    return evidence.put(belief, node), tuple(orders), False


def look_again(belief: Belief, node: NodeBelief, now: float) -> tuple[Belief, tuple[m.Order, ...]]:
    """List anew what is in the way of a node that waits to be restarted: it may be over by now."""
    if node.incarnation is None or (node.work_asked_at is not None and now - node.work_asked_at < HELD_S):
        return belief, ()
    belief = evidence.put(belief, replace(node, work_asked_at=now))
    return belief, (m.ListWork(node.name, node.incarnation.node_id),)


def forget(node: NodeBelief, refused: str | None = None) -> NodeBelief:
    """The node without the wish to restart it; `refused` tells the person why nothing was done."""
    return replace(node, asked=None, ask_refused=refused, work=None, work_asked_at=None, drain_ends_at=None)


def over(node: NodeBelief) -> NodeBelief:
    """The node without what was listed and drained for a restart that is not needed any more."""
    return node if node.asked is not None else forget(node, node.ask_refused)


def declined(node: NodeBelief, no: Refusal | None, now: float, policy: Policy) -> bool:
    """Whether what a person asked for shall not be done: a guard refuses, or it waits too long."""
    late = node.asked is not None and now - node.asked.at > ASK_S + policy.drain_s
    return late or (no is not None and node.drain_ends_at is None)


def may_begin(node: NodeBelief) -> bool:
    """Whether this node is one to think about: dead, or a person wants it restarted."""
    wanted = node.asked is not None and node.state not in (State.CORDONED, State.REPAIRING)
    return node.state is State.DEAD or wanted
