"""The tables of the handlers, `[[handlers]]`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import msgspec

from receiver import config_values as values
from receiver.config_tables import Reading, Settings, Table, plain
from receiver.errors import ConfigError
from receiver.model import MEDIA, ErrorCode, Status

DEFAULT_EVENTS = ("job.succeeded", "job.failed", "job.cancelled", "job.expired")

_WHERE = {"provider": (), "model": (), "media": MEDIA, "operation": (), "status": tuple(Status), "error.code": tuple(ErrorCode)}
_SECRET_OPTIONS = ("secret", "secrets", "token", "password", "key", "api_key", "webhook_url", "urls")


class RetryConfig(Settings, frozen=True, kw_only=True):
    attempts: int = 8
    first: timedelta = timedelta(seconds=2)
    max: timedelta = timedelta(hours=1)


class HandlerConfig(Settings, frozen=True, kw_only=True):
    hidden = ("options",)

    name: str
    use: str
    events: tuple[str, ...] = DEFAULT_EVENTS
    where: dict[str, tuple[str, ...]] = msgspec.field(default_factory=dict)
    retry: RetryConfig = RetryConfig()
    timeout: timedelta = timedelta(seconds=60)
    concurrency: int = 4
    options: dict[str, Any] = msgspec.field(default_factory=dict)


def read_handlers(root: Table) -> tuple[HandlerConfig, ...]:
    written = root.raw("handlers")
    if written is None:
        return ()
    if not isinstance(written, list):
        root.reading.add("handlers", "must be a list of tables: write [[handlers]] above each")
        return ()
    found: dict[str, HandlerConfig] = {}
    for index, item in enumerate(written):
        place = f"handlers[{index}]"
        if not isinstance(item, dict):
            root.reading.add(place, "must be a table: write [[handlers]] above it")
            continue
        handler = _read_handler(root.reading, item, place)
        if handler.name in found:
            root.reading.add(f"{place}.name", f'"{handler.name}" is the name of another handler; each needs its own')
        found[handler.name or place] = handler
    return tuple(found.values())


def _read_handler(reading: Reading, item: dict[str, Any], place: str) -> HandlerConfig:
    """`place` names it in mistakes as long as its own name cannot."""
    head = Table(reading, {key: item[key] for key in item if key == "name"}, place)
    name = head.take_required("name", values.name, "", 'is required: name = "archive"')
    table = Table(reading, {key: item[key] for key in item if key != "name"}, f"handlers.{name}" if name else place)
    table.know("name")
    base = HandlerConfig(name=name, use="")
    handler = HandlerConfig(
        name=name,
        use=table.take_required(
            "use", values.text, "", 'is required: a built-in such as "storage", an entry point, or "package.module:Name"'
        ),
        events=table.take_list("events", values.text, DEFAULT_EVENTS, may_be_empty=False),
        where=_read_where(table),
        retry=_read_retry(table.table("retry")),
        timeout=table.take("timeout", values.duration(), base.timeout),
        concurrency=table.take("concurrency", values.whole(1), base.concurrency),
        options=_read_options(table),
    )
    table.close()
    return handler


def read_handler(settings: Mapping[str, Any], *, file: str, folder: Path) -> HandlerConfig:
    """A handler that a program gives, with what could stand in its table; ConfigError as for one in the file."""
    reading = Reading(file, {}, folder.absolute())
    handler = _read_handler(reading, dict(settings), "handlers")
    if reading.mistakes:
        raise ConfigError(reading.mistakes)
    return handler


def _read_retry(table: Table) -> RetryConfig:
    base = RetryConfig()
    retry = RetryConfig(
        attempts=table.take("attempts", values.whole(1), base.attempts),
        first=table.take("first", values.duration(), base.first),
        max=table.take("max", values.duration(), base.max),
    )
    if retry.first > retry.max and table.reading.is_clean(table.path):
        table.reading.add(table.key("max"), "must not be less than first")
    table.close()
    return retry


def _read_where(table: Table) -> dict[str, tuple[str, ...]]:
    written = table.table("where")
    where = Table(written.reading, dict(_flatten(written)), written.path)
    fields = [field for field in where.names() if field in _WHERE or field.removeprefix("metadata.") not in ("", field)]
    found = {field: where.take_list(field, values.glob(_WHERE.get(field, ())), or_one=True, may_be_empty=False) for field in fields}
    where.know(*_WHERE, "metadata.KEY")
    where.close()
    return found


def _flatten(where: Table) -> Iterator[tuple[str, Any]]:
    """`metadata.team` may be written as one quoted key or as TOML's own dotted key."""
    for field in where.names():
        value = where.raw(field)
        if field in ("metadata", "error") and isinstance(value, dict):
            yield from ((f"{field}.{name}", inner) for name, inner in value.items())
        else:
            yield field, value


def _read_options(table: Table) -> dict[str, Any]:
    options = table.table("options")
    return {name: options.take(name, plain, None, secret=True) for name in options.names()}


def secret_options(options: Any, *, is_secret: bool = False) -> Iterator[str]:
    """Options that call themselves secret, also where they were written out."""
    if isinstance(options, dict):
        for name, value in options.items():
            yield from secret_options(value, is_secret=is_secret or name in _SECRET_OPTIONS)
    elif isinstance(options, list):
        for value in options:
            yield from secret_options(value, is_secret=is_secret)
    elif isinstance(options, str) and is_secret:
        yield options
