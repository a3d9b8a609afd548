"""`receiver watch`: events as they happen, shown or handed on to an address."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

import click
from rich.text import Text

from receiver.cli.output import STATUS_STYLES, plain, print_json_line, print_lines, shorten, took
from receiver.cli.session import Session, asks_server, pass_session, run_async, shows_json
from receiver.client import Client, Event


@click.command()
@click.option("--type", "type_", metavar="GLOB", help="Only events whose type fits, like 'job.*'.")
@click.option("--provider", help="Only about jobs of this account.")
@click.option("--job", "job_id", metavar="JOB", help="Only about this job.")
@click.option("--forward", metavar="URL", help="POST each event to this address, as a signed CloudEvent, in order.")
@click.option("--secret", metavar="whsec_…", help="Signs what is forwarded (Standard Webhooks); default: one is made and printed.")
@asks_server
@shows_json
@pass_session
def watch(session: Session, type_: str | None, forward: str | None, secret: str | None, as_json: bool, **filters: Any) -> None:
    """Show events as they happen, until Ctrl-C. After a break it goes on where it was.

    With --forward your application on this machine gets them without a tunnel. An address that does not answer is tried again until it
    does; one that answers with an error is tried three times, then the next event follows.
    """
    if secret and not forward:
        raise click.UsageError("--secret signs what is forwarded; it needs --forward URL.")
    run_async(follow(session, {"type": type_, **filters}, forward, secret, as_json))


async def follow(session: Session, filters: dict[str, Any], forward: str | None, secret: str | None, as_json: bool) -> None:
    from receiver.cli.forwarding import open_forwarder

    async with session.client() as client:
        if forward is None:
            async for event in every(client, filters):
                print_json_line(event) if as_json else show(event)
            return
        async with open_forwarder(forward, secret) as forwarder:
            if secret is None:
                click.echo(f"Signed with {forwarder.secret}", err=True)
            async for event in every(client, filters):
                said = await forwarder.hand(event)
                print_json_line({"event": event, "forwarded": said}) if as_json else show(event, said)


async def every(client: Client, filters: dict[str, Any]) -> AsyncIterator[Event]:
    async with aclosing(client.events(**filters)) as events:
        async for event in events:
            yield event


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
        facts = [shorten(" ".join(f"{key}={value}" for key, value in event["data"].items()), 200)]
    late = ["late"] if event["data"].get("late") else []
    shown = [event.get("subject") or "", *(str(fact) for fact in (*facts, *late) if fact)]
    line = Text.assemble(
        (event["time"][11:19] + " ", "dim"), (f"{event['type']:<16}", STATUS_STYLES.get(word, "")), " ", plain(" · ".join(shown))
    )
    if said is not None:
        line.append(f" → {said}", "green" if said == "ok" else "bold red")
    print_lines(line)
