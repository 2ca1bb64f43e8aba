"""From settings and what was found running to actions: what is missing is started, the rest untouched."""

from pathlib import Path

import pytest

from bootstrap import plan
from bootstrap.changes import differences, in_force
from config import loader, paths

TEXT = """
cluster: mine
nodes:
  - {name: h, host: 127.0.0.1, role: head, num_cpus: 0}
  - {name: w1, host: 127.0.0.1, num_cpus: 1, env: {MY_TOKEN: s3cret, NCCL_DEBUG: INFO}}
  - {name: w2, host: 127.0.0.1, num_cpus: 1}
"""
HERE = plan.Here(
    state=paths.StatePaths(Path("/state/mine")),
    uid=7,
    node_ip="192.0.2.2",
    gcs_address="192.0.2.2:6379",
    environ={"PATH": "/usr/bin", "HOME": "/h", "SLACK_BOT_TOKEN": "xoxb-no"},
    python="/venv/bin/python",
    project="/project",
)


def settings(more: str = "", text: str = TEXT):
    return loader.loads(text + more, "test")


def steps(found: plan.Found, **flags):
    return [(a.stage, a.kind, a.node) for a in plan.plan(settings(), found, HERE, **flags)]


def running(*names: str, app: bool = True) -> plan.Found:
    return plan.Found(running=frozenset(names), app_answers=app)


def test_from_nothing_the_head_comes_first_and_the_rest_side_by_side():
    assert steps(plan.Found()) == [
        (1, "start", "h"),
        (2, "start", "w1"),
        (2, "start", "w2"),
        (2, "deploy", "grid-agent"),
    ]


def test_nothing_to_do():
    assert steps(running("h", "w1", "w2")) == []


def test_only_what_is_missing():
    assert steps(running("h", "w2")) == [(2, "start", "w1")]
    assert steps(running("h", "w1", "w2", app=False)) == [(2, "deploy", "grid-agent")]
    assert steps(running("h", "w1", "w2"), redeploy=True) == [(2, "deploy", "grid-agent")]


def test_workers_of_a_lost_head_are_ended_and_started_again():
    assert [step[1:] for step in steps(running("w1", app=False))] == [
        ("clear", "h"),
        ("start", "h"),
        ("start", "w1"),
        ("start", "w2"),
        ("deploy", "grid-agent"),
    ]


def test_a_head_goes_on_from_its_store_and_live_workers_stay():
    found = plan.Found(running=frozenset({"w1"}), store=True)
    actions = plan.plan(settings(), found, HERE)
    assert [(a.stage, a.kind, a.node) for a in actions] == [
        (0, "end_head", "h"),
        (1, "start", "h"),
        (2, "start", "w2"),
        (2, "deploy", "grid-agent"),
    ]
    assert plan.kept(found, actions) == {"w1"}


def test_only_the_head_is_told_of_the_store():
    head, *others = plan.plan(settings(), plan.Found(), HERE)
    assert head.env["RAY_gcs_storage"] == "rocksdb"
    assert head.env["RAY_gcs_storage_path"] == "/state/mine/gcs/store"
    assert not [name for action in others for name in action.env if name.startswith("RAY_gcs_storage")]


def test_a_worker_may_fail_alone():
    required = {a.node: a.required for a in plan.plan(settings(), plan.Found(), HERE)}
    assert required == {"h": True, "w1": False, "w2": False, "grid-agent": True}


def test_the_deploy_command_is_told_where_everything_is():
    deploy = plan.plan(settings(), plan.Found(), HERE)[-1]
    assert deploy.argv == (
        "/venv/bin/python",
        "-P",
        "-m",
        "deployments.deploy",
        "--settings",
        "/state/mine/settings.json",
        "--gcs-address",
        "192.0.2.2:6379",
    )
    assert deploy.cwd == "/state/mine"
    assert deploy.env["PYTHONPATH"] == "/project"
    assert "PYTHONPATH" not in plan.plan(settings(), plan.Found(), HERE)[0].env


def test_a_persons_environment_reaches_no_node():
    for action in plan.plan(settings(), plan.Found(), HERE):
        assert "SLACK_BOT_TOKEN" not in action.env


def test_a_description_names_host_argv_and_reason_but_no_secret():
    for action in plan.plan(settings(), plan.Found(), HERE):
        text = "\n".join(plan.describe(action))
        assert action.host in text
        assert action.why in text
        assert action.argv[0] in text
        assert "s3cret" not in text
    worker = "\n".join(plan.describe(plan.plan(settings(), plan.Found(), HERE)[1]))
    assert "MY_TOKEN=(not shown)" in worker
    assert "NCCL_DEBUG=INFO" in worker


def test_other_hosts_get_nothing_of_this_environment():
    found = settings(
        text="cluster: c\nssh: {user: me}\nnodes: [{name: h, host: 10.0.0.1, role: head},"
        " {name: w, host: 10.0.0.2}]\n"
    )
    head, worker, deploy = plan.plan(found, plan.Found(), HERE)
    assert worker.host == "10.0.0.2"
    assert "HOME" not in worker.env
    assert worker.env["RAY_AUTH_MODE"] == head.env["RAY_AUTH_MODE"] == deploy.env["RAY_AUTH_MODE"] == "token"
    assert head.env["RAY_AUTH_TOKEN_PATH"] == "/state/mine/ray_token"
    assert "--address=192.0.2.2:6379" in worker.argv


ALL = frozenset({"h", "w1", "w2"})


@pytest.mark.parametrize(
    ("old", "new", "alive", "expected"),
    [
        ("", "", ALL, []),
        (
            "",
            "ray: {health_check_period_ms: 3000}",
            ALL,
            [("ray.health_check_period_ms", "stop.py, then start.py")],
        ),
        ("", "agent: {mode: observe}", ALL, [("agent.mode", "start.py --redeploy")]),
        (
            "slack: {channel: C01234}",
            "slack: {channel: C56789}",
            ALL,
            [("slack.channel", "start.py --redeploy")],
        ),
        ("", "http: {port: 8001}", ALL, [("http.port", "stop.py, then start.py")]),
    ],
)
def test_differences_in_sections(old, new, alive, expected):
    assert [(d.key, d.remedy) for d in differences(settings(old), settings(new), alive)] == expected


def test_a_changed_worker_differs_only_while_it_runs():
    new = settings(text=TEXT.replace("w2, host: 127.0.0.1, num_cpus: 1", "w2, host: 127.0.0.1, num_cpus: 4"))
    assert [(d.key, d.running, d.file, d.remedy) for d in differences(settings(), new, ALL)] == [
        ("nodes.w2.num_cpus", "1", "4", "stop.py --node w2, then start.py")
    ]
    assert differences(settings(), new, frozenset({"h", "w1"})) == []
    assert in_force(settings(), new, ALL, redeploy=False) == settings()
    assert in_force(settings(), new, frozenset({"h", "w1"}), redeploy=False) == new


def test_a_worker_that_left_the_file_is_named_and_stays_until_a_person_says_so():
    new = settings(text=TEXT.rpartition("  - {name: w2")[0])
    for alive in (ALL, frozenset({"h"})):
        assert [(d.key, d.remedy) for d in differences(settings(), new, alive)] == [
            ("nodes.w2", "start.py --yes")
        ]
    assert plan.plan(new, running("h", "w1", "w2"), HERE) == []
    assert in_force(settings(), new, ALL, redeploy=False) == settings()
    assert in_force(settings(), new, ALL, redeploy=False, remove=True) == new


def test_a_worker_that_came_into_the_file_is_started_and_watched():
    new = settings(text=TEXT + "  - {name: w3, host: 127.0.0.1, num_cpus: 1}\n")
    assert in_force(settings(), new, ALL, redeploy=False) == new
    assert [a.node for a in plan.plan(new, running(*ALL), HERE, redeploy=True)] == ["w3", "grid-agent"]


def test_the_agents_settings_follow_a_redeploy_only():
    new = settings("agent: {mode: observe}\nray: {timeout_ms: 70000}")
    assert in_force(settings(), new, ALL, redeploy=False) == settings()
    assert in_force(settings(), new, ALL, redeploy=True) == settings("agent: {mode: observe}")


def test_another_ssh_key_needs_no_restart():
    text = "cluster: c\nnodes: [{name: h, host: 10.0.0.1, role: head}, {name: w, host: 10.0.0.2}]\nssh: "
    old = settings(text=text + "{user: me}\n")
    new = settings(text=text + "{user: me, key_file: /k}\n")
    both = frozenset({"h", "w"})
    assert [(d.key, d.remedy) for d in differences(old, new, both)] == [
        ("ssh.key_file", "start.py --redeploy")
    ]
    assert in_force(old, new, both, redeploy=False) == old
    assert in_force(old, new, both, redeploy=True) == new
