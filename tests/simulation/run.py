"""A night of random harm, told in numbers: `python -m tests.simulation.run --seed 1 --hours 3`."""

import argparse
import statistics
from functools import partial

from grid_agent.core import messages as m
from grid_agent.core import report
from grid_agent.core.model import Policy, State
from grid_agent.testing import Chances, SimulatedCluster

UNKIND = Chances(heartbeat_lost=0.01, start_fails=0.1, start_crashes=0.05, answer_lost=0.02)
NOISE = Chances(heartbeat_lost=0.05)
SETTLE_S = 1000.0


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
            partial(cluster.cut, [name], dice.uniform(1, 400)),
            partial(cluster.cut, cluster.workers, dice.uniform(1, 400)),
            partial(cluster.gcs_outage, dice.uniform(1, 60)),
        )
    )()


def person(cluster: SimulatedCluster) -> None:
    """Somebody looks by now and then: what is stopped or given up is started again, mostly."""
    if cluster.belief.breaker.opened_at is not None:
        cluster.say(m.PersonSaid(m.Verb.CLOSE_BREAKER, "somebody", "looked at it"))
    for name in cluster.workers:
        if cluster.state(name) in (State.CORDONED, State.GAVE_UP) and cluster.rng.random() < 0.7:
            cluster.stop(name)
            cluster.run(2)
            cluster.start(name)


def night(seed: int, workers: int, hours: float, *, every_s: float = 5.0) -> SimulatedCluster:
    """Run so many hours of harm, then let the dust settle."""
    cluster = SimulatedCluster(seed, workers, Policy(heartbeat_every_s=every_s), UNKIND)
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
    return cluster


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--workers", type=int, default=8)
    parser.add_argument("--hours", type=float, default=3.0)
    given = parser.parse_args()
    cluster = night(given.seed, given.workers, given.hours, every_s=1.0)
    took = sorted(seconds for _, seconds in cluster.detections)
    orders = [o for _, o in cluster.log]
    print(f"seed {given.seed}, {given.workers} workers, {given.hours} h: {report.sentence(cluster.belief)}")
    if took:
        print(f"deaths {len(took)}: found within 2 s {sum(t < 2 for t in took)}")
        print(f"found after {statistics.median(took):.2f} s (median), {took[-1]:.1f} s (last)")
    print(f"restarts {sum(isinstance(o, m.RestartWorker) for o in orders)}")
    print(f"false repairs {len(cluster.false_repairs)}, doubles {len(cluster.doubles)}")
    print(
        f"incidents {len(cluster.belief.incidents)}, messages {sum(isinstance(o, m.Notify) for o in orders)}"
    )


if __name__ == "__main__":
    main()
