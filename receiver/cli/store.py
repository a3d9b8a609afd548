"""`receiver migrate` and `prune`: upkeep of the database by hand."""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

import click

from receiver.cli.moving import move_installation
from receiver.cli.output import print_json
from receiver.cli.session import Session, pass_session, run_async, shows_json
from receiver.config import StoreConfig
from receiver.config_tables import hide_passwords
from receiver.config_values import is_postgres, store_url
from receiver.errors import ConfigError, Mistake
from receiver.stores import open_store
from receiver.stores.sqlite import parse_url
from receiver.sweeper import BATCH, ORPHAN_RETENTION


@click.command()
@click.option("--from", "source", metavar="URL", help="Take the installation at this sqlite:/// URL …")
@click.option("--to", "target", metavar="URL", help="… to this sqlite:/// or postgresql:// URL, where nothing is yet.")
@shows_json
@pass_session
def migrate(session: Session, source: str | None, target: str | None, as_json: bool) -> None:
    """Bring the configured database up to date; the server does the same at its start.

    With --from and --to a file: copy an installation, database and secret, while it may be running. With --to a PostgreSQL database:
    move it there, after every server that works with the file was stopped. Killed on the way, it goes on when it is run again.
    """
    if (source is None) != (target is None):
        raise click.UsageError("--from and --to belong together.")
    if source is not None and target is not None:
        origin = sqlite_path(source, "--from")
        if is_postgres(target):
            move_installation(origin, target, as_json=as_json)
            return
        copy = sqlite_path(target, "--to")
        copy_installation(origin, copy)
        print_json({"from": str(origin), "to": str(copy)}) if as_json else click.echo(f"Copied {origin} to {copy}.")
        return
    store = session.config.store
    before = read_version(store.url)
    run_async(open_and_close(store))
    after = read_version(store.url)
    if as_json:
        print_json({"url": hide_passwords(store.url), "before": before, "version": after})
    elif before == after:
        click.echo(f"{hide_passwords(store.url)} is up to date" + (f", at version {after}." if after else "."))
    else:
        click.echo(f"{store.url} went from version {before} to {after}." if before else f"{store.url} was made, at version {after}.")


async def open_and_close(store: StoreConfig) -> None:
    async with open_store(store.url, listen_url=store.listen_url):
        pass


def copy_installation(source: Path, target: Path) -> None:
    if not source.is_file():
        raise ConfigError([Mistake("", "--from", f"there is no database at {source}")])
    if target.exists():
        raise ConfigError([Mistake("", "--to", f"{target} is there already; name a new file, or move it away")])
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        run_async(back_up(source, target))
        copy_secret(source, target)
    except OSError as error:
        raise ConfigError([Mistake("", "--to", f"{error.filename} cannot be written: {error.strerror}")]) from None


async def back_up(source: Path, target: Path) -> None:
    async with open_store(f"sqlite:///{source}") as store:
        await store.backup(str(target))


def copy_secret(source: Path, target: Path) -> None:
    """Without it callbacks that are under way would be refused."""
    secret = source.with_suffix(".secret")
    if secret.is_file():
        with os.fdopen(os.open(target.with_suffix(".secret"), os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(secret.read_bytes())


def sqlite_path(url: str, option: str) -> Path:
    try:
        found = store_url(Path.cwd())(url)
    except ValueError as error:
        raise click.BadParameter(f"{error}", param_hint=option) from None
    if not found.startswith("sqlite:"):
        raise click.BadParameter("must be a sqlite:/// database; PostgreSQL is copied by its own pg_dump", param_hint=option)
    return path_of(found)


def path_of(url: str) -> Path:
    """Of a SQLite URL as the configuration holds it."""
    return parse_url(url)


def read_version(url: str) -> int | None:
    """The version of the schema in a SQLite file, 0 where there is none yet; None: another store, which keeps it to itself."""
    if is_postgres(url):
        return None
    path = path_of(url)
    if not path.is_file():
        return 0
    try:
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as db:
            return int(db.execute("SELECT max(number) FROM migrations").fetchone()[0] or 0)
    except sqlite3.Error:
        return 0  # opening it says what is wrong


@click.command()
@shows_json
@pass_session
def prune(session: Session, as_json: bool) -> None:
    """Delete now what is past [store] retention and raw_retention; the server does the same all the time."""
    rows = run_async(prune_all(session.config.store))
    print_json({"pruned": rows}) if as_json else click.echo(f"{rows} rows pruned.")


async def prune_all(config: StoreConfig) -> int:
    now, total = datetime.now(UTC), 0
    async with open_store(config.url, listen_url=config.listen_url) as store:
        while rows := await store.prune(now, config.retention, config.raw_retention, ORPHAN_RETENTION, BATCH):
            total += rows
    return total
