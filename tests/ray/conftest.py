"""One real cluster for the whole folder: head, two workers, the agent, and a server that plays Slack."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.cluster import Cluster
from tests.support.slack_server import SlackServer

TOKEN = "xoxb-canary-3f9c"


@dataclass
class Running:
    """The running cluster, what its start printed, and the fake Slack."""

    cluster: Cluster
    slack: SlackServer
    output: str


@pytest.fixture(scope="session")
def running() -> Iterator[Running]:
    with SlackServer(token=TOKEN) as slack:
        cluster = Cluster(slack={"channel": "#grid-alerts", "base_url": slack.base_url})
        try:
            started = cluster.start(SLACK_BOT_TOKEN=TOKEN)
            assert started.returncode == 0, started.stdout + started.stderr
            yield Running(cluster, slack, started.stdout)
        finally:
            cluster.close()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What shares the cluster runs in one go; the test that stops it comes last."""
    here = Path(__file__).parent
    mine = [i for i in items if here in i.path.parents and "running" in getattr(i, "fixturenames", ())]
    if mine:
        at = items.index(mine[0])
        before, after = ([i for i in part if i not in mine] for part in (items[:at], items[at:]))
        items[:] = [*before, *sorted(mine, key=lambda item: item.name.startswith("test_stop_")), *after]
