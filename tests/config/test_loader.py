"""YAML and variables -> settings, and what each mistake is answered with."""

import contextlib
import os
import pickle
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from config.loader import ConfigError, default_file, dump, load, loads
from config.settings import Settings

LOCAL = default_file().read_text()
CLUSTER = default_file().with_name("my-cluster.yaml").read_text()
BASE = "cluster: c\nnodes:\n- {name: h, host: 127.0.0.1, role: head}\n"


def problems(text, environ=None):
    with pytest.raises(ConfigError) as caught:
        loads(text, "f.yaml", environ or {})
    return str(caught.value)


def test_shipped_files():
    local = load(default_file(), {})
    assert [(n.name, n.host, n.num_cpus, n.num_gpus, n.object_store_memory_mb) for n in local.nodes] == [
        ("head", "127.0.0.1", 0, 0, 80),
        ("worker1", "127.0.0.1", 1, 0, 80),
        ("worker2", "127.0.0.1", 1, 0, 80),
    ]
    assert (local.ssh, local.slack, local.auth) == (None, None, "disabled")
    cluster = loads(CLUSTER, "my-cluster.yaml")
    assert (cluster.head.name, cluster.head.host, len(cluster.nodes)) == ("gpu-master", "10.0.0.10", 3)
    assert cluster.auth == "token"
    assert (cluster.ray, cluster.agent, cluster.http) == (local.ray, local.agent, local.http)


def test_shipped_files_show_every_key_once_with_a_comment():
    both = LOCAL + CLUSTER
    for model in (
        Settings,
        *(type(getattr(loads(CLUSTER, "f"), name)) for name in ("ssh", "ray", "agent", "http")),
    ):
        for key in model.model_fields:
            assert any(line.strip().startswith(f"{key}:") for line in both.splitlines()), key
    for text in (LOCAL, CLUSTER):
        assert text.startswith("# yaml-language-server: $schema=schema.json\n")
        for line in text.splitlines():
            if line and not line.lstrip().startswith(("#", "- {", "nodes:", "agent:", "http:")):
                assert "  # " in line, line


@pytest.mark.parametrize("text", [LOCAL, CLUSTER, BASE])
def test_dump_reads_back_equal(text):
    first = loads(text, "f")
    assert loads(dump(first), "dump") == first


def test_the_largest_cluster_survives_a_dump():
    nodes = [{"name": "h", "host": "10.0.0.1", "role": "head"}]
    nodes += [
        {"name": f"w{n}", "host": f"10.0.{n // 250 + 1}.{n % 250 + 1}", "env": {"A": "b"}} for n in range(999)
    ]
    largest = {"cluster": "c", "nodes": nodes, "ssh": {"user": "ray"}}
    accepted = Settings.model_validate(largest)
    assert loads(dump(accepted), "dump") == accepted
    with pytest.raises(ValueError, match="at most 1000"):
        Settings.model_validate(largest | {"nodes": [*nodes, {"name": "x", "host": "x"}]})


# text, then fragments that the message must hold.
CORPUS = [
    ("", "f.yaml: is empty; it needs at least the keys cluster and nodes"),
    ("# only a comment\n", "is empty"),
    ("- a\n", "f.yaml:1: must be a mapping with the keys cluster and nodes, not a list"),
    ("hello\n", "not a single value"),
    (BASE + "---\na: b\n", "f.yaml:4", "one YAML document"),
    (BASE + "cluster: d\n", "f.yaml:4: cluster: is there twice; the first is on line 1"),
    (BASE + "ray:\n  port: 1\n  port: 2\n", "f.yaml:6: ray.port: is there twice; the first is on line 5"),
    (BASE + "ray: !!python/object/apply:os.system ['x']\n", "f.yaml:4", "must not use tags"),
    ("cluster: !!str c\n", "f.yaml:1", "must not use tags"),
    ("cluster: !c c\n", "must not use tags"),
    ("cluster: &a c\nnodes: *a\n", "f.yaml:1", "must not use anchors or aliases"),
    ("nodes: *a\n", "must not use anchors or aliases"),
    ("a: &a [x,x]\nb: &b [*a,*a]\nc: &c [*b,*b]\n", "must not use anchors or aliases"),
    ("a\0b", "f.yaml:1: holds binary data"),
    ("cluster: c\n\x07", "must be text without control characters"),
    ("cluster: \ud800", "must be text without control characters"),
    ("#" * (1 << 20) + "#", "is larger than 1 MiB"),
    ("[" * 1000, "f.yaml:1", "is nested more than 12 levels deep"),
    ("a: " + "{a: " * 500, "is nested more than 12 levels deep"),
    ("- " * 500, "is nested more than 12 levels deep"),
    ("[" + "a," * 250_000 + "]", "more than 100000 keys and values"),
    ("cluster: [", "is not valid YAML"),
    ("cluster: c\n\tnodes: x\n", "is not valid YAML"),
    ("cluster: c: d\n", "f.yaml:1: is not valid YAML"),
    ("%YAML 9.9\n---\na: b\n", "is not valid YAML"),
    ("? [a]\n: b\n", "f.yaml:1", "plain words as keys"),
    ("cluster: c\n", "f.yaml:1: nodes: is required"),
    ("nodes: []\n", "cluster: is required", "nodes: must not be empty (got a list)"),
    (
        "cluster: 5\nnodes: x\n",
        "f.yaml:1: cluster: must be text (put",
        "(got 5)",
        "f.yaml:2: nodes: must be a list",
    ),
    ("cluster: null\n", "cluster: must be text", "(got null)"),
    ("cluster: ../x\n", "f.yaml:1: cluster: must be 1 to 42 letters", "(got '../x')"),
    ("cluster: c\nnodes:\n- {name: a, host: x}\n- 5\n", "f.yaml:4: nodes[1]: must be a mapping (got 5)"),
    ("cluster: c\nnodes:\n- host: a\n", "f.yaml:3: nodes[0].name: is required"),
    (
        "cluster: c\nnodes:\n- {name: w, host: 127.0.0.1}\n",
        "f.yaml:2: nodes: needs exactly one node with role: head",
    ),
    (BASE + "- {name: h, host: 127.0.0.1}\n", "f.yaml:4: nodes[1].name: must be unique"),
    (
        BASE + "- {name: g, host: 127.0.0.1, role: head}\n",
        "f.yaml:4: nodes[1].role:",
        "exactly one head, and it is h",
    ),
    (BASE + "- {name: g, host: 10.0.0.1}\n", "f.yaml:4: nodes[1].host: must be this machine"),
    (BASE + "- {name: g, host: -x}\n", "nodes[1].host: must be an IPv4 address, an IPv6", "(got '-x')"),
    (BASE + "- {name: g, host: '::1%lo'}\n", "nodes[1].host: must be an IPv6 address without a zone"),
    (BASE + "- {name: g, host: 0.0.0.0}\n", "must be the address of one host"),
    (
        BASE + "- name: g\n  host: ::1\n  num_gpus: -1\n",
        "f.yaml:6: nodes[1].num_gpus: must be at least 0 (got -1)",
    ),
    (
        BASE + "- {name: g, host: localhost, num_gpuss: 1}\n",
        "nodes[1].num_gpuss: is not a known key; did you mean num_gpus?",
    ),
    (
        BASE + "- {name: g, host: localhost, role: boss}\n",
        "nodes[1].role: must be 'head' or 'worker' (got 'boss')",
    ),
    (
        BASE + "- {name: g, host: localhost, can_repair: yes}\n",
        "can_repair: must be true or false (got 'yes')",
    ),
    (
        BASE + "- {name: g, host: localhost, labels: {rack: 1}}\n",
        "nodes[1].labels.rack: must be text (put a number",
    ),
    (
        BASE + "- {name: g, host: localhost, labels: {'a,b': c}}\n",
        "nodes[1].labels.'a,b': the key must be at most 63",
    ),
    (BASE + "- {name: g, host: localhost, labels: {ray.io/x: c}}\n", "Ray sets those labels itself"),
    (BASE + "- {name: g, host: localhost, labels: []}\n", "labels: must be a mapping (got a list)"),
    (
        BASE + "- {name: g, host: localhost, env: {RAY_AUTH_MODE: x}}\n",
        "RAY_AUTH_MODE: the key must not be one of",
    ),
    (
        BASE + "- {name: g, host: localhost, env: {1A: x}}\n",
        "env.1A: the key must be the name of an environment variable",
    ),
    (BASE + '- {name: g, host: localhost, env: {A: "x\\ny"}}\n', "env.A: must be one line"),
    (
        BASE + "- {name: g, host: localhost, resources: {CPU: 1}}\n",
        "resources.CPU: the key must not be CPU, GPU",
    ),
    (BASE + "- {name: g, host: localhost, resources: {a: 0.5}}\n", "resources.a: must be a whole number"),
    (
        BASE + "- {name: g, host: localhost, resources: {a: .nan}}\n",
        "resources.a: must be a finite number (got nan)",
    ),
    (
        BASE + "- {name: g, host: localhost, resources: {a: 1e999}}\n",
        "resources.a: must be a finite number (got inf)",
    ),
    (BASE + "- {name: g, host: localhost, ray_bin: bin}\n", "ray_bin: must be an absolute path"),
    (
        BASE + "- {name: g, host: localhost, ssh_user: ray}\n",
        "ssh_user: has no effect without an ssh section",
    ),
    (BASE + "- {name: g, host: localhost, object_store_memory_mb: 10}\n", "must be at least 75 (got 10)"),
    (BASE + f"- {{name: g, host: localhost, temp_dir: /{'a' * 60}}}\n", "temp_dir: must be at most 39 bytes"),
    (BASE + "prot: 1\n", "f.yaml:4: prot: is not a known key; known here: cluster, nodes"),
    (BASE + "<<: {a: b}\n", "is not a known key"),
    (BASE + "ray: {prot: 1}\n", "ray.prot: is not a known key; did you mean port?"),
    (BASE + "ray: 5\n", "ray: must be a mapping (got 5)"),
    (BASE + "ray: null\n", "ray: must be a mapping (got null)"),
    (BASE + "ray: {port: 0}\n", "ray.port: must be at least 1 (got 0)"),
    (BASE + "ray: {port: 65536}\n", "ray.port: must be at most 65535 (got 65536)"),
    (BASE + "ray: {port: true}\n", "ray.port: must be a whole number (got true)"),
    (BASE + "ray: {port: '6379'}\n", "ray.port: must be a whole number (got '6379')"),
    (BASE + "ray: {port: 1e3}\n", "ray.port: must be a whole number (got 1000.0)"),
    (BASE + "ray: {port: 1:30}\n", "ray.port: must be a whole number (got '1:30')"),
    (BASE + f"ray: {{port: {'9' * 5000}}}\n", "ray.port: must be a whole number", "(5000 characters)"),
    (BASE + "ray: {port: 2020-99-99}\n", "ray.port: must be a whole number (got '2020-99-99')"),
    (BASE + "ray: {port: 12000}\n", "f.yaml:4: ray.port: must not be in 10001..19999"),
    (BASE + "ray: {port: 8265}\n", "ray.dashboard_port: must differ from ray.port"),
    (BASE + "http: {port: 6379}\n", "http.port: must differ from ray.port"),
    (BASE + "ray: {health_check_period_ms: 2147483648}\n", "must be at most 2147483647"),
    (BASE + "ray: {heartbeat_timeout_ms: 2147483647}\n", "ray: heartbeat_timeout_ms times num", "24 days"),
    (BASE + "ray: {auth: off}\n", "ray.auth: must be 'token' or 'disabled' (got 'off')"),
    (BASE + "agent: {mode: kill}\n", "agent.mode: must be 'observe' or 'heal' (got 'kill')"),
    (BASE + "agent: {hang_s: 90s}\n", "agent.hang_s: must be a number (got '90s')"),
    (BASE + "agent: {heartbeat_every_s: 0}\n", "heartbeat_every_s: must be at least 0.1 (got 0)"),
    (BASE + "agent: {hang_s: .inf}\n", "agent.hang_s: must be a finite number (got inf)"),
    (BASE + "agent: {hang_s: 1}\n", "agent.hang_s: must be at least twice heartbeat_every_s"),
    (BASE + "http: {host: 0.0.0.0}\n", "f.yaml:4: http.host: needs http.token_file"),
    (
        BASE + "ssh: {user: ray, known_hosts_file: null}\n",
        "known_hosts_file: must be a path: the workers' host keys are",
    ),
    (BASE + "ssh: {user: -x}\n", "ssh.user: must be a login name"),
    (BASE + "ssh: {user: ray}\n- x\n", "is not valid YAML"),
    (BASE + "slack: {channel: general}\n", "slack.channel: must be a channel id"),
    (
        BASE + "slack: {channel: C0123, base_url: 'http://slack.com/'}\n",
        "slack.base_url: must be a URL such as",
    ),
    (BASE + "slack: {channel: C0123, base_url: 5}\n", "slack.base_url: must be text"),
    (BASE + '"a\\u001b[0m": 1\n', "'a\\x1b[0m': is not a known key"),
]


@pytest.mark.parametrize(("text", "fragments"), [(first, rest) for first, *rest in CORPUS])
def test_mistakes_are_named(text, fragments):
    started = time.monotonic()
    message = problems(text)
    assert time.monotonic() - started < 5
    for fragment in fragments:
        assert fragment in message
    assert all(line.startswith("f.yaml") for line in message.splitlines())
    assert message.isascii()


def test_all_problems_are_named_at_once_and_a_flood_is_cut():
    message = problems(BASE + "x: 1\nray: {port: 0}\nagent: {mode: x}\n")
    assert [line.split(": ")[0] for line in message.splitlines()] == ["f.yaml:5", "f.yaml:6", "f.yaml:4"]
    flood = problems(BASE + "".join(f"k{number}: 1\n" for number in range(50)))
    assert len(flood.splitlines()) == 21
    assert flood.endswith("... and 30 more")


@pytest.mark.parametrize(
    "text",
    [
        "slack: {channel: C0123, token: hunter2}",
        "slack: {channel: C0123, token_env: hunter-2}",
        "slack: {channel: xoxb-hunter2}",
        "slack: xoxb-hunter2",
        "slack: {channel: C0123, base_url: 'https://u:xoxp-hunter2@x/'}",
        "slack: {channel: C0123, token: {a: hunter2}}",
        "token: hunter2\ntoken: hunter2",
        "http: {token_file: hunter2}",
        "- {name: g, host: 127.0.0.1, env: {MY_TOKEN: 5512}}",
        '- {name: g, host: 127.0.0.1, env: {DB_PASSWORD: "hunter2\\n"}}',
        "slack: {token: hunter2",
    ],
)
def test_secrets_are_not_echoed(text):
    message = problems(BASE + text + "\n")
    assert "hunter" not in message
    assert "5512" not in message


def test_unquoted_words_stay_text():
    # YAML 1.1 would make booleans, a number and a date of these.
    labels = "{a: no, b: on, c: 1_0, d: 2020-01-01, e: 0x1F, f: y}"
    read = loads(BASE + f"- {{name: g, host: localhost, labels: {labels}}}\n", "f").nodes[1].labels
    assert read == {"a": "no", "b": "on", "c": "1_0", "d": "2020-01-01", "e": "0x1F", "f": "y"}


def test_whole_numbers_do_for_seconds():
    assert loads(BASE + "agent: {hang_s: 45, join_s: 1.5e1}\n", "f").agent.hang_s == 45.0


def test_json_is_read_too():
    assert (
        loads('{"cluster": "c", "nodes": [{"name": "h", "host": "::1", "role": "head"}]}', "f").head.name
        == "h"
    )


def test_errors_can_be_pickled():
    error = ConfigError("a", "b")
    assert str(pickle.loads(pickle.dumps(error))) == "a\nb"


# --- files


def test_a_byte_order_mark_is_fine(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_bytes(b"\xef\xbb\xbf" + BASE.encode())
    assert load(str(path), {}).cluster == "c"


@pytest.mark.parametrize(
    ("content", "fragment"),
    [
        (b"\xff\xfe", "a.yaml:1: is not UTF-8 text; save it as UTF-8"),
        (BASE.encode() + b"# \xe9\n", "a.yaml:4: is not UTF-8 text"),
        (b"\x7fELF\x00", "holds binary data"),
        (b" " * (1 << 20) + b" ", "is larger than 1 MiB"),
        (b"", "is empty"),
    ],
)
def test_bad_files(tmp_path, content, fragment):
    path = tmp_path / "a.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=f".*{fragment}"):
        load(path, {})


def test_files_that_cannot_be_read(tmp_path, monkeypatch):
    def message(path):
        with pytest.raises(ConfigError) as caught:
            load(path, {})
        return str(caught.value)

    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    assert "there is no such file" in message(tmp_path / "none.yaml")
    assert "is a folder; name a file in it" in message(tmp_path)
    assert "is not a regular file" in message(tmp_path / "pipe")
    assert "is not a regular file" in message("/dev/zero")
    assert "cannot be opened" in message(tmp_path / "loop")
    assert "cannot be opened" in message("a\0b")
    assert "cannot be opened" in message("x" * 5000)
    assert "cannot be opened" in message(tmp_path / "pipe" / "x")

    def refuse(*_args):
        raise PermissionError

    monkeypatch.setattr("config.loader.os.open", refuse)
    assert "may not be read by this user" in message(tmp_path / "a.yaml")


# --- variables


def test_variables_override_the_file():
    environ = {
        "GRID_AGENT__RAY__PORT": "6380",
        "grid_agent__agent__mode": "observe",
        "GRID_AGENT__CLUSTER": "x",
        "GRID_AGENT__AGENT__HANG_S": " 45 ",
        "GRID_AGENT__SLACK__CHANNEL": "#ops",
        "GRID_AGENT__RAY__AUTH": "'token'",
        "GRID_AGENT__HTTP__TOKEN_FILE": "",
        "GRID_AGENT_URL": "http://x",
        "PATH": "/bin",
    }
    read = loads(BASE, "f.yaml", environ)
    assert (read.ray.port, read.agent.mode, read.cluster, read.agent.hang_s) == (6380, "observe", "x", 45)
    assert read.slack is not None
    assert (read.slack.channel, read.ray.auth, read.http.token_file) == ("#ops", "token", None)


def test_a_variable_can_leave_a_section_out():
    assert loads(BASE + "slack: {channel: C0123}\n", "f", {"GRID_AGENT__SLACK": "null"}).slack is None


@pytest.mark.parametrize(
    ("environ", "fragments"),
    [
        (
            {"GRID_AGENT__RAY__PORT": "x"},
            ["environment variable GRID_AGENT__RAY__PORT: ray.port: must be a whole number"],
        ),
        ({"GRID_AGENT__RAY__PORT": ""}, ["GRID_AGENT__RAY__PORT: ray.port:", "(got null)"]),
        ({"GRID_AGENT__RAY__PORT": "8265"}, ["f.yaml:1: ray.dashboard_port: must differ"]),
        ({"GRID_AGENT__HTTP__HOST": "0.0.0.0"}, ["GRID_AGENT__HTTP__HOST: http.host: needs http.token_file"]),
        ({"GRID_AGENT__CLUSTER": "5"}, ["GRID_AGENT__CLUSTER: cluster: must be text"]),
        (
            {"GRID_AGENT__RAY__PROT": "1"},
            ["GRID_AGENT__RAY__PROT: names no key", "did you mean GRID_AGENT__RAY__PORT?"],
        ),
        ({"GRID_AGENT__ZZZZZZZ": "1"}, ["GRID_AGENT__ZZZZZZZ: names no key", "the sections are ssh, ray"]),
        ({"GRID_AGENT__": "1"}, ["names no key of a cluster file"]),
        ({"GRID_AGENT__RAY__PORT__X": "1"}, ["names no key of a cluster file"]),
        ({"GRID_AGENT__RAY____PORT": "1"}, ["names no key of a cluster file"]),
        ({"GRID_AGENT__NODES": "1"}, ["nodes cannot be overridden"]),
        ({"GRID_AGENT__NODES__0__HOST": "1"}, ["nodes cannot be overridden"]),
        ({"GRID_AGENT__RAY": "1"}, ["GRID_AGENT__RAY: names a section"]),
        ({"GRID_AGENT__RAY": "null"}, ["GRID_AGENT__RAY: ray: must be a mapping (got null)"]),
        ({"GRID_AGENT__RAY__AUTH": "'token"}, ["has quotes that do not match"]),
        ({"GRID_AGENT__RAY__AUTH": "'a': b"}, ["must hold one value"]),
        ({"GRID_AGENT__CLUSTER": "x" * 5000}, ["at most 4096 characters"]),
        ({"GRID_AGENT__CLUSTER": "\udcff"}, ["GRID_AGENT__CLUSTER: cluster: must be"]),
        ({"GRID_AGENT__\udcff": "x"}, ["names no key"]),
        (
            {"GRID_AGENT__RAY__PORT": "1", "grid_agent__ray__port": "2"},
            ["sets the same key as GRID_AGENT__RAY__PORT"],
        ),
        ({"GRID_AGENT__SLACK__TOKEN_ENV": "xoxb-1"}, ["slack.token_env:", "***"]),
    ],
)
def test_bad_variables_are_named(environ, fragments):
    message = problems(BASE, environ)
    assert message.isascii()
    for fragment in fragments:
        assert fragment in message


def test_a_variable_does_not_hide_a_broken_section():
    assert "f.yaml:4: ray: must be a mapping" in problems(BASE + "ray: 5\n", {"GRID_AGENT__RAY__PORT": "1"})


# --- anything at all


def only_config_errors(text, environ=None):
    started = time.monotonic()
    try:
        result = loads(text, "f", environ or {})
    except ConfigError:
        pass
    else:
        assert loads(dump(result), "dump") == result
    assert time.monotonic() - started < 5


@given(st.text(st.characters(codec=None, exclude_categories=())))
@settings(max_examples=150, deadline=None)
def test_any_text(text):
    only_config_errors(text)
    only_config_errors(BASE + text)


@given(st.text("{}[]:,-?&*!|>'\"%@`# \n\tab0~<=."))
@settings(max_examples=250, deadline=None)
def test_any_punctuation(text):
    only_config_errors(text)


@given(st.binary())
@settings(max_examples=100, deadline=None)
def test_any_bytes(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    path.write_bytes(content)
    with contextlib.suppress(ConfigError):
        load(path, {})


@given(
    st.sampled_from([LOCAL, CLUSTER]),
    st.lists(st.tuples(st.floats(0, 1), st.integers(0, 12), st.text(max_size=6)), min_size=1, max_size=4),
)
@settings(max_examples=150, deadline=None)
def test_any_mutation(text, edits):
    for where, removed, inserted in edits:
        start = int(where * len(text))
        text = text[:start] + inserted + text[start + removed :]
    only_config_errors(text)


@given(st.sampled_from([LOCAL, CLUSTER]), st.randoms(use_true_random=False))
@settings(max_examples=60, deadline=None)
def test_lines_moved_and_doubled(text, random):
    lines = text.splitlines(keepends=True)
    for _ in range(3):
        lines.insert(random.randrange(len(lines)), random.choice(lines))
        del lines[random.randrange(len(lines))]
    only_config_errors("".join(lines))


@given(
    st.dictionaries(
        st.sampled_from(["ray__port", "AGENT__MODE", "cluster", "slack", "Nodes", "http__host"]).map(
            "GRID_AGENT__".__add__
        ),
        st.text(max_size=12),
        max_size=3,
    )
)
@settings(max_examples=100, deadline=None)
def test_any_variable(environ):
    only_config_errors(BASE, environ)


ENV_VALUE = st.text(max_size=20)


@given(st.dictionaries(st.from_regex(r"\A[A-Za-z_][A-Za-z0-9_]{0,8}\Z"), ENV_VALUE, max_size=4))
@settings(max_examples=150, deadline=None)
def test_whatever_settings_accept_survives_a_dump(env):
    head = {"name": "h", "host": "::1", "role": "head", "env": env}
    try:
        accepted = Settings.model_validate({"cluster": "c", "nodes": [head]})
    except ValueError:
        return
    assert loads(dump(accepted), "dump") == accepted
