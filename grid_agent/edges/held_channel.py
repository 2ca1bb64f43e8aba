"""A held gRPC channel to the port of one raylet, and health checks on it.

The end of the channel is news within milliseconds (the kernel closes a dead process's sockets); a raw TCP
connect then tells refused from unreachable by errno, which gRPC's UNAVAILABLE does not. What dies silently is
found by the checks: `/grpc.health.v1.Health/Check`, the RPC that the GCS itself uses
(https://github.com/grpc/grpc/blob/master/doc/health-checking.md). It needs no token.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import grpc
import grpc.aio

from config.checks import bracketed
from grid_agent.core import messages as m
from grid_agent.core.seen import Incarnation
from grid_agent.core.terms import Miss

CHECK = "/grpc.health.v1.Health/Check"
SERVING = b"\x08\x01"  # HealthCheckResponse{status: SERVING}
CONNECT_S = 0.5
# Of so many round trips the shortest is reported, beside the newest. A longer one now and then is this
# machine's own waiting for a CPU (an idle process beside the agent sees the same), not the way to the node.
RTTS = 5
TRY_S = 3.0  # for the first answer on a new channel, which takes four round trips
SPARED = 10  # checks at most: a stopped raylet's port accepts what it will never answer, until it is full
AGAIN_S = (0.0, 0.005, 0.02, 0.1)
OPTIONS = (
    ("grpc.enable_http_proxy", 0),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
    ("grpc.use_local_subchannel_pool", 1),
)


class _Channel:
    """One gRPC channel, and the one method that is asked on it."""

    def __init__(self, to: Incarnation) -> None:
        self.grpc = grpc.aio.insecure_channel(f"{bracketed(to.address)}:{to.port}", options=OPTIONS)
        self.health = self.grpc.unary_unary(
            CHECK, request_serializer=lambda _: b"", response_deserializer=bytes
        )

    def close(self) -> None:
        """End it in the background."""
        closing = asyncio.ensure_future(self.grpc.close())
        _CLOSING.add(closing)
        closing.add_done_callback(_CLOSING.discard)


class HeldChannel:
    """Follows one incarnation; what it sees by itself goes to `feed`."""

    def __init__(self, name: str, to: Incarnation, feed: Callable[[m.Event], None]) -> None:
        self.to = to
        self.checked_at = 0.0
        self.missed = False
        self.silent = False
        self.closed = False
        self._accepted = 0  # new channels, in this silence, on which no answer came
        self._spared = 0  # checks until the next one is tried
        self._trying: asyncio.Task[m.Event | None] | None = None
        self._again: asyncio.Task[None] | None = None
        self._rtts_ms: deque[float] = deque(maxlen=RTTS)
        self._name = name
        self._feed = feed
        self._hold(_Channel(to))

    def _hold(self, channel: _Channel) -> None:
        self._held = channel
        self._watch = asyncio.create_task(self._watched(channel.grpc), name=f"hold {self._name}")

    async def check(self, deadline_s: float) -> m.Event:
        """One health check. Any failure is looked at by a TCP connect of its own.

        Beside a silent channel a new one is tried, which a host that is back refuses or answers at once. On
        the old one TCP sends again only after waits that double (RFC 6298): 40 s after a cut of a minute.
        """
        self._accepted, self._spared = (self._accepted, self._spared - 1) if self.silent else (0, 0)
        if self._trying is not None or (self.silent and self._spared <= 0 and not self.closed):
            event = await self._check_and_try(deadline_s)
        else:
            event = await self._check(self._held, deadline_s)
        self.missed = isinstance(event, m.HeartbeatMissed)
        return event

    async def _check_and_try(self, deadline_s: float) -> m.Event:
        """What comes first. A try that takes longer than the check goes on, and what it finds is news."""
        old = asyncio.ensure_future(self._check(self._held, deadline_s))
        if self._trying is None:
            self._trying = asyncio.create_task(self._try_new(), name=f"try {self._name} anew")
            self._trying.add_done_callback(self._tried)
        new = self._trying
        new.remove_done_callback(self._tell)
        try:
            await asyncio.wait({old, new}, return_when=asyncio.FIRST_COMPLETED)
            if new.done() and (event := new.result()) is not None:
                return event
            event = await old
        finally:
            old.cancel()
        if not new.done():
            new.add_done_callback(self._tell)
        return event

    def _tried(self, _new: "asyncio.Task[m.Event | None]") -> None:
        self._trying = None

    def _tell(self, new: "asyncio.Task[m.Event | None]") -> None:
        if not new.cancelled() and (event := new.result()) is not None:
            self._feed(event)

    async def _try_new(self) -> m.Event | None:
        """What a new channel shows; one that answers is the held one from now on."""
        seen = await connect(self.to.address, self.to.port, CONNECT_S)
        if seen.miss is not None:
            return self._missed(seen.miss, seen.detail) if seen.miss is Miss.REFUSED else None
        self._accepted += 1
        self._spared = min(2**self._accepted, SPARED)
        new, event = _Channel(self.to), None
        try:
            event = await self._check(new, TRY_S)
        finally:
            taken = isinstance(event, m.HeartbeatAnswered) and not self.closed
            if not taken:
                new.close()
        if not taken:
            return None
        self._watch.cancel()
        self._held.close()
        self._hold(new)
        self.silent, self.missed = False, False
        self._spared = self._accepted = 0
        return event

    async def _check(self, channel: _Channel, deadline_s: float) -> m.Event:
        begun = time.perf_counter()
        try:
            answer = await channel.health(None, timeout=deadline_s)
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
        for task in (self._again, self._trying):
            if task is not None:
                task.cancel()
        self._held.close()

    async def _watched(self, channel: grpc.aio.Channel) -> None:
        """Wait until the channel was READY and is no more, then look why, at once."""
        state = channel.get_state(try_to_connect=True)
        while True:
            was_ready = state is grpc.ChannelConnectivity.READY
            await channel.wait_for_state_change(state)
            state = channel.get_state(try_to_connect=True)
            if state is grpc.ChannelConnectivity.SHUTDOWN:
                return
            if was_ready and state is not grpc.ChannelConnectivity.READY:
                await self._report_end()

    async def _report_end(self) -> None:
        """Say why the channel ended. A dying process may close its listener a moment later."""
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
