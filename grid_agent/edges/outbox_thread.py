"""One incident as Slack shows it, and which of its parts is to be sent next. Decides; sends nothing.

An incident is one message, posted once and edited seldom, and one reply per step; an incident of many nodes
has no replies. Edits and replies notify nobody, so the step that calls for a person is shown in the channel,
too, and of many nodes as well. Used by `outbox`; `row` and `of_row` are what the journal keeps of it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal
from uuid import uuid4

from grid_agent.core.incident_model import Incident, Phase
from grid_agent.core.slack_text import MANY

Part = Literal["root", "edit", "step"]

EDIT_GAPS = (1, 10, 60)  # before the first, second and third edit of a window, in units of `unit_s`
WINDOW = 300  # and at most one more in it, when an incident ends or needs a person
KEPT = (
    *("channel_id", "ts", "steps_posted", "shown", "revision", "roots", "key", "trying", "phase"),
    *("call_at", "called"),
)


@dataclass(slots=True)
class Thread:
    """What Slack shows of one incident. `incident` None: known from before a restart only."""

    incident: Incident | None = None
    channel_id: str = ""
    ts: str = ""
    steps_posted: int = 0
    shown: str = ""  # digest of the root message as last shown
    revision: int = 0  # of the incident, when everything of it had been shown
    roots: int = 0
    key: str = field(default_factory=lambda: str(uuid4()))
    trying: dict[str, Any] | None = None  # a post that Slack may have taken: key, digest
    phase: str = ""  # as last shown
    call_at: int | None = None  # the step with which the incident began to need a person
    called: bool = False  # people have been notified of that; once is enough
    posted_at: float | None = None  # on the event loop's clock, as the edits
    edits: list[float] = field(default_factory=list)
    wait_until: float = 0.0
    usable: bool = True  # Slack has taken an edit or a reply since the root was posted
    restored: bool = False  # nothing has been delivered to it in this life

    def take(self, incident: Incident) -> None:
        """The newest value of the incident."""
        self.incident = incident
        if self.call_at is None and incident.phase is Phase.NEEDS_PERSON and incident.steps:
            self.call_at = len(incident.steps) - 1

    def calls(self, index: int) -> bool:
        """Whether this step is the one that calls for a person, and has to."""
        waits = self.incident is not None and self.incident.phase is Phase.NEEDS_PERSON
        return waits and not self.called and index == self.call_at

    def step_due(self) -> int | None:
        """The step that is the next to be told, counted from 0; None: none is."""
        incident = self.incident
        if incident is None:
            return None
        if len(incident.nodes) <= MANY:
            return self.steps_posted if self.steps_posted < len(incident.steps) else None
        return self.call_at if self.call_at is not None and self.calls(self.call_at) else None

    def step_told(self) -> None:
        """The step that was due has been posted, or never can be."""
        index = self.step_due()
        if index is not None:
            self.called = self.called or index == self.call_at
            self.steps_posted = index + 1

    def next_part(self, digest: str, at: float, unit_s: float) -> tuple[Part | None, float | None]:
        """What is to be sent now, or when something will be; (None, None): all is shown.

        Args:
            digest: Of the root message as it should be.
            at: Now, on the event loop's clock.
            unit_s: What EDIT_GAPS and WINDOW are counted in.
        """
        incident = self.incident
        if incident is None:
            return None, None
        if not self.ts:
            if incident.rolled_into is not None or self.shown == digest:
                return None, None  # nobody was told, and another incident tells it
            return ("root", None) if at >= self.wait_until or self.trying else (None, self.wait_until)
        edit_at = None if self.shown == digest else self._edit_at(incident, unit_s)
        if edit_at is not None and at >= edit_at:
            return "edit", None
        if self.step_due() is not None:
            return "step", None
        return None, edit_at

    def _edit_at(self, incident: Incident, unit_s: float) -> float:
        """At most four edits in a window, the fourth only for an end or a call for help."""
        last = max([self.posted_at or 0.0, *self.edits[-1:]])
        recent = [at for at in self.edits if at > last - WINDOW * unit_s]
        urgent = incident.phase in (Phase.RESOLVED, Phase.NEEDS_PERSON) and incident.phase != self.phase
        if urgent:
            return last + EDIT_GAPS[0] * unit_s if len(recent) < 4 else recent[-4] + WINDOW * unit_s
        if len(recent) < len(EDIT_GAPS):
            return last + EDIT_GAPS[len(recent)] * unit_s
        return recent[-3] + WINDOW * unit_s

    def edited(self, at: float) -> None:
        """Note an edit."""
        self.edits = [*self.edits[-3:], at]

    def row(self, moved_s: float) -> dict[str, Any]:
        """What to keep over a restart; `moved_s` turns the event loop's clock into that of the incidents."""
        kept = {name: getattr(self, name) for name in KEPT}
        return {**kept, "edits": [at + moved_s for at in self.edits]}

    @classmethod
    def of_row(cls, row: Mapping[str, Any], moved_s: float) -> "Thread":
        """A thread of an earlier life; whatever the row lacks is as at the beginning."""
        thread = cls(restored=True)
        for name in KEPT:
            if name in row:
                setattr(thread, name, row[name])
        thread.edits = [float(at) - moved_s for at in row.get("edits", ())]
        return thread
