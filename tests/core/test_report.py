"""The health body to the letter, the table of statuses, and the texts for people."""

from dataclasses import replace
from typing import Any

import pytest

from grid_agent.core import gpu_report, report
from grid_agent.core import messages as m
from grid_agent.core.model import NodeBelief
from grid_agent.core.seen import ProbeReport
from tests.core.situations import (
    Story,
    answered,
    configured,
    refused,
    repair_failed,
    repaired,
    row,
    timed_out,
)


def body(story: Story, after: float = 0.0) -> dict[str, Any]:
    return report.health(story.belief, story.now + after, story.policy)


def status(story: Story, after: float = 0.0) -> str:
    return str(body(story, after)["status"])


def of_node(story: Story, name: str = "gpu1") -> dict[str, Any]:
    return next(n for n in body(story)["nodes"] if n["name"] == name)


def test_the_body_of_a_healthy_cluster() -> None:
    story = Story(1)
    story.change("gpu1", expected_gpus=1)
    story.see(story.listing(row("gpu1", gpus=1)), m.NodeProbed("gpu1", "gpu1-a", ProbeReport(1.0, 1)))
    assert body(story, 0.4) == {
        "status": "pass",
        "time": "1970-01-01T00:16:40.400Z",
        "age_s": 0.4,
        "mode": "heal",
        "paused": None,
        "observer": {"status": "pass", "loop_lag_ms": 0.0},
        "nodes": [
            {
                "name": name,
                "host": f"host-of-{name}",
                "role": "head" if name == "head" else "worker",
                "state": "ALIVE",
                "since": "1970-01-01T00:16:40.000Z",
                "cause": None,
                "heartbeat": {"age_s": 0.4, "rtt_ms": 0.5, "last_rtt_ms": 0.7},
                "gpus": gpus,
                "action": None,
            }
            for name, gpus in (
                ("head", {"expected": None, "registered": 0, "seen": None}),
                ("gpu1", {"expected": 1, "registered": 1, "seen": 1}),
            )
        ],
        "incidents": {"open": 0},
    }


def test_plain_types_only() -> None:
    story = Story(2)
    story.die("gpu1")
    story.see(timed_out("gpu2"))

    def plain(value: Any) -> bool:
        if isinstance(value, dict):
            return all(type(k) is str and plain(v) for k, v in value.items())
        if isinstance(value, list):
            return all(plain(v) for v in value)
        return type(value) in (str, int, float, bool, type(None))

    assert plain(body(story))
    assert plain(dict(report.incident(story.incidents[0])))


def test_pass_when_all_is_well() -> None:
    assert status(Story()) == "pass"
    assert status(Story(0)) == "pass"


def test_fail_before_anything_joined() -> None:
    assert status(Story(joined=False)) == "fail"


def test_warn_for_one_worker_of_three() -> None:
    story = Story()
    story.see(refused("gpu1"))
    assert status(story) == "warn"
    assert of_node(story)["state"] == "SUSPECT"


def test_warn_when_cordoned() -> None:
    story = Story()
    story.see(m.PeopleStopped(frozenset({"gpu1"})))
    assert status(story) == "warn"


def test_fail_when_no_worker_is_alive() -> None:
    story = Story(2)
    story.see(refused("gpu1"), refused("gpu2"))
    assert status(story) == "fail"


def test_warn_then_fail_when_the_head_is_not_alive() -> None:
    story = Story()
    story.see(refused("head"))
    assert status(story) == "warn"
    story.pass_time(12, refused("head"), *(answered(n) for n in story.names if n != "head"))
    assert status(story) == "fail"


def test_warn_then_fail_while_the_gcs_is_silent() -> None:
    story = Story()
    story.see(m.GcsWentSilent("x"))
    assert status(story) == "pass"
    story.see(after=3)
    assert status(story) == "warn"
    assert "the GCS has not answered for 3 s" in body(story)["observer"]["detail"]
    story.see(after=8)
    assert status(story) == "fail"


def test_fail_when_the_answer_is_older_than_ten_seconds() -> None:
    assert status(Story(), after=10.0) == "pass"
    assert status(Story(), after=10.1) == "fail"


@pytest.mark.parametrize("trouble", [m.LoopLagged(1500.0), m.SlackChanged("invalid_auth")])
def test_warn_when_we_are_not_well_ourselves(trouble: m.Event) -> None:
    story = Story()
    story.see(trouble)
    assert status(story) == "warn"
    assert body(story)["observer"]["status"] == "warn"
    assert body(story)["observer"]["detail"]


def test_a_little_slowness_is_told_and_no_warning() -> None:
    story = Story()
    story.see(m.LoopLagged(300.0))
    assert status(story) == "pass"
    assert "every timeout is 2 times as long" in body(story)["observer"]["detail"]


def test_warn_for_an_open_incident_though_every_node_is_alive() -> None:
    story = Story()
    story.die("gpu1")
    lonely = story.belief.incidents[1]
    healthy = Story()
    healthy.belief = replace(healthy.belief, incidents={1: lonely})
    assert status(healthy) == "warn"
    assert body(healthy)["incidents"] == {"open": 1}


def with_gpus(expected: int | None, registered: int | None, seen: int | None) -> NodeBelief:
    probe = None if seen is None else ProbeReport(1.0, seen)
    return replace(configured("gpu1"), expected_gpus=expected, registered_gpus=registered, probe=probe)


@pytest.mark.parametrize(
    ("expected", "registered", "seen", "differ"),
    [
        (None, None, None, False),
        (None, 0, 0, False),
        (None, 2, 2, False),
        (None, 2, 1, True),
        (1, None, None, False),
        (1, 1, None, False),
        (1, 1, 1, False),
        (1, 1, 4, False),
        (1, 0, None, True),
        (1, 2, 2, True),
        (1, 1, 0, True),
        (0, 0, 8, False),
    ],
)
def test_gpus(expected: int | None, registered: int | None, seen: int | None, differ: bool) -> None:
    assert gpu_report.differ(with_gpus(expected, registered, seen)) is differ


def test_a_gpu_difference_is_a_warning() -> None:
    story = Story()
    story.change("gpu1", expected_gpus=1)
    assert status(story) == "warn"


def test_the_action_says_what_is_done_or_why_nothing_is() -> None:
    story = Story(5)
    assert of_node(story)["action"] is None
    story.see(refused("gpu1"))
    assert of_node(story)["action"].startswith("looking at its host")
    story.die("gpu1")
    assert of_node(story)["cause"] == "process gone"
    assert of_node(story)["action"] == "restarting by a task on head, attempt 1 of 4"
    story.die("gpu2")
    assert of_node(story, "gpu2")["action"] == "held: another repair is under way; one at a time"
    story.see(repair_failed("gpu1"))
    assert of_node(story)["action"] == "next attempt in 2 s"
    story.see(repair_failed("gpu2", curable=False))
    assert of_node(story, "gpu2")["action"] == "needs a person: ray start failed"
    story.see(m.PeopleStopped(frozenset({"gpu3"})))
    assert of_node(story, "gpu3")["action"].startswith("stopped by a person")
    story.see(m.PeopleStopped(frozenset()))
    assert of_node(story, "gpu3")["action"].startswith("waiting for it to join")


def test_one_sentence_says_how_many_and_who() -> None:
    story = Story()
    assert report.sentence(story.belief) == "4 alive"
    story.die("gpu1")
    assert report.sentence(story.belief) == "3 alive, 1 repairing: gpu1 REPAIRING (process gone)"


def test_an_incident_tells_its_whole_story() -> None:
    story = Story()
    story.die("gpu1")
    story.come_back("gpu1")
    told = report.incident(story.incidents[0])
    assert list(told) == [
        "id",
        "nodes",
        "cause",
        "phase",
        "failed_at",
        "opened_at",
        "resolved_at",
        "evidence",
        "steps",
    ]
    assert (told["nodes"], told["phase"], told["cause"]) == (["gpu1"], "resolved", "process gone")
    assert told["resolved_at"].endswith("Z")
    assert all(set(s) == {"at", "text"} for s in told["steps"])
    assert story.see(repaired("gpu1")) is not None


def test_the_longest_unsuspected_silence_is_shown_once_it_is_known() -> None:
    story = Story(1)
    story.see(m.HeartbeatsSwept(9.0))
    body = report.health(story.belief, story.now, story.policy)
    assert body["observer"]["silence_suspected_within_s"] == 11.0
