"""`/cluster/metrics`: the belief as Prometheus text. Names follow prometheus.io/docs/practices/naming.

A view of a snapshot; it never waits for anything.
"""

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from grid_agent.core import incidents
from grid_agent.core.model import Belief
from grid_agent.core.terms import Refusal, State


def text(belief: Belief, now: float) -> bytes:
    """The exposition of one snapshot."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Snapshot(belief, now))
    return generate_latest(registry)


class _Snapshot:
    def __init__(self, belief: Belief, now: float) -> None:
        self._belief = belief
        self._now = now

    def collect(self) -> Iterator[Metric]:
        yield from self._nodes()
        belief = self._belief
        yield CounterMetricFamily("grid_agent_repairs", "Repairs started.", value=belief.repairs.started)
        yield CounterMetricFamily(
            "grid_agent_repairs_failed", "Repairs that failed.", value=belief.repairs.failed
        )
        yield CounterMetricFamily(
            "grid_agent_incidents", "Incidents opened.", value=belief.next_incident_id - 1
        )
        yield _gauge("grid_agent_incidents_open", "Incidents not resolved.", incidents.opened(belief))
        refused = CounterMetricFamily(
            "grid_agent_repairs_refused", "Repairs held, by guard.", labels=["guard"]
        )
        for no in Refusal:
            refused.add_metric([no.name.lower()], belief.repairs.refused.get(no.name.lower(), 0))
        yield refused
        yield _gauge("grid_agent_paused", "1 while a person has paused repairs.", belief.paused is not None)
        opened = belief.breaker.opened_at is not None
        yield _gauge("grid_agent_breaker_open", "1 while the breaker stops every repair.", opened)
        lag_s = belief.observer.loop_lag_ms / 1000.0
        yield _gauge("grid_agent_loop_lag_seconds", "How late the agent's loop last ran.", lag_s)
        if belief.observer.rotation_s is not None:
            yield _gauge(
                "grid_agent_heartbeat_rotation_seconds",
                "Until each raylet has been checked once; crashes are news at once.",
                belief.observer.rotation_s,
            )
        age_s = max(0.0, self._now - belief.stepped_at)
        yield _gauge("grid_agent_belief_age_seconds", "Age of what is shown here.", age_s)

    def _nodes(self) -> Iterator[Metric]:
        up = GaugeMetricFamily("grid_agent_node_up", "1 while the node is ALIVE.", labels=["node", "role"])
        state = GaugeMetricFamily(
            "grid_agent_node_state", "1 for the node's present state.", labels=["node", "state"]
        )
        rtt = GaugeMetricFamily(
            "grid_agent_heartbeat_rtt_seconds", "Round trip of the last heartbeat.", labels=["node"]
        )
        age = GaugeMetricFamily(
            "grid_agent_heartbeat_age_seconds", "Time since the last answered heartbeat.", labels=["node"]
        )
        after = GaugeMetricFamily(
            "grid_agent_next_attempt_timestamp_seconds", "When the next repair may begin.", labels=["node"]
        )
        tries = GaugeMetricFamily(
            "grid_agent_node_tries", "Repairs since it last was well for long.", labels=["node"]
        )
        for node in self._belief.nodes.values():
            tries.add_metric([node.name], node.tries)
            if node.next_attempt_at is not None:
                after.add_metric([node.name], node.next_attempt_at)
            up.add_metric([node.name, node.role], float(node.state is State.ALIVE))
            for each in State:
                state.add_metric([node.name, str(each)], float(node.state is each))
            if node.heartbeat.rtt_ms is not None:
                rtt.add_metric([node.name], node.heartbeat.rtt_ms / 1000.0)
            if node.heartbeat.answered_at is not None:
                age.add_metric([node.name], max(0.0, self._now - node.heartbeat.answered_at))
        yield from (up, state, rtt, age, after, tries)


def _gauge(name: str, text_: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(name, text_, value=value)
