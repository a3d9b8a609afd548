"""Which handlers want an event: globs on its type and on fields of its job. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from fnmatch import fnmatchcase
from functools import lru_cache
from typing import Any

from receiver.config import HandlerConfig
from receiver.ids import make_id
from receiver.model import Delivery, Event, Job

ABOUT_OURSELVES = "receiver."


def wants(handler: HandlerConfig, event: Event) -> bool:
    return is_asked_for(event.type, handler.events) and (not handler.where or fits(handler.where, event))


@lru_cache(maxsize=1_000)  # there are few types, and each handler is asked about every event
def is_asked_for(type: str, globs: tuple[str, ...]) -> bool:
    return any(fnmatchcase(type, glob) for glob in globs)


def fits(where: Mapping[str, Sequence[str]], event: Event) -> bool:
    """Every condition must match; one condition matches when any of its globs does. A field that the job does not have matches none."""
    job = event.data.get("job")
    return all(isinstance(job, dict) and is_match(value_of(job, key), globs) for key, globs in where.items())


def is_match(value: str | None, globs: Sequence[str]) -> bool:
    return value is not None and any(fnmatchcase(value, glob) for glob in globs)


def value_of(job: dict[str, Any], key: str) -> str | None:
    """`metadata.team` → the text of that field, None where there is none."""
    value: Any = job
    for part in key.split(".", 1):
        value = value.get(part) if isinstance(value, dict) else None
    return None if value is None else str(value)


def make_deliveries(event: Event, handlers: Iterable[HandlerConfig], now: datetime, job: Job | None = None) -> tuple[Delivery, ...]:
    """One pending delivery per handler that wants the event. Those of a job whose links die soon are urgent."""
    wanting = [handler for handler in handlers if wants(handler, event)]
    if not wanting:
        return ()
    deaths = [output.expires_at for output in job.outputs if output.expires_at] if job else []
    sequence, urgent_at = int(event.sequence), min(deaths, default=None)
    return tuple(
        [
            Delivery(
                id=make_id("dlv", now),
                event_id=event.id,
                event_type=event.type,
                job_id=event.subject,
                handler=handler.name,
                next_attempt_at=now,
                created_at=now,
                updated_at=now,
                sequence=sequence,
                urgent_at=urgent_at,
            )
            for handler in wanting
        ]
    )
