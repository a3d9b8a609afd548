"""Rows that are read as one text each.

Python's module gives the interpreter back and asks for it again with each column of each row. A thread that reads twenty columns beside a
busy loop waits for its turn twenty times; SQLite puts them into one text without it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, Generic, TypeVar

import msgspec

from receiver.stores.rows import DELIVERIES, JOBS, NOTICES, POLLS, SUBMISSIONS, Rows

T = TypeVar("T", bound=msgspec.Struct)

_decode_values = msgspec.json.Decoder(list[Any]).decode


class Packing(Generic[T]):
    """How a struct is read from its table. Numbers with a fraction stand beside the text, where they would lose their last digits."""

    def __init__(self, rows: Rows[T]) -> None:
        self._rows = rows
        real = {field.name for field in msgspec.structs.fields(rows.type) if field.type in (float, float | None)}
        self._beside = [place for place, field in enumerate(rows.fields) if field in real]
        self.width = 1 + len(self._beside)
        """How many columns it takes."""

    def columns(self, table: str, instead: Mapping[str, str] = MappingProxyType({})) -> str:
        """What to select; `instead`: other expressions for some of the columns."""
        values = [instead.get(field, f"{table}.{field}") for field in self._rows.fields]
        packed = ", ".join("NULL" if place in self._beside else value for place, value in enumerate(values))
        return ", ".join([f"json_array({packed})", *(values[place] for place in self._beside)])

    def read(self, row: Sequence[Any], **beside: Any) -> T:
        """Of a row that begins with these columns, and the fields that stand elsewhere."""
        values = _decode_values(row[0])
        for column, place in enumerate(self._beside, 1):
            values[place] = row[column]
        return self._rows.decode(values, **beside)


PACKED_SUBMISSIONS = Packing(SUBMISSIONS)
PACKED_JOBS = Packing(JOBS)
PACKED_NOTICES = Packing(NOTICES)
PACKED_DELIVERIES = Packing(DELIVERIES)
PACKED_POLLS = Packing(POLLS)
