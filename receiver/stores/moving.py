"""Moving a whole installation from a SQLite file into a PostgreSQL database.

Killed at any moment it goes on where it stopped, when it is run again: a note beside the file and one in the database say so,
and keep servers from both until everything has arrived and was compared.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from msgspec.structs import replace

from receiver.clock import Clock
from receiver.errors import ConfigError, Mistake, StoreUnavailable
from receiver.stores.moved import Moved, Stage, begin_note, note_of, read_note, write_note
from receiver.stores.postgres_connecting import name_of
from receiver.stores.postgres_moving import Shape, Target, open_target
from receiver.stores.sqlite_moving import Source, hold

TABLES = (
    *("submissions", "inputs", "jobs", "job_metadata", "notices", "bodies", "inboxes", "events", "deliveries", "polls", "calls"),
    *("buckets", "breakers", "durations", "counters", "api_keys"),
)
LEFT = ("nodes", "leases", "migrations")  # who works with the file, and what it was made by
Tell = Callable[[str, str, int, int], None]  # what is done, table, rows done, rows there are


async def move(path: Path, url: str, tell: Tell, clock: Clock) -> dict[str, int]:
    """Rows by table, all of them compared. ConfigError where a move cannot begin; StoreUnavailable: run it again."""
    with hold(path) as source:
        found = read_note(path)
        async with open_target(url, clock) as target:
            if found is not None and found.stage is Stage.DONE:
                return await _end_again(source, target, found, path)
            moved = found or begin_note(name_of(url))
            await _begin(path, target, moved, is_new=found is None)
            shapes = [await target.shape(table) for table in TABLES]
            for shape in shapes:
                await _copy(source, target, shape, tell)
            counts = {shape.name: await _compare(source, target, shape, tell) for shape in shapes}
            write_note(path, replace(moved, to=target.name, stage=Stage.DONE))
            await target.finish(shapes)
            return counts


async def _begin(path: Path, target: Target, moved: Moved, *, is_new: bool) -> None:
    write_note(path, replace(moved, to=target.name))
    try:
        await target.begin(moved, str(path), TABLES)
    except (ConfigError, StoreUnavailable):
        if is_new:  # nothing was moved
            note_of(path).unlink()
        raise


async def _copy(source: Source, target: Target, shape: Shape, tell: Tell) -> None:
    there, done = source.count(shape.name), await target.count(shape.name)
    place = target.places.get(shape.name)
    for part in source.parts(shape.name, shape.columns, shape.key, None if place is None else tuple(place)):
        await target.take(shape, shape.convert(part, target.shift), shape.key_of(part[-1]))
        done += len(part)
        tell("copied", shape.name, done, there)


async def _compare(source: Source, target: Target, shape: Shape, tell: Tell) -> int:
    """Every row, on both sides. How many."""
    there, done = source.count(shape.name), 0
    if there != await target.count(shape.name):
        raise _differs(target, shape.name)
    for part in source.parts(shape.name, shape.columns, shape.key):
        rows = shape.convert(part, target.shift)
        if rows != await target.read(shape, shape.key_of(rows[0]), shape.key_of(rows[-1])):
            raise _differs(target, shape.name)
        done += len(rows)
        tell("compared", shape.name, done, there)
    return done


def _differs(target: Target, table: str) -> ConfigError:
    detail = f"{table} in {target.name} are not what was copied: something else writes there; drop the database and make it anew"
    return ConfigError([Mistake("", "--to", detail)])


async def _end_again(source: Source, target: Target, moved: Moved, path: Path) -> dict[str, int]:
    """All had arrived; only the word for it may be missing."""
    if await target.is_begun_by(moved):
        await target.finish([await target.shape(table) for table in TABLES])
    elif target.name != moved.to:
        detail = f"{path} was moved to {moved.to}; to move it once more, delete {note_of(path)}"
        raise ConfigError([Mistake("", "--from", detail)])
    return {table: source.count(table) for table in TABLES}
