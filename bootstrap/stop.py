"""Ends this cluster's processes and no other Ray on the machine, or one of its workers with `--node`.

Run by a person on the head host, as `python bootstrap/stop.py` from any folder or as
`python -m bootstrap.stop`.
Before anything is ended it is written down that a person wants it so: the agent must not heal it.
"""

import argparse
import os
import sys
from pathlib import Path

if not __package__:
    # As in start.py: this project first, and not this folder.
    _folder = str(Path(__file__).resolve().parent)
    sys.path[:] = [str(Path(_folder).parent), *(p for p in sys.path if os.path.realpath(p or ".") != _folder)]

from bootstrap import machine, state, take_down, trouble
from bootstrap.progress import Output
from config import loader
from config.paths import StatePaths

EXIT_CODES = (
    "exit codes: 0 stopped or nothing to stop, 2 usage or configuration, 3 something could not be ended, "
    "5 a start or stop is under way, 130 interrupted"
)


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    parser = argparse.ArgumentParser(prog="stop.py", description=__doc__.split("\n")[0], epilog=EXIT_CODES)
    parser.add_argument("-c", "--config", metavar="FILE", help="cluster file (default: config/local.yaml)")
    parser.add_argument("--node", metavar="NAME", help="end this worker only, and keep it so until start.py")
    args = parser.parse_args(argv)
    output = Output()
    root: Path | None = None
    try:
        settings = loader.load(args.config or loader.default_file(), os.environ)
        root = StatePaths.of(settings.cluster, os.environ).root
        wrong = machine.wrong_host(settings, "stop.py")
        if wrong:
            output.error(wrong)
            return 2
        if args.node is not None:
            return take_down.node(settings, args.node, output)
        return take_down.cluster(settings, output)
    except (loader.ConfigError, state.StateError) as error:
        output.error(str(error))
        return 5 if isinstance(error, state.BusyError) else 2
    except KeyboardInterrupt:
        output.error("interrupted; stop.py again ends the rest")
        return 130
    except Exception as error:  # noqa: BLE001 - 1 is no exit code of this command
        return trouble.explain(error, root, output)


if __name__ == "__main__":
    sys.exit(main())
