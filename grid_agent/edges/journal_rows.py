"""The journal's rows: how a belief becomes rows and rows a belief again. No thread, no waiting, no decision.

Times are stored as the loop's clock had them, with what the system's clock said at that moment; they are
moved to the clock of the agent that reads them. Called by `journal`.
"""

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from grid_agent.core import codec, history
from grid_agent.core import messages as m
from grid_agent.core.codec import CodecError
from grid_agent.core.incident_model import Incident, Step
from grid_agent.core.model import Belief, NodeBelief
from grid_agent.core.terms import State
from grid_agent.edges.journal_file import JournalFile, Write

log = logging.getLogger("grid_agent.journal")

JUMP_S = 1.0  # a wall clock that was set by less is not worth moving every time for
KEEP = 200  # incidents in memory
BUNDLES = 10  # of one incident
BUNDLE_CHARS = 64_000
STALE_S = 900.0  # a look that led to no incident by then was about something else
SENT = (
    "INSERT INTO outbox VALUES (?, ?, ?, ?)"
    " ON CONFLICT DO UPDATE SET shown = excluded.shown, body = excluded.body"
)
# The outbox's word that people have to be told, or that nobody is.
WANTED = "INSERT INTO outbox VALUES (?, ?, 0, '{}') ON CONFLICT DO UPDATE SET wanted = excluded.wanted"
NOT_WANTED = (
    "INSERT INTO outbox VALUES (?, ?2, ?2, '{}')"
    " ON CONFLICT DO UPDATE SET wanted = excluded.wanted, shown = excluded.shown"
)
# ruff: noqa: S608 - RECENT is from this file
UNTOLD = "SELECT incident_id FROM outbox WHERE shown < wanted"
RECENT = f"SELECT id FROM incident WHERE open OR id > (SELECT max(id) FROM incident) - ? OR id IN ({UNTOLD})"


@dataclass(frozen=True, slots=True)
class Sent:
    """What Slack shows of one incident: the revision, and what else the outbox wants to know again."""

    shown: int
    body: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Read:
    """What a file held. `belief` None: nothing yet. `ended`: a person has stopped the cluster since."""

    epoch: int = 0
    belief: Belief | None = None
    sent: Mapping[int, Sent] | None = None
    ended: bool = False


@dataclass(frozen=True, slots=True)
class Batch:
    """What one transaction writes: the difference of two beliefs, everything where `saved` is None."""

    saved: Belief | None
    belief: Belief
    lines: Sequence[history.Line]
    sent: Mapping[int, Sent]
    epoch: int
    clock: Mapping[str, float]
    bundles: Sequence[Write] = ()
    told: bool = True  # people are told of incidents; False: nobody waits for a message


class Bundles:
    """What hosts showed of a failure, from the look before the verdict; kept once an incident is open.

    Of each node an incident keeps the first: what comes later shows what the repairs made of it.
    """

    def __init__(self) -> None:
        self.due: list[Write] = []
        self._seen: dict[str, tuple[float, dict[str, Any]]] = {}
        self._kept: dict[int, frozenset[str]] = {}  # incident -> nodes

    def take(self, belief: Belief, events: Sequence[m.Event], now: float) -> None:
        """Note what the events bring, and make rows of what belongs to an open incident."""
        for event in events:
            if isinstance(event, m.HostLooked) and event.bundle is not None:
                self._seen[event.node] = (now, {**event.bundle, "host": codec.encode(event.facts)})
        for name, (at, body) in list(self._seen.items()):
            node = belief.nodes.get(name)
            recovered = node is not None and node.state is State.ALIVE and node.incident_id is None
            if node is None or recovered or now - at > STALE_S:
                del self._seen[name]
            elif node.incident_id is not None:
                del self._seen[name]
                self._keep(node.incident_id, node, at, body)

    def _keep(self, incident_id: int, node: NodeBelief, at: float, body: dict[str, Any]) -> None:
        kept = self._kept.get(incident_id, frozenset())
        if node.name not in kept and len(kept) < BUNDLES and len(self.due) < BUNDLES:
            self._kept[incident_id] = kept | {node.name}
            probe = None if node.probe is None else codec.encode(node.probe)
            text = _json({**body, "probe": probe})
            text = text if len(text) <= BUNDLE_CHARS else _json({"cut": text[:BUNDLE_CHARS]})
            self.due.append(
                ("INSERT OR IGNORE INTO bundle VALUES (?, ?, ?, ?)", (incident_id, node.name, at, text))
            )
        self._kept = {k: v for k, v in self._kept.items() if k > incident_id - KEEP}


# --- reading ---


def read_all(file: JournalFile, fresh: Belief, now: float) -> Read:
    """What the file holds, on the clock whose time is `now`; what is not stored is taken from `fresh`.

    Raises:
        sqlite3.Error, DamagedError: The file cannot be read.
        ValueError: What it holds makes no sense.
    """
    meta = {key: json.loads(value) for key, value in file.rows("SELECT key, value FROM meta")}
    sent = {
        number: Sent(shown, json.loads(body))
        for number, shown, body in file.rows("SELECT incident_id, shown, body FROM outbox")
    }
    epoch = int(meta.get("epoch", 0))
    if "cluster" not in meta:
        return Read(epoch, None, sent)
    shift_s = _shift_s(meta.get("clock"), now)
    belief = codec.decode(Belief, meta["cluster"], onto=fresh, shift_s=shift_s)
    nodes = {**fresh.nodes, **dict(_nodes(file, fresh, shift_s))}
    incidents = {i.id: i for i in _incidents(file, RECENT, KEEP, shift_s)}
    next_id = max([belief.next_incident_id, *(i + 1 for i in incidents)])
    belief = replace(belief, nodes=nodes, incidents=incidents, next_incident_id=next_id)
    return Read(epoch, belief, sent, "ended" in meta)


def _shift_s(clock: Any, now: float) -> float:
    """From the clock of the agent that wrote to ours; what was written is never in the future."""
    try:
        wall, loop = float(clock["wall"]), float(clock["loop"])
    except (KeyError, TypeError, ValueError):
        return 0.0
    shift_s = min(wall, now) - loop
    return shift_s if abs(shift_s) >= JUMP_S or loop > now else 0.0


def _nodes(file: JournalFile, fresh: Belief, shift_s: float) -> Iterator[tuple[str, NodeBelief]]:
    for name, body in file.rows("SELECT name, body FROM node"):
        onto = fresh.nodes.get(name)
        if onto is None:
            continue  # no longer in the cluster file
        try:
            yield name, codec.decode(NodeBelief, json.loads(body), onto=onto, shift_s=shift_s)
        except (CodecError, ValueError) as error:
            log.warning("what was known of %s cannot be read: %s", name, error)


def _incidents(file: JournalFile, which: str, value: int, shift_s: float) -> Iterator[Incident]:
    """Those whose ids the SELECT `which` gives, with its one value."""
    steps: dict[int, list[Step]] = {}
    found = file.rows(
        f"SELECT incident_id, at, body FROM step WHERE incident_id IN ({which}) ORDER BY number", (value,)
    )
    for number, at, text in found:
        steps.setdefault(number, []).append(Step(at + shift_s, text))
    for number, body in file.rows(
        f"SELECT id, body FROM incident WHERE id IN ({which}) ORDER BY id", (value,)
    ):
        try:
            plain = {**json.loads(body), "steps": []}
            incident = codec.decode(Incident, plain, shift_s=shift_s)
        except (CodecError, ValueError) as error:
            log.warning("incident %d cannot be read: %s", number, error)
            continue
        yield replace(incident, steps=tuple(steps.get(number, ())))


def read_incident(file: JournalFile, incident_id: int) -> Incident | None:
    """One incident, also of those that are too old to be kept in memory; None where there is none."""
    return next(_incidents(file, "SELECT ?", incident_id, 0.0), None)


def read_story(file: JournalFile, incident_id: int) -> dict[str, Any]:
    """The history of one incident, and what its hosts showed before anything was done."""
    lines = file.rows(
        "SELECT at, kind, node, body FROM history WHERE incident_id = ? ORDER BY id", (incident_id,)
    )
    bundles = file.rows(
        "SELECT node, at, body FROM bundle WHERE incident_id = ? ORDER BY node", (incident_id,)
    )
    return {
        "history": [
            {"at": at, "kind": kind, "node": node, **json.loads(body)} for at, kind, node, body in lines
        ],
        "bundles": [{"node": node, "at": at, **json.loads(body)} for node, at, body in bundles],
    }


# --- what to write ---


def same(one: Belief | None, other: Belief) -> bool:
    """Whether both would be stored alike."""
    if one is other:
        return True
    if one is None or one.nodes.keys() != other.nodes.keys() or one.incidents is not other.incidents:
        return False
    if not codec.same(one, other):
        return False
    return all(one.nodes[k] is n or codec.same(one.nodes[k], n) for k, n in other.nodes.items())


def writes(batch: Batch) -> Iterator[Write]:
    """The transaction of one step."""
    yield write_meta("epoch", batch.epoch)
    yield write_meta("clock", batch.clock)
    yield write_meta("cluster", codec.encode(batch.belief))
    if batch.saved is None:
        yield "DELETE FROM meta WHERE key = 'ended'", ()
        yield "DELETE FROM node", ()
    yield from _changes(batch.saved, batch.belief, told=batch.told)
    yield from (write_sent(number, one) for number, one in batch.sent.items())
    yield from map(_line, batch.lines)
    yield from batch.bundles


def _changes(saved: Belief | None, belief: Belief, *, told: bool) -> Iterator[Write]:
    old_nodes = {} if saved is None else saved.nodes
    old_incidents = {} if saved is None else saved.incidents
    for name in old_nodes.keys() - belief.nodes.keys():
        yield "DELETE FROM node WHERE name = ?", (name,)
    for name, node in belief.nodes.items():
        if not codec.same(old_nodes.get(name), node):
            yield "INSERT OR REPLACE INTO node VALUES (?, ?)", (name, _json(codec.encode(node)))
    for number, incident in belief.incidents.items():
        if old_incidents.get(number) is not incident:
            yield from _incident(old_incidents.get(number), incident)
            yield WANTED if told else NOT_WANTED, (number, incident.revision)


def _incident(old: Incident | None, new: Incident) -> Iterator[Write]:
    """Its row, and the steps that are new."""
    body = codec.encode(replace(new, steps=()))
    yield "INSERT OR REPLACE INTO incident VALUES (?, ?, ?)", (new.id, new.open, _json(body))
    known = () if old is None else old.steps
    alike = next((k for k, (a, b) in enumerate(zip(known, new.steps, strict=False)) if a != b), None)
    first = min(len(known), len(new.steps)) if alike is None else alike
    if old is None or first < len(known):
        yield "DELETE FROM step WHERE incident_id = ? AND number >= ?", (new.id, first)
    for number, step in enumerate(new.steps[first:], first):
        yield "INSERT INTO step VALUES (?, ?, ?, ?)", (new.id, number, step.at, step.text)


def write_sent(incident_id: int, sent: Sent) -> Write:
    """The row of what Slack shows."""
    return SENT, (incident_id, sent.shown, sent.shown, _json(sent.body))


def _line(line: history.Line) -> Write:
    values = (line.at, line.kind, line.node, line.incident_id, _json(line.body))
    return "INSERT INTO history (at, kind, node, incident_id, body) VALUES (?, ?, ?, ?, ?)", values


def write_meta(key: str, value: Any) -> Write:
    """One value of which there is one."""
    return "INSERT OR REPLACE INTO meta VALUES (?, ?)", (key, _json(value))


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
