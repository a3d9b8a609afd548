"""What a server of ours offers past ASGI's messages, which cost more than all else about a small request, and the answer that is ready."""

from __future__ import annotations

from typing import Protocol

from starlette.types import Receive, Scope, Send

EXTENSION = "receiver.exchange"
"""In a scope's `extensions`: an Exchange."""


class Exchange(Protocol):
    """One request and its answer, on a server that takes bytes as they are."""

    def take_body(self) -> bytes | None:
        """The whole body, where it is there already; None where it is to be received."""

    def write(self, after_date: bytes) -> bool:
        """A whole 200, from the line after the date on; False where this time it is to be sent."""


def exchange_of(scope: Scope) -> Exchange | None:
    found: Exchange | None = scope.get("extensions", {}).get(EXTENSION)
    return found


class Prepared:
    """200 with these headers and this body."""

    def __init__(self, headers: list[tuple[bytes, bytes]], body: bytes) -> None:
        self._headers, self._body = headers, body
        self._after_date = b"".join(b"%s: %s\r\n" % header for header in headers) + b"\r\n" + body

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange = exchange_of(scope)
        if exchange is None or not exchange.write(self._after_date):
            await send({"type": "http.response.start", "status": 200, "headers": self._headers.copy()})
            await send({"type": "http.response.body", "body": self._body})
