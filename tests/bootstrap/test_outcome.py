"""When a start is over, and what it read back: pure functions on recorded answers."""

import base64
import json
import os

import pytest

from bootstrap import health, state, turns
from grid_agent.edges import gcs_process


def body(status="pass", paused=None, incidents=0, observer="pass", **states):
    gpus = {"expected": 0, "registered": 0, "seen": 0}
    return {
        "status": status,
        "paused": paused,
        "observer": {"status": observer},
        "incidents": {"open": incidents},
        "nodes": [{"name": name, "state": s, "cause": None, "gpus": gpus} for name, s in states.items()],
    }


@pytest.mark.parametrize(
    ("answer", "up", "failed", "alive_s", "settled"),
    [
        (body(h="ALIVE", w="ALIVE"), {"h", "w"}, set(), 0, True),
        # a worker that is still joining is waited for
        (body("warn", h="ALIVE", w="JOINING"), {"h", "w"}, set(), 0, False),
        (body("fail", h="ALIVE", w="JOINING"), {"h", "w"}, set(), 99, False),
        # one that could not be started is not
        (body("warn", h="ALIVE", w="DEAD"), {"h"}, {"w"}, 0, True),
        # a late loop passes; a pause does not
        (body("warn", observer="warn", h="ALIVE"), {"h"}, set(), 1, False),
        (body("warn", observer="warn", h="ALIVE"), {"h"}, set(), health.WARN_SETTLES_S, True),
        (body("warn", paused={"reason": "night"}, h="ALIVE"), {"h"}, set(), 0, True),
        # the agent does not know a node yet
        (body(h="ALIVE"), {"h", "w"}, set(), 0, False),
    ],
)
def test_settled(answer, up, failed, alive_s, settled):
    assert health.judge(answer, up, failed, alive_s).settled is settled


def test_reasons_are_words():
    verdict = health.judge(body("warn", paused={}, incidents=2, h="ALIVE", w="DEAD"), {"h", "w"}, set(), 0)
    assert verdict.waiting == ("w DEAD",)
    assert verdict.reasons == ("w is DEAD", "the agent is paused", "2 open incidents")


def test_what_a_gcs_was_given_is_read_from_its_command_line(tmp_path):
    given = {"health_check_period_ms": 10000}
    coded = base64.b64encode(json.dumps(given).encode()).decode()
    process = tmp_path / "42"
    process.mkdir()
    words = ["/x/gcs_server", "--gcs_server_port=6379", f"--config_list={coded}"]
    (process / "cmdline").write_bytes("\0".join(words).encode() + b"\0")
    (tmp_path / "43").mkdir()  # ends while we look
    (tmp_path / "42" / "environ").write_bytes(b"RAY_AUTH_MODE=token\0HOME=/root\0")
    found = gcs_process.find(6379, tmp_path)
    assert (found.pid, found.config, found.environ) == (42, given, {"RAY_AUTH_MODE": "token"})
    assert gcs_process.find(6380, tmp_path) is None


@pytest.mark.parametrize(
    "line", [b"gcs_server\0", b"gcs_server\0--config_list=%%%\0", b"g\0--config_list=W10=\0"]
)
def test_a_command_line_without_settings(line):
    assert gcs_process.config_list(line) is None


def test_a_raylet_listens_when_both_of_its_sockets_are_there(tmp_path):
    process = tmp_path / "7"
    process.mkdir()
    raylet, store = tmp_path / "raylet.1", tmp_path / "plasma_store.1"
    words = f"raylet\0--raylet_socket_name={raylet}\0--store_socket_name={store}\0"
    (process / "cmdline").write_text(words)
    assert not turns.listens(7, tmp_path)
    raylet.touch()
    assert not turns.listens(7, tmp_path)
    store.touch()
    assert turns.listens(7, tmp_path)
    assert not turns.listens(8, tmp_path)


def test_private_files_replace_and_stay_private(tmp_path):
    file = tmp_path / "token"
    previous = os.umask(0)
    try:
        state.write_private(file, "one")
        state.write_private(file, "two")
    finally:
        os.umask(previous)
    assert file.read_text() == "two"
    assert file.stat().st_mode & 0o777 == 0o600
    assert list(tmp_path.iterdir()) == [file]


def test_a_link_is_not_taken_for_our_folder(tmp_path):
    (tmp_path / "there").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "there")
    with pytest.raises(state.StateError, match="not a folder of yours"):
        state.make_private_folder(tmp_path / "link")


def test_tokens_are_made_once_and_copied_when_given(tmp_path):
    files = state.StatePaths(tmp_path)
    state.keep_token(files.api_token)
    first = files.api_token.read_text()
    state.keep_token(files.api_token)
    assert files.api_token.read_text() == first
    assert len(first.strip()) >= 32
    assert "SLACK_X is not set" in (state.copy_slack_token(files, "SLACK_X", {}) or "")
    assert state.copy_slack_token(files, "SLACK_X", {"SLACK_X": "xoxb-1"}) is None
    assert files.slack_token.read_text() == "xoxb-1\n"
    assert state.copy_slack_token(files, "SLACK_X", {}) is None
