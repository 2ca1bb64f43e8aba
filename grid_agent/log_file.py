"""The agent's log file: for its owner only, and bounded. Called by `compose`."""

import logging
import logging.handlers
import os
from io import TextIOWrapper
from pathlib import Path

MOST_BYTES = 5_000_000
KEPT = 3


class PrivateFileHandler(logging.handlers.RotatingFileHandler):
    """Log files that only their owner can read, after a rotation too."""

    def _open(self) -> TextIOWrapper:
        descriptor = os.open(self.baseFilename, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        return TextIOWrapper(os.fdopen(descriptor, "ab"), encoding="utf-8", write_through=True)


def open_log(path: Path) -> None:
    """Write what the agent logs to this file, too; a folder that cannot be written is a warning."""
    log = logging.getLogger("grid_agent")
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        handler = PrivateFileHandler(path, maxBytes=MOST_BYTES, backupCount=KEPT)
    except OSError as error:
        log.warning("no log file at %s: %s", path, error)
        return
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s %(message)s"))
    log.addHandler(handler)
    log.setLevel(logging.INFO)
