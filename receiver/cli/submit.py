"""`receiver submit`: one call to a provider, and waiting for what comes of it."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

import click

from receiver.cli.codes import JOB_FAILED
from receiver.cli.inputs import HELP, read_input, read_metadata
from receiver.cli.output import print_json
from receiver.cli.session import Session, asks_server, pass_session, run_async, shows_json
from receiver.client import Client, Job, Submitted


@click.command(epilog="\b\n" + HELP)
@click.argument("provider")
@click.argument("model", required=False)
@click.option("-i", "pairs", multiple=True, metavar="NAME=VALUE", help="A field of the input; see below.")
@click.option("--input", "file", metavar="FILE.json", help="The whole input as a JSON object; - reads it from stdin.")
@click.option("--operation", metavar="NAME", help="Which of the provider's operations; default: its first.")
@click.option("--media", type=click.Choice(["image", "video", "audio", "3d", "other"]), help="What is generated.")
@click.option("--metadata", multiple=True, metavar="NAME=TEXT", help="A pair of your own, to find the job by.")
@click.option("--deadline", metavar="DURATION", help='How long the job may take, like "10m"; then it expires.')
@click.option("--idempotency-key", metavar="KEY", help="Submitting again under the same key submits nothing new.")
@click.option("--wait", "waits", is_flag=True, help="Wait until the jobs are final.")
@asks_server
@shows_json
@pass_session
def submit(
    session: Session,
    provider: str,
    model: str | None,
    pairs: tuple[str, ...],
    file: str | None,
    metadata: tuple[str, ...],
    deadline: str | None,
    waits: bool,
    as_json: bool,
    **wishes: Any,
) -> None:
    """Submit a job to PROVIDER. Exit code 1 if a job failed, was cancelled or expired."""
    wishes |= {"input": read_input(file, pairs), "metadata": read_metadata(metadata) or None, "deadline": read_duration(deadline)}
    jobs = run_async(submit_and_follow(session.client(), provider, model, wishes, waits=waits, as_json=as_json))
    if any(has_failed(job) for job in jobs):
        raise click.exceptions.Exit(JOB_FAILED)


async def submit_and_follow(
    client: Client, provider: str, model: str | None, wishes: Mapping[str, Any], *, waits: bool, as_json: bool
) -> list[Job]:
    from receiver.cli.progress import follow, show_jobs

    async with client:
        submitted = await client.submit(provider, model, **wishes)
        jobs = submitted["jobs"]
        try:
            if waits:
                jobs = await follow(client, jobs)
        except asyncio.CancelledError:
            click.echo(f"\nNot waiting any more; `receiver jobs --submission {submitted['submission_id']}` shows how it goes on.", err=True)
            raise
    if as_json:
        print_json(Submitted(submission_id=submitted["submission_id"], jobs=jobs))
    else:
        show_jobs(jobs)
    return jobs


def has_failed(job: Job) -> bool:
    return job["status"] in ("failed", "cancelled", "expired")


def read_duration(text: str | None) -> timedelta | None:
    from receiver.units import parse_duration

    if text is None:
        return None
    try:
        return parse_duration(text)
    except ValueError as error:
        raise click.BadParameter(f"{error}, not {text!r}", param_hint="--deadline") from None
