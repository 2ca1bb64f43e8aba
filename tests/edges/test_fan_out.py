"""Hundreds of hosts asked at once: no more ways are open than there is room for, and all are answered."""

import asyncio
from pathlib import Path
from typing import Any

from config.paths import StatePaths
from config.settings import Settings
from grid_agent.core import messages as m
from grid_agent.core.model import NodeBelief
from grid_agent.core.terms import State
from grid_agent.edges.looks import Looks
from grid_agent.edges.transports import FAN_OUT, Transport, Transports

MANY = 3 * FAN_OUT
NAMES = [f"n{number}" for number in range(MANY)]
HEAD = NodeBelief("n0", "127.0.0.1", "head", State.ALIVE, 0.0)


class Road:
    """Plays the ways to every host, and counts how many are open at once."""

    def __init__(self) -> None:
        self.open = self.most = 0

    async def call(self, request: dict[str, Any], timeout_s: float) -> dict[str, Any]:
        self.open += 1
        self.most = max(self.most, self.open)
        await asyncio.sleep(0.01)
        self.open -= 1
        return {"ok": True, "raylets": [], "asked": request["node_name"]}


async def test_commands(tmp_path: Path) -> None:
    road = Road()

    class Ways(Transports):
        def _make(self, name: str, control_dir: str | None) -> Transport:
            return road

    rows = [{"name": name, "host": "127.0.0.1", "role": "worker"} for name in NAMES]
    rows[0]["role"] = "head"
    ways = Ways(Settings.model_validate({"cluster": "many", "nodes": rows}), StatePaths(tmp_path))
    asked = (ways.call(name, {"node_name": name}, 1.0) for name in NAMES)
    assert [answer["asked"] for answer in await asyncio.gather(*asked)] == NAMES
    assert road.most == FAN_OUT


async def test_the_looks_of_the_agent() -> None:
    road = Road()
    looks = Looks(lambda by, node: road, "10.99.0.1:1")
    asked = (looks.look(m.LookAtHost(name, None, "n0"), HEAD) for name in NAMES)
    events = await asyncio.gather(*asked)
    assert [event.node for event in events if isinstance(event, m.HostLooked)] == NAMES
    assert road.most == FAN_OUT
