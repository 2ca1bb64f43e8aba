"""How many checks fit into a round, and whose turn it is."""

import asyncio

import pytest

from grid_agent.core import messages as m
from grid_agent.core.model import NodeBelief
from grid_agent.core.seen import Incarnation
from grid_agent.core.terms import State
from grid_agent.edges import file_limit
from grid_agent.edges.heartbeat import Heartbeats
from grid_agent.edges.pace import FLOOR, Pace
from tests.support.cluster import free_port


def burn(seconds: float) -> None:
    """Use so much CPU."""
    import time

    end = time.process_time() + seconds
    while time.process_time() < end:
        pass


def test_a_small_cluster_is_always_checked_whole() -> None:
    pace = Pace(every_s=1.0, share=0.0001)
    assert pace.room() == FLOOR


def test_the_room_follows_what_checks_cost() -> None:
    pace = Pace(every_s=1.0, share=0.03)
    assert pace.room() == 100
    for _ in range(20):
        with pace.round(100, 60.0):
            burn(0.06)
    assert FLOOR <= pace.room() <= 42  # 0.6 ms each, and a quarter more afterwards


def test_a_round_that_waited_teaches_nothing() -> None:
    pace = Pace(every_s=1.0, share=0.03)
    for _ in range(20):
        with pace.round(100, 0.01):
            burn(0.03)
    assert pace.room() == 100


async def test_above_the_budget_they_take_turns_and_who_missed_comes_first() -> None:
    to = [Incarnation(f"i{i}", "127.0.0.1", free_port()) for i in range(60)]
    nodes = [NodeBelief(f"n{i}", "h", "worker", State.ALIVE, 0.0, incarnation=to[i]) for i in range(60)]
    beats = Heartbeats(lambda _: None, 0.5, every_s=1.0, cpu_share=0.0001)
    beats.follow(nodes)
    try:
        assert beats.rotation_s == 3.0
        asked: list[str] = []
        for _ in range(3):
            for channel in beats._channels.values():
                channel.missed = False  # as if all had answered
            asked += [e.node for e in await beats.sweep() if isinstance(e, m.HeartbeatMissed)]
            await asyncio.sleep(0.01)
        assert set(asked) == {n.name for n in nodes}  # everybody had a turn within the rotation
        for name, channel in beats._channels.items():
            channel.missed = name in {"n7", "n31"}
        assert {channel._name for channel in beats._turn()[:2]} == {"n7", "n31"}
        for channel in beats._channels.values():
            channel.missed = int(channel._name[1:]) < 50
        turn = [channel._name for channel in beats._turn()]
        assert len(turn) < FLOOR + 1
        assert sum(int(name[1:]) >= 50 for name in turn) == 10  # the healthy are not forgotten
    finally:
        await beats.close()


def test_a_file_limit_that_is_too_low_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_limit.resource, "getrlimit", lambda _: (1024, 4096))
    assert file_limit.too_low(1000) is None
    monkeypatch.setattr(file_limit.resource, "getrlimit", lambda _: (1024, 1024))
    assert file_limit.too_low(3) is None
    said = file_limit.too_low(1000)
    assert said is not None
    assert "1024 files" in said
    assert "LimitNOFILE" in said


def test_the_agent_takes_what_the_system_allows(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[tuple[int, int]] = []
    monkeypatch.setattr(file_limit.resource, "getrlimit", lambda _: (1024, 4096))
    monkeypatch.setattr(file_limit.resource, "setrlimit", lambda _, limits: taken.append(limits))
    file_limit.provide(0)
    assert taken == [(4096, 4096)]
