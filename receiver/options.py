"""Reads a handler's options by the struct that the handler declares: a value, or every mistake at once."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from receiver.errors import Mistake


class BadOptions(ValueError):
    """Raised by `__post_init__` of Options or by `__init__` of a handler: by option, what would be right."""

    def __init__(self, mistakes: Mapping[str, str]) -> None:
        self.mistakes = dict(mistakes)
        super().__init__("; ".join(f"{option}: {detail}" for option, detail in self.mistakes.items()))


def read_options(target: Any, raw: Mapping[str, Any], folder: Path, file: str, key: str) -> tuple[Any, list[Mistake]]:
    if not inspect.isclass(target):
        what = "a plain function takes no options; write a class with Options"
        return None, [Mistake(file, f"{key}.{option}", what) for option in raw]
    kind = getattr(target, "Options", None)
    if kind is None:
        return dict(raw), []
    if not (inspect.isclass(kind) and issubclass(kind, msgspec.Struct)):
        return None, [Mistake(file, key, "Options of the handler is not a msgspec.Struct")]
    try:
        mistakes = list(_check_fields(kind, raw, folder, file, key))
        return (None, mistakes) if mistakes else (_convert(raw, kind, folder), [])
    except msgspec.ValidationError as error:
        if isinstance(error.__cause__, BadOptions):
            return None, explain(error.__cause__, file, key)
        return None, [_place(error, file, key)]
    except Exception as error:  # a stranger's annotations
        return None, [Mistake(file, key, f"Options of the handler cannot be read: {describe(error)}")]


def _check_fields(kind: type[msgspec.Struct], raw: Mapping[str, Any], folder: Path, file: str, key: str) -> Iterable[Mistake]:
    # msgspec stops at the first mistake; one field at a time gives them all.
    fields = {field.encode_name: field for field in msgspec.structs.fields(kind)}
    for option in raw:
        if option not in fields:
            hint = did_you_mean(option, list(fields)) or (f"there are {', '.join(fields)}" if fields else "there are none")
            yield Mistake(file, f"{key}.{option}", f"no such option; {hint}")
    for option, known in fields.items():
        if option not in raw:
            if known.required:
                yield Mistake(file, f"{key}.{option}", "is missing")
            continue
        try:
            _convert(raw[option], known.type, folder)
        except msgspec.ValidationError as error:
            yield _place(error, file, f"{key}.{option}")


def _convert(raw: Any, kind: Any, folder: Path) -> Any:
    def from_text(wanted: type, value: Any) -> Any:
        if wanted is Path and isinstance(value, str):
            return folder / value
        raise ValueError("Expected a path in quotes" if wanted is Path else f"An option cannot be a {wanted.__name__}")

    return msgspec.convert(raw, kind, strict=True, dec_hook=from_text)


def _place(error: msgspec.ValidationError, file: str, key: str) -> Mistake:
    detail, _, path = str(error).partition(" - at `$")
    return Mistake(file, key + path.rstrip("`"), detail)


def explain(error: BadOptions, file: str, key: str) -> list[Mistake]:
    return [Mistake(file, f"{key}.{option}", detail) for option, detail in error.mistakes.items()]


def did_you_mean(word: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(word, known, n=1)
    return f'did you mean "{close[0]}"?' if close else ""


def describe(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".rstrip(": ")
