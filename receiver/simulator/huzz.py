"""Huzz: predictions that are only polled (https://huzz-api-docs.pages.dev/async-predictions)."""

from __future__ import annotations

import uuid
from typing import Any, ClassVar

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from receiver.simulator.engine import Job, News, Order, State
from receiver.simulator.wire import Problem, Refusal, Wire, media_of, origin_of, read_count

STATUS = {
    Problem.MALFORMED: (400, "invalid_request_error", "invalid_parameters"),
    Problem.UNAUTHENTICATED: (401, "authentication_error", "invalid_api_key"),
    Problem.BALANCE: (429, "rate_limit_error", "budget_exceeded"),  # Huzz has no 402
    Problem.UNKNOWN_MODEL: (404, "invalid_request_error", "model_not_found"),
    Problem.UNKNOWN_JOB: (404, "invalid_request_error", "not_found"),
    Problem.TOO_MANY: (429, "rate_limit_error", "rate_limit_exceeded"),
    Problem.BROKEN: (500, "server_error", "internal_error"),
    Problem.UNAVAILABLE: (503, "server_error", "overloaded"),
}


class Huzz(Wire):
    """The model is the path; nothing is pushed."""

    name = "huzz"
    words: ClassVar = {
        State.QUEUED: "queued",
        State.PROCESSING: "processing",
        State.SUCCEEDED: "completed",
        State.FAILED: "failed",
        State.ERROR: "failed",
        State.CANCELLED: "failed",
    }

    def routes(self) -> list[Route]:
        return [
            self.route("/api/v3/predictions/{prediction_id}/result", self._read, "GET"),
            self.route("/api/v3/{provider}/{model}/{capability}", self._submit, "POST"),
        ]

    def make_id(self, order: Order) -> str:
        return f"pred_{uuid.uuid4().hex[:10]}"

    def problem(self, refusal: Refusal) -> Response:
        status, kind, code = STATUS[refusal.problem]
        return JSONResponse({"error": {"message": refusal.detail, "type": kind, "param": refusal.field, "code": code}}, status)

    async def _submit(self, request: Request) -> Response:
        body = await self.read_object(request)
        model = "/".join(request.path_params[part] for part in ("provider", "model", "capability"))
        order = Order(
            wire=self,
            model=model,
            input=body,
            origin=origin_of(request),
            media=media_of(model) or "image",
            outputs=read_count(body, "num_images", 4),
        )
        return await self.submit(order, lambda jobs: JSONResponse(self._body(jobs[0])))

    async def _read(self, request: Request) -> Response:
        return await self.poll(request.path_params["prediction_id"], self._body)

    def news(self, job: Job) -> News:
        return News(self._body(job), ("id",))

    def _body(self, job: Job) -> dict[str, Any]:
        body: dict[str, Any] = {"id": job.id, "status": self.word(job)}
        if job.state is State.SUCCEEDED:
            body["output"] = self.links.urls(job)
        elif job.state.is_final:
            body["error"] = {
                "message": job.scenario.error,
                "type": "server_error",
                "param": None,
                "code": job.scenario.error_code.lower(),
            }
        return body
