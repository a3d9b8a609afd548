"""`receiver costs`: what jobs cost, where the provider tells."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from decimal import Decimal

import click

from receiver.cli.inputs import read_metadata
from receiver.cli.jobs import When
from receiver.cli.output import print_json, print_table
from receiver.cli.session import Session, asks_server, pass_session, shows_json
from receiver.client import CostSum

FIELDS = "provider, model, day, operation, media or metadata.NAME"


@click.command()
@click.option("--by", default="provider,model", show_default=True, metavar="FIELD,…", help=f"{FIELDS}.")
@click.option("--provider", help="Only of this account.")
@click.option("--model", help="Only of this model.")
@click.option("--metadata", multiple=True, metavar="NAME=TEXT", help="Only with this pair; may be given several times.")
@click.option("--since", type=When(), metavar="WHEN", help="Only jobs made since: a time, or how long ago, like 7d.")
@click.option("--until", type=When(), metavar="WHEN", help="Only jobs made before.")
@asks_server
@shows_json
@pass_session
def costs(
    session: Session,
    by: str,
    provider: str | None,
    model: str | None,
    metadata: tuple[str, ...],
    since: datetime | None,
    until: datetime | None,
    as_json: bool,
) -> None:
    """Add up what jobs cost, the largest sum first. What failed or was cancelled is refunded and does not count; units are never mixed."""
    fields = list(dict.fromkeys(word.strip() for word in by.split(",") if word.strip()))
    pairs = read_metadata(metadata)
    found = session.ask(
        lambda client: client.costs(by=fields, provider=provider, model=model, metadata=pairs, created_after=since, created_before=until)
    )
    if as_json:
        print_json({"costs": [{**each["group"], "unit": each["unit"], "amount": each["amount"], "jobs": each["jobs"]} for each in found]})
        return
    rows = [(*(word or "-" for word in each["group"].values()), each["unit"], show(each["amount"]), each["jobs"]) for each in found]
    rows += [(*("" for _ in fields), unit, show(amount), jobs) for unit, amount, jobs in total(found)]
    print_table((*(field.upper() for field in fields), "UNIT", "COST", "JOBS"), rows, empty="No job with a known cost.")


def show(amount: float | Decimal) -> str:
    """All digits, and no more."""
    return f"{Decimal(str(amount)).normalize():f}"


def total(found: list[CostSum]) -> Iterator[tuple[str, Decimal, int]]:
    """One more line for each unit that several groups have."""
    for unit in dict.fromkeys(each["unit"] for each in found):
        own = [each for each in found if each["unit"] == unit]
        if len(own) > 1:
            yield f"{unit} in all", sum((Decimal(str(each["amount"])) for each in own), Decimal()), sum(each["jobs"] for each in own)
