"""Keeps the head alive from outside Ray: what heals must not die with what it heals.

It watches the GCS, the head's raylet, the dashboard and the agent's `/cluster/readyz`, and starts what is
missing again. It never touches a worker, and nothing of a head that a person stopped. What to do is decided
in `keeping`; this is the shell. Standard library only once it runs: it must stay small.

Run as `python -m bootstrap.keeper -c FILE`, by `start.py`, by its systemd unit, or by the agent when it was
killed.
"""

import argparse
import contextlib
import json
import logging
import logging.handlers
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from bootstrap import head_parts, keeping, outage, store
from bootstrap.keeping import Remedy
from grid_agent.edges import keeper

LOOK_S = 5.0
BUSY_LOOK_S = 1.0  # while something is wrong
DEAD_MAN_S = 60.0
DEPLOY_S = 180.0
POST_S = 45.0
POST_AGAIN_S = 30.0
log = logging.getLogger("grid_agent.keeper")

EXIT_CODES = "exit codes: 0 there is nothing to keep, 2 usage or configuration, 5 another keeper runs"


class Keeper:
    """The keeper of one cluster, with its lock held."""

    def __init__(self, files: keeper.Files, plan: Mapping[str, Any]) -> None:
        self.files = files
        self.plan = plan
        self.head = head_parts.Head(plan["gcs_address"])
        self.memory = keeping.Memory()
        self.outage = outage.open_one(files.outage)
        self._plan_stamp = self._stamp()
        self._looked_at = 0.0
        self._called_at = 0.0
        self._posted: str | None = None
        self._post_at = 0.0

    def run(self) -> None:
        """Until there is nothing more to keep."""
        while self._wanted():
            try:
                seen = self.look()
                self.memory = keeping.look(self.memory, seen, time.monotonic())
                limits = keeping.Limits(self.plan["hang_s"], self.plan["ready_s"])
                found = keeping.decide(self.memory, seen, time.monotonic(), limits)
                if found.remedy is not None:
                    self.act(found.remedy, found.why)
                elif found.why:
                    self._tell_people()
                elif keeping.well(seen) and seen.ready:
                    self._whole()
                quiet = not found.why and seen.ready is not False
            except Exception:
                log.exception("the keeper failed at a look; it goes on")
                quiet = True
            self._beat()
            self.head.wait(LOOK_S if quiet else BUSY_LOOK_S)

    def look(self) -> keeping.Seen:
        """See what is there; ask whether it answers, now and then and while something is wrong."""
        self.head.find()
        there = {name: self.head.there(name) for name in ("gcs", "raylet", "dashboard")}
        now = time.monotonic()
        seen = keeping.Seen(**there)
        if not seen.raylet or now - self._looked_at < BUSY_LOOK_S:  # without it all of the head is started
            return seen
        self._looked_at = now
        return replace(
            seen,
            gcs_answers=self.head.gcs_answers() if seen.gcs else None,
            raylet_answers=self.head.raylet_answers(),
            ready=self._ready() if keeping.well(seen) else None,
        )

    def act(self, remedy: Remedy, why: str) -> None:
        """Try one remedy, unless a start or stop is under way."""
        with keeper.turn(self.files) as ours:
            if not ours or not self._wanted():
                return
            if self.outage is None:
                self.outage = outage.Outage(self.files.outage, why)
                self._posted = None
            self.outage.step(f"{why}: {remedy}")
            log.warning("%s: %s", why, remedy)
            began = time.monotonic()
            self._beat()
            problem = self._remedies()[remedy]()
            took_s = time.monotonic() - began
            self.memory = keeping.tried(self.memory, remedy, time.monotonic(), ok=problem is None)
            said = f"{remedy} took {took_s:.1f} s" if problem is None else f"{remedy} failed: {problem}"
            log.warning("%s", said)
            self.outage.step(said, failed=problem is not None)
        self._tell_people()

    def _remedies(self) -> dict[Remedy, Any]:
        return {
            Remedy.GCS: lambda: self.head.restart("gcs"),
            Remedy.DASHBOARD: lambda: self.head.restart("dashboard"),
            Remedy.HEAD: self._restart_head,
            Remedy.DEPLOY: self._deploy,
        }

    def _restart_head(self) -> str | None:
        """End what is left of the head and start it as it was; None, or what went wrong."""
        assert self.outage is not None
        ended = head_parts.end_head(self.plan, self.head)
        if not ended.get("ok"):
            return str(ended.get("detail", ended.get("error")))
        folder = Path(self.plan["store"])
        owner = store.owner(self.plan["cluster"], self.plan["gcs_address"])
        kept = store.look(folder, owner)
        if kept.there and kept.problem:
            self._lose_store(folder, kept.problem)
        began = time.time()
        answer = self._start_head(folder, owner)
        if not answer.get("ok"):
            damage = store.damage(folder, self.plan["temp_dir"], began)
            if damage is None:
                return str(answer.get("detail", answer.get("error")))[-600:]
            self._lose_store(folder, f"it is damaged: {damage}")
            head_parts.end_head(self.plan, self.head)
            answer = self._start_head(folder, owner)
        if not answer.get("ok"):
            return str(answer.get("detail", answer.get("error")))[-600:]
        self._record(answer["raylet"])
        self.head.find()
        # Without the store nobody knows of the application any more: it will not come back by itself.
        return self._deploy() if self.outage.store_lost else None

    def _start_head(self, folder: Path, owner: Mapping[str, str]) -> dict[str, Any]:
        self._beat()
        with contextlib.suppress(OSError):
            store.prepare(folder, owner)  # Ray itself says what is wrong with a full disk
        return head_parts.start_head(self.plan)

    def _lose_store(self, folder: Path, why: str) -> None:
        assert self.outage is not None
        kept = store.set_aside(folder)
        self.outage.store_lost = why
        text = f"what the head had kept on disk cannot be used and is put aside in {kept}: {why}"
        log.error("%s", text)
        self.outage.step(text)

    def _record(self, raylet: Mapping[str, Any]) -> None:
        """Say in the record of what runs which head that is now: `start` and `stop` know it by this."""
        path = self.files.root / "cluster.json"
        with contextlib.suppress(OSError, ValueError):
            record = json.loads(path.read_text(encoding="utf-8"))
            new = {"head_node_id": raylet["node_id"], "session_dir": raylet["session_dir"]}
            outage.write(path, json.dumps(record | new, indent=2, sort_keys=True) + "\n")

    def _deploy(self) -> str | None:
        """Deploy the application; None, or what went wrong."""
        self._beat()
        how, path = self.plan["deploy"], self.files.root / "logs" / "deploy.log"
        with os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600), "w+b") as said:
            code = _run(how["argv"], how["env"], how["cwd"], said, DEPLOY_S)
            if code == 0:
                return None
            said.seek(0)
            last = said.read()[-600:].decode(errors="replace").strip()
        return f"not RUNNING in {DEPLOY_S:g} s" if code is None else last or f"it ended with {code}"

    def _beat(self) -> None:
        """Say that the keeper lives; nothing that it does between two of these takes as long as STALE_S."""
        with contextlib.suppress(OSError):
            self.files.beat.touch(mode=0o600)

    def _ready(self) -> bool:
        api = self.plan["api"]
        token = None
        if api["token_file"]:
            with contextlib.suppress(OSError, ValueError):
                token = Path(api["token_file"]).read_text(encoding="utf-8").strip()
        return head_parts.http_status(api["host"], api["port"], "/cluster/readyz", token) == 200

    def _whole(self) -> None:
        """Everything is there and the agent is ready."""
        if self.outage is not None:
            took_s = time.time() - self.outage.began_at
            text = (
                f"the head is whole again and the agent is ready, {took_s:.1f} s after the trouble was seen"
            )
            log.warning("%s", text)
            self.outage.step(text)
            self.outage.restored()
            self.outage = None
        url, now = self.plan["dead_man_url"], time.monotonic()
        if url and (not self._called_at or now - self._called_at >= DEAD_MAN_S):
            self._called_at = now
            threading.Thread(target=_call, args=(url,), daemon=True).start()

    def _tell_people(self) -> None:
        """Post to Slack where the agent cannot: after a failure, or when it takes long."""
        lasting = self.outage is not None and time.time() - self.outage.began_at >= keeping.POST_AFTER_S
        if self.outage is None or not self.plan["slack"] or not (self.outage.failed or lasting):
            return
        newest = self.outage.steps[-1][1] if self.outage.steps else ""
        if newest == self._posted or time.monotonic() < self._post_at or self._ready():
            return  # an agent that is ready tells of it: two would post two messages
        answer = _post(self.plan["post"], self.outage.body())
        if answer is None:
            self._post_at = time.monotonic() + POST_AGAIN_S
            return  # said in the log
        self._posted = newest
        if "ts" in answer:
            self.outage.slack = answer
            self.outage.save()

    def _wanted(self) -> bool:
        """Whether there is still something to keep; takes over a plan that was written anew."""
        stamp = self._stamp()
        if stamp != self._plan_stamp:
            plan = keeper.read_plan(self.files)
            if plan is not None:
                if plan["gcs_address"] != self.plan["gcs_address"]:
                    self.head = head_parts.Head(plan["gcs_address"])
                self.plan, self._plan_stamp = plan, stamp
        return stamp is not None and not self.files.stopped(self.plan["head"]).exists()

    def _stamp(self) -> tuple[int, int] | None:
        try:
            found = self.files.plan.stat()
        except OSError:
            return None
        return found.st_mtime_ns, found.st_ino


def _run(argv: list[str], env: Mapping[str, str], cwd: str, out: Any, limit_s: float) -> int | None:
    """Run a command to its end and return its code; None when it took too long. It does not outlive us."""
    child = subprocess.Popen(
        argv,
        env=dict(env),
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        stdout=out,
        stderr=out,
        start_new_session=True,
        close_fds=True,
    )
    try:
        return child.wait(limit_s)
    except subprocess.TimeoutExpired:
        return None
    finally:
        if child.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            child.wait()


def _post(how: Mapping[str, Any], body: Mapping[str, Any]) -> dict[str, Any] | None:
    """Have a child process post to Slack, with the library that we do not load; None: it did not arrive."""
    try:
        done = subprocess.run(
            how["argv"],
            env=how["env"],
            cwd=how["cwd"],
            input=json.dumps(body),
            capture_output=True,
            text=True,
            timeout=POST_S,
            check=False,
        )
        answer = json.loads(done.stdout.strip().splitlines()[-1])
    except (OSError, subprocess.SubprocessError, ValueError, IndexError) as error:
        log.warning("nothing could be posted to Slack: %s", type(error).__name__)
        return None
    if "error" in answer:
        log.warning("Slack did not take the message: %s", answer["error"])
        return None
    return dict(answer)


def _call(url: str) -> None:
    """GET a URL that raises an alarm where it is no longer called."""
    import http.client  # noqa: PLC0415 - both only where they are asked for
    import urllib.request  # noqa: PLC0415

    try:
        urllib.request.urlopen(url, timeout=10).close()  # noqa: S310 - http or https, by the cluster file
    except (OSError, ValueError, http.client.HTTPException) as error:
        log.warning("the dead-man URL cannot be called: %s", type(error).__name__)


def main(argv: list[str] | None = None) -> int:
    """Keep the head of one cluster; returns the exit code."""
    parser = argparse.ArgumentParser(prog="bootstrap.keeper", description=main.__doc__, epilog=EXIT_CODES)
    parser.add_argument("-c", "--config", metavar="FILE", help="cluster file (default: config/local.yaml)")
    parser.add_argument("--state", metavar="FOLDER", help="the cluster's state folder, where it is known")
    args = parser.parse_args(argv)
    if args.state is None:
        return _find_state(args.config)
    files = keeper.Files(Path(args.state))
    plan = keeper.read_plan(files)
    if plan is None:
        print(f"there is no {files.plan}: nothing to keep until start.py has run", file=sys.stderr)  # noqa: T201
        return 0
    handle = keeper.own(files)
    if handle is None:
        print("another keeper of this cluster runs", file=sys.stderr)  # noqa: T201
        return 5
    _log_to(files.root / "logs" / "keeper.log")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    log.info("keeping the head of %s (pid %d)", plan["cluster"], os.getpid())
    Keeper(files, plan).run()
    log.info("nothing more to keep")
    return 0


def _find_state(config: str | None) -> int:
    """Read the cluster file, which takes libraries, and begin again without them."""
    from config import loader  # noqa: PLC0415
    from config.paths import StatePaths  # noqa: PLC0415

    try:
        file = config or str(loader.default_file())
        settings = loader.load(file, os.environ)
    except loader.ConfigError as error:
        print(error, file=sys.stderr)  # noqa: T201
        return 2
    root = StatePaths.of(settings.cluster, os.environ).root
    again = [sys.executable, "-P", "-m", "bootstrap.keeper", "-c", str(file), "--state", str(root)]
    return os.execv(sys.executable, again)  # noqa: S606


def _log_to(path: Path) -> None:
    try:
        path.touch(mode=0o600)
        handler: logging.Handler = logging.handlers.RotatingFileHandler(
            path, maxBytes=1_000_000, backupCount=1
        )
    except OSError:
        handler = logging.StreamHandler()
    logging.raiseExceptions = False  # a full disk must not stop the keeper
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    log.addHandler(handler)
    log.setLevel(logging.INFO)


if __name__ == "__main__":
    sys.exit(main())
