"""`/v1/jobs/{id}/outputs/{index}`: the file of an output, made harmless for a browser."""

from __future__ import annotations

import asyncio
import mimetypes
import os
import re
import stat
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import unquote, urlsplit

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import FileResponse, RedirectResponse, Response
from starlette.types import Message, Receive, Scope, Send

from receiver.errors import NotFound
from receiver.model import Job, Output
from receiver.web.operations import services_of
from receiver.web.problems import problem
from receiver.web.query import Query

MEDIA_TYPE = re.compile(r"[a-z0-9][a-z0-9!#$&^_.+-]{0,126}/[a-z0-9][a-z0-9!#$&^_.+-]{0,126}")
FILE_HEADERS: Mapping[str, str] = {"Content-Security-Policy": "sandbox; default-src 'none'", "Cache-Control": "private, no-cache"}


async def send_output(request: Request, query: Query) -> Response:
    job = await services_of(request).store.read_job(request.path_params["id"])
    output = None if job is None else find_output(job, request.path_params["index"])
    if job is None or output is None:
        raise NotFound("There is no such output.")
    stored = await find_file(output)
    if stored is not None:
        return send_file(job, output, *stored)
    if output.url is None:
        return await send_data(request, job, output)
    return redirect_to(output.url)


def find_output(job: Job, index: str) -> Output | None:
    return next((output for output in job.outputs if str(output.index) == index), None)


async def find_file(output: Output) -> tuple[Path, os.stat_result] | None:
    """The stored file, if it is one of this machine and still there."""
    if output.stored is None:
        return None
    uri = urlsplit(output.stored.uri)
    if uri.scheme != "file" or uri.netloc not in {"", "localhost"}:
        return None
    path = Path(unquote(uri.path))
    try:
        found = await asyncio.to_thread(os.stat, path)
    except (OSError, ValueError):
        return None
    return (path, found) if stat.S_ISREG(found.st_mode) else None


def send_file(job: Job, output: Output, path: Path, found: os.stat_result) -> Response:
    media_type = safe_media_type(output.stored.media_type if output.stored else None)
    name = f"{job.id}-{output.index}{path.suffix}"
    return StoredFile(
        path,
        headers=FILE_HEADERS,
        media_type=media_type,
        filename=name,
        stat_result=found,
        content_disposition_type=disposition(media_type),
    )


async def send_data(request: Request, job: Job, output: Output) -> Response:
    """An output that came inside its notice; such a notice is small enough to be in memory."""
    async with services_of(request).outputs.open(job.id, output.index) as stream:
        body = b"".join([chunk async for chunk in stream])
        media_type = safe_media_type(stream.media_type)
    name = f"{job.id}-{output.index}{mimetypes.guess_extension(media_type) or ''}"
    return Response(
        body, headers={**FILE_HEADERS, "Content-Disposition": f'{disposition(media_type)}; filename="{name}"'}, media_type=media_type
    )


def redirect_to(url: str) -> Response:
    try:
        is_web = urlsplit(url).scheme in {"http", "https"} and bool(urlsplit(url).hostname)
    except ValueError:
        is_web = False
    if not is_web:
        raise NotFound("The provider's link of this output is no web address.")
    return RedirectResponse(url, 307)


class StoredFile(FileResponse):
    """A file whose refusals (a `Range` that it has not) are problems like all others."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        # RFC 9110, 14.2: a range in a unit that we do not know is ignored.
        headers = [(name, value) for name, value in scope["headers"] if name != b"range" or value.strip().lower().startswith(b"bytes=")]
        scope = {**scope, "headers": headers}
        refusal: Response | None = None

        async def send_or_explain(message: Message) -> None:
            nonlocal refusal
            if message["type"] == "http.response.start" and message["status"] in {400, 416}:
                found = Headers(raw=message["headers"]).get("content-range")
                detail = "The file has no such part." if found else "The Range header is malformed."
                refusal = problem(message["status"], detail, headers={"Content-Range": found} if found else None)
                await refusal(scope, receive, send)
            elif refusal is None:
                await send(message)

        await super().__call__(scope, receive, send_or_explain)


def safe_media_type(given: str | None) -> str:
    media_type = (given or "").partition(";")[0].strip().lower()
    return media_type if MEDIA_TYPE.fullmatch(media_type) else "application/octet-stream"


def disposition(media_type: str) -> str:
    """`inline` only for what a browser shows without running it (SVG holds scripts)."""
    is_shown = media_type.partition("/")[0] in {"image", "video", "audio"} and not media_type.startswith("image/svg")
    return "inline" if is_shown else "attachment"
