"""`--monitor` without an agent: raylets that answer, fall silent or are killed, and what the GCS says."""

from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest

from grid_agent.api_client import ApiError
from grid_agent.core.messages import NodeRow
from grid_agent.monitor import Monitor
from grid_agent.ray_view import Said
from grid_agent.watch_raylets import Raylets
from tests.support import raylets as simulated

SILENT = Said(error="UNAVAILABLE: nobody", accepted=False)


@pytest.fixture
def hosts() -> Iterator[list[simulated.Raylets]]:
    """A head, and a worker in a process of its own."""
    made = [simulated.Raylets(["head"]), simulated.Raylets(["w1"])]
    try:
        yield made
    finally:
        for one in made:
            one.close()


def listed(hosts: list[simulated.Raylets]) -> list[NodeRow]:
    found = [raylet for one in hosts for raylet in one.all]
    return [NodeRow(r.name, r.node_id, "127.0.0.1", r.port, True, 1, is_head=r.name == "head") for r in found]


def watching(answers: list[Said]) -> Raylets:
    left = iter(answers)

    async def ask() -> Said:
        return next(left)

    return Raylets(ask, "10.0.0.1:6379")


def states(body: dict[str, object]) -> dict[str, str]:
    return {node["name"]: node["state"] for node in body["nodes"]}  # type: ignore[index, attr-defined]


FAULTS: list[tuple[Callable[[simulated.Raylets], None], str]] = [
    (simulated.Raylets.kill, "killed"),
    (simulated.Raylets.stop, "stopped"),
]


@pytest.mark.parametrize("fault", [fault for fault, _ in FAULTS], ids=[name for _, name in FAULTS])
def test_who_does_not_answer_is_suspect(
    fault: Callable[[simulated.Raylets], None], hosts: list[simulated.Raylets]
) -> None:
    rows = listed(hosts)
    ask, monitor = watching([Said((*rows, replace(rows[1], name="old", alive=False)))] * 2), Monitor(print)
    first = ask()
    monitor.see(first)
    assert first["status"] == "pass"
    assert states(first) == {"head": "ALIVE", "w1": "ALIVE"}  # the dead of earlier days are nobody's business
    fault(hosts[1])
    second = ask()
    monitor.see(second)
    assert second["status"] == "fail"  # no worker is left
    assert states(second) == {"head": "ALIVE", "w1": "SUSPECT"}
    head, w1 = monitor.report().nodes
    assert (head.missed, w1.missed, w1.alive_percent) == (0, 1, 50.0)
    assert head.rtt_ms.p99 is not None
    assert [(c.before, c.after) for c in w1.changes] == [("ALIVE", "SUSPECT")]


def test_the_newest_life_counts_and_a_death_has_its_cause(hosts: list[simulated.Raylets]) -> None:
    rows = listed(hosts)
    dead = replace(rows[1], alive=False, death="health check failed")
    again = replace(rows[1], node_id="again", started_at_ms=2)
    ask = watching([Said(tuple(rows)), Said((rows[0], dead)), Said((again, dead, rows[0]))])
    ask()
    second = ask()
    assert states(second)["w1"] == "DEAD"
    assert second["nodes"][1]["cause"] == "health check failed"
    assert states(ask())["w1"] == "ALIVE"


def test_a_silent_gcs_fails_and_raylets_are_asked_all_the_same(hosts: list[simulated.Raylets]) -> None:
    ask = watching([Said(tuple(listed(hosts))), SILENT])
    ask()
    body = ask()
    assert (body["status"], body["observer"]["detail"]) == ("fail", SILENT.error)
    assert states(body) == {"head": "ALIVE", "w1": "ALIVE"}
    with pytest.raises(ApiError, match=r"nobody answers at 10.0.0.1:6379 \(UNAVAILABLE: nobody\)"):
        watching([SILENT])()
