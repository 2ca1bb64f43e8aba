"""The Ray that is installed here: which names it reads, and its defaults. Private parts of Ray: its binaries.

Nothing is imported from Ray into this process: its own code reads RAY_ variables while it is loaded, and ends
the process on a malformed one. The defaults come from a child with a clean environment.
"""

import asyncio
import importlib.metadata
import importlib.util
import json
import mmap
import re
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

DEFAULTS_S = 20.0
# Programs -> who they are. C++ settings are compiled into all three, whoever uses them.
BINARIES = ("core/src/ray/gcs/gcs_server", "core/src/ray/raylet/raylet", "_raylet.so")
_WORD = re.compile(rb"[A-Za-z0-9_]")
_ASK = """
import json
from ray._raylet import Config
names = [n for n in dir(Config) if not n.startswith("_") and n != "initialize"]
found = {}
for name in names:
    try:
        found[name] = getattr(Config, name)()
    except Exception:
        continue
print(json.dumps({n: v for n, v in found.items() if isinstance(v, (bool, int, float))}))
"""


def version() -> str | None:
    """The installed Ray's version, None where there is none."""
    try:
        return importlib.metadata.version("ray")
    except importlib.metadata.PackageNotFoundError:
        return None


def folder() -> Path | None:
    """Where it is installed."""
    spec = importlib.util.find_spec("ray")
    return Path(spec.origin).parent if spec and spec.origin else None


async def defaults() -> Mapping[str, int]:
    """Name -> default, as the installed binary tells some of them; empty when it cannot be asked in time."""
    env = {"PATH": "/usr/bin:/bin", "RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled"}
    pipe, null = asyncio.subprocess.PIPE, asyncio.subprocess.DEVNULL
    try:
        child = await asyncio.create_subprocess_exec(
            sys.executable, "-I", "-c", _ASK, stdin=null, stdout=pipe, stderr=null, env=env
        )
    except OSError:
        return {}
    try:
        said, _ = await asyncio.wait_for(child.communicate(), DEFAULTS_S)
        found = json.loads(said)
    except (TimeoutError, ValueError):
        return {}
    finally:
        if child.returncode is None:
            child.kill()
            await child.wait()
    return {str(name): value for name, value in found.items()}


def readers(names: Iterable[str]) -> dict[str, str | None]:
    """Who of the installed Ray reads each variable: "C++", "Python", or None when nothing names it.

    A name counts when it stands whole in one of Ray's programs, or in one of its Python files.
    """
    wanted = set(names)
    root = folder()
    if root is None or not wanted:
        return dict.fromkeys(wanted)
    found: dict[str, str | None] = dict.fromkeys(wanted)
    for binary in BINARIES:
        for name in _named(root / binary, [n for n, who in found.items() if who is None]):
            found[name] = "C++"
    left = [name for name, who in found.items() if who is None]
    for file in sorted(root.rglob("*.py")) if left else ():
        for name in _named(file, left):
            found[name] = "Python"
            left.remove(name)
        if not left:
            break
    return found


def _named(file: Path, names: Iterable[str]) -> list[str]:
    """Those of the names that stand in a file, as whole words."""
    try:
        with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return [name for name in names if _stands_in(data, name.encode())]
    except (OSError, ValueError):  # unreadable, or empty
        return []


def _stands_in(data: mmap.mmap, name: bytes) -> bool:
    at = data.find(name)
    while at >= 0:
        around = data[at - 1 : at] + data[at + len(name) : at + len(name) + 1]
        if not _WORD.search(around):
            return True
        at = data.find(name, at + 1)
    return False
