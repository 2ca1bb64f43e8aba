"""Removes what dead raylets have left in their session's folder."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import stat
import time
from pathlib import Path
from typing import Any

from grid_agent.edges.host.common import expanded
from grid_agent.edges.host.procs import process_table

STALE_S = 60.0  # a socket younger than this may be about to be listened on
SPILLED = "ray_spilled_objects_"


def clear(request: dict[str, Any]) -> dict[str, Any]:
    """Removes what dead raylets of one node have left in their session's folder.

    Those are sockets of ours that nobody listens on, and objects that the node ids given had spilled, unless
    such a raylet lives. Request: session_dir (None: nothing is done), node_ids. Answer: removed [path].
    Nothing outside that folder, no link and nothing of another user or node is touched.
    """
    removed: list[str] = []
    folder = Path(expanded(request.get("session_dir") or "/nonexistent"))
    if not folder.name.startswith("session_") or not _is_own_folder(folder):
        return {"ok": True, "removed": removed}
    for path in sorted(folder.glob("sockets/*")):
        if _is_deserted(path):
            with contextlib.suppress(OSError):
                path.unlink()
                removed.append(str(path))
    live = {table.option("node_id") for table in process_table().values()}
    for node_id in map(str, request.get("node_ids", ())):
        path = folder / (SPILLED + node_id)
        if node_id.isalnum() and node_id not in live and _is_own_folder(path):
            shutil.rmtree(path, ignore_errors=True)
            removed.append(str(path))
    return {"ok": True, "removed": removed}


def _is_own_folder(path: Path) -> bool:
    with contextlib.suppress(OSError):
        found = path.lstat()
        return stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid()
    return False


def _is_deserted(path: Path) -> bool:
    """Whether it is a socket of ours, not just made, at which nobody listens."""
    try:
        found = path.lstat()
        if not stat.S_ISSOCK(found.st_mode) or found.st_uid != os.geteuid():
            return False
        if time.time() - found.st_mtime < STALE_S:
            return False
        return _refuses(path)
    except OSError:
        return False


def _refuses(path: Path) -> bool:
    """Whether nobody listens there; asked by way of the folder, since a socket's path must be short."""
    folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with socket.socket(socket.AF_UNIX) as probe:
            probe.settimeout(1.0)
            probe.connect(f"/proc/self/fd/{folder}/{path.name}")
    except ConnectionRefusedError:
        return True
    finally:
        os.close(folder)
    return False
