"""What hosts answer -> what is said of them: each rule once, and who is blamed for a closed port."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from config import loader
from grid_agent.core import preflight, rayports
from grid_agent.core.preflight import Asked

VERSIONS = {"ray": "2.60.0", "python": "3.11.7"}
FOLDER = {"path": "/tmp", "free_mb": 50_000, "total_mb": 100_000, "writable": True}
FINE: dict[str, Any] = {
    "ok": True,
    "now": 1000.5,
    "ray": {"command": "/opt/ray/bin/ray", "versions": [["2.60.0", "3.11"]], "python": "3.11.7"},
    "nofile": [65_536, 1_048_576],
    "disk": FOLDER,
    "shm": {**FOLDER, "path": "/dev/shm"},
    "memory": {"total_mb": 64_000, "available_mb": 60_000},
    "gpus": {"seen": 0, "why": "no NVIDIA driver"},
    "others": [],
}


def ray(python: str | None) -> dict[str, Any]:
    """The right Ray, installed for Python 3.11, beside this Python."""
    return {"command": "/r", "versions": [["2.60.0", "3.11"]], "python": python}


def settings(count: int = 3, **node: Any):
    nodes = "".join(f"  - {{name: w{n}, host: 10.0.1.{n}}}\n" for n in range(count))
    more = ", ".join(f"{key}: {value}" for key, value in node.items())
    head = f"  - {{name: h, host: 10.0.0.1, role: head{', ' + more if more else ''}}}\n"
    return loader.loads(f"cluster: mine\nssh: {{user: me}}\nnodes:\n{head}{nodes}", "test")


def found(answer: dict[str, Any], took_s: float = 1.0, **node: Any) -> dict[str, tuple[str, str]]:
    file = settings(**node)
    asked = Asked(answer, 1000.0, 1000.0 + took_s)
    rows = preflight.of_host(file, file.head, asked, VERSIONS)
    return {row.check: (row.status, row.detail) for row in rows}


def test_a_fine_host_passes() -> None:
    assert {status for status, _ in found(FINE).values()} == {"pass"}


@pytest.mark.parametrize(
    ("change", "check", "status", "word"),
    [
        ({"ray": {"command": None, "versions": []}}, "ray", "fail", "set ssh.ray_bin"),
        ({"ray": {"command": "/r", "versions": [["2.59.0", "3.11"]]}}, "ray", "fail", "is Ray 2.59.0"),
        ({"ray": {"command": "/r", "versions": [["2.60.0", "3.12"]]}}, "ray", "fail", "Python 3.12"),
        ({"ray": {"command": "/r", "versions": []}}, "ray", "warn", "could not be read"),
        ({"ray": ray("3.11.9")}, "ray", "fail", "2.60.0 on Python 3.11.7: Ray lets no other join"),
        ({"ray": ray(None)}, "ray", "warn", "the last digit could not be read"),
        ({"ray": ray("3.12.1")}, "ray", "warn", "is Ray 2.60.0 on Python 3.11;"),
        ({"now": 1090.0}, "clock", "warn", "at least 89.0 s ahead of"),
        ({"now": 900.0}, "clock", "warn", "at least 100.0 s behind"),
        ({"now": 1002.5}, "clock", "pass", "within"),
        ({"nofile": [512, 512]}, "ulimit", "fail", "512 open files"),
        ({"nofile": [1024, 4096]}, "ulimit", "warn", "nofile in /etc/security/limits.conf"),
        ({"nofile": [1024, -1]}, "ulimit", "pass", "unlimited"),
        ({"disk": {**FOLDER, "free_mb": 100}}, "disk", "fail", "set temp_dir"),
        ({"disk": {**FOLDER, "free_mb": 4_900}}, "disk", "fail", "95 % full"),
        ({"disk": {**FOLDER, "free_mb": 9_000}}, "disk", "warn", "nearly full"),
        ({"disk": {**FOLDER, "writable": False}}, "disk", "fail", "may not be written"),
        ({"disk": {"error": "Input/output error"}}, "disk", "fail", "Input/output error"),
        ({"shm": {**FOLDER, "free_mb": 64}}, "shm", "warn", "object_store_memory_mb"),
        ({"shm": {"error": "No such file"}}, "shm", "warn", "No such file"),
        ({"memory": {"total_mb": 64_000, "available_mb": 3_000}}, "memory", "warn", "3000 MiB available"),
        ({"gpus": {"seen": None, "why": "NVML did not answer in 3 s"}}, "gpus", "warn", "nvidia-smi"),
    ],
)  # fmt: skip
def test_each_rule(change: dict[str, Any], check: str, status: str, word: str) -> None:
    rows = found({**FINE, **change})
    assert rows.pop(check)[0] == status
    assert word in found({**FINE, **change})[check][1]
    assert {s for s, _ in rows.values()} == {"pass"}


def test_another_last_digit_of_python_passes_where_ray_is_told_so() -> None:
    level = f"{{{preflight.LEVEL}: minor}}"
    status, text = found({**FINE, "ray": ray("3.11.9")}, env=level)["ray"]
    assert status == "pass"
    assert "Python 3.11.9; the head has" in text
    assert found({**FINE, "ray": ray(None)}, env=level)["ray"][0] == "pass"
    other = {"command": "/r", "versions": [["2.60.0", "3.12"]], "python": "3.12.1"}
    assert found({**FINE, "ray": other}, env=level)["ray"][0] == "fail"


def test_gpus_beside_the_file() -> None:
    short = {**FINE, "gpus": {"seen": 1, "why": ""}}
    assert found(short, num_gpus=2)["gpus"] == (
        "warn",
        "1 seen by NVML, num_gpus is 2: tasks would land on GPUs that are not there",
    )
    assert found(short, num_gpus=1)["gpus"][0] == "pass"


def test_others_and_a_host_that_cannot_be_asked() -> None:
    other = {"pid": 7, "name": "raylet", "user": "eve", "gcs_address": "10.9.9.9:6379"}
    assert "raylet pid 7 of 10.9.9.9:6379 (user eve)" in found({**FINE, "others": [other]})["other ray"][1]
    for error, check in (("host_key_changed", "host key"), ("key_refused", "ssh")):
        said = found({"ok": False, "unreached": True, "error": error, "detail": "do this"})
        assert said == {check: ("fail", "do this")}
    said = found({"ok": False, "error": "internal", "detail": "KeyError"})
    assert said == {"look": ("fail", "KeyError")}


def answers(*closed: tuple[str, str], how: str = "no answer", count: int = 3) -> dict[str, dict[str, Any]]:
    names = ["h", *(f"w{n}" for n in range(count))]
    made = {
        name: {
            "ok": True,
            "listening": {"6701": "ok", "6379": "ok"},
            "reached": {other: {"6701": "ok"} for other in names if other != name},
        }
        for name in names
    }
    for source, destination in closed:
        made[source]["reached"][destination] = {"6701": how}
    return made


def blamed(*closed: tuple[str, str], how: str = "no answer", count: int = 3) -> dict[str, str]:
    rows = preflight.of_ports(settings(count), answers(*closed, how=how, count=count))
    assert len(rows) == count + 1
    return {row.node: row.detail for row in rows if row.status == "fail"}


def test_who_is_blamed_for_a_closed_port() -> None:
    assert blamed() == {}
    assert list(blamed(("h", "w1"))) == ["w1"]
    assert list(blamed(("w1", "h"))) == ["w1"]
    assert list(blamed(("w0", "w1"))) == ["w1"]
    out = [("w0", "w1"), ("w0", "w2")]
    assert list(blamed(*out)) == ["w0"], "the one whose way out is closed, not all others"
    assert list(blamed(("h", "w0"), ("w0", "w1"))) == ["w0"]
    assert blamed(("h", "w1"))["w1"].startswith("h cannot open 6701 of w1 (no answer): open them")
    assert list(blamed(("w0", "w1"), how="refused")) == ["w1"], "it listened: something in between refuses"


def test_a_refusal_proves_nothing_where_nobody_listened() -> None:
    made = answers(("h", "w1"), how="refused")
    made["w1"]["listening"] = {}
    assert preflight.blocked({**made, "w1": {"ok": False, "error": "timeout"}}) == []
    made["w1"]["listening"] = {"6701": "in use"}
    assert preflight.blocked(made) == []
    row = next(r for r in preflight.of_ports(settings(), made) if r.node == "w1")
    assert row.status == "fail"
    assert "cannot be used there: 6701 (in use)" in row.detail


@given(
    st.sets(st.tuples(st.sampled_from(["hw0", "w1", "w2", "w3"]), st.sampled_from(["w0", "w1", "w2", "w3"])))
)
def test_without_those_blamed_all_others_reach_each_other(pairs: set[tuple[str, str]]) -> None:
    closed = [(a if a != "hw0" else "h", b) for a, b in pairs if a != b]
    guilty = blamed(*closed, count=4).keys()
    assert all({a, b} & guilty for a, b in closed)
    assert "h" not in guilty


def test_the_ports_of_a_cluster_of_hosts() -> None:
    file = settings()
    assert rayports.flags(file)[:2] == ["--node-manager-port=6701", "--object-manager-port=6702"]
    assert rayports.flags(loader.load(loader.default_file(), {})) == ["--dashboard-agent-listen-port=0"]
    assert rayports.flows(loader.load(loader.default_file(), {})) == []
    head, worker = file.nodes[0], file.nodes[1]
    assert rayports.sampled(file, worker, head) == [6379, 6701, 6702, 10_002, 19_999]
    assert rayports.sampled(file, head, worker) == [6701, 6702, 6703, 6704, 10_002, 19_999]
    assert rayports.sampled(file, worker, file.nodes[2]) == [6701, 6702, 10_002, 19_999]
