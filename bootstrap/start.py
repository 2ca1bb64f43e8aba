"""Brings a cluster to its file: starts what is missing, leaves what runs, waits until its health has settled.

Thin: what is done is decided in `plan` and carried out in `launch`. Run by a person on the head host, as
`python bootstrap/start.py` from any folder or as `python -m bootstrap.start`.
"""

import argparse
import os
import sys
from pathlib import Path

if not __package__:
    # Run as a script: this project first, and not this folder. Other code on the path may own the names
    # `config` and `bootstrap`, and modules here must not hide others of their name.
    _folder = str(Path(__file__).resolve().parent)
    sys.path[:] = [str(Path(_folder).parent), *(p for p in sys.path if os.path.realpath(p or ".") != _folder)]

from bootstrap import bring_up, machine, plan, removal, state, survey, trouble, units
from bootstrap.progress import Output
from config import loader, tuning
from config.paths import StatePaths
from config.settings import Settings
from grid_agent.core import raystart
from grid_agent.edges import file_limit

EXIT_CODES = (
    "exit codes: 0 pass, 1 warn, 2 usage or configuration, 3 fail, 5 a start or stop is under way, "
    "130 interrupted"
)


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    args = _arguments(argv)
    output = Output()
    root: Path | None = None
    try:
        settings = loader.load(args.config or loader.default_file(), os.environ)
        root = StatePaths.of(settings.cluster, os.environ).root
        problem = _problem(settings) or (units.absent() if args.systemd else None)
        if problem:
            output.error(problem)
            return 2
        for text in [*map(str, tuning.dead_names(os.environ)), *tuning.dropped(os.environ)]:
            output.warn(text)
        if args.dry_run:
            return _dry_run(settings, output, redeploy=args.redeploy, fresh=args.fresh)
        return bring_up.bring_up(
            settings,
            output,
            config=args.config,
            timeout_s=args.timeout,
            redeploy=args.redeploy,
            fresh=args.fresh,
            yes=args.yes,
            systemd=args.systemd,
            skip_preflight=args.skip_preflight,
        )
    except loader.ConfigError as error:
        output.error(str(error))
        return 2
    except units.UnitError as error:
        output.error(f"{error}; the cluster runs, but its keeper does not start with the machine")
        return 3
    except state.BusyError as error:
        output.error(str(error))
        return 5
    except state.StateError as error:
        output.error(str(error))
        return 2
    except KeyboardInterrupt:
        output.error(
            "interrupted; what has been started runs on: start.py again completes it, stop.py ends it"
        )
        return 130
    except Exception as error:  # noqa: BLE001 - 1 would say "warn"
        return trouble.explain(error, root, output)


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="start.py", description=__doc__.split("\n")[0], epilog=EXIT_CODES)
    parser.add_argument(
        "-c", "--config", metavar="FILE", help="the cluster file (default: config/local.yaml)"
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="print every host, argv and reason; start and write nothing"
    )
    parser.add_argument(
        "--redeploy",
        action="store_true",
        help="deploy the application again, with the file's agent and slack",
    )
    parser.add_argument(
        "--fresh",
        action="store_true",
        help="begin anew, after a question or with --yes, instead of going on from what the last head kept",
    )
    parser.add_argument(
        "--systemd",
        action="store_true",
        help="install and enable a systemd service of the keeper: the head comes back after a reboot",
    )
    parser.add_argument(
        "--yes",
        action="store_true",
        help="stop nodes that have left the file, or have lost their head for good, without asking",
    )
    parser.add_argument(
        "--skip-preflight", action="store_true", help="start nodes whatever their hosts look like"
    )
    parser.add_argument(
        "--timeout", type=float, default=180.0, metavar="S", help="longest wait in seconds (default: 180)"
    )
    return parser.parse_args(argv)


def _problem(settings: Settings) -> str | None:
    """Why nothing may be started here, as a sentence."""
    refused = [*tuning.malformed(os.environ)]
    for node in settings.nodes:
        refused += [f"env of {node.name}: {text}" for text in tuning.malformed(node.env)]
    if refused:
        return "\n".join(refused)
    wrong = machine.wrong_host(settings, "start.py")
    if wrong:
        return wrong
    few_files = file_limit.too_low(len(settings.nodes))
    if few_files:
        return few_files
    command = raystart.ray_command(settings, settings.head)
    if not os.access(command, os.X_OK):
        return f"there is no {command}: run start.py with the Python that Ray is installed for"
    return None


def _dry_run(settings: Settings, output: Output, *, redeploy: bool, fresh: bool) -> int:
    seen = survey.survey(settings, os.environ, fresh=fresh)
    if seen.head is None and (seen.store.problem or (fresh and seen.store.there)):
        output.line(
            f"{seen.here.state.gcs} would be put aside: {seen.store.problem or 'asked for by --fresh'}"
        )
    actions = plan.plan(settings, seen.found, seen.here, redeploy=redeploy)
    for problem in bring_up.ports_taken(settings, seen):
        output.warn(problem)
    kept = plan.kept(seen.found, actions)
    for name in sorted(seen.raylets.keys() - kept):
        output.line(
            f"{name} runs (pid {seen.raylets[name].pid}) and would be ended, after a question or with --yes"
        )
    for name in sorted(kept):
        output.line(f"{name} runs already (pid {seen.raylets[name].pid}) and stays untouched")
    for name, answer in sorted(seen.reach.unreachable.items()):
        output.warn(f"{name} could not be asked: {answer['detail']}")
    for node in removal.leaving(seen, settings):
        output.line(
            f"{node.name} is no longer in the file: it would be stopped, after a question or with --yes"
        )
    if not actions:
        output.line("nothing to start")
    for number, action in enumerate(actions, 1):
        output.line()
        first, *rest = plan.describe(action)
        output.line(f"{number}. {first}")
        for line in rest:
            output.line(f" {line}")
    output.line()
    output.line("dry run: nothing was started or written")
    return 0


if __name__ == "__main__":
    code = main()
    if code == 130:
        # A `ray start` under way is waited for by a thread that the interpreter would wait for in turn.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)
