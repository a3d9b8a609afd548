"""Spec files in: every one checked completely, or every mistake at once with its file and key."""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import receiver
from receiver.errors import ConfigError, Mistake
from receiver.providers.check import check_table
from receiver.providers.shape import build_table
from receiver.providers.spec import READ_CHANNELS, ReadChannel, Reading, ReadTable, Spec, SpecTable


def shipped_folder() -> Path:
    """Where the specs are that come with Receiver, in a checkout and installed."""
    package = Path(receiver.__file__).parent
    inside = package / "config" / "providers"
    return inside if inside.is_dir() else package.parent / "config" / "providers"


def load_specs(folders: Sequence[Path] = ()) -> dict[str, Spec]:
    """The shipped specs and those of the folders, by name; a later folder replaces an earlier spec. ConfigError with every mistake."""
    files: dict[str, Path] = {}
    mistakes: list[Mistake] = []
    for folder in (shipped_folder(), *folders):
        if not folder.is_dir():
            mistakes.append(Mistake(str(folder), "", "there is no such folder; `provider_specs` names folders with spec files"))
            continue
        files.update({file.stem: file for file in sorted(folder.glob("[!.]*.toml"))})
    specs: dict[str, Spec] = {}
    for name, file in files.items():
        try:
            specs[name] = parse_spec(file.read_text(encoding="utf-8"), str(file))
        except ConfigError as error:
            mistakes.extend(error.mistakes)
        except (OSError, UnicodeDecodeError) as error:
            mistakes.append(Mistake(str(file), "", f"cannot be read: {error}"))
    if mistakes:
        raise ConfigError(mistakes)
    return specs


def parse_spec(text: str, file: str) -> Spec:
    """A spec out of the text of its file; the file's name without `.toml` is the provider's name. ConfigError with every mistake."""
    try:
        raw = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise ConfigError([Mistake(file, "", f"is not TOML: {error}")]) from None
    mistakes: list[Mistake] = []
    table = build_table(SpecTable, raw, file, mistakes)
    if table is None:
        raise ConfigError(mistakes)
    name, readings = Path(file).stem, resolve_readings(table)
    wrong = [mistake.key for mistake in mistakes]  # what was left out for a mistake is not missed once more
    mistakes.extend(Mistake(file, key, detail) for key, detail in check_table(name, table, readings) if not _touches(key, wrong))
    if mistakes:
        raise ConfigError(mistakes)
    statuses = {word.strip().casefold(): status for status, words in table.status.items() for word in words}
    return Spec(name=name, file=file, table=table, statuses=statuses, readings=readings)


def _touches(key: str, others: Sequence[str]) -> bool:
    return any(key == other or key.startswith((f"{other}.", f"{other}[")) or other.startswith((f"{key}.", f"{key}[")) for other in others)


def resolve_readings(table: SpecTable) -> dict[tuple[str, ReadChannel], Reading]:
    """For every operation and kind of answer, the narrowest that the file says about each field."""
    tables: dict[str, tuple[ReadTable, ...]] = {"": (table.read,)}
    tables.update({name: (table.read, operation.read) for name, operation in table.operations.items()})
    return {
        (name, channel): _merge([part for read in reads for part in (read, _part(read, channel))])
        for name, reads in tables.items()
        for channel in READ_CHANNELS
    }


def _part(table: ReadTable, channel: ReadChannel) -> Reading:
    part: Reading | None = getattr(table, channel)
    return part or Reading()


def _merge(layers: Sequence[Reading]) -> Reading:
    said: dict[str, Any] = {}
    for layer in layers:
        for name in Reading.__struct_fields__:
            value = getattr(layer, name)
            if value is not None:
                said[name] = value
    return Reading(**said)
