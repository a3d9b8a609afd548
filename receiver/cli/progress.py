"""Jobs under way, as a person watches them: one line each that moves until the job is final."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from time import monotonic
from typing import NoReturn

import click
from rich.live import Live
from rich.table import Table
from rich.text import Text

from receiver.cli.output import console, cost, lasting, plain, print_lines, shorten, status, took
from receiver.client import FINAL, Client, Job, NotReachable

LOOK_EVERY = 1.0  # seconds between two looks at the progress
MOST_AWAY = 60.0  # seconds that a server may take to come back
BAR = 20  # characters
FRAMES = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏"


async def follow(client: Client, jobs: list[Job]) -> list[Job]:
    """The jobs once they are final; meanwhile a line for each on stderr, which moves where that is a terminal. NotReachable."""
    board = Board(jobs)
    out = console(stderr=True)
    looks = asyncio.create_task(_look(client, board))
    waits = asyncio.create_task(_wait(client, jobs))
    try:
        if out.is_terminal:
            with Live(get_renderable=board.render, console=out, refresh_per_second=8, transient=True):
                await asyncio.wait({looks, waits}, return_when=asyncio.FIRST_COMPLETED)
        else:
            for job in jobs:
                click.echo(f"{job['id']} {job['status']}: waiting for its end", err=True)
            await asyncio.wait({looks, waits}, return_when=asyncio.FIRST_COMPLETED)
        return waits.result() if waits.done() else looks.result()
    finally:
        looks.cancel()
        waits.cancel()


async def _wait(client: Client, jobs: list[Job]) -> list[Job]:
    return list(await asyncio.gather(*(client.wait(job["id"]) for job in jobs)))


async def _look(client: Client, board: Board) -> NoReturn:
    """Keep the board fresh. A server that is away for a while is no reason to stop; one that stays away is."""
    away_since: float | None = None
    while True:
        for job_id, job in list(board.jobs.items()):
            if job["status"] not in FINAL:
                try:
                    board.jobs[job_id] = await client.job(job_id)
                    away_since = None
                except NotReachable as error:
                    away_since = away_since or monotonic()
                    if monotonic() - away_since > MOST_AWAY:
                        raise NotReachable(f"{error}. The job goes on; once the server is back: receiver show {job_id}") from None
        await asyncio.sleep(LOOK_EVERY)


class Board:
    """What the lines show."""

    def __init__(self, jobs: list[Job]) -> None:
        self.jobs = {job["id"]: job for job in jobs}
        self._frame = 0

    def render(self) -> Table:
        self._frame += 1
        now = datetime.now(UTC)
        table = Table.grid(padding=(0, 1))
        for job in self.jobs.values():
            table.add_row(sign(job, self._frame), plain(job["id"]), status(job["status"]), bar(job), plain(age(job, now)))
        return table


def sign(job: Job, frame: int) -> Text:
    """How it ended, or that it moves."""
    if job["status"] in FINAL:
        return Text("✓", "green") if job["status"] == "succeeded" else Text("✗", "bold red")
    return Text(FRAMES[frame % len(FRAMES)], "cyan")


def bar(job: Job) -> Text:
    if job["progress"] is None or job["status"] in FINAL:
        return Text("")
    full = round(BAR * min(max(job["progress"], 0), 1))
    return Text("━" * full, "green") + Text("━" * (BAR - full), "dim") + Text(f" {job['progress']:.0%}")


def age(job: Job, now: datetime) -> str:
    """How long it took, or takes already."""
    if job["finished_at"]:
        return took(job["created_at"], job["finished_at"])
    return lasting((now - datetime.fromisoformat(job["created_at"])).total_seconds())


def show_jobs(jobs: list[Job]) -> None:
    """What became of them: a line each, with its outputs or its error below."""
    for job in jobs:
        line = Text.assemble(plain(job["id"]), " ", status(job["status"]))
        facts = [took(job["created_at"], job["finished_at"]), f"by {job['finished_by']}" if job["finished_by"] else "", cost(job["cost"])]
        print_lines(Text.assemble(line, *(f" · {fact}" for fact in facts if fact)))
        for output in job["outputs"]:
            stored = output.get("stored")
            place = stored["uri"] if stored else output["url"] or f"(data; GET /v1/jobs/{job['id']}/outputs/{output['index']})"
            print_lines(Text.assemble("  ", plain(place)))
        if job["error"]:
            print_lines(Text.assemble("  ", Text(job["error"]["code"], "bold red"), ": ", plain(shorten(job["error"]["message"], 400))))
