"""Tokens that lie around are named, and no token is ever shown."""

from pathlib import Path

import pytest

from config.ray_tokens import strays

OWN, OTHER = "own-5e1d", "other-77aa"


def said(home: Path, auth: str = "token", own: str | None = OWN + "\n", **environ: str) -> str:
    text = "\n".join(strays(environ, home, auth, own))
    assert OWN not in text
    assert OTHER not in text
    return text


def left_behind(home: Path, token: str) -> Path:
    file = home / ".ray" / "auth_token"
    file.parent.mkdir()
    file.write_text(token)
    return file


def test_nothing_is_said_of_what_is_right(tmp_path: Path) -> None:
    assert said(tmp_path) == ""
    assert said(tmp_path, RAY_AUTH_TOKEN=OWN, RAY_AUTH_MODE="token") == ""
    file = left_behind(tmp_path, OWN)
    assert said(tmp_path) == ""
    assert said(tmp_path, RAY_AUTH_TOKEN_PATH=str(file)) == ""


def test_a_token_left_behind_is_named(tmp_path: Path) -> None:
    file = left_behind(tmp_path, OTHER)
    assert str(file) in said(tmp_path)
    assert said(tmp_path, RAY_AUTH_TOKEN=OWN) == ""  # it counts first
    assert said(tmp_path, auth="disabled") == ""
    assert said(tmp_path, own=None) == ""


@pytest.mark.parametrize("name", ["RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"])
def test_a_wrong_variable_is_named(tmp_path: Path, name: str) -> None:
    file = tmp_path / "token"
    file.write_text(OTHER)
    value = OTHER if name == "RAY_AUTH_TOKEN" else str(file)
    text = said(tmp_path, **{name: value})
    assert (name if name == "RAY_AUTH_TOKEN" else str(file)) in text
    assert "not this cluster's" in text


@pytest.mark.parametrize("auth", ["token", "disabled"])
def test_another_mode_is_named(tmp_path: Path, auth: str) -> None:
    other = "disabled" if auth == "token" else "token"
    assert f"RAY_AUTH_MODE={other}" in said(tmp_path, auth=auth, RAY_AUTH_MODE=other)
