"""Values to PostgreSQL's rows and back: many at once as arrays of columns, times by the database's clock."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Generic, TypeVar, get_args

import msgspec

from receiver.stores.rows import BOOL, BREAKERS, CALLS, DELIVERIES, JOBS, NOTICES, POLLS, SUBMISSIONS, TIME, Rows

T = TypeVar("T", bound=msgspec.Struct)
NOTHING: list[Any] = []  # a column of nulls: `unnest` fills it up, and the driver need not look at each of them
PLAIN = {int: "bigint", float: "double precision", bytes: "bytea"}


class Table(Generic[T]):
    """How structs stand in a table of PostgreSQL. `shift` is what the database's clock is ahead of ours, in microseconds."""

    def __init__(self, name: str, rows: Rows[T]) -> None:
        self.name, self.rows = name, rows
        annotations = {field.name: field.type for field in msgspec.structs.fields(rows.type)}
        self.types = [_column_type(rows, field, annotations[field]) for field in rows.fields]
        self._times = [index for index, field in enumerate(rows.fields) if rows.codecs.get(field) is TIME]
        self.columns = rows.columns
        self.width = len(rows.fields)

    def columns_of(self, alias: str) -> str:
        return self.rows.columns_of(alias)

    def unnest(self, alias: str = "new") -> str:
        """The rows of `arrays` as a source, bound from $1 on; `nth` counts them."""
        arrays = ", ".join(f"${number}::{kind}[]" for number, kind in enumerate(self.types, 1))
        return f"unnest({arrays}) WITH ORDINALITY AS {alias} ({self.columns}, nth)"

    def insert(self, conflict: str) -> str:
        return f"INSERT INTO {self.name} ({self.columns}) SELECT {self.columns} FROM {self.unnest()} ORDER BY nth {conflict}"  # noqa: S608

    def arrays(self, values: Sequence[T], shift: int) -> list[list[Any]]:
        rows = [self.rows.encode(value) for value in values]
        columns = [list(column) for column in zip(*rows, strict=True)] if rows else [[] for _ in self.types]
        if shift:
            for index in self._times:
                columns[index] = [None if at is None else at + shift for at in columns[index]]
        return [column if column.count(None) < len(column) else NOTHING for column in columns]

    def decode(self, row: Sequence[Any], shift: int, **beside: Any) -> T:
        """`row` begins with the columns of this table, in their order."""
        if shift:
            values = list(row)
            for index in self._times:
                if values[index] is not None:
                    values[index] -= shift
            row = values
        return self.rows.decode(row, **beside)


def _column_type(rows: Rows[Any], field: str, annotation: Any) -> str:
    codec = rows.codecs.get(field)
    if codec is TIME:
        return "bigint"
    if codec is BOOL:
        return "boolean"
    if codec is not None:
        return "text"
    kinds = get_args(annotation) or (annotation,)
    return next((PLAIN[kind] for kind in kinds if kind in PLAIN), "text")


SUBMISSION_TABLE = Table("submissions", SUBMISSIONS)
JOB_TABLE = Table("jobs", JOBS)
NOTICE_TABLE = Table("notices", NOTICES)
DELIVERY_TABLE = Table("deliveries", DELIVERIES)
POLL_TABLE = Table("polls", POLLS)
CALL_TABLE = Table("calls", CALLS)
BREAKER_TABLE = Table("breakers", BREAKERS)


def clean(value: Any) -> Any:
    """The one character that PostgreSQL's text cannot hold is replaced; strangers choose ids and words."""
    if type(value) is str:
        return value.replace("\0", "\ufffd")
    if type(value) is list and "\0" in "".join([one for one in value if type(one) is str]):
        return [clean(one) for one in value]
    return value


def numbered(statement: str) -> str:
    """`?` to `$1`, `$2`, …"""
    first, *rest = statement.split("?")
    return first + "".join(f"${number}{part}" for number, part in enumerate(rest, 1))
