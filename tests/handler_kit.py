"""What tests of handlers share: a context whose doings are written down, and a handler as the server would make it."""

from __future__ import annotations

from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import structlog

from receiver.clock import ManualClock
from receiver.config import HandlerConfig
from receiver.guarded import guarded_client
from receiver.handling import Context, Handler, Stored, load_handler
from receiver.model import Status
from receiver.net import ProviderClient, plain_client
from receiver.outputs import Outputs
from tests.factories import NOW, make_event, make_job, make_output


@dataclass
class Desk:
    """A context, and what was done through it."""

    context: Context
    clock: ManualClock
    jobs: dict[str, Any] = field(default_factory=dict)
    emitted: list[tuple[str, str, dict[str, Any]]] = field(default_factory=list)
    stored: list[tuple[str, int, Stored]] = field(default_factory=list)
    opened: list[tuple[int, int]] = field(default_factory=list)  # (index, offset)

    def make(self, use: str, **options: Any) -> Handler:
        config = HandlerConfig(name=self.context.name, use=use, options=options)
        return load_handler(config, self.context.folder).build(self.context)

    def succeed(self, *urls: str | None, **fields: Any):
        """The event of a job that succeeded with these outputs."""
        outputs = tuple(make_output(index=index, url=url, media_type=fields.pop("media_type", None)) for index, url in enumerate(urls))
        job = make_job(**{"status": Status.SUCCEEDED, "outputs": outputs} | fields)
        self.jobs[job.id] = job
        return make_event(job)


@dataclass
class Jobs:
    """As much of a store as opening outputs reads."""

    jobs: dict[str, Any]

    async def read_job(self, job_id: str):
        return self.jobs.get(job_id)


@asynccontextmanager
async def open_desk(folder: Path, name: str = "mine"):
    """A context with real clients; addresses on loopback may be fetched."""
    async with AsyncExitStack() as stack:
        clock = ManualClock(NOW)
        guarded = await stack.enter_async_context(guarded_client(["127.0.0.0/8"]))
        provider = ProviderClient()
        stack.push_async_callback(provider.close)
        desk: Desk
        jobs: dict[str, Any] = {}
        outputs = Outputs(Jobs(jobs), {}, provider, guarded, clock)  # type: ignore[arg-type]

        async def emit(*emitted: Any) -> None:
            desk.emitted.append(emitted)

        async def record_stored(*stored: Any) -> None:
            desk.stored.append(stored)

        def open_output(job_id: str, index: int, offset: int):
            desk.opened.append((index, offset))
            return outputs.open(job_id, index, offset)

        context = Context(
            name=name,
            log=structlog.get_logger().bind(handler=name),
            http=guarded,
            direct_http=await stack.enter_async_context(plain_client()),
            folder=folder,
            emit=emit,
            open_output=open_output,
            record_stored=record_stored,
            clock=clock,
        )
        desk = Desk(context, clock, jobs)
        yield desk
