"""Rows that SQLite gives as one text: whatever stood in the columns comes back as it was."""

from __future__ import annotations

import sqlite3
from contextlib import closing

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from receiver.stores.rows import Rows
from receiver.stores.sqlite_packing import Packing


class Thing(msgspec.Struct):
    id: str
    share: float | None
    is_there: bool
    words: str | None
    count: int
    weight: float


ROWS = Rows(Thing)
PACKING = Packing(ROWS)
WORDS = st.text(st.characters(codec="utf-8"))
REALS = st.floats(allow_nan=False, allow_infinity=False)
THINGS = st.builds(Thing, WORDS, st.none() | REALS, st.booleans(), st.none() | WORDS, st.integers(-(2**63), 2**63 - 1), REALS)


def keep(db, thing):
    db.execute("CREATE TABLE things (id TEXT, share REAL, is_there INTEGER, words TEXT, count INTEGER, weight REAL) STRICT")
    db.execute(f"INSERT INTO things ({ROWS.columns}) VALUES ({ROWS.marks})", ROWS.encode(thing))


@given(THINGS)
def test_a_row_read_as_one_text_is_the_row_that_was_written(thing):
    with closing(sqlite3.connect(":memory:")) as db:
        keep(db, thing)
        (row,) = db.execute(f"SELECT {PACKING.columns('things')}, 'more' FROM things")
        assert PACKING.read(row) == thing
        assert row[PACKING.width :] == ("more",)


def test_other_expressions_stand_in_for_columns():
    with closing(sqlite3.connect(":memory:")) as db:
        keep(db, Thing("a", 0.1, True, None, 1, 0.3))
        (row,) = db.execute(f"SELECT {PACKING.columns('things', {'count': 'things.count + 1', 'weight': '0.5'})} FROM things")
        assert PACKING.read(row) == Thing("a", 0.1, True, None, 2, 0.5)
