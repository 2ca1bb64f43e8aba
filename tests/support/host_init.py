"""The first process of a lab host: makes the host its own, then reaps children until its input ends.

Runs alone, with the standard library only, in namespaces that `unshare` has just made. The first line of its
input is a JSON object; without keys it only holds the namespaces. It answers with one line, its pid as seen
from outside. When the process that holds the other end of its input dies, however that happens, this one
ends, and with the first process of a PID namespace the kernel ends all others.
"""

import json
import os
import select
import signal
import socket
import subprocess
from pathlib import Path
from typing import Any


def mount(*args: str) -> None:
    """mount(8); what goes wrong is in the message of the error it prints."""
    subprocess.run(["mount", *args], check=True)


def bind(source: Path, target: Path) -> None:
    """Show `source` at `target` too, and make what is missing of `target`."""
    target.mkdir(parents=True, exist_ok=True)
    mount("--bind", str(source), str(target))


def furnish(spec: dict[str, Any]) -> None:
    """Cover the folders that no two hosts share, leaving in sight those paths below them that must stay."""
    covered = [*spec["disk"], *spec["memory"]]
    kept = {
        path: Path(spec["stage"]) / str(number)
        for number, path in enumerate(spec["keep"])
        if any(Path(path).is_relative_to(folder) for folder in covered)
    }
    for path, stage in kept.items():
        bind(Path(path), stage)
    for folder, source in spec["disk"].items():
        mount("--bind", source, folder)
    for folder, mode in spec["memory"].items():
        mount("-t", "tmpfs", "-o", f"mode={mode}", "lab", folder)
    for path, stage in kept.items():
        bind(stage, Path(path))
    for path in filter(os.path.isdir, spec["hide"]):
        mount("-t", "tmpfs", "-o", "mode=755,ro", "lab", path)
    for target, source in spec["files"].items():
        mount("--bind", source, target)
    for path in spec["readonly"]:
        bind(Path(path), Path(path))
        mount("-o", "remount,bind,ro", path)
    Path("/run/sshd").mkdir(mode=0o755)
    mount("-t", "proc", "proc", "/proc")
    socket.sethostname(spec["hostname"])


def reap() -> None:
    """Collect every child that has ended."""
    while True:
        try:
            pid, _ = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if not pid:
            return


def main() -> None:
    with open(0, "rb", buffering=0, closefd=False) as lifeline:
        spec = json.loads(lifeline.readline())
    outer_pid = Path("/proc/self").readlink()  # /proc is still that of the PID namespace outside
    if spec:
        furnish(spec)
    wake, ring = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    signal.set_wakeup_fd(ring, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    print(outer_pid, flush=True)
    while True:
        ready, _, _ = select.select([0, wake], [], [])
        if 0 in ready and not os.read(0, 1):
            return
        if wake in ready:
            os.read(wake, 4096)
        reap()


if __name__ == "__main__":
    main()
