"""What people read: `/cluster/health`, the one-sentence status and the story of one node.

Pure views of a belief; answered from memory, whatever hangs elsewhere. Called by the HTTP edge, the CLI's
server side and the log.
"""

from collections import Counter
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Literal

from grid_agent.core import awareness, facts, gpu_report, guard, incidents, ladder
from grid_agent.core.incident_model import Incident
from grid_agent.core.model import Belief, NodeBelief, Word
from grid_agent.core.policy import Policy
from grid_agent.core.terms import NOT_OURS, Cause, Refusal, State

Status = Literal["pass", "warn", "fail"]
STALE_S = 10.0  # an answer older than this says nothing about the cluster any more
GCS_LOST_S = 10.0


def iso(at: float) -> str:
    """A time as UTC ISO 8601 with milliseconds."""
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def health(belief: Belief, now: float, policy: Policy) -> dict[str, Any]:
    """The body of `GET /cluster/health`, whose keys people and tools rely on; `breaker` only while open."""
    body = {
        "status": status(belief, now, policy),
        "time": iso(now),
        "age_s": round(max(0.0, now - belief.stepped_at), 3),
        "mode": policy.mode,
        "paused": None if belief.paused is None else word(belief.paused),
        "observer": observer(belief, now, policy),
        "nodes": [_node(belief, n, now, policy) for n in belief.nodes.values()],
        "incidents": {"open": incidents.opened(belief)},
    }
    opened_at = belief.breaker.opened_at
    if opened_at is None:
        return body
    return {**body, "breaker": {"since": iso(opened_at), "why": belief.breaker.why}}


def word(said: Word) -> dict[str, Any]:
    """What a person said: who, why, since when and until when (null: until taken back)."""
    until = None if said.until_at is None else iso(said.until_at)
    return {"by": said.by, "reason": said.reason, "since": iso(said.at), "until": until}


def status(belief: Belief, now: float, policy: Policy) -> Status:
    """pass, warn or fail by the documented table."""
    if now - belief.stepped_at > STALE_S or _lost(belief, now):
        return "fail"
    worried = (
        any(n.state is not State.ALIVE for n in belief.nodes.values()),
        incidents.opened(belief) > 0,
        any(gpu_report.differ(n) or facts.doubled(n) for n in belief.nodes.values()),
        observer(belief, now, policy)["status"] != "pass",
        belief.observer.slack_stuck is not None,
        belief.paused is not None,
        belief.breaker.opened_at is not None,
    )
    return "warn" if any(worried) else "pass"


def _lost(belief: Belief, now: float) -> bool:
    """Head or GCS unusable, or no worker ALIVE although some are configured."""
    silent = belief.observer.gcs_silent_since
    if belief.observer.gcs_answered_at is None or (silent is not None and now - silent > GCS_LOST_S):
        return True
    workers = [n for n in belief.nodes.values() if n.role == "worker"]
    heads = [n for n in belief.nodes.values() if n.role == "head"]
    return any(_unusable(n, now) for n in heads) or (
        bool(workers) and all(n.state is not State.ALIVE for n in workers)
    )


def _unusable(head: NodeBelief, now: float) -> bool:
    """A head that is merely suspected may be slow; one suspected for long is of no use."""
    if head.state is State.SUSPECT:
        return now - head.since > STALE_S
    return head.state is not State.ALIVE


def observer(belief: Belief, now: float, policy: Policy) -> dict[str, Any]:
    """The agent's view of itself; `detail` says what there is to say.

    A little slowness only stretches the timeouts: it is told, and no warning.
    """
    seen, silent = belief.observer, belief.observer.gcs_silent_since
    doubts = [awareness.sentence(seen)] if awareness.sick(seen) else []
    if silent is not None and now - silent >= policy.gcs_silent_s:
        doubts.append(f"the GCS has not answered for {now - silent:.0f} s")
    if belief.holding_since is not None:
        doubts.append("half or more of the workers are failing at once")
    if seen.slack_stuck is not None:
        doubts.append(f"Slack: {seen.slack_stuck}")
    if seen.journal_trouble is not None:
        doubts.append(f"journal: {seen.journal_trouble}")
    body: dict[str, Any] = {"status": "warn" if doubts else "pass", "loop_lag_ms": round(seen.loop_lag_ms, 1)}
    if seen.rotation_s is not None:
        body["silence_suspected_within_s"] = silence_suspected_within_s(seen.rotation_s, policy)
    said = doubts or ([awareness.sentence(seen)] if seen.score else [])
    return {**body, "detail": "; ".join(said)} if said else body


def silence_suspected_within_s(rotation_s: float, policy: Policy) -> float:
    """The longest that a raylet which falls silent can go unsuspected; a crash is news at once.

    Its turn comes after `rotation_s`; from then on it is checked at every round until enough are missed.
    """
    return round(rotation_s + policy.suspect_misses * policy.heartbeat_every_s, 3)


def _node(belief: Belief, node: NodeBelief, now: float, policy: Policy) -> dict[str, Any]:
    beat = node.heartbeat
    age_s = None if beat.answered_at is None else round(now - beat.answered_at, 3)
    return {
        "name": node.name,
        "host": node.host,
        "role": node.role,
        "state": str(node.state),
        "since": iso(node.since),
        "cause": None if node.cause is None else str(node.cause),
        "heartbeat": {"age_s": age_s, "rtt_ms": _ms(beat.rtt_ms), "last_rtt_ms": _ms(beat.last_rtt_ms)},
        "gpus": gpu_report.counts(node),
        "action": _asked(node) or action(belief, node, now, policy),
    }


def _ms(value: float | None) -> float | None:
    return None if value is None else round(value, 3)


def _asked(node: NodeBelief) -> str | None:
    """What is being done for a person who wants the node restarted."""
    if node.asked is None or node.state is State.REPAIRING:
        return None
    return f"{node.asked.by} asked for a restart; what runs there is listed and drained first"


def action(belief: Belief, node: NodeBelief, now: float, policy: Policy) -> str | None:
    """What is being done about the node, or why nothing is; None for a healthy one."""
    match node.state:
        case State.REPAIRING:
            last = node.attempts[-1]
            tries = len(ladder.recent(node, now, policy))
            return f"restarting by a task on {last.run_on}, attempt {tries} of {policy.node_attempts}"
        case State.DEAD if node.refusal is Refusal.BACKING_OFF and node.next_attempt_at is not None:
            return f"next attempt in {max(0.0, node.next_attempt_at - now):.0f} s"
        case State.DEAD:
            held = node.refusal
            return None if held is None else f"held: {guard.explain(held, belief, node, now, policy)}"
        case State.GAVE_UP:
            last_word = node.attempts[-1].detail if node.attempts and not node.attempts[-1].ok else ""
            return "needs a person: " + (last_word or str(node.refusal or "see why"))
        case State.SUSPECT:
            return _suspected(node)
        case State.CORDONED if node.cordon is not None:
            return f"left alone: cordoned by {guard.said(node.cordon)}"
        case State.CORDONED:
            return "stopped by a person; start.py brings it back"
        case State.JOINING if _unclear(belief, node):
            return "needs a person: it never joined, and nobody can look at its host"
        case State.JOINING:
            return "waiting for it to join and to run a task"
    return facts.doubled(node) or gpu_report.action(node)


def _unclear(belief: Belief, node: NodeBelief) -> bool:
    told = incidents.of(belief, node)
    return told is not None and told.cause is Cause.NOT_CLEAR


def _suspected(node: NodeBelief) -> str:
    if node.cause in NOT_OURS:
        return "needs a person: it runs, and the way from the head to it is broken"
    if node.look_trouble is not None:
        return "{} cannot look at its host: {}".format(*node.look_trouble)
    return "looking at its host; nothing is restarted on suspicion"


def sentence(belief: Belief) -> str:
    """One line for the log: how many nodes are in which state, and who is not well."""
    counts = Counter(n.state for n in belief.nodes.values())
    parts = [f"{counts[s]} {s.value.lower()}" for s in State if counts[s]]
    sick = [
        f"{n.name} {n.state}" + (f" ({n.cause})" if n.cause else "")
        for n in belief.nodes.values()
        if n.state is not State.ALIVE
    ]
    return ", ".join(parts) + (": " + ", ".join(sick) if sick else "")


def incident(value: Incident) -> dict[str, Any]:
    """One incident with its whole timeline, for the API."""
    return {
        "id": value.id,
        "nodes": list(value.nodes),
        "cause": str(value.cause),
        "phase": str(value.phase),
        "failed_at": iso(value.failed_at),
        "opened_at": iso(value.opened_at),
        "resolved_at": None if value.resolved_at is None else iso(value.resolved_at),
        "evidence": list(value.evidence),
        "steps": [{"at": iso(s.at), "text": s.text} for s in value.steps],
    }


def _repairs(belief: Belief, node: NodeBelief, now: float, policy: Policy) -> dict[str, Any]:
    """How much of each limit is used up, what is tried next, and every guard that would refuse it now."""
    deaths = sum(now - at < policy.flap_window_s for at in node.deaths)
    refused = guard.refusals(belief, node, now, policy) if node.state in (State.DEAD, State.GAVE_UP) else []
    return {
        "node": {"used": len(ladder.recent(node, now, policy)), "limit": policy.node_attempts},
        "cluster": {"used": ladder.in_cluster(belief, now, policy), "limit": policy.cluster_attempts},
        "deaths": {"used": deaths, "limit": policy.flap_deaths},
        "tries": node.tries,
        "rung": str(ladder.rung(node, policy)),
        "guards": {no.name.lower(): guard.explain(no, belief, node, now, policy) for no in refused},
    }


def kept(story: Mapping[str, Any]) -> dict[str, Any]:
    """What the journal keeps of an incident besides, for the API: its history, and what its hosts showed."""
    return {
        "history": [{**line, "at": iso(line["at"])} for line in story.get("history", ())],
        "bundles": [{**one, "at": iso(one["at"])} for one in story.get("bundles", ())],
    }


def why(belief: Belief, node: NodeBelief, now: float, policy: Policy) -> dict[str, Any]:
    """One node on one screen: what is seen, what was concluded, done and refused, what comes next.

    A healthy node shows its last incident.
    """
    known = [i for i in belief.incidents.values() if node.name in i.nodes]
    last = max(known, key=lambda i: i.id) if known else None
    row = _node(belief, node, now, policy)
    return {
        **row,
        "incarnation": None if node.incarnation is None else node.incarnation.node_id,
        "evidence": list(node.evidence),
        "seen_now": facts.against(node),
        "facts": [
            {
                "witness": fact.witness,
                "age_s": None if fact.at is None else round(max(0.0, now - fact.at), 1),
                "weight": fact.weight,
                "text": fact.text,
            }
            for fact in (*facts.facts(node), *facts.of_old_connections(node, now))
        ],
        "refused": None if node.refusal is None else guard.explain(node.refusal, belief, node, now, policy),
        "repairs": _repairs(belief, node, now, policy),
        "attempts": [
            {"number": a.number, "at": iso(a.started_at), "run_on": a.run_on, "ok": a.ok, "detail": a.detail}
            for a in ladder.recent(node, now, policy)
        ],
        "next_attempt_at": None if node.next_attempt_at is None else iso(node.next_attempt_at),
        "incident": None if last is None else incident(last),
        "gpus_seen": gpu_report.details(node),
    }
