"""All that a person can get wrong, once a rule: one message that names what, where and what to do."""

import ast
import json
import os
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from bootstrap import start, stop
from config import checks, consistency, loader, overrides, tuning
from grid_agent.cli import app
from tests.support.cluster import free_port

GOOD = {"name": "head", "host": "127.0.0.1", "role": "head"}
CORPUS: list[dict[str, Any]] = yaml.safe_load(Path(__file__).with_name("corpus.yaml").read_text())


def text_of(case: dict[str, Any]) -> str:
    """The text of a case's cluster file."""
    if "node" in case:
        node = {**GOOD, **case["node"]}
        node["labels"] = {k.replace("LONG", "a." * 200 + "a"): v for k, v in node.get("labels", {}).items()}
        return yaml.safe_dump({"cluster": "c", "nodes": [node]})
    if not case["file"].startswith("+"):
        return str(case["file"])
    nodes = yaml.safe_dump({"cluster": "c", "nodes": [GOOD, *case.get("nodes", ())]})
    return nodes + str(case["file"][1:])


def refusal(case: dict[str, Any]) -> str:
    env = {k: "x" * 5000 if v == "LONG" else v for k, v in case.get("env", {}).items()}
    with pytest.raises(loader.ConfigError) as error:
        loader.loads(text_of(case), "cluster.yaml", env)
    return str(error.value)


@pytest.mark.parametrize("case", CORPUS, ids=lambda case: str(case["says"])[:40])
def test_each_file_is_refused_with_its_message(case: dict[str, Any]) -> None:
    said = refusal(case)
    assert case["says"] in said
    assert "cluster.yaml" in said or "environment variable" in said
    assert "Traceback" not in said


def rules(module: Any) -> set[str]:
    """The sentences with which a module refuses something, up to their first placeholder."""
    found = set()
    for node in ast.walk(ast.parse(Path(module.__file__).read_text())):
        values: list[ast.expr] = []
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
            values = node.exc.args
        elif isinstance(node, ast.Yield) and isinstance(node.value, ast.Tuple):
            values = node.value.elts[1:]
        elif isinstance(node, ast.Call) and getattr(node.func, "id", "") == "Matching":
            values = node.args[1:]
        for value in values:
            part = value.values[0] if isinstance(value, ast.JoinedStr) else value
            if isinstance(part, ast.Constant) and isinstance(part.value, str) and len(part.value) > 12:
                found.add(part.value[:60].strip())
    return found


def test_no_rule_is_without_its_case() -> None:
    said = "\n".join(map(refusal, CORPUS))
    sentences = rules(checks) | rules(consistency) | rules(overrides)
    assert len(sentences) > 30
    assert [rule for rule in sorted(sentences) if rule not in said] == []


COMMANDS = [
    (("validate", "-o", "xml"), "Invalid value"),
    (("validate", "--monitor", "0"), "Invalid value"),
    (("validate", "--address", "nowhere"), "is no address of a GCS"),
    (("validate", "--address", "h:0"), "is no address of a GCS"),
    (("validate", "--address", "-oX:22 ;rm"), "is no address of a GCS"),
    (("validate", "--address", "h:6379", "-c", "x"), "goes without -c"),
    (("validate", "-c", "/nowhere"), "there is no such file; check the path after -c"),
    (("validate", "-c", "/"), "is a folder; name a file in it"),
    (("validate", "-c", "/dev/null"), "is not a regular file"),
    (("preflight", "-c", "/nowhere"), "there is no such file"),
    (("preflight", "--what"), "No such option"),
    (("ports", "--nft", "gpu1"), "--nft needs hosts of their own"),
    (("tune", "--for", "0"), "Invalid value"),
    (("tune", "--for", "abc"), "Invalid value"),
    (("tune", "--address", "nowhere"), "is no address of a GCS"),
    (("tune", "--address", "h:1", "-c", "x"), "goes without -c"),
    (("env", "-c", "/nowhere"), "there is no such file"),
    (("what",), "No such command"),
]


@pytest.mark.parametrize(("argv", "says"), COMMANDS, ids=lambda value: " ".join(value)[:40])
def test_each_command_line_is_refused_with_its_message(argv: tuple[str, ...], says: str) -> None:
    done = CliRunner().invoke(app, list(argv), env={"NO_COLOR": "1", "TERM": "dumb", "COLUMNS": "200"})
    assert done.exit_code == 2, done.output
    assert says in done.output
    assert "Traceback" not in done.output


@pytest.mark.parametrize("command", [start.main, stop.main])
@pytest.mark.parametrize(
    ("argv", "says"),
    [(["--what"], "unrecognized"), (["-c", "/nowhere"], "no such file"), (["-c"], "expected one")],
)
def test_start_and_stop_refuse_alike(
    command: Any, argv: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        code = command(argv)
    except SystemExit as end:
        code = end.code
    assert code == 2
    assert says in capsys.readouterr().err


ENVIRONMENTS = [
    ({"RAY_health_check_period_ms": "abc"}, "'abc', but Ray reads it as a whole number and crashes"),
    ({"RAY_health_check_period_ms": ""}, "'', but Ray reads it as a whole number and crashes"),
    ({"RAY_health_check_timeout_ms": "5.5"}, "'5.5', but Ray reads it as a whole number"),
    ({"RAY_gcs_rpc_server_reconnect_timeout_s": "1e3"}, "'1e3', but Ray reads it as a whole number"),
    ({"RAY_memory_usage_threshold": "high"}, "'high', but Ray reads it as a number and crashes"),
    ({"RAY_health_check_failure_threshold": "0"}, "must be at least 1"),
    ({"GRID_AGENT__RAY__PORT": "x"}, "environment variable GRID_AGENT__RAY__PORT"),
]


@pytest.mark.parametrize(("env", "says"), ENVIRONMENTS)
@pytest.mark.parametrize("command", ["validate", "preflight", "tune"])
def test_each_environment_is_refused_before_anything_crashes(
    env: dict[str, str], says: str, command: str
) -> None:
    done = CliRunner().invoke(app, [command], env=env)
    assert done.exit_code == 2, done.output
    assert says in done.output
    file = json.dumps({"cluster": "c", "nodes": [{**GOOD, "env": env}]})
    in_file = loader.loads(file, "cluster.yaml")
    assert bool(tuning.malformed(in_file.head.env)) == next(iter(env)).startswith("RAY_")


def test_nobody_there_is_4() -> None:
    port = free_port()
    for argv in (["tune", "--address", f"127.0.0.1:{port}"], ["tune", "--for", "1"]):
        done = CliRunner().invoke(app, argv, env={"GRID_AGENT__RAY__PORT": str(port)})
        assert done.exit_code == 4
        assert "start the cluster first" in done.output


WORDS = "cluster nodes ssh ray agent http slack name host role env labels port preset first_node_port null"
KEYS = st.sampled_from([*WORDS.split(), "", "a: b", "- x", "<<", "1", "é"])
LEAVES = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
    | st.sampled_from(["head", "worker", "127.0.0.1", "token", "fast-lan", "C0123456789", "2026-01-01"])
)  # fmt: skip
TREES = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=5),
    max_leaves=25,
)


@settings(max_examples=80, deadline=5000)
@given(TREES)
def test_any_tree_is_taken_or_refused_in_words(tree: Any) -> None:
    """Fuzzed YAML: no traceback, no hang (the deadline is five seconds an example)."""
    try:
        text = yaml.safe_dump(tree, allow_unicode=True)
    except (yaml.YAMLError, ValueError, OverflowError):
        return
    refused = None
    try:
        loader.loads(text, "cluster.yaml")
    except loader.ConfigError as error:
        refused = str(error)
    assert refused is None or 1 <= len(refused.splitlines()) <= 21


@settings(max_examples=20, deadline=None)
@given(st.binary(max_size=200) | st.text("{}[]:,-?&*!|>'\"%@`# \n\tab0~<=.", max_size=80).map(str.encode))
def test_any_file_is_exit_2_or_taken(tmp_path_factory: pytest.TempPathFactory, raw: bytes) -> None:
    file = tmp_path_factory.mktemp("fuzz") / "cluster.yaml"
    file.write_bytes(raw)
    done = CliRunner().invoke(app, ["ports", "-c", str(file)], env={"PATH": os.environ["PATH"]})
    assert done.exit_code in (0, 2)
    assert done.exception is None or isinstance(done.exception, SystemExit)
