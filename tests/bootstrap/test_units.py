"""The unit of the keeper: what it says, whether systemd itself takes it, and what is said without systemd."""

import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from bootstrap import start, units

PLAN: dict[str, Any] = {
    "cluster": "mine",
    "keeper": {
        "argv": ["/bin/sh", "-P", "-m", "bootstrap.keeper", "-c", "/etc/my $HOME 100%/c.yaml"],
        "env": {"HOME": "/root", "ODD": 'a "quoted" 5% \\ $x', "PATH": "/bin"},
        "cwd": "/",
    },
}


def unit(system: bool = True) -> str:
    return units.render(PLAN, Path("/var/lib/state/keeper.json"), system=system)


def test_it_is_filled_in_completely() -> None:
    text = unit()
    assert "@" not in "".join(line for line in text.splitlines() if not line.startswith("#"))
    assert '"/etc/my $$HOME 100%%/c.yaml"' in text  # systemd's own escapes
    assert 'Environment="ODD=a \\"quoted\\" 5%% \\\\ $x"' in text
    assert "ConditionPathExists=/var/lib/state/keeper.json" in text
    assert "KillMode=process" in text  # the head must outlive its keeper
    assert "WantedBy=multi-user.target" in text
    assert "WantedBy=default.target" in unit(system=False)


def test_systemd_takes_it(tmp_path: Path) -> None:
    verify = shutil.which("systemd-analyze")
    if verify is None:
        pytest.skip("no systemd-analyze")
    file = tmp_path / units.name("mine")
    file.write_text(unit())
    done = subprocess.run(
        [verify, "verify", "--man=no", str(file)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert file.name not in done.stderr
    file.write_text(unit().replace("KillMode=process", "KillMode=nonsense"))  # it does look
    done = subprocess.run(
        [verify, "verify", "--man=no", str(file)], capture_output=True, text=True, check=False
    )
    assert "nonsense" in done.stderr


def test_where_it_belongs() -> None:
    name = "grid-agent-keeper-mine.service"
    assert units.path("mine", 0, {}) == Path("/etc/systemd/system", name)
    assert units.path("mine", 7, {"HOME": "/h"}) == Path("/h/.config/systemd/user", name)
    assert units.path("mine", 7, {"HOME": "/h", "XDG_CONFIG_HOME": "/c"}) == Path("/c/systemd/user", name)


def test_without_systemd_nothing_is_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(units, "RUNNING", tmp_path / "nowhere")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert start.main(["--systemd"]) == 2
    assert "systemd does not run on this machine" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_it_is_written_and_enabled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A systemctl that only notes what it was asked: no systemd runs where tests run."""
    calls = tmp_path / "calls"
    fake = tmp_path / "bin" / "systemctl"
    fake.parent.mkdir()
    fake.write_text(f'#!/bin/sh\necho "$@" >>{calls}\n')
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{fake.parent}:/usr/bin:/bin")
    monkeypatch.setattr(units, "SYSTEM", tmp_path / "units")
    monkeypatch.setattr(units, "RUNNING", tmp_path)
    monkeypatch.setattr(units.os, "getuid", lambda: 0)
    file = units.install(PLAN, Path("/s/keeper.json"), {})
    assert "bootstrap.keeper" in file.read_text()
    assert units.start("mine", {})
    assert calls.read_text().splitlines() == ["daemon-reload", f"enable {file.name}", f"start {file.name}"]
    assert not units.start("other", {})
    fake.write_text("#!/bin/sh\necho no such luck >&2\nexit 1\n")
    with pytest.raises(units.UnitError, match="no such luck"):
        units.install(PLAN, Path("/s/keeper.json"), {})
