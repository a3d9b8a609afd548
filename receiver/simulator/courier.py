"""Tells the news of jobs, by callback or on a stream, with everything that can go wrong on that way."""

from __future__ import annotations

import asyncio
import dataclasses
import gzip
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from urllib.parse import urlsplit, urlunsplit

import msgspec

from receiver.net import HTTPError, plain_client
from receiver.simulator.engine import Engine, Job, News, State
from receiver.simulator.ledger import CallbackEntry, StreamEntry
from receiver.simulator.scenario import Fault

HUGE_BYTES = 2 * 1024 * 1024
AT_ONCE = 50  # callbacks under way; the client's pool gets slow with hundreds that wait
TIMEOUT_SECONDS = 10.0  # of one callback (https://docs.hoox.video/webhooks/overview); real time, whatever the speed


@dataclass(frozen=True)
class Parcel:
    """One callback, ready to be sent."""

    url: str
    body: bytes
    headers: Mapping[str, str]
    kind: str  # "real", or the fault that made it


class Courier:
    """Sends callbacks and feeds streams."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._client = plain_client()
        self._turns = asyncio.Semaphore(AT_ONCE)
        self._listeners: set[asyncio.Queue[str | None]] = set()

    async def close(self) -> None:
        self.drop_listeners()
        await self._client.aclose()

    # What is told

    def announce(self, job: Job) -> None:
        """Tells of the state that the job has just reached, after what was told of it before."""
        wire = job.order.wire
        is_talkative = bool(wire.tells) and (job.has(Fault.CHATTY) or job.has(Fault.REORDERED))
        told = job.state in wire.tells or (is_talkative and not job.state.is_final)
        if not told or (not wire.is_stream and job.order.callback_url is None):
            return
        news = wire.news(job)
        if job.has(Fault.REORDERED) and not job.state.is_final:
            job.held.append((job.state, news))
        else:
            job.sending = self.engine.spawn(self._tell(job, job.state, news, after=job.sending))

    async def _tell(self, job: Job, state: State, news: News, after: asyncio.Task[None] | None) -> None:
        if after is not None:
            await asyncio.wait({after})
        if job.has(Fault.LOST):
            self._note(job, state, kind=Fault.LOST)
            return
        if state.is_final and job.has(Fault.LATE):
            await self.engine.pause(job.scenario.delay)
        if state.is_final:
            await self._tell_lies(job)
        for told_state, told in [(state, news), *(job.held if state.is_final else [])]:
            for _ in range(2 if job.has(Fault.TWICE) else 1):
                await self._push(job, told_state, told)

    async def _push(self, job: Job, state: State, news: News) -> None:
        if job.order.wire.is_stream:
            self._publish(job, state, news)
        else:
            await self._send(job, state, _pack(job, news))

    async def _tell_lies(self, job: Job) -> None:
        if job.order.callback_url is None:
            return
        forgery = dataclasses.replace(job, state=State.SUCCEEDED, files=(), held=[])
        if job.has(Fault.FORGED):
            parcel = _pack(job, job.order.wire.news(forgery))
            if job.order.wire.is_signed:  # by somebody who knows the URL but not the secret
                headers = {**parcel.headers, **job.order.wire.sign(job, b"another body")}
                forged = dataclasses.replace(parcel, headers=headers, kind=Fault.FORGED)
            else:
                forged = dataclasses.replace(parcel, url=_with_wrong_token(parcel.url), kind=Fault.FORGED)
            await self._send(job, State.SUCCEEDED, forged)
        if job.has(Fault.FOREIGN):
            foreign = dataclasses.replace(forgery, id=job.order.wire.make_id(job.order))
            parcel = _pack(job, job.order.wire.news(foreign))
            await self._send(job, State.SUCCEEDED, dataclasses.replace(parcel, kind=Fault.FOREIGN))

    # Callbacks

    async def _send(self, job: Job, state: State, parcel: Parcel) -> None:
        """Posts until a 2xx comes or the provider's retries are used up."""
        pauses = job.order.wire.retries if parcel.kind == "real" else ()
        for attempt, pause in enumerate((0.0, *pauses), start=1):
            if pause:
                await self.engine.pause(pause)
            status, error = await self._post(parcel)
            self._note(job, state, kind=parcel.kind, attempt=attempt, status=status, error=error)
            if status is not None and 200 <= status < 300:
                return

    async def _post(self, parcel: Parcel) -> tuple[int | None, str | None]:
        try:
            async with self._turns:
                answer = await self._client.post(parcel.url, content=parcel.body, headers=dict(parcel.headers), timeout=TIMEOUT_SECONDS)
        except (HTTPError, ValueError) as error:
            return None, f"{type(error).__name__}: {error}"
        return answer.status_code, None

    def _note(self, job: Job, state: State, *, kind: str, attempt: int = 0, status: int | None = None, error: str | None = None) -> None:
        entry = CallbackEntry(
            at=self.engine.now(),
            provider=job.order.wire.name,
            job_id=job.id,
            state=state.value,
            kind=str(kind),
            attempt=attempt,
            status=status,
            error=error,
        )
        self.engine.ledger.callbacks.append(entry)

    # Streams

    @asynccontextmanager
    async def listen(self) -> AsyncIterator[asyncio.Queue[str | None]]:
        """A queue of what is told on the stream from now on; None is its end."""
        queue: asyncio.Queue[str | None] = asyncio.Queue()
        self._listeners.add(queue)
        self.engine.ledger.streams_opened += 1
        try:
            yield queue
        finally:
            self._listeners.discard(queue)

    def drop_listeners(self) -> None:
        for queue in self._listeners:
            queue.put_nowait(None)
        self._listeners.clear()

    def _publish(self, job: Job, state: State, news: News) -> None:
        if job.has(Fault.STREAM_DROPPED):
            self.drop_listeners()
        text = f"event: {news.event}\ndata: {_encode(job, news).decode(errors='replace')}\n\n"
        for queue in self._listeners:
            queue.put_nowait(text)
        entry = StreamEntry(at=self.engine.now(), job_id=job.id, state=state.value, listeners=len(self._listeners))
        self.engine.ledger.streamed.append(entry)


def _pack(job: Job, news: News) -> Parcel:
    body = _encode(job, news)
    headers = {"content-type": "application/json", **news.headers}
    if job.has(Fault.GZIP):
        body, headers["content-encoding"] = gzip.compress(body), "gzip"
    return Parcel(job.order.callback_url or "", body, headers | job.order.wire.sign(job, body), "real")


def _encode(job: Job, news: News) -> bytes:
    if job.has(Fault.GARBLED):
        return b"<html>Bad gateway</html>"
    body = {key: value for key, value in news.body.items() if not (job.has(Fault.NO_ID) and key in news.id_fields)}
    if job.has(Fault.HUGE):
        body["padding"] = "x" * HUGE_BYTES
    encoded = msgspec.json.encode(body)
    return encoded[: len(encoded) // 2] if job.has(Fault.TRUNCATED) else encoded


def _with_wrong_token(url: str) -> str:
    """The same URL with the second half of its last path segment turned round and marked."""
    parts = urlsplit(url)
    head, _, token = parts.path.rpartition("/")
    middle = len(token) // 2
    return urlunsplit(parts._replace(path=f"{head}/{token[:middle]}{token[middle:][::-1]}0"))
