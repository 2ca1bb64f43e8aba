"""A hundred addresses behind real SSH servers, ten of which accept and say nothing. `ray` is a small script.

All hundred are one host of a lab, so that what takes its time here is one machine doing the work of ninety.
"""

import json
import sys
from typing import Any

import pytest

from tests.support.cluster import ROOT
from tests.support.hosts import Lab
from tests.support.netns import tool

pytestmark = [pytest.mark.hosts, pytest.mark.slow]

HOSTS = 100
SILENT = [f"w{n}" for n in range(5, HOSTS, 10)]
CONNECT_S = 30.0
# A raylet as far as a look can see.
RAY = """#!/bin/bash
for word in "$@"; do
  case "$word" in --node-name=*) name=$word;; --address=*) gcs=--gcs-${word#--};; esac
done
exec </dev/null >/dev/null 2>&1
(exec -a /opt/raylet bash -c 'sleep 600; :' raylet "$name" "$gcs" "--node_id=${name#*=}") &
exec sleep 0.3
"""
NOTHING_SAID = """
import socket, sys, time
server = socket.create_server(("", 2222), backlog=128)
print("listens", flush=True)
held = []
while True:
    held.append(server.accept())
"""
SILENCE = """
add table ip many
add chain ip many to {{ type nat hook prerouting priority dstnat ; }}
add rule ip many to ip daddr {{ {} }} tcp dport 22 redirect to :2222
"""
START = """
import asyncio, io, json, pathlib, sys, time
from bootstrap import plan
from bootstrap.launch import Work
from bootstrap.progress import Output, Progress
from bootstrap.reach import Reach
from config import loader, paths
from grid_agent.edges.transports import Transports
settings, gcs = loader.load(sys.argv[1], {}), "10.77.0.10:6379"
state = paths.StatePaths(pathlib.Path("/root/many"))
state.root.mkdir(mode=0o700, exist_ok=True)
took, known = {}, Transports(settings, state)

class Timed:
    def __init__(self, name):
        self.name = name
    async def call(self, request, timeout_s):
        began = time.monotonic()
        try:
            return await known(self.name).call(request, timeout_s)
        finally:
            took.setdefault(self.name, []).append(time.monotonic() - began)

reach = Reach(settings, gcs, 0, state, ways=Timed)
began = time.monotonic()
running = frozenset(reach.raylets())
survey_s = time.monotonic() - began
here = plan.Here(state, 0, "10.77.0.10", gcs, {}, "python", "/")
with Progress(Output(io.StringIO(), io.StringIO()), []) as progress:
    work = Work(reach, state, progress)
    began = time.monotonic()
    work.begin(plan.plan(settings, plan.Found(running | {"h"}, app_answers=True), here))
    work.finish(began + 300)
    start_s = time.monotonic() - began
outcomes = {name: [end.ok, end.text, *end.lines] for name, end in work.outcomes().items()}
survey = {name: times[0] for name, times in took.items()}
starts = {name: times[1] for name, times in took.items() if len(times) > 1}
print(json.dumps({"running": len(running), "survey_s": survey_s, "start_s": start_s,
                  "outcomes": outcomes, "survey": survey, "starts": starts}))
"""


@pytest.fixture
def addresses(lab: Lab) -> dict[str, str]:
    """Name -> address of a hundred workers, all of them the host gpu1."""
    found = {f"w{n}": f"10.77.1.{n + 1}" for n in range(HOSTS)}
    gpu1 = lab.hosts["gpu1"]
    lines = "".join(f"address add {address}/32 dev eth0\n" for address in found.values())
    for host, batch in ((gpu1, lines), (lab.head, f"route add 10.77.1.0/24 via {gpu1.address}\n")):
        done = host.run([tool("ip"), "-batch", "-"], input=batch)
        assert done.returncode == 0, done.stderr
    return found


def start(lab: Lab, file: str) -> dict[str, Any]:
    """A look at all hosts and a start of what is missing, as `start.py` does them, on the head."""
    done = lab.head.run([sys.executable, "-c", START, file], env={"PYTHONPATH": str(ROOT)}, timeout_s=500)
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout.splitlines()[-1]))


def cluster_file(lab: Lab, addresses: dict[str, str]) -> str:
    """The cluster, and the hosts' key under all of their addresses."""
    ray = lab.folder / "many" / "ray"
    ray.parent.mkdir(exist_ok=True)
    ray.write_text(RAY)
    ray.chmod(0o755)
    known = lab.folder / "many" / "known_hosts"
    known.write_text("".join(f"{a} {lab.hosts['gpu1'].public_host_key}\n" for a in addresses.values()))
    ssh = {
        "user": "root",
        "key_file": str(lab.key),
        "known_hosts_file": str(known),
        "ray_bin": str(ray.parent),
        "connect_timeout_s": CONNECT_S,
    }
    head = {"name": "h", "host": lab.head.address, "role": "head", "num_cpus": 0}
    nodes = [head, *({"name": name, "host": address} for name, address in addresses.items())]
    file = lab.folder / "many" / "cluster.json"
    file.write_text(json.dumps({"cluster": "many", "nodes": nodes, "ssh": ssh, "ray": {"auth": "disabled"}}))
    return str(file)


def test_silent_hosts_cost_one_timeout_and_the_next_start_mends_only_them(
    lab: Lab, addresses: dict[str, str]
) -> None:
    gpu1, file = lab.hosts["gpu1"], cluster_file(lab, addresses)
    python = [str(lab.worker_bin / "python"), "-I", "-S", "-c", NOTHING_SAID]
    silent = gpu1.popen(python, stdout=-1)
    try:
        assert silent.stdout
        assert silent.stdout.readline() == "listens\n"
        rules = SILENCE.format(", ".join(addresses[name] for name in SILENT))
        done = gpu1.run([tool("nft"), "-f", "-"], input=rules)
        assert done.returncode == 0, done.stderr
        first = start(lab, file)
        done = gpu1.run([tool("nft"), "delete", "table", "ip", "many"])
        assert done.returncode == 0, done.stderr
        second = start(lab, file)
    finally:
        silent.kill()  # the way in only; what it started there keeps the pipe open until the host is reset
        if silent.stdout:
            silent.stdout.close()
        silent.wait()
        for host in lab.hosts.values():
            host.reboot()
    good = [took for name, took in first["survey"].items() if name not in SILENT]
    slowest = max(took for name, took in first["starts"].items() if name not in SILENT)
    failed = {name: said for name, (ok, *said) in first["outcomes"].items() if not ok}
    survey_s, start_s, many = first["survey_s"], first["start_s"], len(SILENT)
    print(f"\n{HOSTS} hosts, {many} of them silent (timeout {CONNECT_S:g} s)")
    print(f"look:  {survey_s:.1f} s, slowest good host {max(good):.1f}")
    print(f"start: {start_s:.1f} s, slowest good host {slowest:.1f}")
    asked = len(second["outcomes"])
    print(f"again: {second['survey_s']:.1f} s and {second['start_s']:.1f} s for {asked} hosts")
    assert set(failed) == set(SILENT)
    for name, (text, *lines) in failed.items():
        assert text == "failed: connect_timeout"
        assert f"root@{addresses[name]}:22: No connection in time." in " ".join(lines)
    assert survey_s <= max(good) + CONNECT_S + 2.0  # one after another it would be ten timeouts
    assert start_s <= slowest + CONNECT_S
    assert not set(first["starts"]) & set(SILENT)  # they are not asked again
    assert (second["running"], set(second["outcomes"])) == (HOSTS - len(SILENT), set(SILENT))
    assert all(ok for ok, *_ in second["outcomes"].values())
