"""One method for each call of the HTTP API."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncGenerator, Mapping, Sequence
from datetime import datetime, timedelta
from time import monotonic
from types import TracebackType
from typing import Any, TypeVar
from urllib.parse import quote

import httpx
import msgspec
from httpx_sse import EventSource, SSEError

from receiver import __version__
from receiver.client.documents import (
    CostSum,
    Delivery,
    DeliveryPage,
    Event,
    Job,
    JobPage,
    Submitted,
    Timeline,
)
from receiver.client.problems import ApiError, NotReachable, read_problem

T = TypeVar("T")
FINAL = frozenset({"succeeded", "failed", "cancelled", "expired"})
MAX_WAIT = 60.0  # seconds for which the server holds an answer
MAX_PAGE = 1000
SILENCE = 60.0  # seconds; an open stream says something every 15
FIRST_PAUSE, MAX_PAUSE = 0.5, 15.0  # seconds between two tries to come back


class Client:
    """The API of the server at `url`. ApiError: the server refused. NotReachable: none is there. Closed by `close` or a `with` block."""

    def __init__(self, url: str, api_key: str | None = None, *, transport: httpx.AsyncBaseTransport | None = None) -> None:
        self.url = url.rstrip("/")
        headers = {"accept": "application/json, application/problem+json", "user-agent": f"receiver-client/{__version__}"}
        if api_key:
            headers["authorization"] = f"Bearer {api_key}"
        try:
            self._http = httpx.AsyncClient(
                base_url=self.url,
                headers=headers,
                transport=transport,
                verify=_trust(self.url),
                trust_env=False,
                timeout=httpx.Timeout(MAX_WAIT + 30, connect=10),
            )
            reachable = self._http.base_url.scheme in ("http", "https") and bool(self._http.base_url.host)
        except (httpx.InvalidURL, UnicodeError):
            reachable = False
        if not reachable:
            raise NotReachable(f"{url} is not the address of a server; it is written like http://127.0.0.1:8080")

    async def __aenter__(self) -> Client:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self.close()

    async def close(self) -> None:
        await self._http.aclose()

    # Jobs

    async def submit(
        self,
        provider: str,
        model: str | None = None,
        input: Mapping[str, Any] | None = None,
        *,
        operation: str | None = None,
        media: str | None = None,
        metadata: Mapping[str, str] | None = None,
        deadline: timedelta | float | None = None,
        idempotency_key: str | None = None,
        respond_async: bool = False,
    ) -> Submitted:
        """One call to a provider. With an idempotency key it can be repeated without a second bill; `respond_async` does not wait
        for the provider's answer."""
        seconds = deadline.total_seconds() if isinstance(deadline, timedelta) else deadline
        wishes = {"model": model, "operation": operation, "media": media, "metadata": metadata, "deadline_seconds": seconds}
        body = {"provider": provider, "input": input or {}, **{name: wish for name, wish in wishes.items() if wish is not None}}
        headers = {"prefer": "respond-async"} if respond_async else {}
        if idempotency_key is not None:
            headers["idempotency-key"] = _quoted(idempotency_key)
        return await self._call(Submitted, "POST", "/v1/jobs", body=body, headers=headers)

    async def job(self, job_id: str, *, wait: float = 0) -> Job:
        """The job; with `wait` the answer is held for up to so many seconds (60 at most) until the job is final."""
        return await self._call(Job, "GET", _path("jobs", job_id), query={"wait": f"{wait:f}"} if wait > 0 else {})

    async def wait(self, job_id: str, *, timeout: float | None = None) -> Job:
        """The job once it is final. TimeoutError after so many seconds. A server that is restarted meanwhile is waited for."""
        end = None if timeout is None else monotonic() + timeout
        pause = Pause()
        has_answered = False
        while True:
            left = MAX_WAIT if end is None else end - monotonic()
            try:
                job = await self.job(job_id, wait=max(0.0, min(left, MAX_WAIT)))
            except (NotReachable, ApiError) as error:
                if not has_answered or not error.may_pass or left <= 0:
                    raise
                await asyncio.sleep(min(pause.next(), max(left, 0)))
                continue
            has_answered = True
            pause.reset()
            if job["status"] in FINAL:
                return job
            if left <= 0:
                raise TimeoutError(f"{job_id} is still {job['status']}")

    async def jobs(
        self,
        *,
        provider: str | None = None,
        model: str | None = None,
        status: str | None = None,
        submission_id: str | None = None,
        metadata: Mapping[str, str] | None = None,
        created_after: datetime | None = None,
        created_before: datetime | None = None,
        limit: int | None = None,
        cursor: str | None = None,
    ) -> JobPage:
        """One page of jobs, newest first."""
        query = {"provider": provider, "model": model, "status": status, "submission_id": submission_id, "cursor": cursor}
        query |= {f"metadata.{key}": value for key, value in (metadata or {}).items()}
        query |= {"created_after": _time(created_after), "created_before": _time(created_before)}
        query["limit"] = None if limit is None else str(limit)
        return await self._call(JobPage, "GET", "/v1/jobs", query=query)

    async def every_job(self, **filters: Any) -> AsyncGenerator[Job, None]:
        """All jobs that fit the filters of `jobs`, page by page."""
        cursor: str | None = None
        while True:
            page = await self.jobs(**{"limit": MAX_PAGE, **filters, "cursor": cursor})
            for job in page["jobs"]:
                yield job
            cursor = page["next_cursor"]
            if cursor is None:
                return

    async def costs(
        self,
        *,
        by: Sequence[str] = ("provider", "model"),
        provider: str | None = None,
        model: str | None = None,
        metadata: Mapping[str, str] | None = None,
        created_after: datetime | None = None,
        created_before: datetime | None = None,
    ) -> list[CostSum]:
        """What jobs cost, added up by `provider`, `model`, `day`, `operation`, `media` or `metadata.KEY`; the largest first."""
        query = {"by": ",".join(by), "provider": provider, "model": model}
        query |= {f"metadata.{key}": value for key, value in (metadata or {}).items()}
        query |= {"created_after": _time(created_after), "created_before": _time(created_before)}
        return (await self._call(dict[str, list[CostSum]], "GET", "/v1/costs", query=query))["costs"]

    async def timeline(self, job_id: str, *, raw: bool = True) -> Timeline:
        """Every call, notice, event and delivery of the job, in order; `raw` puts in the bodies of notices."""
        return await self._call(Timeline, "GET", _path("jobs", job_id, "timeline"), query={} if raw else {"raw": "false"})

    async def cancel(self, job_id: str) -> Job:
        return await self._call(Job, "POST", _path("jobs", job_id, "cancel"))

    async def poll(self, job_id: str) -> Job:
        """Asks the provider now; the job as it stands before the answer."""
        return await self._call(Job, "POST", _path("jobs", job_id, "poll"))

    async def resolve(self, job_id: str, *, remote_id: str | None = None, abandon: bool = False) -> Job:
        """Says what became of an unconfirmed job: its id at the provider, or that it is given up."""
        body: dict[str, Any] = {"remote_id": remote_id} if remote_id is not None else {}
        return await self._call(Job, "POST", _path("jobs", job_id, "resolve"), body=body | ({"abandon": True} if abandon else {}))

    async def delete(self, job_id: str) -> None:
        """Deletes a final job with its notices, events and deliveries."""
        await self._send("DELETE", _path("jobs", job_id))

    async def settle(self, notice_id: str) -> Job:
        """Settles an unreadable notice again, after a fix."""
        return await self._call(Job, "POST", _path("notices", notice_id, "settle"))

    # Deliveries and what is configured

    async def deliveries(
        self,
        *,
        state: str | None = None,
        handler: str | None = None,
        job_id: str | None = None,
        limit: int | None = None,
        cursor: str | None = None,
    ) -> DeliveryPage:
        """One page of deliveries, newest first."""
        query = {"state": state, "handler": handler, "job_id": job_id, "limit": None if limit is None else str(limit), "cursor": cursor}
        return await self._call(DeliveryPage, "GET", "/v1/deliveries", query=query)

    async def replay(self, delivery_id: str) -> Delivery:
        """Delivers again, under the same event id and with fresh attempts."""
        return await self._call(Delivery, "POST", _path("deliveries", delivery_id, "replay"))

    async def replay_all(
        self, *, state: str | None = None, handler: str | None = None, job_id: str | None = None, event_type: str | None = None
    ) -> int:
        """Delivers again all that fit; at least one filter. How many."""
        wanted = {"state": state, "handler": handler, "job_id": job_id, "event_type": event_type}
        body = {name: value for name, value in wanted.items() if value is not None}
        answer = await self._call(dict[str, int], "POST", "/v1/deliveries/replay", body=body)
        return answer["replayed"]

    async def providers(self) -> list[dict[str, Any]]:
        """Every known provider: what it can do, how it does."""
        return (await self._call(dict[str, list[dict[str, Any]]], "GET", "/v1/providers"))["providers"]

    async def handlers(self) -> list[dict[str, Any]]:
        """Every handler: what it wants, how it does."""
        return (await self._call(dict[str, list[dict[str, Any]]], "GET", "/v1/handlers"))["handlers"]

    # Events

    async def events(
        self, *, type: str | None = None, provider: str | None = None, job_id: str | None = None, last_event_id: str | None = None
    ) -> AsyncGenerator[Event, None]:
        """Every event as it happens, for ever; after a break it goes on after the last one seen. `type` may be a glob. Raises only what
        does not pass by itself, and what hinders the very first connection."""
        query = {"type": type, "provider": provider, "job_id": job_id}
        pause = Pause()
        has_connected = False
        while True:
            try:
                async with self._stream("/v1/events", query, last_event_id) as source:
                    has_connected = True
                    last_event_id = source.response.headers.get("last-event-id", last_event_id)
                    async for sse in source.aiter_sse():
                        pause.reset()
                        if sse.data:
                            last_event_id = sse.id or last_event_id
                            yield msgspec.json.decode(sse.data)
            except (NotReachable, ApiError) as error:
                if not has_connected or not error.may_pass:
                    raise
            except (httpx.RequestError, SSEError, msgspec.DecodeError):
                pass  # the stream broke: come back to where it was
            await asyncio.sleep(pause.next())

    def _stream(self, path: str, query: Mapping[str, str | None], last_event_id: str | None) -> _Stream:
        headers = {"accept": "text/event-stream", "cache-control": "no-store"}
        if last_event_id is not None:
            headers["last-event-id"] = last_event_id
        timeout = httpx.Timeout(SILENCE, connect=10)
        return _Stream(self, self._http.build_request("GET", path, params=_without_none(query), headers=headers, timeout=timeout))

    # One call

    async def _call(
        self,
        kind: type[T],
        method: str,
        path: str,
        *,
        query: Mapping[str, str | None] | None = None,
        body: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> T:
        response = await self._send(method, path, query=query, body=body, headers=headers)
        try:
            answer: T = msgspec.json.decode(response.content)
        except msgspec.DecodeError:
            raise ApiError(response.status_code, {"detail": f"{self.url} answered without JSON; is it a Receiver?"}) from None
        return answer

    async def _send(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str | None] | None = None,
        body: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> httpx.Response:
        content = None if body is None else msgspec.json.encode(body)
        sent = {**(headers or {}), **({"content-type": "application/json"} if body is not None else {})}
        request = self._http.build_request(method, path, params=_without_none(query or {}), content=content, headers=sent)
        try:
            response = await self._http.send(request)
        except httpx.RequestError as error:
            raise self.not_reachable(error) from None
        if not response.is_success:
            raise read_problem(response)
        return response

    def not_reachable(self, error: Exception) -> NotReachable:
        why = "it does not answer in time" if isinstance(error, httpx.TimeoutException) else str(error) or type(error).__name__
        return NotReachable(f"there is no server at {self.url}: {why}")


class _Stream:
    """An open event stream."""

    def __init__(self, client: Client, request: httpx.Request) -> None:
        self._client, self._request = client, request
        self._response: httpx.Response | None = None

    async def __aenter__(self) -> EventSource:
        try:
            response = self._response = await self._client._http.send(self._request, stream=True)
        except httpx.RequestError as error:
            raise self._client.not_reachable(error) from None
        if not response.is_success:
            await response.aread()
            await response.aclose()
            raise read_problem(response)
        if not response.headers.get("content-type", "").startswith("text/event-stream"):
            await response.aclose()
            raise ApiError(response.status_code, {"detail": f"{self._client.url} answered without events; is it a Receiver?"})
        return EventSource(response)

    async def __aexit__(self, *_: object) -> None:
        if self._response is not None:
            await self._response.aclose()


class Pause:
    """Seconds until the next try: longer each time, until something went well."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self._seconds = FIRST_PAUSE

    def next(self) -> float:
        seconds, self._seconds = self._seconds, min(self._seconds * 2, MAX_PAUSE)
        return seconds


def _path(*parts: str) -> str:
    return "/v1/" + "/".join(quote(part, safe="") for part in parts)


def _quoted(key: str) -> str:
    """A string as the IETF draft on Idempotency-Key wants it."""
    return '"' + key.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _time(at: datetime | None) -> str | None:
    """A time without a zone is meant in this machine's."""
    return None if at is None else at.astimezone().isoformat()


def _without_none(query: Mapping[str, str | None]) -> dict[str, str]:
    return {name: value for name, value in query.items() if value is not None}


def _trust(url: str) -> ssl.SSLContext:
    """Reading the certificates takes longer than a call; plain HTTP needs none."""
    if url.lower().startswith("https:"):
        return httpx.create_ssl_context(trust_env=False)
    return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
