"""What a command says when it cannot go on: one sentence, an exit code, and where the traceback is.

Writes only to the cluster's own log folder, and only where that is there.
"""

import os
import traceback
from pathlib import Path

from bootstrap import state
from bootstrap.progress import Output


def explain(error: Exception, root: Path | None, output: Output) -> int:
    """Say what went wrong.

    Args:
        error: What no part of the command has foreseen.
        root: The cluster's state folder, None while it is not known.
        output: Where to write.

    Returns:
        The exit code: 2 for a state folder that cannot be used, else 3.
    """
    if isinstance(error, OSError) and root is not None and _inside(error.filename, root):
        output.error(state.unusable(error, error.filename))
        return 2
    last = traceback.format_exception_only(error)[-1].strip().splitlines()[-1]
    output.error(f"unforeseen: {last}; {_kept(error, root)}")
    return 3


def _inside(name: object, root: Path) -> bool:
    """Whether this is the state folder, something in it, or a folder that it is in."""
    if not isinstance(name, str):
        return False
    return Path(name).is_relative_to(root) or root.is_relative_to(name)


def _kept(error: Exception, root: Path | None) -> str:
    text = "".join(traceback.format_exception(error))
    log = None if root is None else root / "logs" / "unforeseen.log"
    try:
        if log is not None and log.parent.is_dir():
            with os.fdopen(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "a") as file:
                file.write(text)
            return f"please report it with {log}"
    except OSError:
        pass
    frames = traceback.extract_tb(error.__traceback__)
    where = f"at {frames[-1].filename}:{frames[-1].lineno}" if frames else "nothing says where"
    return f"please report it with this line ({where})"
