"""Values to PostgreSQL's rows and back: many at once as one JSON text, times by the database's clock."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Generic, TypeVar, get_args

import msgspec

from receiver.stores.rows import BOOL, BREAKERS, CALLS, DELIVERIES, JOBS, NOTICES, POLLS, SUBMISSIONS, TIME, Rows, json_text

T = TypeVar("T", bound=msgspec.Struct)
PLAIN = {int: "bigint", float: "double precision", bytes: "bytea"}


class Table(Generic[T]):
    """How structs stand in a table of PostgreSQL. `shift` is what the database's clock is ahead of ours, in microseconds."""

    def __init__(self, name: str, rows: Rows[T]) -> None:
        self.name, self.rows = name, rows
        annotations = {field.name: field.type for field in msgspec.structs.fields(rows.type)}
        self.typed = ", ".join(f"{field} {_column_type(rows, field, annotations[field])}" for field in rows.fields)
        self._times = [index for index, field in enumerate(rows.fields) if rows.codecs.get(field) is TIME]
        self.columns = rows.columns
        self.width = len(rows.fields)

    def columns_of(self, alias: str) -> str:
        return self.rows.columns_of(alias)

    def source(self, alias: str = "new") -> str:
        """The rows of `pack`."""
        return source(self.typed, alias)

    def insert(self, conflict: str) -> str:
        return f"INSERT INTO {self.name} ({self.columns}) SELECT {self.columns} FROM {self.source()} ORDER BY nth {conflict}"  # noqa: S608

    def encode(self, values: Sequence[T], shift: int) -> Sequence[Sequence[Any]]:
        rows = [self.rows.encode(value) for value in values]
        return [self._shifted(row, shift) for row in rows] if shift else rows

    def pack(self, values: Sequence[T], shift: int) -> str:
        return pack(self.encode(values, shift))

    def decode(self, row: Sequence[Any], shift: int, **beside: Any) -> T:
        """`row` begins with the columns of this table, in their order."""
        return self.rows.decode(self._shifted(row, -shift) if shift else row, **beside)

    def _shifted(self, row: Sequence[Any], by: int) -> Sequence[Any]:
        values = list(row)
        for index in self._times:
            if values[index] is not None:
                values[index] += by
        return values


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


def source(typed: str, alias: str = "new", *, has_bodies: bool = False) -> str:
    """The rows of `pack`, bound as $1, with these columns, each `name type`; `nth` counts them. Their bodies are an array, bound as $2."""
    columns = [column.split(" ", 1) for column in typed.split(", ")]
    picked = ", ".join(f"(packed ->> {number})::{kind} AS {name}" for number, (name, kind) in enumerate(columns))
    arrays, body = (", unnest($2::bytea[])", ", body") if has_bodies else ("", "")
    # the limit tells the planner how many there are: for the hundred that it supposes it may read a whole index in place of a look for each
    return (
        f"(SELECT {picked}{body}, nth FROM ROWS FROM (jsonb_array_elements($1::jsonb){arrays}) WITH ORDINALITY"  # noqa: S608
        f" AS bound (packed{body}, nth) LIMIT jsonb_array_length($1::jsonb)) AS {alias}"
    )


def pack(rows: Sequence[Sequence[Any]]) -> str:
    """Rows as one value to bind: a driver's array for each column takes three times as long to write."""
    text = json_text(rows)
    return json_text([[clean(value) for value in row] for row in rows]) if "\\u0000" in text else text


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
