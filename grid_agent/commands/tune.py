"""`grid-agent tune`: measures Ray's own check from here to every node, and proposes a tuning."""

import asyncio
import json
import os
from collections.abc import Sequence
from dataclasses import asdict
from typing import Annotated, Any

import typer

from grid_agent import show
from grid_agent.commands import common
from grid_agent.core import latency, raystart
from grid_agent.exits import Exit
from grid_agent.ray_view import look

EVERY_S = 0.25
GIVE_UP_S = 10.0
MOST_PER_YEAR = 0.1


def tune(
    *,
    config: common.Config = None,
    address: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="A GCS: a cluster that grid-agent did not start.")
    ] = None,
    seconds: Annotated[
        float, typer.Option("--for", min=1, max=86_400, metavar="SECONDS", help="How long to measure.")
    ] = 60.0,
    most: Annotated[
        float,
        typer.Option("--false-deaths", min=1e-9, max=1e6, metavar="N", help="A year, of all nodes together."),
    ] = MOST_PER_YEAR,
    output: common.Output = common.Format.TEXT,
) -> None:
    """Measure checks of every node, and propose a tuning. Exit 0, 1 none fits, 2 usage, 4 nobody answers.

    Run it on the head host while the cluster works as it does on its worst day.
    """
    if address is not None and config is not None:
        common.fail("--address goes without -c: there is no file of it", Exit.USAGE)
    settings = None if address is not None else common.load(config)
    common.refuse_malformed(settings)
    environ = dict(os.environ)
    if settings is None:
        where = common.gcs_address(address or "")
    else:
        where = raystart.connect_address(common.in_force(settings))
        exports = common.exports(common.in_force(settings))
        environ |= {name: value for name, value in exports.items() if name.startswith("RAY_AUTH")}
    view = asyncio.run(look(where, settings, environ))
    if view.rows is None:
        common.fail(f"nobody answers at {where} ({view.error}): start the cluster first", Exit.UNREACHABLE)
    targets = {row.name or row.node_id[:8]: (row.address, row.port) for row in view.rows if row.alive}
    if not targets:
        common.fail(f"no node is ALIVE at {where}: there is nothing to measure", Exit.UNREACHABLE)
    from grid_agent.edges.checker import measure  # noqa: PLC0415 - it loads gRPC

    traces = asyncio.run(measure(targets, seconds, EVERY_S, GIVE_UP_S, _progress(seconds)))
    best = latency.fastest(traces, most)
    proposals = [*([best] if best else []), *latency.presets(traces, most)]
    if output is common.Format.JSON:
        typer.echo(json.dumps(_document(traces, best, proposals, seconds), indent=2))
    else:
        typer.echo("\n".join(_text(traces, best, proposals)))
    raise typer.Exit(Exit.PASS if best else Exit.WARN)


def _progress(seconds: float) -> Any:
    """Says how far it is, on a terminal only."""
    if not os.isatty(2):
        return lambda _: None
    return lambda passed: typer.echo(f"\rmeasured {passed:.0f} of {seconds:.0f} s ", nl=False, err=True)


def _row(trace: latency.Trace) -> dict[str, Any]:
    took = trace.took_ms
    return {
        "node": trace.node,
        "checks": len(took),
        "unanswered": trace.unanswered,
        "p50_ms": round(latency.quantile(took, 0.5), 3),
        "p99_ms": round(latency.quantile(took, 0.99), 3),
        "max_ms": round(max(took), 3),
        "jitter_ms": round(trace.jitter_ms(), 3),
        "longest_silence_s": round(trace.longest_silence_s, 4),
    }


def _document(
    traces: Sequence[latency.Trace],
    best: latency.Proposal | None,
    proposals: Sequence[latency.Proposal],
    seconds: float,
) -> dict[str, Any]:
    return {
        "seconds": seconds,
        "nodes": [_row(trace) for trace in traces],
        "proposals": [asdict(proposal) for proposal in proposals],
        "yaml": "\n".join(best.lines()) if best else None,
    }


def _text(
    traces: Sequence[latency.Trace], best: latency.Proposal | None, proposals: Sequence[latency.Proposal]
) -> list[str]:
    rows = [_row(trace) for trace in traces]
    head = ("NODE", "CHECKS", "UNANSWERED", "p50", "p99", "MAX ms", "JITTER ms", "LONGEST SILENCE")
    lines = show.table(
        head,
        [
            (
                row["node"],
                str(row["checks"]),
                str(row["unanswered"]),
                f"{row['p50_ms']:.2f}",
                f"{row['p99_ms']:.2f}",
                f"{row['max_ms']:.2f}",
                f"{row['jitter_ms']:.2f}",
                f"{row['longest_silence_s']:.3f} s",
            )
            for row in rows
        ],
    )
    lines += ["", "False deaths a year are of all nodes together, and hold for the time that was measured."]
    lines += show.table(
        ("TUNING", "PERIOD", "TIMEOUT", "FAILURES", "KILLED", "SILENT", "FALSE DEATHS A YEAR", "FITS"),
        [
            (
                p.name,
                f"{p.period_ms} ms",
                f"{p.timeout_ms} ms",
                str(p.failures),
                f"{p.detection.killed.earliest_s:g} to {p.detection.killed.latest_s:g} s",
                f"{p.detection.silent.earliest_s:g} to {p.detection.silent.latest_s:g} s",
                _deaths(p.false_deaths_per_year),
                "yes" if p.fits else "no",
            )
            for p in proposals
        ],
    )
    if best is None:
        return [*lines, "", "No tuning keeps false deaths that rare here: find out why checks are so slow."]
    return [*lines, "", "To paste into the cluster file:", "", *best.lines()]


def _deaths(value: float) -> str:
    return "below 0.0001" if value < 0.0001 else f"{value:.4f}" if value < 1 else f"{value:.1f}"
