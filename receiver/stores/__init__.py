"""Stores: one promise (`base`), one suite, and `open_store`, which picks by URL."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from importlib.util import find_spec

from receiver.clock import Clock, SystemClock
from receiver.errors import ConfigError, Mistake
from receiver.stores.base import Store


def open_store(url: str, *, listen_url: str = "", clock: Clock | None = None) -> AbstractAsyncContextManager[Store]:
    """Open the database that `url` names as a new node, and close it at the end. ConfigError when it cannot be used at all.

    `clock` is the one that `now` comes from: a database with a clock of its own corrects for the difference.
    """
    scheme = url.partition(":")[0]
    if scheme in ("postgresql", "postgres"):
        need_driver()
        from receiver.stores.postgres import open_postgres

        return open_postgres(url, listen_url=listen_url, clock=clock or SystemClock())
    if scheme != "sqlite":
        detail = f"{scheme}: is not a store that this version has; write sqlite:///receiver.db or postgresql://user@host/db"
        raise ConfigError([Mistake("", "store.url", detail)])
    if listen_url:
        raise ConfigError([Mistake("", "store.listen_url", "is for PostgreSQL; leave it out with SQLite")])
    from receiver.stores.sqlite import open_sqlite

    return open_sqlite(url)


def need_driver() -> None:
    """ConfigError where PostgreSQL cannot be spoken to."""
    if find_spec("asyncpg") is None:
        detail = 'PostgreSQL needs a driver: pip install "callback-receiver[postgres]"'
        raise ConfigError([Mistake("", "store.url", detail)])
