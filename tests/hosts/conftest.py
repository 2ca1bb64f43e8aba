"""One lab for the whole folder: a head and two workers."""

import os
from collections.abc import Iterator

import pytest

from tests.support.hosts import Lab, missing_tools


@pytest.fixture(scope="session")
def lab() -> Iterator[Lab]:
    reason = missing_tools()
    if reason and os.environ.get("GRID_AGENT_CI") == "1":
        pytest.fail(reason, pytrace=False)
    if reason:
        pytest.skip(reason)
    with Lab() as made:
        yield made
