"""What a head kept on disk: whose it is, why it cannot be used, and that it is put aside and not wiped."""

import time
from pathlib import Path

import pytest

from bootstrap import store

OWNER = store.owner("mine", "10.0.0.1:6379")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A store as a head leaves it."""
    made = tmp_path / "gcs"
    store.prepare(made, OWNER)
    (made / "store" / "session_name").write_text("session_1")
    (made / "store" / "tables").mkdir()
    return made


def test_nothing_is_there_before_the_first_head(tmp_path: Path) -> None:
    assert not store.look(tmp_path / "gcs", OWNER).there
    store.prepare(tmp_path / "gcs", OWNER)
    assert not store.look(tmp_path / "gcs", OWNER).there


def test_only_its_owner_may_enter(folder: Path) -> None:
    assert store.look(folder, OWNER).usable
    assert [place.stat().st_mode & 0o777 for place in (folder, folder / "store")] == [0o700, 0o700]


@pytest.mark.parametrize(
    ("other", "word"),
    [
        (store.owner("theirs", "10.0.0.1:6379"), "cluster mine, not theirs"),
        (store.owner("mine", "10.0.0.2:6379"), "gcs_address 10.0.0.1:6379, not 10.0.0.2:6379"),
    ],
)
def test_a_foreign_store_is_named(folder: Path, other: dict[str, str], word: str) -> None:
    seen = store.look(folder, other)
    assert seen.there
    assert not seen.usable
    assert word in (seen.problem or "")


@pytest.mark.parametrize("text", ["", "no json", "[]", None])
def test_a_store_without_its_note_is_not_used(folder: Path, text: str | None) -> None:
    note = folder / "made-for.json"
    note.unlink() if text is None else note.write_text(text)
    assert "which cluster" in (store.look(folder, OWNER).problem or "")


def test_a_store_without_a_session_is_not_used(folder: Path) -> None:
    (folder / "store" / "session_name").write_text("\n")
    assert "session" in (store.look(folder, OWNER).problem or "")


def test_what_is_put_aside_is_kept_whole_and_the_oldest_go(folder: Path) -> None:
    names = []
    for second in range(store.KEPT + 2):
        store.prepare(folder, OWNER)
        (folder / "store" / "mark").write_text(str(second))
        names.append(store.set_aside(folder, second))
    assert not folder.exists()
    kept = sorted(folder.parent.glob("gcs.set-aside-*"))
    assert kept == names[2:]
    assert [(one / "store" / "mark").read_text() for one in kept] == ["2", "3", "4"]


def test_two_in_one_second_do_not_meet(folder: Path) -> None:
    first = store.set_aside(folder, 1.0)
    store.prepare(folder, OWNER)
    assert store.set_aside(folder, 1.0) != first


def _says(folder: Path, text: str) -> Path:
    temp = folder.parent / "ray"
    logs = temp / "session_1" / "logs"
    logs.mkdir(parents=True)
    (logs / "gcs_server.out").write_text(text)
    return temp


def test_damage_is_what_rocksdb_calls_so(folder: Path) -> None:
    temp = _says(folder, "x\nFailed to open RocksDB at /s: Corruption: bad magic number\n")
    assert "Corruption: bad magic" in (store.damage(folder, str(temp), 0) or "")
    assert store.damage(folder, str(temp), time.time() + 60) is None  # of an earlier start


def test_a_full_disk_is_no_damage(folder: Path) -> None:
    temp = _says(folder, "Corruption: after\nIO error: No space left on device\n")
    assert store.damage(folder, str(temp), 0) is None


def test_a_folder_that_cannot_be_made_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "gcs").write_text("")
    with pytest.raises(FileExistsError):
        store.prepare(tmp_path / "gcs", OWNER)


def test_the_log_of_a_head_that_went_on_in_its_session_has_a_number(folder: Path) -> None:
    """Ray does not write to a log that is there: beside the first one, of a head that was well, come more."""
    temp = _says(folder, "well\n")
    (temp / "session_1" / "logs" / "gcs_server.2.err").write_text("Corruption: CURRENT file corrupted\n")
    assert "CURRENT file" in (store.damage(folder, str(temp), 0) or "")
