"""Hands events to an address by the built-in webhook handler, which signs them: what arrives is what a server would send."""

from __future__ import annotations

import asyncio
import base64
import secrets
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import click
import structlog

from receiver.client import Event, Pause
from receiver.config import HandlerConfig
from receiver.errors import ConfigError, Mistake, PermanentError, RetryLater
from receiver.handling import Context, Handler, HTTPError, load_handler
from receiver.model import Event as ModelEvent
from receiver.net import plain_client

TRIES = 3  # of an address that answers, but not well
LONGEST_WAIT = 30.0  # seconds; a Retry-After above is for servers, not for someone who looks on


class Forwarder:
    """`hand` says how it went: `ok`, or what the address answered."""

    def __init__(self, handler: Handler, secret: str, url: str) -> None:
        self.secret = secret
        self._handler, self._url = handler, url

    async def hand(self, event: Event) -> str:
        pause = Pause()
        tries, is_away = 0, False
        while True:
            try:
                await self._handler.handle(ModelEvent(**_attributes(event)))
            except PermanentError as error:
                return str(error)
            except (HTTPError, RetryLater) as error:
                has_answered = isinstance(error, RetryLater) or type(error) is HTTPError
                tries += has_answered
                if tries == TRIES:
                    return f"given up: {error}"
                if not has_answered and not is_away:
                    click.echo(f"{self._url} does not answer ({error}); trying again until it does", err=True)
                    is_away = True
                await asyncio.sleep(min(error.seconds, LONGEST_WAIT) if isinstance(error, RetryLater) else pause.next())
            else:
                return "ok"


def option_of(mistake: Mistake) -> str:
    """The command's option, for one of the handler's."""
    return "--secret" if ".secrets" in mistake.key else "--forward"


@asynccontextmanager
async def open_forwarder(url: str, secret: str | None) -> AsyncIterator[Forwarder]:
    """A usage error where the address or the secret is none."""
    secret = secret or "whsec_" + base64.b64encode(secrets.token_bytes(24)).decode()
    try:
        plugin = load_handler(HandlerConfig(name="forward", use="webhook", options={"url": url, "secrets": [secret]}), Path())
    except ConfigError as error:
        raise click.UsageError("; ".join(f"{option_of(mistake)}: {mistake.detail}" for mistake in error.mistakes)) from None
    async with plain_client() as http:
        context = Context(
            name="forward",
            log=structlog.get_logger("receiver.cli"),
            http=http,
            direct_http=http,
            folder=Path(),
            emit=_refuse,
            open_output=_refuse,
            record_stored=_refuse,
        )
        yield Forwarder(plugin.build(context), secret, url)


def _refuse(*_: Any) -> Any:
    raise RuntimeError("events are only handed on here")


def _attributes(event: Mapping[str, Any]) -> dict[str, Any]:
    names = ("id", "type", "source", "subject", "time", "sequence", "traceparent", "data")
    return {name: event[name] for name in names if name in event}
