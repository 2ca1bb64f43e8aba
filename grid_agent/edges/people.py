"""What people have said through files: the nodes that `stop.py --node` stopped. Read each tick."""

import logging
from pathlib import Path

log = logging.getLogger("grid_agent.people")


class StoppedByPeople:
    """The names of the files in the state folder's `stopped/`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._last: frozenset[str] = frozenset()

    def stopped(self) -> frozenset[str]:
        """The stopped nodes; what was last read while the folder cannot be read."""
        try:
            self._last = frozenset(p.name for p in self._folder.iterdir())
        except FileNotFoundError:
            self._last = frozenset()
        except OSError as error:
            log.warning("cannot read %s: %s; keeping what was read last", self._folder, error)
        return self._last
