"""Deploys the agent on a running cluster, as one command: `python -m deployments.deploy --settings F`.

A driver of its own, so that whoever starts the cluster never imports Ray. Exit 0: the application is
RUNNING; 3: it is not, and the last line says why. Called by `bootstrap.start`.
"""

import argparse
import sys
from pathlib import Path

import ray
from ray import serve

from config.loader import loads
from deployments.agent import build

NAME = "grid-agent"
ROUTE_PREFIX = "/cluster"


def main(argv: list[str] | None = None) -> int:
    """Connect, start Serve's HTTP proxy on the head only, run the application and wait for it."""
    parser = argparse.ArgumentParser(prog="deployments.deploy", description=main.__doc__)
    parser.add_argument(
        "--settings", type=Path, required=True, help="settings as JSON, as start.py wrote them"
    )
    parser.add_argument("--gcs-address", required=True, help="host:port of the running GCS")
    args = parser.parse_args(argv)
    settings = loads(args.settings.read_text(encoding="utf-8"), str(args.settings), {})
    ray.init(address=args.gcs_address, log_to_driver=False, logging_level="ERROR", namespace="serve")
    http = {"host": settings.http.host, "port": settings.http.port}
    try:
        serve.start(proxy_location="HeadOnly", http_options=http)
    except (ray.exceptions.RayError, RuntimeError) as error:
        why = str(error).strip().splitlines()[-1]
        print(f"Serve's HTTP proxy did not start on {http['host']}:{http['port']}: {why}", file=sys.stderr)  # noqa: T201
        return 3
    try:
        serve.run(build(settings), name=NAME, route_prefix=ROUTE_PREFIX)
    except RuntimeError as error:
        print(f"the application {NAME} did not start: {_why() or error}", file=sys.stderr)  # noqa: T201
        return 3
    return 0


def _why() -> str:
    """What Serve says of our deployments; its exception names them, but not what is wrong with them."""
    found = serve.status().applications.get(NAME)
    messages = [d.message for d in found.deployments.values()] if found else []
    return "\n".join(m for m in messages if m)


if __name__ == "__main__":
    sys.exit(main())
