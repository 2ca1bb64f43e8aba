"""A time without a whole head, as the keeper wrote it down: one incident, told by the agent that came back.

The agent cannot see this itself: mostly it is gone with the head. Pure; `fold` and `settle` are called by
`step`, `incident` also by the keeper's own message to Slack, so that both say the same.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any
from uuid import NAMESPACE_URL, uuid5

from grid_agent.core import evidence
from grid_agent.core import messages as m
from grid_agent.core.incident_model import Incident, Outage, Phase, Step
from grid_agent.core.model import Belief
from grid_agent.core.terms import Cause, State

NEW_ID = "the cluster has a new id, which no old raylet can talk to: each worker has to be started again"
OLD_S = 120.0  # an outage that was over for so long before this agent heard of it has been told by another


def outage(body: Mapping[str, Any]) -> Outage:
    """The keeper's record as a value.

    Raises:
        KeyError, TypeError, ValueError: It is not one.
    """
    slack = body.get("slack") or {}
    restored_at = body["restored_at"]
    return Outage(
        began_at=float(body["began_at"]),
        cause=str(body["cause"]),
        steps=tuple(Step(float(at), str(text)) for at, text in body["steps"]),
        restored_at=None if restored_at is None else float(restored_at),
        store_lost=body.get("store_lost"),
        channel_id=slack.get("channel_id"),
        ts=slack.get("ts"),
    )


def incident(found: Outage, name: str, host: str, number: int = 0) -> Incident:
    """What people are shown of it."""
    return Incident(
        id=number,
        nodes=(name,),
        host=host,
        cause=Cause.HEAD_DOWN,
        phase=Phase.FIRING,
        opened_at=found.began_at,
        failed_at=found.began_at,
        evidence=(f"the keeper on the head host: {found.cause}",),
        steps=found.steps,
    )


def key(began_at: float) -> str:
    """The key under which the keeper posts of one outage: a second try does not make a second message."""
    return str(uuid5(NAMESPACE_URL, f"grid-agent/head-outage/{began_at}"))


def fold(belief: Belief, event: m.Event) -> Belief:
    """Return the belief with the keeper's word in it; anything else changes nothing here."""
    if not isinstance(event, m.HeadOutage) or event.outage == belief.head_outage:
        return belief
    found, known = event.outage, belief.head_outage
    belief = replace(belief, head_outage=found)
    if known is not None and known.began_at == found.began_at:
        belief = _go_on(belief, found.steps[len(known.steps) :])
        return _gather(belief) if found.store_lost and not known.store_lost else belief
    if found.restored_at is not None and belief.started_at - found.restored_at > OLD_S:
        return belief
    head = next((n for n in belief.nodes.values() if n.role == "head"), None)
    if head is None:
        return belief
    made = incident(found, head.name, head.host, belief.next_incident_id)
    belief = replace(
        belief,
        next_incident_id=made.id + 1,
        incidents={**belief.incidents, made.id: made},
        head_incident_id=made.id,
    )
    return _gather(belief) if found.store_lost else belief


def settle(belief: Belief, now: float) -> Belief:
    """The incident is over when the keeper says so and a task has run on the head."""
    told, found = _open(belief), belief.head_outage
    if told is None or found is None or found.restored_at is None:
        return belief
    if any(n.role == "head" and n.state is not State.ALIVE for n in belief.nodes.values()):
        return belief
    if any(n.incident_id == told.id for n in belief.nodes.values()):
        return belief  # workers of the lost cluster are on their way
    return _put(belief, replace(told, phase=Phase.RESOLVED, resolved_at=now))


def _go_on(belief: Belief, steps: tuple[Step, ...]) -> Belief:
    told = _open(belief)
    if told is None or not steps:
        return belief
    return _put(belief, replace(told, steps=(*told.steps, *steps)))


def _gather(belief: Belief) -> Belief:
    """The cluster has a new id, and every raylet of the old one is lost: one incident for all of it."""
    told = _open(belief)
    if told is None:
        return belief
    lost = [
        n for n in belief.nodes.values() if n.role == "worker" and not n.stopped and n.incident_id is None
    ]
    steps = (*told.steps, Step(told.steps[-1].at if told.steps else told.opened_at, NEW_ID))
    names = (*told.nodes, *(n.name for n in lost))
    belief = evidence.put_all(belief, [replace(n, incident_id=told.id) for n in lost])
    return _put(belief, replace(told, nodes=names, steps=steps))


def _open(belief: Belief) -> Incident | None:
    number = belief.head_incident_id
    told = belief.incidents.get(number) if number is not None else None
    return told if told is not None and told.open else None


def _put(belief: Belief, told: Incident) -> Belief:
    return replace(belief, incidents={**belief.incidents, told.id: told})
