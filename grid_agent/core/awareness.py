"""Doubt of ourselves: the slower we are, the longer everybody else is given.

A score rises at once with each sign of our own trouble and falls by one every `EASE_S` without any. Every
timeout is multiplied by score + 1, as in memberlist (Lifeguard, https://arxiv.org/abs/1707.00788, section
IV-A); from `SICK` on nothing outside is changed. Pure; called by `evidence`, `step` and `guard`.
"""

from dataclasses import replace

from grid_agent.core import messages as m
from grid_agent.core.model import Belief, NodeBelief, Observer
from grid_agent.core.policy import Policy
from grid_agent.core.terms import GONE, Cause, State

MOST = 8
SICK = 4
EASE_S = 2.0
LATE_MS = 250.0  # of the loop or of our own loopback connection: slower than any healthy raylet answers
STALLED_MS = 1000.0
LOST_MS = 10_000.0
CROWDED = 80.0  # percent of the time that something waited for a CPU; no doubt by itself
WAITED_MS = 100.0  # but with this lateness it is
JOBS = 3  # rounds skipped between two checks of ourselves
STEPPED_S = 1.0  # of the wall clock against the monotonic one
JUMPED_S = 5.0
SHARE = 0.25  # of the nodes failing at once


def folded(belief: Belief, event: m.LoopLagged | m.SelfChecked, now: float) -> Belief:
    """Return the belief with what we noticed of ourselves; time in which we did not watch does not count."""
    if isinstance(event, m.SelfChecked):
        return replace(belief, observer=_checked(belief.observer, event, now))
    observer = replace(belief.observer, loop_lag_ms=event.lag_ms)
    points = 0 if event.lag_ms < LATE_MS else 1 if event.lag_ms < STALLED_MS else SICK
    points = MOST if event.lag_ms >= LOST_MS else points
    text = f"the agent's loop ran {event.lag_ms:.0f} ms late"
    belief = replace(belief, observer=_noted(observer, points, (text,) if points else (), now))
    return _unwatched(belief, event.lag_ms / 1000.0, now) if points >= SICK else belief


def sick(observer: Observer) -> bool:
    """We are so slow that we only watch."""
    return observer.score >= SICK


def sentence(observer: Observer) -> str:
    """Why we doubt ourselves, and what follows."""
    why = ", ".join(observer.doubts) or "the agent was slow a moment ago"
    if sick(observer):
        return f"{why}: it only watches"
    return f"{why}: every timeout is {observer.score + 1} times as long"


def stretched(belief: Belief, policy: Policy) -> Policy:
    """Return the policy with every timeout as long as we doubt ourselves, and the many that fail at once."""
    score = belief.observer.score
    factor = 1 + score + _many(belief, policy)
    if factor == 1:
        return policy
    return replace(
        policy,
        suspect_misses=policy.suspect_misses * (1 + score),
        hang_s=policy.hang_s * factor,
        unreachable_s=policy.unreachable_s * factor,
        join_s=policy.join_s * factor,
        zombie_s=policy.zombie_s * factor,
        report_s=policy.report_s * factor,
        undecided_s=policy.undecided_s * factor,
    )


def released(belief: Belief, since: float, now: float) -> Belief:
    """Return the belief after so many failed at once that it was held `since` then.

    That time counts against nobody, for it may have been us: but for a process proven gone, and a start that
    cannot succeed.
    """
    sure = (*GONE, Cause.CANNOT_JOIN)
    doubted = [
        replace(_later(n, now - since, now), failed_at=n.failed_at, verdict_stands=False)
        for n in belief.nodes.values()
        if n.state is State.SUSPECT or (n.state is State.DEAD and n.cause not in sure)
    ]
    return replace(belief, nodes={**belief.nodes, **{n.name: n for n in doubted}})


def _many(belief: Belief, policy: Policy) -> int:
    """One point while a good part of the nodes began to fail within the mass-failure window."""
    lost = sum(
        n.state is State.SUSPECT and belief.stepped_at - (n.failed_at or 0.0) < policy.mass_window_s
        for n in map(belief.nodes.__getitem__, belief.busy)
    )
    return int(lost >= policy.mass_minimum and lost >= SHARE * len(belief.nodes))


def _checked(observer: Observer, seen: m.SelfChecked, now: float) -> Observer:
    waited_ms = max(observer.loop_lag_ms, seen.loopback_ms or 0.0)
    crowded = seen.cpu_pressure is not None and seen.cpu_pressure >= CROWDED and waited_ms >= WAITED_MS
    step_s = abs(seen.clock_step_s)
    signs = (
        (seen.loopback_ms is None, SICK, "the agent cannot reach itself on the loopback"),
        ((seen.loopback_ms or 0.0) >= LATE_MS, 1, f"the loopback took {seen.loopback_ms or 0.0:.0f} ms"),
        (seen.missed_jobs >= JOBS, 1, f"{seen.missed_jobs} rounds were skipped"),
        (crowded, 1, f"CPU pressure of the head is {seen.cpu_pressure or 0.0:.0f} %"),
        (STEPPED_S <= step_s < JUMPED_S, 1, f"the wall clock stepped by {seen.clock_step_s:.1f} s"),
        (step_s >= JUMPED_S, SICK, f"the wall clock jumped by {seen.clock_step_s:.0f} s"),
    )
    found = [(points, text) for true, points, text in signs if true]
    return _noted(observer, sum(points for points, _ in found), tuple(text for _, text in found), now)


def _noted(observer: Observer, points: int, doubts: tuple[str, ...], now: float) -> Observer:
    """The score after this sign of trouble, or after none for some time while the loop is in time."""
    eased = observer.score
    while eased > 0 and observer.loop_lag_ms < STALLED_MS and now - observer.scored_at >= EASE_S:
        eased -= 1
        observer = replace(observer, score=eased, scored_at=observer.scored_at + EASE_S)
    if points:
        return replace(observer, score=max(eased, min(points, MOST)), scored_at=now, doubts=doubts)
    return replace(observer, doubts=()) if eased == 0 and observer.doubts else observer


def _unwatched(belief: Belief, gap_s: float, now: float) -> Belief:
    """What began before we stood still is no older for it; what was seen before proves nothing now."""
    doubted = (n for n in belief.nodes.values() if n.state is not State.ALIVE or _missed(n))
    late = [_later(n, gap_s, now) for n in doubted]
    return replace(belief, nodes={**belief.nodes, **{n.name: n for n in late}})


def _missed(node: NodeBelief) -> bool:
    return bool(node.heartbeat.misses or node.proof_misses)


def _later(node: NodeBelief, gap_s: float, now: float) -> NodeBelief:
    def moved(at: float | None) -> float | None:
        return None if at is None else min(at + gap_s, now)

    view = node.host_view
    return replace(
        node,
        heartbeat=replace(node.heartbeat, first_missed_at=moved(node.heartbeat.first_missed_at)),
        host_view=None if view is None else replace(view, since=moved(view.since)),
        failed_at=moved(node.failed_at),
        unlisted_at=moved(node.unlisted_at),
        proof_missed_at=moved(node.proof_missed_at),
    )
