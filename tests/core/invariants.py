"""What must hold of any history of events and orders, whatever the core thinks.

Shares no code with the core's decisions: it reads the raw log of events and orders and works out for itself
who had complained of a node, since when, and what was under way. Types of messages are all it borrows.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from grid_agent.core import messages as m
from grid_agent.core.model import Belief, NodeBelief
from grid_agent.core.policy import Policy

ORDERS = (
    m.LookAtHost,
    m.AskPeer,
    m.ProveFromPeer,
    m.ProveNode,
    m.TellRay,
    m.RestartWorker,
    m.Notify,
)


@dataclass
class Incarnation:
    """The complaints about one life of a node; each is the time since when it has been made."""

    missed_since: float | None = None
    unlisted_since: float | None = None
    no_task_since: float | None = None

    def complaints(self) -> dict[str, float]:
        named = {"heartbeat": self.missed_since, "gcs": self.unlisted_since, "task": self.no_task_since}
        return {who: at for who, at in named.items() if at is not None}


@dataclass
class Witnesses:
    """An independent bookkeeper: folds the raw log and raises AssertionError where a rule is broken."""

    policy: Policy
    names: frozenset[str]
    head: str
    lives: dict[tuple[str, str], Incarnation] = field(default_factory=dict)
    newest: dict[str, str] = field(default_factory=dict)
    looked_at: dict[str, float] = field(default_factory=dict)
    rows: dict[str, m.NodeRow] = field(default_factory=dict)  # every life that was ever listed
    ran: set[str] = field(default_factory=set)  # the lives on which a task has run
    late: bool = False  # so was our own loop when it last said so
    blind_at: float = -math.inf  # the agent could not reach itself, or the clock jumped
    silent: set[str] = field(default_factory=set)  # whose newest listed life missed its last heartbeat
    taken_out: set[str] = field(default_factory=set)  # by people, once; what it was before is then forgotten
    peers_said: dict[tuple[str, str, str], float] = field(default_factory=dict)
    gcs_silent_since: float | None = None
    gcs_ever: bool = False
    stopped: frozenset[str] = frozenset()
    paused_until: float | None = None
    cordoned_until: dict[str, float] = field(default_factory=dict)
    flight: tuple[str, int, float] | None = None
    restarts: dict[str, list[float]] = field(default_factory=dict)
    fences: dict[tuple[str, int], str | None] = field(default_factory=dict)
    fenced: set[tuple[str, str]] = field(default_factory=set)
    told: set[tuple[str, str]] = field(default_factory=set)
    steps_shown: dict[int, tuple[str, ...]] = field(default_factory=dict)

    # --- events --------------------------------------------------------------------------------

    def saw(self, now: float, event: m.Event) -> None:
        match event:
            case m.NodesListed(rows):
                self._listed(now, rows)
            case m.GcsWentSilent():
                self.gcs_silent_since = now if self.gcs_silent_since is None else self.gcs_silent_since
            case m.PeopleStopped() | m.PersonSaid():
                self._said(now, event)
            case m.LoopLagged() | m.SelfChecked():
                self._doubted(now, event)
            case m.HostLooked() | m.HostUnreachable():
                self._looked(now, event)
            case m.RepairEnded(name, attempt, ok):
                self._ended(name, attempt, ok=ok, begun=event.begun or ok)
            case m.RayTold(name, node_id, False):
                self.told.discard((name, node_id))  # it was not taken: it may be said again
            case _:
                self._complained(now, event)

    def _doubted(self, now: float, event: m.LoopLagged | m.SelfChecked) -> None:
        if isinstance(event, m.LoopLagged):
            self.late = event.lag_ms >= self.policy.lag_warn_ms
        elif event.loopback_ms is None or abs(event.clock_step_s) >= 5.0:
            self.blind_at = now

    def _looked(self, now: float, seen: m.HostLooked | m.HostUnreachable) -> None:
        """A look at which the raylet is there and answers is no complaint, and the end of those before it."""
        name, raylets = seen.node, seen.raylets if isinstance(seen, m.HostLooked) else ()
        there = any(r.node_id == self.newest.get(name) for r in raylets)
        if there and isinstance(seen, m.HostLooked) and seen.facts.greets:
            self.looked_at.pop(name, None)
        else:
            self.looked_at[name] = now

    def _said(self, now: float, said: m.PersonSaid | m.PeopleStopped) -> None:
        if isinstance(said, m.PeopleStopped):
            self.taken_out |= said.nodes
            for name in self.stopped - said.nodes:
                self.restarts.pop(name, None)  # a person let it go on: its count starts again
            self.stopped = said.nodes & self.names
            return
        until = math.inf if said.for_s is None else now + said.for_s
        match said.verb:
            case m.Verb.PAUSE:
                self.paused_until = until
            case m.Verb.RESUME:
                self.paused_until = None
            case m.Verb.CORDON if said.node is not None and said.node != self.head:
                self.taken_out.add(said.node)
                self.cordoned_until[said.node] = until
                self.restarts.pop(said.node, None)
            case m.Verb.UNCORDON if said.node is not None:
                self.cordoned_until.pop(said.node, None)

    def _complained(self, now: float, event: m.Event) -> None:
        match event:
            case m.HeartbeatAnswered(name, node_id):
                self._life(name, node_id).missed_since = None
                if self.newest.get(name) == node_id:
                    self.silent.discard(name)
            case m.PeerChecked(name, node_id, by, how):
                self._peer(now, name, node_id, by, against=how is not None)
            case m.PeerPlaced(name, node_id, by, ran):
                self._peer(now, name, node_id, by, against=not ran)
            case m.HeartbeatMissed(name, node_id):
                life = self._life(name, node_id)
                life.missed_since = now if life.missed_since is None else life.missed_since
                if self.newest.get(name) == node_id:
                    self.silent.add(name)
            case m.TaskRan(name, node_id):
                self.ran.add(node_id)
                self._life(name, node_id).no_task_since = None
            case m.TaskMissed(name, node_id):
                life = self._life(name, node_id)
                life.no_task_since = now if life.no_task_since is None else life.no_task_since

    def _peer(self, now: float, name: str, node_id: str, by: str, *, against: bool) -> None:
        assert by not in (name, self.head), f"{by} is no peer of {name}"
        for key in [k for k in self.peers_said if k[:2] == (name, node_id)]:
            del self.peers_said[key]  # the last word of a peer counts
        if against:
            self.peers_said[name, node_id, by] = now

    def _life(self, name: str, node_id: str) -> Incarnation:
        return self.lives.setdefault((name, node_id), Incarnation())

    def _listed(self, now: float, rows: Iterable[m.NodeRow]) -> None:
        self.gcs_silent_since, self.gcs_ever = None, True
        rows = tuple(rows)
        self.rows.update({row.node_id: row for row in rows})
        best: dict[str, m.NodeRow] = {}
        for row in sorted(rows, key=lambda r: (r.started_at_ms, r.alive)):
            best[row.name] = row
        for name, row in best.items():
            if self.newest.get(name) != row.node_id or not row.alive:
                self.silent.discard(name)
            self.newest[name] = row.node_id if row.alive else ""
        for (name, node_id), life in self.lives.items():
            shown = best.get(name)
            alive = shown is not None and shown.node_id == node_id and shown.alive
            life.unlisted_since = None if alive else (life.unlisted_since or now)
        for name, row in best.items():
            if not row.alive:
                life = self._life(name, row.node_id)
                life.unlisted_since = life.unlisted_since or now

    def _ended(self, name: str, attempt: int, *, ok: bool, begun: bool) -> None:
        if self.flight is None or self.flight[:2] != (name, attempt):
            return
        self.flight = None
        if not begun:
            self.restarts.get(name, [])[-1:] = []  # refused before anything was done: no restart
        fence = self.fences.get((name, attempt))
        if ok and fence is not None:
            self.fenced.add((name, fence))

    # --- orders --------------------------------------------------------------------------------

    def ordered(self, now: float, order: m.Order) -> None:
        match order:
            case m.RestartWorker():
                self._may_act(now, order.node)
                self._restart(now, order)
            case m.TellRay(name, node_id):
                self._may_act(now, name)
                assert (name, node_id) not in self.told, f"Ray was told twice about {node_id}"
                self.told.add((name, node_id))
                if (name, node_id) not in self.fenced and not self._outlived(name, node_id):
                    self._two_witnesses(name, node_id)
            case m.AskPeer(name, _, by) | m.ProveFromPeer(name, _, by):
                assert by not in (name, self.head), f"{by} is asked about {name}"
                silent = self.silent - self.taken_out
                assert by not in silent, f"{by} is silent itself, and asked about {name}"
            case m.Notify(incident):
                texts = tuple(s.text for s in incident.steps)
                before = self.steps_shown.get(incident.id, ())
                assert texts[: len(before)] == before, f"incident {incident.id} forgot a step"
                self.steps_shown[incident.id] = texts

    def _may_act(self, now: float, name: str) -> None:
        assert self.policy.mode != "observe", f"acted on {name} in observe mode"
        assert name not in self.stopped, f"acted on {name}, which a person stopped"
        assert now >= self.cordoned_until.get(name, 0.0), f"acted on {name}, which a person cordoned"
        assert self.paused_until is None or now >= self.paused_until, f"acted on {name}, repairs paused"
        assert name != self.head, "acted on the head"
        assert not self.late, f"acted on {name}, our own loop late"
        assert now - self.blind_at >= 2.0, f"acted on {name}, unable to reach ourselves"
        silent = self.gcs_silent_since
        assert silent is None, f"acted on {name}, the GCS silent"
        assert self.gcs_ever, f"acted on {name} before the GCS ever answered"

    def _restart(self, now: float, order: m.RestartWorker) -> None:
        assert order.run_on != order.node, f"{order.node} is to repair itself"
        if self.flight is not None:
            name, number, since = self.flight
            assert now - since >= self.policy.repair_timeout_s, f"{order.node}: {name}/{number} is under way"
        assert (order.node, order.attempt) not in self.fences, f"attempt {order.attempt} was used before"
        self.flight = (order.node, order.attempt, now)
        self.fences[order.node, order.attempt] = order.fence_node_id
        at = self.restarts.setdefault(order.node, [])
        at.append(now)
        recent = sum(now - t < self.policy.node_window_s for t in at)
        if not order.by_person:  # who asks for it has weighed that
            assert recent <= self.policy.node_attempts, f"{order.node}: {recent} restarts within the window"
            self._two_witnesses(order.node, order.fence_node_id)

    def _outlived(self, name: str, node_id: str) -> bool:
        """A later raylet of this node has run a task on the very port: one port is one process."""
        old = self.rows.get(node_id)
        return old is not None and any(
            (row.name, row.address, row.port) == (name, old.address, old.port)
            and row.started_at_ms > old.started_at_ms
            and row.node_id in self.ran
            for row in self.rows.values()
        )

    def _two_witnesses(self, name: str, node_id: str | None) -> None:
        if node_id is None:  # never listed, or let go by a person: the GCS shows no life, a look was made
            assert name in self.looked_at, f"{name}: nobody looked at its host"
            return
        complaints = self._life(name, node_id).complaints()
        looked = self.looked_at.get(name)
        if looked is not None and complaints and looked >= min(complaints.values()):
            complaints["host"] = looked
        begun = min(complaints.values(), default=0.0)
        said = [t for (n, i, _), t in self.peers_said.items() if (n, i) == (name, node_id) and t >= begun]
        if said and complaints:
            complaints["peer"] = max(said)
        assert len(complaints) >= 2, f"{name} ({node_id}): only {sorted(complaints) or 'nobody'} complained"


def believed(belief: Belief) -> None:
    """What must hold of the belief itself after every step."""
    attached = {n.incident_id for n in belief.nodes.values() if n.incident_id is not None}
    for incident in belief.incidents.values():
        if incident.phase == "resolved":
            assert incident.id not in attached, f"a node hangs on the resolved incident {incident.id}"
            continue
        states = [belief.nodes[name].state for name in incident.nodes]
        assert any(s != "ALIVE" for s in states), f"incident {incident.id} is open and all its nodes ALIVE"
        assert incident.id in attached, f"incident {incident.id} is open and nobody's"
        attached_to = [n for n in belief.nodes.values() if n.incident_id == incident.id]
        hopeless = any(_hopeless(n, str(incident.cause)) for n in attached_to)
        assert (incident.phase == "needs a person") == hopeless, f"incident {incident.id}: {incident.phase}"
    for node in belief.nodes.values():
        if node.state in ("DEAD", "REPAIRING", "GAVE_UP"):
            assert node.incident_id is not None, f"{node.name} is {node.state} without an incident"
            assert node.cause is not None, f"{node.name} is {node.state} without a cause"
        if node.state == "ALIVE":
            assert node.cause is None, f"{node.name} is ALIVE with a cause"


def _hopeless(node: NodeBelief, told: str) -> bool:
    """Nothing that the agent may do helps. `told` is the cause that people know."""
    broken = node.state == "SUSPECT" and node.cause in ("head cannot reach it", "port blocked")
    unclear = told == "not clear" and node.state in ("SUSPECT", "JOINING")
    return broken or unclear or node.state == "GAVE_UP"


def check_log(
    log: Sequence[tuple[float, m.Event | m.Order]], *, policy: Policy, names: Iterable[str], head: str
) -> Witnesses:
    """Read a whole log of events and orders, in the order in which they happened."""
    witnesses = Witnesses(policy, frozenset(names), head)
    for now, entry in log:
        if isinstance(entry, ORDERS):
            witnesses.ordered(now, entry)
        else:
            witnesses.saw(now, entry)
    return witnesses
