"""Elk API: one task endpoint, callbacks on every change of status (https://docs.elkapi.com/en/guides/task)."""

from __future__ import annotations

import uuid
from typing import Any, ClassVar

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from receiver.simulator.engine import Job, News, Order, State
from receiver.simulator.wire import Problem, Refusal, Wire, check_callback_url, check_text, media_of, origin_of, seconds_of

STATUS = {
    Problem.MALFORMED: (400, "invalid_request"),
    Problem.UNAUTHENTICATED: (401, "invalid_api_key"),
    Problem.BALANCE: (403, "insufficient_user_quota"),
    Problem.UNKNOWN_MODEL: (404, "model_not_found"),
    Problem.UNKNOWN_JOB: (404, "task_not_found"),
    Problem.TOO_MANY: (429, "rate_limit_exceeded"),
    Problem.BROKEN: (500, "internal_error"),
    Problem.UNAVAILABLE: (503, "service_unavailable"),
}


class Elkapi(Wire):
    """Callback body and poll body are the same."""

    name = "elkapi"
    tells = frozenset(State) - {State.QUEUED}
    words: ClassVar = {
        State.QUEUED: "queued",
        State.PROCESSING: "in_progress",
        State.SUCCEEDED: "completed",
        State.FAILED: "failed",
        State.ERROR: "failed",
        State.CANCELLED: "failed",
    }

    def routes(self) -> list[Route]:
        return [
            self.route("/v1/task/submit", self._submit, "POST"),
            self.route("/v1/task/{task_id}", self._read, "GET"),
        ]

    def make_id(self, order: Order) -> str:
        return f"task_{uuid.uuid4().hex[:12]}"

    def problem(self, refusal: Refusal) -> Response:
        status, code = STATUS[refusal.problem]
        return JSONResponse({"error": {"message": refusal.detail, "type": "rix_api_error", "param": "", "code": code}}, status)

    async def _submit(self, request: Request) -> Response:
        body = await self.read_object(request)
        check_text(body, "model")
        if not isinstance(body.get("input"), dict):
            raise Refusal(Problem.MALFORMED, "input is required and must be an object")
        order = Order(
            wire=self,
            model=body["model"],
            input=body["input"],
            origin=origin_of(request),
            media=media_of(body["model"]) or "image",
            outputs=_read_outputs(body["input"]),
            callback_url=check_callback_url(body.get("callback_url"), "callback_url"),
        )
        return await self.submit(order, lambda jobs: JSONResponse(self._body(jobs[0])))

    async def _read(self, request: Request) -> Response:
        return await self.poll(request.path_params["task_id"], self._body)

    def news(self, job: Job) -> News:
        return News(self._body(job), ("id",))

    def _body(self, job: Job) -> dict[str, Any]:
        created_at, completed_at = seconds_of(job)
        body: dict[str, Any] = {"id": job.id, "status": self.word(job), "created_at": created_at}
        if not job.state.is_final:
            return body
        body["completed_at"] = completed_at
        if job.state is not State.SUCCEEDED:
            return {**body, "error": job.scenario.error}
        if job.order.media in ("video", "audio"):
            body["usage"] = {"type": "duration", "seconds": 3}  # in the newer revision of the guide only
        return {**body, "outputs": self.links.urls(job)}


def _read_outputs(input: dict[str, Any]) -> int:
    """Numbers may come as texts here; what `n` may be is not documented, so a bad one is overlooked."""
    count = str(input.get("n", 1))
    return min(int(count), 10) if count.isdecimal() else 1
