"""Output links: made, served like a CDN does, and expired on demand."""

from __future__ import annotations

import base64
import math
import uuid
from dataclasses import dataclass
from datetime import datetime
from urllib.parse import quote, urlsplit, urlunsplit

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.types import Receive, Scope, Send

from receiver.simulator.engine import Engine, Job
from receiver.simulator.ledger import DownloadEntry
from receiver.simulator.media import render
from receiver.simulator.scenario import Fault

EXPIRED = b"<?xml version='1.0' encoding='UTF-8'?><Error><Code>AccessDenied</Code><Message>Request has expired</Message></Error>"
OTHER_HOST = {"127.0.0.1": "localhost", "localhost": "127.0.0.1"}


@dataclass
class Link:
    """One way to a file; its address is `/files/{token}/{index}.{extension}`."""

    job: Job
    index: int
    expires_at: datetime | None
    downloads: int = 0


class Links:
    """Every link that was given out."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._links: dict[str, Link] = {}
        self._urls: dict[tuple[str, int], str] = {}  # of links that live for ever: given out again

    def reset(self) -> None:
        self._links.clear()
        self._urls.clear()

    def urls(self, job: Job) -> list[str]:
        """Where the outputs of a job are; fresh links each time if they expire."""
        return [self._url(job, index) for index in range(len(job.files))]

    def _url(self, job: Job, index: int) -> str:
        if job.has(Fault.DATA_URI):
            file = job.serve(index)
            return f"data:{file.media_type};base64,{base64.b64encode(file.content).decode()}"
        if job.scenario.expires is None:
            key = (f"{job.order.wire.name}/{job.id}", index)
            if key not in self._urls:
                self._urls[key] = self._make(job, index, None)
            return self._urls[key]
        expires_at = self.engine.after(job.scenario.expires)
        return f"{self._make(job, index, expires_at)}?Expires={math.ceil(expires_at.timestamp())}&Signature=simulated"

    def _make(self, job: Job, index: int, expires_at: datetime | None) -> str:
        token = uuid.uuid4().hex[:16]
        self._links[token] = Link(job, index, expires_at)
        return f"{job.order.origin}/files/{token}/{index}.{job.files[index].extension}"

    def thumbnail(self, job: Job) -> str:
        """The address of a picture of a job."""
        return f"{job.order.origin}/thumbnails/{quote(job.id, safe='')}.png"

    async def serve_thumbnail(self, request: Request) -> Response:
        return Response(render("image", request.path_params["name"]), media_type="image/png")

    async def serve(self, request: Request) -> Response:
        """A file, or part of it, as a CDN would answer."""
        link = self._links.get(request.path_params["token"])
        if link is None:
            return Response("no such file", 404)
        return self._serve(link, request)

    def serve_file(self, job: Job, index: int, request: Request) -> Response:
        """A file at an address of the provider's own."""
        key = f"{job.order.wire.name}/{job.id}/{index}"
        return self._serve(self._links.setdefault(key, Link(job, index, None)), request)

    def _serve(self, link: Link, request: Request) -> Response:
        link.downloads += 1
        response = self._answer(link, request)
        entry = DownloadEntry(
            at=self.engine.now(),
            job_id=link.job.id,
            index=link.index,
            status=response.status_code,
            has_key=_has_key(request),
            range=request.headers.get("range"),
        )
        self.engine.ledger.downloads.append(entry)
        return response

    def _answer(self, link: Link, request: Request) -> Response:
        if link.expires_at is not None and self.engine.now() >= link.expires_at:
            return Response(EXPIRED, 403, media_type="application/xml")
        if link.job.has(Fault.REDIRECTED) and "moved" not in request.query_params:
            return RedirectResponse(_elsewhere(str(request.url)), 302)
        if link.job.has(Fault.PRIVATE) and "moved" not in request.query_params and not _has_key(request):
            return Response("a key is needed", 401)
        return _serve_content(link, request)


def _serve_content(link: Link, request: Request) -> Response:
    file = link.job.serve(link.index)
    content, etag = file.content, f'"{file.sha256[:32]}"'
    headers = {"etag": etag, "accept-ranges": "bytes", "content-type": file.media_type}
    if request.headers.get("if-none-match") == etag:
        return Response(status_code=304, headers=headers)
    wanted = request.headers.get("range")
    span = None if wanted is None or request.headers.get("if-range", etag) != etag else _read_range(wanted, len(content))
    if span is not None and span[0] >= span[1]:
        return Response(status_code=416, headers={**headers, "content-range": f"bytes */{len(content)}"})
    is_cut = link.job.has(Fault.CUT) and link.downloads == 1
    if span is None:
        return (CutResponse if is_cut else Response)(content, 200, headers)
    headers["content-range"] = f"bytes {span[0]}-{span[1] - 1}/{len(content)}"
    return (CutResponse if is_cut else Response)(content[slice(*span)], 206, headers)


def _read_range(value: str, size: int) -> tuple[int, int] | None:
    """`bytes=2-5` → (2, 6); an empty span where nothing can be served; None for what is to be ignored."""
    unit, _, span = value.partition("=")
    first, dash, last = span.strip().partition("-")
    if unit.strip() != "bytes" or not dash or not (first or last) or not (first + last).isdigit():
        return None
    if not first:
        return max(0, size - int(last)), size
    return int(first), min(size, int(last) + 1 if last else size)


def _has_key(request: Request) -> bool:
    return "authorization" in request.headers or "ocp-apim-subscription-key" in request.headers


def _elsewhere(url: str) -> str:
    """The same file under the machine's other name."""
    parts = urlsplit(url)
    host = OTHER_HOST.get(parts.hostname or "", parts.hostname or "")
    query = f"{parts.query}&moved=1" if parts.query else "moved=1"
    return urlunsplit(parts._replace(netloc=host if parts.port is None else f"{host}:{parts.port}", query=query))


class CutResponse(Response):
    """Promises the whole body and sends half of it; the server then closes the connection."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        await send({"type": "http.response.body", "body": bytes(self.body)[: len(self.body) // 2], "more_body": True})
