"""The little language that finds values in JSON: `output.media_url[]`, `generations[].generation_id`, `images[0].url`."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec

EVERY = "*"
STEP = re.compile(r"(?P<name>[A-Za-z0-9_$@ -]+|\*)|(?P<index>\[\d{0,6}\])")
FIELD = re.compile(r"[A-Za-z0-9_$@-]+(\.[A-Za-z0-9_$@-]+)*")
ID_SEPARATOR = "/"  # between the parts of an id that is made of several


class JsonPath(msgspec.Struct, frozen=True):
    """Where something stands in a JSON value. A step is a member's name, `*` for every member, a position, or None for every element
    of a list."""

    text: str
    steps: tuple[str | int | None, ...]

    def find(self, value: Any) -> list[Any]:
        """Everything that stands there, in order; null counts as nothing."""
        for depth, step in enumerate(self.steps):
            if not isinstance(step, str) or step == EVERY:
                return [found for found in _walk(value, self.steps[depth:]) if found is not None]
            if not isinstance(value, dict):  # down the names that nearly every path is made of there is one value at most
                return []
            value = value.get(step)
        return [] if value is None else [value]


Candidates = tuple[JsonPath, ...]  # the first one that finds something counts
IdPath = tuple[JsonPath, ...]  # one path, or several that make one id


class FieldPath(msgspec.Struct, frozen=True):
    """Where a value is put in a body: `callback_url`, `webhook.url`."""

    text: str
    names: tuple[str, ...]

    def put(self, body: dict[str, Any], value: Any) -> None:
        for name in self.names[:-1]:
            inner = body.get(name)
            if not isinstance(inner, dict):
                inner = body[name] = {}
            body = inner
        body[self.names[-1]] = value


def parse_path(text: str) -> JsonPath:
    """Raises ValueError with what would be right."""
    steps: list[str | int | None] = []
    at = 0
    while at < len(text):
        if steps and text[at] == ".":
            at += 1
            name = STEP.match(text, at)
            if name is None or name["name"] is None:
                raise ValueError(f"{text!r} is no path: a name must follow the dot at position {at}")
        found = STEP.match(text, at)
        if found is None or (found["name"] is not None and steps and text[at - 1] != "."):
            raise ValueError(f"{text!r} is no path: names with dots between, [] for every element, [0] for one, as in `output.urls[]`")
        if found["name"] is not None:
            steps.append(found["name"])
        else:
            inside = found["index"][1:-1]
            steps.append(int(inside) if inside else None)
        at = found.end()
    if not steps:
        raise ValueError("a path must not be empty")
    return JsonPath(text, tuple(steps))


def parse_candidates(raw: Any) -> Candidates:
    """One path, or a list of them."""
    return tuple(parse_path(text) for text in _texts(raw))


def parse_id_paths(raw: Any) -> tuple[IdPath, ...]:
    """Like `parse_candidates`; `a + b` is one id made of two values."""
    return tuple(tuple(parse_path(part.strip()) for part in text.split("+")) for text in _texts(raw))


def parse_field(raw: Any) -> FieldPath:
    if not isinstance(raw, str) or not FIELD.fullmatch(raw):
        raise ValueError(f"{raw!r} is no field: write the names from the outside in with dots between, as in `webhook.url`")
    return FieldPath(raw, tuple(raw.split(".")))


def find_all(candidates: Candidates | None, value: Any) -> list[Any]:
    """What the first candidate that finds anything finds."""
    for path in candidates or ():
        if found := path.find(value):
            return found
    return []


def _texts(raw: Any) -> Sequence[str]:
    texts = [raw] if isinstance(raw, str) else raw
    if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
        raise ValueError("expected a path or a list of paths")
    return texts


def _walk(value: Any, steps: tuple[str | int | None, ...]) -> Iterator[Any]:
    if not steps:
        yield value
        return
    step, rest = steps[0], steps[1:]
    if step is None:
        # Providers that promise a list send the single thing now and then.
        for element in value if isinstance(value, list) else [value]:
            yield from _walk(element, rest)
    elif isinstance(step, int):
        if isinstance(value, list) and step < len(value):
            yield from _walk(value[step], rest)
    elif step == EVERY and isinstance(value, dict):
        for member in value.values():
            yield from _walk(member, rest)
    elif isinstance(value, dict) and step in value:
        yield from _walk(value[step], rest)
