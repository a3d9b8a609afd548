"""What the doctor sees on this machine: files, database, configuration. Nothing is made."""

from __future__ import annotations

import os
import shutil
import sqlite3
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import msgspec

from receiver.app import Plan
from receiver.cli.findings import Finding
from receiver.cli.store import path_of, read_version
from receiver.config import Config
from receiver.config_values import is_postgres
from receiver.errors import ConfigError, Unavailable
from receiver.model import Status
from receiver.stores import open_store
from receiver.stores.base import Store
from receiver.telemetry import open_tracing

MIB, GIB = 2**20, 2**30
LITTLE_DISK, NO_DISK = 1024 * MIB, 100 * MIB
SHORT_SECRET = 16
WAL_RESET_FIXED = ((3, 44, 6), (3, 50, 7), (3, 51, 3))  # https://sqlite.org/wal.html#walresetbug


def check_files(config: Config) -> Iterator[Finding]:
    """Keys, secret, SQLite and disk."""
    yield check_keys(config)
    if is_postgres(config.store.url):
        return
    path = path_of(config.store.url)
    yield check_secret(config, path.with_suffix(".secret"))
    yield check_sqlite(sqlite3.sqlite_version_info)
    folder = nearest_folder(path)
    yield check_disk(folder, shutil.disk_usage(folder).free)


def check_keys(config: Config) -> Finding:
    if not config.server.api_keys:
        return Finding("ok", "API keys", "none; only programs on this machine are served")
    short = [key for key in config.server.api_keys if len(key) < SHORT_SECRET]
    if short:
        mend = "`receiver keys new` makes a good one"
        return Finding("warn", "API keys", f"{len(short)} of {len(config.server.api_keys)} are short enough to be guessed", mend)
    return Finding("ok", "API keys", f"{len(config.server.api_keys)} configured")


def check_secret(config: Config, path: Path) -> Finding:
    """The secret that signs callback tokens."""
    if config.server.secrets:
        if any(len(secret) < SHORT_SECRET for secret in config.server.secrets):
            return Finding(
                "warn",
                "secret",
                "one is short enough to be guessed",
                "put a longer one first in server.secrets, and keep the old one behind it",
            )
        return Finding("ok", "secret", f"{len(config.server.secrets)} configured")
    if not path.exists():
        return Finding("ok", "secret", f"the first start makes one at {path}")
    if path.stat().st_mode & 0o077:
        return Finding("warn", "secret", f"{path} can be read by others", f"chmod 600 {path}")
    return Finding("ok", "secret", f"kept at {path}; back it up with the database")


async def check_traces() -> AsyncIterator[Finding]:
    """Nothing where the environment does not ask for them."""
    try:
        async with open_tracing(os.environ) as tracing:
            if tracing.is_on:
                yield Finding("ok", "traces", "are sent where OpenTelemetry's variables say")
    except ConfigError as error:
        for mistake in error.mistakes:
            yield Finding("fail", "traces", f"{mistake.key}: {mistake.detail}")


def check_sqlite(version: tuple[int, ...]) -> Finding:
    shown = ".".join(map(str, version))
    is_fixed = version >= WAL_RESET_FIXED[-1] or any(version[:2] == fixed[:2] and version >= fixed for fixed in WAL_RESET_FIXED)
    if is_fixed:
        return Finding("ok", "SQLite", shown)
    note = "it has the WAL-reset bug, which Receiver's own locks keep clear of; let no other program write to the database"
    return Finding("ok", "SQLite", f"{shown}; {note}")


def check_disk(folder: Path, free: int) -> Finding:
    detail = f"{free / GIB:.1f} GiB free below {folder}"
    if free < NO_DISK:
        return Finding("fail", "disk", detail, "make room: nothing can be acknowledged on a full disk")
    if free < LITTLE_DISK:
        return Finding("warn", "disk", detail, "make room, or lower store.retention and store.raw_retention")
    return Finding("ok", "disk", detail)


def nearest_folder(path: Path) -> Path:
    """The folder of a file, or the first above it that is there."""
    return next((folder for folder in path.absolute().parents if folder.is_dir()), Path("/"))


async def check_store(config: Config, plan: Plan | None) -> AsyncIterator[Finding]:
    """Whether it can be written, and what in it waits for a person."""
    if not is_postgres(config.store.url):
        path = path_of(config.store.url)
        if not path.exists():
            yield check_can_be_made(path)
            return
    try:
        async with open_store(config.store.url, listen_url=config.store.listen_url) as store:
            await store.check_writable()
            yield Finding("ok", "database", describe(config))
            async for finding in check_contents(store, plan):
                yield finding
    except ConfigError as error:
        for mistake in error.mistakes:
            yield Finding("fail", "database", mistake.detail)
    except Unavailable as error:
        yield Finding("fail", "database", str(error), "look at the disk and at the rights of the file and its folder")


def check_can_be_made(path: Path) -> Finding:
    folder = nearest_folder(path)
    if os.access(folder, os.W_OK | os.X_OK):
        return Finding("ok", "database", f"the first start makes {path}")
    return Finding("fail", "database", f"{folder} cannot be written", f"give the user who runs the server the right to write to {folder}")


def describe(config: Config) -> str:
    if is_postgres(config.store.url):
        return "PostgreSQL can be written"
    path = path_of(config.store.url)
    return f"{path} can be written, schema version {read_version(config.store.url)}"


async def check_contents(store: Store, plan: Plan | None) -> AsyncIterator[Finding]:
    jobs, deliveries = await store.count_jobs(), await store.count_deliveries()
    dead = sum(count for (_, state), count in deliveries.items() if state == "dead")
    if dead:
        yield Finding(
            "warn", "deliveries", f"{dead} are dead", "`receiver dead` shows why; `receiver replay --state dead` tries them again"
        )
    unconfirmed = sum(count for (_, status), count in jobs.items() if status == Status.UNCONFIRMED)
    if unconfirmed:
        mend = "`receiver jobs --status unconfirmed` lists them; look at the provider's own list, then resolve each by the API"
        yield Finding("warn", "jobs", f"{unconfirmed} are unconfirmed: they may run, and may be billed", mend)
    if plan is None:
        return
    left: Counter[str] = Counter()
    for (provider, _), count in jobs.items():
        left[provider] += 0 if provider in plan.accounts else count
    for provider, count in left.items():
        if count:
            mend = f"put [providers.{provider}] back to bring them home; their callbacks are kept, nothing is polled"
            yield Finding("warn", f"provider {provider}", f"has {count} open jobs and is not configured any more", mend)
    handlers = {plugin.name for plugin in plan.plugins}
    for name in sorted({handler for handler, _ in deliveries} - handlers):
        yield Finding(
            "warn", f"handler {name}", "has deliveries and is not configured any more", "put it back, or let them go when retention ends"
        )


def check_plan(plan: Plan) -> Iterator[Finding]:
    """What the configuration leaves out."""
    if not plan.accounts:
        yield Finding("warn", "providers", "none is configured", "add a table like [providers.pixazo] with its api_key")
    for name, account in plan.accounts.items():
        if not account.api_key:
            yield Finding("warn", f"provider {name}", "has no key", f'api_key = "${{…}}" below [providers.{name}]')
    calling = [name for name, account in plan.accounts.items() if account.has_callback]
    if plan.config.server.public_url is None:
        detail = f"none; jobs of {', '.join(calling)} are polled, though they could call back" if calling else "none"
        yield Finding("ok", "public URL", detail)
    for plugin in plan.plugins:
        finding = check_target(plugin.name, plugin.config.use, plugin.config.options, plan.config.folder)
        if finding is not None:
            yield finding


def check_target(name: str, use: str, options: dict[str, object], folder: Path) -> Finding | None:
    """Folder or program of a handler."""
    path, argv = options.get("path"), options.get("argv")
    if use == "storage" and isinstance(path, str) and "://" not in path:
        target = nearest_folder(folder / path / "file")
        if not os.access(target, os.W_OK | os.X_OK):
            return Finding(
                "fail", f"handler {name}", f"{target} cannot be written", "give the user who runs the server the right to write there"
            )
        return msgspec.structs.replace(check_disk(target, shutil.disk_usage(target).free), check=f"handler {name}")
    if use == "command" and isinstance(argv, list | tuple) and argv:
        if shutil.which(str(argv[0])) is None:
            return Finding("fail", f"handler {name}", f"there is no program {argv[0]}", "give its whole path in options.argv")
        return Finding("ok", f"handler {name}", f"{argv[0]} is there")
    return None
