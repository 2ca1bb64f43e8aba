"""A journal without a disk."""

from collections.abc import Sequence

from grid_agent.core import messages as m
from grid_agent.core.model import Belief


class MemoryJournal:
    """A journal that keeps each step in a list, or refuses to while `trouble` says why."""

    def __init__(self) -> None:
        self.trouble: str | None = None
        self.steps: list[tuple[Belief, tuple[m.Order, ...]]] = []

    async def save(
        self,
        before: Belief,  # noqa: ARG002 - the interface of Journal, as the two others
        after: Belief,
        events: Sequence[m.Event],  # noqa: ARG002
        orders: Sequence[m.Order],
        now: float,  # noqa: ARG002
    ) -> None:
        """Keep the step."""
        if self.trouble is None:
            self.steps.append((after, tuple(orders)))
