"""Earlier lives of a node that Ray still takes for alive: they are told to Ray, once a later life is proven.

On hosts of their own a node has a fixed port. A raylet that is killed and started again, before Ray noticed,
answers there for its former self as well: Ray's check asks the port, not the node, and would count the node's
resources twice for as long as the new one lives. One port is one process, and the later start holds it: that
proves the death of the earlier life. Pure; called by `step`.
"""

from collections.abc import Iterable

from grid_agent.core import guard
from grid_agent.core import messages as m
from grid_agent.core.model import Belief
from grid_agent.core.policy import Policy
from grid_agent.core.terms import Cause, State


def bury(belief: Belief, events: Iterable[m.Event], now: float, policy: Policy) -> list[m.TellRay]:
    """An order for each such life that the GCS has just listed, unless a guard forbids to tell it now."""
    listed = (event.rows for event in events if isinstance(event, m.NodesListed))
    return [order for rows in listed for order in _of_rows(belief, rows, now, policy)]


def _of_rows(belief: Belief, rows: Iterable[m.NodeRow], at: float, policy: Policy) -> Iterable[m.TellRay]:
    for row in rows:
        node = belief.nodes.get(row.name)
        if node is None or not row.alive or not row.port:
            continue
        if not guard.may_tell(belief, node, at, policy, fenced=True):
            continue
        now = node.incarnation
        proven = now is not None and node.state is State.ALIVE and node.proven_id == now.node_id
        if now is None or not proven or row.node_id == now.node_id:
            continue
        if (row.address, row.port) == (now.address, now.port) and row.started_at_ms < now.started_at_ms:
            text = f"grid-agent: a later raylet of {row.name} has taken its port {row.port}"
            yield m.TellRay(row.name, row.node_id, Cause.PROCESS_GONE, text)
