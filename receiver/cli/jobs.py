"""`receiver jobs`, `show`, `cancel`: looking at jobs, and ending one."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import click
from rich.text import Text

from receiver.cli.output import cost, plain, print_json, print_lines, print_table, shorten, status, took, when
from receiver.cli.progress import show_jobs
from receiver.cli.session import Session, asks_server, pass_session, shows_json
from receiver.client import Client, Job, JobPage, Timeline

STATUSES = ("submitting", "unconfirmed", "queued", "processing", "succeeded", "failed", "cancelled", "expired")
MAX_PAGE = 1000
CANCEL_SECONDS = 5.0


class When(click.ParamType[datetime]):
    """A time, or how long ago: `2026-01-31`, `2026-01-31T12:00:00Z`, `2h`, `7d`."""

    name = "when"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> datetime:
        from receiver.units import parse_duration

        if isinstance(value, datetime):
            return value
        try:
            return datetime.fromisoformat(value).astimezone()
        except ValueError:
            pass
        try:
            return datetime.now(UTC) - parse_duration(value)
        except (ValueError, OverflowError):
            self.fail(f"{value!r} is neither a time like 2026-01-31T12:00:00Z nor how long ago, like 2h or 7d", param, ctx)


@click.command()
@click.option("--provider", help="Only of this account.")
@click.option("--model", help="Only of this model.")
@click.option("--status", "status_", type=click.Choice(STATUSES), help="Only those that stand so.")
@click.option("--submission", "submission_id", metavar="SUBMISSION", help="Only of this submission.")
@click.option("--metadata", multiple=True, metavar="NAME=TEXT", help="Only with this pair; may be given several times.")
@click.option("--since", type=When(), metavar="WHEN", help="Only made since: a time, or how long ago, like 2h.")
@click.option("--until", type=When(), metavar="WHEN", help="Only made before.")
@click.option("--limit", type=click.IntRange(min=1), default=50, show_default=True, help="How many.")
@asks_server
@shows_json
@pass_session
def jobs(
    session: Session,
    status_: str | None,
    metadata: tuple[str, ...],
    since: datetime | None,
    until: datetime | None,
    limit: int,
    as_json: bool,
    **filters: Any,
) -> None:
    """List jobs, newest first."""
    from receiver.cli.inputs import read_metadata

    filters |= {"status": status_, "metadata": read_metadata(metadata), "created_after": since, "created_before": until}
    page = session.ask(lambda client: read_pages(client, limit, filters))
    if as_json:
        print_json(page)
        return
    rows = [
        (
            job["id"],
            status(job["status"]),
            job["provider"],
            job["model"],
            when(job["created_at"]),
            took(job["created_at"], job["finished_at"]),
            job["finished_by"],
            cost(job["cost"]),
            why(job),
        )
        for job in page["jobs"]
    ]
    columns = ("JOB", "STATUS", "PROVIDER", "MODEL", "CREATED", "TOOK", "BY", "COST", "ERROR")
    print_table(columns, rows, empty="No jobs.", cut=("MODEL", "ERROR"))
    if page["next_cursor"]:
        click.echo(f"There are more; --limit {limit * 10} shows more of them.", err=True)


async def read_pages(client: Client, limit: int, filters: dict[str, Any]) -> JobPage:
    """As one page, however many it takes."""
    found: list[Job] = []
    cursor: str | None = None
    while True:
        page = await client.jobs(**filters, limit=min(limit - len(found), MAX_PAGE), cursor=cursor)
        found += page["jobs"]
        cursor = page["next_cursor"]
        if cursor is None or len(found) >= limit:
            return JobPage(jobs=found, next_cursor=cursor)


def why(job: Job) -> str:
    return shorten(f"{job['error']['code']}: {job['error']['message']}") if job["error"] else ""


@click.command()
@click.argument("job_id", metavar="JOB")
@click.option("--raw", is_flag=True, help="With the bodies of notices.")
@asks_server
@shows_json
@pass_session
def show(session: Session, job_id: str, raw: bool, as_json: bool) -> None:
    """Show JOB with everything that happened to it, in order."""
    timeline = session.ask(lambda client: client.timeline(job_id, raw=raw))
    if as_json:
        print_json(timeline)
        return
    show_facts(timeline["job"])
    click.echo()
    show_timeline(timeline)


def show_facts(job: Job) -> None:
    show_jobs([job])
    metadata = " ".join(f"{key}={value}" for key, value in job["metadata"].items())
    facts = {
        "submission": job["submission_id"],
        "provider": " · ".join(word for word in (job["provider"], job["operation"], job["model"], job["media"]) if word),
        "remote id": job["remote_id"],
        "progress": None if job["progress"] is None else f"{job['progress']:.0%}",
        "metadata": metadata,
        "created": when(job["created_at"]),
        "finished" if job["finished_at"] else "deadline": when(job["finished_at"] or job["deadline_at"]),
    }
    for name, fact in facts.items():
        if fact:
            print_lines(Text.assemble((f"  {name + ':':<12}", "dim"), plain(fact)))


def show_timeline(timeline: Timeline) -> None:
    start = timeline["job"]["created_at"]
    rows: list[tuple[Any, ...]] = []
    for entry in timeline["entries"]:
        rows.append((Text("+" + took(start, entry["at"]), "dim"), entry["kind"], *describe(entry)))
        if entry.get("raw"):
            rows.append(("", "", "", plain(entry["raw"])))
    print_table(("AFTER", "KIND", "WHAT", "DETAIL"), rows, empty="Nothing has happened yet.", wrapped=("WHAT", "DETAIL"))


def describe(entry: dict[str, Any]) -> tuple[Text, Text]:
    """What a line of the timeline says, and what is worth knowing beside it."""
    kind = entry["kind"]
    if kind == "submit":
        code = entry["http_status"]
        return plain(f"HTTP {code}" if code else "no answer"), plain(entry["error"])
    if kind == "notice":
        repeats = f"and {entry['repeats']} times more" if entry["repeats"] else ""
        detail = " · ".join(str(word) for word in (entry["status"], entry["reason"], repeats) if word)
        return plain(f"{entry['channel']}: {entry['outcome'] or 'kept'}"), plain(detail)
    if kind == "event":
        return plain(entry["type"]), plain("late" if entry["late"] else "")
    detail = " · ".join(word for word in (f"attempts {entry['attempts']}", shorten(entry["last_error"] or "", 200)) if word)
    return Text.assemble(plain(entry["handler"]), ": ", status(entry["state"])), plain(f"{entry['event_type']} · {detail}")


@click.command()
@click.argument("job_id", metavar="JOB")
@asks_server
@shows_json
@pass_session
def cancel(session: Session, job_id: str, as_json: bool) -> None:
    """Cancel JOB where the provider can. It takes the status that the provider then tells."""
    job = session.ask(lambda client: cancel_and_look(client, job_id))
    print_json(job) if as_json else show_jobs([job])


async def cancel_and_look(client: Client, job_id: str) -> Job:
    """The provider is asked at once, and most answer within seconds."""
    job = await client.cancel(job_id)
    try:
        return await client.wait(job_id, timeout=CANCEL_SECONDS)
    except TimeoutError:
        return job
