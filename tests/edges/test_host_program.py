"""The host program against real processes that look like Ray's."""

import errno
import json
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from grid_agent.edges import host, hosts
from grid_agent.edges.host import common, ending, locks, looking, parts, ports, procs, program, starting
from grid_agent.edges.host.program import handle

PORT = 10_000 + os.getpid() % 50_000  # so that two runs at once do not see each other
GCS = f"192.0.2.9:{PORT}"
OTHER = f"192.0.2.9:{PORT}0"
ID1 = "a1" * 28
ID2 = "b2" * 28
SOURCE = hosts.source_of(program)
SLEEP = "import time; time.sleep(60)"
DEAF = "import signal, time; signal.signal(15, signal.SIG_IGN); print('up', flush=True); time.sleep(60)"
# A worker: started by its raylet, in a session of its own, so that only its environment tells whose it is.
PARENT = (
    "import os, subprocess, time;"
    "env = {'RAY_RAYLET_PID': str(os.getpid())};"
    "p = subprocess.Popen([os.readlink('/proc/self/exe'), '-Sc', 'import time; time.sleep(60)'], env=env,"
    " start_new_session=True);"
    "print(p.pid, flush=True); time.sleep(60)"
)

Spawn = Callable[..., subprocess.Popen[bytes]]


@pytest.fixture
def spawn() -> Iterator[Spawn]:
    """Starts a Python process under any argv[0]; ends what is left afterwards, by its own handle."""
    procs: list[subprocess.Popen[bytes]] = []

    def begin(argv0: str, *args: str, code: str = SLEEP, **kwargs: Any) -> subprocess.Popen[bytes]:
        command = [argv0, "-SEc", code, *args]
        proc = subprocess.Popen(command, executable=sys.executable, stdout=subprocess.PIPE, **kwargs)
        procs.append(proc)
        wait_for(lambda: Path(f"/proc/{proc.pid}/cmdline").read_bytes().startswith(argv0.encode()))
        return proc

    yield begin
    for proc in procs:
        proc.kill()
        proc.wait()
        if proc.stdout:
            proc.stdout.close()


def wait_for(condition: Callable[[], Any], seconds: float = 5.0) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.01)


def raylet(spawn: Spawn, name: str, node_id: str, gcs: str = GCS, **kwargs: Any) -> subprocess.Popen[bytes]:
    args = (f"--node_id={node_id}", f"--gcs-address={gcs}", f"--node-name={name}", "--session_dir=/nowhere/s")
    return spawn("/opt/ray/raylet/raylet", *args, **kwargs)


def seen(**request: Any) -> dict[str, Any]:
    answer = handle({"op": "look", "gcs_address": GCS, **request})
    assert answer["ok"], answer
    return answer


def pids(rows: list[dict[str, Any]]) -> set[int]:
    return {row["pid"] for row in rows}


def runs(pid: int) -> bool:
    proc = procs.read_proc(pid)
    return proc is not None and not proc.ended


# --- looking ---


def test_a_child_that_a_raylet_has_just_forked_is_no_second_raylet(spawn: Spawn) -> None:
    """It has its parent's arguments until it becomes a worker, which may take long without memory."""
    code = "import os, time; p = os.fork(); print(p, flush=True) if p else None; time.sleep(60)"
    forking = raylet(spawn, "gpu1", ID1, code=code)
    assert forking.stdout is not None
    child = int(forking.stdout.readline())
    try:
        assert [row["pid"] for row in seen(node_name="gpu1")["raylets"]] == [forking.pid]
        forking.kill()
        forking.wait()
        assert [row["pid"] for row in seen(node_name="gpu1")["raylets"]] == [child]  # and nobody's child
    finally:
        os.kill(child, signal.SIGKILL)


def test_a_name_is_not_its_prefix_and_a_cluster_not_another(spawn: Spawn) -> None:
    one = raylet(spawn, "gpu1", ID1)
    ten = raylet(spawn, "gpu10", ID2)
    other = raylet(spawn, "gpu1", "c3" * 28, gcs=OTHER)
    assert pids(seen(node_name="gpu1")["raylets"]) == {one.pid}
    assert pids(seen(node_name="gpu10")["raylets"]) == {ten.pid}
    assert pids(seen(node_id=ID2)["raylets"]) == {ten.pid}
    assert pids(seen()["raylets"]) == {one.pid, ten.pid}
    by_port = handle({"op": "look", "gcs_port": f"{PORT}0"})
    assert pids(by_port["raylets"]) == {other.pid}


def test_a_row_says_who_and_since_when(spawn: Spawn) -> None:
    proc = raylet(spawn, "gpu1", ID1)
    (row,) = seen(node_name="gpu1")["raylets"]
    assert row["pid"] == proc.pid
    assert (row["node_id"], row["node_name"], row["gcs_address"]) == (ID1, "gpu1", GCS)
    assert (row["session_dir"], row["head"], row["uid"]) == ("/nowhere/s", False, os.getuid())
    assert 0 <= row["age_s"] < 30
    assert row["start_ticks"] > 0
    assert row["stat"] in "RSD"


def test_a_process_that_only_mentions_a_raylet_is_none(spawn: Spawn) -> None:
    spawn("python", "/opt/ray/raylet", f"--gcs-address={GCS}", "--node-name=gpu1")
    spawn("raylet-watcher", f"--gcs-address={GCS}", "--node-name=gpu1")
    raylet(spawn, "gpu2", ID2, code=SLEEP + f"  # --node-name=gpu1 --gcs-address={GCS}")
    assert seen(node_name="gpu1")["raylets"] == []


def test_a_stopped_raylet_lives_and_says_so(spawn: Spawn) -> None:
    proc = raylet(spawn, "gpu1", ID1)
    proc.send_signal(signal.SIGSTOP)
    wait_for(lambda: seen(node_name="gpu1")["raylets"][0]["stat"] == "T")


def test_a_node_id_is_enough_whatever_the_address_says(spawn: Spawn) -> None:
    proc = raylet(spawn, "gpu1", ID1, gcs=f"head.invalid:{PORT}")
    assert pids(seen(node_id=ID1)["raylets"]) == {proc.pid}
    assert seen(node_name="gpu1")["raylets"] == []
    assert pids(ended(node_id=ID1)["ended"]) == {proc.pid}


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("localhost:1", "127.0.0.1:1", True),
        ("127.0.0.1:1", "localhost:1", True),
        ("[::ffff:127.0.0.1]:1", "127.0.0.1:1", True),
        ("[fd00:0::1]:1", "[fd00::1]:1", True),
        ("localhost:1", "127.0.0.1:11", False),
        ("192.0.2.1:1", "192.0.2.2:1", False),
        ("nowhere.invalid:1", "192.0.2.2:1", False),
        ("nowhere.invalid:1", "elsewhere.invalid:1", False),
        ("a..b:1", "192.0.2.2:1", False),
        ("", "192.0.2.2:1", False),
        (None, "192.0.2.2:1", False),
    ],
)
def test_an_address_is_one_however_it_is_spelled(one: str | None, other: str, *, same: bool) -> None:
    assert parts.same_gcs(one, other) is same


def test_a_slow_resolver_delays_little(monkeypatch: pytest.MonkeyPatch) -> None:
    def slow(*_args: object) -> list[Any]:
        time.sleep(1)
        return []

    monkeypatch.setattr(socket, "getaddrinfo", slow)
    monkeypatch.setattr(parts, "RESOLVE_S", 0.05)
    began = time.monotonic()
    assert not parts.same_gcs("head.example:1", "192.0.2.2:1")
    assert time.monotonic() - began < 0.5


def test_a_raylet_that_joined_by_host_name_is_found_by_its_own(spawn: Spawn) -> None:
    proc = raylet(spawn, "gpu1", ID1, gcs=f"localhost:{PORT}")
    raylet(spawn, "gpu1", ID2, gcs=f"localhost:{PORT}0")
    answer = handle({"op": "look", "gcs_address": f"127.0.0.1:{PORT}", "node_name": "gpu1"})
    assert pids(answer["raylets"]) == {proc.pid}


def hide_arguments(monkeypatch: pytest.MonkeyPatch, pid: int) -> None:
    """As when another user's processes are hidden."""
    read = common.read_bytes_of
    monkeypatch.setattr(
        procs, "read_bytes_of", lambda path: b"" if path == f"/proc/{pid}/cmdline" else read(path)
    )


def nameless_raylet(spawn: Spawn) -> subprocess.Popen[bytes]:
    """A raylet by the kernel's name of it, too, which is that of the file it was started from."""
    code = "open('/proc/self/comm', 'w').write('raylet'); " + SLEEP
    proc = raylet(spawn, "gpu1", ID1, code=code)
    wait_for(lambda: Path(f"/proc/{proc.pid}/comm").read_text() == "raylet\n")
    return proc


def test_a_raylet_that_hides_whose_it_is_is_counted(spawn: Spawn, monkeypatch: pytest.MonkeyPatch) -> None:
    proc = nameless_raylet(spawn)
    assert "unsure" not in seen(node_name="gpu1")
    hide_arguments(monkeypatch, proc.pid)
    answer = seen(node_name="gpu1")
    assert (answer["raylets"], answer["unsure"]) == ([], 1)
    proc.kill()
    wait_for(lambda: not runs(proc.pid))
    assert "unsure" not in seen(node_name="gpu1")


def test_a_zombie_is_not_alive(tmp_path: Path) -> None:
    program = tmp_path / "raylet"
    program.write_bytes(Path("/bin/sleep").read_bytes())
    program.chmod(0o700)
    proc = subprocess.Popen([str(program), "60"])
    proc.kill()
    os.waitid(os.P_PID, proc.pid, os.WEXITED | os.WNOWAIT)
    try:
        answer = seen()
        assert answer["raylets"] == []
        assert proc.pid in pids(answer["zombies"])
    finally:
        proc.wait()


def test_the_host_tells_how_it_is() -> None:
    host = seen()["host"]
    assert host["cpus"] >= 1
    assert 0 < host["mem_available_mb"] <= host["mem_total_mb"]
    assert set(host["psi"]) == {"cpu", "memory", "io"}
    assert host["uptime_s"] > 0
    assert len(host["boot_id"]) == 36


def test_what_a_dead_raylet_left_is_found_by_environment(spawn: Spawn) -> None:
    agent = spawn("ray::DashboardAgent", env={"RAY_NODE_ID": ID1})
    worker = spawn("ray::IDLE", env={"RAY_RAYLET_PID": "99999991"})
    spawn("ray::IDLE", env={"RAY_RAYLET_PID": "99999992"})
    assert pids(seen(node_id=ID1)["remains"]) == {agent.pid}
    assert pids(seen(node_id=ID1, raylet_pid=99999991)["remains"]) == {agent.pid, worker.pid}
    assert seen()["remains"] == []


def test_what_a_dead_raylet_left_is_found_by_its_log_and_a_reader_is_not(
    spawn: Spawn, tmp_path: Path
) -> None:
    logs = tmp_path / "logs"
    logs.mkdir()
    log = logs / "raylet.1.out"
    log.write_text(f"(raylet) main.cc: Setting node ID node_id={ID1}\n")
    (logs / "raylet.out").write_text(f"(raylet) main.cc: Setting node ID node_id={ID2}\n")
    with log.open("a") as out, log.open() as into:
        agent = spawn("ray::DashboardAgent", env={}, stderr=out)
        spawn("ray::reader", env={}, stdin=into)
        spawn("some-editor", env={}, stderr=out)
        (row,) = seen(node_id=ID1, session_dir=str(tmp_path))["remains"]
    assert row["pid"] == agent.pid
    assert "log" in row["why"]


def test_nothing_remains_of_a_raylet_that_lives(spawn: Spawn) -> None:
    raylet(spawn, "gpu1", ID1)
    spawn("ray::DashboardAgent", env={"RAY_NODE_ID": ID1})
    assert seen(node_id=ID1)["remains"] == []


def test_a_log_monitor_is_told_of_only_when_asked_and_needed_by_nobody(spawn: Spawn) -> None:
    script = "/opt/lib/ray/_private/log_monitor.py"
    mine = spawn("python", script, f"--gcs-address={GCS}", "--session-dir=/nowhere/s")
    spawn("python", script, f"--gcs-address={OTHER}", "--session-dir=/nowhere/t")
    assert seen(node_id=ID1)["remains"] == []
    assert pids(seen(node_id=ID1, log_monitor=True)["remains"]) == {mine.pid}
    raylet(spawn, "gpu2", ID2)
    assert seen(node_id=ID1, log_monitor=True)["remains"] == []


# --- ending ---


def ended(**request: Any) -> dict[str, Any]:
    return handle({"op": "end", "gcs_address": GCS, "term_s": 1.0, "kill_s": 3.0, **request})


def test_exactly_one_raylet_ends(spawn: Spawn) -> None:
    one = raylet(spawn, "gpu1", ID1)
    ten = raylet(spawn, "gpu10", ID2)
    other = raylet(spawn, "gpu1", ID1, gcs=OTHER)
    answer = ended(node_name="gpu1", all_of_name=True)
    assert answer["ok"], answer
    assert answer["ended"] == [{"pid": one.pid, "name": "raylet", "signal": "SIGTERM"}]
    assert not runs(one.pid)
    assert runs(ten.pid)
    assert runs(other.pid)


def test_an_incarnation_ends_and_the_newer_one_of_the_same_name_lives(spawn: Spawn) -> None:
    old = raylet(spawn, "gpu1", ID1)
    new = raylet(spawn, "gpu1", ID2)
    assert ended(node_name="gpu1", node_id=ID1)["ok"]
    assert (runs(old.pid), runs(new.pid)) == (False, True)


def test_all_of_a_name_end(spawn: Spawn) -> None:
    procs = [raylet(spawn, "gpu1", ID1), raylet(spawn, "gpu1", ID2)]
    assert pids(ended(node_name="gpu1", all_of_name=True)["ended"]) == {proc.pid for proc in procs}


def test_a_name_alone_ends_nothing(spawn: Spawn) -> None:
    proc = raylet(spawn, "gpu1", ID1)
    for request in ({"node_name": "gpu1"}, {"all_of_name": True}, {}):
        assert ended(**request)["error"] == "bad_request"
    assert handle({"op": "end", "node_id": ID1})["error"] == "bad_request"
    assert runs(proc.pid)


def test_a_stopped_raylet_ends_at_once(spawn: Spawn) -> None:
    proc = raylet(spawn, "gpu1", ID1)
    proc.send_signal(signal.SIGSTOP)
    wait_for(lambda: seen(node_id=ID1)["raylets"][0]["stat"] == "T")
    began = time.monotonic()
    answer = ended(node_id=ID1, term_s=20.0)
    assert answer["ok"]
    assert answer["ended"][0]["signal"] == "SIGKILL"
    assert time.monotonic() - began < 10.0  # it cannot hear SIGTERM: nobody waits for that


def test_a_raylet_that_ignores_the_request_is_killed(spawn: Spawn) -> None:
    proc = raylet(spawn, "gpu1", ID1, code=DEAF)
    assert proc.stdout
    proc.stdout.readline()
    answer = ended(node_id=ID1, term_s=0.2)
    assert answer["ok"]
    assert answer["ended"] == [{"pid": proc.pid, "name": "raylet", "signal": "SIGKILL"}]


def test_workers_in_sessions_of_their_own_end_too(spawn: Spawn) -> None:
    proc = raylet(spawn, "gpu1", ID1, code=PARENT)
    assert proc.stdout
    worker = int(proc.stdout.readline())
    assert runs(worker)
    assert ended(node_id=ID1)["ok"]
    assert not runs(worker)


# Another cluster's raylet, started by a task: below the raylet whose task it was, and its worker below it.
BELOW = """
import os, subprocess, time
python, worker = os.readlink("/proc/self/exe"), "import time; time.sleep(60)"
code = f"import subprocess, time; subprocess.Popen([{python!r}, '-Sc', {worker!r}]); time.sleep(60)"
argv = ["/opt/raylet", "-Sc", code, "--gcs-address=OTHER", "--node-name=gpu9", "--node_id=" + "e5" * 28]
subprocess.Popen(argv, executable=python)
time.sleep(60)
"""


@pytest.mark.parametrize("whole", [False, True])
def test_a_raylet_of_another_cluster_below_one_that_ends_keeps_its_own(spawn: Spawn, *, whole: bool) -> None:
    proc = raylet(spawn, "gpu1", ID1, code=BELOW.replace("OTHER", OTHER))
    wait_for(lambda: len(procs.descendants(procs.process_table(), [proc.pid])) == 2)
    below = procs.descendants(procs.process_table(), [proc.pid])
    (its_raylet,) = handle({"op": "look", "gcs_address": OTHER})["raylets"]
    try:
        answer = handle({"op": "end_cluster", "gcs_address": GCS}) if whole else ended(node_id=ID1)
        assert pids(answer["ended"]) == {proc.pid}
        assert all(map(runs, below))
    finally:
        handle({"op": "end", "gcs_address": OTHER, "node_id": its_raylet["node_id"]})
    assert not any(map(runs, below))


def test_remains_of_a_raylet_long_gone_end_and_those_of_others_live(spawn: Spawn) -> None:
    agent = spawn("ray::DashboardAgent", env={"RAY_NODE_ID": ID1})
    neighbour = raylet(spawn, "gpu2", ID2, code=PARENT)
    assert neighbour.stdout
    its_worker = int(neighbour.stdout.readline())
    # The pid of the dead raylet has been used again, by a neighbour: its workers are not ours.
    answer = ended(node_id=ID1, raylet_pid=neighbour.pid)
    assert answer["ok"]
    assert pids(answer["ended"]) == {agent.pid}
    assert runs(neighbour.pid)
    assert runs(its_worker)


def test_what_held_gpu_memory_is_ended_by_pid_and_start_and_no_other(spawn: Spawn) -> None:
    holder, other = spawn("python"), spawn("python")
    neighbour = raylet(spawn, "gpu2", ID2, code=PARENT)
    assert neighbour.stdout
    its_worker = int(neighbour.stdout.readline())
    start = {pid: procs.read_proc(pid).start for pid in (holder.pid, other.pid, its_worker)}
    rows = [
        {"pid": holder.pid, "start_ticks": start[holder.pid]},
        {"pid": other.pid, "start_ticks": start[other.pid] + 1},  # its pid was used again
        {"pid": its_worker, "start_ticks": start[its_worker]},  # belongs to a raylet that lives
    ]
    answer = ended(node_id=ID1, holders=rows)
    assert pids(answer["ended"]) == {holder.pid}
    assert runs(other.pid)
    assert runs(its_worker)


def test_a_pid_used_again_is_not_signalled(spawn: Spawn) -> None:
    proc = raylet(spawn, "gpu1", ID1)
    row = procs.read_proc(proc.pid)
    assert row is not None
    before = row._replace(start=row.start - 1)
    assert ending._signal(before, signal.SIGKILL) == "gone"
    assert not procs.is_alive(before)
    assert runs(proc.pid)
    assert ending._signal(row, signal.SIGKILL) is None


def test_without_pidfd_the_start_time_is_checked_all_the_same(
    spawn: Spawn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(os, "pidfd_open")
    proc = raylet(spawn, "gpu1", ID1)
    row = procs.read_proc(proc.pid)
    assert row is not None
    assert ending._signal(row._replace(start=1), signal.SIGKILL) == "gone"
    assert runs(proc.pid)
    assert ending._signal(row, signal.SIGKILL) is None
    wait_for(lambda: not runs(proc.pid))


def test_what_cannot_be_ended_is_named(spawn: Spawn, monkeypatch: pytest.MonkeyPatch) -> None:
    proc = raylet(spawn, "gpu1", ID1)
    monkeypatch.setattr(ending, "_signal", lambda _proc, _number: "cannot be signalled: no permission")
    answer = ended(node_id=ID1, term_s=0.05, kill_s=0.05)
    assert (answer["ok"], answer["error"]) == (False, "not_ended")
    (row,) = answer["left"]
    assert row["pid"] == proc.pid
    assert "no permission" in row["why"]
    assert "no permission" in answer["detail"]


def test_where_there_is_nothing_to_end_nothing_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr(time, "sleep", waits.append)
    answer = ended(node_name="gpu1", node_id=ID1, all_of_name=True, log_monitor=True)
    assert answer == {"ok": True, "ended": [], "left": []}
    assert waits == []


HOSTILE = ["; rm -rf /tmp/x", "$(touch /tmp/x)", "a\nb", "--node-name=gpu1", "", "*", "é"]


@pytest.mark.parametrize("name", HOSTILE)
def test_names_are_only_names(spawn: Spawn, name: str) -> None:
    bystander = raylet(spawn, "gpu1", ID1)
    assert seen(node_name=name)["raylets"] == []
    assert ended(node_name=name, all_of_name=True).get("ended", []) == []
    assert runs(bystander.pid)
    proc = raylet(spawn, name, ID2)
    assert pids(seen(node_name=name)["raylets"]) == {proc.pid}


# --- starting ---

FAKE_RAY = """\
import os, subprocess, sys, time
name, gcs, what = sys.argv[1:4]
if what in ("up", "slow", "leak", "hang", "lie"):
    if what == "slow":
        time.sleep(1.5)
    if what != "lie":
        argv = ["/opt/raylet", "-S", "-c", "import time; time.sleep(60)",
                "--gcs-address=" + gcs, "--node-name=" + name, "--node_id=" + "d4" * 28]
        subprocess.Popen(argv, executable=sys.executable, close_fds=what != "leak")
    time.sleep(60 if what == "hang" else 0.3)
elif what == "fail":
    for number in range(100):
        print("\\x1b[31mline", number, "x" * 300, "\\x1b[0m", flush=True)
    print("\\x1b[1mRuntimeError: Version mismatch\\x1b[0m", file=sys.stderr)
    sys.exit(3)
elif what == "env":
    stdin, handles = os.readlink("/proc/self/fd/0"), os.listdir("/proc/self/fd")
    found = [f"/proc/self/fd/{number}" for number in handles]
    print(sorted(os.environ), os.getcwd(), stdin, sorted(map(os.readlink, filter(os.path.exists, found))))
    sys.exit(1)
"""


Send = Callable[[dict[str, Any]], dict[str, Any]]


@pytest.fixture
def begin(tmp_path: Path) -> Iterator[Callable[..., dict[str, Any]]]:
    """Starts through the program; what came up is ended afterwards through it too."""
    script = tmp_path / "fake_ray.py"
    script.write_text(FAKE_RAY)

    def run(what: str, name: str = "gpu1", send: Send = handle, **more: Any) -> dict[str, Any]:
        request = {
            "op": "start",
            "argv": [sys.executable, "-S", str(script), name, GCS, what],
            "env": {"PATH": "/usr/bin:/bin"},
            "log": str(tmp_path / "logs" / "gpu1.log"),
            "lock": str(tmp_path / "locks" / "gpu1.lock"),
            "timeout_s": 10,
            "node_name": name,
            "gcs_address": GCS,
        }
        return send({**request, **more})

    yield run
    assert ended(node_id="d4" * 28)["ok"]


def test_a_start_brings_up_one_raylet_that_outlives_its_starter(
    begin: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    answer = begin("up")
    assert answer["ok"], answer
    assert answer["took_s"] > 0
    pid = answer["raylet"]["pid"]
    proc = procs.read_proc(pid)
    assert proc is not None
    assert proc.ppid != os.getpid()
    assert proc.sid != os.getsid(0)
    held = {target for _, target in procs.open_files(pid)}
    assert str(tmp_path / "locks" / "gpu1.lock") not in held
    for name in ("logs", "locks"):
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o700
        (file,) = (tmp_path / name).iterdir()
        assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_a_second_start_is_refused_with_the_first(begin: Callable[..., dict[str, Any]]) -> None:
    first = begin("up")
    second = begin("up")
    assert (second["ok"], second["error"]) == (False, "already_running")
    assert second["raylet"]["pid"] == first["raylet"]["pid"]
    assert str(first["raylet"]["pid"]) in second["detail"]


def test_two_starts_at_once_bring_up_one(begin: Callable[..., dict[str, Any]]) -> None:
    answers: list[dict[str, Any]] = []
    threads = [threading.Thread(target=lambda: answers.append(begin("up"))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(answer.get("error", "") for answer in answers) == ["", "already_running", "already_running"]
    assert len(seen(node_name="gpu1")["raylets"]) == 1


def test_a_start_does_not_wait_for_another_for_ever(begin: Callable[..., dict[str, Any]]) -> None:
    thread = threading.Thread(target=lambda: begin("hang", timeout_s=1.0))
    thread.start()
    time.sleep(0.3)
    try:
        assert begin("up", lock_wait_s=0.1)["error"] == "busy"
    finally:
        thread.join()


def test_a_start_keeps_its_lock_when_its_starter_dies(begin: Callable[..., dict[str, Any]]) -> None:
    def elsewhere(request: dict[str, Any]) -> dict[str, Any]:
        program = subprocess.Popen([sys.executable, "-c", SOURCE], stdin=subprocess.PIPE)
        assert program.stdin
        program.stdin.write(json.dumps(request).encode())
        program.stdin.close()
        wait_for(lambda: procs.descendants(procs.process_table(), [program.pid]))
        program.kill()
        program.wait()
        return {}

    begin("slow", send=elsewhere)
    assert begin("up", lock_wait_s=0.1)["error"] == "busy"
    assert begin("up", lock_wait_s=5)["error"] == "already_running"
    assert len(seen(node_name="gpu1")["raylets"]) == 1


def test_a_daemon_that_has_got_the_lock_does_not_keep_it(begin: Callable[..., dict[str, Any]]) -> None:
    assert begin("leak")["ok"]
    assert begin("up", lock_wait_s=0.1)["error"] == "already_running"


def test_a_start_that_a_person_forbade_is_refused(
    begin: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "stopped").mkdir()
    (tmp_path / "stopped" / "gpu1").touch()
    answer = begin("up", unless="~/stopped/gpu1")
    assert answer["error"] == "stopped"
    assert "person stopped this node" in answer["detail"]
    assert seen(node_name="gpu1")["raylets"] == []
    (tmp_path / "stopped" / "gpu1").unlink()
    assert begin("up", unless="~/stopped/gpu1")["ok"]


def test_what_a_person_forbids_while_a_start_waits_counts(
    begin: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    first = threading.Thread(target=lambda: begin("hang", timeout_s=1.0))
    first.start()
    wait_for(lambda: seen(node_name="gpu1")["raylets"])
    forbid = threading.Timer(0.3, (tmp_path / "gpu1").touch)
    forbid.start()
    try:
        assert begin("up", unless=str(tmp_path / "gpu1"))["error"] == "stopped"
    finally:
        first.join()
        forbid.join()


def test_no_second_start_beside_a_raylet_that_hides_whose_it_is(
    begin: Callable[..., dict[str, Any]], spawn: Spawn, monkeypatch: pytest.MonkeyPatch
) -> None:
    proc = nameless_raylet(spawn)
    hide_arguments(monkeypatch, proc.pid)
    monkeypatch.setattr(starting, "SETTLE_S", 0.1)
    answer = begin("up")
    assert answer["error"] == "unsure"
    assert str(proc.pid) in answer["detail"]
    assert seen(node_name="gpu1")["raylets"] == []


def test_no_second_start_beside_a_raylet_that_joined_by_host_name(
    begin: Callable[..., dict[str, Any]], spawn: Spawn
) -> None:
    proc = raylet(spawn, "gpu1", ID1, gcs=f"localhost:{PORT}")
    answer = begin("up", gcs_address=f"127.0.0.1:{PORT}")
    assert (answer["error"], answer["raylet"]["pid"]) == ("already_running", proc.pid)


def test_an_end_waits_for_the_start_and_then_ends_it(
    begin: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    lock = str(tmp_path / "locks" / "gpu1.lock")
    thread = threading.Thread(target=lambda: begin("slow"))
    thread.start()
    wait_for(Path(lock).exists)
    time.sleep(0.2)
    stop = {"node_name": "gpu1", "all_of_name": True, "lock": lock}
    try:
        assert ended(**stop, lock_wait_s=0.1)["error"] == "busy"
        whole = {"op": "end_cluster", "gcs_address": GCS, "lock": [lock], "lock_wait_s": 0.1}
        assert handle(whole)["error"] == "busy"
        assert len(ended(**stop, lock_wait_s=5)["ended"]) == 1
    finally:
        thread.join()
    assert seen(node_name="gpu1")["raylets"] == []


def test_an_end_makes_no_lock(tmp_path: Path) -> None:
    nobody = str(tmp_path / "never" / "gpu1.lock")
    assert ended(node_name="gpu1", all_of_name=True, lock=nobody)["ended"] == []
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_stops_no_end_but_a_start(
    begin: Callable[..., dict[str, Any]], spawn: Spawn, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_path: str, _flags: int) -> int:
        raise OSError(errno.EROFS, "Read-only file system")

    proc = raylet(spawn, "gpu1", ID1)
    monkeypatch.setattr(locks, "private_file", full)
    assert begin("up")["error"] == "disk"
    assert pids(ended(node_id=ID1, lock="/locks/gpu1")["ended"]) == {proc.pid}


@pytest.mark.parametrize("deep", [False, True])
def test_a_repair_holds_the_lock_from_its_fence_on(
    begin: Callable[..., dict[str, Any]], spawn: Spawn, *, deep: bool
) -> None:
    old = raylet(spawn, "gpu1", ID1)

    def repair(start: dict[str, Any]) -> dict[str, Any]:
        inner = {"op": "steps", "requests": [start]} if deep else start
        fence = {"op": "end", "gcs_address": GCS, "node_id": ID1}
        return handle({"op": "steps", "requests": [fence, inner]})

    thread = threading.Thread(target=lambda: begin("hang", name="gpu2", timeout_s=1.0))
    thread.start()
    wait_for(lambda: seen(node_name="gpu2")["raylets"])
    try:
        assert begin("up", send=repair, lock_wait_s=0.1)["error"] == "busy"
        assert runs(old.pid)
    finally:
        thread.join()
    answer = begin("up", send=repair, lock_wait_s=0.1)
    assert answer["ok"], answer
    assert not runs(old.pid)


def test_a_start_that_takes_too_long_leaves_nothing(begin: Callable[..., dict[str, Any]]) -> None:
    answer = begin("hang", timeout_s=0.8)
    assert answer["error"] == "timeout"
    assert "0.8 s" in answer["detail"]
    assert seen(node_name="gpu1")["raylets"] == []


def test_a_failed_start_says_why_in_few_words(begin: Callable[..., dict[str, Any]]) -> None:
    answer = begin("fail")
    assert (answer["error"], answer["code"]) == ("version", 3)
    assert "RuntimeError: Version mismatch" in answer["detail"]
    assert "\x1b" not in answer["detail"]
    assert len(answer["detail"]) <= common.TAIL_CHARS
    assert answer["detail"].count("\n") < common.TAIL_LINES


def test_success_without_a_raylet_is_a_failure(begin: Callable[..., dict[str, Any]]) -> None:
    answer = begin("lie")
    assert answer["error"] == "start_failed"
    assert "no such raylet" in answer["detail"]


def test_nothing_but_the_lock_is_inherited(
    begin: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("RAY_JOB_ID", "01000000")
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.set_inheritable(True)
        said = begin("env")["detail"]
    assert "RAY_JOB_ID" not in said
    assert "'PATH'" in said
    assert " / /dev/null " in said
    log, lock = f"{tmp_path}/logs/gpu1.log", f"{tmp_path}/locks/gpu1.lock"
    assert said.endswith(str(["/dev/null", lock, log, log])), said


def test_hostile_arguments_stay_arguments(begin: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    name = f"x; touch {tmp_path}/pwned; $(touch {tmp_path}/pwned)\n`touch {tmp_path}/pwned`"
    answer = begin("up", name=name)
    assert answer["ok"], answer
    assert answer["raylet"]["node_name"] == name
    assert not (tmp_path / "pwned").exists()


@pytest.mark.parametrize(
    ("path", "word"), [("/nowhere/bin/ray", "No such file"), ("/etc/passwd", "Permission")]
)
def test_a_missing_ray_is_named(begin: Callable[..., dict[str, Any]], path: str, word: str) -> None:
    answer = begin("up", argv=[path, "start"])
    assert answer["error"] == "no_ray"
    assert path in answer["detail"]
    assert word in answer["detail"]
    assert "ray_bin" in answer["detail"]


def test_a_log_that_is_a_link_is_not_followed(begin: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("keep")
    (tmp_path / "link").symlink_to(tmp_path / "precious")
    assert not begin("fail", log=str(tmp_path / "link"))["ok"]
    assert (tmp_path / "precious").read_text() == "keep"


# --- a whole cluster ---


def test_a_cluster_ends_and_the_other_lives(spawn: Spawn, tmp_path: Path) -> None:
    session = tmp_path / "session_1"
    (session / "logs").mkdir(parents=True)
    here, there = f"--session-dir={session}", f"--session-dir={tmp_path}/session_10"
    lib = "/opt/lib/ray"
    module_log = (session / "logs" / "dashboard_JobHead.log").open("w")
    mine = [
        spawn("gcs_server", f"--gcs_server_port={PORT}", "--node-ip-address=192.0.2.9", here),
        raylet(spawn, "head", ID1),
        raylet(spawn, "gpu1", ID2, code=PARENT),
        spawn("python", f"{lib}/dashboard/dashboard.py", here),
        spawn("python", f"{lib}/_private/log_monitor.py", here, f"--gcs-address={GCS}"),
        spawn("python", "-m", "ray.util.client.server", f"--address={GCS}"),
        spawn("ray-dashboard-JobHead-0", stderr=module_log, env={}),
    ]
    module_log.close()
    other = [
        spawn("gcs_server", f"--gcs_server_port={PORT}0", "--node-ip-address=192.0.2.9", there),
        raylet(spawn, "gpu1", ID2, gcs=OTHER),
        spawn("python", f"{lib}/dashboard/dashboard.py", there),
        spawn("tail", "-f", f"{session}/logs/raylet.out"),
        spawn("python", "driver.py", f"--address={GCS}", here),
    ]
    (tmp_path / "ray_current_cluster").write_text(GCS)
    answer = handle(
        {"op": "end_cluster", "gcs_address": GCS, "temp_dir": str(tmp_path), "term_s": 1, "kill_s": 3}
    )
    assert answer["ok"], answer
    assert {proc.pid for proc in mine} <= pids(answer["ended"])
    assert [proc.pid for proc in mine if runs(proc.pid)] == []
    assert [proc.args for proc in other if not runs(proc.pid)] == []
    assert not (tmp_path / "ray_current_cluster").exists()
    order = [row["name"] for row in answer["ended"]]
    assert order.index("raylet") < order.index("gcs_server") == len(order) - 1


def test_the_note_of_another_cluster_stays(tmp_path: Path) -> None:
    note = tmp_path / "ray_current_cluster"
    note.write_text("192.0.2.9:1")
    assert handle({"op": "end_cluster", "gcs_address": GCS, "temp_dir": str(tmp_path)})["ok"]
    assert note.exists()


# --- ports and logs ---


@pytest.mark.parametrize(("family", "address"), [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")])
def test_a_listener_has_a_name(family: int, address: str) -> None:
    try:
        server = socket.create_server((address, 0), family=socket.AddressFamily(family))
    except OSError as error:
        pytest.skip(f"no {address} here: {error}")
    with server:
        port = server.getsockname()[1]
        request = {"op": "port_owner", "ports": [port, 1], "host": address}
        answer = handle(request)
        elsewhere = handle({**request, "host": "192.0.2.200"})
    owner = answer["ports"][str(port)]
    assert owner["pid"] == os.getpid()
    assert owner["name"]
    assert owner["user"]
    assert len(owner["cmdline"]) <= 120
    assert answer["ports"]["1"] is None
    assert elsewhere["ports"][str(port)] is None


def test_a_hidden_listener_is_a_listener_without_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ports, "open_files", lambda _pid: iter(()))
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert handle({"op": "port_owner", "ports": [port]})["ports"][str(port)] == {"pid": None}


def test_a_raylets_last_words_are_found_by_its_id(tmp_path: Path) -> None:
    logs = tmp_path / "logs"
    logs.mkdir()
    (logs / "raylet.1.out").write_text(f"Setting node ID node_id={ID1}\nstarted\n")
    (logs / "raylet.1.err").write_text("\x1b[31mdisk full\x1b[0m\n")
    (logs / "raylet.out").write_text(f"Setting node ID node_id={ID2}\n")
    answer = handle({"op": "logs", "session_dir": str(tmp_path), "node_id": ID1})
    assert [Path(file["path"]).name for file in answer["files"]] == ["raylet.1.out", "raylet.1.err"]
    assert answer["files"][1]["tail"] == "disk full"
    assert handle({"op": "logs", "session_dir": "/nowhere", "node_id": ID1}) == {"ok": True, "files": []}


def test_a_look_brings_the_ends_of_the_logs_when_asked(tmp_path: Path) -> None:
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "raylet.1.out").write_text(f"node {ID1}\nfirst\nlast words\n")
    (tmp_path / "logs" / "raylet.1.err").write_text("")
    asked = {"op": "look", "gcs_address": GCS, "session_dir": str(tmp_path), "node_id": ID1}
    bundle = handle({**asked, "bundle": True})["bundle"]
    assert [Path(file["path"]).name for file in bundle["files"]] == ["raylet.1.out"]
    assert bundle["files"][0]["tail"].endswith("last words")
    assert isinstance(bundle["kernel"], list)
    assert "bundle" not in handle(asked)


# --- the door ---


@pytest.mark.parametrize(
    "request_",
    [{}, {"op": "rm"}, {"op": "look"}, {"op": "start"}, {"op": "port_owner", "ports": ["x"]}, {"op": []}],
)
def test_nonsense_is_answered(request_: dict[str, Any]) -> None:
    answer = handle(request_)
    assert (answer["ok"], answer["error"]) == (False, "bad_request")
    assert answer["detail"]


def test_no_failure_escapes(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> None:
        raise RuntimeError("broken")

    monkeypatch.setattr(looking, "process_table", broken)
    answer = handle({"op": "look", "gcs_address": GCS})
    assert (answer["error"], answer["detail"]) == ("internal", "RuntimeError: broken")


def ask(command: list[str], payload: bytes, **kwargs: Any) -> dict[str, Any]:
    done = subprocess.run(command, input=payload, capture_output=True, timeout=20, check=True, **kwargs)
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def test_it_runs_alone_from_standard_input(spawn: Spawn) -> None:
    proc = raylet(spawn, "gpu1", ID1)
    request = json.dumps({"op": "look", "gcs_address": GCS, "node_name": "gpu1"}).encode()
    answer = ask([sys.executable, "-I", "-S", "-c", SOURCE], request)
    assert pids(answer["raylets"]) == {proc.pid}
    assert ask([sys.executable, "-I", "-S", "-c", SOURCE], b"{")["error"] == "bad_request"


def test_it_travels_by_value(spawn: Spawn) -> None:
    cloudpickle = pytest.importorskip("ray.cloudpickle")
    proc = raylet(spawn, "gpu1", ID1)
    modules = [host, *(sys.modules[f"{host.PACKAGE}.{name}"] for name in host.NAMES)]
    for module in modules:
        cloudpickle.register_pickle_by_value(module)
    try:
        payload = cloudpickle.dumps(lambda: program.handle({"op": "look", "gcs_address": GCS}))
    finally:
        for module in modules:
            cloudpickle.unregister_pickle_by_value(module)
    code = "import json, sys, pickle; print(json.dumps(pickle.loads(sys.stdin.buffer.read())()))"
    with tempfile.TemporaryDirectory() as elsewhere:
        answer = ask([sys.executable, "-W", "ignore", "-c", code], payload, cwd=elsewhere)
    assert answer["ok"], answer
    assert pids(answer["raylets"]) == {proc.pid}


@pytest.mark.parametrize("version", ["3.9", "3.10", "3.12", "3.13"])
def test_other_pythons_understand_it(version: str) -> None:
    found = sorted(Path("~/.pyenv/versions").expanduser().glob(f"{version}*/bin/python{version}"))
    python = str(found[0]) if found else shutil.which(f"python{version}")
    if python is None:
        pytest.skip(f"no Python {version} here")
    assert ask([python, "-I", "-c", SOURCE], b'{"op": "look", "gcs_port": 1}')["ok"]


FRAMES = """
2026-01-01 10:00:00,000 INFO starting
Traceback (most recent call last):
  File "ray_start", line 123, in start
    node = node_class(given)
           ^^^^^^^^^^^^^^^^^
RuntimeError: Failed to connect to GCS. Last error: Traceback (most recent call last):
  File "/ray/node.py", line 996, in _init_gcs_client
    client = GcsClient(
VersionError: Version mismatch:
    Ray: 2.60.0
"""


def test_a_traceback_is_told_by_its_end_and_its_place() -> None:
    assert starting._conclusion(FRAMES.strip("\n"), "/logs/w.log").splitlines() == [
        "VersionError: Version mismatch:",
        "    Ray: 2.60.0",
        "(the whole of it: /logs/w.log on that host)",
    ]
    assert starting._conclusion("one line\n  another", "/logs/w.log") == "one line\n  another"
    cut = '  File "/ray/node.py", line 996, in _init_gcs_client'  # what is left of a log that was cut off
    assert starting._conclusion(cut, "/logs/w.log") == "(the whole of it: /logs/w.log on that host)"
