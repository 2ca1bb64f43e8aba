import json
import subprocess
import sys
import urllib.error
import urllib.parse
import urllib.request

import pytest

from tests.support.slack_server import SlackServer

CHANNEL = "C0123456789"


@pytest.fixture
def slack():
    with SlackServer() as server:
        yield server


def call(slack, method, token="xoxb-test", form=False, timeout=5, **body):
    data = urllib.parse.urlencode(body).encode() if form else json.dumps(body).encode()
    kind = "application/x-www-form-urlencoded" if form else "application/json"
    headers = {"Content-Type": kind} | ({"Authorization": f"Bearer {token}"} if token else {})
    request = urllib.request.Request(slack.base_url + method, data, headers)
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(request, timeout=timeout) as response:
        return json.load(response)


def test_a_name_is_accepted_and_answered_with_the_id(slack):
    for channel in ("grid-alerts", "#grid-alerts", CHANNEL):
        assert call(slack, "chat.postMessage", channel=channel, text="hi")["channel"] == CHANNEL
    stamps = [message["ts"] for message in slack.messages]
    assert stamps == sorted(set(stamps))


def test_replies_and_edits_are_kept_with_their_message(slack):
    ts = call(slack, "chat.postMessage", channel=CHANNEL, text="one")["ts"]
    call(slack, "chat.postMessage", channel=CHANNEL, text="reply", thread_ts=ts)
    assert call(slack, "chat.update", channel=CHANNEL, ts=ts, text="two")["ok"]
    (message,) = slack.messages
    assert message["text"] == "two"
    assert [edit["text"] for edit in message["edits"]] == ["two"]
    assert [reply["text"] for reply in message["replies"]] == ["reply"]


def test_a_form_works_like_json(slack):
    blocks = [{"type": "section", "text": {"type": "plain_text", "text": "hi"}}]
    call(slack, "chat.postMessage", form=True, channel=CHANNEL, text="hi", blocks=json.dumps(blocks))
    assert slack.messages[0]["blocks"] == blocks


@pytest.mark.parametrize(
    ("method", "token", "body", "error"),
    [
        ("chat.postMessage", "", {}, "not_authed"),
        ("chat.postMessage", "xoxb-other", {}, "invalid_auth"),
        ("chat.postMessage", "xoxb-test", {"channel": "nowhere", "text": "x"}, "channel_not_found"),
        ("chat.postMessage", "xoxb-test", {"channel": CHANNEL}, "no_text"),
        ("chat.postMessage", "xoxb-test", {"channel": CHANNEL, "text": "x" * 40_001}, "msg_too_long"),
        (
            "chat.postMessage",
            "xoxb-test",
            {"channel": CHANNEL, "text": "x", "thread_ts": "1.0"},
            "thread_not_found",
        ),
        ("chat.update", "xoxb-test", {"channel": "grid-alerts", "ts": "1.0"}, "channel_not_found"),
        ("chat.update", "xoxb-test", {"channel": CHANNEL, "ts": "1.0", "text": "x"}, "message_not_found"),
        ("chat.delete", "xoxb-test", {}, "unknown_method"),
    ],
)
def test_refusals_have_slacks_names(slack, method, token, body, error):
    assert call(slack, method, token, **body) == {"ok": False, "error": error}
    assert slack.requests[-1]["answer"] == error
    assert slack.messages == []


@pytest.mark.parametrize(
    "block",
    [
        {"type": "nonsense"},
        {"type": "header", "text": {"type": "plain_text", "text": "x" * 151}},
        {"type": "header", "text": {"type": "mrkdwn", "text": "x"}},
        {"type": "section", "text": {"type": "mrkdwn", "text": "x" * 3001}},
        {"type": "section", "text": {"type": "mrkdwn", "text": ""}},
    ],
)
def test_blocks_over_slacks_limits_are_refused(slack, block):
    answer = call(slack, "chat.postMessage", channel=CHANNEL, text="x", blocks=[block])
    assert answer["error"] == "invalid_blocks"


def test_the_same_client_msg_id_is_posted_once_where_that_counts(slack):
    slack.dedupes = True
    first = call(slack, "chat.postMessage", channel=CHANNEL, text="x", client_msg_id="k")
    again = call(slack, "chat.postMessage", channel=CHANNEL, text="x", client_msg_id="k")
    assert first["ts"] == again["ts"]
    assert len(slack.messages) == 1


def test_the_history_is_newest_first_and_a_thread_oldest_first(slack):
    first, second = (call(slack, "chat.postMessage", channel=CHANNEL, text=t)["ts"] for t in ("a", "b"))
    call(slack, "chat.postMessage", channel=CHANNEL, text="reply", thread_ts=first)
    page = call(slack, "conversations.history", channel=CHANNEL, limit=1)
    assert [m["ts"] for m in page["messages"]] == [second]
    page = call(
        slack, "conversations.history", channel=CHANNEL, cursor=page["response_metadata"]["next_cursor"]
    )
    assert [m["ts"] for m in page["messages"]] == [first]
    assert page["response_metadata"]["next_cursor"] == ""
    thread = call(slack, "conversations.replies", channel=CHANNEL, ts=first)
    assert [m["text"] for m in thread["messages"]] == ["a", "reply"]
    assert call(slack, "conversations.history", channel=CHANNEL, oldest="9999999999")["messages"] == []
    slack.history_scope = False
    assert call(slack, "conversations.history", channel=CHANNEL)["error"] == "missing_scope"


def test_auth_test_answers(slack):
    assert call(slack, "auth.test")["user"] == "grid-agent"


def test_rate_limit_for_n_calls_then_well_again(slack):
    slack.rate_limit(2, retry_after_s=3)
    for _ in range(2):
        with pytest.raises(urllib.error.HTTPError) as caught:
            call(slack, "chat.postMessage", channel=CHANNEL, text="x")
        with caught.value as error:
            assert (error.code, error.headers["Retry-After"]) == (429, "3")
    assert call(slack, "chat.postMessage", channel=CHANNEL, text="x")["ok"]


@pytest.mark.parametrize(("mode", "accepted"), [("drop_before", 0), ("drop_after_accept", 1)])
def test_dropped_connections(slack, mode, accepted):
    slack.fail(mode, times=1)
    with pytest.raises(OSError):  # noqa: PT011  reset or closed without an answer, as the timing goes
        call(slack, "chat.postMessage", channel=CHANNEL, text="x")
    assert len(slack.messages) == accepted


def test_other_ways_to_fail(slack):
    slack.fail("http500")
    with pytest.raises(urllib.error.HTTPError) as caught:
        call(slack, "auth.test")
    with caught.value as error:
        assert error.code == 500
    slack.fail("bad_json")
    with pytest.raises(json.JSONDecodeError):
        call(slack, "auth.test")
    slack.ok_false("is_archived")
    assert call(slack, "auth.test")["error"] == "is_archived"
    slack.fail("stall", times=1)
    with pytest.raises(TimeoutError):
        call(slack, "auth.test", timeout=0.1)
    slack.heal()
    assert call(slack, "auth.test")["ok"]
    with pytest.raises(ValueError, match="no such mode"):
        slack.fail("explode")


def test_it_runs_on_its_own():
    argv = [sys.executable, "-m", "tests.support.slack_server", "--port", "0", "--token", "xoxb-own"]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as process:
        try:
            url = process.stdout.readline().strip()
            body = json.dumps({"channel": "grid-alerts", "text": "hi"}).encode()
            headers = {"Content-Type": "application/json", "Authorization": "Bearer xoxb-own"}
            request = urllib.request.Request(url + "chat.postMessage", body, headers)
            opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
            opener.open(request, timeout=5).close()
            mode = urllib.request.Request(url.replace("/api/", "/mode"), b'{"mode": "http500", "times": 1}')
            opener.open(mode, timeout=5).close()
            with pytest.raises(urllib.error.HTTPError) as caught:
                opener.open(request, timeout=5)
            caught.value.close()
            with opener.open(url.replace("/api/", "/messages"), timeout=5) as response:
                assert [message["text"] for message in json.load(response)] == ["hi"]
        finally:
            process.terminate()
