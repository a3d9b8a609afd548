"""Replicate: predictions by model, version or deployment, callbacks signed by Standard Webhooks (https://replicate.com/docs/reference/http)."""

from __future__ import annotations

import uuid
from datetime import datetime
from typing import Any, ClassVar

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from receiver.simulator.engine import Job, News, Order, State
from receiver.simulator.signing import make_secret, sign_standard
from receiver.simulator.wire import Problem, Refusal, Wire, check_callback_url, check_text, media_of, origin_of, read_count

STATUS = {
    Problem.MALFORMED: (422, "Input validation failed"),
    Problem.UNAUTHENTICATED: (401, "Unauthenticated"),
    Problem.BALANCE: (402, "Insufficient credit"),
    Problem.UNKNOWN_MODEL: (404, "Not found"),
    Problem.UNKNOWN_JOB: (404, "Not found"),
    Problem.TOO_MANY: (429, "Too many requests"),
    Problem.BROKEN: (500, "Internal server error"),
    Problem.UNAVAILABLE: (503, "Service unavailable"),
}
EVENTS = frozenset({"start", "output", "logs", "completed"})


class Replicate(Wire):
    """Callback body and poll body are the same."""

    name = "replicate"
    base_path = "/v1"
    tells = frozenset(state for state in State if state.is_final)
    retries: tuple[float, ...] = (2.0, 4.0)
    is_signed = True
    secret = make_secret("replicate")
    words: ClassVar = {
        State.QUEUED: "starting",
        State.PROCESSING: "processing",
        State.SUCCEEDED: "succeeded",
        State.FAILED: "failed",
        State.ERROR: "failed",
        State.CANCELLED: "canceled",
    }

    def routes(self) -> list[Route]:
        return [
            self.route("/v1/account", self._read_account, "GET"),
            self.route("/v1/predictions", self._submit_version, "POST"),
            self.route("/v1/models/{owner}/{model}/predictions", self._submit_model, "POST"),
            self.route("/v1/deployments/{owner}/{model}/predictions", self._submit_deployment, "POST"),
            self.route("/v1/predictions/{prediction_id}", self._read, "GET"),
            self.route("/v1/predictions/{prediction_id}/cancel", self._cancel, "POST"),
        ]

    def settings(self, url: str) -> dict[str, Any]:
        return {**super().settings(url), "callback_secrets": [self.secret]}

    def sign(self, job: Job, body: bytes) -> dict[str, str]:
        return sign_standard(self.secret, body, self.engine.now())

    def make_id(self, order: Order) -> str:
        return uuid.uuid4().hex[:26]

    def problem(self, refusal: Refusal) -> Response:
        status, title = STATUS[refusal.problem]
        return JSONResponse({"title": title, "detail": refusal.detail, "status": status}, status)

    async def _read_account(self, request: Request) -> Response:
        return JSONResponse({"type": "user", "username": "somebody", "name": "Somebody"})

    async def _submit_version(self, request: Request) -> Response:
        body = await self.read_object(request)
        check_text(body, "version")
        return await self._take(request, body, body["version"], "version")

    async def _submit_model(self, request: Request) -> Response:
        return await self._take(request, await self.read_object(request), _model_of(request), "model")

    async def _submit_deployment(self, request: Request) -> Response:
        return await self._take(request, await self.read_object(request), _model_of(request), "deployment")

    async def _take(self, request: Request, body: dict[str, Any], model: str, operation: str) -> Response:
        if not isinstance(body.get("input"), dict):
            raise Refusal(Problem.MALFORMED, "- input: is required and must be an object")
        if not set(body.get("webhook_events_filter") or ()) <= EVENTS:
            raise Refusal(Problem.MALFORMED, f"- webhook_events_filter: must be of {', '.join(sorted(EVENTS))}")
        order = Order(
            wire=self,
            model=model,
            input=body["input"],
            origin=origin_of(request),
            media=media_of(model) or "image",
            operation=operation,
            outputs=read_count(body["input"], "num_outputs", 4),
            callback_url=check_callback_url(body.get("webhook"), "webhook"),
        )
        return await self.submit(order, lambda jobs: JSONResponse(self._body(jobs[0]), 201))

    async def _read(self, request: Request) -> Response:
        return await self.poll(request.path_params["prediction_id"], self._body)

    async def _cancel(self, request: Request) -> Response:
        job = self.find(request.path_params["prediction_id"])
        self.engine.cancel(job)
        return JSONResponse(self._body(job))

    def news(self, job: Job) -> News:
        return News(self._body(job), ("id",))

    def _body(self, job: Job) -> dict[str, Any]:
        links = self.links.urls(job) if job.state is State.SUCCEEDED else None
        has_failed = job.state in (State.FAILED, State.ERROR)
        base = f"{job.order.origin}/v1/predictions/{job.id}"
        return {
            "id": job.id,
            "model": job.order.model,
            "version": "hidden",
            "input": job.order.input,
            "output": links[0] if links is not None and len(links) == 1 and job.order.media != "image" else links,
            "error": job.scenario.error if has_failed else None,
            "logs": "",
            "status": self.word(job),
            "created_at": _iso(job.created_at),
            "started_at": _iso(job.started_at),
            "completed_at": _iso(job.finished_at),
            "metrics": {"predict_time": job.scenario.seconds} if job.state is State.SUCCEEDED else {},
            "urls": {"get": base, "cancel": f"{base}/cancel"},
        }


def _model_of(request: Request) -> str:
    return f"{request.path_params['owner']}/{request.path_params['model']}"


def _iso(at: datetime | None) -> str | None:
    return None if at is None else at.strftime("%Y-%m-%dT%H:%M:%S.") + f"{at.microsecond // 1000:03}Z"
