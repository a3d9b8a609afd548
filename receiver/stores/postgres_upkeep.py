"""Leases, shared limits and counters; all of them judged by the database's clock."""

# ruff: noqa: S608  # only names of columns are put into statements; values are bound
from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import NamedTuple

from receiver.errors import Conflict
from receiver.stores.postgres_access import Access, Tx, each, work
from receiver.stores.postgres_rows import BREAKER_TABLE
from receiver.stores.terms import Breaker


@each("upkeep", is_quiet=True)
async def _take_lease(tx: Tx, asked: tuple[str, datetime, timedelta]) -> bool:
    name, now, duration = asked
    return (
        await tx.execute(
            "INSERT INTO leases (name, node, ends_at) VALUES ($1, $2, $3)"
            " ON CONFLICT (name) DO UPDATE SET node = excluded.node, ends_at = excluded.ends_at"
            " WHERE leases.node = excluded.node OR leases.ends_at <= $4 OR NOT EXISTS (SELECT 1 FROM nodes WHERE id = leases.node)",
            name,
            tx.node,
            tx.to_db(now + duration),
            tx.to_db(now),
        )
        == 1
    )


@each("upkeep", is_quiet=True)
async def _drop_lease(tx: Tx, name: str) -> None:
    await tx.execute("DELETE FROM leases WHERE name = $1 AND node = $2", name, tx.node)


class _Wanted(NamedTuple):
    name: str
    now: datetime
    per_second: float
    burst: int
    wanted: int


@work("upkeep", is_quiet=True)
async def _take_tokens(tx: Tx, asked: Sequence[_Wanted]) -> list[tuple[int, datetime]]:
    """Bucket after bucket by name, as every node does."""
    answers = {index: await _take_from(tx, asked[index]) for index in sorted(range(len(asked)), key=lambda index: asked[index].name)}
    return [answers[index] for index in range(len(asked))]


async def _take_from(tx: Tx, asked: _Wanted) -> tuple[int, datetime]:
    """GCRA: the bucket is one instant, when all that was given will have come back."""
    now = tx.to_db(asked.now)
    each_takes = -int(-1_000_000 // asked.per_second)  # microseconds for a token, rounded up: never over the limit
    span = asked.burst * each_takes
    await tx.execute("INSERT INTO buckets (name, full_at) VALUES ($1, $2) ON CONFLICT (name) DO NOTHING", asked.name, now)
    ((found,),) = await tx.look("SELECT full_at FROM buckets WHERE name = $1 FOR UPDATE", asked.name)
    full_at = min(max(found, now), now + span)  # a clock that was set back must not wait for long
    granted = max(min((now + span - full_at) // each_takes, asked.wanted), 0)
    full_at += granted * each_takes
    if granted:
        await tx.execute("UPDATE buckets SET full_at = $2 WHERE name = $1", asked.name, full_at)
    return granted, tx.from_db(max(now, full_at + each_takes - span))


@each("upkeep")
async def _count_failure(tx: Tx, asked: tuple[str, datetime, str]) -> int:
    provider, at, error = asked
    ((failures,),) = await tx.change(
        "INSERT INTO breakers (provider, failures, last_error, last_error_at) VALUES ($1, 1, $2, $3)"
        " ON CONFLICT (provider) DO UPDATE SET failures = breakers.failures + 1, last_error = excluded.last_error,"
        " last_error_at = excluded.last_error_at RETURNING failures",
        provider,
        error,
        tx.to_db(at),
    )
    return int(failures)


@each("upkeep")
async def _leave_alone(tx: Tx, asked: tuple[str, datetime]) -> None:
    provider, until = asked
    await tx.execute(
        "INSERT INTO breakers (provider, failures, open_until) VALUES ($1, 0, $2) ON CONFLICT (provider) DO UPDATE"
        " SET open_until = greatest(breakers.open_until, excluded.open_until)",
        provider,
        tx.to_db(until),
    )


@each("upkeep")
async def _forgive(tx: Tx, provider: str) -> bool:
    return await tx.execute("UPDATE breakers SET failures = 0, open_until = NULL WHERE provider = $1 AND failures > 0", provider) == 1


@work("upkeep")
async def _add_counts(tx: Tx, calls: Sequence[Mapping[tuple[str, str], int]]) -> list[None]:
    sums: dict[tuple[str, str], int] = {}
    for counts in calls:
        for key, count in counts.items():
            sums[key] = sums.get(key, 0) + count
    keys = sorted(sums)
    if keys:
        await tx.execute(
            "INSERT INTO counters (scope, name, count) SELECT * FROM unnest($1::text[], $2::text[], $3::bigint[])"
            " ON CONFLICT (scope, name) DO UPDATE SET count = counters.count + excluded.count",
            [scope for scope, _ in keys],
            [name for _, name in keys],
            [sums[key] for key in keys],
        )
    return [None for _ in calls]


@each("upkeep", is_quiet=True)
async def _check(tx: Tx, _: None) -> None:
    await tx.execute("UPDATE nodes SET checks = checks + 1 WHERE id = $1", tx.node)


class UpkeepPart(Access):
    async def take_lease(self, name: str, now: datetime, duration: timedelta) -> bool:
        return await self.write(_take_lease, (name, now, duration))

    async def drop_lease(self, name: str) -> None:
        await self.write(_drop_lease, name)

    async def take_tokens(self, name: str, now: datetime, per_second: float, burst: int, wanted: int) -> tuple[int, datetime]:
        return await self.write(_take_tokens, _Wanted(name, now, per_second, burst, wanted))

    async def read_breakers(self) -> dict[str, Breaker]:
        shift = self.clock.shift
        rows = await self.read(lambda tx: tx.look(f"SELECT {BREAKER_TABLE.columns} FROM breakers"))
        return {breaker.provider: breaker for breaker in (BREAKER_TABLE.decode(row, shift) for row in rows)}

    async def count_failure(self, provider: str, at: datetime, error: str) -> int:
        return await self.write(_count_failure, (provider, at, error))

    async def leave_alone(self, provider: str, until: datetime) -> None:
        await self.write(_leave_alone, (provider, until))

    async def forgive(self, provider: str) -> bool:
        return await self.write(_forgive, provider)

    async def add_counts(self, counts: Mapping[tuple[str, str], int]) -> None:
        await self.write(_add_counts, dict(counts))

    async def check_writable(self) -> None:
        await self.write(_check, None)

    async def backup(self, path: str) -> None:
        """PostgreSQL has a tool of its own for this, which needs no help of ours."""
        raise Conflict(f"a PostgreSQL database is backed up by its own tools: pg_dump --format=custom --file={path} URL")
