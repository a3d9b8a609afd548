"""How things look: tables and words for people, JSON for programs; colours only on a terminal."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from functools import cache
from typing import Any

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

STATUS_STYLES = {
    "submitting": "cyan",
    "unconfirmed": "bold yellow",
    "queued": "cyan",
    "processing": "blue",
    "succeeded": "green",
    "failed": "bold red",
    "cancelled": "magenta",
    "expired": "bold yellow",
    "pending": "cyan",
    "running": "blue",
    "done": "green",
    "retrying": "yellow",
    "dead": "bold red",
    "ok": "green",
    "warn": "yellow",
    "failing": "bold red",
    "fail": "bold red",
    "open": "bold red",
}
CONTROL = {code: "\ufffd" for code in (*range(32), *range(127, 160)) if chr(code) != "\n"}
SHORT_COLUMN = 16
GAP = 2  # blanks between two columns
WIDE = 10_000  # columns where nobody looks: what is piped on is not cut


@cache
def console(*, stderr: bool = False) -> Console:
    """Where people read; rich looks after NO_COLOR."""
    is_terminal = (sys.stderr if stderr else sys.stdout).isatty()
    return Console(stderr=stderr, highlight=False, soft_wrap=False, width=None if is_terminal else WIDE)


def print_json(document: Any) -> None:
    click.echo(json.dumps(document, indent=2, ensure_ascii=False))


def print_json_line(document: Any) -> None:
    """One document per line, at once."""
    click.echo(json.dumps(document, ensure_ascii=False, separators=(",", ":")))
    sys.stdout.flush()


def plain(value: Any) -> Text:
    """A value as text that can neither colour nor steer a terminal: providers' words are among them."""
    return Text("" if value is None else str(value).translate(CONTROL))


def status(word: Any) -> Text:
    return Text(str(word), style=STATUS_STYLES.get(str(word), ""))


def print_table(
    columns: Sequence[str], rows: Iterable[Sequence[Any]], *, empty: str, cut: Sequence[str] = (), wrapped: Sequence[str] = ()
) -> None:
    """A table without lines and without columns that say nothing. Where the terminal is narrow, the columns in `cut` are shortened and
    those in `wrapped` are folded; the others keep their width, so that an id can always be copied, and the last ones fall off."""
    cells = [[cell if isinstance(cell, Text) else plain(cell) for cell in row] for row in rows]
    if not cells:
        click.echo(empty, err=True)
        return
    said = [number for number in range(len(columns)) if any(row[number].plain for row in cells)]
    natural = {number: max(len(columns[number]), *(row[number].cell_len for row in cells)) for number in said}
    flexible = [number for number in said if columns[number] in cut or columns[number] in wrapped]
    widths = fit(natural, flexible, console().width)
    table = Table(box=None, pad_edge=False, header_style="bold", show_edge=False)
    for number, width in widths.items():
        is_wrapped = columns[number] in wrapped
        table.add_column(columns[number], overflow="fold" if is_wrapped else "ellipsis", no_wrap=not is_wrapped, width=width)
    for row in cells:
        table.add_row(*(row[number] for number in widths))
    print_lines(table)


def fit(natural: dict[int, int], flexible: Sequence[int], room: int) -> dict[int, int]:
    """How wide each column becomes: flexible ones shrink to no less than SHORT_COLUMN, then the last columns fall off."""
    least = {number: min(width, SHORT_COLUMN) if number in flexible else width for number, width in natural.items()}
    while len(least) > 1 and sum(least.values()) + GAP * (len(least) - 1) > room:
        least.popitem()
    spare = room - sum(least.values()) - GAP * (len(least) - 1)
    for number in least:
        more = min(max(spare, 0), natural[number] - least[number])
        least[number] += more
        spare -= more
    return least


def print_lines(*things: Any) -> None:
    """Print without the blanks that rich fills lines with where nobody looks."""
    out = console()
    if out.is_terminal:
        out.print(*things, sep="\n")
        return
    with out.capture() as captured:
        out.print(*things, sep="\n")
    click.echo("\n".join(line.rstrip() for line in captured.get().rstrip("\n").split("\n")))


def when(text: str | None) -> str:
    """A time of the API as people read it: today's by the clock, in this machine's zone."""
    if not text:
        return ""
    at = datetime.fromisoformat(text).astimezone()
    return at.strftime("%H:%M:%S" if at.date() == datetime.now(UTC).astimezone().date() else "%Y-%m-%d %H:%M:%S")


def took(start: str | None, end: str | None) -> str:
    """Between two times of the API: `850ms`, `12.3s`, `4m10s`."""
    if not start or not end:
        return ""
    seconds = (datetime.fromisoformat(end) - datetime.fromisoformat(start)).total_seconds()
    return lasting(seconds)


def lasting(seconds: float) -> str:
    if seconds < 1:
        return f"{max(seconds, 0) * 1000:.0f}ms"
    if seconds < 100:
        return f"{seconds:.1f}s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02}m" if hours else f"{minutes}m{rest:02}s"


def cost(value: Any) -> str:
    return f"{value['amount']:g} {value['unit']}" if value else ""


def shorten(text: str, limit: int = 80) -> str:
    """One line of at most so many characters."""
    line = " ".join(text.split())
    return line if len(line) <= limit else line[: limit - 1] + "…"
