"""What every part of the host's program needs: its errors, and files read and written with care."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
from pathlib import Path
from typing import Any

POLL_S = 0.02
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
TAIL_LINES = 20
TAIL_CHARS = 4000
WORDS = 5  # last words of a log, and workers named
WORD_CHARS = 300


class HostError(Exception):
    """An operation's named failure; becomes the error answer."""

    def __init__(self, error: str, detail: str, **more: Any) -> None:
        super().__init__(detail)
        self.answer = {"ok": False, "error": error, "detail": detail, **more}


def read_bytes_of(path: str) -> bytes:
    """The file, or nothing when it has gone or is not ours to read."""
    try:
        return Path(path).read_bytes()
    except OSError:
        return b""


def size_of(value: Any) -> int:
    """Bytes of JSON."""
    return len(to_json(value))


def to_json(value: Any) -> bytes:
    """JSON in UTF-8: what is escaped into ASCII is up to six times as long. Stray bytes of file names are."""
    return json.dumps(value, ensure_ascii=False).encode("utf-8", "backslashreplace")


def expanded(text: str) -> str:
    """The text with `~/` at its beginning turned into this user's home folder."""
    return str(Path.home()) + text[1:] if text.startswith("~/") else text


def private_file(path: str, flags: int) -> int:
    """Opens a file that only we may read; folders that have to be made for it only we may enter."""
    missing = [folder for folder in Path(path).parents if not folder.exists()]
    for folder in reversed(missing):
        folder.mkdir(mode=0o700, exist_ok=True)
    handle = os.open(path, flags | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    os.fchmod(handle, 0o600)
    return handle


def tail(data: bytes) -> str:
    """The last lines that say something: no colours, at most 20 lines and 4000 characters."""
    text = re.sub(r"\x1b\[[0-9;?]*[ -/]*[@-~]|[\x00-\x08\x0b-\x1f\x7f]", "", data.decode("utf-8", "replace"))
    lines = [line.rstrip() for line in text.splitlines() if line.strip(" -\t")]
    return "\n".join(lines[-TAIL_LINES:])[-TAIL_CHARS:]


def last_lines(path: str, size: int = 65536) -> str:
    """The end of a log, as `tail` gives it; empty where it cannot be read."""
    with contextlib.suppress(OSError), Path(path).open("rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - size))
        return tail(file.read(size))
    return ""


def put_secret(request: dict[str, Any]) -> dict[str, Any]:
    """Puts a secret into a file that only this user may read, in one step. Request: path, content.

    The content is in no answer and no message. A file that holds it already stays as it is.
    """
    path = Path(expanded(request["path"]))
    content = request["content"].encode()
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        if read_bytes_of(str(path)) == content and path.lstat().st_mode & 0o7777 == 0o600:
            return {"ok": True}
        draft.unlink(missing_ok=True)
        handle = private_file(str(draft), os.O_WRONLY | os.O_EXCL)
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        draft.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            draft.unlink()
        full = error.errno in NO_ROOM
        detail = f"Cannot write {path}: {error.strerror}. Check the disk and the owner of its folder."
        raise HostError("disk" if full else "no_secret", detail) from None
    return {"ok": True}
