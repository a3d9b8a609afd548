"""`receiver costs`: what jobs cost, where the provider tells."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Any

import click

from receiver.cli.jobs import When
from receiver.cli.output import print_json, print_table
from receiver.cli.session import Session, asks_server, pass_session, shows_json
from receiver.client import Client, Job

REFUNDED = ("failed", "cancelled")
FIELDS = ("provider", "model", "day", "operation", "media")
Key = tuple[str | None, ...]


@dataclass
class Sum:
    """What a group of jobs cost, in one unit."""

    jobs: int = 0
    amount: Decimal = Decimal(0)


@click.command()
@click.option("--by", default="provider,model", show_default=True, metavar="FIELD,…", help=f"{', '.join(FIELDS)} or metadata.NAME.")
@click.option("--provider", help="Only of this account.")
@click.option("--since", type=When(), metavar="WHEN", help="Only jobs made since: a time, or how long ago, like 7d.")
@click.option("--until", type=When(), metavar="WHEN", help="Only jobs made before.")
@asks_server
@shows_json
@pass_session
def costs(session: Session, by: str, provider: str | None, since: datetime | None, until: datetime | None, as_json: bool) -> None:
    """Add up what jobs cost. What failed or was cancelled is refunded and does not count; units are never mixed."""
    fields = read_fields(by)
    filters = {"provider": provider, "created_after": since, "created_before": until}
    sums = session.ask(lambda client: add_up(client, fields, filters))
    rows = [({**dict(zip(fields, key, strict=True)), "unit": unit}, sums[key, unit]) for key, unit in sorted(sums, key=sortable)]
    if as_json:
        print_json({"costs": [{**group, "amount": float(each.amount), "jobs": each.jobs} for group, each in rows]})
        return
    table = [(*(word or "-" for word in group.values()), f"{each.amount:f}", each.jobs) for group, each in rows]
    print_table((*(field.upper() for field in fields), "UNIT", "COST", "JOBS"), table, empty="No job with a known cost.")


def sortable(group: tuple[Key, str]) -> list[str]:
    return [word or "" for word in (*group[0], group[1])]


def read_fields(by: str) -> tuple[str, ...]:
    fields = tuple(dict.fromkeys(word.strip() for word in by.split(",") if word.strip()))
    wrong = [field for field in fields if field not in FIELDS and field.removeprefix("metadata.") in ("", field)]
    if wrong or not fields:
        raise click.BadParameter(f"{', '.join(wrong) or repr(by)} is none of {', '.join(FIELDS)}, metadata.NAME.", param_hint="--by")
    return fields


async def add_up(client: Client, fields: Sequence[str], filters: dict[str, Any]) -> dict[tuple[Key, str], Sum]:
    sums: dict[tuple[Key, str], Sum] = defaultdict(Sum)
    async for job in paid(client.every_job(**filters)):
        assert job["cost"] is not None
        group = sums[tuple(field_of(job, field) for field in fields), job["cost"]["unit"]]
        group.jobs += 1
        group.amount += Decimal(str(job["cost"]["amount"]))  # as written, so that tenths add up to tenths
    return sums


async def paid(jobs: AsyncIterator[Job]) -> AsyncIterator[Job]:
    async for job in jobs:
        if job["cost"] is not None and job["status"] not in REFUNDED:
            yield job


def field_of(job: Job, field: str) -> str | None:
    if field == "day":
        return job["created_at"][:10]  # in UTC, as the API has it
    if field.startswith("metadata."):
        return job["metadata"].get(field.removeprefix("metadata."))
    fields: Mapping[str, Any] = job
    found: str | None = fields[field]
    return found
