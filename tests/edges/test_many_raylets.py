"""The agent's loop and edges over more raylets than are judged, or checked, all at once."""

import random

from bench import sweep


async def test_of_many_raylets_exactly_the_killed_are_found_and_told() -> None:
    seen = await sweep.measure(130, 4, 1, 1.0, random.Random(4))
    assert seen["false"] == 0
    assert len(seen["told_s"]) == 4
    assert len(seen["verdict_s"]) == 4
    assert max(seen["verdict_s"]) <= max(seen["told_s"]) < 10
