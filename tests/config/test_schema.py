"""The committed JSON Schema is the one that the models make."""

import json

import pytest

from config import schema
from config.loader import default_file


def test_the_committed_file_is_current():
    assert schema.FILE.read_text() == schema.build(), "run: python -m config.schema --write"


def test_every_key_has_a_description():
    models = json.loads(schema.build())
    for model in (models, *models["$defs"].values()):
        assert model["additionalProperties"] is False
        for key, field in model["properties"].items():
            assert field["description"], key


def test_shipped_files_point_to_it():
    for name in ("local.yaml", "my-cluster.yaml"):
        first = default_file().with_name(name).read_text().splitlines()[0]
        assert first == f"# yaml-language-server: $schema={schema.FILE.name}"


def test_command(capsys, tmp_path, monkeypatch):
    assert schema.main([]) == 0
    assert capsys.readouterr().out == schema.build()
    monkeypatch.setattr(schema, "FILE", tmp_path / "schema.json")
    assert schema.main(["--write"]) == 0
    assert (tmp_path / "schema.json").read_text() == schema.build()
    assert schema.main(["--nonsense"]) == 2


@pytest.mark.parametrize("name", ["local.yaml", "my-cluster.yaml"])
def test_shipped_files_use_only_keys_of_the_schema(name):
    text = default_file().with_name(name).read_text()
    keys = set(json.loads(schema.build())["properties"])
    assert {line.partition(":")[0] for line in text.splitlines() if line[:1].isalpha()} <= keys
