"""Adding up what jobs cost, in groups: one statement for both databases, and the sums that are put together from several answers."""

# ruff: noqa: S608  # only names of columns and fixed conditions are put into statements; values are bound
from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec

from receiver.stores.listings import Statement, job_terms
from receiver.stores.terms import REFUNDED, CostSum, JobFilter

DAY = timedelta(days=1)
DAY_MICROS = 86_400_000_000
DIGITS = 9  # behind the point: what is beyond is floating point's, not the provider's
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

Key = tuple[str | None, ...]


class Dialect(msgspec.Struct, frozen=True):
    """How a database looks into JSON. In `metadata`, `?` stands for the key."""

    amount: str
    unit: str
    metadata: str


def select_costs(filter: JobFilter, by: Sequence[str], limit: int, dialect: Dialect, shift: int = 0) -> Statement:
    """Rows of the groups' fields, then unit, amount and jobs; at most one more than `limit`."""
    names = [f"field_{number}" for number in range(len(by))]
    fields: list[str] = []
    values: list[Any] = []
    for name, field in zip(names, by, strict=True):
        if field == "day":
            fields.append(f"(job.created_at - ?) / {DAY_MICROS} AS {name}")
            values.append(shift)
        elif field.startswith("metadata."):
            fields.append(f"{dialect.metadata} AS {name}")
            values.append(field.removeprefix("metadata."))
        else:
            fields.append(f"job.{field} AS {name}")
    source, _, terms, wanted = job_terms(filter, shift)
    refunded = ", ".join(f"'{status}'" for status in REFUNDED)
    terms = [*terms, "job.cost IS NOT NULL", f"job.status NOT IN ({refunded})"]
    columns = ", ".join([*fields, f"{dialect.unit} AS unit", f"{dialect.amount} AS amount"])
    # The limit is none: it keeps SQLite from going through a whole index in the order of the groups.
    paid = f"SELECT {columns} FROM {source} WHERE {' AND '.join(terms)} LIMIT {2**63 - 1}"
    groups = ", ".join([*names, "unit"])
    return f"SELECT {groups}, sum(amount), count(*) FROM ({paid}) AS paid GROUP BY {groups} LIMIT ?", [*values, *wanted, limit + 1]


class Sums:
    """Groups that add up; `is_over` once there are more than `limit`."""

    def __init__(self, by: Sequence[str], limit: int) -> None:
        self._shows: list[Callable[[Any], str | None]] = [show_day if field == "day" else show_text for field in by]
        self._limit = limit
        self._sums: dict[tuple[Key, str], tuple[float, int]] = {}

    @property
    def is_over(self) -> bool:
        return len(self._sums) > self._limit

    def add(self, rows: Iterable[Sequence[Any]]) -> None:
        for *group, unit, amount, jobs in rows:
            key = tuple(show(value) for show, value in zip(self._shows, group, strict=True)), unit
            known_amount, known_jobs = self._sums.get(key, (0.0, 0))
            self._sums[key] = known_amount + float(amount), known_jobs + jobs

    def result(self) -> list[CostSum] | None:
        """As `add_up_costs` promises."""
        if self.is_over:
            return None
        found = [
            CostSum(group=group, unit=unit, amount=round(amount, DIGITS), jobs=jobs) for (group, unit), (amount, jobs) in self._sums.items()
        ]
        return sorted(found, key=lambda each: (-each.amount, each.unit, [word or "" for word in each.group]))


def show_text(value: Any) -> str | None:
    return None if value is None else str(value)


def show_day(value: int) -> str:
    """The date in UTC of a count of days since 1970."""
    return (EPOCH + timedelta(days=value)).date().isoformat()
