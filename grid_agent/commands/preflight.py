"""`grid-agent preflight` and `ports`: what must hold before a start, and what firewalls must let in."""

import asyncio
import contextlib
import json
import os
from collections.abc import Iterable
from dataclasses import asdict
from typing import Annotated, Any

import typer

from config.paths import StatePaths
from config.settings import Settings
from grid_agent import preflight as road
from grid_agent import show
from grid_agent.commands import common
from grid_agent.core import rayports, raystart
from grid_agent.core.preflight import Finding
from grid_agent.edges import preflight_program
from grid_agent.edges.host import program
from grid_agent.edges.transports import Transports, versions_here
from grid_agent.exits import Exit

LOOK_S = 10.0


def preflight(config: common.Config = None, output: common.Output = common.Format.TEXT) -> None:
    """Check every host before a start. Exit 0 pass, 1 warn, 2 usage, 3 fail, 4 no host answers.

    Per host: SSH, host key, Ray and Python, clock, ulimit, disk, /dev/shm, memory, GPUs, other Rays, ports.
    Run it on the head host. It changes nothing; start.py runs it by itself.
    """
    settings = common.load(config)
    common.refuse_malformed(settings)
    findings = asyncio.run(_findings(settings))
    code = verdict(findings)
    if output is common.Format.JSON:
        status = {Exit.PASS: "pass", Exit.WARN: "warn"}.get(code, "fail")
        rows = [asdict(finding) for finding in findings]
        document = {"status": status, "exit_code": int(code), "cluster": settings.cluster, "checks": rows}
        typer.echo(json.dumps(document, indent=2))
    else:
        rows_ = [(f.status, f.node, f.check, f.detail) for f in findings]
        typer.echo("\n".join(show.table(("STATUS", "NODE", "CHECK", "DETAIL"), rows_)))
    raise typer.Exit(code)


async def _findings(settings: Settings) -> list[Finding]:
    state = StatePaths.of(settings.cluster, os.environ)
    looks, ways = Transports(settings, state, program), Transports(settings, state, preflight_program)
    unreached: dict[str, dict[str, Any]] = {}

    async def runs(name: str) -> bool:
        request = {"op": "look", "gcs_port": settings.ray.port, "node_name": name}
        answer = await looks.call(name, request, LOOK_S)
        if answer.get("unreached"):
            unreached[name] = answer
        return bool(answer.get("raylets"))

    async def call(name: str, request: dict[str, Any], timeout_s: float) -> dict[str, Any]:
        if name in unreached:  # it is not waited for a second time
            return unreached[name]
        return await ways.call(name, request, timeout_s)

    names = [node.name for node in settings.nodes]
    found = await asyncio.gather(*map(runs, names))
    return await road.run(
        settings,
        call,
        gcs_addresses={raystart.connect_address(settings), *_recorded(state)},
        running=[name for name, it_does in zip(names, found, strict=True) if it_does],
        nodes=names,
        versions=versions_here(),
        uid=os.getuid(),
    )


def _recorded(state: StatePaths) -> list[str]:
    """The GCS as the running cluster's own processes name it."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        return [str(json.loads(state.cluster.read_text(encoding="utf-8"))["gcs_address"])]
    return []


def verdict(findings: Iterable[Finding]) -> Exit:
    """The exit code: 4 when no host could be asked, else that of the worst finding."""
    rows = list(findings)
    asked, silent = (
        {f.node for f in rows},
        {f.node for f in rows if f.check in ("ssh", "host key") and f.status == "fail"},
    )
    if asked and asked <= silent:
        return Exit.UNREACHABLE
    statuses = {f.status for f in rows}
    return Exit.FAIL if "fail" in statuses else Exit.WARN if "warn" in statuses else Exit.PASS


def ports(
    config: common.Config = None,
    nft: Annotated[
        str | None,
        typer.Option("--nft", metavar="NODE", help="Print an nftables ruleset for this node."),
    ] = None,
    output: common.Output = common.Format.TEXT,
) -> None:
    """List the ports that must pass between the hosts, for a firewall."""
    settings = common.load(config)
    flows = rayports.flows(settings)
    if nft is not None:
        typer.echo("\n".join(_ruleset(settings, nft)))
    elif output is common.Format.JSON:
        typer.echo(json.dumps({"flows": [asdict(flow) for flow in flows]}, indent=2))
    elif not flows:
        typer.echo("all nodes are on this machine: nothing has to pass between hosts")
    else:
        rows = [(flow.source, flow.destination, f"tcp {flow.ports}", flow.what) for flow in flows]
        typer.echo("\n".join(show.table(("FROM", "TO", "PORTS", "WHAT FOR"), rows)))


def _ruleset(settings: Settings, name: str) -> list[str]:
    node = next((node for node in settings.nodes if node.name == name), None)
    if settings.ssh is None:
        common.fail("--nft needs hosts of their own: there is no ssh section", Exit.USAGE)
    if node is None:
        known = ", ".join(node.name for node in settings.nodes)
        common.fail(f"there is no node {name!r}; the file has {known}", Exit.USAGE)
    by_name = [other.host for other in settings.nodes if not raystart.is_address(other.host)]
    if by_name:
        common.fail(f"--nft needs addresses, and {by_name[0]} is a name: take the table instead", Exit.USAGE)
    sources = {
        "head": [settings.head.host],
        "worker": [other.host for other in settings.workers if other is not node],
    }
    return list(rayports.nftables(settings, node, sources))
