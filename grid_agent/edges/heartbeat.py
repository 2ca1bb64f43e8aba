"""Heartbeats: a held channel to every raylet, and health checks of them, in turn where they are many.

The end of a channel is news within milliseconds; what dies silently is found by the checks. A held channel
costs next to nothing, a check about 0.3 ms of CPU: the checks of a round stay within a share of one core.
"""

import asyncio
from collections.abc import Callable, Iterable, Sequence

from grid_agent.core import messages as m
from grid_agent.core import rotation
from grid_agent.core.model import NodeBelief
from grid_agent.core.terms import Miss
from grid_agent.edges.held_channel import HeldChannel
from grid_agent.edges.pace import Pace

TOGETHER = 10  # checks that are begun at once


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
        self._channels: dict[str, HeldChannel] = {}

    def follow(self, nodes: Iterable[NodeBelief]) -> None:
        """Hold a channel to each of these incarnations, and to no other."""
        gone = set(self._channels)
        for node in nodes:
            to, channel = node.incarnation, self._channels.get(node.name)
            if to is None or not to.port:
                continue
            if channel is not None and (channel.to is to or channel.to == to):
                gone.discard(node.name)
                continue
            if channel is not None:
                gone.discard(node.name)
                channel.close()
            self._channels[node.name] = HeldChannel(node.name, to, self._feed)
        for name in gone:
            self._channels.pop(name).close()

    @property
    def rotation_s(self) -> float:
        """Seconds until each raylet has had its turn."""
        return self._every_s * max(1, -(-len(self._channels) // self._pace.room()))

    async def sweep(self) -> Sequence[m.Event]:
        """Check those whose turn it is; the slowest costs one deadline."""
        turn = self._turn()
        begun = asyncio.get_running_loop().time()
        with self._pace.round(len(turn), self._deadline_s / 2):
            checks = []
            for number, channel in enumerate(turn):
                channel.checked_at = begun
                checks.append(asyncio.ensure_future(channel.check(self._deadline_s)))
                if number % TOGETHER == TOGETHER - 1:
                    await asyncio.sleep(0)  # let answers in, or the last one's would wait for all to be asked
            # A channel that is let go meanwhile ends its check, and nobody else's.
            ended = await asyncio.gather(*checks, return_exceptions=True)
        seen: list[tuple[HeldChannel, m.Event]] = []
        for channel, event in zip(turn, ended, strict=True):
            if isinstance(event, asyncio.CancelledError):
                continue
            if isinstance(event, BaseException):
                raise event
            seen.append((channel, event))
        self._ask_again(seen)
        return [event for _, event in seen]

    def _ask_again(self, seen: Iterable[tuple[HeldChannel, m.Event]]) -> None:
        """Who has just become silent is asked once more at once: it decides sooner than the next round."""
        fresh = []
        for channel, event in seen:
            if channel.closed:
                continue
            how = event.how if isinstance(event, m.HeartbeatMissed) else None
            if how is Miss.TIMED_OUT and not channel.silent:
                fresh.append(channel)
            # Refused on a new connection: the old one is as silent as before.
            channel.silent = how is Miss.TIMED_OUT or (channel.silent and how is Miss.REFUSED)
        for channel in fresh[:TOGETHER]:
            channel.ask_again(self._deadline_s / 2)

    def _turn(self) -> list[HeldChannel]:
        return rotation.turn(self._channels.values(), self._pace.room(), lambda channel: channel)

    async def close(self) -> None:
        """Let every channel go."""
        self.follow(())
        await asyncio.sleep(0)
