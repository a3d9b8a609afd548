"""Names of kept files by a template, `{provider}/{date}/{job}-{index}{ext}`: nothing that comes from outside leads anywhere else."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

DEFAULT = "{provider}/{date}/{job}-{index}{ext}"
DAYS = {"date": slice(0, 10), "year": slice(0, 4), "month": slice(5, 7), "day": slice(8, 10)}  # of created_at
OF_JOB = ("provider", "model", "media", "remote_id")
FIELDS = (*OF_JOB, *DAYS, "job", "index", "ext", "metadata.KEY")
FIELD = re.compile(r"\{([^{}]*)\}")
PLAIN = re.compile(r"[A-Za-z0-9 ._=+,@()-]*")
MAX_PARTS = 8
PART_LIMIT = 100  # of what stands between two slashes, before the extension
PLAIN_LIMIT = 50  # of that, what the template itself says


class Name(NamedTuple):
    """Folders and a file name whose extension is still to come, where it has one."""

    folders: tuple[str, ...]
    stem: str
    has_extension: bool

    def file(self, extension: str) -> str:
        return f"{self.stem}.{extension}" if self.has_extension else self.stem


class Part(NamedTuple):
    """What stands between two slashes: plain texts and fields in turn."""

    pieces: tuple[str, ...]

    @property
    def plain(self) -> str:
        return "".join(self.pieces[::2])

    @property
    def fields(self) -> tuple[str, ...]:
        return self.pieces[1::2]


class NameTemplate:
    """A template; ValueError says what is wrong with it."""

    def __init__(self, text: str) -> None:
        self._has_extension = text.endswith("{ext}")
        self._parts = [Part(tuple(FIELD.split(part))) for part in text.removesuffix("{ext}").split("/")]
        for mistake in find_mistakes(self._parts):
            raise ValueError(mistake)

    def name(self, job: dict[str, Any], index: int) -> Name:
        """The same for the same output, always; another for each other one."""
        *folders, stem = (_fill(part, job, index) for part in self._parts)
        return Name(tuple(folders), stem, self._has_extension)


def find_mistakes(parts: list[Part]) -> Iterator[str]:
    fields = [field for part in parts for field in part.fields]
    for field in fields:
        if field == "ext":
            yield "{ext} may only stand at the end, once"
        elif not is_field(field):
            close = difflib.get_close_matches(field, FIELDS, n=1)
            there_are = ", ".join(f"{{{known}}}" for known in FIELDS)
            yield f"there is no {{{field}}}; " + (f"did you mean {{{close[0]}}}?" if close else f"there are {there_are}")
    for part in parts:
        if "{" in part.plain or "}" in part.plain:
            yield "has a brace without its other one"
        elif not PLAIN.fullmatch(part.plain):
            yield 'beside fields, letters of English, digits, spaces and "._=+,@()-" are allowed'
        elif not part.plain and not part.fields:
            yield "must be a relative path that ends in a file's name, with no empty part"
        elif part.pieces[0].startswith("."):
            yield 'no part may begin with "."'
        elif len(part.plain) > PLAIN_LIMIT:
            yield f"a part is longer than {PLAIN_LIMIT} characters"
    if len(parts) > MAX_PARTS:
        yield f"has more than {MAX_PARTS} parts"
    if missing := [f"{{{field}}}" for field in ("job", "index") if field not in fields]:
        yield f"needs {' and '.join(missing)}, else two outputs would have one name"


def is_field(field: str) -> bool:
    return field in FIELDS or (field.startswith("metadata.") and field != "metadata.")


def _fill(part: Part, job: dict[str, Any], index: int) -> str:
    """What tells two outputs apart is never cut; the rest shares what room there is."""
    fixed = {field: _fixed(field, job, index) for field in part.fields}
    room = PART_LIMIT - len(part.plain) - sum(len(fixed[field] or "") for field in part.fields)
    open_fields = sum(fixed[field] is None for field in part.fields)
    limit = max(4, room // open_fields) if open_fields else 0
    values = [fixed[field] or clean(_value(field, job), limit) for field in part.fields]
    return "".join(plain + value for plain, value in zip(part.pieces[::2], [*values, ""], strict=True))


def _fixed(field: str, job: dict[str, Any], index: int) -> str | None:
    if field == "job":
        return clean(job["id"])
    if field == "index":
        return str(int(index))
    return clean(str(job.get("created_at"))[DAYS[field]]) if field in DAYS else None


def _value(field: str, job: dict[str, Any]) -> str:
    if field in OF_JOB:
        return str(job.get(field) or "")
    return str((job.get("metadata") or {}).get(field.removeprefix("metadata.")) or "")


def clean(name: str, limit: int = PART_LIMIT) -> str:
    """A piece of a path that names nothing but itself."""
    plain = re.sub(r"[^A-Za-z0-9._-]", "_", name)[:limit]
    return re.sub(r"\A\.+", lambda dots: "_" * len(dots[0]), plain) or "_"
