"""Migrations: in order, once, whole or not at all, with a copy before."""

from __future__ import annotations

import sqlite3

import pytest

from receiver.errors import ConfigError
from receiver.model import Status
from receiver.stores import open_store
from receiver.stores.migrate import Migration, find_pending, load_migrations, migrate_sqlite, split_statements

ONE = Migration(1, "first", "CREATE TABLE a (x TEXT); -- a comment; with a semicolon\nINSERT INTO a VALUES ('1;2');")
TWO = Migration(2, "second", "ALTER TABLE a ADD COLUMN y TEXT;\nUPDATE a SET y = 'new';")


@pytest.fixture
def path(tmp_path):
    return tmp_path / "receiver.db"


@pytest.fixture
def db(path):
    connection = sqlite3.connect(path, isolation_level=None)
    yield connection
    connection.close()


def test_an_empty_file_gets_all_migrations_in_order_without_a_copy(db, path):
    assert migrate_sqlite(db, path, [ONE, TWO]) == [1, 2]
    assert db.execute("SELECT * FROM a").fetchall() == [("1;2", "new")]
    assert migrate_sqlite(db, path, [ONE, TWO]) == []
    assert [entry.name for entry in path.parent.iterdir() if "before" in entry.name] == []


def test_before_a_migration_of_a_file_with_content_it_is_copied_aside(db, path):
    migrate_sqlite(db, path, [ONE])
    assert migrate_sqlite(db, path, [ONE, TWO]) == [2]
    copy = sqlite3.connect(f"{path}.before-0002")
    assert copy.execute("SELECT * FROM a").fetchall() == [("1;2",)]
    copy.close()


def test_a_migration_that_fails_leaves_nothing_behind_and_can_be_tried_again(db, path):
    migrate_sqlite(db, path, [ONE])
    broken = Migration(2, "second", "ALTER TABLE a ADD COLUMN y TEXT;\nUPDATE nowhere SET y = 'new';")
    with pytest.raises(sqlite3.OperationalError):
        migrate_sqlite(db, path, [ONE, broken])
    assert not db.in_transaction
    assert migrate_sqlite(db, path, [ONE, TWO]) == [2]


def test_a_newer_schema_is_refused(db, path):
    migrate_sqlite(db, path, [ONE, TWO])
    with pytest.raises(ConfigError, match="newer version"):
        migrate_sqlite(db, path, [ONE])


def test_a_migration_changed_after_it_was_applied_is_refused():
    with pytest.raises(ConfigError, match="0001"):
        find_pending({1: "another checksum"}, [ONE], "receiver.db")


def test_triggers_stay_one_statement():
    sql = "CREATE TABLE a (x);\nCREATE TRIGGER t AFTER INSERT ON a BEGIN\n  UPDATE a SET x = 1;\nEND;\n"
    assert [statement.split()[1] for statement in split_statements(sql)] == ["TABLE", "TRIGGER"]


def test_the_migrations_are_numbered_without_gaps():
    assert [migration.number for migration in load_migrations("sqlite")] == list(range(1, len(load_migrations("sqlite")) + 1))


async def test_a_store_from_a_newer_version_is_not_opened(path):
    async with open_store(f"sqlite:///{path}"):
        pass
    with sqlite3.connect(path) as db:
        db.execute("INSERT INTO migrations VALUES (9999, 'from_the_future', 'x')")
    db.close()
    with pytest.raises(ConfigError, match="newer version"):
        async with open_store(f"sqlite:///{path}"):
            pass


def test_no_column_and_no_index_makes_sqlite_build_a_list_for_every_row(db, path):
    migrate_sqlite(db, path, load_migrations("sqlite"))
    assert [name for name, sql in db.execute("SELECT name, sql FROM sqlite_schema WHERE sql IS NOT NULL") if " IN (" in sql] == []


def test_what_jobs_are_final_is_told_as_before_when_its_column_is_made_anew(db, path):
    migrations = load_migrations("sqlite")
    migrate_sqlite(db, path, [migration for migration in migrations if migration.number < 8])
    for number, status in enumerate(Status):
        db.execute(
            "INSERT INTO jobs (id, submission_id, provider, operation, status, outputs, metadata, created_at, updated_at, finished_at,"
            " deadline_at, position, sequence, is_own_verdict)"
            " VALUES (?, 'sub_1', 'elkapi', 'default', ?, '[]', '{}', 1, 2, ?, 9, ?, 0, 0)",
            (f"job_{number}", status.value, 5 if number % 2 else None, number),
        )
    final = "SELECT id, is_final, ended_at FROM jobs ORDER BY id"
    before = db.execute(final).fetchall()
    migrate_sqlite(db, path, migrations)
    assert db.execute(final).fetchall() == before
    assert {is_final for _, is_final, _ in before} == {0, 1}
    assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
