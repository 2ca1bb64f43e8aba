"""The models: defaults, bounds, and the rules between keys."""

import pytest
from pydantic import BaseModel, ValidationError

from config.settings import Agent, Http, Node, RayConfig, Settings, Slack, Ssh

HEAD = {"name": "head", "host": "127.0.0.1", "role": "head"}
W1 = {"name": "w1", "host": "127.0.0.1"}
R_HEAD = {"name": "head", "host": "10.0.0.10", "role": "head"}
R_W1 = {"name": "w1", "host": "10.0.0.11"}
SSH = {"user": "ray"}


def local(**changes):
    return Settings.model_validate({"cluster": "c", "nodes": [HEAD, W1]} | changes)


def remote(**changes):
    return Settings.model_validate({"cluster": "c", "nodes": [R_HEAD, R_W1], "ssh": SSH} | changes)


def node(**changes):
    return Node.model_validate(R_W1 | changes)


def test_defaults_are_the_documented_ones():
    settings = local()
    assert settings.ray == RayConfig(
        heartbeat_timeout_ms=30_000,
        num_heartbeat_timeout_periods=5,
        health_check_initial_delay_ms=5_000,
        health_check_period_ms=10_000,
        health_check_timeout_ms=5_000,
        gcs_server_request_timeout_seconds_ms=60_000,
        timeout_ms=60_000,
        port=6379,
        dashboard_port=8265,
    )
    assert (settings.agent.mode, settings.agent.hang_s, settings.agent.unreachable_s) == ("heal", 90, 120)
    assert (settings.http.host, settings.http.port) == ("127.0.0.1", 8000)
    assert settings.slack is None


def test_head_and_workers():
    settings = Settings.model_validate({"cluster": "c", "nodes": [W1, HEAD, W1 | {"name": "w2"}]})
    assert settings.head.name == "head"
    assert [worker.name for worker in settings.workers] == ["w1", "w2"]


@pytest.mark.parametrize(
    ("settings", "auth"),
    [
        (local(), "disabled"),
        (remote(), "token"),
        (local(ray={"auth": "token"}), "token"),
        (remote(ray={"auth": "disabled"}), "disabled"),
    ],
)
def test_auth_follows_the_transport_unless_asked(settings, auth):
    assert settings.auth == auth


@pytest.mark.parametrize("model", [Node, Ssh, RayConfig, Agent, Http, Slack, Settings])
def test_every_key_says_what_it_means(model: type[BaseModel]):
    for key, field in model.model_fields.items():
        assert field.description, key
        assert field.description.endswith("."), key
        if not field.is_required() and model is not Settings:
            assert "default" in field.description.lower(), key


def test_models_are_frozen():
    with pytest.raises(ValidationError):
        local().cluster = "other"


@pytest.mark.parametrize("key", sorted(RayConfig.model_fields.keys() - {"auth", "temp_dir", "preset"}))
@pytest.mark.parametrize("value", [0, -1, True, 5.0, "5000", None, 2**31])
def test_ray_numbers_are_positive_whole_numbers(key, value):
    if (key, value) == ("first_node_port", None):
        return  # the one number that may be left to us
    with pytest.raises(ValidationError):
        RayConfig.model_validate({key: value})


def test_the_forgiven_time_is_bounded():
    RayConfig(heartbeat_timeout_ms=2**31 - 1, num_heartbeat_timeout_periods=1)
    with pytest.raises(ValidationError, match="24 days"):
        RayConfig(heartbeat_timeout_ms=2**30, num_heartbeat_timeout_periods=2)


@pytest.mark.parametrize(
    ("key", "least", "most"),
    [
        ("heartbeat_every_s", 0.1, 60),
        ("hang_s", 1, 86_400),
        ("unreachable_s", 1, 86_400),
        ("join_s", 1, 3600),
        ("probe_every_s", 0.5, 3600),
    ],
)
def test_agent_times_have_bounds(key, least, most):
    assert getattr(Agent.model_validate({key: least}), key) == least
    assert getattr(Agent.model_validate({key: most}), key) == most
    for value in (least * 0.9, most + 1, True, "5", float("nan"), float("inf"), 10**400):
        with pytest.raises(ValidationError):
            Agent.model_validate({key: value})


@pytest.mark.parametrize(
    "host", ["10.0.0.1", "fe80::1", "gpu1", "gpu-1.rack.example.com", "1node", "::ffff:10.0.0.1", "a" * 63]
)
def test_hosts(host):
    assert node(host=host).host == host


@pytest.mark.parametrize(
    "host",
    [
        *[
            "",
            " ",
            "-oProxyCommand=x",
            "a b",
            "a;b",
            "a\n",
            "gpu1\n",
            "$(x)",
            "`x`",
            "user@host",
            "host:22",
            "[::1]",
        ],
        *[
            "fe80::1%eth0",
            "fe80::1%;x",
            "10.0.0.256",
            "10.0.0",
            "0.0.0.0",
            "::",
            "224.0.0.1",
            "a..b",
            "a-",
            "a_b",
        ],
        *["gpu1.", "a" * 64, "a." * 127 + "ab", "ünode", "10.0.0.1/24", "\0"],
    ],
)
def test_bad_hosts(host):
    with pytest.raises(ValidationError):
        node(host=host)


@pytest.mark.parametrize(
    "name", ["", "-a", "a-", ".", "..", "a/b", "a b", "a\n", "a" * 64, "é", "a=b", "a,b"]
)
def test_bad_node_names(name):
    with pytest.raises(ValidationError):
        node(name=name)


@pytest.mark.parametrize("name", ["my-cluster", "C", "lab.2_b", "a" * 42])
def test_cluster_names(name):
    assert local(cluster=name).cluster == name


@pytest.mark.parametrize("name", ["", ".", "..", ".a", "-a", "a/b", "a b", "a\n", "a" * 43, "a.", "~"])
def test_bad_cluster_names(name):
    with pytest.raises(ValidationError):
        local(cluster=name)


@pytest.mark.parametrize("labels", [{"rack": "a"}, {"example.com/rack": ""}, {"a.b_c-d": "1.2_3-4"}])
def test_labels(labels):
    assert node(labels=labels).labels == labels


@pytest.mark.parametrize(
    "labels",
    [
        *[
            {"a,b": "c"},
            {"a=b": "c"},
            {"": "c"},
            {"-a": "c"},
            {"a": "b,c"},
            {"a": "b=c"},
            {"a": "b c"},
            {"a": "-"},
        ],
        *[
            {"ray.io/node-id": "x"},
            {"/a": "b"},
            {"a/": "b"},
            {"a_b/c": "d"},
            {"a": "b/c"},
            {"a": "x" * 64},
            {"a": 1},
        ],
        {"x." * 127 + "xx/a": "b"},
    ],
)
def test_bad_labels(labels):
    with pytest.raises(ValidationError):
        node(labels=labels)


@pytest.mark.parametrize(
    "env",
    [
        *[
            {"1A": "x"},
            {"A-B": "x"},
            {"": "x"},
            {"A": "a\nb"},
            {"A": "a\0b"},
            {"A": 1},
            {"A": "\ud800"},
            {"A=B": "x"},
        ],
        *[{"RAY_AUTH_MODE": "token"}, {"RAY_AUTH_TOKEN": "x"}, {"RAY_AUTH_TOKEN_PATH": "/x"}],
        *[{"RAY_USAGE_STATS_ENABLED": "1"}, {"ray_auth_mode": "x"}, {"A": "x" * 4097}, {"A": "\x1b[0m"}],
    ],
)
def test_bad_env(env):
    with pytest.raises(ValidationError):
        node(env=env)


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("RAY_kill_child_processes_on_worker_exit_with_raylet_subreaper", "a repair on its node has started"),
        ("RAY_RAYLET_PID", "which processes a dead raylet has left"),
        ("RAY_NODE_ID", "which processes a dead raylet has left"),
    ],
)
def test_env_may_not_mislead_a_repair(name, why):
    with pytest.raises(ValidationError, match=f"must not be {name}: .*{why}"):
        node(env={name: "1"})


def test_env_may_hold_any_text():
    assert node(env={"A": "x=y, {z}; $HOME 'ü' \t", "_b1": ""}).env["_b1"] == ""


@pytest.mark.parametrize(
    "resources",
    [
        *[{"": 1}, {"a,b": 1}, {"a:b": 1}, {"{a": 1}, {"a}": 1}, {'a"': 1}, {"a b": 1}],
        *[{"CPU": 1}, {"GPU": 1}, {"memory": 1}, {"object_store_memory": 1}, {"cpu": 1}],
        *[
            {"a": -1},
            {"a": True},
            {"a": "1"},
            {"a": float("nan")},
            {"a": float("inf")},
            {"a": 0.5},
            {"a": 1e15},
        ],
    ],
)
def test_bad_resources(resources):
    with pytest.raises(ValidationError):
        node(resources=resources)


@pytest.mark.parametrize("key", ["num_cpus", "num_gpus", "object_store_memory_mb", "ssh_port"])
@pytest.mark.parametrize("value", [-1, True, 1.0, "1", 10**9])
def test_node_numbers(key, value):
    with pytest.raises(ValidationError):
        node(**{key: value})


def test_zero_is_a_number_of_gpus_but_no_size_of_an_object_store():
    assert node(num_gpus=0, num_cpus=0).num_gpus == 0
    with pytest.raises(ValidationError):
        node(object_store_memory_mb=74)


@pytest.mark.parametrize("key", ["key_file", "known_hosts_file", "ray_bin"])
@pytest.mark.parametrize(
    "value", ["", "ssh/id", "-oX", "~ray/x", "~", "./x", "/a\nb", "/a\0b", "/" + "a" * 1024]
)
def test_paths_are_absolute_or_under_home(key, value):
    assert getattr(Ssh.model_validate(SSH | {key: "~/a b"}), key) == "~/a b"
    with pytest.raises(ValidationError):
        Ssh.model_validate(SSH | {key: value})


def test_host_keys_are_always_checked():
    with pytest.raises(ValidationError, match="host keys are always checked"):
        Ssh.model_validate(SSH | {"known_hosts_file": None})


def test_temp_dir_leaves_room_for_socket_paths():
    assert RayConfig(temp_dir="/" + "a" * 38).temp_dir
    with pytest.raises(ValidationError, match="sockets"):
        RayConfig(temp_dir="/" + "a" * 39)
    with pytest.raises(ValidationError, match="absolute"):
        node(temp_dir="tmp")


@pytest.mark.parametrize("user", ["", "-oX", "a b", "a;b", "a@b", "1a", "a\n", "a" * 33])
def test_bad_users(user):
    with pytest.raises(ValidationError):
        Ssh(user=user)
    with pytest.raises(ValidationError):
        node(ssh_user=user)


@pytest.mark.parametrize(
    "url", ["https://slack.com/api/", "http://127.0.0.1:9/", "http://localhost/a", "http://[::1]:1/"]
)
def test_slack_urls(url):
    assert Slack(channel="C0123", base_url=url).base_url == url


@pytest.mark.parametrize(
    "url",
    [
        *[
            "http://slack.com/api/",
            "ftp://127.0.0.1/",
            "slack.com",
            "",
            "https://",
            "https://a b/",
            "https://a/\n",
        ],
        *["https://u:p@slack.com/", "https://slack.com/?a=b", "https://slack.com/#a", "https://a:99999/"],
        *["http://127.0.0.1.evil.com/", "http://localhost@evil.com/", "https://[::1", "//slack.com/"],
    ],
)
def test_bad_slack_urls(url):
    with pytest.raises(ValidationError):
        Slack(channel="C0123", base_url=url)


@pytest.mark.parametrize("channel", ["", "general", "#", "# a", "#a b", "c0123", "C1", "xoxb-1-2", "#a\n"])
def test_bad_channels(channel):
    with pytest.raises(ValidationError):
        Slack(channel=channel)
    assert Slack(channel="#ops-alerts").channel == "#ops-alerts"


def test_token_env_is_a_name_and_not_a_token():
    with pytest.raises(ValidationError):
        Slack(channel="C0123", token_env="xoxb-123")


@pytest.mark.parametrize(
    ("make", "where", "rule"),
    [
        (lambda: local(nodes=[W1]), "nodes", "exactly one node with role: head"),
        (lambda: local(nodes=[HEAD, HEAD | {"name": "h2"}]), "nodes.1.role", "exactly one head"),
        (lambda: local(nodes=[HEAD, W1, W1]), "nodes.2.name", "nodes[1] has this name"),
        (lambda: local(nodes=[HEAD, R_W1]), "nodes.1.host", "no ssh section"),
        (lambda: local(nodes=[HEAD, W1 | {"ssh_user": "x"}]), "nodes.1.ssh_user", "without an ssh section"),
        (lambda: local(nodes=[HEAD, W1 | {"ssh_port": 22}]), "nodes.1.ssh_port", "without an ssh section"),
        (
            lambda: remote(nodes=[R_HEAD, R_W1 | {"host": "10.0.0.10"}]),
            "nodes.1.host",
            "nodes[0] has this one",
        ),
        (
            lambda: remote(nodes=[R_HEAD | {"host": "A.b"}, R_W1 | {"host": "a.B"}]),
            "nodes.1.host",
            "nodes[0] has this one",
        ),
        (lambda: remote(nodes=[HEAD, R_W1]), "nodes.0.host", "workers reach the head"),
        (lambda: local(ray={"port": 8265}), "ray.dashboard_port", "must differ from ray.port"),
        (lambda: local(http={"port": 6379}), "http.port", "must differ from ray.port"),
        (lambda: local(http={"port": 8265}), "http.port", "must differ from ray.dashboard_port"),
        (lambda: local(ray={"port": 10_001}), "ray.port", "10001..19999"),
        (lambda: local(ray={"dashboard_port": 19_999}), "ray.dashboard_port", "10001..19999"),
        (lambda: local(http={"host": "0.0.0.0"}), "http.host", "needs http.token_file"),
        (lambda: local(http={"host": "10.0.0.10"}), "http.host", "needs http.token_file"),
        (lambda: local(agent={"hang_s": 1}), "agent.hang_s", "twice heartbeat_every_s"),
        (
            lambda: local(agent={"heartbeat_every_s": 60, "unreachable_s": 119}),
            "agent.unreachable_s",
            "twice",
        ),
    ],
)
def test_rules_between_keys(make, where, rule):
    with pytest.raises(ValidationError) as caught:
        make()
    [error] = caught.value.errors()
    assert where in [".".join(map(str, path)) for path, _ in error["ctx"]["problems"]]
    assert rule in error["msg"]


def test_an_open_address_with_a_token_file():
    assert local(http={"host": "0.0.0.0", "token_file": "/etc/token"}).http.host == "0.0.0.0"
    assert local(http={"host": "::1"}).http.host == "::1"


def test_at_least_one_node():
    with pytest.raises(ValidationError):
        local(nodes=[])


def test_unknown_keys_are_refused_everywhere():
    for extra in (
        {"x": 1},
        {"ray": {"x": 1}},
        {"agent": {"x": 1}},
        {"http": {"x": 1}},
        {"nodes": [HEAD | {"x": 1}]},
    ):
        with pytest.raises(ValidationError):
            local(**extra)
