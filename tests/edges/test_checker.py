"""Checks of a health server that answers, and of one that is not there."""

import subprocess
import sys

from grid_agent.edges.checker import measure
from tests.support.cluster import ROOT, free_port


async def test_a_trace_a_node_with_what_each_check_took() -> None:
    server = subprocess.Popen(
        [sys.executable, "-m", "tests.support.health_server"], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert server.stdout
    said: list[float] = []
    try:
        port = int(server.stdout.readline())
        targets = {"a": ("127.0.0.1", port), "gone": ("127.0.0.1", free_port())}
        found = {t.node: t for t in await measure(targets, 1.0, 0.1, 0.5, said.append)}
    finally:
        server.kill()
        server.communicate(timeout=10)
    assert len(found["a"].checks) == 10
    assert found["a"].unanswered == 0
    assert 0 < found["a"].took_ms[5] < 500
    assert found["gone"].unanswered == len(found["gone"].checks) >= 9
    assert said
