"""The document of `validate -o json`, as types; its JSON schema is made from them and shipped beside them.

`python -m grid_agent.validate_report --write` writes the schema anew; a test keeps it true.
"""

import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import TypeAdapter
from pydantic.dataclasses import dataclass as checked

from config import tuning
from grid_agent.core.effective import Setting
from grid_agent.exits import Exit

SCHEMA = Path(__file__).with_name("validate.schema.json")
Status = Literal["pass", "warn", "fail"]
Asked = Literal["agent", "raylets"]
RayState = Literal["ALIVE", "DEAD", "ABSENT"]
OF_EXIT: dict[Exit, Status] = {Exit.PASS: "pass", Exit.WARN: "warn"}


@dataclass(frozen=True, slots=True)
class Check:
    """One line of the report. `unreachable`: nobody answered, so that nothing is known."""

    name: str
    status: Status
    detail: str
    unreachable: bool = False


@dataclass(frozen=True, slots=True)
class Detection:
    """Seconds from a fault to Ray's own verdict, earliest and latest, and the formula they come from."""

    killed_s: tuple[float, float]
    silent_s: tuple[float, float]
    formula: str = tuning.FORMULA
    source: str = tuning.FORMULA_SOURCE

    @classmethod
    def of(cls, found: tuning.Detection | None) -> "Detection | None":
        """The same as plain values."""
        if found is None:
            return None
        killed, silent = found.killed, found.silent
        return cls((killed.earliest_s, killed.latest_s), (silent.earliest_s, silent.latest_s))


@dataclass(frozen=True, slots=True)
class NodeView:
    """One node: its state in Ray's table (null: not told) and for the agent (null: no agent answered)."""

    name: str
    host: str
    role: str
    ray: RayState | None
    agent: str | None
    cause: str | None


@dataclass(frozen=True, slots=True)
class Report:
    """What one run of `validate` found, before it is given an exit code."""

    cluster: str
    checks: tuple[Check, ...]
    settings: tuple[Setting, ...]
    detection: Detection | None
    nodes: tuple[NodeView, ...]


@dataclass(frozen=True, slots=True)
class NamedCheck:
    """One check as it is printed."""

    name: str
    status: Status
    detail: str


@dataclass(frozen=True, slots=True)
class Quantiles:
    """Of the heartbeat's round trips, in milliseconds; null where none was seen."""

    p50: float | None
    p99: float | None


@dataclass(frozen=True, slots=True)
class Change:
    """A change of a node's state that was seen, at a UTC time."""

    at: str
    before: str
    after: str
    cause: str | None


@dataclass(frozen=True, slots=True)
class Watched:
    """One node over the time of `--monitor`."""

    name: str
    state: str
    since: str
    alive_percent: float
    missed: int
    rtt_ms: Quantiles
    worst_gap_s: float
    changes: tuple[Change, ...]


@dataclass(frozen=True, slots=True)
class Monitored:
    """What `--monitor` saw: polls of the agent or of every raylet, those without an answer, every node."""

    asked: Asked
    seconds: float
    polls: int
    unanswered: int
    availability_percent: float
    nodes: tuple[Watched, ...]


@checked(frozen=True)
class Document:
    """The whole document: the verdict with its exit code, and all that it rests on."""

    status: Status
    exit_code: int
    cluster: str
    checks: tuple[NamedCheck, ...]
    settings: tuple[Setting, ...]
    detection: Detection | None
    nodes: tuple[NodeView, ...]
    monitor: Monitored | None = None


def document(report: Report, code: Exit, monitor: Monitored | None = None) -> dict[str, Any]:
    """The report as plain values."""
    made = Document(
        OF_EXIT.get(code, "fail"),
        int(code),
        report.cluster,
        tuple(NamedCheck(c.name, c.status, c.detail) for c in report.checks),
        report.settings,
        report.detection,
        report.nodes,
        monitor,
    )
    found: dict[str, Any] = json.loads(json.dumps(asdict(made)))
    return found


def schema() -> str:
    """The JSON schema, as the text of the file."""
    draft = {"$schema": "https://json-schema.org/draft/2020-12/schema"}
    return json.dumps({**draft, **TypeAdapter(Document).json_schema(mode="serialization")}, indent=2) + "\n"


if __name__ == "__main__":
    if sys.argv[1:] != ["--write"]:
        sys.exit("usage: python -m grid_agent.validate_report --write")
    SCHEMA.write_text(schema(), encoding="utf-8")
