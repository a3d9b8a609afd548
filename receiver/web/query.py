"""Query parameters: declared once, for reading them and for the OpenAPI document."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any
from urllib.parse import parse_qsl

from receiver.errors import Invalid

MAX_TEXT = 1024
Query = dict[str, Any]
"""What a request asked for, by parameter name; each declared parameter is there."""


@dataclass(frozen=True)
class Parameter:
    """One query parameter. `parse` raises ValueError with what would be right. A name that ends in `.KEY` takes any key there."""

    name: str
    description: str
    schema: dict[str, Any]
    parse: Callable[[str], Any]
    default: Any = None

    @property
    def prefix(self) -> str | None:
        return self.name.removesuffix("KEY") if self.name.endswith(".KEY") else None


def read_query(raw: bytes, parameters: Sequence[Parameter]) -> Query:
    """The values of a query string; Invalid with everything that is wrong with it."""
    query: Query = {parameter.name: {} if parameter.prefix else parameter.default for parameter in parameters}
    errors: list[dict[str, str]] = []
    seen: set[str] = set()
    for name, text in split_query(raw):
        parameter = next((each for each in parameters if _takes(each, name)), None)
        if parameter is None:
            known = ", ".join(each.name for each in parameters) or "none"
            errors.append({"parameter": name, "detail": f"there is no such parameter here; there are: {known}"})
        elif name in seen:
            errors.append({"parameter": name, "detail": "is given more than once"})
        else:
            seen.add(name)
            try:
                value = parameter.parse(text)
            except ValueError as error:
                errors.append({"parameter": name, "detail": str(error)})
                continue
            if parameter.prefix is None:
                query[name] = value
            else:
                query[parameter.name][name.removeprefix(parameter.prefix)] = value
    if errors:
        raise Invalid(errors)
    return query


def split_query(raw: bytes) -> list[tuple[str, str]]:
    try:
        return parse_qsl(raw.decode("ascii"), keep_blank_values=True, errors="strict", max_num_fields=100)
    except UnicodeDecodeError:
        raise Invalid([{"parameter": "", "detail": "the query string is not percent-encoded UTF-8"}]) from None
    except ValueError:
        raise Invalid([{"parameter": "", "detail": "there are too many parameters"}]) from None


def _takes(parameter: Parameter, name: str) -> bool:
    return name == parameter.name if parameter.prefix is None else name.startswith(parameter.prefix)


def parse_text(text: str) -> str:
    if not text:
        raise ValueError("is empty")
    return parse_any_text(text)


def parse_any_text(text: str) -> str:
    if len(text) > MAX_TEXT or "\0" in text:
        raise ValueError(f"is not a text of up to {MAX_TEXT} characters without NUL")
    return text


def parse_limit(text: str) -> int:
    if not re.fullmatch("[0-9]{1,4}", text) or not 1 <= int(text) <= 1000:
        raise ValueError("is not a whole number from 1 to 1000")
    return int(text)


def parse_seconds(text: str) -> float:
    if not re.fullmatch(r"[0-9]+(\.[0-9]+)?", text):
        raise ValueError("is not a number of seconds from 0 to 60")
    return min(float(text), 60.0)


def parse_flag(text: str) -> bool:
    if text not in {"true", "false"}:
        raise ValueError("is neither true nor false")
    return text == "true"


RFC3339 = re.compile(r"(\d{4}-\d\d-\d\d)[Tt](\d\d:\d\d:\d\d(?:\.\d{1,12})?)([Zz]|[+-]\d\d:\d\d)", re.ASCII)


def parse_time(text: str) -> datetime:
    """RFC 3339, also where the `+` of an offset came unescaped and so as a space."""
    found = RFC3339.fullmatch(text.replace(" ", "+"))
    try:
        if found is None:
            raise ValueError
        return datetime.fromisoformat(f"{found[1]}T{found[2]}{found[3].upper()}").astimezone(UTC)
    except (ValueError, OverflowError):
        raise ValueError("is not a time as of RFC 3339, like 2026-01-31T12:00:00Z") from None


def text(name: str, description: str) -> Parameter:
    return Parameter(name, description, {"type": "string", "minLength": 1, "maxLength": MAX_TEXT}, parse_text)


def time(name: str, description: str) -> Parameter:
    return Parameter(name, description, {"type": "string", "format": "date-time"}, parse_time)


def flag(name: str, description: str, default: bool) -> Parameter:
    return Parameter(name, description, {"type": "boolean", "default": default}, parse_flag, default)


def choice(name: str, description: str, kind: type[StrEnum]) -> Parameter:
    names = [str(member) for member in kind]

    def parse_choice(given: str) -> StrEnum:
        if given not in names:
            raise ValueError(f"is none of {', '.join(names)}")
        return kind(given)

    return Parameter(name, description, {"type": "string", "enum": names}, parse_choice)


LIMIT = Parameter("limit", "How many at most.", {"type": "integer", "minimum": 1, "maximum": 1000, "default": 100}, parse_limit, 100)
CURSOR = text("cursor", "Where the page before ended: its `next_cursor`.")
