"""Whose turn it is, where a round of checks has room for fewer than there are.

Pure; called by the heartbeats, and by the simulation that plays them.
"""

from collections.abc import Callable, Collection
from typing import Protocol, TypeVar


class Checked(Protocol):
    """What is known of somebody's last check: when it began, and whether it was missed."""

    checked_at: float
    missed: bool


T = TypeVar("T")


def turn(everybody: Collection[T], room: int, of: Callable[[T], Checked]) -> list[T]:
    """Return everybody, if that is within the room; else who missed the last check, and who waited longest.

    However many have missed, half of the places are for the others.
    """
    if len(everybody) <= room:
        return list(everybody)
    waiting = sorted(everybody, key=lambda one: of(one).checked_at)
    doubted = [one for one in waiting if of(one).missed][: room // 2]
    rest = [one for one in waiting if not of(one).missed]
    return doubted + rest[: room - len(doubted)]
