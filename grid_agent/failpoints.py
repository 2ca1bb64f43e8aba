"""Where a test can end the agent as `kill -9` would: GRID_AGENT_FAILPOINT=name, or name:n for the n-th time.

They stand at every step of decide, record, act, record and notify. Without the variable they do nothing.
"""

import os
import signal

NAMES = (
    "decided",  # a step has orders or changes; nothing is written
    "commit",  # all of it is written, and not yet committed
    "recorded",  # committed; no order has been started
    "acting",  # an order is about to leave the agent
    "acted",  # its answer is here, and nothing knows of it
    "keeping",  # a message is about to be sent; nobody knows
    "kept",  # it is known that the message may be sent
    "posted",  # Slack has taken it; nobody knows
    "noted",  # and now it is known
)
_left: dict[str, int] = {}


def arm(spec: str) -> None:
    """End this process at the point of this name, or at its n-th passing with `name:n`; "" for nowhere."""
    name, _, count = spec.partition(":")
    _left.clear()
    if name:
        _left[name] = int(count) if count.isdigit() else 1


def reach(name: str) -> None:
    """End this process here and now if that was asked for."""
    if name not in _left:
        return
    _left[name] -= 1
    if _left[name] <= 0:
        os.kill(os.getpid(), signal.SIGKILL)


arm(os.environ.get("GRID_AGENT_FAILPOINT", ""))
