"""What to ask about a node now: its host, a live peer, a no-op task. Each has a deadline, and none piles up.

It asks for facts and changes nothing outside. Called by `step` for every node, after it was judged.
"""

from dataclasses import replace

from grid_agent.core import evidence, facts, placement, resume, silence
from grid_agent.core import messages as m
from grid_agent.core.model import Belief, NodeBelief
from grid_agent.core.policy import Policy
from grid_agent.core.seen import Incarnation
from grid_agent.core.terms import GONE, Cause, State

WAIT_S = 10.0  # that a restart waits at most for what the host says of the end of its raylet
LOST_S = 30.0  # an answer that has not come back by then never will
DOUBLES_EVERY_S = 30.0  # a look at a host of whose raylet the GCS lists two lives
SETTLED_S = 10.0  # after it came back, before its host is looked at once more
APART_S = 0.2  # for each proof: a large cluster costs no more than a small one, and takes longer
SAVED_S = 5.0  # as seldom as a node at rest is thought about


def ask(belief: Belief, node: NodeBelief, now: float, policy: Policy) -> tuple[Belief, tuple[m.Order, ...]]:
    """Return the belief with the questions noted, and the orders that ask them."""
    orders: list[m.Order] = []
    known = node.incarnation
    if _should_look(node, now, policy):
        node = replace(node, look_asked_at=now, look_begun_at=now)
        orders.append(_look(node, placement.looker(belief, node), now))
    if known is not None and _should_ask_peer(node, now, policy):
        by = placement.witness(belief, node, for_task=not node.heartbeat.misses)
        if by is not None:
            node = replace(node, peer_asked_at=now, peer_begun_at=now)
            orders.append(_question(node, known, by))
    if known is not None and _should_prove(belief, node, now, policy):
        node = replace(node, proof_asked_at=now, proof_begun_at=now)
        belief = _spend(belief, now)
        orders.append(m.ProveNode(node.name, known.node_id))
    if not orders:
        return belief, ()
    return evidence.put(belief, node), tuple(orders)


def pending(node: NodeBelief, now: float) -> bool:
    """A process is proven gone, and its host is being asked what ended it: the answer is worth the wait."""
    if node.cause not in GONE or not node.verdict_stands or facts.fresh(node):
        return False
    if node.look_trouble is not None:
        return False
    return node.look_begun_at is not None and now - node.since < WAIT_S


def _look(node: NodeBelief, by: str, now: float) -> m.LookAtHost:
    known, heard_at = node.incarnation, node.heartbeat.answered_at
    if known is None:
        return m.LookAtHost(node.name, None, by)
    quiet_s = now - (node.since if heard_at is None else heard_at)
    pid = node.probe.raylet_pid if node.probe is not None else None
    return m.LookAtHost(node.name, known.node_id, by, known.address, known.port, pid, max(0.0, quiet_s))


def _question(node: NodeBelief, known: Incarnation, by: str) -> m.Order:
    if node.heartbeat.misses:
        return m.AskPeer(node.name, known.node_id, by, known.address, known.port)
    return m.ProveFromPeer(node.name, known.node_id, by)


def _should_look(node: NodeBelief, now: float, policy: Policy) -> bool:
    """A suspect's host is looked at, at once and then every `look_every_s`; so is a node that never came."""
    every_s = policy.look_every_s
    if node.state is State.JOINING:
        if node.incarnation is not None or now - node.since < policy.join_s:
            return False
    elif node.state is State.ALIVE:
        if node.rows_alive < 2 and not node.doubles and not _came_back(node, now):
            return False
        every_s = DOUBLES_EVERY_S
    elif node.state is State.DEAD:
        if node.verdict_stands and node.cause is not Cause.HOST_DOWN and _lasts(node):
            return False
    elif node.state is not State.SUSPECT and not resume.interrupted(node):
        return False
    return _due(node.look_asked_at, node.look_begun_at, every_s, now)


def _came_back(node: NodeBelief, now: float) -> bool:
    """It lives anew: one look shows whether its former raylet runs on, which no row of the GCS tells."""
    return node.former_id is not None and node.host_view is None and now - node.since >= SETTLED_S


def _lasts(node: NodeBelief) -> bool:
    """The last look counts; of a node that waits for its turn, for a while yet: it keeps its witness."""
    view = node.host_view
    return view is not None and facts.fresh(node) and not facts.outdated(node, view.at, facts.STALE_S / 2)


def _should_ask_peer(node: NodeBelief, now: float, policy: Policy) -> bool:
    """A peer checks the port of a suspect that is silent, and places a task on one that runs none."""
    doubtful = node.state is State.DEAD and node.cause in (Cause.HOST_DOWN, Cause.CANNOT_RUN_TASKS)
    if node.state is not State.SUSPECT and not doubtful:
        return False
    if not node.heartbeat.misses and node.proof_misses < facts.ENOUGH:
        return False
    return _due(node.peer_asked_at, node.peer_begun_at, policy.peer_every_s, now)


def _should_prove(belief: Belief, node: NodeBelief, now: float, policy: Policy) -> bool:
    """A new incarnation that the GCS lists is proven by a task, whatever brought it up; and again later."""
    if node.incarnation is None or not node.listed_alive or node.stopped or node.heartbeat.misses:
        return False
    if node.proven_id != node.incarnation.node_id or node.proof_misses:
        return _due(node.proof_asked_at, node.proof_begun_at, policy.proof_every_s, now)
    if node.role == "head":
        return False  # it could not be repaired from here, and every proof may cost it a worker process
    spent_at = belief.proofs_spent_at
    if (spent_at is not None and now - spent_at < APART_S) or silence.stale(node, now, now):
        return False
    asked_at = node.since if node.proof_asked_at is None else node.proof_asked_at
    waited = asked_at < (node.stale_until or 0.0)  # for the end of a time in which it shows nothing
    return _due(None if waited else asked_at, node.proof_begun_at, policy.prove_again_s, now)


def _spend(belief: Belief, now: float) -> Belief:
    """One proof costs `APART_S` of time, of which at most `SAVED_S` is saved up."""
    before = now if belief.proofs_spent_at is None else belief.proofs_spent_at
    return replace(belief, proofs_spent_at=min(now, max(before, now - SAVED_S) + APART_S))


def _due(asked_at: float | None, begun_at: float | None, every_s: float, now: float) -> bool:
    """Asked for the first time, or long enough ago; one at a time: who answers slowly is not asked more."""
    if begun_at is not None and now - begun_at < LOST_S:
        return False
    return asked_at is None or now - asked_at >= every_s
