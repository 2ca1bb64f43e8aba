"""Names are folded for people; none gets lost, none is invented."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grid_agent.core.names import fold


@pytest.mark.parametrize(
    ("names", "folded"),
    [
        ([], ""),
        (["gpu1"], "gpu1"),
        (["gpu1", "gpu2", "gpu3", "gpu7"], "gpu[1-3,7]"),
        (["gpu3", "head", "gpu2"], "gpu[2-3], head"),
        (["a1", "b1", "a2"], "a[1-2], b1"),
        (["n01", "n1", "n2", "n10"], "n01, n[1-2,10]"),
        (["gpu1", "gpu1"], "gpu1"),
        ([f"gpu{i}" for i in range(1, 1001)], "gpu[1-1000]"),
        (["10.0.0.1", "10.0.0.2"], "10.0.0.[1-2]"),
    ],
)
def test_fold(names: list[str], folded: str) -> None:
    assert fold(names) == folded


@given(st.lists(st.builds("{}{}".format, st.sampled_from(["gpu", "n0", "x-"]), st.integers(0, 30))))
def test_unfolded_again_it_is_the_same_names(names: list[str]) -> None:
    found = set()
    for part in filter(None, re.split(r", (?![^\[]*\])", fold(names))):
        prefix, _, inside = part.partition("[")
        for run in inside.rstrip("]").split(",") if inside else [""]:
            first, _, last = run.partition("-")
            numbers = range(int(first), int(last or first) + 1) if run else [""]
            found |= {f"{prefix}{number}" for number in numbers}
    assert found == set(names)
