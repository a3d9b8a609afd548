"""The client for programs without an event loop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator
from functools import wraps
from typing import Any, Concatenate, ParamSpec, TypeVar

from receiver.client.calls import Client
from receiver.client.documents import Event, Job

T = TypeVar("T")
P = ParamSpec("P")


def _sync(method: Callable[Concatenate[Client, P], Coroutine[Any, Any, T]]) -> Callable[Concatenate[SyncClient, P], T]:
    @wraps(method)
    def call(self: SyncClient, /, *args: P.args, **options: P.kwargs) -> T:
        return self.runner.run(method(self.client, *args, **options))

    return call


class SyncClient:
    """`Client` for programs without an event loop: the same methods, which return when they are done."""

    def __init__(self, url: str, api_key: str | None = None) -> None:
        self.client = Client(url, api_key)
        self.runner = asyncio.Runner()

    def __enter__(self) -> SyncClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self.runner.run(self.client.close())
        self.runner.close()

    submit = _sync(Client.submit)
    job = _sync(Client.job)
    wait = _sync(Client.wait)
    jobs = _sync(Client.jobs)
    costs = _sync(Client.costs)
    timeline = _sync(Client.timeline)
    cancel = _sync(Client.cancel)
    poll = _sync(Client.poll)
    resolve = _sync(Client.resolve)
    delete = _sync(Client.delete)
    settle = _sync(Client.settle)
    deliveries = _sync(Client.deliveries)
    replay = _sync(Client.replay)
    replay_all = _sync(Client.replay_all)
    providers = _sync(Client.providers)
    handlers = _sync(Client.handlers)

    def events(
        self, *, type: str | None = None, provider: str | None = None, job_id: str | None = None, last_event_id: str | None = None
    ) -> Generator[Event, None, None]:
        """As `Client.events`."""
        return self._each(self.client.events(type=type, provider=provider, job_id=job_id, last_event_id=last_event_id))

    def every_job(self, **filters: Any) -> Generator[Job, None, None]:
        """As `Client.every_job`."""
        return self._each(self.client.every_job(**filters))

    def _each(self, values: AsyncGenerator[T, None]) -> Generator[T, None, None]:
        try:
            while (value := self.runner.run(_next(values))) is not None:
                yield value
        finally:
            self.runner.run(values.aclose())


async def _next(values: AsyncGenerator[T, None]) -> T | None:
    return await anext(values, None)
