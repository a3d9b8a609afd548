"""What `watch` shows on a terminal: events as lines that scroll, and below them a table of the jobs under way."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from time import monotonic
from typing import Any

from rich.console import Group
from rich.live import Live
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from receiver.cli.output import console, plain, shorten, status
from receiver.cli.progress import age, bar, sign
from receiver.client import FINAL, ApiError, Client, Event, Job, NotReachable

OPEN = ("unconfirmed", "submitting", "queued", "processing")
FIRST_LOOK = 200  # jobs of each open status
LOOK_EVERY = 5.0  # seconds between two looks at what no event has told
MOST_LOOKS = 20  # at single jobs, each time
LINGER = 10.0  # seconds for which a job that ended stays in sight
LINES_AROUND = 8  # for events that scroll, the headline and the prompt
LEAST_ROWS = 3


@asynccontextmanager
async def open_board(client: Client, provider: str | None, job_id: str | None) -> AsyncIterator[Board]:
    """A board on the terminal, with the jobs that are open now."""
    board = Board()
    board.keep(await read_open(client, provider, job_id))
    with Live(get_renderable=board.render, console=console(), refresh_per_second=4, transient=True):
        looks = asyncio.create_task(look(client, board, provider, job_id))
        try:
            yield board
        finally:
            looks.cancel()


async def read_open(client: Client, provider: str | None, job_id: str | None) -> list[Job]:
    if job_id is not None:
        return [await client.job(job_id)]
    pages = [await client.jobs(provider=provider, status=word, limit=FIRST_LOOK) for word in OPEN]
    return [job for page in pages for job in page["jobs"]]


async def look(client: Client, board: Board, provider: str | None, job_id: str | None) -> None:
    """What happened before the stream of events was opened, or while it was broken, is seen too; and that there is no contact."""
    while True:
        await asyncio.sleep(LOOK_EVERY)
        try:
            found = await read_open(client, provider, job_id)
            board.keep(found)
            left = board.open_ids() - {job["id"] for job in found}
            board.renew([await client.job(each) for each in sorted(left)[:MOST_LOOKS]])
            board.has_contact = True
        except (NotReachable, ApiError):
            board.has_contact = False


class Board:
    """The jobs under way, the latest change first, and those that have just ended."""

    def __init__(self) -> None:
        self.jobs: dict[str, Job] = {}
        self.has_contact = True
        self._ended: dict[str, float] = {}
        self._frame = 0

    def keep(self, jobs: list[Job]) -> None:
        """What a listing holds; what an event has said meanwhile is newer."""
        for job in sorted(jobs, key=lambda job: job["updated_at"]):
            self.jobs.setdefault(job["id"], job)

    def take(self, event: Event) -> None:
        job = event["data"].get("job")
        if job is None:
            return
        self.jobs.pop(job["id"], None)
        self.renew([job])

    def renew(self, jobs: list[Job]) -> None:
        for job in jobs:
            self.jobs[job["id"]] = job
            if job["status"] in FINAL:
                self._ended.setdefault(job["id"], monotonic())

    def open_ids(self) -> set[str]:
        return {job["id"] for job in self.jobs.values() if job["status"] not in FINAL}

    def render(self) -> Any:
        self._frame += 1
        now = monotonic()
        for job_id in [job_id for job_id, at in self._ended.items() if now - at > LINGER]:
            del self._ended[job_id]
            self.jobs.pop(job_id, None)
        room = max(console().height - LINES_AROUND, LEAST_ROWS)
        shown = list(reversed(self.jobs.values()))[:room]
        return Group(Rule(self._headline(len(shown)), align="left", style="dim"), *([self._table(shown)] if shown else []))

    def _headline(self, shown: int) -> Text:
        counts = Counter[str](job["status"] for job in self.jobs.values() if job["status"] not in FINAL)
        words = [Text.assemble(f"{counts[word]} ", status(word)) for word in OPEN if counts[word]]
        line = Text(" · ").join(words) if words else Text("no job is under way")
        if not self.has_contact:
            line = Text("no contact with the server; trying again · ", "bold yellow") + line
        hidden = len(self.jobs) - shown
        return line + Text(f" · {hidden} not shown", "dim") if hidden else line

    def _table(self, jobs: list[Job]) -> Table:
        """Ids are never cut, so that one can be copied; what a job is gives way."""
        now = datetime.now(UTC)
        cells = [(sign(job, self._frame), plain(job["id"]), status(job["status"]), plain(age(job, now)), bar(job)) for job in jobs]
        table = Table.grid(padding=(0, 1), expand=True)
        for column in zip(*cells, strict=True):
            table.add_column(no_wrap=True, width=max(cell.cell_len for cell in column))
        table.add_column(no_wrap=True, overflow="ellipsis", ratio=1)
        for job, row in zip(jobs, cells, strict=True):
            what = " ".join(word for word in (job["provider"], job["model"]) if word)
            table.add_row(
                *row, plain(shorten(f"{what} · {job['error']['code']}: {job['error']['message']}" if job["error"] else what, 200))
            )
        return table
