"""The pre-flight of a start: what keeps a node from being started, found before anything is.

A warning is printed and stops nothing. A fail refuses its node alone; the head's refuses the start.
"""

import asyncio
import os
from collections.abc import Sequence

from bootstrap.launch import Outcome
from bootstrap.plan import Action
from bootstrap.progress import Output
from bootstrap.survey import Survey
from config.settings import Settings
from grid_agent import preflight
from grid_agent.core import raystart
from grid_agent.edges import preflight_program
from grid_agent.edges.transports import Transports, versions_here


def refused(
    settings: Settings, seen: Survey, actions: Sequence[Action], output: Output
) -> dict[str, Outcome]:
    """Look at every host where a node is to be started.

    Args:
        settings: What will be in force.
        seen: What runs.
        actions: What is going to be done; where something has to be ended first its ports say nothing yet.
        output: For the warnings.

    Returns:
        How the start of each node ended that must not be started.
    """
    starting = {action.node for action in actions if action.kind == "start"} - seen.reach.unreachable.keys()
    if not starting:
        return {}
    ways = Transports(settings, seen.here.state, preflight_program)
    findings = asyncio.run(
        preflight.run(
            settings,
            ways.call,
            gcs_addresses={raystart.connect_address(settings), seen.reach.gcs_address, seen.here.gcs_address},
            running=seen.found.running - seen.reach.unreachable.keys(),
            nodes=starting,
            versions=versions_here(),
            uid=os.getuid(),
            ports=all(action.kind in ("start", "deploy") for action in actions),
        )
    )
    failed: dict[str, list[str]] = {}
    for finding in findings:
        line = f"{finding.check}: {finding.detail}"
        if finding.status == "fail":
            failed.setdefault(finding.node, []).append(line)
        elif finding.status == "warn":
            output.warn(f"{finding.node} {line}")
    return {name: Outcome(False, "failed: preflight", 0.0, tuple(lines)) for name, lines in failed.items()}
