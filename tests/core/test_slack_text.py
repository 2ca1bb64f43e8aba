import re
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grid_agent.core.incident_model import Incident, Phase, Step
from grid_agent.core.slack_text import HEADER_LIMIT, SECTION_LIMIT, TEXT_LIMIT, escape, root, step, summary
from grid_agent.core.terms import Cause

AT = 1_732_300_000.0
FIRING = Incident(
    id=7,
    nodes=("gpu1",),
    host="10.0.0.11",
    cause=Cause.PROCESS_GONE,
    phase=Phase.FIRING,
    opened_at=AT + 1,
    failed_at=AT,
    evidence=("port 35713 refused", "no pid 4711 on the host"),
    steps=(Step(AT + 1, "told Ray"), Step(AT + 2, "restart by gpu2, attempt 1")),
)

NASTY = ["<!here>", "<!channel>", "<@U123>", "<http://x.y|z>", "@here", "http://", "https://evil/"]
NASTY += ["&", "<", ">", "&lt;", "\n", "\0", "\u202e", "\ud800", "🔴", "é", "/", ":"]
hostile = st.text(max_size=200) | st.builds(
    lambda parts, times: "".join(parts) * times,
    st.lists(st.sampled_from(NASTY), max_size=12),
    st.sampled_from([1, 3, 500]),
)
times = st.floats(0, 4e9)
incidents = st.builds(
    Incident,
    id=st.integers(1, 10**9),
    nodes=st.lists(hostile, max_size=5).map(tuple),
    host=hostile,
    cause=st.sampled_from(Cause),
    phase=st.sampled_from(Phase),
    opened_at=times,
    failed_at=times,
    evidence=st.lists(hostile, max_size=4).map(tuple),
    steps=st.lists(st.builds(Step, times, hostile), min_size=1, max_size=3).map(tuple),
    resolved_at=st.none() | times,
)


def texts(message):
    """(limit, text) of everything Slack would show."""
    yield TEXT_LIMIT, message.text
    for block in message.blocks:
        if block["type"] == "context":
            yield from ((SECTION_LIMIT, element["text"]) for element in block["elements"])
        else:
            limit = HEADER_LIMIT if block["type"] == "header" else SECTION_LIMIT
            yield limit, block["text"]["text"]


@settings(max_examples=100, deadline=None)
@given(incidents, times, hostile)
def test_nothing_from_a_host_can_mention_link_or_burst_a_limit(incident, now, cluster):
    for message in (root(incident, now, cluster), step(incident, 0)):
        for limit, text in texts(message):
            assert 1 <= len(text) <= limit
            assert "<" not in text
            assert ">" not in text
            assert "://" not in text
            assert not re.search("@(?!\u200b)", text)
            assert not re.search("&(?!(amp|lt|gt);)", text)


@given(hostile, st.integers(10, 200))
def test_escape_is_one_line_within_the_limit_and_cuts_no_entity(text, limit):
    safe = escape(text, limit)
    assert len(safe) <= limit
    assert len(safe.splitlines()) <= 1
    assert not re.search("&(?!(amp|lt|gt);)", safe)


@given(incidents)
def test_summary_is_one_printable_line(incident):
    assert summary(incident).isprintable()


def test_a_short_plain_text_is_left_as_it_is():
    assert escape("port 35713 refused, 100 % sure", 100) == "port 35713 refused, 100 % sure"
    assert escape("a" * 11, 10) == "a" * 9 + "…"


@pytest.mark.parametrize("phase", Phase)
def test_the_fallback_text_names_node_cause_and_phase(phase):
    text = root(replace(FIRING, phase=phase), AT + 5, "lab").text
    assert "gpu1" in text
    assert "process gone" in text
    assert phase.value in text


def test_the_message_has_header_evidence_last_step_and_age():
    header, what, doing, context = root(FIRING, AT + 12.3, "lab").blocks
    assert header["text"]["text"] == "🔴 firing: gpu1"
    assert what["text"]["text"].splitlines() == [
        "*process gone* (10.0.0.11, lab)",
        "port 35713 refused",
        "no pid 4711 on the host",
    ]
    assert doing["text"]["text"] == "Now: restart by gpu2, attempt 1"
    assert context["elements"][0]["text"] == (
        "incident 7, since 2024-11-22 18:26:40 UTC, for 12.3 s at 2024-11-22 18:26:52 UTC"
    )


def test_a_resolved_incident_tells_how_long_it_lasted_whatever_the_time_is():
    done = replace(FIRING, phase=Phase.RESOLVED, resolved_at=AT + 4.25)
    assert "resolved after 4.2 s" in root(done, AT + 5, "lab").text
    assert root(done, AT + 5, "lab") == root(done, AT + 5000, "lab")


@pytest.mark.parametrize(
    ("seconds", "words"), [(0.04, "0.0 s"), (59.9, "59.9 s"), (192, "3 min 12 s"), (7500, "2 h 5 min")]
)
def test_durations_read_well(seconds, words):
    done = replace(FIRING, phase=Phase.RESOLVED, resolved_at=AT + seconds)
    assert f"resolved after {words}," in root(done, AT, "lab").text


def test_a_storm_is_rolled_up():
    storm = replace(FIRING, nodes=tuple(f"gpu{i}" for i in range(1, 13)))
    message = root(storm, AT, "lab")
    assert message.blocks[0]["text"]["text"] == "🔴 firing: 12 nodes: gpu1, gpu2, gpu3 … and 9 more"
    assert "Nodes: gpu[1-12]" in message.blocks[1]["text"]["text"]
    assert "`grid-agent incidents 7`" in message.blocks[3]["elements"][0]["text"]


def test_the_next_attempt_is_announced_while_nothing_is_under_way():
    waiting = replace(FIRING, next_attempt_at=AT + 30)
    assert "Next attempt at 2024-11-22 18:27:10 UTC" in root(waiting, AT, "lab").text
    assert "Next attempt" not in root(replace(waiting, phase=Phase.REPAIRING), AT, "lab").text


def test_without_nodes_evidence_steps_and_host_it_still_reads():
    bare = replace(FIRING, nodes=(), host="", evidence=(), steps=())
    message = root(bare, AT, "lab")
    assert "the cluster" in message.text
    assert "nothing done yet" in message.text
    assert "(lab)" in message.text


def test_a_step_tells_when_and_how_long_after_the_failure():
    assert (
        step(FIRING, 1).text == "2024-11-22 18:26:42 UTC, 2.0 s after the failure: restart by gpu2, attempt 1"
    )
    with pytest.raises(IndexError):
        step(FIRING, 2)


@pytest.mark.parametrize("at", [-1.0, 1e300, float("nan"), float("inf")])
def test_a_time_that_cannot_be_shown_raises_nothing(at):
    assert "an unknown time" in root(replace(FIRING, failed_at=at), AT, "lab").text
