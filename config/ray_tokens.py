"""Ray's tokens in a person's environment that are not the cluster's: with them Ray's own tools are refused.

Looks at values only. Ray takes the first of RAY_AUTH_TOKEN, the file that RAY_AUTH_TOKEN_PATH names and
~/.ray/auth_token, which any earlier `ray.init()` may have left behind (2.60, in Ray's own
_private/authentication/authentication_token_setup.py). The nodes that we start do not look at these.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path

CURE = 'eval "$(grid-agent env)" in this shell'


def strays(environ: Mapping[str, str], home: Path, auth: str, own: str | None) -> Iterator[str]:
    """Say of each what it does and what to do.

    Args:
        environ: The person's environment.
        home: Their home folder.
        auth: How the cluster is started, "token" or "disabled".
        own: Its token, None where there is none.
    """
    mode = environ.get("RAY_AUTH_MODE")
    if mode and mode.lower() != auth:
        yield f"RAY_AUTH_MODE={mode} in this environment, this cluster has {auth}: before Ray's tools, {CURE}"
    if auth != "token" or not own:
        return
    refused = "which is not this cluster's: Ray's tools and drivers started here are refused"
    if environ.get("RAY_AUTH_TOKEN"):
        if environ["RAY_AUTH_TOKEN"].strip() != own.strip():
            yield f"RAY_AUTH_TOKEN in this environment is a token {refused}. unset RAY_AUTH_TOKEN"
        return
    named = environ.get("RAY_AUTH_TOKEN_PATH")
    path = Path(named).expanduser() if named else home / ".ray" / "auth_token"
    try:
        found = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return
    if found.strip() != own.strip():
        yield f"{path} holds a token {refused}, unless they are given another one: {CURE}"
