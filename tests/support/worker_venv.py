"""The workers' Python: Ray at the locked version and nothing of ours, built once and kept for later runs."""

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CACHE = Path("/var/tmp")


def uv() -> str | None:
    """The uv command: next to this interpreter, or on the PATH."""
    beside = Path(sys.executable).parent / "uv"
    return str(beside) if beside.is_file() else shutil.which("uv")


def worker_venv() -> Path:
    """A virtual environment with only `ray[default]`; built the first time, in about half a minute."""
    lock = ROOT / "requirements.lock"
    made_from = f"{lock.read_text()} {sys.version} {sys.base_prefix}"
    folder = CACHE / f"grid-agent-worker-venv-{hashlib.sha256(made_from.encode()).hexdigest()[:12]}"
    done = folder / ".complete"
    with folder.with_suffix(".lock").open("w") as one_builder:
        fcntl.flock(one_builder, fcntl.LOCK_EX)
        if not done.exists():
            _build(folder, lock)
            done.touch()
    return folder


def _build(folder: Path, lock: Path) -> None:
    command = uv()
    assert command, "no uv: run scripts/setup"
    shutil.rmtree(folder, ignore_errors=True)
    base = str(Path(os.path.realpath(sys.executable)))
    python = str(folder / "bin" / "python")
    for argv in (
        ["venv", "--quiet", "--no-project", "--python", base, str(folder)],
        [
            "pip",
            "install",
            "--quiet",
            "--python",
            python,
            "--compile-bytecode",
            "-c",
            str(lock),
            "ray[default]",
        ],
    ):
        built = subprocess.run(
            [command, *argv], capture_output=True, text=True, check=False, cwd="/", umask=0o022
        )
        assert built.returncode == 0, f"uv {' '.join(argv)}:\n{built.stderr}"
