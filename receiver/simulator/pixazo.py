"""Pixazo's gateway: callback URL in a header, one status endpoint for all models (https://www.pixazo.ai/models/hunyuan)."""

from __future__ import annotations

from datetime import datetime
from typing import Any, ClassVar

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from receiver.ids import uuid7
from receiver.simulator.engine import Job, News, Order, State
from receiver.simulator.media import Kind
from receiver.simulator.wire import Problem, Refusal, Wire, check_callback_url, check_text, origin_of, read_count

# model_id → path below /{model_id}/v1/, what it makes, the field that it wants
OPERATIONS: dict[str, tuple[str, Kind, str]] = {
    "hunyuan-image": ("hunyuan-image/generateRequest", "image", "prompt"),
    "hunyuan3d-3-0-api-294": ("hunyuan3d-3-0-api-request", "3d", "input_image_url"),
    "hunyuan-image-3-0-instruct": ("hunyuan-image-3-0-instruct-request", "image", "prompt"),
    "hunyuan-3d": ("hunyuan-3d-request", "3d", "prompt"),
    "hunyuan-3d-v3-1-pro-image-to-3d": ("hunyuan-3d-v3-1-pro-image-to-3d-request", "3d", ""),
    "hunyuan-image-v3-instruct-edit": ("hunyuan-image-v3-instruct-edit-request", "image", "prompt"),
    "hunyuan-video": ("hunyuan-video-request", "video", "prompt"),
    "hunyuan-video-image-to-video": ("hunyuan-video-image-to-video-request", "video", ""),
}
FORMATS = ("png", "jpeg", "webp")
STATUS = {
    Problem.MALFORMED: (400, "Bad Request"),
    Problem.UNAUTHENTICATED: (401, "Unauthorized"),
    Problem.BALANCE: (402, "Insufficient Balance"),
    Problem.UNKNOWN_MODEL: (400, "Model not found"),
    Problem.UNKNOWN_JOB: (404, "Not Found"),
    Problem.TOO_MANY: (429, "Too Many Requests"),
    Problem.BROKEN: (500, "Internal Server Error"),
    Problem.UNAVAILABLE: (503, "Service Unavailable"),
}


class Pixazo(Wire):
    """Callback body and poll body are the same."""

    name = "pixazo"
    tells = frozenset(state for state in State if state.is_final)
    words: ClassVar = {
        State.QUEUED: "QUEUED",
        State.PROCESSING: "PROCESSING",
        State.SUCCEEDED: "COMPLETED",
        State.FAILED: "FAILED",
        State.ERROR: "ERROR",
        State.CANCELLED: "FAILED",
    }

    def routes(self) -> list[Route]:
        return [
            self.route("/v2/requests/status/{request_id}", self._read, "GET"),
            self.route("/{model_id}/v1/{operation:path}", self._submit, "POST"),
        ]

    def check_key(self, request: Request) -> None:
        self.check_key_is(request.headers.get("ocp-apim-subscription-key", ""))

    def make_id(self, order: Order) -> str:
        return f"{order.model}_{uuid7(self.engine.now())}"

    def problem(self, refusal: Refusal) -> Response:
        status, title = STATUS[refusal.problem]
        message = refusal.detail
        if refusal.problem is Problem.UNKNOWN_MODEL:
            message = f"Model '{refusal.detail}' not found or is disabled"
        return JSONResponse({"error": title, "message": message}, status)

    async def _submit(self, request: Request) -> Response:
        model, path = request.path_params["model_id"], request.path_params["operation"]
        if model not in OPERATIONS:
            raise Refusal(Problem.UNKNOWN_MODEL, model)
        known_path, media, needed = OPERATIONS[model]
        if path != known_path:
            raise Refusal(Problem.UNKNOWN_JOB, f"no operation {path}")
        body = await self.read_object(request)
        if needed:
            check_text(body, needed)
        if body.get("output_format", "png") not in FORMATS:
            raise Refusal(Problem.MALFORMED, f"output_format must be one of {', '.join(FORMATS)}")
        order = Order(
            wire=self,
            model=model,
            input=body,
            origin=origin_of(request),
            media=media,
            outputs=read_count(body, "num_images", 4),
            callback_url=check_callback_url(request.headers.get("x-webhook-url"), "X-Webhook-URL"),
        )
        status_url = f"{origin_of(request)}{request.scope.get('root_path', '')}/v2/requests/status"
        return await self.submit(order, lambda jobs: self._taken(jobs[0], status_url))

    def _taken(self, job: Job, status_url: str) -> Response:
        return JSONResponse({"request_id": job.id, "status": self.word(job), "polling_url": f"{status_url}/{job.id}"}, 202)

    async def _read(self, request: Request) -> Response:
        return await self.poll(request.path_params["request_id"], self._body)

    def news(self, job: Job) -> News:
        return News(self._body(job), ("request_id",))

    def _body(self, job: Job) -> dict[str, Any]:
        body: dict[str, Any] = {"request_id": job.id, "status": self.word(job), "model_id": job.order.model, "error": None, "output": None}
        if job.state.is_final and job.state is not State.SUCCEEDED:
            return {**body, "error": job.scenario.error}  # without times, as documented
        if job.state is State.SUCCEEDED:
            # A 3D result has the uninformative type of the documented example.
            media_type = "application/octet-stream" if job.order.media == "3d" or not job.files else job.files[0].media_type
            body["output"] = {"media_url": self.links.urls(job), "media_type": media_type}
        updated_at = job.finished_at or job.started_at or job.created_at
        return {**body, "created_at": _iso(job.created_at), "updated_at": _iso(updated_at), "completed_at": _iso(job.finished_at)}


def _iso(at: datetime | None) -> str | None:
    return None if at is None else at.strftime("%Y-%m-%dT%H:%M:%S.") + f"{at.microsecond // 1000:03}Z"
