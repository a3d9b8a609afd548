"""`receiver migrate --from sqlite:///… --to postgresql://…`: how far it is, and what is to be done afterwards."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import click

from receiver.cli.output import print_json
from receiver.cli.session import run_async
from receiver.clock import SystemClock
from receiver.config_tables import hide_passwords
from receiver.stores import need_driver

LOOK_EVERY = 0.5  # seconds between two lines about one table


class Board:
    """One line on stderr that moves; where nobody looks, one for each table."""

    def __init__(self) -> None:
        self._shown_at = 0.0
        self._moves = sys.stderr.isatty()

    def tell(self, what: str, table: str, done: int, there: int) -> None:
        if done < there and (not self._moves or time.monotonic() - self._shown_at < LOOK_EVERY):
            return
        self._shown_at = time.monotonic()
        start = "\r\x1b[K" if self._moves else ""
        ending = "" if self._moves and done < there else "\n"
        click.echo(f"{start}{what} {table}: {done:,} of {there:,}{ending}", nl=False, err=True)


def move_installation(path: Path, url: str, *, as_json: bool) -> None:
    need_driver()
    from receiver.stores.moving import move

    counts = run_async(move(path, url, Board().tell, SystemClock()))
    if as_json:
        print_json({"from": str(path), "to": hide_passwords(url), "rows": counts})
        return
    click.echo(f"Moved {path} to {hide_passwords(url)}: {sum(counts.values()):,} rows, each one compared.")
    click.echo(
        "The file stays, and no server starts on it any more. For every node (the secret has signed callbacks that are under way):\n"
    )
    click.echo(f'[server]\nsecrets = {secrets_of(path)}\n[store]\nurl = "{hide_passwords(url)}"')


def secrets_of(path: Path) -> str:
    """What to write, and where to take it from."""
    secret = path.with_suffix(".secret")
    if secret.is_file():
        return f'["${{RECEIVER_SECRET}}"]  # RECEIVER_SECRET="$(cat {secret})"'
    return "…  # as they were"
