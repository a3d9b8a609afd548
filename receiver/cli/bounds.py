"""How much the server takes on at once: more is told to come back, so that memory and open files stay bounded."""

from __future__ import annotations

import json
import resource
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send

MAX_REQUESTS = 5_000  # under way at a time, long polls and streams included
MAX_FILES = 65_536  # sockets are files too; many systems begin with 1,024
RETRY_AFTER = 5  # seconds
BUSY = {"type": "about:blank", "title": "Service Unavailable", "status": 503, "detail": "Too many requests are under way; try again later."}


class Bounded:
    """An application that answers 503 with Retry-After while `most` requests are under way."""

    def __init__(self, app: ASGIApp, most: int = MAX_REQUESTS) -> None:
        self._app, self._most = app, most
        self._under_way = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._under_way >= self._most and scope["type"] == "http":
            await refuse(send)
            return
        self._under_way += 1
        try:
            await self._app(scope, receive, send)
        finally:
            self._under_way -= 1


async def refuse(send: Send) -> None:
    body = json.dumps(BUSY).encode()
    headers = {"content-type": "application/problem+json", "content-length": len(body), "retry-after": RETRY_AFTER, "connection": "close"}
    lines = [(name.encode(), str(value).encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": 503, "headers": lines})
    await send({"type": "http.response.body", "body": body})


def raise_file_limit() -> None:
    """As many open files as the system lets us have."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MAX_FILES if hard == resource.RLIM_INFINITY else min(MAX_FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
