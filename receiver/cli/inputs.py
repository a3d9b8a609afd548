"""What `-i` and friends mean: words of the command line become values of a job's input. Pure but for the files that they name."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import click

HELP = """\
-i NAME=VALUE: the value as JSON where it is valid JSON (5, 1.5, true, null, [..], {..}, "..."), else as text.
-i NAME:=JSON: must be JSON; so NAME:='"5"' is the text 5.
-i NAME=@FILE: the text of a file.  -i NAME:=@FILE: the JSON in a file.
"""


def read_input(file: str | None, pairs: Iterable[str]) -> dict[str, Any]:
    """The input of a job: the object in the file, with what `-i` says on top."""
    found = {} if file is None else _read_object(file)
    for pair in pairs:
        name, value = read_pair(pair)
        found[name] = value
    return found


def read_pair(pair: str) -> tuple[str, Any]:
    name, equals, value = pair.partition("=")
    if not equals or not name.removesuffix(":"):
        raise click.BadParameter(f"{pair!r} is not NAME=VALUE.\n\n{HELP}", param_hint="-i")
    if name.endswith(":"):
        name = name[:-1]
        return name, _parse_json(_read_file(value[1:], f"-i {name}") if value.startswith("@") else value, f"-i {name}")
    return name, _read_file(value[1:], f"-i {name}") if value.startswith("@") else _json_or_text(value)


def read_metadata(pairs: Iterable[str]) -> dict[str, str]:
    """`--metadata NAME=TEXT`: always text."""
    found = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or not name:
            raise click.BadParameter(f"{pair!r} is not NAME=TEXT.", param_hint="--metadata")
        found[name] = value
    return found


def _json_or_text(text: str) -> Any:
    try:
        return _decode(text)
    except ValueError:
        return text


def _parse_json(text: str, place: str) -> Any:
    try:
        return _decode(text)
    except ValueError as error:
        raise click.BadParameter(f"is not JSON: {error}", param_hint=place) from None


def _decode(text: str) -> Any:
    """JSON as the standard has it: without NaN, Infinity and numbers that become infinite."""
    return json.loads(text, parse_constant=_refuse, parse_float=_finite)


def _refuse(word: str) -> Any:
    raise ValueError(f"{word} is no JSON")


def _finite(text: str) -> float:
    number = float(text)
    if number in (float("inf"), float("-inf")):
        raise ValueError(f"{text} is too large")
    return number


def _read_file(name: str, option: str) -> str:
    try:
        return Path(name).read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise click.BadParameter(f"{name} is not UTF-8 text; for pictures and the like give a link", param_hint=option) from None
    except OSError as error:
        raise click.BadParameter(f"{name} cannot be read: {error.strerror}", param_hint=option) from None


def _read_object(file: str) -> dict[str, Any]:
    text = sys.stdin.read() if file == "-" else _read_file(file, "--input")
    found = _parse_json(text, "--input")
    if not isinstance(found, dict):
        raise click.BadParameter("must be a JSON object", param_hint="--input")
    return found
