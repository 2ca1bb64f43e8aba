"""`grid-agent env`: the variables of Ray's own tools and drivers, for this cluster as it runs."""

import typer

from grid_agent.commands import common


def env(config: common.Config = None) -> None:
    """Print export lines for `serve status`, `ray job submit` and drivers: eval "$(grid-agent env)"."""
    settings = common.in_force(common.load(config))
    typer.echo("\n".join(common.export_lines(common.exports(settings))))
