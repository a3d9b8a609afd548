"""Writes one line per event to the log: the smallest handler, and a model for your own."""

from __future__ import annotations

import msgspec

from receiver.handling import Context, Event


class LogOptions(msgspec.Struct):
    """None."""


class Log:
    """Writes one line per event."""

    Options = LogOptions

    def __init__(self, options: LogOptions, context: Context) -> None:
        self._log = context.log

    async def handle(self, event: Event) -> None:
        job = event.data.get("job") or {}
        error = job.get("error") or {}
        self._log.info(
            "event.seen",
            event_id=event.id,
            event_type=event.type,
            job=event.subject,
            provider=job.get("provider"),
            status=job.get("status"),
            outputs=len(job.get("outputs") or ()),
            error=error.get("code"),
        )
