"""What a no-op task shows of a node: one that ran proves it, one that did not may have had other reasons.

Pure; `evidence` folds the answers of tasks with it.
"""

from dataclasses import replace

from grid_agent.core import messages as m
from grid_agent.core import silence
from grid_agent.core.model import Belief, NodeBelief
from grid_agent.core.seen import PeerTask

SETTLED_S = 10.0  # after the GCS was silent: raylets and workers find it again


def ran(node: NodeBelief, node_id: str) -> NodeBelief:
    """Return the node with this incarnation proven."""
    proven = replace(node, proven_id=node_id, proof_misses=0, proof_missed_at=None)
    return replace(proven, proof_begun_at=None, peer_task=None)


def placed(belief: Belief, node: NodeBelief, event: m.PeerPlaced, now: float) -> NodeBelief:
    """Who runs a task lives, whatever a peer found before; if it died since, the next one finds that."""
    begun_at, by = node.peer_begun_at or now, belief.nodes.get(event.by)
    node = replace(node, peer_begun_at=None, peer_trouble=None)
    if not event.ran and any(_in_vain(belief, n, begun_at, now) for n in (node, by) if n is not None):
        return node
    view = None if event.ran else node.peer_view
    return replace(node, peer_view=view, peer_task=PeerTask(now, event.by, event.ran, event.detail))


def missed(belief: Belief, node: NodeBelief, now: float) -> NodeBelief:
    """Return the node with one more task of ours that did not run."""
    if _in_vain(belief, node, node.proof_begun_at or now, now):
        return replace(node, proof_begun_at=None)
    since = now if node.proof_missed_at is None else node.proof_missed_at
    return replace(node, proof_misses=node.proof_misses + 1, proof_missed_at=since, proof_begun_at=None)


def _in_vain(belief: Belief, node: NodeBelief, begun_at: float, now: float) -> bool:
    """A task that did not run shows nothing of the node: others were silent, or Ray gives it none."""
    seen = belief.observer
    gcs = seen.gcs_silent_since is not None or begun_at < (seen.gcs_back_at or 0.0) + SETTLED_S
    return gcs or _drained(node, now) or silence.stale(node, begun_at, now)


def _drained(node: NodeBelief, now: float) -> bool:
    """Ray was asked to give its present incarnation no task."""
    return node.drained or (node.drain_ends_at is not None and now < node.drain_ends_at)
