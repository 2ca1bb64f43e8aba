"""The `grid-agent` command. Each command asks one thing and turns the answer into text and exit code."""

import os
import sys
from typing import Annotated

import typer

from grid_agent import api_client, show
from grid_agent.commands import common, people
from grid_agent.commands.common import Format, Output, Url
from grid_agent.commands.env import env
from grid_agent.commands.preflight import ports, preflight
from grid_agent.commands.slack import slack
from grid_agent.commands.tune import tune
from grid_agent.commands.validate import validate
from grid_agent.exits import OF_STATUS, Exit

app = typer.Typer(
    name="grid-agent",
    help="Watch and heal a Ray cluster on your own machines.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


@app.command()
def status(url: Url = api_client.DEFAULT_URL, output: Output = Format.TEXT) -> None:
    """Show every node: exit 0 pass, 1 warn, 3 fail, 4 nobody answers."""
    body = common.ask(url, "/health")
    common.show(body, output, show.health)
    raise typer.Exit(OF_STATUS[body["status"]])


@app.command()
def incidents(
    incident_id: Annotated[int | None, typer.Argument(metavar="[ID]", help="One incident, in full.")] = None,
    url: Url = api_client.DEFAULT_URL,
    output: Output = Format.TEXT,
) -> None:
    """List the incidents, newest first, or tell one from beginning to end."""
    body = common.ask(url, "/incidents")
    if incident_id is None:
        common.show(body, output, show.incidents)
        return
    if not any(i["id"] == incident_id for i in body["incidents"]):
        common.fail(f"there is no incident {incident_id}: `grid-agent incidents` lists them", Exit.USAGE)
    common.show(common.ask(url, f"/incidents/{incident_id}"), output, show.incident)


@app.command()
def why(
    node: Annotated[str, typer.Argument(help="A node's name.")],
    url: Url = api_client.DEFAULT_URL,
    output: Output = Format.TEXT,
) -> None:
    """Tell one node's story: what is seen, concluded, done, refused, and what comes next."""
    known = [n["name"] for n in common.ask(url, "/health")["nodes"]]
    if node not in known:
        common.fail(f"there is no node {node!r}; this cluster has {', '.join(known)}", Exit.USAGE)
    common.show(common.ask(url, f"/why/{node}"), output, show.why)


app.command()(validate)
app.command()(preflight)
app.command()(ports)
app.command()(tune)
app.command()(env)
for _tell in (people.pause, people.resume, people.cordon, people.uncordon, people.repair):
    app.command()(_tell)
app.add_typer(people.breaker, name="breaker")
app.add_typer(slack, name="slack")


def main() -> None:
    """Run; Ctrl-C is exit 130, a closed pipe is no error."""
    try:
        app()
    except KeyboardInterrupt:
        sys.exit(Exit.INTERRUPTED)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(Exit.PASS)
