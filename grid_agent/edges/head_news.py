"""The keeper and the agent look after each other: the keeper's word of the head, and the keeper's own life.

Reads the keeper's record of a time without a head; starts the keeper again when it was killed. Called by
`compose` every few seconds.
"""

import asyncio
import json
import logging
from pathlib import Path

from grid_agent.core import head
from grid_agent.core import messages as m
from grid_agent.core.incident_model import Incident, Outage
from grid_agent.core.terms import Cause
from grid_agent.edges import keeper

log = logging.getLogger("grid_agent.keeper")


class HeadNews:
    """What the keeper of one cluster has written, in the state folder `root`."""

    def __init__(self, root: Path) -> None:
        self._files = keeper.Files(root)
        self._stamp: tuple[int, int] | None = None
        self._outage: Outage | None = None

    def read(self) -> list[m.HeadOutage]:
        """The keeper's record, if it has changed since the last call."""
        try:
            found = self._files.outage.stat()
            stamp = found.st_mtime_ns, found.st_ino
            if stamp == self._stamp:
                return []
            self._outage = head.outage(json.loads(self._files.outage.read_text(encoding="utf-8")))
            self._stamp = stamp
        except FileNotFoundError:
            return []
        except (OSError, ValueError, KeyError, TypeError) as error:
            log.warning("cannot read %s: %s", self._files.outage, error)
            return []
        return [m.HeadOutage(self._outage)]

    async def keep_the_keeper(self) -> None:
        """Start the keeper where it is gone."""
        try:
            done = await asyncio.to_thread(keeper.ensure, self._files)
        except Exception as error:  # noqa: BLE001 - tried again in a few seconds
            log.warning("the keeper cannot be started: %s", error)
            return
        if done:
            log.warning("%s", done)

    def message(self, incident: Incident) -> tuple[str, str] | None:
        """Channel id and ts of the Slack message that the keeper has begun for this incident, if it has."""
        found = self._outage
        if incident.cause is not Cause.HEAD_DOWN or found is None or incident.opened_at != found.began_at:
            return None
        return (found.channel_id, found.ts) if found.channel_id and found.ts else None
