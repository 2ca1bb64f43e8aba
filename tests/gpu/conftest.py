"""The stand-in for NVIDIA's libraries, built once; see standin.c."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.gpu.standin import Standin


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Standin:
    if shutil.which("gcc") is None and os.geteuid() != 0 and not os.environ.get("GRID_AGENT_CI"):
        pytest.skip("needs gcc, which scripts/hosts-tools installs as root")
    return Standin(tmp_path_factory.mktemp("standin"))


@pytest.fixture
def standin(built: Standin, monkeypatch: pytest.MonkeyPatch) -> Iterator[Standin]:
    """Two healthy GPUs, for the processes that the test starts."""
    for name, value in built.env.items():
        monkeypatch.setenv(name, value)
    built.fresh()
    yield built
    built.fresh()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What needs a cluster comes last."""
    here = Path(__file__).parent
    mine = [item for item in items if here in Path(item.path).parents]
    for item in mine:
        items.remove(item)
    items += sorted(mine, key=lambda item: item.get_closest_marker("ray") is not None)
