"""OpenAI's contract for videos: thin events to one URL for the whole account (https://platform.openai.com/docs/guides/webhooks)."""

from __future__ import annotations

import uuid
from typing import Any, ClassVar

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from receiver.simulator.engine import Job, News, Order, State
from receiver.simulator.signing import make_secret, sign_standard
from receiver.simulator.wire import Problem, Refusal, Wire, check_text, origin_of, seconds_of

STATUS = {
    Problem.MALFORMED: (400, "invalid_request_error", None),
    Problem.UNAUTHENTICATED: (401, "invalid_request_error", "invalid_api_key"),
    Problem.BALANCE: (429, "insufficient_quota", "insufficient_quota"),
    Problem.UNKNOWN_MODEL: (404, "invalid_request_error", "model_not_found"),
    Problem.UNKNOWN_JOB: (404, "invalid_request_error", None),
    Problem.TOO_MANY: (429, "requests", "rate_limit_exceeded"),
    Problem.BROKEN: (500, "server_error", None),
    Problem.UNAVAILABLE: (503, "server_error", None),
}


class OpenAI(Wire):
    """A callback names the video and how it ended; everything else is asked for."""

    name = "openai"
    base_path = "/v1"
    tells = frozenset(state for state in State if state.is_final)
    retries: tuple[float, ...] = (2.0, 4.0)
    is_signed = True
    secret = make_secret("openai")
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
            self.route("/v1/models", self._list_models, "GET"),
            self.route("/v1/videos", self._submit, "POST"),
            self.route("/v1/videos/{video_id}", self._read, "GET"),
            self.route("/v1/videos/{video_id}/content", self._read_content, "GET"),
        ]

    def settings(self, url: str) -> dict[str, Any]:
        return {**super().settings(url), "callback_secrets": [self.secret]}

    def sign(self, job: Job, body: bytes) -> dict[str, str]:
        return sign_standard(self.secret, body, self.engine.now())

    def make_id(self, order: Order) -> str:
        return f"video_{uuid.uuid4().hex}"

    def problem(self, refusal: Refusal) -> Response:
        status, kind, code = STATUS[refusal.problem]
        return JSONResponse({"error": {"message": refusal.detail, "type": kind, "param": refusal.field, "code": code}}, status)

    async def _list_models(self, request: Request) -> Response:
        return JSONResponse({"object": "list", "data": [{"id": "sora-2", "object": "model", "owned_by": "openai"}]})

    async def _submit(self, request: Request) -> Response:
        body = await self.read_object(request)
        check_text(body, "model", "prompt")
        fields = {name: value for name, value in body.items() if name != "model"}
        order = Order(wire=self, model=body["model"], input=fields, origin=origin_of(request), media="video", callback_url=self.webhook_url)
        return await self.submit(order, lambda jobs: JSONResponse(self._body(jobs[0])))

    async def _read(self, request: Request) -> Response:
        return await self.poll(request.path_params["video_id"], self._body)

    async def _read_content(self, request: Request) -> Response:
        job = self.find(request.path_params["video_id"])
        if job.state is not State.SUCCEEDED:
            raise Refusal(Problem.UNKNOWN_JOB, "the video is not there")
        return self.links.serve_file(job, 0, request)

    def news(self, job: Job) -> News:
        word = {State.SUCCEEDED: "completed"}.get(job.state, "failed" if job.state.is_final else self.word(job))
        at = int(self.engine.now().timestamp())
        body = {"id": f"evt_{uuid.uuid4().hex}", "object": "event", "created_at": at, "type": f"video.{word}", "data": {"id": job.id}}
        return News(body, ("data",))

    def _body(self, job: Job) -> dict[str, Any]:
        created_at, completed_at = seconds_of(job)
        has_failed = job.state.is_final and job.state is not State.SUCCEEDED
        return {
            "id": job.id,
            "object": "video",
            "model": job.order.model,
            "status": self.word(job),
            "progress": int(self.engine.progress(job) * 100),
            "created_at": created_at,
            "completed_at": completed_at if job.state is State.SUCCEEDED else None,
            "error": {"code": job.scenario.error_code.lower(), "message": job.scenario.error} if has_failed else None,
        }
