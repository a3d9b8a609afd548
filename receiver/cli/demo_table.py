"""How the demo is shown: a table that lives on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import UTC, datetime
from types import TracebackType
from typing import Protocol

import click
from rich.box import SIMPLE_HEAD
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from receiver.cli.demo_checks import Check, Evidence
from receiver.cli.demo_story import ACTS, JOBS, NAMES, Line, Scene, act_of, seconds_between
from receiver.cli.output import console, lasting, plain, status
from receiver.client import FINAL, Job

FRAMES = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏"
FRAMES_PER_SECOND = 10
WAYS = {"callback": "cyan", "poll": "yellow", "stream": "magenta"}
SIGNS = {
    "step": ("·", "dim"),
    "home": ("✓", "green"),
    "trouble": ("!", "bold yellow"),
    "mended": ("✓", "green"),
    "wrong": ("✗", "bold red"),
}
LEAST_WIDTH, LEAST_HEIGHT = 72, 20
ROOM_FOR_NAMES = 100  # columns from which on there is room for the names of files
COLUMNS = {"": 1, "provider": 8, "model": 0, "makes": 5, "status": 11, "home by": 8, "time": 5}  # how wide; the model takes the rest
LONGEST_MODEL = max(len(act.model) for act in ACTS.values())
TITLE = "Receiver demo"


class Screen(Protocol):
    """Shows a scene while the block runs."""

    def __enter__(self) -> Screen: ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None: ...

    def take(self, lines: Sequence[Line]) -> None:
        """Lines that were not told before."""


def choose_screen(scene: Scene) -> Screen:
    out = console()
    has_room = out.width >= LEAST_WIDTH and out.height >= LEAST_HEIGHT
    return TableScreen(scene, out) if out.is_terminal and not out.is_dumb_terminal and has_room else PlainScreen(scene)


class PlainScreen:
    """One line for each thing that happens, as it happens."""

    def __init__(self, scene: Scene) -> None:
        self._scene = scene

    def __enter__(self) -> PlainScreen:
        click.echo(f"{TITLE}: {JOBS} jobs at five simulated providers; dashboard at {self._scene.url}")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        return

    def take(self, lines: Sequence[Line]) -> None:
        for line in lines:
            click.echo(f"{line.seconds:5.1f}s {SIGNS[line.sign][0]} {plain(line.text)}")


class TableScreen:
    """A row for each job, and below it what is notable."""

    def __init__(self, scene: Scene, out: Console) -> None:
        self._scene, self._out = scene, out
        self._is_live = True
        self._live = Live(get_renderable=self.render, console=out, refresh_per_second=FRAMES_PER_SECOND)

    def __enter__(self) -> TableScreen:
        self._live.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._is_live = False  # the last picture stays, so it holds everything
        self._live.__exit__(kind, error, trace)

    def take(self, lines: Sequence[Line]) -> None:
        return  # they are in the scene

    def render(self) -> RenderableType:
        home = sum(job["status"] in FINAL for job in self._scene.jobs)
        address = (self._scene.url, f"cyan link {self._scene.url}")
        title = Text.assemble((TITLE, "bold"), "  ", address, (f"  {home} of {JOBS} home  {self._scene.seconds:.1f}s", "dim"))
        return Group(Rule(title, align="left", style="dim"), Text(""), self._table(), Text(""), self._story(), Text(""))

    def _table(self) -> Table:
        """Its columns keep their width while it grows."""
        table = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0), header_style="dim", border_style="dim", show_edge=False)
        file = 21 if self._has_names else 9
        model = min(LONGEST_MODEL, max(self._out.width - sum(COLUMNS.values()) - file - 2 * (len(COLUMNS) + 1), 8))
        for name, width in {**COLUMNS, "model": model, "file": file}.items():
            table.add_column(name, no_wrap=True, overflow="ellipsis", width=width, justify="right" if name == "time" else "left")
        for job in self._scene.jobs:
            table.add_row(*self._row(job))
        return table

    @property
    def _has_names(self) -> bool:
        return self._out.width >= ROOM_FOR_NAMES

    def _row(self, job: Job) -> list[Text]:
        act, way = act_of(job), job["finished_by"]
        return [
            self._sign(job),
            Text(NAMES[act.provider], "bold"),
            Text(act.model),
            Text(act.media, "dim"),
            status(job["status"]),
            Text(way, WAYS.get(way, "red")) if way else Text(""),
            Text(self._age(job), "" if job["finished_at"] else "dim"),
            self._file(job),
        ]

    def _sign(self, job: Job) -> Text:
        if job["status"] in FINAL:
            return Text("✓", "bold green") if job["status"] == "succeeded" else Text("✗", "bold red")
        frame = FRAMES[int(time.monotonic() * FRAMES_PER_SECOND) % len(FRAMES)]
        return Text(frame, "bold yellow" if job["status"] == "unconfirmed" else "cyan")

    def _age(self, job: Job) -> str:
        return f"{seconds_between(job['created_at'], job['finished_at'] or datetime.now(UTC).isoformat()):.1f}s"

    def _file(self, job: Job) -> Text:
        """The first output: each of these jobs has one."""
        for output in job["outputs"]:
            stored, verdict = output.get("stored"), self._scene.verdicts.get((job["id"], output["index"]))
            if stored is None or verdict is None:
                return Text("fetching …", "dim")
            name = stored["uri"].rpartition("/")[2]
            shown = f" …{name[-10:]}" if self._has_names else ""
            sign = Text("✗", "bold red") if verdict else Text("✓", "bold green")
            return Text.assemble(sign, (shown, f"link {stored['uri']}"), (f" {kilobytes(stored['bytes'])}", "dim"))
        return Text("")

    def _story(self) -> Table:
        """As much of it as there is room for, the newest last."""
        lines = [line for line in self._scene.lines if line.sign != "step"]
        room, wide = self._out.height - len(self._scene.jobs) - 7, max(self._out.width - 9, 1)
        while self._is_live and len(lines) > 1 and sum(-(-len(line.text) // wide) for line in lines) > room:
            del lines[0]
        grid = Table.grid(padding=(0, 1, 0, 0))
        for line in lines:
            sign, style = SIGNS[line.sign]
            grid.add_row(Text(f"{line.seconds:5.1f}s", "dim"), Text(sign, style), plain(line.text))
        return grid


def kilobytes(count: int) -> str:
    return f"{count / 1000:.1f} kB"


def show_end(checks: Sequence[Check], evidence: Evidence, seconds: float, folder: str) -> None:
    """What was checked, what is wrong, and the sum of it."""
    out = console()
    for check in checks:
        sign = Text("✓", "green") if check.is_good else Text("✗", "bold red")
        out.print(Text.assemble(" ", sign, " ", plain(check.name)))
        for fault in check.faults:
            out.print(Text.assemble("     ", (str(plain(fault)), "red")), soft_wrap=True)
    facts = [
        f"{len(evidence.jobs)} jobs",
        f"{evidence.ledger.billed} billed",
        f"{evidence.finals} final events",
        f"{evidence.verified} files verified",
        f"duplicates {evidence.duplicates}",
        f"lost {evidence.lost}",
        lasting(seconds),
    ]
    failed = [check for check in checks if not check.is_good]
    verdict = (f"{len(failed)} of {len(checks)} checks failed", "bold red") if failed else ("Every job came home, once.", "bold green")
    out.print()
    out.print(Text.assemble(verdict, "  ", plain(" · ".join(facts))))
    out.print(Text.assemble(("Files, database and log are in ", "dim"), plain(folder)), soft_wrap=True)
