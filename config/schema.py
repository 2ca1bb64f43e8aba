"""The JSON Schema of cluster files, for editors: printed, or with `--write` written to schema.json."""

import json
import sys
from pathlib import Path

from config.settings import Settings

FILE = Path(__file__).with_name("schema.json")


def build() -> str:
    """The schema as the text of schema.json."""
    schema = {"$schema": "https://json-schema.org/draft/2020-12/schema", **Settings.model_json_schema()}
    return json.dumps(schema, indent=2) + "\n"


def main(arguments: list[str]) -> int:
    """Prints the schema, or writes schema.json."""
    if arguments == ["--write"]:
        FILE.write_text(build(), encoding="utf-8")
        return 0
    if arguments:
        sys.stderr.write("usage: python -m config.schema [--write]\n")
        return 2
    sys.stdout.write(build())
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
