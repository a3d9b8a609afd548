"""`receiver dead` and `replay`: deliveries that were given up, and giving them to their handlers again."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import Any

import click

from receiver.cli.output import print_json, print_table, shorten, status, when
from receiver.cli.session import Session, asks_server, pass_session, shows_json
from receiver.client import Client, Delivery, DeliveryPage

REPLAYABLE = ("done", "retrying", "dead")
MAX_PAGE = 1000


@click.command()
@click.option("--handler", help="Only to this handler.")
@click.option("--job", "job_id", metavar="JOB", help="Only about this job.")
@click.option("--limit", type=click.IntRange(min=1), default=50, show_default=True, help="How many.")
@asks_server
@shows_json
@pass_session
def dead(session: Session, handler: str | None, job_id: str | None, limit: int, as_json: bool) -> None:
    """List deliveries that were given up, newest first."""
    page = session.ask(lambda client: read_pages(client, limit, {"state": "dead", "handler": handler, "job_id": job_id}))
    if as_json:
        print_json(page)
        return
    show(page["deliveries"], empty="No dead deliveries.")
    if page["deliveries"]:
        more = " There are more." if page["next_cursor"] else ""
        click.echo(f"\n`receiver replay DELIVERY` delivers one again, `receiver replay --state dead` all of them.{more}", err=True)


async def read_pages(client: Client, limit: int, filters: dict[str, Any]) -> DeliveryPage:
    """As one page, however many it takes."""
    found: list[Delivery] = []
    cursor: str | None = None
    while True:
        page = await client.deliveries(**filters, limit=min(limit - len(found), MAX_PAGE), cursor=cursor)
        found += page["deliveries"]
        cursor = page["next_cursor"]
        if cursor is None or len(found) >= limit:
            return DeliveryPage(deliveries=found, next_cursor=cursor)


def show(deliveries: list[Delivery], *, empty: str) -> None:
    rows = [
        (each["id"], status(each["state"]), each["handler"], shorten(each["last_error"] or "", 120), each["event_type"], each["attempts"],
         when(each["updated_at"]), each["job_id"])
        for each in deliveries
    ]  # fmt: skip
    columns = ("DELIVERY", "STATE", "HANDLER", "ERROR", "EVENT", "ATTEMPTS", "UPDATED", "JOB")
    print_table(columns, rows, empty=empty, cut=("HANDLER", "ERROR"))


@click.command()
@click.argument("delivery_id", metavar="[DELIVERY]", required=False)
@click.option("--state", type=click.Choice(REPLAYABLE), help="All that stand so.")
@click.option("--handler", help="All to this handler.")
@click.option("--job", "job_id", metavar="JOB", help="All about this job.")
@click.option("--type", "event_type", metavar="TYPE", help="All of this type of event, like job.succeeded.")
@click.option("-y", "--yes", "is_sure", is_flag=True, help="Do not ask.")
@asks_server
@shows_json
@pass_session
def replay(session: Session, delivery_id: str | None, is_sure: bool, as_json: bool, **filters: str | None) -> None:
    """Deliver again: one DELIVERY, or all that fit the filters. The event keeps its id, the attempts start anew."""
    wanted = {name: value for name, value in filters.items() if value is not None}
    if (delivery_id is None) == (not wanted):
        raise click.UsageError("Give either a DELIVERY or filters: --state, --handler, --job, --type.")
    if delivery_id is not None:
        delivery = session.ask(lambda client: client.replay(delivery_id))
        print_json(delivery) if as_json else show([delivery], empty="")
        return
    if not is_sure:
        confirm(wanted, lambda: session.ask(lambda client: count(client, wanted)))
    replayed = session.ask(lambda client: client.replay_all(**wanted))
    if as_json:
        print_json({"replayed": replayed})
    else:
        click.echo(f"{replayed} {'delivery starts' if replayed == 1 else 'deliveries start'} anew.")


async def count(client: Client, wanted: Mapping[str, str]) -> str:
    """How many would be delivered again, as far as one page tells."""
    filters = {name: value for name, value in wanted.items() if name != "event_type"}
    page = await client.deliveries(**filters, limit=MAX_PAGE)
    fitting = [
        each for each in page["deliveries"] if each["state"] in REPLAYABLE and wanted.get("event_type") in (None, each["event_type"])
    ]
    return f"{len(fitting)} or more" if page["next_cursor"] else str(len(fitting))


def confirm(wanted: Mapping[str, str], count: Callable[[], str]) -> None:
    """Ask a person, who is told how many; a program says --yes."""
    if not sys.stdin.isatty():
        raise click.UsageError("This starts many deliveries anew; say --yes to do it without being asked.")
    which = ", ".join(f"{name.removesuffix('_id').replace('_', ' ')} {value}" for name, value in wanted.items())
    click.confirm(f"Deliver again all with {which} ({count()})?", abort=True, err=True)
