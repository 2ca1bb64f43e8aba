"""What people have said holds until they say otherwise, or until the time they gave.

Folds their words into the belief and moves the nodes they stopped or cordoned; never acts on its own.
Pure; called by `step`, and `objection` by the HTTP edge before anything is said.
"""

from dataclasses import replace

from grid_agent.core import breaker, evidence, gpu_policy, gpus, guard, incidents, lifecycle, planned
from grid_agent.core import messages as m
from grid_agent.core.model import Ask, Belief, NodeBelief, Word
from grid_agent.core.seen import Heartbeat
from grid_agent.core.terms import State


def objection(belief: Belief, said: m.PersonSaid) -> str | None:
    """Return why these words make no sense now, as one sentence; None: they do."""
    node = belief.nodes.get(said.node) if said.node is not None else None
    match said.verb:
        case m.Verb.UNCORDON if node is not None and node.cordon is None:
            return f"{node.name} is not cordoned" + (
                "; a person stopped it with stop.py, and start.py brings it back" if node.stopped else ""
            )
        case m.Verb.UNCORDON if node is not None and gpu_policy.sick_in_quarantine(node):
            return (
                f"{node.name} is in quarantine, still runs, and {node.gpus.found[0].text}; "
                "it can come back once its GPUs are well, or its raylet has left"
            )
        case m.Verb.CORDON if node is not None and node.role == "head":
            return f"{node.name} is the head, which is never repaired from inside the cluster: pause instead"
        case m.Verb.REPAIR if node is not None and (node.role == "head" or held(node)):
            kept = "the head, which is not repaired from inside the cluster"
            kept = kept if node.role == "head" else "cordoned or stopped: let go of it first"
            return f"{node.name} is {kept}"
        case m.Verb.REPAIR if node is not None and (node.in_flight or node.state is State.REPAIRING):
            return f"{node.name} is being repaired already"
        case m.Verb.RESUME if belief.paused is None:
            return "repairs are not paused"
        case m.Verb.CLOSE_BREAKER if belief.breaker.opened_at is None:
            return "the breaker is closed"
    return None


def sentence(belief: Belief, said: m.PersonSaid) -> str:
    """What holds after these words were heard, for whoever said them."""
    node = belief.nodes.get(said.node) if said.node is not None else None
    match said.verb:
        case m.Verb.PAUSE if belief.paused is not None:
            return f"repairs are paused by {guard.said(belief.paused)}"
        case m.Verb.CORDON if node is not None and node.cordon is not None:
            return f"{node.name} is left alone: cordoned by {guard.said(node.cordon)}"
        case m.Verb.REPAIR if node is not None and node.asked is not None:
            return f"{node.name} is drained first, and then restarted"
        case m.Verb.REPAIR if node is not None:
            return f"{node.name} is being restarted"
    done = {m.Verb.RESUME: "resumed repairs", m.Verb.CLOSE_BREAKER: "closed the breaker"}
    return f"{said.by} {done.get(said.verb, f'{said.verb}ed {said.node}')}: {said.reason}"


def hear(belief: Belief, said: m.Event, now: float) -> Belief:
    """Fold one person's words in; what makes no sense any more changes nothing."""
    if not isinstance(said, m.PersonSaid) or objection(belief, said) is not None:
        return belief
    word = Word(said.by, said.reason, now, None if said.for_s is None else now + said.for_s)
    node = belief.nodes.get(said.node) if said.node is not None else None
    match said.verb:
        case m.Verb.PAUSE:
            return tell_all(replace(belief, paused=word), f"repairs are paused by {guard.said(word)}", now)
        case m.Verb.RESUME:
            return tell_all(replace(belief, paused=None), f"{said.by} resumed repairs: {said.reason}", now)
        case m.Verb.CLOSE_BREAKER:
            text = f"{word.by} closed the breaker: {word.reason}"
            return tell_all(breaker.close(belief, word), text, now)
        case m.Verb.CORDON if node is not None:
            return evidence.put(belief, replace(node, cordon=word))
        case m.Verb.UNCORDON if node is not None:
            return evidence.put(belief, replace(node, cordon=None))
        case m.Verb.REPAIR if node is not None:
            ask = Ask(said.by, said.reason, now, said.disrupt)
            anew = replace(planned.forget(node), asked=ask, tries=0, deaths=())
            return evidence.put(belief, anew)
    return belief


def tell_all(belief: Belief, text: str, now: float) -> Belief:
    """Add a line to every open incident."""
    seen: set[int] = set()
    for node in belief.nodes.values():
        if node.incident_id is not None and node.incident_id not in seen:
            seen.add(node.incident_id)
            belief = incidents.add(belief, node, text, now)
    return belief


def expire(belief: Belief, now: float) -> Belief:
    """What was said until a time ends at that time."""
    if belief.paused is not None and _over(belief.paused, now):
        text = f"the time is over for which {belief.paused.by} had paused repairs"
        belief = tell_all(replace(belief, paused=None), text, now)
    for node in belief.nodes.values():
        if node.cordon is not None and _over(node.cordon, now):
            belief = evidence.put(belief, replace(node, cordon=None))
    return belief


def _over(word: Word, now: float) -> bool:
    return word.until_at is not None and now >= word.until_at


def held(node: NodeBelief) -> bool:
    """A person has taken this node out of the agent's hands, or its release is still to be noticed."""
    return node.stopped or node.cordon is not None or node.state is State.CORDONED


def cordon(belief: Belief, node: NodeBelief, now: float) -> Belief:
    """Move a node that a person stopped, cordoned or let go of."""
    if node.stopped or node.cordon is not None:
        if node.state is State.CORDONED:
            return belief
        cordoned = lifecycle.move(node, State.CORDONED, now, None)
        belief = evidence.put(belief, replace(cordoned, evidence=(), refusal=None))
        who = "a person stopped" if node.cordon is None else "cordoned"
        text = f"{who} {node.name}" + (f" ({guard.said(node.cordon)})" if node.cordon else "")
        return incidents.resolve(belief, belief.nodes[node.name], text, now)
    released = _released(lifecycle.move(node, State.JOINING, now, None))
    return evidence.put(belief, gpus.forgiven(released, now))


def _released(node: NodeBelief) -> NodeBelief:
    """Start from nothing, and leave start.py the time to start it: the stopped raylet's row is no news."""
    known = node.incarnation
    return replace(
        node,
        stopped_id=known.node_id if known else node.stopped_id,
        incarnation=None,
        listed_alive=None,
        unlisted_at=None,
        heartbeat=Heartbeat(),
        host_view=None,
        proven_id=None,
        proof_misses=0,
        attempts=tuple(a for a in node.attempts if a.ended_at is None),
        tries=0,
        deaths=(),
        next_attempt_at=None,
    )
