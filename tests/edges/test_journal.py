"""The journal against real SQLite, and real disks that are full, read-only or damaged."""

import asyncio
import contextlib
import os
import sqlite3
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from grid_agent.core import codec
from grid_agent.core import messages as m
from grid_agent.core.incident_model import Phase
from grid_agent.core.model import Belief
from grid_agent.core.seen import Raylet
from grid_agent.core.step import begin
from grid_agent.core.terms import State
from grid_agent.edges import journal as journals
from grid_agent.edges import journal_rows
from grid_agent.edges.journal import Journal, Sent
from grid_agent.edges.journal_file import MIGRATIONS, JournalFile
from grid_agent.testing import Chances, SimulatedCluster
from tests.core.situations import Story, configured, repaired

NAMES = ("head", "gpu1", "gpu2", "gpu3")


def fresh(now: float = 2000.0) -> Belief:
    return begin((configured(n, now) for n in NAMES), now)


def nothing_yet(story: Story) -> Belief:
    return begin((configured(n) for n in story.names), story.now)


@asynccontextmanager
async def opened(path: Path, **changes: object) -> AsyncIterator[Journal]:
    journal = Journal(path, **changes)  # type: ignore[arg-type]
    try:
        yield journal
    finally:
        await journal.close()


async def keep(path: Path, story: Story, now: float | None = None) -> None:
    """Write down how the story stands, in one step."""
    async with opened(path, wall=lambda: story.now) as journal:
        await journal.open(nothing_yet(story), story.now)
        await journal.save(story.belief, story.belief, (), (), story.now if now is None else now)
        assert journal.trouble is None


async def test_what_people_said_and_how_often_was_tried_survives(tmp_path: Path) -> None:
    path, story = tmp_path / "journal.sqlite", Story(4)
    story.see(
        m.PersonSaid(m.Verb.PAUSE, "alice", "new switches", for_s=3600),
        m.PersonSaid(m.Verb.CORDON, "alice", "fan", "gpu2"),
    )
    story.die("gpu1")
    opened_at = replace(story.belief.breaker, unhelpful=("gpu3",), opened_at=story.now, why="gpu3")
    story.belief = replace(story.belief, breaker=opened_at)
    story.change("gpu1", tries=3, next_attempt_at=story.now + 50)
    await keep(path, story)
    async with opened(path, wall=lambda: story.now) as journal:
        found = await journal.open(nothing_yet(story), story.now)
    assert (found.paused, found.breaker, found.repairs) == (
        story.belief.paused,
        story.belief.breaker,
        story.belief.repairs,
    )
    for name in ("gpu1", "gpu2"):
        was, now = story.node(name), found.nodes[name]
        assert (now.state, now.cordon, now.tries, now.deaths) == (
            was.state,
            was.cordon,
            was.tries,
            was.deaths,
        )
        assert now.next_attempt_at == was.next_attempt_at


def rows(path: Path, sql: str) -> list[tuple[object, ...]]:
    with sqlite3.connect(path) as db:
        found = db.execute(sql).fetchall()
    db.close()
    return found


async def test_an_open_incident_its_attempts_and_its_thread_survive(tmp_path: Path) -> None:
    path, story = tmp_path / "journal.sqlite", Story()
    story.die("gpu1")
    async with opened(path, wall=lambda: story.now) as journal:
        await journal.open(nothing_yet(story), story.now)
        await journal.save(story.belief, story.belief, (), (), story.now)
        await journal.record_sent(1, Sent(1, {"channel_id": "C1", "ts": "1.2", "steps_posted": 2}))
    async with opened(path, wall=lambda: story.now) as journal:
        found = await journal.open(fresh(story.now), story.now)
        assert journal.sent[1] == Sent(1, {"channel_id": "C1", "ts": "1.2", "steps_posted": 2})
    assert found.incidents == story.belief.incidents
    (attempt,) = found.nodes["gpu1"].attempts
    assert attempt == replace(story.node("gpu1").attempts[0], unheard=True)
    assert (found.nodes["gpu1"].state, found.nodes["gpu2"].state) == (State.REPAIRING, State.ALIVE)
    assert found.next_incident_id == 2
    assert found.repairs.started == 1


async def test_only_its_owner_may_read_it(tmp_path: Path) -> None:
    path = tmp_path / "state" / "journal.sqlite"
    async with opened(path) as journal:
        await journal.open(fresh(), 2000.0)
        assert {p.name: p.stat().st_mode & 0o777 for p in path.parent.iterdir()} == {
            "journal.sqlite": 0o600,
            "journal.sqlite-wal": 0o600,
            "journal.sqlite-shm": 0o600,
        }


async def test_heartbeats_alone_write_nothing_and_a_verdict_is_one_transaction(tmp_path: Path) -> None:
    path, story = tmp_path / "journal.sqlite", Story()
    async with opened(path) as journal:
        await journal.open(story.belief, story.now)
        written = list[int]()
        real = journal._file.write
        journal._file.write = lambda writes: (written.append(1), real(writes))[1]  # type: ignore[method-assign]

        async def see(*events: m.Event) -> None:
            before = story.belief
            orders = story.see(*events, after=1.0)
            await journal.save(before, story.belief, events, orders, story.now)

        for _ in range(20):
            await see(*(m.HeartbeatAnswered(n, f"{n}-a", 0.5) for n in story.names), m.LoopLagged(1.0))
        assert written == []
        await see(m.HeartbeatMissed("gpu1", "gpu1-a", m.Miss.REFUSED))
        await see(m.HostLooked("gpu1", "head", ()))
        assert len(written) == 2
    kinds = rows(path, "SELECT kind, node FROM history ORDER BY id")
    assert kinds == [
        ("moved", "gpu1"),
        ("moved", "gpu1"),
        ("ordered", "gpu1"),
        ("ordered", "gpu1"),
    ]
    assert rows(path, "SELECT open FROM incident") == [(1,)]
    assert rows(path, "SELECT wanted, shown FROM outbox") == [(1, 0)]


async def test_the_epoch_rises_with_every_agent_and_without_a_disk_too(tmp_path: Path) -> None:
    path, found = tmp_path / "journal.sqlite", []
    for wall in (1000.0, 1000.0, 500.0):
        async with opened(path, wall=lambda wall=wall: wall) as journal:
            await journal.open(fresh(), 2000.0)
            found.append(journal.epoch)
    assert found == [1000, 1001, 1002]
    path.unlink()
    async with opened(path, wall=lambda: 3000.0) as journal:
        await journal.open(fresh(), 2000.0)
        assert journal.epoch == 3000


async def test_times_are_moved_to_the_clock_of_the_new_agent(tmp_path: Path) -> None:
    """The wall clock was set back by an hour while the old agent ran: its own clock did not jump."""
    path, story = tmp_path / "journal.sqlite", Story()
    story.die("gpu1")
    died_at = story.now
    story.now += 100.0
    async with opened(path, wall=lambda: story.now - 3600.0) as journal:
        await journal.open(nothing_yet(story), story.now)
        await journal.save(story.belief, story.belief, (), (), story.now)
    async with opened(path) as journal:
        found = await journal.open(fresh(story.now - 3590.0), story.now - 3590.0)
    assert found.incidents[1].opened_at == pytest.approx(died_at - 3600.0)
    assert found.nodes["gpu1"].attempts[0].started_at == pytest.approx(died_at - 3600.0)


async def test_nothing_that_was_written_lies_in_the_future(tmp_path: Path) -> None:
    """The wall clock was set back by an hour between the two agents: waits end as if it had not been."""
    path, story = tmp_path / "journal.sqlite", Story()
    story.die("gpu1")
    await keep(path, story)
    async with opened(path) as journal:
        found = await journal.open(fresh(story.now - 3600.0), story.now - 3600.0)
    assert found.incidents[1].opened_at == pytest.approx(story.now - 3600.0)


async def test_a_node_that_left_the_file_is_forgotten_and_its_incident_closed(tmp_path: Path) -> None:
    path, story = tmp_path / "journal.sqlite", Story()
    story.die("gpu1")
    await keep(path, story)
    async with opened(path) as journal:
        found = await journal.open(begin([configured("head"), configured("gpu9")], story.now), story.now)
    assert found.nodes.keys() == {"head", "gpu9"}
    assert found.nodes["gpu9"].state is State.JOINING
    assert found.incidents[1].phase is Phase.RESOLVED
    assert "cluster file" in found.incidents[1].steps[-1].text


async def test_after_stop_the_next_start_is_fresh_and_keeps_the_history(tmp_path: Path) -> None:
    path, story = tmp_path / "journal.sqlite", Story()
    story.die("gpu1")
    await keep(path, story)
    journals.end(path, story.now)
    for _ in range(2):
        async with opened(path) as journal:
            found = await journal.open(fresh(), 2000.0)
        assert {n.state for n in found.nodes.values()} == {State.JOINING}
        assert found.nodes["gpu1"].attempts == ()
        assert found.incidents[1].phase is Phase.RESOLVED
        assert "stop.py" in found.incidents[1].steps[-1].text
        assert found.next_incident_id == 2
    journals.end(tmp_path / "none.sqlite", 1.0)
    assert not (tmp_path / "none.sqlite").exists()


@pytest.mark.parametrize("damage", ["garbage", "cut", "newer", "middle"])
async def test_a_damaged_file_is_set_aside_said_and_does_not_stop_anything(
    tmp_path: Path, damage: str
) -> None:
    path, story = tmp_path / "journal.sqlite", Story()
    story.die("gpu1")
    await keep(path, story)
    if damage == "garbage":
        path.write_bytes(b"not a database, whatever its name says" * 200)
    elif damage == "cut":
        os.truncate(path, path.stat().st_size // 2)
    elif damage == "middle":
        with path.open("r+b") as file:
            file.seek(4096)
            file.write(b"\xff" * 8192)
    else:
        with sqlite3.connect(path) as db:
            db.execute(f"PRAGMA user_version={len(MIGRATIONS) + 1}")
        db.close()
    async with opened(path) as journal:
        found = await journal.open(fresh(story.now), story.now)
        assert found.nodes["gpu1"].state is State.JOINING
        await journal.save(story.belief, story.belief, (), (), story.now)
        (aside,) = tmp_path.glob("journal.sqlite.damaged-*")
        assert journal.trouble is not None
        assert str(aside) in journal.trouble
        aside.unlink()
        await journal.save(story.belief, replace(story.belief, next_incident_id=9), (), (), story.now)
        assert journal.trouble is None
    assert rows(path, "SELECT count(*) FROM incident") == [(1,)]


async def test_a_file_that_somebody_removes_is_written_anew(tmp_path: Path) -> None:
    path, story = tmp_path / "journal.sqlite", Story()
    async with opened(path) as journal:
        await journal.open(story.belief, story.now)
        await journal.record_sent(7, Sent(3, {"ts": "1"}))
        for each in tmp_path.iterdir():
            each.unlink()
        story.die("gpu1")
        await journal.save(story.belief, story.belief, (), (), story.now)
        assert journal.trouble is None
    assert rows(path, "SELECT count(*) FROM node") == [(4,)]
    assert rows(path, "SELECT incident_id, shown FROM outbox ORDER BY 1") == [(1, 0), (7, 3)]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", folder], check=True)
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


def fill(filler: Path) -> None:
    with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
        while file.write(b"x" * 4096):
            pass


needs_root = pytest.mark.skipif(os.getuid() != 0, reason="a disk of its own needs root")


@needs_root
@pytest.mark.parametrize("how", ["full", "read-only"])
async def test_a_disk_that_takes_nothing_is_said_and_made_up_for(small_disk: Path, how: str) -> None:
    path, story, filler = small_disk / "journal.sqlite", Story(), small_disk / "filler"
    async with opened(path, retry_s=0.0) as journal:
        await journal.open(story.belief, story.now)
        if how == "full":
            fill(filler)
        else:
            journal._file.close()  # a file open for writing keeps the kernel from it
            subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
        story.die("gpu1")
        big = replace(story.belief.incidents[1], evidence=("x" * 100_000,))
        story.belief = replace(story.belief, incidents={1: big})
        began = time.monotonic()
        await journal.save(story.belief, story.belief, (), (), story.now)
        assert time.monotonic() - began < 5.0
        assert journal.trouble is not None
        assert how in journal.trouble
        assert "healing goes on" in journal.trouble
        if how == "full":
            filler.unlink()
        else:
            subprocess.run(["mount", "-o", "remount,rw", small_disk], check=True)
        await journal.save(story.belief, story.belief, (), (), story.now)
        assert journal.trouble is None
    assert rows(path, "SELECT open FROM incident") == [(1,)]


@needs_root
async def test_what_is_on_a_read_only_disk_is_still_remembered(small_disk: Path) -> None:
    path, story = small_disk / "journal.sqlite", Story()
    story.die("gpu1")
    await keep(path, story)
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    async with opened(path, retry_s=0.0) as journal:
        found = await journal.open(fresh(story.now), story.now)
        assert found.incidents == story.belief.incidents
        assert journal.trouble is not None
        assert "read-only" in journal.trouble
        subprocess.run(["mount", "-o", "remount,rw", small_disk], check=True)
        await journal.save(found, found, (), (), story.now)
        assert journal.trouble is None
    assert rows(path, "SELECT count(*) FROM incident") == [(1,)]


async def test_a_disk_that_hangs_holds_a_step_up_only_for_so_long(tmp_path: Path) -> None:
    path, story = tmp_path / "journal.sqlite", Story()
    async with opened(path, slow_s=0.1) as journal:
        await journal.open(story.belief, story.now)
        real = journal._file.write
        journal._file.write = lambda writes: (time.sleep(1.0), real(writes))[1]  # type: ignore[method-assign]
        story.die("gpu1")
        began = time.monotonic()
        for _ in range(5):
            await journal.save(story.belief, story.belief, (), (), story.now)
        assert time.monotonic() - began < 0.8
        assert journal.trouble is not None
        assert "has not taken a write" in journal.trouble
        await asyncio.sleep(1.3)
        assert journal.trouble is None
    assert rows(path, "SELECT count(*) FROM incident") == [(1,)]


async def test_the_file_stays_within_its_bound(tmp_path: Path) -> None:
    path, story = tmp_path / "journal.sqlite", Story()
    async with opened(path, max_bytes=1_000_000) as journal:
        await journal.open(story.belief, story.now)
        belief = story.belief
        story.die("gpu1")
        base = story.belief.incidents[1]
        for number in range(2, 400):
            done = replace(base, id=number, phase=Phase.RESOLVED, evidence=("x" * 9000,))
            belief = replace(belief, incidents={number: done}, next_incident_id=number + 1)
            await journal.save(belief, belief, (), (), story.now)
            assert journal.trouble is None
    assert path.stat().st_size <= 1_000_000
    assert rows(path, "SELECT max(id) FROM incident") == [(399,)]


async def many_resolved(path: Path, count: int, **changes: object) -> None:
    """A journal with so many incidents, all over, of which Slack shows all but the third."""
    story = Story()
    story.die("gpu1")
    done = replace(story.belief.incidents[1], phase=Phase.RESOLVED, resolved_at=story.now)
    async with opened(path, **changes) as journal:
        await journal.open(story.belief, story.now)
        incidents = {number: replace(done, id=number) for number in range(1, count + 1)}
        belief = replace(story.belief, incidents=incidents, next_incident_id=count + 1)
        await journal.save(belief, belief, (), (), story.now)
        for number in incidents.keys() - {3}:
            await journal.record_sent(number, Sent(done.revision, {"ts": str(number)}))


async def test_a_message_that_never_got_through_is_remembered_however_old_it_is(tmp_path: Path) -> None:
    path = tmp_path / "journal.sqlite"
    await many_resolved(path, journal_rows.KEEP + 20)
    async with opened(path) as journal:
        found = (await journal.open(fresh(), 2000.0)).incidents
        assert set(found) == {3, *range(21, journal_rows.KEEP + 21)}
        assert found[3].steps
        assert journal.sent[3].shown < found[3].revision
        old = await journal.incident(5)
        assert old is not None
        assert (old.id, [s.text for s in old.steps]) == (5, [s.text for s in found[3].steps])
        assert await journal.incident(9999) is None


async def test_what_waits_to_be_told_is_not_forgotten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "journal.sqlite"
    await many_resolved(path, 20)
    monkeypatch.setattr("grid_agent.edges.journal_file.KEEP_INCIDENTS", 5)
    file = JournalFile(path)
    file.open()
    file._writes = 499
    file.write([])
    for table, number in (("incident", "id"), ("outbox", "incident_id")):
        assert file.rows(f"SELECT {number} FROM {table} ORDER BY 1") == [(3,), *((k,) for k in range(16, 21))]
    assert file.rows("SELECT count(*) FROM step WHERE incident_id = 3") != [(0,)]
    file.close()


async def test_where_nobody_is_told_nothing_waits(tmp_path: Path) -> None:
    path = tmp_path / "journal.sqlite"
    await many_resolved(path, 5, told=False)
    assert rows(path, "SELECT count(*) FROM outbox WHERE shown < wanted") == [(0,)]
    assert rows(path, "SELECT wanted > 0 FROM outbox WHERE incident_id = 3") == [(1,)]


def test_a_migration_runs_once_and_only_what_is_new(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = JournalFile(tmp_path / "journal.sqlite")
    file.open()
    file.write([("INSERT INTO meta VALUES ('k', '1')", ())])
    file.close()
    more = (*MIGRATIONS, "ALTER TABLE meta ADD COLUMN more TEXT;")
    monkeypatch.setattr("grid_agent.edges.journal_file.MIGRATIONS", more)
    for _ in range(2):
        file.open()
        assert file.rows("SELECT * FROM meta") == [("k", "1", None)]
        assert file.rows("PRAGMA user_version") == [(len(more),)]
        file.close()


async def test_a_repair_begun_by_a_dead_agent_is_looked_at_before_anything_else(tmp_path: Path) -> None:
    path, story = tmp_path / "journal.sqlite", Story()
    story.die("gpu1")
    await keep(path, story)
    async with opened(path) as journal:
        story.belief = await journal.open(nothing_yet(story), story.now)
    story.orders.clear()
    (order,) = story.see(story.listing(), m.HeartbeatMissed("gpu1", "gpu1-a", m.Miss.REFUSED), after=1.0)
    assert isinstance(order, m.LookAtHost)
    story.see(repaired("gpu1", 99))  # nobody hears the answer
    assert story.state("gpu1") is State.REPAIRING
    assert story.given(m.RestartWorker) == []


@settings(
    max_examples=6,
    deadline=None,
    phases=[hypothesis.Phase.explicit, hypothesis.Phase.generate],
    suppress_health_check=list(HealthCheck),
)
@given(seed=st.integers(0, 10_000), fails=st.floats(0, 0.5))
def test_what_is_read_is_what_was_believed(
    tmp_path_factory: pytest.TempPathFactory, seed: int, fails: float
) -> None:
    """A bad night, written down step by step on a disk that fails at times: after each of a few moments the
    journal gives the very belief back, but for what must be seen anew."""
    path = tmp_path_factory.mktemp("replay") / "journal.sqlite"
    night = SimulatedCluster(seed, 6, chances=Chances(0.02, 0.2, 0.2, 0.1))
    taken: list[tuple[Belief, float]] = []
    real = night._deliver

    def deliver(*events: m.Event) -> None:
        real(*events)
        taken.append((night.belief, night.clock.now))

    night._deliver = deliver  # type: ignore[method-assign]
    for name in night.rng.sample(night.workers, 3):
        night.kill(name)
        night.run(night.rng.uniform(1, 20))

    async def write_and_read() -> None:
        before = begin((configured(n) for n in ("head", *night.workers)), taken[0][1])
        blank = before
        clock = [taken[0][1]]
        journal = Journal(path, wall=lambda: clock[0], retry_s=0.0)
        await journal.open(blank, taken[0][1])
        write = journal._file.write

        def moody(writes: object) -> None:
            if night.rng.random() < fails:
                raise sqlite3.OperationalError("disk I/O error")
            write(writes)  # type: ignore[arg-type]

        journal._file.write = moody  # type: ignore[method-assign]
        for at, (belief, now) in enumerate(taken):
            clock[0] = now
            await journal.save(before, belief, (), (), now)
            before = belief
            if journal.trouble is None and at % 25 == 0:
                check(belief, now, blank)
        journal._file.write = write  # type: ignore[method-assign]
        await journal.save(before, before, (), (), taken[-1][1])
        check(*taken[-1], blank)
        await journal.close()

    def check(belief: Belief, now: float, blank: Belief) -> None:
        file = JournalFile(path)
        file.open()
        found = journal_rows.read_all(file, blank, now).belief
        file.close()
        assert found is not None
        assert codec.same(found, belief)
        for name, node in belief.nodes.items():
            assert codec.same(found.nodes[name], node), (name, seed)
        kept = {k: i for k, i in found.incidents.items() if k in belief.incidents}
        assert kept == belief.incidents

    asyncio.run(write_and_read())


async def saved(journal: Journal, story: Story, *events: m.Event) -> None:
    """One step of the story, and its transaction."""
    before = story.belief
    orders = story.see(*events, after=0.1)
    await journal.save(before, story.belief, events, orders, story.now)


async def test_what_a_host_showed_is_kept_with_its_incident(tmp_path: Path) -> None:
    path, story = tmp_path / "journal.sqlite", Story()
    shown = {"files": [{"path": "/x/raylet.err", "tail": "C check failed"}], "kernel": ["10 s ago: Xid 79"]}
    async with opened(path) as journal:
        await journal.open(story.belief, story.now)

        see = partial(saved, journal, story)
        await see(m.HeartbeatMissed("gpu1", "gpu1-a", m.Miss.REFUSED))
        await see(m.HostLooked("gpu1", "head", (), bundle=shown))
        found = await journal.story(1)
        (bundle,) = found["bundles"]
        assert (bundle["node"], bundle["files"], bundle["kernel"]) == (
            "gpu1",
            shown["files"],
            shown["kernel"],
        )
        assert bundle["host"]["pressure"] == {}
        assert [line["kind"] for line in found["history"]][-2:] == ["ordered", "ordered"]
        big = {"files": [{"path": "/x", "tail": "y" * 100_000}], "kernel": []}
        for number in range(20):
            await see(m.HostLooked("gpu1", "head", (), bundle={**big, "number": number}))
        assert (await journal.story(1))["bundles"] == [bundle]  # the first failure's
        assert await journal.story(99) == {"history": [], "bundles": []}
        await see(m.HeartbeatMissed("gpu2", "gpu2-a", m.Miss.REFUSED))
        await see(m.HostLooked("gpu2", "head", (), bundle=big))
    sizes = rows(path, "SELECT count(*), max(length(body)) FROM bundle")
    assert sizes[0][0] == 2
    assert 60_000 < int(str(sizes[0][1])) < 70_000


async def test_what_a_host_showed_before_a_node_came_back_is_no_evidence_of_its_next_failure(
    tmp_path: Path,
) -> None:
    path, story = tmp_path / "journal.sqlite", Story()
    async with opened(path) as journal:
        await journal.open(story.belief, story.now)

        see = partial(saved, journal, story)

        def shown(tail: str) -> dict[str, Any]:
            return {"files": [{"path": "/x", "tail": tail}], "kernel": []}

        await see(m.HeartbeatMissed("gpu1", "gpu1-a", m.Miss.REFUSED))
        lives = (Raylet(7, "gpu1-a"),)
        await see(m.HostLooked("gpu1", "head", lives, asked_about="gpu1-a", bundle=shown("well")))
        await see(m.HeartbeatAnswered("gpu1", "gpu1-a", 1.0), m.TaskRan("gpu1", "gpu1-a"))
        assert story.belief.nodes["gpu1"].state is State.ALIVE
        await see(m.HeartbeatMissed("gpu1", "gpu1-a", m.Miss.REFUSED))
        await see(m.HostLooked("gpu1", "head", (), asked_about="gpu1-a", bundle=shown("last words")))
        (bundle,) = (await journal.story(1))["bundles"]
        assert bundle["files"] == shown("last words")["files"]
