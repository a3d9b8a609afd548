"""An answer that is always the same: its messages for any ASGI server, its bytes for a server that takes them as they are."""

from __future__ import annotations

from collections.abc import Callable

from starlette.types import Receive, Scope, Send

EXTENSION = "receiver.prepared"
"""In a scope's `extensions`: writes such bytes, or says that this time it cannot."""

Write = Callable[[bytes], bool]


class Prepared:
    """200 with these headers and this body."""

    def __init__(self, headers: list[tuple[bytes, bytes]], body: bytes) -> None:
        self._headers, self._body = headers, body
        self._after_date = b"".join(b"%s: %s\r\n" % header for header in headers) + b"\r\n" + body

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        write: Write | None = scope.get("extensions", {}).get(EXTENSION)
        if write is None or not write(self._after_date):
            await send({"type": "http.response.start", "status": 200, "headers": self._headers.copy()})
            await send({"type": "http.response.body", "body": self._body})
