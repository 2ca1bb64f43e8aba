"""What is left of a lab when it ends: nothing, however it ends."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.cluster import ROOT, until
from tests.support.hosts import Lab

pytestmark = pytest.mark.hosts


def traces(folders: list[str], namespaces: set[str]) -> list[str]:
    """What this machine still shows of labs: processes, namespaces, mounts, links and files."""
    links = [entry.name for entry in Path("/sys/class/net").iterdir() if entry.name.startswith("port")]
    mounts = [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if "agent-lab" in line]
    found = [*links, *mounts, *(folder for folder in folders if Path(folder).exists())]
    for process in Path("/proc").glob("[0-9]*"):
        try:
            argv = (process / "cmdline").read_text()
            spaces = {str(link.readlink()) for link in (process / "ns").iterdir()}
        except OSError:
            continue
        if spaces & namespaces or any(folder in argv for folder in folders):
            found.append(f"{process.name} {argv}")
    return found


def spaces_of(pids: list[int]) -> set[str]:
    """The namespaces of some processes that are not ours."""
    mine = {str(link.readlink()) for link in Path("/proc/self/ns").iterdir()}
    return {str(link.readlink()) for pid in pids for link in Path(f"/proc/{pid}/ns").iterdir()} - mine


def test_a_second_lab_beside_the_first_leaves_nothing_behind(lab: Lab) -> None:
    with Lab(workers=1) as second:
        assert second.head.run(second.ssh("gpu1", "true")).returncode == 0
        spaces = spaces_of([host.pid1 for host in second.hosts.values()])
        assert len(spaces) >= 10
        assert not spaces & spaces_of([host.pid1 for host in lab.hosts.values()])
        second.hosts["gpu1"].power_off()
    second.close()
    assert traces([str(second.folder)], spaces) == []
    assert lab.head.run(lab.ssh("gpu1", "true")).returncode == 0


def test_a_setup_that_fails_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch, lab: Lab) -> None:
    seen: list[Lab] = []

    def fail(self: Lab) -> None:
        seen.append(self)
        raise OSError("disk full")

    monkeypatch.setattr(Lab, "write_known_hosts", fail)
    with pytest.raises(OSError, match="disk full"):
        Lab(workers=1)
    assert traces([str(seen[0].folder)], set()) == []


def test_a_killed_owner_takes_its_hosts_along(lab: Lab) -> None:
    code = (
        "from tests.support.hosts import Lab; lab = Lab(workers=1)\n"
        "print(lab.folder, *[h.pid1 for h in lab.hosts.values()], flush=True); input()"
    )
    pipe = subprocess.PIPE
    owner = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdin=pipe, stdout=pipe, text=True)
    assert owner.stdout
    folder, *pids = owner.stdout.readline().split()
    spaces = spaces_of([int(pid) for pid in pids])
    owner.kill()
    owner.communicate()
    until(lambda: traces([], spaces) == [], 10)
    with Lab(workers=0):  # sweeps
        assert not Path(folder).exists()
