"""The shipped YAML for `serve deploy` describes the default cluster, and Serve's own schema takes it."""

from pathlib import Path

import yaml
from ray.serve.schema import ServeDeploySchema

import config
from config import loader
from config.settings import Settings

FILE = Path(config.__file__).parent.parent / "deployments" / "serve.yaml"


def test_its_arguments_are_the_default_cluster() -> None:
    (application,) = yaml.safe_load(FILE.read_text())["applications"]
    assert Settings.model_validate(application["args"]) == loader.load(loader.default_file(), {})
    assert application["route_prefix"] == "/cluster"


def test_serve_takes_it() -> None:
    schema = ServeDeploySchema.model_validate(yaml.safe_load(FILE.read_text()))
    assert schema.applications[0].name == "grid-agent"
    assert schema.http_options.host == "127.0.0.1"
