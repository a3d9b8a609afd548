"""The bytes of a job's outputs, wherever they are: behind the provider's link, behind a fresh one, or inside a notice."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from datetime import datetime, timedelta

from receiver.clock import Clock
from receiver.errors import NotFound, OutputGone, ProviderFault
from receiver.guarded import ENCODED
from receiver.model import Answer, Job, Output, Request
from receiver.net import AsyncClient, ProviderClient, Response, read_retry_after
from receiver.normalize import PollFailure, read_data_uri, read_lookup_answer, read_poll_answer, read_result_answer
from receiver.providers.account import Account
from receiver.providers.requests import build_lookup_request, build_poll_request, build_result_request
from receiver.stores.base import Reading

CHUNK_BYTES = 64 * 1024
CALL_TIMEOUT = timedelta(seconds=30)
# What signed links answer when their time is over: S3 and Azure 403, Google Cloud Storage 400, others 401, 404 or 410.
DEAD = frozenset({400, 401, 403, 404, 410})
CONTENT_RANGE = re.compile(r"bytes (?:(\d{1,18})-\d{1,18}|\*)/(\d{1,18}|\*)")
UNTYPED = frozenset({"", "application/octet-stream", "binary/octet-stream"})


class OutputStream:
    """The bytes of an output from `offset`, where the other side really began, to its end; read once.

    `media_type` is what the other side names it, which need not be true. `total` is the size of the whole output and `expires_at`
    the end of its link, where they are known. Reading raises `HTTPError` when the connection breaks.
    """

    def __init__(
        self, chunks: AsyncIterator[bytes], *, media_type: str | None, offset: int, total: int | None, expires_at: datetime | None = None
    ) -> None:
        self._chunks = chunks
        self.media_type, self.offset, self.total, self.expires_at = media_type, offset, total, expires_at

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self._chunks


class Outputs:
    """Opens outputs. Links are fetched by the guarded client; the provider's key goes along only where the spec says so."""

    def __init__(
        self, store: Reading, accounts: Mapping[str, Account], provider_client: ProviderClient, guarded_client: AsyncClient, clock: Clock
    ) -> None:
        self._store, self._accounts, self._provider, self._http, self._clock = store, accounts, provider_client, guarded_client, clock

    @asynccontextmanager
    async def open(self, job_id: str, index: int, offset: int = 0) -> AsyncIterator[OutputStream]:
        """From `offset` on where the other side can, else from the start; the size is the caller's to bound.

        NotFound: there is no such output. OutputGone: it is not there any more. ProviderFault and HTTPError: not now. Denied (an
        HTTPError too): its address may not be reached.
        """
        job = await self._store.read_job(job_id)
        output = None if job is None else _find(job.outputs, index)
        if job is None or output is None:
            raise NotFound("There is no such output.")
        if output.url is None:
            yield await self._open_data(job, output, offset)
            return
        response, output = await self._fetch(job, output, offset)
        try:
            yield _make_stream(response, output, offset)
        finally:
            await response.aclose()

    async def _open_data(self, job: Job, output: Output, offset: int) -> OutputStream:
        account = self._accounts.get(job.provider)
        notice = None if output.notice_id is None else await self._store.read_notice(output.notice_id)
        if account is None or notice is None or not notice.body:
            raise OutputGone("The output came inside a notice whose body is not kept any more.")
        media_type, body = read_data_uri(account, job, notice, output.index)
        start = min(offset, len(body))
        return OutputStream(_cut(body[start:]), media_type=media_type or output.media_type, offset=start, total=len(body))

    async def _fetch(self, job: Job, output: Output, offset: int) -> tuple[Response, Output]:
        account = self._accounts.get(job.provider)
        response = await self._get(account, output, offset)
        if response.status_code in DEAD:
            await response.aclose()
            fresh = await self._ask_again(account, job, output.index)
            if fresh is None:
                raise OutputGone(why_gone(response.status_code))
            output, response = fresh, await self._get(account, fresh, offset)
        if response.status_code in (200, 206, 416):
            return response, output
        await response.aclose()
        if response.status_code in DEAD:
            raise OutputGone(why_gone(response.status_code))
        raise ProviderFault(f"the output's host answered {response.status_code}", job.provider, read_retry_after(response))

    async def _get(self, account: Account | None, output: Output, offset: int) -> Response:
        assert output.url is not None
        response = await self._get_from(output.url, {}, offset)
        if response.status_code in DEAD and account is not None and account.output_may_have_key(output.url):
            await response.aclose()
            response = await self._get_from(output.url, account.auth_headers, offset)
        return response

    async def _get_from(self, url: str, headers: dict[str, str], offset: int) -> Response:
        """From `offset` where that works, else the whole."""
        if offset:
            response = await self._send(url, {**headers, "range": f"bytes={offset}-"})
            if response.status_code not in (206, 416) or _is_continued(response, offset):
                return response
            await response.aclose()
        return await self._send(url, headers)

    async def _send(self, url: str, headers: dict[str, str]) -> Response:
        return await self._http.send(self._http.build_request("GET", url, headers={"accept-encoding": "identity", **headers}), stream=True)

    async def _ask_again(self, account: Account | None, job: Job, index: int) -> Output | None:
        """Polls often give a fresh link each time."""
        if account is None or job.remote_id is None:
            return None
        said = read_poll_answer(account, job, await self._call(build_poll_request(account, job)), self._clock.now())
        lookup = build_lookup_request(account, job)
        if isinstance(said, PollFailure) and said.not_found and lookup is not None:
            said = read_lookup_answer(account, job, await self._call(lookup), self._clock.now())
        result = build_result_request(account, job)
        if not isinstance(said, PollFailure) and not said.outputs and result is not None:
            said = read_result_answer(account, job, await self._call(result), self._clock.now())
        if not isinstance(said, PollFailure):
            fresh = _find(said.outputs, index)
            return None if fresh is None or fresh.url is None else fresh
        if said.not_found:
            return None
        raise ProviderFault(f"no fresh link for an output: {said.reason}", account.name, said.retry_after)

    async def _call(self, request: Request) -> Answer:
        return await self._provider.send(request, timeout=CALL_TIMEOUT)


def _find(outputs: tuple[Output, ...], index: int) -> Output | None:
    return next((output for output in outputs if output.index == index), None)


def why_gone(status: int) -> str:
    hint = " If it wants the provider's key, output_hosts in the spec has to name it." if status in (401, 403) else ""
    return f"The output's host answers HTTP {status}, and a fresh link did not help.{hint}"


def _is_continued(response: Response, offset: int) -> bool:
    """Whether an answer to a range goes on exactly where it should; a 416 does when everything was there already."""
    start, total = _read_range(response)
    if response.extensions.get(ENCODED):
        return False
    return start == offset if response.status_code == 206 else total == offset


def _read_range(response: Response) -> tuple[int | None, int | None]:
    """Start and size of the whole, by Content-Range."""
    found = CONTENT_RANGE.fullmatch(response.headers.get("content-range", "").strip())
    if found is None:
        return None, None
    start, total = found[1], found[2]
    return None if start is None else int(start), None if total == "*" else int(total)


def _make_stream(response: Response, output: Output, offset: int) -> OutputStream:
    media_type = response.headers.get("content-type", "").partition(";")[0].strip().lower()
    known = output.media_type if media_type in UNTYPED else media_type
    if response.status_code == 200:
        length = response.headers.get("content-length", "")
        total = int(length) if length.isascii() and length.isdigit() and len(length) < 19 else None
        return OutputStream(response.aiter_bytes(), media_type=known or None, offset=0, total=total, expires_at=output.expires_at)
    start, total = _read_range(response)
    if response.status_code == 206 and start == offset:
        chunks = response.aiter_bytes()
    elif response.status_code == 416 and total == offset > 0:
        chunks, known = _cut(b""), output.media_type
    else:
        raise ProviderFault(f"the output's host answered {response.status_code} to what was no question for it")
    return OutputStream(chunks, media_type=known or None, offset=offset, total=total, expires_at=output.expires_at)


async def _cut(body: bytes) -> AsyncIterator[bytes]:
    for start in range(0, len(body), CHUNK_BYTES):
        yield body[start : start + CHUNK_BYTES]
