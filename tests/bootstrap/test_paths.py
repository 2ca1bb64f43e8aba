"""Names of files and folders: the same from every working directory, and short enough for sockets."""

from pathlib import Path

import pytest

from config import loader, paths


def settings(text: str = ""):
    base = (
        "cluster: mine\nnodes:\n  - {name: h, host: 127.0.0.1, role: head}\n  - {name: w, host: 127.0.0.1}\n"
    )
    return loader.loads(base + text, "test")


def remote(node: str = "", head: str = "", ray: str = ""):
    return loader.loads(
        f"cluster: mine\nssh: {{user: me}}\nnodes:\n  - {{name: h, host: 10.0.0.1, role: head{head}}}\n"
        f"  - {{name: w, host: 10.0.0.2{node}}}\n{ray}",
        "test",
    )


@pytest.mark.parametrize(
    ("environ", "root"),
    [
        ({"XDG_STATE_HOME": "/state", "HOME": "/home/me"}, "/state/grid-agent/c"),
        ({"HOME": "/home/me"}, "/home/me/.local/state/grid-agent/c"),
        ({"XDG_STATE_HOME": "", "HOME": "/home/me"}, "/home/me/.local/state/grid-agent/c"),
        ({"XDG_STATE_HOME": "relative", "HOME": "/home/me"}, "/home/me/.local/state/grid-agent/c"),
    ],
)
def test_the_state_folder(environ, root):
    assert paths.StatePaths.of("c", environ).root == Path(root)


def test_every_file_is_below_the_state_folder():
    state = paths.StatePaths.of("c", {"XDG_STATE_HOME": "/s"})
    names = (
        "cluster settings api_token slack_token ray_token journal logs stopped start_lock locks deploy_log"
    )
    found = [getattr(state, name) for name in names.split()]
    assert len(set(found)) == len(found)
    assert all(path.is_relative_to(state.root) for path in found)
    assert state.stopped_node("w1") == state.stopped / "w1"


def test_a_machine_of_its_own_folder_is_short():
    assert paths.own_temp_dir("local", 1000) == "/tmp/ray-local-1000"
    long = paths.own_temp_dir("x" * 42, 4_000_000_000)
    assert len(long) <= paths.TEMP_DIR_MAX
    assert long != paths.own_temp_dir("y" * 42, 4_000_000_000)


def test_one_machine_shares_the_heads_folder():
    found = settings()
    assert {paths.temp_dir(found, node, 7) for node in found.nodes} == {"/tmp/ray-mine-7"}
    asked = settings("ray: {temp_dir: /data/r}\n")
    assert {paths.temp_dir(asked, node, 7) for node in asked.nodes} == {"/data/r"}


def test_hosts_of_their_own_use_rays_default():
    assert paths.temp_dir(remote(), remote().workers[0], 7) == "/tmp/ray"
    given = remote(node=", temp_dir: ~/r", head=", temp_dir: ~/h")
    assert paths.temp_dir(given, given.workers[0], 7) == "~/r"  # for that host to expand
    assert paths.temp_dir(given, given.head, 7) == str(Path.home() / "h")
    common = remote(ray="ray: {temp_dir: /data/r}\n")
    assert {paths.temp_dir(common, node, 7) for node in common.nodes} == {"/data/r"}
