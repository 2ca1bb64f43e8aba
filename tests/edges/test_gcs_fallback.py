"""Another Ray than the one proved: its public table, and no word to it about a death."""

import pytest
import ray

from grid_agent.core import messages as m
from grid_agent.core.terms import Cause
from grid_agent.edges.gcs import Gcs

ROWS = [
    {
        "NodeName": name,
        "NodeID": f"{name}-id",
        "NodeManagerAddress": "10.0.0.1",
        "NodeManagerPort": 4711,
        "Alive": alive,
        "Resources": {"GPU": 2.0, **({"node:__internal_head__": 1.0} if name == "head" else {})},
        "DeathReasonMessage": "" if alive else "it died",
    }
    for name, alive in (("head", True), ("gpu1", False), ("gpu1", True))
]


@pytest.fixture
def newer(monkeypatch: pytest.MonkeyPatch) -> Gcs:
    monkeypatch.setattr(ray, "__version__", "2.61.0")
    monkeypatch.setattr(ray, "nodes", lambda: ROWS)
    return Gcs("127.0.0.1:1")


async def test_the_table_is_the_public_one_and_the_last_row_of_a_name_the_newest(newer: Gcs) -> None:
    listed = await newer.list_nodes()
    assert isinstance(listed, m.NodesListed)
    assert [(r.name, r.alive, r.gpus) for r in listed.rows] == [
        ("head", True, 2),
        ("gpu1", False, 2),
        ("gpu1", True, 2),
    ]
    assert listed.rows[2].started_at_ms > listed.rows[1].started_at_ms
    assert listed.rows[1].death == "it died"


async def test_ray_is_not_told_and_says_why(newer: Gcs) -> None:
    told = await newer.tell_dead(m.TellRay("gpu1", "ab" * 28, Cause.PROCESS_GONE, "gone"))
    assert told.accepted is False
    assert "2.61.0 was not proved" in told.detail
