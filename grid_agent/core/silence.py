"""Silence: when it began, when its host is known to be reached, and what it leaves behind when it ends.

Pure; `evidence` folds heartbeats with it.
"""

from dataclasses import replace

from grid_agent.core.model import NodeBelief
from grid_agent.core.seen import Heartbeat
from grid_agent.core.terms import Miss, State

PROMPT_S = 2.0  # after it was suspected
CREDIT_S = 10.0  # of silence before that, at most
SHORT_S = 4.0  # of silence: no task misses its deadline of 10 s for so little
LONGER = 1.25  # times as long as the silence: TCP's doubled waits, and the making of a new connection
MOST_S = 120.0  # grpc_client_keepalive_timeout_ms of Ray, which gRPC sets as TCP_USER_TIMEOUT, too


def answered(node: NodeBelief, rtt_ms: float, last_ms: float | None, now: float) -> NodeBelief:
    """Return the node with an answer in it, which ends its silence.

    That is noticed on a new connection. Ray keeps its old ones, on which TCP sends again only after waits
    that double (RFC 6298): about as long as the silence was, until Ray gives them up after `MOST_S`.
    """
    until, silent_s = node.stale_until, _silent_s(node, now)
    if silent_s >= SHORT_S:
        until = max(until or now, now + min(LONGER * silent_s, MOST_S))
    by = node.incarnation.node_id if node.incarnation is not None else None
    beat = Heartbeat(now, rtt_ms, last_rtt_ms=last_ms)
    return replace(node, heartbeat=beat, answered_id=by, stale_until=until)


def stale(node: NodeBelief, begun_at: float, now: float) -> bool:
    """Whether what Ray began then with this node may have waited for a connection silent by itself."""
    until = node.stale_until
    return _silent_s(node, now) >= SHORT_S or (until is not None and begun_at < until)


def tried_since(node: NodeBelief) -> float | None:
    """Since when tasks that do not run are held against the node; None: none was missed."""
    if node.proof_missed_at is None:
        return None
    return max(node.proof_missed_at, node.stale_until or 0.0)


def _silent_s(node: NodeBelief, now: float) -> float:
    since = node.heartbeat.silent_since
    return 0.0 if since is None else now - since


def missed(node: NodeBelief, how: Miss, detail: str, waited_s: float, now: float) -> NodeBelief:
    """Return the node with a miss in it. Silence began, as far as is known, when the first check was sent."""
    beat = node.heartbeat
    asked_at = max(now - waited_s, beat.answered_at or 0.0)
    if how is Miss.REFUSED and beat.last_miss in (Miss.UNREACHABLE, Miss.TIMED_OUT):
        # The host is back, and says so: a login that still waits for it may wait for long.
        node = replace(node, look_asked_at=None, look_begun_at=None, peer_asked_at=None)
    after = replace(
        beat,
        misses=beat.misses + 1,
        first_missed_at=asked_at if beat.first_missed_at is None else beat.first_missed_at,
        silent_since=asked_at if beat.silent_since is None else beat.silent_since,
        missed_at=now,
        last_miss=how,
        detail=detail,
    )
    return replace(node, heartbeat=after)


def reached_since(node: NodeBelief, now: float) -> float:
    """Since its answer only is a host known to be reached: the login may have waited for the end of a cut.

    But one that answers as soon as it is suspected was not away, or not for long enough to matter.
    """
    first = node.heartbeat.first_missed_at
    prompt = node.state is State.SUSPECT and now - node.since <= PROMPT_S
    return first if first is not None and prompt and now - first <= CREDIT_S else now
