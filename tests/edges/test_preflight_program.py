"""Which Python a `ray` command runs on, to the last digit: that of its first line, else the one beside it."""

import platform
import sys
from pathlib import Path

import pytest

from grid_agent.edges import preflight_program
from tests.support.cluster import BIN

HERE = platform.python_version()


def script(path: Path, text: str) -> Path:
    path.write_text(text)
    path.chmod(0o755)
    return path


def asked(command: Path, path: str) -> str | None:
    request = {"op": "facts", "command": str(command), "path": path, "temp_dir": "/tmp", "gcs_addresses": []}
    answer = preflight_program.handle(request)
    assert answer["ok"], answer
    python: str | None = answer["ray"]["python"]
    return python


def test_the_installed_ray() -> None:
    assert asked(BIN / "ray", "/usr/bin:/bin") == HERE


@pytest.mark.parametrize(
    ("first_line", "beside", "version"),
    [
        (f"#!{sys.executable} -sP", "echo 3.9.99", HERE),
        ("#!/usr/bin/env python-of-the-path", "echo 3.9.99", "3.8.88"),
        ("#!/bin/sh", "echo 3.9.99", "3.9.99"),
        ("#!/nowhere/python3", "echo 3.9.99", "3.9.99"),
        ("#!/bin/sh", "exit 1", None),
        ("", None, None),
    ],
)
def test_where_it_says_so(tmp_path: Path, first_line: str, beside: str | None, version: str | None) -> None:
    command = script(tmp_path / "ray", f"{first_line}\n")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    script(elsewhere / "python-of-the-path", "#!/bin/sh\necho 3.8.88\n")
    if beside is not None:
        script(tmp_path / "python3", f"#!/bin/sh\n{beside}\n")
    assert asked(command, f"{elsewhere}:/usr/bin:/bin") == version
