"""A night of random harm, told in numbers: `python -m tests.simulation.run --seed 1 --hours 3`.

With `--benign COUNT`, instead, so many disturbances of which nobody should die: pauses, slow nodes, lossy
links, late answers, short cuts, ways broken for the head only, a silent GCS, a starved agent. `--workers` up
to 999.
"""

import argparse
import statistics
from collections import Counter
from functools import partial

from grid_agent.core import messages as m
from grid_agent.core import report
from grid_agent.core.model import NodeBelief
from grid_agent.core.policy import Policy
from grid_agent.core.terms import Refusal, State
from grid_agent.testing import Chances, SimulatedCluster

UNKIND = Chances(heartbeat_lost=0.01, start_fails=0.1, start_crashes=0.05, answer_lost=0.02)
LIARS = Chances(
    look_late=0.1,
    look_twice=0.1,
    look_lost=0.1,
    look_lies=0.05,
    start_fails=0.1,
    start_lies=0.1,
    answer_lost=0.1,
    answer_twice=0.1,
)
NOISE = Chances(heartbeat_lost=0.05)
SETTLE_S = 1000.0
LONGEST_S = 12 * 3600.0  # for a hundred nodes, one after the other and ten in 10 minutes
REST_S = 5.0  # between two disturbances of one node, where another is free: chained they may exceed hang_s


def storm(cluster: SimulatedCluster) -> None:
    """Kill some of the workers at once, or all."""
    for name in cluster.rng.sample(cluster.workers, k=cluster.rng.randint(1, len(cluster.workers))):
        cluster.kill(name)


def harm(cluster: SimulatedCluster) -> None:
    """Do one bad thing, chosen by the cluster's own dice."""
    dice, name = cluster.rng, cluster.rng.choice(cluster.workers)
    kill = partial(cluster.kill, name)
    dice.choice(
        (
            kill,
            kill,
            kill,
            partial(storm, cluster),
            partial(cluster.stop, name),
            partial(cluster.hang, name),
            partial(cluster.hang, name, dice.uniform(1, 80)),
            partial(cluster.slow, name, dice.uniform(1, 60)),
            partial(cluster.busy, name, dice.uniform(1, 50)),
            partial(cluster.cut, [name], dice.uniform(1, 400)),
            partial(cluster.cut, cluster.workers, dice.uniform(1, 400)),
            partial(cluster.part, [name], dice.uniform(1, 200)),
            partial(cluster.lossy, name, dice.uniform(10, 120), 0.3),
            partial(cluster.delayed, name, dice.uniform(10, 120)),
            partial(cluster.slow_observer, dice.uniform(5, 60)),
            partial(cluster.gcs_outage, dice.uniform(1, 60)),
        )
    )()


def disturb(cluster: SimulatedCluster) -> str:
    """Do one thing of which nobody should die; what it was."""
    dice = cluster.rng
    name = dice.choice([n for n in cluster.workers if cluster.rests(n, REST_S)] or cluster.workers)
    kinds = {
        "raylet paused": partial(cluster.hang, name, dice.uniform(2, 60)),
        "node slow": partial(cluster.slow, name, dice.uniform(2, 60)),
        "disk stalls": partial(cluster.stall, name, dice.uniform(2, 60)),
        "agent restarted": partial(cluster.restart_agent, dice.uniform(1, 40)),
        "node busy": partial(cluster.busy, name, dice.uniform(5, 50)),
        "link loses 30 %": partial(cluster.lossy, name, 60, 0.3),
        "answers late by 0.2-1.5 s": partial(cluster.delayed, name, 60),
        "link cut": partial(cluster.cut, [name], dice.uniform(2, 60)),
        "all links cut": partial(cluster.cut, cluster.workers, dice.uniform(2, 60)),
        "cut off from the head only": partial(cluster.part, [name], dice.uniform(2, 60)),
        "GCS silent": partial(cluster.gcs_outage, dice.uniform(2, 60)),
        "agent starved": partial(cluster.slow_observer, dice.uniform(5, 60)),
    }
    kind = dice.choice(sorted(kinds))
    kinds[kind]()
    return kind


def disturbed(
    seed: int, workers: int, count: int, *, every_s: float = 1.0
) -> tuple[SimulatedCluster, Counter[str]]:
    """So many benign disturbances, sometimes one over the other; what was done."""
    cluster = SimulatedCluster(seed, workers, Policy(heartbeat_every_s=every_s), NOISE)
    cluster.run(30)
    done: Counter[str] = Counter()
    for _ in range(count):
        done[disturb(cluster)] += 1
        cluster.run(cluster.rng.uniform(20, 120))
    cluster.run(200)
    return cluster, done


def person(cluster: SimulatedCluster) -> None:
    """Somebody looks by now and then: what is stopped or given up is started again, mostly."""
    if cluster.belief.breaker.opened_at is not None:
        cluster.say(m.PersonSaid(m.Verb.CLOSE_BREAKER, "somebody", "looked at it"))
    for name in cluster.workers:
        if cluster.state(name) in (State.CORDONED, State.GAVE_UP) and cluster.rng.random() < 0.7:
            cluster.stop(name)
            cluster.run(2)
            cluster.start(name)


def night(
    seed: int, workers: int, hours: float, *, every_s: float = 5.0, chances: Chances = UNKIND
) -> SimulatedCluster:
    """Run so many hours of harm, then let the dust settle."""
    cluster = SimulatedCluster(seed, workers, Policy(heartbeat_every_s=every_s), chances)
    cluster.run(30)
    end = cluster.clock.now + 3600 * hours
    visit = cluster.clock.now + 1800
    while cluster.clock.now < end:
        harm(cluster)
        cluster.run(cluster.rng.expovariate(1 / 240))
        if cluster.clock.now > visit:
            person(cluster)
            visit += 1800
    cluster.run(SETTLE_S)
    while any(map(waiting, cluster.belief.nodes.values())) and cluster.clock.now < end + LONGEST_S:
        cluster.run(SETTLE_S / 4)
    return cluster


def waiting(node: NodeBelief) -> bool:
    """Whether its repair goes on, or comes when others are done."""
    return node.state is State.REPAIRING or node.refusal in (Refusal.IN_FLIGHT, Refusal.CLUSTER_BUDGET)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--workers", type=int, default=8)
    parser.add_argument("--hours", type=float, default=3.0)
    parser.add_argument("--liars", action="store_true", help="looks and repairs come late, twice, or lie")
    parser.add_argument("--benign", type=int, metavar="COUNT", help="so many disturbances instead of harm")
    given = parser.parse_args()
    if given.benign is not None:
        cluster, done = disturbed(given.seed, given.workers, given.benign)
        print(f"seed {given.seed}, {given.workers} workers, {given.benign} benign disturbances")
        for kind, times in sorted(done.items()):
            print(f"  {times:5} x {kind}")
    else:
        chances = LIARS if given.liars else UNKIND
        cluster = night(given.seed, given.workers, given.hours, every_s=1.0, chances=chances)
        print(
            f"seed {given.seed}, {given.workers} workers, {given.hours} h: {report.sentence(cluster.belief)}"
        )
    tell(cluster)


def tell(cluster: SimulatedCluster) -> None:
    """Detection times by what was done and what it was called, and everything that was wrong."""
    took: dict[tuple[str, str], list[float]] = {}
    for found in cluster.found:
        took.setdefault((found.harm, found.cause), []).append(found.took_s)
    for (harm_, cause), times in sorted(took.items()):
        said = f"{len(times):4} times, after {statistics.median(times):7.2f} s ({max(times):.1f} s at most)"
        print(f"  {harm_:8} found as {cause:28} {said}")
    wrong = Counter(cause for _, cause in cluster.false_verdicts)
    print(f"false verdicts {dict(wrong) or 0}")
    orders = [o for _, o in cluster.log]
    restarts, told = (sum(isinstance(o, kind) for o in orders) for kind in (m.RestartWorker, m.TellRay))
    print(f"restarts {restarts}, of raylets that nothing had happened to {len(cluster.false_repairs)}")
    print(f"Ray told {told}, two raylets of one node {len(cluster.doubles)}")
    messages = sum(isinstance(o, m.Notify) for o in orders)
    print(f"incidents {len(cluster.belief.incidents)}, messages {messages}")


if __name__ == "__main__":
    main()
