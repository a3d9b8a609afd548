"""`receiver watch`: events as they happen, shown or handed on to an address."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

import click
from rich.text import Text

from receiver.cli.output import STATUS_STYLES, console, plain, print_json_line, print_lines, shorten, took
from receiver.cli.session import Session, asks_server, pass_session, run_async, shows_json
from receiver.client import Client, Event

if TYPE_CHECKING:
    from receiver.cli.forwarding import Forwarder


@click.command()
@click.option("--type", "type_", metavar="GLOB", help="Only events whose type fits, like 'job.*'.")
@click.option("--provider", help="Only about jobs of this account.")
@click.option("--job", "job_id", metavar="JOB", help="Only about this job.")
@click.option("--after", metavar="EVENT", help="Begin after this event, of those that are still kept; default: with the next one.")
@click.option("--forward", metavar="URL", help="POST each event to this address, as a signed CloudEvent, in order.")
@click.option("--secret", metavar="whsec_…", help="Signs what is forwarded (Standard Webhooks); default: one is made and printed.")
@asks_server
@shows_json
@pass_session
def watch(session: Session, forward: str | None, secret: str | None, as_json: bool, **wishes: str | None) -> None:
    """Show events as they happen, until Ctrl-C; on a terminal with a table of the jobs under way. After a break it goes on where it was.

    With --forward your application on this machine gets them without a tunnel. An address that does not answer is tried again until it
    does; one that answers with an error is tried three times, then the next event follows. When it is stopped it says which --after
    goes on from there.
    """
    if secret and not forward:
        raise click.UsageError("--secret signs what is forwarded; it needs --forward URL.")
    run_async(follow(session, Wishes(**wishes), forward, secret, as_json))


@dataclass
class Wishes:
    """Which events are wanted, and the last one that was seen."""

    type_: str | None
    provider: str | None
    job_id: str | None
    after: str | None

    async def events(self, client: Client, *, of_any_type: bool) -> AsyncIterator[Event]:
        """For ever. `of_any_type`: the table needs all of them."""
        type_ = None if of_any_type else self.type_
        async with aclosing(client.events(type=type_, provider=self.provider, job_id=self.job_id, last_event_id=self.after)) as events:
            async for event in events:
                yield event
                self.after = event["id"]

    def fits(self, event: Event) -> bool:
        return self.type_ is None or fnmatchcase(event["type"], self.type_)


async def follow(session: Session, wishes: Wishes, forward: str | None, secret: str | None, as_json: bool) -> None:
    from receiver.cli.forwarding import open_forwarder

    async with AsyncExitStack() as stack:
        client = await stack.enter_async_context(session.client())
        forwarder = await stack.enter_async_context(open_forwarder(forward, secret)) if forward else None
        if forwarder and secret is None:
            click.echo(f"Signed with {forwarder.secret}", err=True)
        try:
            if as_json or not console().is_terminal:
                await print_events(client, wishes, forwarder, as_json)
            else:
                await show_live(client, wishes, forwarder)
        finally:
            if forwarder and wishes.after:
                click.echo(f"--after {wishes.after} goes on from here.", err=True)


async def print_events(client: Client, wishes: Wishes, forwarder: Forwarder | None, as_json: bool) -> None:
    async for event in wishes.events(client, of_any_type=False):
        said = await forwarder.hand(event) if forwarder else None
        if as_json:
            print_json_line({"event": event, "forwarded": said} if forwarder else event)
        else:
            show(event, said)


async def show_live(client: Client, wishes: Wishes, forwarder: Forwarder | None) -> None:
    from receiver.cli.live import open_board

    async with open_board(client, wishes.provider, wishes.job_id) as board:
        async for event in wishes.events(client, of_any_type=True):
            board.take(event)
            if wishes.fits(event):
                show(event, await forwarder.hand(event) if forwarder else None)


def leaves(data: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """What is said, whatever it is wrapped in, without what only programs want to know."""
    for key, value in data.items():
        if isinstance(value, Mapping):
            yield from leaves(value)
        elif value is not None and key not in ("id", "event_id") and not key.endswith("_at"):
            yield key, value


def show(event: Event, said: str | None = None) -> None:
    """One line: when, what, which job, and what is worth knowing about it."""
    word = event["type"].rpartition(".")[2]
    job = event["data"].get("job")
    facts: list[Any] = []
    if job:
        progress = f"{job['progress']:.0%}" if job["progress"] is not None and not job["finished_at"] else ""
        error = shorten(f"{job['error']['code']}: {job['error']['message']}") if job["error"] else ""
        links = f"{len(job['outputs'])} output{'s' * (len(job['outputs']) > 1)}" if job["outputs"] else ""
        facts = [job["provider"], job["model"], progress, took(job["created_at"], job["finished_at"]), job["finished_by"], links, error]
    else:
        facts = [shorten(" ".join(f"{key}={value}" for key, value in leaves(event["data"])), 200)]
    late = ["late"] if event["data"].get("late") else []
    shown = [event.get("subject") or "", *(str(fact) for fact in (*facts, *late) if fact)]
    line = Text.assemble(
        (event["time"][11:19] + " ", "dim"), (f"{event['type']:<16}", STATUS_STYLES.get(word, "")), " ", plain(" · ".join(shown))
    )
    if said is not None:
        line.append(f" → {said}", "green" if said == "ok" else "bold red")
    print_lines(line)
