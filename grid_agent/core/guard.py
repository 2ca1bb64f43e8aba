"""May we act? A list of questions; the first that says no is the answer, with its name.

Pure. It is asked before every repair and for every report, so that what is refused is always shown.
Called by `repair`, `step` and `report`; `docs/guards.md` is printed from SETTINGS.
"""

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime

from grid_agent.core import awareness, facts, ladder, placement, planned
from grid_agent.core.model import Belief, NodeBelief, Word
from grid_agent.core.policy import Policy
from grid_agent.core.seen import LiveWork
from grid_agent.core.terms import GONE, Cause, Refusal, Rung, State

WITNESSES = 2
# These hand the node to a person.
FINAL = frozenset({Refusal.NODE_BUDGET, Refusal.NOT_CURABLE, Refusal.FLAPPING})
# What a person who asks for a repair has weighed.
SPARED = frozenset(
    {Refusal.ONE_WITNESS, Refusal.NOT_CURABLE, Refusal.FLAPPING, Refusal.NODE_BUDGET}
    | {Refusal.DO_NOT_DISTURB, Refusal.BACKING_OFF, Refusal.CLUSTER_BUDGET}
)
# Each guard, in the order in which they are asked -> what sets it, with the default.
SETTINGS: Mapping[Refusal, str] = {
    Refusal.HEAD: "always",
    Refusal.STOPPED_BY_PERSON: "`stop.py --node`, until `start.py`",
    Refusal.CORDONED: "`grid-agent cordon`, until `uncordon`",
    Refusal.OBSERVING: "`agent.mode: heal`",
    Refusal.PAUSED: "`grid-agent pause --for`, until then or `resume`",
    Refusal.BREAKER: "`guards.breaker_nodes: 3`, until `grid-agent breaker close`",
    Refusal.GCS_SILENT: "always",
    Refusal.OBSERVER_SICK: "always; 1 s late",
    Refusal.MASS_FAILURE: "`guards.mass_minimum: 2`, `guards.mass_window_s: 10`",
    Refusal.HOST_UNREACHABLE: "always",
    Refusal.NOT_CURABLE: "always",
    Refusal.ONE_WITNESS: "always",
    Refusal.FLAPPING: "`guards.flap_deaths: 4`, `guards.flap_window_s: 600`",
    Refusal.NODE_BUDGET: "`guards.node_repairs: 4`, `guards.node_window_s: 1800`, `guards.tries_per_rung: 2`",
    Refusal.DO_NOT_DISTURB: "`guards.do_not_disturb: []`",
    Refusal.BACKING_OFF: "`guards.backoff_s: 2`, `guards.backoff_most_s: 60`, `guards.probation_s: 300`",
    Refusal.IN_FLIGHT: "always",
    Refusal.CLUSTER_BUDGET: "`guards.cluster_repairs: 10`, `guards.cluster_window_s: 600`",
    Refusal.NO_REPAIRER: "`can_repair` of the nodes",
    Refusal.LIVE_WORK: "`guards.disrupt: false`, or `grid-agent repair NODE --disrupt`",
}


def refusal(belief: Belief, node: NodeBelief, now: float, policy: Policy) -> Refusal | None:
    """Return why `node` may not be restarted now, or None: permitted."""
    spared = SPARED if node.asked is not None else frozenset()
    asked = _questions(belief, node, now, policy)
    return next((why for no, why in asked if no and why not in spared), None)


def refusals(belief: Belief, node: NodeBelief, now: float, policy: Policy) -> list[Refusal]:
    """Every guard that would refuse now, in the order in which they are asked."""
    return [why for no, why in _questions(belief, node, now, policy) if no]


def _questions(
    belief: Belief, node: NodeBelief, now: float, policy: Policy
) -> Iterator[tuple[bool, Refusal]]:
    """One question at a time, the dearest last; nobody asks on after the first no."""
    silent = belief.observer.gcs_silent_since
    yield node.role == "head", Refusal.HEAD
    yield node.stopped, Refusal.STOPPED_BY_PERSON
    yield node.cordon is not None, Refusal.CORDONED
    yield policy.mode == "observe", Refusal.OBSERVING
    yield belief.paused is not None, Refusal.PAUSED
    yield belief.breaker.opened_at is not None, Refusal.BREAKER
    yield silent is not None or belief.observer.gcs_answered_at is None, Refusal.GCS_SILENT
    yield awareness.sick(belief.observer), Refusal.OBSERVER_SICK
    yield belief.holding_since is not None, Refusal.MASS_FAILURE
    yield ladder.rung(node, policy) is Rung.WAIT, Refusal.HOST_UNREACHABLE
    yield not ladder.curable(node), Refusal.NOT_CURABLE
    yield not node.verdict_stands or len(facts.against(node)) < WITNESSES, Refusal.ONE_WITNESS
    yield ladder.flapping(node, now, policy), Refusal.FLAPPING
    yield ladder.used_up(node, now, policy), Refusal.NODE_BUDGET
    yield quiet_until(now, policy) is not None, Refusal.DO_NOT_DISTURB
    yield node.next_attempt_at is not None and now < node.next_attempt_at, Refusal.BACKING_OFF
    yield any(n.in_flight or n.state is State.REPAIRING for n in belief.nodes.values()), Refusal.IN_FLIGHT
    yield ladder.cluster_used_up(belief, now, policy), Refusal.CLUSTER_BUDGET
    yield placement.choose(belief, node) is None, Refusal.NO_REPAIRER
    yield planned.in_the_way(node, policy), Refusal.LIVE_WORK


def explain(no: Refusal, belief: Belief, node: NodeBelief, now: float, policy: Policy) -> str:
    """Return the refusal as people read it: with who said so and why, how many, and until when."""
    match no:
        case Refusal.PAUSED if belief.paused is not None:
            return f"{no} ({said(belief.paused)}); grid-agent resume ends it"
        case Refusal.CORDONED if node.cordon is not None:
            return f"{no} ({said(node.cordon)}); grid-agent uncordon {node.name} ends it"
        case Refusal.BREAKER:
            return f"{no} with grid-agent breaker close --reason: {belief.breaker.why}"
        case Refusal.LIVE_WORK if node.work is not None:
            return (
                f"{no}: {work(node.work)}; grid-agent repair {node.name} --disrupt restarts it all the same"
            )
        case Refusal.DO_NOT_DISTURB:
            until = quiet_until(now, policy)
            return f"{no}" if until is None else f"{no} until {clock(until)}"
        case Refusal.FLAPPING:
            return f"{no}: {len(node.deaths)} deaths within {policy.flap_window_s:.0f} s"
        case Refusal.NODE_BUDGET:
            tries = len(ladder.recent(node, now, policy))
            return f"{no}: {tries} within {policy.node_window_s:.0f} s, at most {policy.node_attempts}"
        case Refusal.CLUSTER_BUDGET:
            most = f"at most {policy.cluster_attempts} within {policy.cluster_window_s:.0f} s"
            return f"{no}: {most}"
    return str(no)


def work(found: LiveWork) -> str:
    """What runs there, in a few words."""
    if found.trouble is not None:
        return f"what runs there could not be listed ({found.trouble})"
    counts = ", ".join(f"{count} {kind}" for kind, count in found.counts.items() if count)
    return counts + (f" ({', '.join(found.names[:5])})" if found.names else "")


def said(word: Word) -> str:
    """Who said it, until when, and why."""
    until = "" if word.until_at is None else f" until {clock(word.until_at)}"
    return f"{word.by}{until}: {word.reason}"


def clock(at: float) -> str:
    """A time as people read it, UTC."""
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M UTC")


def quiet_until(now: float, policy: Policy) -> float | None:
    """Return the end of the do-not-disturb hours that `now` is in, or None. They may pass midnight."""
    minute_of_day = int(now // 60) % 1440
    ends = []
    for begins, ends_at in policy.do_not_disturb:
        if (minute_of_day - begins) % 1440 < (ends_at - begins) % 1440:
            ends.append((ends_at - minute_of_day) % 1440)
    return (now // 60 + max(ends)) * 60 if ends else None


def markdown() -> str:
    """The guards as a table, for the docs."""
    rows = [f"| {no.name.lower()} | {setting} | {no} |" for no, setting in SETTINGS.items()]
    return "\n".join(("| guard | set by, with its default | what it says |", "|---|---|---|", *rows)) + "\n"


def may_tell(belief: Belief, node: NodeBelief, now: float, policy: Policy, *, fenced: bool) -> bool:
    """Whether Ray may be told that an incarnation is dead: telling ends a raylet that lives.

    One that a repair has `fenced` is gone for certain; any other needs a verdict that stands.
    """
    observer = belief.observer
    silent = observer.gcs_silent_since
    if policy.mode == "observe" or node.stopped or node.cordon or belief.paused:
        return False
    if awareness.sick(observer):
        return False
    if silent is not None or (node.tell_after is not None and now < node.tell_after):
        return False
    proven = node.verdict_stands and len(facts.against(node)) >= WITNESSES
    return fenced or (proven and (belief.holding_since is None or node.cause in GONE))


def failing(belief: Belief, now: float, policy: Policy) -> tuple[str, ...]:
    """The workers that left ALIVE within the mass-failure window, or whose host nobody reaches.

    A death proven on its host leaves the count after the window; a host out of reach never does,
    because it may be us that are cut off.
    """
    return tuple(
        n.name
        for n in belief.nodes.values()
        if n.failed_at is not None  # first: it is None for nearly every node
        and n.role == "worker"
        and n.state in (State.SUSPECT, State.DEAD, State.REPAIRING, State.GAVE_UP)
        and (now - n.failed_at < policy.mass_window_s or n.cause is Cause.HOST_DOWN)
    )


def mass_failure(belief: Belief, now: float, policy: Policy) -> bool:
    """Half or more of the workers, and at least `mass_minimum`, are failing."""
    lost = len(failing(belief, now, policy))
    if lost < policy.mass_minimum:
        return False
    return 2 * lost >= sum(n.role == "worker" for n in belief.nodes.values())
