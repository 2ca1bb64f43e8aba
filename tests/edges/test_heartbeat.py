"""Heartbeats against real processes that speak the raylet's port: killed, stopped, never there."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from typing import Any

import pytest

from grid_agent.core import messages as m
from grid_agent.core.model import NodeBelief
from grid_agent.core.seen import Incarnation
from grid_agent.core.terms import Miss, State
from grid_agent.edges import held_channel
from grid_agent.edges.heartbeat import Heartbeats
from grid_agent.edges.held_channel import TRY_S, connect
from tests.support.cluster import ROOT, free_port


@contextmanager
def raylet(*argv: str) -> Iterator[tuple[subprocess.Popen[str], int]]:
    command = [sys.executable, "-m", "tests.support.health_server", *argv]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield process, int(process.stdout.readline())
        finally:
            process.kill()


def node(port: int, node_id: str = "id1") -> NodeBelief:
    known = Incarnation(node_id, "127.0.0.1", port)
    return NodeBelief("w1", "127.0.0.1", "worker", State.ALIVE, 0.0, incarnation=known)


@asynccontextmanager
async def following(
    port: int, deadline_s: float = 0.5
) -> AsyncIterator[tuple[Heartbeats, asyncio.Queue[m.Event]]]:
    news: asyncio.Queue[m.Event] = asyncio.Queue()
    beats = Heartbeats(news.put_nowait, deadline_s)
    beats.follow([node(port)])
    try:
        yield beats, news
    finally:
        await beats.close()


def queued(news: asyncio.Queue[m.Event]) -> list[m.Event]:
    return [news.get_nowait() for _ in range(news.qsize())]


async def heard(beats: Heartbeats) -> None:
    """Until everybody has answered a sweep."""
    while not all(isinstance(event, m.HeartbeatAnswered) for event in await beats.sweep()):
        pass


async def test_a_living_raylet_answers_with_its_round_trip() -> None:
    with raylet() as (_, port):
        async with following(port, deadline_s=5.0) as (beats, news):
            (event,) = await beats.sweep()
            assert isinstance(event, m.HeartbeatAnswered)
            assert (event.node, event.node_id) == ("w1", "id1")
            assert 0 < event.rtt_ms < 5000
            assert news.empty()


async def test_one_slow_answer_is_told_and_does_not_move_the_shortest() -> None:
    with raylet() as (process, port):
        async with following(port, deadline_s=5.0) as (beats, _):
            for _ in range(3):
                await beats.sweep()
            os.kill(process.pid, signal.SIGSTOP)
            sweep = asyncio.create_task(beats.sweep())
            await asyncio.sleep(0.5)
            os.kill(process.pid, signal.SIGCONT)
            (event,) = await sweep
            assert isinstance(event, m.HeartbeatAnswered)
            assert event.last_rtt_ms is not None
            assert event.last_rtt_ms > 250
            assert event.rtt_ms < event.last_rtt_ms


async def test_a_killed_raylet_is_news_without_a_sweep() -> None:
    with raylet() as (process, port):
        async with following(port, deadline_s=5.0) as (beats, news):
            await beats.sweep()
            process.kill()
            event = await asyncio.wait_for(news.get(), 5)
            assert isinstance(event, m.HeartbeatMissed)
            assert (event.how, event.node_id) == (Miss.REFUSED, "id1")
            assert str(port) in event.detail


async def test_a_stopped_raylet_is_silent_not_refused() -> None:
    with raylet() as (process, port):
        async with following(port) as (beats, news):
            await asyncio.sleep(0)
            await heard(beats)
            os.kill(process.pid, signal.SIGSTOP)
            (event,) = await beats.sweep()
            assert isinstance(event, m.HeartbeatMissed)
            assert event.how is Miss.TIMED_OUT
            again = await asyncio.wait_for(news.get(), 5)  # asked once more at once, not at the next sweep
            assert isinstance(again, m.HeartbeatMissed)
            assert (again.how, again.detail) == (Miss.TIMED_OUT, "no answer in 0.25 s")
            await beats.sweep()
            os.kill(process.pid, signal.SIGCONT)
            answers = [(await beats.sweep())[0] for _ in range(5)]
            assert any(isinstance(a, m.HeartbeatAnswered) for a in answers)
            missed = [e for e in queued(news) if isinstance(e, m.HeartbeatMissed)]
            assert missed == []  # it was asked once more at once, not after every sweep


async def test_a_raylet_that_was_only_slow_says_so_when_it_is_asked_once_more() -> None:
    with raylet() as (process, port):
        async with following(port) as (beats, news):
            await heard(beats)
            os.kill(process.pid, signal.SIGSTOP)
            (event,) = await beats.sweep()
            os.kill(process.pid, signal.SIGCONT)
            assert isinstance(event, m.HeartbeatMissed)
            assert isinstance(await asyncio.wait_for(news.get(), 5), m.HeartbeatAnswered)


async def test_a_channel_that_is_let_go_is_not_asked_once_more() -> None:
    with raylet() as (process, port):
        async with following(port) as (beats, news):
            await heard(beats)
            os.kill(process.pid, signal.SIGSTOP)
            await beats.sweep()
            beats.follow([])
            await asyncio.sleep(0.5)
            assert news.empty()


def open_gate() -> asyncio.Event:
    gate = asyncio.Event()
    gate.set()
    return gate


class Way:
    """The way to a raylet, through a port of its own."""

    def __init__(self, to: int) -> None:
        self.port = free_port()
        self._to = to
        self._open = open_gate()
        self.connections = 0
        self.delay_s = 0.0  # of the first word of a connection
        self._copies: list[asyncio.Task[None]] = []
        self._ends: list[asyncio.StreamWriter] = []

    async def __aenter__(self) -> "Way":
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for task in self._copies:
            task.cancel()
        await asyncio.gather(*self._copies, return_exceptions=True)
        for end in self._ends:
            end.close()

    def stall(self) -> None:
        """No word passes on what was open; new connections are as good as ever. A cut that has ended."""
        self._open.clear()
        self._open = open_gate()

    def shut(self) -> None:
        """Nobody listens any more; what is open is as good as ever."""
        self._server.close()

    def lose(self) -> None:
        """Neither: no word passes on what was open, nobody listens. A host is back without its raylet."""
        self.stall()
        self.shut()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self._ends.append(writer)
        await asyncio.sleep(self.delay_s)
        there, back = await asyncio.open_connection("127.0.0.1", self._to)
        self._ends.append(back)
        for source, sink in ((reader, back), (there, writer)):
            self._copies.append(asyncio.create_task(self._copy(source, sink, self._open)))

    async def _copy(
        self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, is_open: asyncio.Event
    ) -> None:
        try:
            while data := await source.read(4096):
                await is_open.wait()
                sink.write(data)
        finally:
            sink.close()


async def test_a_host_that_is_back_refuses_although_the_old_connection_is_silent() -> None:
    with raylet() as (_, port):
        async with Way(port) as way, following(way.port) as (beats, news):
            await heard(beats)
            way.lose()
            (first,) = await beats.sweep()
            (second,) = await beats.sweep()
            assert isinstance(first, m.HeartbeatMissed)
            assert isinstance(second, m.HeartbeatMissed)
            assert (first.how, second.how) == (Miss.TIMED_OUT, Miss.REFUSED)
            assert (first.waited_s, second.waited_s) == (0.5, 0.0)
            while not news.empty():
                news.get_nowait()  # it was asked once more at once
            later = [(await beats.sweep())[0] for _ in range(3)]
            assert [e.how for e in later if isinstance(e, m.HeartbeatMissed)] == [Miss.REFUSED] * 3
            assert news.empty()


async def test_a_host_that_is_back_answers_although_the_old_connection_is_silent() -> None:
    with raylet() as (process, port):
        async with Way(port) as way, following(way.port) as (beats, news):
            await heard(beats)
            way.stall()
            (first,) = await beats.sweep()
            assert isinstance(first, m.HeartbeatMissed)
            assert isinstance(await asyncio.wait_for(news.get(), 5), m.HeartbeatAnswered)
            for _ in range(3):
                (event,) = await beats.sweep()
                assert isinstance(event, m.HeartbeatAnswered)
            assert way.connections <= 4  # the old one, what was tried, and the one that is held now
            way.shut()
            process.kill()  # which is news, now on the new one
            while not isinstance(event := await asyncio.wait_for(news.get(), 5), m.HeartbeatMissed):
                pass


async def test_a_stopped_raylet_is_spared_new_connections() -> None:
    with raylet() as (process, port):
        async with Way(port) as way, following(way.port, deadline_s=0.1) as (beats, _):
            await heard(beats)
            os.kill(process.pid, signal.SIGSTOP)
            for _ in range(40):
                (event,) = await beats.sweep()
                assert isinstance(event, m.HeartbeatMissed)
                assert event.how is Miss.TIMED_OUT
            assert 3 <= way.connections <= 7  # the held one, and two for each of one or two tries
            os.kill(process.pid, signal.SIGCONT)
            await heard(beats)


async def test_a_new_channel_is_tried_again_soon_when_the_first_try_was_lost() -> None:
    with raylet() as (_, port):
        async with Way(port) as way, following(way.port, deadline_s=0.2) as (beats, _):
            await heard(beats)
            way.stall()
            way.delay_s = TRY_S + 1  # of what is opened now
            await beats.sweep()
            await asyncio.sleep(TRY_S)
            way.delay_s = 0.0
            answered = [isinstance((await beats.sweep())[0], m.HeartbeatAnswered) for _ in range(8)]
            assert any(answered)


async def test_every_channel_that_was_made_is_closed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Any] = []

    class Counted(held_channel._Channel):
        def __init__(self, to: Incarnation) -> None:
            super().__init__(to)
            self.closed = 0
            made.append(self)

        def close(self) -> None:
            self.closed += 1
            super().close()

    monkeypatch.setattr(held_channel, "_Channel", Counted)
    with raylet() as (process, port):
        async with Way(port) as way, following(way.port, deadline_s=0.1) as (beats, _):
            await heard(beats)
            for _ in range(3):
                way.stall()
                await heard(beats)  # on a new one, which is held from now on
            os.kill(process.pid, signal.SIGSTOP)
            for _ in range(4):
                await beats.sweep()
            assert [channel.closed for channel in made[:3]] == [1, 1, 1]
            beats.follow([node(way.port, "id2")])  # while a new one is tried
            await asyncio.sleep(0.1)
            assert [channel.closed for channel in made] == [1] * (len(made) - 1) + [0]
            assert len(made) >= 6


async def test_a_channel_that_is_let_go_during_a_sweep_costs_nobody_else_a_turn() -> None:
    with raylet() as (process, port), raylet() as (_, other):
        news: asyncio.Queue[m.Event] = asyncio.Queue()
        beats = Heartbeats(news.put_nowait, 1.0)
        silent, well = node(port), replace(node(other, "id2"), name="w2")
        beats.follow([silent, well])
        try:
            await heard(beats)
            os.kill(process.pid, signal.SIGSTOP)
            sweep = asyncio.create_task(beats.sweep())
            await asyncio.sleep(0.3)
            beats.follow([well])
            assert [e.node for e in await sweep if isinstance(e, m.HeartbeatAnswered)] == ["w2"]
        finally:
            await beats.close()


async def test_a_port_nobody_listens_on_is_refused() -> None:
    async with following(free_port()) as (beats, _):
        (event,) = await beats.sweep()
        assert isinstance(event, m.HeartbeatMissed)
        assert event.how is Miss.REFUSED


async def test_an_answer_that_is_not_serving_is_told_apart() -> None:
    with raylet("not-serving") as (_, port):
        async with following(port, deadline_s=5.0) as (beats, _):
            (event,) = await beats.sweep()
            assert isinstance(event, m.HeartbeatMissed)
            assert event.how is Miss.NOT_SERVING


async def test_only_the_newest_incarnation_is_followed() -> None:
    with raylet() as (_, old), raylet() as (_, new):
        async with following(old, deadline_s=5.0) as (beats, news):
            await beats.sweep()
            beats.follow([node(new, "id2")])
            (event,) = await beats.sweep()
            assert isinstance(event, m.HeartbeatAnswered)
            assert event.node_id == "id2"
            assert news.empty()  # letting a channel go is not its end
            beats.follow([])
            assert await beats.sweep() == []


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
async def test_connect_reads_the_errno(address: str) -> None:
    seen = await connect(address, free_port(), 1.0)
    assert seen.miss in (Miss.REFUSED, Miss.UNREACHABLE)
