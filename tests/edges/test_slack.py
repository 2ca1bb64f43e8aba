import logging
import socket

import pytest

from grid_agent.core.slack_text import Message
from grid_agent.edges.slack import Delivered, Refused, Retry, SlackClient
from tests.support.slack_server import SlackServer

TOKEN = "xoxb-test"
CHANNEL = "C0123456789"
HELLO = Message(
    "hello", ({"type": "section", "text": {"type": "mrkdwn", "text": "hello", "verbatim": True}},)
)


@pytest.fixture
def slack():
    with SlackServer(TOKEN) as server:
        yield server


@pytest.fixture
def token_file(tmp_path):
    path = tmp_path / "slack-token"
    path.touch(0o600)
    path.write_text(TOKEN + "\n")
    return path


@pytest.fixture
async def client(slack, token_file):
    client = SlackClient(token_file, slack.base_url, timeout_s=5)
    yield client
    await client.close()


async def test_a_message_is_posted_replied_to_and_edited(slack, client):
    sent = await client.post("grid-alerts", HELLO)
    assert isinstance(sent, Delivered)
    assert sent.channel_id == CHANNEL
    assert isinstance(await client.post(CHANNEL, Message("step", ()), thread_ts=sent.ts), Delivered)
    assert await client.update(sent.channel_id, sent.ts, Message("bye", HELLO.blocks)) == sent
    (message,) = slack.messages
    assert message["text"] == "bye"
    assert message["blocks"] == list(HELLO.blocks)
    assert [reply["text"] for reply in message["replies"]] == ["step"]
    assert slack.requests[0]["body"]["parse"] == "none"


@pytest.mark.parametrize(("header", "after_s"), [(3, 3.0), (90, 90.0), (999_999, 3600.0), (0, 0.1)])
async def test_a_rate_limit_is_a_retry_after_what_slack_says(slack, client, header, after_s):
    slack.rate_limit(retry_after_s=header)
    reason = f"Slack's rate limit: it asks to wait {after_s:g} s"
    assert await client.post(CHANNEL, HELLO) == Retry(after_s, reason)


@pytest.mark.parametrize("mode", ["drop_before", "drop_after_accept", "http500", "bad_json"])
async def test_trouble_on_the_way_is_a_retry_and_never_an_exception(slack, client, mode):
    slack.fail(mode)
    for outcome in (await client.post(CHANNEL, HELLO), await client.update(CHANNEL, "1.0", HELLO)):
        assert isinstance(outcome, Retry)
        assert outcome.after_s is None
    assert len(slack.requests) == 2, "the client itself must not repeat a request"


async def test_silence_is_a_retry_after_the_timeout(slack, token_file):
    slack.fail("stall")
    client = SlackClient(token_file, slack.base_url, timeout_s=0.2)
    assert await client.post(CHANNEL, HELLO) == Retry(None, "Slack did not answer within 0.2 s", unclear=True)
    await client.close()


async def test_nobody_listening_is_a_retry(token_file):
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        client = SlackClient(token_file, f"http://127.0.0.1:{held.getsockname()[1]}/api/")
        outcome = await client.post(CHANNEL, HELLO)
    assert isinstance(outcome, Retry)
    assert "cannot reach Slack" in outcome.reason
    await client.close()


async def test_a_base_url_that_makes_no_sense_is_a_retry(token_file):
    client = SlackClient(token_file, "not a url")
    assert isinstance(await client.post(CHANNEL, HELLO), Retry)
    await client.close()


@pytest.mark.parametrize("error", ["internal_error", "ratelimited", "service_unavailable", "something_new"])
async def test_passing_errors_are_retries(slack, client, error):
    slack.ok_false(error)
    assert isinstance(await client.post(CHANNEL, HELLO), Retry)


@pytest.mark.parametrize(
    ("error", "kind", "advice"),
    [
        ("invalid_auth", "settings", "token"),
        ("not_authed", "settings", "token"),
        ("account_inactive", "settings", "token"),
        ("token_revoked", "settings", "token"),
        ("missing_scope", "settings", "chat:write"),
        ("not_in_channel", "channel", "/invite @grid-agent"),
        ("channel_not_found", "channel", "slack.channel"),
        ("is_archived", "channel", "unarchive"),
        ("msg_too_long", "content", "bug"),
    ],
)
async def test_lasting_errors_say_what_to_do(slack, client, error, kind, advice):
    slack.ok_false(error)
    outcome = await client.post(CHANNEL, HELLO)
    assert isinstance(outcome, Refused)
    assert (outcome.reason, outcome.kind) == (error, kind)
    assert advice in outcome.what_to_do


async def test_a_message_that_is_gone_is_to_be_posted_anew(slack, client):
    for error in ("message_not_found", "cant_update_message"):
        slack.ok_false(error)
        outcome = await client.update(CHANNEL, "1.0", HELLO)
        assert isinstance(outcome, Refused)
        assert outcome.kind == "gone"


async def test_an_edit_by_channel_name_is_refused(slack, client):
    sent = await client.post("grid-alerts", HELLO)
    outcome = await client.update("grid-alerts", sent.ts, HELLO)
    assert isinstance(outcome, Refused)
    assert outcome.reason == "channel_not_found"


async def test_blocks_that_slack_refuses_are_left_out(slack, client):
    outcome = await client.post(CHANNEL, Message("hello", ({"type": "nonsense"},)))
    assert isinstance(outcome, Delivered)
    assert slack.messages[0]["blocks"] == []


async def test_a_key_that_slack_does_not_know_is_left_out(slack, client):
    slack.ok_false("duplicate_message_not_found", times=1)
    assert isinstance(await client.post(CHANNEL, HELLO, key="k"), Delivered)
    assert "client_msg_id" not in slack.requests[-1]["body"]


async def test_a_replaced_token_is_read_when_slack_refuses_the_old_one(slack, client, token_file):
    await client.post(CHANNEL, HELLO)
    slack.token = "xoxb-new"
    assert (await client.post(CHANNEL, HELLO)).reason == "invalid_auth"
    token_file.write_text("xoxb-new")
    assert isinstance(await client.post(CHANNEL, HELLO), Delivered)


@pytest.mark.parametrize(
    ("content", "mode", "reason"),
    [
        (TOKEN, 0o640, "open to other users"),
        ("", 0o600, "does not hold one token"),
        ("xoxb secret", 0o600, "does not hold one token"),
        ("xoxb-sécret", 0o600, "cannot be read"),
        (None, 0o600, "cannot be read"),
    ],
)
async def test_a_token_file_that_is_not_right_is_refused_and_not_quoted(
    slack, client, token_file, content, mode, reason
):
    token_file.unlink()
    if content is not None:
        token_file.write_text(content)
        token_file.chmod(mode)
    outcome = await client.post(CHANNEL, HELLO)
    assert isinstance(outcome, Refused)
    assert reason in outcome.reason
    assert "xoxb-t" not in str(outcome)
    assert slack.requests == []
    token_file.unlink(missing_ok=True)
    token_file.touch(0o600)
    token_file.write_text(TOKEN)
    assert isinstance(await client.post(CHANNEL, HELLO), Delivered)


async def test_the_token_is_in_no_log_repr_or_outcome(slack, client, caplog):
    caplog.set_level(logging.DEBUG)
    seen = [repr(client)]
    for mode in ("ok", "bad_json", "http500", "drop_before"):
        slack.fail(mode)
        seen.append(repr(await client.post(CHANNEL, HELLO)))
    slack.token = "xoxb-other"
    slack.heal()
    seen.append(repr(await client.post(CHANNEL, HELLO)))
    assert TOKEN not in "\n".join([*seen, caplog.text])


async def test_the_environments_proxy_is_not_used_for_loopback(slack, client, monkeypatch):
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    assert isinstance(await client.post(CHANNEL, HELLO), Delivered)


async def test_a_proxy_is_taken_for_its_scheme_only_and_no_proxy_is_heeded(slack, token_file, monkeypatch):
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy", "NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("http_proxy", slack.base_url.removesuffix("/api/"))
    client = SlackClient(token_file, "http://slack.invalid/api/", timeout_s=5)
    assert isinstance(await client.post(CHANNEL, HELLO), Delivered)
    await client.close()
    monkeypatch.setenv("no_proxy", "slack.invalid")
    assert isinstance(await client.post(CHANNEL, HELLO), Retry)
    await client.close()


async def test_a_closed_client_can_be_used_again(client):
    await client.close()
    assert isinstance(await client.post(CHANNEL, HELLO), Delivered)


KEY = "0f6c2b1e-8f5e-5d0e-9c1b-3f3a3c1d2e4f"


async def test_a_message_is_found_again_by_its_key_and_so_is_a_reply(slack, client):
    for number in range(5):
        await client.post(CHANNEL, Message(f"chatter {number}", HELLO.blocks))
    sent = await client.post(CHANNEL, HELLO, key=KEY)
    reply = await client.post(CHANNEL, HELLO, sent.ts, KEY + "1")
    assert await client.find(CHANNEL, KEY) == sent
    assert await client.find(CHANNEL, KEY + "1", sent.ts) == reply
    assert await client.find(CHANNEL, KEY + "2") is None


async def test_the_history_is_read_page_by_page(slack, client, monkeypatch):
    sent = await client.post(CHANNEL, HELLO, key=KEY)
    for number in range(5):
        await client.post(CHANNEL, Message(f"later {number}", ()))
    real = slack._read
    monkeypatch.setattr(slack, "_read", lambda method, body: real(method, {**body, "limit": 2}))
    assert await client.find(CHANNEL, KEY) == sent
    assert sum(r["method"] == "conversations.history" for r in slack.requests) == 3


async def test_without_the_scope_a_look_into_the_channel_is_refused(slack, client):
    slack.history_scope = False
    found = await client.find(CHANNEL, KEY)
    assert isinstance(found, Refused)
    assert found.reason == "missing_scope"


@pytest.mark.parametrize(
    ("mode", "unclear"),
    [
        ("drop_after_accept", True),
        ("drop_before", True),
        ("http500", True),
        ("bad_json", True),
        ("rate_limit", False),
    ],
)
async def test_it_is_known_whether_slack_may_have_taken_a_message(slack, client, mode, unclear):
    slack.fail(mode)
    said = await client.post(CHANNEL, HELLO)
    assert (type(said), said.unclear) == (Retry, unclear)


async def test_a_connection_that_was_never_made_did_nothing(token_file):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        client = SlackClient(token_file, f"http://127.0.0.1:{free.getsockname()[1]}/api/", timeout_s=2)
        said = await client.post(CHANNEL, HELLO)
        assert (type(said), said.unclear) == (Retry, False)
        await client.close()


async def test_who_we_are(slack, client):
    assert (await client.who())["team"] == "Lab"
