"""`grid-agent env`: the variables of Ray's own tools and drivers, for this cluster as it runs."""

import os

import typer

from grid_agent.commands import common


def env(config: common.Config = None) -> None:
    """Print export lines for `serve status`, `ray job submit` and drivers: eval "$(grid-agent env)"."""
    settings = common.in_force(common.load(config))
    exports = common.exports(settings)
    if "RAY_AUTH_TOKEN_PATH" in exports and "RAY_AUTH_TOKEN" in os.environ:
        typer.echo("unset RAY_AUTH_TOKEN")  # it would count before the file
    typer.echo("\n".join(common.export_lines(exports)))
