"""Oxen.ai: a queue with fan-out, list and cancel, and one stream of events per account (https://docs.oxen.ai/inference-api)."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator
from typing import Any, ClassVar

from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from receiver.simulator.engine import Job, News, Order, State
from receiver.simulator.wire import Problem, Refusal, Wire, check_text, media_of, origin_of, read_count

KEEP_ALIVE_SECONDS = 15.0
COST = "0.05"
TEXT_MODELS = ("gpt-", "claude-", "llama-")
NOT_ECHOED = ("model", "num_generations", "target_namespace", "target_repo", "target_directory")
STATUS = {
    Problem.MALFORMED: (400, "invalid_params", "Invalid parameters supplied"),
    Problem.UNSUPPORTED: (400, "unsupported_media_type", "Unsupported media type"),
    Problem.UNAUTHENTICATED: (401, "unauthenticated", "Not authenticated"),
    Problem.BALANCE: (402, "insufficient_credits", "Insufficient credits"),
    Problem.UNKNOWN_JOB: (404, "resource_not_found", "Resource not found"),
    Problem.TOO_MANY: (429, "rate_limited", "Too many requests"),
    Problem.BROKEN: (500, "unknown_error", "Unknown error"),
    Problem.UNAVAILABLE: (503, "unavailable", "Service unavailable"),
}


class Oxen(Wire):
    """The names of a stream event differ from those of a poll."""

    name = "oxen"
    base_path = "/api"
    tells = frozenset({State.SUCCEEDED, State.FAILED, State.ERROR})  # never of a cancelled job
    is_stream = True
    words: ClassVar = {state: "failed" if state is State.ERROR else state.value for state in State}

    def routes(self) -> list[Route]:
        return [
            self.route("/api/ai/queue", self._submit, "POST"),
            self.route("/api/ai/queue", self._list_queue, "GET"),
            self.route("/api/ai/queue/{generation_id}", self._read, "GET"),
            self.route("/api/ai/queue/{generation_id}", self._cancel, "DELETE"),
            self.route("/api/ai/generations", self._list_history, "GET"),
            self.route("/api/ai/generations/{generation_id}", self._look_up, "GET"),
            self.route("/api/events", self._stream, "GET"),
        ]

    def make_id(self, order: Order) -> str:
        return str(uuid.uuid4())

    def problem(self, refusal: Refusal) -> Response:
        if refusal.problem is Problem.UNKNOWN_MODEL:
            return JSONResponse({"error": {"message": f"Model not found: {refusal.detail}"}}, 404)
        status, kind, title = STATUS[refusal.problem]
        if refusal.problem is Problem.UNAUTHENTICATED:
            return JSONResponse({"status": "error", "status_message": kind}, status)
        return JSONResponse(
            {"error": {"type": kind, "title": title, "detail": refusal.detail}, "status": "error", "status_message": kind}, status
        )

    # Submit, read, cancel

    async def _submit(self, request: Request) -> Response:
        body = await self.read_object(request)
        check_text(body, "model")
        if body["model"].startswith(TEXT_MODELS):
            raise Refusal(Problem.UNSUPPORTED, "this model makes text only")
        order = Order(
            wire=self,
            model=body["model"],
            input={key: value for key, value in body.items() if key != "model"},
            origin=origin_of(request),
            media=media_of(body["model"]) or "image",
            count=read_count(body, "num_generations", 4),
            fans_out=True,
        )
        return await self.submit(order, self._taken)

    def _taken(self, jobs: list[Job]) -> Response:
        return JSONResponse({"generations": [{"generation_id": job.id, "status": self.word(job)} for job in jobs]})

    async def _read(self, request: Request) -> Response:
        return await self.poll(request.path_params["generation_id"], self._row)

    async def _cancel(self, request: Request) -> Response:
        job = self.find(request.path_params["generation_id"])
        self.engine.cancel(job)
        return JSONResponse({"status": "success", "generation_id": job.id})

    def _row(self, job: Job) -> dict[str, Any]:
        urls = self.links.urls(job)
        failed = job.state in (State.FAILED, State.ERROR)
        echo = {key: value for key, value in job.order.input.items() if key not in NOT_ECHOED}
        return {
            **echo,
            "generation_id": job.id,
            "model_name": job.order.model,
            "media_type": job.order.media,
            "status": self.word(job),
            "result_url": urls[0] if urls else None,
            "error_message": job.scenario.error if failed else None,
            "enqueued_at": int(job.created_at.timestamp()),
            "started_at": None if job.started_at is None else int(job.started_at.timestamp()),
            "completed_at": None if job.finished_at is None else int(job.finished_at.timestamp()),
            "target_namespace": job.order.input.get("target_namespace"),
            "target_repo": job.order.input.get("target_repo"),
            "target_directory": job.order.input.get("target_directory"),
        }

    # Lists

    def _jobs(self, request: Request) -> list[Job]:
        """Jobs that the filters of the query let through, oldest first."""
        self.engine.ledger.lists += 1
        query = request.query_params
        return [
            job
            for (provider, _), job in self.engine.jobs.items()
            if provider == self.name
            and query.get("model", job.order.model) == job.order.model
            and query.get("media_type", job.order.media) == job.order.media
            and query.get("status", self.word(job)) == self.word(job)
        ]

    async def _list_queue(self, request: Request) -> Response:
        jobs = self._jobs(request)
        if "status" not in request.query_params:
            jobs = [job for job in jobs if not job.state.is_final]
        return JSONResponse({"count": len(jobs), "generations": [self._row(job) for job in jobs]})

    async def _list_history(self, request: Request) -> Response:
        page = _read_number(request, "page", default=1, maximum=1_000_000)
        size = _read_number(request, "page_size", default=50, maximum=1000)
        jobs = self._jobs(request)[::-1]
        shown = jobs[(page - 1) * size : page * size]
        body = {
            "count": len(shown),
            "generations": [self._history_row(job) for job in shown],
            "page_number": page,
            "page_size": size,
            "total_pages": -(-len(jobs) // size),
            "total_entries": len(jobs),
            "total_cost": None,
        }
        return JSONResponse(body)

    async def _look_up(self, request: Request) -> Response:
        job = self.find(request.path_params["generation_id"])
        return JSONResponse({"status": "success", "status_message": "resource_found", "generation": self._history_row(job)})

    def _history_row(self, job: Job) -> dict[str, Any]:
        cost = COST if job.state is State.SUCCEEDED else None
        return {**self._row(job), "cost": cost, "user_id": "user_1", "username": "simulated"}

    # Stream

    async def _stream(self, request: Request) -> Response:
        return StreamingResponse(self._events(), media_type="text/event-stream", headers={"cache-control": "no-cache"})

    async def _events(self) -> AsyncIterator[str]:
        """What happens from now on; what happened before is never told."""
        async with self.courier.listen() as queue:
            while True:
                try:
                    async with asyncio.timeout(self.engine.scaled(KEEP_ALIVE_SECONDS).total_seconds()):
                        event = await queue.get()
                except TimeoutError:
                    event = ": keep-alive\n\n"
                if event is None:
                    return
                yield event

    def news(self, job: Job) -> News:
        body: dict[str, Any] = {"generation_id": job.id, "status": self.word(job), "media_type": job.order.media}
        if job.state is State.SUCCEEDED:
            body |= {"model": job.order.model, "url": next(iter(self.links.urls(job)), None)}
        elif job.state.is_final:
            body["error"] = job.scenario.error
        return News(body, ("generation_id",), event="media_generation_completed")


def _read_number(request: Request, name: str, default: int, maximum: int) -> int:
    text = request.query_params.get(name, str(default))
    if not text.isdecimal() or not 1 <= int(text) <= maximum:
        raise Refusal(Problem.MALFORMED, f"{name} must be an integer between 1 and {maximum}", field=name)
    return int(text)
