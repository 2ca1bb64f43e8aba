"""Heartbeats: one held gRPC channel to every raylet, and health checks of them, in turn where they are many.

The end of a held channel is news within milliseconds (the kernel closes a dead process's sockets); a raw
TCP connect then tells refused from unreachable by errno, which gRPC's UNAVAILABLE does not. What dies
silently is found by the checks: `/grpc.health.v1.Health/Check`, the RPC that the GCS itself uses
(https://github.com/grpc/grpc/blob/master/doc/health-checking.md). It needs no token. A held channel costs
next to nothing, a check about 0.3 ms of CPU: the checks of a round stay within a share of one core.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import grpc
import grpc.aio

from config.checks import bracketed
from grid_agent.core import messages as m
from grid_agent.core.model import Incarnation, Miss, NodeBelief
from grid_agent.edges.pace import Pace

CHECK = "/grpc.health.v1.Health/Check"
SERVING = b"\x08\x01"  # HealthCheckResponse{status: SERVING}
CONNECT_S = 0.5
# Of so many round trips the shortest is reported, beside the newest. A longer one now and then is this
# machine's own waiting for a CPU (an idle process beside the agent sees the same), not the way to the node.
RTTS = 5
TOGETHER = 10  # checks that are begun at once
SPARED = 10  # a stopped raylet's port accepts what it will never answer: no reason to fill its queue
AGAIN_S = (0.0, 0.005, 0.02, 0.1)
OPTIONS = (
    ("grpc.enable_http_proxy", 0),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
    ("grpc.use_local_subchannel_pool", 1),
)


class Heartbeats:
    """Follows the newest incarnation of each node; reports through `feed` and from `sweep`.

    Args:
        feed: Takes the news of a channel that ended.
        deadline_s: For one check. A little less than `every_s`: who hangs must not cost the others a turn.
        every_s: Seconds between two calls of `sweep`.
        cpu_share: Of one core, for all checks.
    """

    def __init__(
        self,
        feed: Callable[[m.Event], None],
        deadline_s: float = 0.8,
        every_s: float = 1.0,
        cpu_share: float = 0.03,
    ) -> None:
        self._feed = feed
        self._deadline_s = deadline_s
        self._every_s = every_s
        self._pace = Pace(every_s, cpu_share)
        self._lines: dict[str, _Line] = {}

    def follow(self, nodes: Iterable[NodeBelief]) -> None:
        """Hold a channel to each of these incarnations, and to no other."""
        gone = set(self._lines)
        for node in nodes:
            to, line = node.incarnation, self._lines.get(node.name)
            if to is None or not to.port:
                continue
            if line is not None and (line.to is to or line.to == to):
                gone.discard(node.name)
                continue
            if line is not None:
                gone.discard(node.name)
                line.close()
            self._lines[node.name] = _Line(node.name, to, self._feed)
        for name in gone:
            self._lines.pop(name).close()

    @property
    def rotation_s(self) -> float:
        """Seconds until each raylet has had its turn."""
        return self._every_s * max(1, -(-len(self._lines) // self._pace.room()))

    async def sweep(self) -> Sequence[m.Event]:
        """Check those whose turn it is; the slowest costs one deadline."""
        turn = self._turn()
        begun = asyncio.get_running_loop().time()
        with self._pace.round(len(turn), self._deadline_s / 2):
            checks = []
            for number, line in enumerate(turn):
                line.checked_at = begun
                checks.append(asyncio.ensure_future(line.check(self._deadline_s)))
                if number % TOGETHER == TOGETHER - 1:
                    await asyncio.sleep(0)  # let answers in, or the last one's would wait for all to be asked
            # A line that is let go meanwhile ends its check, and nobody else's.
            ended = await asyncio.gather(*checks, return_exceptions=True)
        seen: list[tuple[_Line, m.Event]] = []
        for line, event in zip(turn, ended, strict=True):
            if isinstance(event, asyncio.CancelledError):
                continue
            if isinstance(event, BaseException):
                raise event
            seen.append((line, event))
        self._ask_again(seen)
        return [event for _, event in seen]

    def _ask_again(self, seen: Iterable[tuple["_Line", m.Event]]) -> None:
        """Who has just become silent is asked once more at once: it decides sooner than the next round."""
        fresh = []
        for line, event in seen:
            if line.closed:
                continue
            how = event.how if isinstance(event, m.HeartbeatMissed) else None
            if how is Miss.TIMED_OUT and not line.silent:
                fresh.append(line)
            # Refused on a new connection: the old one is as silent as before.
            line.silent = how is Miss.TIMED_OUT or (line.silent and how is Miss.REFUSED)
        for line in fresh[:TOGETHER]:
            line.ask_again(self._deadline_s / 2)

    def _turn(self) -> list["_Line"]:
        """Everybody, if that is within the budget; else who missed the last check, and who waited longest.

        However many have missed, half of the places are for the others.
        """
        room = self._pace.room()
        lines = list(self._lines.values())
        if len(lines) <= room:
            return lines
        lines.sort(key=lambda line: line.checked_at)
        doubted = [line for line in lines if line.missed][: room // 2]
        rest = [line for line in lines if not line.missed]
        return doubted + rest[: room - len(doubted)]

    async def close(self) -> None:
        """Let every channel go."""
        self.follow(())
        await asyncio.sleep(0)


class _Line:
    """One held channel to one incarnation."""

    def __init__(self, name: str, to: Incarnation, feed: Callable[[m.Event], None]) -> None:
        self.to = to
        self.checked_at = 0.0
        self.missed = False
        self.silent = False
        self.closed = False
        self._spared = 0  # checks without a connect beside them, once one was accepted
        self._again: asyncio.Task[None] | None = None
        self._rtts_ms: deque[float] = deque(maxlen=RTTS)
        self._name = name
        self._feed = feed
        self._channel = grpc.aio.insecure_channel(f"{bracketed(to.address)}:{to.port}", options=OPTIONS)
        self._call = self._channel.unary_unary(
            CHECK, request_serializer=lambda _: b"", response_deserializer=bytes
        )
        self._watch = asyncio.create_task(self._hold(), name=f"hold {name}")

    async def check(self, deadline_s: float) -> m.Event:
        """One health check. Any failure is looked at by a TCP connect of its own."""
        self._spared = max(0, self._spared - 1) if self.silent else 0
        anew = self.silent and not self._spared
        event = await (self._check_anew(deadline_s) if anew else self._check(deadline_s))
        self.missed = isinstance(event, m.HeartbeatMissed)
        return event

    async def _check_anew(self, deadline_s: float) -> m.Event:
        """The same with a connect beside it: a host that is back refuses that at once.

        On an old connection TCP sends again only after a longer and longer wait.
        """
        asked = asyncio.ensure_future(self._check(deadline_s))
        tried = asyncio.ensure_future(connect(self.to.address, self.to.port, min(deadline_s, CONNECT_S)))
        try:
            await asyncio.wait({asked, tried}, return_when=asyncio.FIRST_COMPLETED)
            if not asked.done() and tried.result().miss is Miss.REFUSED:
                return self._missed(Miss.REFUSED, tried.result().detail)
            event = await asked
            if isinstance(event, m.HeartbeatMissed) and (await tried).miss is None:
                self._spared = SPARED
            return event
        finally:
            asked.cancel()
            tried.cancel()

    async def _check(self, deadline_s: float) -> m.Event:
        begun = time.perf_counter()
        try:
            answer = await self._call(None, timeout=deadline_s)
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
                return self._missed(Miss.TIMED_OUT, f"no answer in {deadline_s:g} s", deadline_s)
            return await self._look(error.code().name)
        except Exception as error:  # noqa: BLE001 - a closed channel, a cancelled call: not an answer
            return self._missed(Miss.TIMED_OUT, type(error).__name__)
        if answer != SERVING:
            return self._missed(Miss.NOT_SERVING, f"health status {answer.hex() or 'empty'}")
        took_ms = (time.perf_counter() - begun) * 1000.0
        self._rtts_ms.append(took_ms)
        return m.HeartbeatAnswered(self._name, self.to.node_id, min(self._rtts_ms), took_ms)

    def ask_again(self, deadline_s: float) -> None:
        """One more check in the background, whose answer is news."""

        async def ask() -> None:
            self._feed(await self.check(deadline_s))

        self._again = asyncio.create_task(ask(), name=f"ask {self._name} again")

    def close(self) -> None:
        """Stop watching; the channel is closed in the background."""
        self.closed = True
        self._watch.cancel()
        if self._again is not None:
            self._again.cancel()
        closing = asyncio.ensure_future(self._channel.close())
        _CLOSING.add(closing)
        closing.add_done_callback(_CLOSING.discard)

    async def _hold(self) -> None:
        """Wait until the channel was READY and is no more, then look why, at once."""
        state = self._channel.get_state(try_to_connect=True)
        while True:
            was_ready = state is grpc.ChannelConnectivity.READY
            await self._channel.wait_for_state_change(state)
            state = self._channel.get_state(try_to_connect=True)
            if state is grpc.ChannelConnectivity.SHUTDOWN:
                return
            if was_ready and state is not grpc.ChannelConnectivity.READY:
                await self._report_end()

    async def _report_end(self) -> None:
        """Say why the held connection ended. A dying process may close its listener a moment later."""
        for wait_s in AGAIN_S:
            await asyncio.sleep(wait_s)
            seen = await connect(self.to.address, self.to.port, CONNECT_S)
            if seen.miss is not None:
                self._feed(self._missed(seen.miss, seen.detail))
                return
        # It still accepts connections: the next check will tell whether it also answers.

    async def _look(self, why: str) -> m.Event:
        seen = await connect(self.to.address, self.to.port, CONNECT_S)
        if seen.miss is None:
            return self._missed(Miss.NOT_SERVING, f"{why}; the port accepts connections")
        return self._missed(seen.miss, seen.detail)

    def _missed(self, how: Miss, detail: str, waited_s: float = 0.0) -> m.HeartbeatMissed:
        return m.HeartbeatMissed(self._name, self.to.node_id, how, detail, waited_s)


_CLOSING: set["asyncio.Future[None]"] = set()


@dataclass(frozen=True, slots=True)
class Connected:
    """What a TCP connect showed: `miss` None means it was accepted."""

    miss: Miss | None
    detail: str = ""


async def connect(address: str, port: int, timeout_s: float) -> Connected:
    """Connect and hang up. ECONNREFUSED comes from the host's own kernel: nobody listens there."""
    try:
        _, writer = await asyncio.wait_for(asyncio.open_connection(address, port), timeout_s)
    except TimeoutError:
        return Connected(Miss.TIMED_OUT, f"no answer to a connect to port {port} in {timeout_s:g} s")
    except ConnectionRefusedError:
        return Connected(Miss.REFUSED, f"port {port} refused")
    except ConnectionResetError:
        return Connected(None)  # accepted, and the listener was closed at that very moment
    except OSError as error:
        return Connected(Miss.UNREACHABLE, f"{error.strerror or error} (port {port})")
    writer.close()
    return Connected(None)
