"""The state folder on disk: private files, the record of what runs, the lock of a start.

The only place of `bootstrap` that writes there. Folders are 0700 and files 0600 whatever the umask is.
"""

import contextlib
import fcntl
import json
import os
import secrets
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from config.paths import StatePaths


class StateError(Exception):
    """The state folder cannot be used; the text says what to do."""


class BusyError(StateError):
    """Another start or stop of this cluster is under way."""


def unusable(error: OSError, path: Path | str) -> str:
    """Why the state cannot be kept, and what to do."""
    return (
        f"cannot use {path}: {error.strerror}. A cluster's state needs a folder that this user may write, "
        "on a disk with room: mend that, or set XDG_STATE_HOME to another folder"
    )


def make_private_folder(folder: Path) -> None:
    """Make a folder (and those above it) that only this user may enter.

    Raises:
        StateError: It is a link or belongs to somebody else, as may happen in /tmp.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = folder.lstat()
    except OSError as error:
        raise StateError(unusable(error, folder)) from None
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
        raise StateError(f"{folder} is not a folder of yours: move it away, or name another in the file")
    if found.st_mode & 0o777 != 0o700:
        folder.chmod(0o700)


def prepare(state: StatePaths) -> None:
    """Make every folder of the cluster."""
    for folder in (state.root, state.logs, state.stopped, state.locks):
        make_private_folder(folder)


def write_private(path: Path, text: str) -> None:
    """Replace a file in one step; it is 0600 from its first byte."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        handle = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise StateError(unusable(error, path)) from None
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            os.fchmod(file.fileno(), 0o600)
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    except OSError as error:  # of a full disk it names no file
        draft.unlink(missing_ok=True)
        raise StateError(unusable(error, path)) from None
    except BaseException:
        draft.unlink(missing_ok=True)
        raise


def read_text(path: Path) -> str | None:
    """The content of a file, None where there is none."""
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None


def read_record(state: StatePaths) -> dict[str, Any] | None:
    """The record of what runs; None where there is none or it cannot be read."""
    text = read_text(state.cluster)
    if text is None:
        return None
    try:
        record = json.loads(text)
    except ValueError:
        return None
    return record if isinstance(record, dict) else None


def write_record(state: StatePaths, record: Mapping[str, Any]) -> None:
    """Write down what runs."""
    write_private(state.cluster, json.dumps(dict(record), indent=2, sort_keys=True) + "\n")


def keep_token(path: Path) -> None:
    """Make a token once; an existing one stays."""
    if not (read_text(path) or "").strip():
        write_private(path, secrets.token_urlsafe(32) + "\n")


def copy_slack_token(state: StatePaths, token_env: str, environ: Mapping[str, str]) -> str | None:
    """Copy the Slack token from the environment to its file.

    Returns:
        None, or a sentence saying what is missing and what to do.
    """
    token = environ.get(token_env, "").strip()
    if token:
        write_private(state.slack_token, token + "\n")
        return None
    if read_text(state.slack_token):
        return None  # the copy of an earlier start
    return (
        f"Slack is in the file, but {token_env} is not set: nothing is posted until it is set "
        f"(export {token_env}=xoxb-…) and start.py --redeploy is run. Incidents are in the API and in the "
        "agent's log"
    )


@contextlib.contextmanager
def only_one(state: StatePaths) -> Iterator[None]:
    """Hold the start lock.

    Raises:
        BusyError: Somebody else holds it.
    """
    # Close-on-exec, as every descriptor Python opens: no raylet started under the lock keeps it.
    with os.fdopen(os.open(state.start_lock, os.O_RDWR | os.O_CREAT, 0o600), "r+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = lock.read().strip() or "unknown"
            raise BusyError(
                f"another start or stop of this cluster is under way (pid {holder}, lock {state.start_lock})"
            ) from None
        lock.seek(0)
        lock.truncate()
        with contextlib.suppress(OSError):  # a full disk: the lock holds, it only does not say whose it is
            lock.write(f"{os.getpid()}\n")
            lock.flush()
        yield
