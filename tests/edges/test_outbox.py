import asyncio
import json
import logging
import time
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from itertools import pairwise

import pytest

from grid_agent.core.incident_model import Incident, Phase, Step
from grid_agent.core.terms import Cause
from grid_agent.edges.outbox import REMEMBERED, LogOutbox, Outbox
from grid_agent.edges.slack import SlackClient
from tests.support.slack_server import SlackServer

AT = 1_732_300_000.0
CHANNEL = "C0123456789"
FIRING = Incident(
    id=7,
    nodes=("gpu1",),
    host="10.0.0.11",
    cause=Cause.PROCESS_GONE,
    phase=Phase.FIRING,
    opened_at=AT + 1,
    failed_at=AT,
    evidence=("port 35713 refused",),
    steps=(Step(AT + 1, "told Ray"),),
)
REPAIRING = replace(
    FIRING, phase=Phase.REPAIRING, steps=(*FIRING.steps, Step(AT + 2, "restart by gpu2, attempt 1"))
)
RESOLVED = replace(
    REPAIRING,
    phase=Phase.RESOLVED,
    resolved_at=AT + 4.25,
    steps=(*REPAIRING.steps, Step(AT + 4, "a task ran there")),
)


@pytest.fixture
def slack(request):
    with getattr(request, "param", SlackServer)() as server:
        yield server


class Told:
    """What the outbox told its owner."""

    def __init__(self):
        self.stuck = []
        self.rows = {}  # as JSON would keep them

    async def keep(self, number, row):
        self.rows[str(number)] = json.loads(json.dumps(row))


@pytest.fixture
async def boxes(slack, tmp_path):
    """A function that starts an outbox: `async with boxes() as (outbox, told)`."""
    token_file = tmp_path / "token"
    token_file.touch(0o600)
    token_file.write_text("xoxb-test")

    @asynccontextmanager
    async def start(restored=None, channel=CHANNEL, **changes):
        told = Told()
        client = SlackClient(token_file, slack.base_url, timeout_s=changes.pop("timeout_s", 2))
        delays = {"min_edit_s": 0, "backoff_s": (0.01, 0.02), "refused_s": 0.05} | changes
        outbox = Outbox(
            client,
            channel,
            "lab",
            now=lambda: AT + 5,
            stuck=told.stuck.append,
            keep=told.keep,
            **delays,
        )
        outbox.restore(restored or {})
        task = asyncio.create_task(outbox.run())
        yield outbox, told
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
        await client.close()

    return start


def texts(replies):
    return [reply["text"].partition("failure: ")[2] for reply in replies]


STORY = ["told Ray", "restart by gpu2, attempt 1", "a task ran there"]


async def until(condition, timeout_s=5):
    async with asyncio.timeout(timeout_s):
        while not condition():
            await asyncio.sleep(0.005)


async def test_one_message_is_edited_and_every_step_is_a_reply(slack, boxes):
    async with boxes() as (outbox, told):
        for incident in (FIRING, REPAIRING, RESOLVED):
            outbox.put(incident)
            assert await outbox.drain(5)
    (message,) = slack.messages
    assert [edit["text"].split()[1] for edit in message["edits"]] == ["repairing:", "resolved:"]
    assert texts(message["replies"]) == STORY
    row = told.rows["7"]
    assert (row["channel_id"], row["ts"], row["steps_posted"]) == (CHANNEL, message["ts"], 3)
    assert row["revision"] == RESOLVED.revision
    assert told.stuck == []


NEEDS = replace(
    REPAIRING, phase=Phase.NEEDS_PERSON, steps=(*REPAIRING.steps, Step(AT + 3, "gave up on gpu1"))
)


def called(slack):
    """The replies that notify the channel."""
    return [texts([r])[0] for message in slack.messages for r in message["replies"] if r["broadcast"]]


async def test_the_channel_is_notified_once_that_a_person_is_needed(slack, boxes):
    async with boxes() as (outbox, told):
        for incident in (FIRING, REPAIRING, NEEDS):
            outbox.put(incident)
            assert await outbox.drain(5)
        assert called(slack) == ["gave up on gpu1"]
        asked = replace(NEEDS, phase=Phase.REPAIRING, steps=(*NEEDS.steps, Step(AT + 4, "asked for")))
        again = replace(asked, phase=Phase.NEEDS_PERSON, steps=(*asked.steps, Step(AT + 5, "gave up again")))
        outbox.put(asked)
        assert await outbox.drain(5)
        rows = dict(told.rows)
    async with boxes(restored=rows) as (outbox, _):
        outbox.put(again)
        assert await outbox.drain(5)
    (message,) = slack.messages
    assert texts(message["replies"]) == [*STORY[:2], "gave up on gpu1", "asked for", "gave up again"]
    assert called(slack) == ["gave up on gpu1"]


@pytest.mark.parametrize("nodes", [1, 3, 4, 400])
async def test_however_many_nodes_need_a_person_one_reply_says_so(slack, boxes, nodes):
    names = tuple(f"gpu{number}" for number in range(nodes))
    async with boxes() as (outbox, _):
        outbox.put(replace(FIRING, nodes=names))
        assert await outbox.drain(5)
        for more in range(3):
            steps = (*NEEDS.steps, *(Step(AT + 4, f"line {number}") for number in range(more)))
            outbox.put(replace(NEEDS, nodes=names, steps=steps))
            assert await outbox.drain(5)
    (message,) = slack.messages
    assert called(slack) == ["gave up on gpu1"]
    assert len(message["replies"]) == (5 if nodes <= 3 else 1)


async def test_a_first_message_that_says_so_has_notified_everybody(slack, boxes):
    async with boxes() as (outbox, _):
        outbox.put(NEEDS)
        assert await outbox.drain(5)
    assert "needs a person" in slack.messages[0]["text"]
    assert called(slack) == []


async def test_what_was_over_before_it_could_be_said_calls_nobody(slack, boxes):
    over = replace(RESOLVED, steps=(*NEEDS.steps, Step(AT + 4, "it came back")))
    async with boxes() as (outbox, _):
        outbox.put(FIRING)
        assert await outbox.drain(5)
        for incident in (NEEDS, over):
            outbox.put(incident)
        assert await outbox.drain(5)
    assert called(slack) == []
    assert "resolved" in slack.messages[0]["text"]


async def test_values_put_while_slack_is_busy_are_coalesced(slack, boxes):
    async with boxes() as (outbox, _):
        for incident in (FIRING, REPAIRING, RESOLVED):
            outbox.put(incident)
        assert await outbox.drain(5)
    (message,) = slack.messages
    assert "resolved after 4.2 s" in message["text"]
    assert message["edits"] == []
    assert texts(message["replies"]) == STORY


async def test_the_same_value_again_sends_nothing(slack, boxes):
    async with boxes() as (outbox, _):
        for _ in range(3):
            outbox.put(FIRING)
            assert await outbox.drain(5)
        outbox.put(RESOLVED)
        assert await outbox.drain(5)
        count = len(slack.requests)
        outbox.put(RESOLVED)
        assert await outbox.drain(5)
    assert len(slack.requests) == count
    assert len(slack.messages) == 1


async def test_incidents_are_sent_in_the_order_they_came(slack, boxes):
    async with boxes() as (outbox, _):
        for number in (3, 1, 2):
            outbox.put(replace(FIRING, id=number, nodes=(f"gpu{number}",)))
        assert await outbox.drain(5)
    assert [message["text"].split(":")[1].strip() for message in slack.messages] == ["gpu3", "gpu1", "gpu2"]


@pytest.mark.parametrize("mode", ["drop_before", "drop_after_accept", "http500", "bad_json", "rate_limit"])
async def test_trouble_loses_and_doubles_nothing(slack, boxes, mode):
    async with boxes() as (outbox, told):
        for incident in (FIRING, REPAIRING, RESOLVED):
            slack.fail(mode, times=2, retry_after_s=0.1)
            outbox.put(incident)
            assert await outbox.drain(5)
    (message,) = slack.messages
    assert "resolved" in message["text"]
    assert texts(message["replies"]) == STORY
    assert told.stuck == []


async def test_a_first_message_that_was_accepted_without_an_answer_still_ends_up_current(slack, boxes):
    slack.fail("drop_after_accept", times=1)
    async with boxes(backoff_s=(0.1,)) as (outbox, _):
        outbox.put(FIRING)
        await until(lambda: slack.messages)
        outbox.put(RESOLVED)
        assert await outbox.drain(5)
    (message,) = slack.messages
    assert "resolved" in message["text"]
    assert [edit["text"].split()[1] for edit in message["edits"]] == ["resolved:"]


async def test_a_stalling_slack_is_tried_again(slack, boxes):
    slack.fail("stall", times=1)
    async with boxes(timeout_s=0.1) as (outbox, _):
        outbox.put(FIRING)
        assert await outbox.drain(5)
    assert len(slack.messages) == 1


async def test_retry_after_is_waited_for(slack, boxes):
    slack.rate_limit(1, retry_after_s=0.3)
    async with boxes() as (outbox, _):
        outbox.put(FIRING)
        assert await outbox.drain(5)
    first, second = slack.requests[:2]
    assert second["at"] - first["at"] >= 0.3


async def test_backoff_grows_to_its_last_value_and_starts_again_after_a_success(slack, boxes):
    slack.fail("http500", times=4)
    async with boxes(backoff_s=(0.05, 0.1, 0.2)) as (outbox, _):
        outbox.put(FIRING)
        assert await outbox.drain(5)
        slack.fail("http500", times=1)
        before = len(slack.requests)
        outbox.put(REPAIRING)
        assert await outbox.drain(5)
    at = [request["at"] for request in slack.requests]
    gaps = [later - earlier for earlier, later in pairwise(at)]
    for gap, wanted in zip(gaps, (0.05, 0.1, 0.2, 0.2), strict=False):
        assert wanted <= gap < wanted + 0.5
    assert 0.05 <= gaps[before] < 0.2, "one failure, the first wait"


async def test_a_long_outage_is_reported_and_so_is_its_end(slack, boxes):
    slack.fail("http500", times=6)
    async with boxes() as (outbox, told):
        outbox.put(FIRING)
        assert await outbox.drain(5)
    assert len(told.stuck) == 2
    assert "HTTP 500" in told.stuck[0]
    assert told.stuck[1] is None


async def test_a_refusal_is_reported_once_and_fixing_slack_brings_the_messages(slack, boxes):
    slack.ok_false("not_in_channel")
    async with boxes() as (outbox, told):
        outbox.put(FIRING)
        await until(lambda: len(slack.requests) >= 2)
        outbox.put(RESOLVED)
        assert told.stuck == ["not_in_channel: invite the app: /invite @grid-agent in the channel"]
        assert not await outbox.drain(0.01)
        slack.heal()
        assert await outbox.drain(5)
    assert told.stuck[1:] == [None]
    (message,) = slack.messages
    assert "resolved" in message["text"]
    assert texts(message["replies"]) == STORY


async def test_edits_are_not_sent_faster_than_asked_and_the_last_one_wins(slack, boxes):
    async with boxes(min_edit_s=0.1) as (outbox, _):
        outbox.put(FIRING)
        await until(lambda: slack.messages)
        for number in range(20):
            outbox.put(replace(FIRING, evidence=(f"check {number}",)))
            await asyncio.sleep(0.01)
        outbox.put(REPAIRING)
        assert await outbox.drain(5)
    (message,) = slack.messages
    posted = slack.requests[0]["at"]
    times = [posted, *(edit["at"] for edit in message["edits"])]
    assert 1 <= len(message["edits"]) <= 2
    assert all(later - earlier >= 0.09 for earlier, later in pairwise(times))
    assert "repairing" in message["text"]


async def test_a_deleted_message_is_posted_anew(slack, boxes):
    async with boxes() as (outbox, told):
        outbox.put(REPAIRING)
        assert await outbox.drain(5)
        slack.delete(slack.messages[0]["ts"])
        outbox.put(RESOLVED)
        assert await outbox.drain(5)
    (message,) = slack.messages
    assert "resolved" in message["text"]
    assert texts(message["replies"]) == ["a task ran there"]
    assert told.rows["7"]["ts"] == message["ts"]


class NoReplies(SlackServer):
    """Takes messages and edits, and refuses every reply."""

    def _post(self, body):
        return (
            {"ok": False, "error": "cannot_reply_to_message"} if "thread_ts" in body else super()._post(body)
        )


@pytest.mark.parametrize("slack", [NoReplies], indirect=True)
async def test_a_channel_that_takes_no_replies_does_not_end_in_a_flood(slack, boxes):
    async with boxes() as (outbox, told):
        for incident in (FIRING, REPAIRING, RESOLVED):
            outbox.put(incident)
            assert await outbox.drain(5)
    assert "resolved" in slack.messages[-1]["text"]
    assert len(slack.messages) <= 3
    assert told.stuck == []


async def test_a_message_slack_will_never_take_does_not_hold_up_the_others(slack, boxes, caplog):
    slack.ok_false("msg_too_long", times=1)
    async with boxes() as (outbox, told):
        outbox.put(FIRING)
        outbox.put(replace(FIRING, id=8, nodes=("gpu2",)))
        assert await outbox.drain(5)
    assert [message["text"].split()[2] for message in slack.messages] == ["gpu2:"]
    assert "msg_too_long" in caplog.text
    assert told.stuck == []


async def test_a_thread_survives_a_restart(slack, boxes):
    async with boxes() as (outbox, told):
        outbox.put(REPAIRING)
        assert await outbox.drain(5)
    async with boxes(restored=told.rows) as (outbox, _):
        outbox.put(REPAIRING)
        assert await outbox.drain(5)
        assert slack.messages[0]["edits"] == []
        outbox.put(RESOLVED)
        assert await outbox.drain(5)
    (message,) = slack.messages
    assert "resolved" in message["text"]
    assert texts(message["replies"]) == STORY


@pytest.mark.parametrize("scope", [True, False])
@pytest.mark.parametrize("at", ["root", "step"])
async def test_what_was_begun_before_a_restart_is_looked_for_before_it_is_sent_again(slack, boxes, at, scope):
    """kill -9 between Slack's taking it and our noting so."""
    async with boxes() as (outbox, told):
        if at == "step":
            outbox.put(replace(FIRING, steps=()))
            assert await outbox.drain(5)
        slack.fail("drop_after_accept", times=1, replies_only=at == "step")
        outbox.put(FIRING)
        await until(lambda: slack.messages and (at == "root" or slack.messages[0]["replies"]))
        before = dict(told.rows)
    slack.history_scope = scope
    async with boxes(restored=before) as (outbox, _):
        outbox.put(RESOLVED)
        assert await outbox.drain(5)
    doubled = 0 if scope else 1
    assert len(slack.messages) == 1 + (doubled if at == "root" else 0)
    message = slack.messages[-1]
    assert "resolved" in message["text"]
    assert len(message["replies"]) == 3 + (doubled if at == "step" else 0)


async def test_edits_of_an_earlier_life_count(slack, boxes):
    async with boxes(min_edit_s=0.02) as (outbox, told):
        outbox.put(FIRING)
        for number in range(4):
            outbox.put(replace(FIRING, evidence=(f"{number}",)))
            assert await outbox.drain(5)
    async with boxes(restored=told.rows, min_edit_s=0.02) as (outbox, _):
        outbox.put(replace(FIRING, evidence=("one more",)))
        assert not await outbox.drain(0.5)
        outbox.put(RESOLVED)  # an end is told at once
        assert await outbox.drain(5)
    assert len(slack.messages[0]["edits"]) == 4


async def test_a_storm_is_one_post_and_at_most_four_edits_in_five_minutes(slack, boxes):
    """A thousand nodes, one unit of time for a second: the five minutes are 300 units."""
    unit_s = 0.01
    async with boxes(min_edit_s=unit_s) as (outbox, _):
        names = tuple(f"gpu{i}" for i in range(1, 1001))
        began = time.monotonic()
        for number in range(1, 1001):
            steps = tuple(Step(AT + k, f"step {k}") for k in range(number))
            outbox.put(replace(FIRING, nodes=names[:number], steps=steps))
            if number % 4 == 0:
                await asyncio.sleep(unit_s)
        outbox.put(replace(RESOLVED, nodes=names))
        assert await outbox.drain(30)
        lasted = time.monotonic() - began
    (message,) = slack.messages
    posts = [r for r in slack.requests if r["method"] == "chat.postMessage"]
    assert len(posts) == 1
    times = [edit["at"] for edit in message["edits"]]
    window = 300 * unit_s * 0.97
    assert all(sum(at <= later < at + window for later in times) <= 4 for at in times), lasted
    assert "resolved" in message["text"]
    assert "Nodes: gpu[1-1000]" in message["blocks"][1]["text"]["text"]


async def test_an_incident_rolled_up_before_anybody_was_told_is_never_posted(slack, boxes):
    async with boxes(min_edit_s=0.1) as (outbox, _):
        outbox.put(FIRING)
        outbox.put(replace(FIRING, id=8))
        outbox.put(replace(RESOLVED, id=8, rolled_into=7))
        assert await outbox.drain(5)
    assert len(slack.messages) == 1


async def test_a_value_put_while_the_last_one_is_being_noted_is_sent(slack, boxes):
    async with boxes() as (outbox, told):

        async def keep(number, row):
            await told.keep(number, row)
            if row["revision"] == 1:
                outbox.put(replace(RESOLVED, revision=2))

        outbox._keep = keep
        outbox.put(replace(REPAIRING, revision=1))
        assert await outbox.drain(5)
    (message,) = slack.messages
    assert "resolved" in message["text"]


async def test_a_rate_limit_of_minutes_is_obeyed(slack, boxes):
    slack.rate_limit(1, retry_after_s=40)
    async with boxes() as (outbox, told):
        outbox.put(FIRING)
        assert not await outbox.drain(0.5)
    assert len(slack.requests) == 1
    assert told.stuck == ["Slack's rate limit: it asks to wait 40 s"]


async def test_a_restored_thread_in_a_channel_that_is_gone_moves_to_the_configured_one(slack, boxes):
    kept = {7: {"channel_id": "C0OLD", "ts": "1732200000.000100", "steps_posted": 1}}
    async with boxes(restored=kept) as (outbox, told):
        outbox.put(REPAIRING)
        assert await outbox.drain(5)
    (message,) = slack.messages
    assert texts(message["replies"]) == STORY[1:2]
    assert told.stuck == []


async def test_what_is_resolved_and_delivered_is_forgotten(slack, boxes):
    async with boxes() as (outbox, _):
        outbox.put(RESOLVED)
        outbox.put(replace(FIRING, id=8))
        assert await outbox.drain(5)
        assert outbox._threads.keys() == {8}


async def test_memory_is_bounded(slack, boxes):
    async with boxes() as (outbox, _):
        for number in range(REMEMBERED + 10):
            outbox.put(replace(RESOLVED, id=number, steps=()))
        assert await outbox.drain(10)
        assert outbox._threads == {}
        assert len(outbox._done) == REMEMBERED


async def test_a_callback_that_fails_does_not_end_the_outbox(slack, boxes, caplog):
    async with boxes() as (outbox, told):
        outbox._keep = lambda *_: 1 / 0
        outbox.put(FIRING)
        await until(lambda: "goes on" in caplog.text)
        outbox._keep = told.keep
        outbox.put(RESOLVED)
        assert await outbox.drain(5)
    (message,) = slack.messages
    assert texts(message["replies"]) == STORY


async def test_without_slack_one_line_is_logged_per_phase(caplog):
    caplog.set_level(logging.INFO)
    outbox = LogOutbox()
    for incident in (FIRING, FIRING, REPAIRING, REPAIRING, RESOLVED):
        outbox.put(incident)
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [
        ("WARNING", "incident 7 firing: gpu1: process gone; told Ray"),
        ("WARNING", "incident 7 repairing: gpu1: process gone; restart by gpu2, attempt 1"),
        ("INFO", "incident 7 resolved: gpu1: process gone; a task ran there"),
    ]
    assert await outbox.drain(0)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await outbox.run()
