"""The facts about a node: who saw what, when, and how much it weighs. Two that weigh 1 make a death.

Weights: 1 speaks against the incarnation by itself; 0.5 is one silence, which proves nothing yet; 0 is shown
to people and proves nothing (a look that failed, a check that a peer found well). What the GCS says of a node
that it lists as ALIVE is no fact at all. Pure; read by `verdict`, `guard` and `report`.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from grid_agent.core import silence
from grid_agent.core.model import NodeBelief
from grid_agent.core.seen import HostFacts, HostView, PeerView, Raylet
from grid_agent.core.terms import Miss, State

FULL = 1.0
HALF = 0.5
NONE = 0.0
STALE_S = 30.0  # a look so much older than the last miss tells of another time
PEER_STALE_S = 10.0  # so does a check by a peer, which is cheap and made anew every few seconds
ENOUGH = 2  # silences, or missed tasks, that weigh as one witness
CLOCK_S = 30.0  # a difference of clocks worth telling
CROWDED = {"cpu": 60.0, "memory": 20.0, "io": 50.0}  # percent of the time that something waited
LOADED = 4.0  # runnable processes for each CPU


@dataclass(frozen=True, slots=True)
class Fact:
    """`witness` is heartbeat, host, peer, gcs, task or peer task; `at` is None where it has no one moment."""

    witness: str
    at: float | None
    weight: float
    text: str


def facts(node: NodeBelief) -> tuple[Fact, ...]:
    """Everything that is known of the node's incarnation and not outdated."""
    return tuple(_facts(node))


def of_old_connections(node: NodeBelief, now: float) -> Iterator[Fact]:
    """Why tasks may hang on a node that is well. It explains, and weighs nothing."""
    until = node.stale_until
    if until is not None and now < until:
        text = f"it was silent: Ray's connections from before may stay so for {until - now:.0f} s more (TCP)"
        yield Fact("connections", None, NONE, text)


def against(node: NodeBelief) -> dict[str, str]:
    """The independent witnesses that speak against the node's incarnation: who -> what they saw."""
    return {fact.witness: fact.text for fact in _facts(node) if fact.weight >= FULL}


def _facts(node: NodeBelief) -> Iterator[Fact]:
    beat = node.heartbeat
    if beat.misses and beat.last_miss is not None:
        detail = f" ({beat.detail})" if beat.detail else ""
        heavy = beat.last_miss is Miss.REFUSED or beat.misses >= ENOUGH
        yield Fact(
            "heartbeat",
            beat.first_missed_at,
            FULL if heavy else HALF,
            f"heartbeat from the head {beat.last_miss}{detail}",
        )
    yield from _of_the_host(node)
    yield from _of_the_peer(node)
    if node.listed_alive is False:
        text = f"the GCS says DEAD ({node.gcs_detail})" if node.gcs_detail else "the GCS says DEAD"
        yield Fact("gcs", node.unlisted_at, FULL, text)
    elif node.incarnation is None:
        yield Fact("gcs", None, FULL, "the GCS does not list it")
    if node.proof_misses:
        text = f"a pinned no-op task missed its deadline {node.proof_misses} times"
        yield Fact("task", node.proof_missed_at, FULL if node.proof_misses >= ENOUGH else HALF, text)


def _of_the_host(node: NodeBelief) -> Iterator[Fact]:
    view = node.host_view
    if node.look_trouble is not None:
        yield Fact("look", None, NONE, "{} could not look at its host: {}".format(*node.look_trouble))
    if view is None:
        return
    if node.incarnation is None:
        if view.reached:
            text = f"{view.by} looked at the host: {len(view.raylets)} raylets of this name"
            yield Fact("host", view.at, FULL, text)
        elif fresh(node):
            yield Fact("host", view.at, FULL, f"{view.by} cannot reach the host ({view.detail})")
        return
    if not fresh(node):
        return
    if not view.reached:
        yield Fact("host", view.at, FULL, f"{view.by} cannot reach the host ({view.detail})")
        return
    alive, troubled = running(node), node.heartbeat.misses or node.listed_alive is False
    if alive is None:
        yield Fact("host", view.at, FULL, f"{view.by} looked at the host: no such raylet process")
    elif view.facts.greets and node.listed_alive is not False:
        yield Fact("host", view.at, NONE, f"{view.by} looked at the host: {_there(alive)} and answers there")
    else:  # it is there, and that is the matter: hung, or a zombie
        weight = FULL if troubled else NONE
        yield Fact("host", view.at, weight, f"{view.by} looked at the host: {_there(alive)}")
    yield from _words(view)


def _there(raylet: Raylet) -> str:
    """The process, and what lives below it: ending it ends that, too."""
    text = f"pid {raylet.pid} is there, state {raylet.stat}"
    if raylet.workers:
        busy = f", with {', '.join(raylet.busy)}" if raylet.busy else ""
        text += f"; {raylet.workers} worker processes of it still run{busy}"
    return text


def _words(view: HostView) -> Iterator[Fact]:
    seen = view.facts
    if seen.port and seen.listening is not None:
        how = "listens" if seen.listening else "does not listen"
        yield Fact("port", view.at, NONE, f"the raylet {how} on port {seen.port} there")
    for who, lines in (("kernel", seen.oom), ("raylet log", seen.death), ("agent log", seen.agent)):
        if lines:
            yield Fact(who, view.at, NONE, f"{who}: {' | '.join(lines[-2:])}")
    ahead_s = seen.clock_ahead_s
    if ahead_s is not None and abs(ahead_s) >= CLOCK_S:
        way = "ahead of" if ahead_s > 0 else "behind"
        yield Fact("clock", view.at, NONE, f"its clock is {abs(ahead_s):.0f} s {way} that of the agent")
    strain = straining(seen)
    if strain:
        yield Fact("load", view.at, NONE, f"the host is under strain: {strain}")


def _of_the_peer(node: NodeBelief) -> Iterator[Fact]:
    view, task = peer(node), node.peer_task
    if view is not None and view.how is None:
        yield Fact("peer", view.at, NONE, f"{view.by} reaches it")
    elif view is not None:
        detail = f" ({view.detail})" if view.detail else ""
        yield Fact("peer", view.at, FULL, f"check by {view.by} {view.how}{detail}")
    elif node.peer_trouble is not None:
        yield Fact("peer", None, NONE, "{} could not be asked: {}".format(*node.peer_trouble))
    since = silence.tried_since(node)
    if task is not None and since is not None and task.at >= since:
        if task.ran:
            yield Fact("peer task", task.at, NONE, f"a no-op placed by {task.by} has run there")
        else:
            yield Fact("peer task", task.at, FULL, f"a no-op placed by {task.by} did not run: {task.detail}")


def running(node: NodeBelief) -> Raylet | None:
    """The raylet process of this incarnation in the last look at its host, or None."""
    view, known = node.host_view, node.incarnation
    if view is None or known is None:
        return None
    return next((r for r in view.raylets if r.node_id == known.node_id), None)


def fresh(node: NodeBelief) -> bool:
    """The last look at the host is not older than what made us look, and not outdated since."""
    view = node.host_view
    if view is None:
        return False
    if node.incarnation is None and node.state is not State.JOINING:
        return True  # nothing of it was ever listed, so nothing newer speaks against the look
    if running(node) is None and _answered_since(node, view.at):
        return False
    return view.at >= _trouble_began_at(node) and not outdated(node, view.at, STALE_S)


def peer(node: NodeBelief) -> PeerView | None:
    """What a peer found, where that is about the present trouble and not outdated; else None."""
    view = node.peer_view
    if view is None or view.at < _trouble_began_at(node) or outdated(node, view.at, PEER_STALE_S):
        return None
    return None if view.how is not None and _answered_since(node, view.at) else view


def _trouble_began_at(node: NodeBelief) -> float:
    began = (node.heartbeat.first_missed_at, node.unlisted_at, node.proof_missed_at)
    otherwise = node.since if node.failed_at is None else node.failed_at
    return min((at for at in began if at is not None), default=otherwise)


def _answered_since(node: NodeBelief, at: float) -> bool:
    """The raylet itself has answered: nobody who found it gone before that is right any more."""
    return node.heartbeat.answered_at is not None and node.heartbeat.answered_at > at


def outdated(node: NodeBelief, at: float, after_s: float) -> bool:
    """The heartbeat goes on failing while this is not renewed."""
    missed_at = node.heartbeat.missed_at
    return missed_at is not None and missed_at - at > after_s


def doubled(node: NodeBelief) -> str | None:
    """Which raylets share the node's host though one should be there; None: it is alone."""
    if len(node.doubles) > 1:
        pids = " and ".join(f"pid {r.pid}" for r in node.doubles)
        return f"{len(node.doubles)} raylets of this name run on its host, {pids}: end all but one"
    if node.strangers:
        names = ", ".join(node.strangers)
        return f"its host also runs a raylet that is not in the file: {names}"
    return None


def straining(seen: HostFacts) -> str:
    """Why the host may merely be slow: its load or its pressure; empty where it is at ease."""
    found = [
        f"{kind} pressure {seen.pressure[kind]:.0f} %"
        for kind, limit in CROWDED.items()
        if seen.pressure.get(kind, 0.0) >= limit
    ]
    if seen.load1 is not None and seen.cpus and seen.load1 >= LOADED * seen.cpus:
        found.append(f"load {seen.load1:.0f} on {seen.cpus} CPUs")
    if found and seen.mem_available_mb is not None and seen.mem_total_mb:
        found.append(f"{seen.mem_available_mb} of {seen.mem_total_mb} MB free")
    return ", ".join(found)
