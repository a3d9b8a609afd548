"""Reads a TOML table key by key: fills in `${NAME}`, collects every mistake, and knows afterwards which keys nobody asked for."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import msgspec

from receiver.errors import Mistake

T = TypeVar("T")

FILE_LIMIT = 1024 * 1024
_PLACE = re.compile(r"\$\$\{|\$\{([^}]*)(\}?)")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_USER = re.compile(r"://.*@")
_PASSWORD = re.compile(r"(password=)[^&]*")
_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """A table of the configuration; what `hidden` names never shows in its `repr`."""

    hidden: ClassVar[tuple[str, ...]] = ()

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        pairs = [(field, getattr(self, field)) for field in self.__struct_fields__]
        return [(field, "***" if value and field in self.hidden else value) for field, value in pairs]

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{field}={value!r}' for field, value in self.__rich_repr__())})"


class Filled(str):
    """Text into which something was filled in; `parts` are what came from outside."""

    __slots__ = ("parts",)
    parts: tuple[str, ...]


class Reading:
    """One load: where values come from, and what was found on the way."""

    def __init__(self, file: str, environ: Mapping[str, str], folder: Path) -> None:
        self.file, self.environ, self.folder = file, environ, folder
        self.mistakes: list[Mistake] = []
        self.secrets: list[str] = []  # what was filled into secret values

    def add(self, key: str, detail: str) -> None:
        self.mistakes.append(Mistake(self.file, key, detail))

    def is_clean(self, *keys: str) -> bool:
        """Nothing was wrong at these keys or below them."""
        return not any(mistake.key == key or mistake.key.startswith((f"{key}.", f"{key}[")) for mistake in self.mistakes for key in keys)

    def fill(self, key: str, value: Any) -> Any:
        """The value with every `${…}` in its strings replaced; what was filled in is not looked at again."""
        if isinstance(value, dict):
            return {name: self.fill(join(key, name), inner) for name, inner in value.items()}
        if isinstance(value, list):
            return [self.fill(f"{key}[{index}]", inner) for index, inner in enumerate(value)]
        if not isinstance(value, str):
            return value
        parts: list[str] = []

        def replace(match: re.Match[str]) -> str:
            if match[1] is None:
                return "${"
            try:
                part = self._look_up(match[1], closed=bool(match[2]))
            except ValueError as error:
                self.add(key, str(error))
                return ""
            parts.append(part)
            return part

        text = Filled(_PLACE.sub(replace, value))
        text.parts = tuple(parts)
        return text if parts else str(text)

    def _look_up(self, name: str, *, closed: bool) -> str:
        if not closed:
            raise ValueError('has "${" without "}"; write "$${" for a literal "${"')
        if name.startswith("file:"):
            return self._read_file(name.removeprefix("file:"))
        if not _NAME.fullmatch(name):
            raise ValueError('has a "${…}" that is neither "${NAME}" nor "${file:PATH}"; write "$${" for a literal "${"')
        value = self.environ.get(name)
        if not value:
            raise ValueError(f"the environment variable {name} is {'not set' if value is None else 'empty'}")
        if any("\ud800" <= char <= "\udfff" for char in value):
            raise ValueError(f"the environment variable {name} is not UTF-8")
        return value

    def _read_file(self, name: str) -> str:
        path = self.folder / name
        try:
            with path.open("rb") as stream:
                data = stream.read(FILE_LIMIT + 1)
            text = data.decode()
        except UnicodeDecodeError:
            raise ValueError(f"the file {path} is not UTF-8") from None
        except (OSError, ValueError) as error:
            raise ValueError(f"the file {path} cannot be read: {getattr(error, 'strerror', None) or error}") from None
        if len(data) > FILE_LIMIT:
            raise ValueError(f"the file {path} is over 1 MiB")
        text = text.removesuffix("\n").removesuffix("\r") if text.endswith("\n") else text
        if not text:
            raise ValueError(f"the file {path} is empty")
        return text


class Table:
    """One table of the file. Every key is taken once; `close` reports the rest as unknown."""

    def __init__(self, reading: Reading, values: Mapping[str, Any], path: str = "") -> None:
        self.reading, self.path = reading, path
        self._values = dict(values)
        self._known: list[str] = []

    def key(self, name: str) -> str:
        return join(self.path, name)

    def has(self, name: str) -> bool:
        return name in self._values

    def has_table(self, name: str) -> bool:
        return isinstance(self._values.get(name), dict)

    def know(self, *names: str) -> None:
        """These keys belong here, although they are read elsewhere."""
        self._known += names

    def raw(self, name: str) -> Any:
        """The value as written, taken; None if it is not there."""
        self._known.append(name)
        return self._values.pop(name, None)

    def take(self, name: str, parse: Callable[[Any], T], default: T, *, secret: bool = False) -> T:
        """The parsed value; the default if it is not there or wrong (then a mistake is kept)."""
        value = self.raw(name)
        return default if value is None else self._parse(self.key(name), value, parse, default, secret=secret)

    def take_required(self, name: str, parse: Callable[[Any], T], default: T, detail: str) -> T:
        """Like `take`, and a mistake if it is not there."""
        if not self.has(name):
            self.reading.add(self.key(name), detail)
        return self.take(name, parse, default)

    def take_list(
        self,
        name: str,
        parse: Callable[[Any], T],
        default: tuple[T, ...] = (),
        *,
        secret: bool = False,
        or_one: bool = False,
        may_be_empty: bool = True,
    ) -> tuple[T, ...]:
        """A list whose items are parsed one by one, each with its own mistake. `or_one`: a single value counts as a list of it."""
        written, key = self.raw(name), self.key(name)
        if written is None:
            return default
        if not isinstance(written, list):
            if not or_one:
                self.reading.add(key, f"must be a list{but(written, secret=secret)}")
                return default
            items = [(key, written)]
        else:
            items = [(f"{key}[{index}]", item) for index, item in enumerate(written)]
        if not items and not may_be_empty:
            self.reading.add(key, "must not be empty; leave the key out")
        found = (self._parse(place, item, parse, None, secret=secret) for place, item in items)
        return tuple(value for value in found if value is not None)

    def table(self, name: str) -> Table:
        """The table below this one; an empty one if it is not there or is none."""
        values = self.raw(name)
        if values is not None and not isinstance(values, dict):
            self.reading.add(self.key(name), f"must be a table{but(values)}")
        return Table(self.reading, values if isinstance(values, dict) else {}, self.key(name))

    def names(self) -> list[str]:
        """The keys that nobody has taken yet."""
        return list(self._values)

    def close(self) -> None:
        for name in self._values:
            self.reading.add(self.key(name), f"unknown key; {suggest(name, self._known)}")

    def _parse(self, key: str, value: Any, parse: Callable[[Any], T], default: T, *, secret: bool) -> T:
        before = len(self.reading.mistakes)
        value = self.reading.fill(key, value)
        if len(self.reading.mistakes) > before:
            return default
        if secret:
            self.reading.secrets += filled_parts(value)
        try:
            return parse(value)
        except ValueError as error:
            self.reading.add(key, f"{error}{but(value, secret=secret)}")
            return default


def join(path: str, name: str) -> str:
    """A dotted key; a part that TOML would quote is quoted."""
    part = name if _BARE_KEY.fullmatch(name) else json.dumps(name, ensure_ascii=False)
    return f"{path}.{part}" if path else part


def suggest(word: str, known: list[str] | tuple[str, ...]) -> str:
    """`did you mean "x"?`, or what there is."""
    close = get_close_matches(word.lower(), known, 1, 0.6)
    return f'did you mean "{close[0]}"?' if close else f"known: {', '.join(known)}"


def but(value: Any, *, secret: bool = False) -> str:
    """`, not "x"`: what stands there instead; nothing about a secret, nor about anything that came from outside."""
    if secret or isinstance(value, Filled):
        return ""
    if isinstance(value, dict | list):
        return f", not a {'table' if isinstance(value, dict) else 'list'}"
    if isinstance(value, str | bool):
        text = json.dumps(hide_passwords(value) if isinstance(value, str) else value, ensure_ascii=False)
        return f", not {text}" if len(text) <= 80 else f', not {text[:76]}…"'
    return f", not {value}"


def hide_passwords(url: str) -> str:
    """An address as it may be shown."""
    return _PASSWORD.sub(r"\1***", _USER.sub("://***@", url))


def filled_parts(value: Any) -> list[str]:
    """Everything that came from outside into this value or below it."""
    if isinstance(value, dict):
        return [part for inner in value.values() for part in filled_parts(inner)]
    if isinstance(value, list):
        return [part for inner in value for part in filled_parts(inner)]
    return list(value.parts) if isinstance(value, Filled) else []


def plain(value: Any) -> Any:
    """The value in TOML's own types."""
    if isinstance(value, dict):
        return {name: plain(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [plain(inner) for inner in value]
    return str(value) if isinstance(value, str) else value
