"""`receiver providers` and `handlers`: what is configured, and how it does."""

from __future__ import annotations

from typing import Any

import click
from rich.text import Text

from receiver.cli.output import lasting, plain, print_json, print_lines, print_table, shorten, status, when
from receiver.cli.session import Session, asks_server, pass_session, shows_json


@click.command()
@click.option("--all", "shows_all", is_flag=True, help="Also those that are known but not configured.")
@asks_server
@shows_json
@pass_session
def providers(session: Session, shows_all: bool, as_json: bool) -> None:
    """List providers: what they can do, how they do, and what was learned about their times."""
    found = session.ask(lambda client: client.providers())
    if as_json:
        print_json({"providers": found})
        return
    shown = [each for each in found if shows_all or each["configured"] or each["open_jobs"]]
    rows = [(each["name"], health(each["health"], each["configured"]), ways(each), counts(each["open_jobs"]), operations(each),
             shorten(each["health"]["last_error"] or "")) for each in shown]  # fmt: skip
    hidden = ", ".join(each["name"] for each in found if each not in shown)
    print_table(("PROVIDER", "HEALTH", "NEWS BY", "OPEN", "OPERATIONS", "LAST ERROR"), rows, empty="No providers are configured.",
                cut=("LAST ERROR",), wrapped=("OPERATIONS",))  # fmt: skip
    show_learned(shown)
    if hidden:
        click.echo(f"\nKnown, not configured: {hidden}", err=True)


def health(found: dict[str, Any], is_configured: bool) -> Text:
    if not is_configured:
        return Text("not configured", "yellow")
    word = Text.assemble(status(found["state"]))
    if found["open_until"]:
        word.append(f", left alone until {when(found['open_until'])}")
    elif found["failures"]:
        word.append(f", {found['failures']} calls failed")
    return word


def ways(found: dict[str, Any]) -> str:
    """How news of its jobs can come home."""
    has = [word for word, is_there in (("callback", found["calls_back"]), ("stream", found["has_stream"])) if is_there]
    return ", ".join([*has, "poll"])


def counts(found: dict[str, int]) -> str:
    return ", ".join(f"{count} {word}" for word, count in found.items()) or "0"


def operations(found: dict[str, Any]) -> str:
    return ", ".join(each["name"] for each in found["operations"])


def show_learned(found: list[dict[str, Any]]) -> None:
    rows = [(each["name"], learned["model"] or "(none)", learned["count"], lasting(learned["overdue_after_seconds"]))
            for each in found for learned in each["learned"]]  # fmt: skip
    if rows:
        click.echo()
        print_table(("PROVIDER", "MODEL", "JOBS SEEN", "CALLBACK OVERDUE AFTER"), rows, empty="")


@click.command()
@asks_server
@shows_json
@pass_session
def handlers(session: Session, as_json: bool) -> None:
    """List handlers: what they want and how they do."""
    found = session.ask(lambda client: client.handlers())
    if as_json:
        print_json({"handlers": found})
        return
    rows = [
        (each["name"], each["use"] or Text("not configured", "yellow"), status(each["health"]["state"]), counts(each["deliveries"]),
         each["counters"].get("deliveries_done", 0), " ".join(each["events"]), shorten(each["health"]["last_error"] or ""))
        for each in found
    ]  # fmt: skip
    columns = ("HANDLER", "USE", "HEALTH", "UNDER WAY", "DONE", "EVENTS", "LAST ERROR")
    print_table(columns, rows, empty="No handlers are configured.", cut=("LAST ERROR",), wrapped=("EVENTS",))
    for each in found:
        if each["where"]:
            where = ", ".join(f"{key} is {' or '.join(wanted)}" for key, wanted in each["where"].items())
            print_lines(Text.assemble(plain(each["name"]), " only where ", plain(where)))
