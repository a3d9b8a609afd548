"""Tables of a spec file into values: unknown keys, wrong types and bad syntax, all of them in one go."""

from __future__ import annotations

import difflib
import types
from collections.abc import Callable
from datetime import timedelta
from enum import StrEnum
from functools import cache
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import msgspec

from receiver.errors import Mistake
from receiver.model import MEDIA, Status
from receiver.providers.paths import Candidates, FieldPath, JsonPath, parse_candidates, parse_field, parse_id_paths, parse_path
from receiver.providers.spec import ByMedia, IdPaths, Table
from receiver.units import RateLimit, parse_duration, parse_rate

T = TypeVar("T", bound=Table)
WRONG = object()  # stands for a value that has a mistake
WORDS = {"`str`": "a string", "`int`": "a whole number", "`float`": "a number", "`bool`": "true or false", "`array`": "a list"}
PROVIDER_STATUSES = (Status.QUEUED, Status.PROCESSING, Status.SUCCEEDED, Status.FAILED, Status.CANCELLED)


def build_table(kind: type[T], raw: dict[str, Any], file: str, mistakes: list[Mistake]) -> T | None:
    """Every mistake is added to `mistakes` and left out; None where nothing can be built then."""
    found = _build(kind, raw, "", lambda key, detail: mistakes.append(Mistake(file, key, detail)))
    return None if found is WRONG else found


Report = Callable[[str, str], None]


def _build(kind: Any, raw: Any, key: str, report: Report) -> Any:
    kind = _without_none(kind)
    if kind in PARSERS:
        return _parse(PARSERS[kind], raw, key, report)
    if isinstance(kind, type) and issubclass(kind, Table):
        return _build_struct(kind, raw, key, report)
    if get_origin(kind) is dict:
        return _build_dict(get_args(kind), raw, key, report)
    if get_origin(kind) is tuple:
        return _build_list(get_args(kind)[0], raw, key, report)
    if get_origin(kind) is Literal:
        if raw not in get_args(kind):
            report(key, f"expected one of {', '.join(get_args(kind))}")
            return WRONG
        return raw
    try:
        return msgspec.convert(raw, kind)
    except msgspec.ValidationError as error:
        report(key, _plain(str(error)))
        return WRONG


@cache
def _fields_of(kind: type[Table]) -> tuple[dict[str, Any], list[str]]:
    """The types of its fields, and those that it cannot do without. Slow to find out, and asked for every table of every file."""
    return get_type_hints(kind), [field.name for field in msgspec.structs.fields(kind) if field.required]


def _build_struct(kind: type[Table], raw: Any, key: str, report: Report) -> Any:
    if not isinstance(raw, dict):
        report(key, "expected a table")
        return WRONG
    hints, required = _fields_of(kind)
    for name in raw:
        if name not in hints:
            report(_join(key, name), f"unknown key{did_you_mean(name, hints)}")
    values = {name: _build(hints[name], raw[name], _join(key, name), report) for name in hints if name in raw}
    for name in required:
        if name not in raw:
            report(_join(key, name), "is missing")
    values = {name: value for name, value in values.items() if value is not WRONG}
    return kind(**values) if all(name in values for name in required) else WRONG


def _build_dict(kinds: tuple[Any, ...], raw: Any, key: str, report: Report) -> Any:
    if not isinstance(raw, dict):
        report(key, "expected a table")
        return WRONG
    built: dict[Any, Any] = {}
    for name, value in raw.items():
        left: Any = name
        if isinstance(kinds[0], type) and issubclass(kinds[0], StrEnum):
            allowed = [member.value for member in (PROVIDER_STATUSES if kinds[0] is Status else kinds[0])]
            if name not in allowed:
                report(_join(key, name), f"expected one of {', '.join(allowed)}{did_you_mean(name, allowed)}")
                continue
            left = kinds[0](name)
        built[left] = _build(kinds[1], value, _join(key, name), report)
    return {left: value for left, value in built.items() if value is not WRONG}


def _build_list(kind: Any, raw: Any, key: str, report: Report) -> Any:
    if not isinstance(raw, list):
        report(key, "expected a list")
        return WRONG
    built = tuple(_build(kind, value, f"{key}[{position}]", report) for position, value in enumerate(raw))
    return tuple(value for value in built if value is not WRONG)


def _parse(parser: Callable[[Any], Any], raw: Any, key: str, report: Report) -> Any:
    try:
        return parser(raw)
    except (ValueError, TypeError) as error:
        report(key, str(error))
        return WRONG


def _parse_by_media(raw: Any) -> ByMedia:
    if not isinstance(raw, dict):
        return {"": _parse_positive(raw)}
    for media in raw:
        if media not in (*MEDIA, "default"):
            known = (*MEDIA, "default")
            raise ValueError(f"{media!r} is no medium: expected one of {', '.join(known)}{did_you_mean(media, known)}")
    return {"" if media == "default" else media: _parse_positive(value) for media, value in raw.items()}


def _parse_positive(raw: Any) -> timedelta:
    if isinstance(raw, bool) or not isinstance(raw, str | int | float):
        raise ValueError('expected a duration like "90s" or "5m", or a number of seconds')
    duration = parse_duration(raw)
    if duration <= timedelta(0):
        raise ValueError("expected a duration above zero")
    return duration


def _parse_one_path(raw: Any) -> JsonPath:
    if not isinstance(raw, str):
        raise ValueError("expected a path")
    return parse_path(raw)


def _parse_rate(raw: Any) -> RateLimit:
    if not isinstance(raw, str):
        raise ValueError('expected a rate like "60/m"')
    return parse_rate(raw)


PARSERS: dict[Any, Callable[[Any], Any]] = {
    JsonPath: _parse_one_path,
    Candidates: parse_candidates,
    IdPaths: parse_id_paths,
    FieldPath: parse_field,
    ByMedia: _parse_by_media,
    timedelta: _parse_positive,
    RateLimit: _parse_rate,
}


def did_you_mean(word: str, known: Any) -> str:
    close = difflib.get_close_matches(word, list(known), n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


def _without_none(kind: Any) -> Any:
    if get_origin(kind) in (Union, types.UnionType):
        rest = [argument for argument in get_args(kind) if argument is not type(None)]
        return rest[0] if len(rest) == 1 else kind
    return kind


def _join(key: str, name: str) -> str:
    plain = name.replace("_", "").replace("-", "").isalnum() and name.isascii()
    quoted = name if plain else f'"{name}"'
    return f"{key}.{quoted}" if key else quoted


def _plain(message: str) -> str:
    text = message.split(" - at `$")[0]
    for theirs, ours in WORDS.items():
        text = text.replace(theirs, ours)
    return text[:1].lower() + text[1:]
