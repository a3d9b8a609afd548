"""The note beside a SQLite file that its installation is moving, or has moved, into another database. Nobody works with the file then."""

from __future__ import annotations

import os
import secrets
from enum import StrEnum
from pathlib import Path

import msgspec

from receiver.errors import ConfigError, Mistake


class Stage(StrEnum):
    """How far a move is."""

    COPYING = "copying"
    DONE = "done"


class Moved(msgspec.Struct, frozen=True, kw_only=True):
    """What the note says. `id` stands in the other database too, as long as it is not whole."""

    id: str
    to: str
    stage: Stage = Stage.COPYING


def note_of(path: Path) -> Path:
    return path.with_name(f"{path.name}.moved")


def begin_note(to: str) -> Moved:
    return Moved(id=secrets.token_hex(8), to=to)


def read_note(path: Path) -> Moved | None:
    """None: the file is where it belongs."""
    note = note_of(path)
    try:
        return msgspec.json.decode(note.read_bytes(), type=Moved)
    except FileNotFoundError:
        return None
    except msgspec.DecodeError:
        detail = f"{note} is not what `receiver migrate` wrote: delete it if this installation was never moved"
        raise ConfigError([Mistake("", "store.url", detail)]) from None


def write_note(path: Path, moved: Moved) -> None:
    """Whole or not at all, and on disk."""
    note = note_of(path)
    partial = note.with_name(f"{note.name}.partial")
    with partial.open("wb") as file:
        file.write(msgspec.json.format(msgspec.json.encode(moved)))
        file.flush()
        os.fsync(file.fileno())
    partial.replace(note)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def refuse_moved(path: Path) -> None:
    """ConfigError for a file that was left: two that go on with one installation would do everything twice."""
    moved = read_note(path)
    if moved is None:
        return
    if moved.stage is Stage.DONE:
        detail = f"{path} was moved to {moved.to}: name that; to go on with this file all the same, delete {note_of(path)}"
    else:
        detail = (
            f"{path} is half moved to {moved.to}: run the same `receiver migrate --from … --to …` again, which goes on where it stopped;"
            f" or stay here: delete {note_of(path)}, and the other database"
        )
    raise ConfigError([Mistake("", "store.url", detail)])
