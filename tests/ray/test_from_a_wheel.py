"""The wheel, installed in an environment of its own and used from a folder that is not the checkout."""

import subprocess
import sys
import venv
from pathlib import Path

import httpx
import pytest

from tests.support.cluster import BIN, ROOT, Cluster

pytestmark = pytest.mark.ray


def test_an_installed_wheel_starts_a_cluster(tmp_path: Path) -> None:
    built = tmp_path / "dist"
    make = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(built)]
    subprocess.run(make, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = built.glob("*.whl")
    home = tmp_path / "venv"
    venv.create(home, with_pip=False)
    pip = [str(BIN / "uv"), "pip", "install", "--quiet", "--python", str(home / "bin" / "python")]
    subprocess.run([*pip, "-c", str(ROOT / "requirements.lock"), str(wheel)], check=True, capture_output=True)

    cluster = Cluster(workers=1)
    environ = {k: v for k, v in cluster.environ().items() if k != "PYTHONPATH"}
    try:
        python = str(home / "bin" / "python")
        # Not from the folder of strangers: `-m` takes the working directory first, as ever in Python.
        started = subprocess.run(
            [python, "-P", "-m", "bootstrap.start", "-c", str(cluster.file)],
            cwd=tmp_path,
            env=environ,
            capture_output=True,
            text=True,
            check=False,
        )
        assert started.returncode == 0, started.stdout + started.stderr
        assert httpx.get(f"{cluster.url}/cluster/health", trust_env=False).json()["status"] == "pass"
        status = subprocess.run(
            [str(home / "bin" / "grid-agent"), "status"], env=cluster.environ(), check=False
        )
        assert status.returncode == 0
        default = subprocess.run(
            [python, "-P", "-m", "bootstrap.start", "--dry-run"],
            cwd=tmp_path,
            env=environ,
            capture_output=True,
            text=True,
            check=False,
        )
        assert "worker2" in default.stdout, default.stderr  # the shipped local.yaml is in the wheel
    finally:
        cluster.close()
