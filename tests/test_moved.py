"""Leaving a SQLite file: what is refused before anything is moved, and what the note beside it says."""

import pytest

from receiver.clock import SystemClock
from receiver.errors import ConfigError, StoreUnavailable
from receiver.stores import open_store
from receiver.stores.moved import Stage, begin_note, note_of, refuse_moved, write_note
from receiver.stores.moving import move

NOWHERE = "postgresql://postgres@127.0.0.1:1/db"


@pytest.fixture
async def path(tmp_path):
    path = tmp_path / "receiver.db"
    async with open_store(f"sqlite:///{path}"):
        return path


async def leave(path, url=NOWHERE):
    await move(path, url, lambda *_: None, SystemClock())


async def test_while_a_server_works_with_the_file_it_is_refused_and_nothing_changes(path):
    async with open_store(f"sqlite:///{path}") as store:
        with pytest.raises(ConfigError, match="1 process: stop every `receiver serve`"):
            await leave(path)
        await store.check_writable()
    assert not note_of(path).exists()


async def test_a_database_that_is_away_is_an_outage_and_the_file_stays_in_use(path):
    with pytest.raises(StoreUnavailable):
        await leave(path)
    async with open_store(f"sqlite:///{path}") as store:
        await store.check_writable()


async def test_a_file_that_is_none_is_a_mistake(tmp_path):
    (tmp_path / "letter.db").write_text("Dear all")
    for name in ("letter.db", "nothing.db"):
        with pytest.raises(ConfigError):
            await leave(tmp_path / name)


@pytest.mark.parametrize(
    ("stage", "words"), [(Stage.COPYING, "run the same `receiver migrate"), (Stage.DONE, "was moved to postgresql://db")]
)
async def test_a_file_that_was_left_is_not_opened_until_its_note_is_deleted(path, stage, words):
    note = begin_note("postgresql://db")
    write_note(path, type(note)(id=note.id, to=note.to, stage=stage))
    with pytest.raises(ConfigError, match=words):
        async with open_store(f"sqlite:///{path}"):
            pass
    note_of(path).unlink()
    async with open_store(f"sqlite:///{path}") as store:
        await store.check_writable()


async def test_a_note_that_is_none_is_named(path):
    note_of(path).write_text("moved")
    with pytest.raises(ConfigError, match=r"receiver\.db\.moved is not what"):
        refuse_moved(path)
