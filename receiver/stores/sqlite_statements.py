"""Few statements over many rows."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from itertools import chain
from typing import Any

ROWS_TOGETHER = (32, 16, 8, 4, 2, 1)  # in one statement; bodies are copied when they are bound, so not more
UPDATED_TOGETHER = (1, 2, 4, 8, 16, 32, 64)  # filled up with rows that find nothing, each of which costs a tenth of one that does


class Insert:
    """Writes many rows by few statements: after each one its thread waits for its turn among the others."""

    def __init__(self, into: str, columns: str, conflict: str) -> None:
        row = f"({', '.join('?' * len(columns.split(',')))})"
        self._statements = [
            (size, f"INSERT INTO {into} ({columns}) VALUES {', '.join([row] * size)} {conflict}")  # noqa: S608  # names only
            for size in ROWS_TOGETHER
        ]

    def write(self, db: sqlite3.Connection, rows: Sequence[tuple[Any, ...]]) -> None:
        done = 0
        for size, statement in self._statements:
            while len(rows) - done >= size:
                db.execute(statement, tuple(chain.from_iterable(rows[done : done + size])))
                done += size


class Update:
    """Changes many rows by few statements. The first column tells which row; `change` and `where` know them all as `new.COLUMN`."""

    def __init__(self, table: str, columns: Sequence[str], change: str, where: str = "true") -> None:
        key, row = columns[0], f"({', '.join('?' * len(columns))})"
        self._statements = {
            size: f"WITH new ({', '.join(columns)}) AS (VALUES {', '.join([row] * size)})"  # noqa: S608  # names only
            f" UPDATE {table} SET {change} FROM new WHERE {table}.{key} = new.{key} AND {where}"
            for size in UPDATED_TOGETHER
        }
        self._nobody = (None,) * len(columns)  # finds no row

    def write(self, db: sqlite3.Connection, rows: Sequence[tuple[Any, ...]]) -> None:
        most = UPDATED_TOGETHER[-1]
        for first in range(0, len(rows), most):
            part = rows[first : first + most]
            size = next(size for size in UPDATED_TOGETHER if size >= len(part))
            values = chain(chain.from_iterable(part), self._nobody * (size - len(part)))
            db.execute(self._statements[size], tuple(values))
