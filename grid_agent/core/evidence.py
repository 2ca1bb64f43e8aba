"""What each event proves about a node, folded into what is believed of it.

It only records: no verdict, no order, no state. Facts about an older incarnation are dropped here, so
that nothing said of the dead raylet is held against the new one. What the facts weigh is in `facts`.
Called by `step` only.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace

from grid_agent.core import awareness, gpus, proofs, silence
from grid_agent.core import messages as m
from grid_agent.core.model import Belief, NodeBelief, Observer
from grid_agent.core.seen import Heartbeat, HostView, Incarnation, PeerView
from grid_agent.core.terms import State

TELL_AGAIN_S = 5.0


def fold(belief: Belief, event: m.Event, now: float) -> Belief:
    """Return the belief with the facts of one event in it. Unknown nodes are ignored."""
    match event:
        case m.NodesListed(rows):
            return _listed(belief, rows, now)
        case m.LoopLagged() | m.SelfChecked():
            return awareness.folded(belief, event, now)
        case m.GcsWentSilent() | m.HeartbeatsSwept() | m.SlackChanged() | m.JournalChanged():
            return replace(belief, observer=_observer(belief.observer, event, now))
        case m.PeopleStopped(names):
            heard = (n for n in belief.nodes.values() if n.stopped != (n.name in names))
            return put_all(belief, [replace(n, stopped=not n.stopped) for n in heard])
        case m.PersonSaid() | m.HeadOutage():
            return belief
        case _:
            node = belief.nodes.get(event.node)
            return belief if node is None else put(belief, _node(belief, node, event, now))


def listed(belief: Belief, node: NodeBelief) -> bool:
    """The GCS answers, and has answered us since we began to follow this node."""
    silent, answered_at = belief.observer.gcs_silent_since, belief.observer.gcs_answered_at
    if silent is not None or answered_at is None:
        return False
    return node.state is not State.JOINING or answered_at > node.since


class _OwnTable(dict[str, NodeBelief]):
    """The table of nodes while one step works on it: nobody else sees it, so `put` need not copy it."""


def own_table(belief: Belief) -> Belief:
    """Return the belief with a table of its own, for `put` to change in place until `shared_table`."""
    return replace(belief, nodes=_OwnTable(belief.nodes))


def shared_table(belief: Belief) -> Belief:
    """Return the belief for others to keep: whatever is put into it from now on makes a new one."""
    return replace(belief, nodes=dict(belief.nodes))


def put(belief: Belief, node: NodeBelief) -> Belief:
    """Return the belief with this node in place of its former self."""
    nodes = belief.nodes
    if nodes.get(node.name) is node:
        return belief
    if isinstance(nodes, _OwnTable):
        nodes[node.name] = node
        return belief
    return replace(belief, nodes={**nodes, node.name: node})


def put_all(belief: Belief, nodes: Iterable[NodeBelief]) -> Belief:
    """Return the belief with each of these nodes in place of its former self."""
    for node in nodes:
        belief = put(belief, node)
    return belief


def _node(belief: Belief, node: NodeBelief, event: m.Event, now: float) -> NodeBelief:
    match event:
        case m.HostLooked(_, by, raylets, detail, about, facts, starting):
            seen = HostView(
                now, by, reached=True, raylets=raylets, detail=detail, facts=facts, starting=starting
            )
            return _looked(node, seen, about, now)
        case m.HostUnreachable(_, by, detail, about):
            return _looked(node, HostView(now, by, reached=False, detail=detail), about, now)
        case m.LookFailed(_, by, detail):
            return replace(node, look_begun_at=None, look_trouble=(by, detail))
        case m.PeerFailed(_, by, detail):
            return replace(node, peer_begun_at=None, peer_trouble=(by, detail))
        case m.RepairEnded():
            return _repair_ended(node, event, now)
        case m.RayTold(_, node_id, False):
            return _refused_by_ray(node, node_id, now)
        case m.RayTold() | m.DrainAnswered():
            return node  # noted when it was ordered
    known = node.incarnation
    if known is None or getattr(event, "node_id", None) != known.node_id:
        return node
    return _of_incarnation(belief, node, event, now)


def _of_incarnation(belief: Belief, node: NodeBelief, event: m.Event, now: float) -> NodeBelief:
    match event:
        case m.PeerPlaced():
            return proofs.placed(belief, node, event, now)
        case m.TaskMissed():
            return proofs.missed(belief, node, now)
        case m.HeartbeatAnswered(_, _, rtt_ms, last_ms):
            return silence.answered(node, rtt_ms, last_ms, now)
        case m.WorkListed(_, _, work) if node.work_asked_at is not None:  # else nobody wants to know any more
            return replace(node, work=replace(work, at=now))
        case m.HeartbeatMissed(_, _, how, detail, waited_s):
            return silence.missed(node, how, detail, waited_s, now)
        case m.PeerChecked(_, _, by, how, detail):
            # It tells of the moment it was asked, not of that of its answer.
            at = now if node.peer_begun_at is None else node.peer_begun_at
            node = node if how is not None else replace(node, reached_at=at)
            return replace(
                node, peer_view=PeerView(at, by, how, detail), peer_begun_at=None, peer_trouble=None
            )
        case m.TaskRan(_, node_id):
            return proofs.ran(node, node_id)
        case m.NodeProbed(_, _, report):
            return gpus.noted(replace(node, probe=replace(report, at=now)), now)
    return node


def _looked(node: NodeBelief, view: HostView, about: str | None, now: float) -> NodeBelief:
    """A look tells of the moment it began, and of the incarnation that it was asked about."""
    begun_at, node = node.look_begun_at, replace(node, look_begun_at=None, look_trouble=None)
    if about is not None and (node.incarnation is None or node.incarnation.node_id != about):
        return node
    view = view if begun_at is None else replace(view, at=begun_at)
    before, silent_at = node.host_view, node.heartbeat.first_missed_at
    if before is not None and before.reached == view.reached and before.at >= (silent_at or 0.0):
        since = before.since
    else:
        since = silence.reached_since(node, now) if view.reached else view.at
    ours = node.incarnation.node_id if node.incarnation is not None else None
    if view.facts.greets and any(r.node_id == ours for r in view.raylets):
        node = replace(node, reached_at=view.at)
    doubles = view.raylets if len(view.raylets) > 1 else () if view.reached else node.doubles
    return replace(node, host_view=replace(view, since=since), doubles=doubles)


def _refused_by_ray(node: NodeBelief, node_id: str, now: float) -> NodeBelief:
    """The GCS did not take our word: it is said again later, should it still be true."""
    attempts = tuple(replace(a, told=False) if a.fence_node_id == node_id else a for a in node.attempts)
    told = None if node.told_id == node_id else node.told_id
    return replace(node, told_id=told, attempts=attempts, tell_after=now + TELL_AGAIN_S)


def _repair_ended(node: NodeBelief, event: m.RepairEnded, now: float) -> NodeBelief:
    attempts = tuple(
        replace(
            a,
            ended_at=now,
            ok=event.ok,
            detail=event.detail,
            curable=event.curable,
            begun=event.begun or event.ok,
        )
        if a.number == event.attempt and a.ended_at is None
        else a
        for a in node.attempts
    )
    return replace(node, attempts=attempts)


def _listed(belief: Belief, rows: Iterable[m.NodeRow], now: float) -> Belief:
    rows = tuple(rows)
    newest: dict[str, m.NodeRow] = {}
    several: dict[str, list[m.NodeRow]] = {}
    for row in rows:
        best = newest.setdefault(row.name, row)
        if best is not row:
            several.setdefault(row.name, [best]).append(row)
            newest[row.name] = max(best, row, key=_age)
    for name, lives in several.items():
        if name in belief.nodes:
            newest[name] = _life(belief.nodes[name], newest[name], lives)
    belief = put_all(belief, [_row(node, newest.get(name), now) for name, node in belief.nodes.items()])
    belief = put_all(belief, _doubled(belief.nodes, rows))
    seen = belief.observer
    back_at = seen.gcs_back_at if seen.gcs_silent_since is None else now
    observer = replace(seen, gcs_answered_at=now, gcs_silent_since=None, gcs_back_at=back_at)
    return replace(belief, observer=observer)


def _life(node: NodeBelief, newest: m.NodeRow, lives: Iterable[m.NodeRow]) -> m.NodeRow:
    """The newest life of a name; if that has ended, an older one that its host shows, or was taken up so."""
    if newest.alive:
        return newest
    shown = {r.node_id for r in node.host_view.raylets} if node.host_view is not None else set()
    known = node.incarnation.node_id if node.incarnation is not None else node.stopped_id
    taken_up = known if node.former_id == newest.node_id else None
    older = [r for r in lives if (r.alive and r.node_id in shown) or r.node_id == taken_up]
    return max(older, key=_age, default=newest)


def _age(row: m.NodeRow) -> tuple[int, bool]:
    return row.started_at_ms, row.alive


def _doubled(nodes: Mapping[str, NodeBelief], rows: tuple[m.NodeRow, ...]) -> list[NodeBelief]:
    """Count the live rows of each name, and find those that share a host under a name of their own."""
    live = [row for row in rows if row.alive]
    named = Counter(row.name for row in live)
    hosts = Counter(n.incarnation.address for n in nodes.values() if n.incarnation is not None)
    unknown: dict[str, tuple[str, ...]] = {}
    for row in live:
        if row.name not in nodes and hosts[row.address] == 1:  # on one machine they all share it
            unknown[row.address] = (*unknown.get(row.address, ()), row.name)
    found = []
    for name, node in nodes.items():
        strangers = unknown.get(node.incarnation.address, ()) if node.incarnation is not None else ()
        if (node.rows_alive, node.strangers) != (named[name], strangers):
            found.append(replace(node, rows_alive=named[name], strangers=strangers))
    return found


def _row(node: NodeBelief, row: m.NodeRow | None, now: float) -> NodeBelief:
    since = now if node.unlisted_at is None else node.unlisted_at
    if row is None:
        known = node.incarnation is not None
        return replace(node, listed_alive=False, unlisted_at=since) if known else node
    if node.incarnation is None and row.node_id == node.stopped_id and not row.alive:
        return node
    if node.incarnation is None or row.node_id != node.incarnation.node_id:
        node = replace(
            node,
            former_id=node.incarnation.node_id if node.incarnation is not None else node.former_id,
            incarnation=Incarnation(row.node_id, row.address, row.port, row.started_at_ms),
            heartbeat=Heartbeat(),
            stale_until=None,
            work=None,
            work_asked_at=None,
            drain_ends_at=None,
            host_view=None,
            peer_view=None,
            peer_task=None,
            peer_begun_at=None,
            reached_at=None,
            proven_id=None,
            probe=None,
            proof_asked_at=None,
            proof_begun_at=None,
            proof_misses=0,
            proof_missed_at=None,
            listed_alive=None,
        )
        since = now
    gpus = row.gpus if row.alive else node.registered_gpus
    if (node.listed_alive, node.gcs_detail, node.registered_gpus) == (row.alive, row.death, gpus):
        return node
    return replace(
        node,
        listed_alive=row.alive,
        unlisted_at=None if row.alive else since,
        gcs_detail=row.death,
        registered_gpus=gpus,
    )


def _observer(observer: Observer, event: m.Event, now: float) -> Observer:
    match event:
        case m.GcsWentSilent():
            since = now if observer.gcs_silent_since is None else observer.gcs_silent_since
            return replace(observer, gcs_silent_since=since)
        case m.HeartbeatsSwept(rotation_s):
            return replace(observer, rotation_s=rotation_s)
        case m.SlackChanged(stuck):
            return replace(observer, slack_stuck=stuck)
        case m.JournalChanged(trouble):
            return replace(observer, journal_trouble=trouble)
    return observer
