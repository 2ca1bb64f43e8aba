"""Secrets do not get into what is believed, kept or shown."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grid_agent.core import messages as m
from grid_agent.core.redact import GONE, text, value
from grid_agent.core.seen import Raylet


@pytest.mark.parametrize(
    "said",
    [
        "sent xoxb-1234567890-CANARYCANARY now",
        "Authorization: Bearer CANARY.1234",
        "RAY_AUTH_TOKEN=CANARY1234",
        'the file says {"token": "CANARY1234"}',
        "password: CANARY!234",
        "SLACK_BOT_TOKEN='CANARY1234'",
        "aws AKIACANARYCANARY1234 refused",
        "http://user:CANARY@proxy:3128/ refused",
        "git ghp_CANARYCANARYCANARYCANARY",
        "-----BEGIN OPENSSH PRIVATE KEY-----\nCANARY\n-----END OPENSSH PRIVATE KEY-----",
        "-----BEGIN PRIVATE KEY-----\nCANARY cut off",
    ],
)
def test_secrets_of_known_shapes_are_gone(said: str) -> None:
    assert "CANARY" not in text(said)
    assert GONE in text(said)


@pytest.mark.parametrize(
    "said",
    [
        "process gone (heartbeat from the head refused; head looked at the host: no such raylet process)",
        "auth: This host's Ray token is not the cluster's: stop.py, then start.py",
        "the token file /home/ray/.local/state/ray_token cannot be read",
        "check the key of 10.0.0.1:22; RAY_AUTH_TOKEN_PATH=/x/ray_token",
        "http://127.0.0.1:8000/cluster/health",
        "",
    ],
)
def test_what_is_no_secret_stays(said: str) -> None:
    assert text(said) == said


def test_a_known_secret_goes_whatever_it_looks_like() -> None:
    assert text("the host said hunter2-and-more", ["hunter2-and-more", "", "the"]) == f"the host said {GONE}"


def test_every_text_of_an_event_is_looked_at() -> None:
    event = m.HostLooked(
        "w1", "head", (Raylet(7, "id1"),), "Bearer CANARY99", bundle={"files": [{"tail": "a token=CANARY99"}]}
    )
    assert "CANARY" not in str(value(event))
    plain = m.RepairEnded("w1", 1, ok=True, detail="the raylet was started")
    assert value(plain) is plain


@given(st.text(), st.lists(st.text(max_size=12), max_size=3))
def test_any_text_can_be_cleaned(said: str, secrets: list[str]) -> None:
    assert all(
        secret not in text(said, [secret]) for secret in secrets if len(secret) > 8 and secret not in GONE
    )
