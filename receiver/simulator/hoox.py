"""Hoox: assets with fan-out, videos, exports and avatars; one callback at the end, tried four times (https://docs.hoox.video)."""

from __future__ import annotations

import uuid
from collections import deque
from datetime import datetime, timedelta
from typing import Any, ClassVar

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from receiver.simulator.engine import Job, News, Order, State
from receiver.simulator.scenario import Scenario
from receiver.simulator.wire import Problem, Refusal, Wire, check_callback_url, check_text, media_of, origin_of, read_count

PER_MINUTE = 100
ASSET_COSTS = {"image": 4, "video": 12}
VIDEO_CREDITS = 5
TASKS = {
    "asset": "asset_generation",
    "video": "video_generate",
    "export": "video_export",
    "avatar_create": "avatar_create",
    "avatar_edit": "avatar_edit",
}
NAMED_SLOTS = {
    "kling-pro": ("start_image", "end_image"),
    "kling-motion-control": ("start_image", "motion_video"),
    "kling-motion-control-pro": ("start_image", "motion_video"),
    "kling-v3-motion-pro": ("start_image", "motion_video"),
    "kling-v3-motion-standard": ("start_image", "motion_video"),
    "kling-o3-edit-pro": ("source_video",),
    "kling-o3-edit-standard": ("source_video",),
    "veo-3.1-flf": ("first_frame", "last_frame"),
    "veo-3.1-extend": ("source_video",),
    "grok-imagine-video-edit": ("source_video",),
    "bytedance-upscaler": ("source_video",),
}
STATUS = {
    Problem.UNAUTHENTICATED: (401, "invalid_api_key"),
    Problem.BALANCE: (402, "insufficient_credits"),
    Problem.UNKNOWN_JOB: (404, "JOB_NOT_FOUND"),
    Problem.TOO_MANY: (429, "rate_limit_exceeded"),
    Problem.BROKEN: (500, "internal_error"),
    Problem.UNAVAILABLE: (503, "internal_error"),
}


class Hoox(Wire):
    """Callback bodies have other names than poll bodies, and three revisions."""

    name = "hoox"
    base_path = "/api/public/v1"
    tells = frozenset(state for state in State if state.is_final)
    retries: tuple[float, ...] = (1.0, 2.0, 4.0)
    words: ClassVar = {
        State.QUEUED: "pending",
        State.PROCESSING: "processing",  # of an asset: generating
        State.SUCCEEDED: "completed",
        State.FAILED: "failed",
        State.ERROR: "failed",
        State.CANCELLED: "failed",
    }
    _calls: deque[datetime]

    def routes(self) -> list[Route]:
        self._calls = deque()
        base = self.base_path
        return [
            self.route(f"{base}/asset/start", self._start_asset, "POST"),
            self.route(f"{base}/asset/models", self._list_models, "GET"),
            self.route(f"{base}/asset/status/{{job_id}}", self._read_asset, "GET"),
            self.route(f"{base}/generation/start", self._start_video, "POST"),
            self.route(f"{base}/generation/status/{{job_id}}", self._read_video, "GET"),
            self.route(f"{base}/export/start", self._start_export, "POST"),
            self.route(f"{base}/export/status/{{job_id}}", self._read_export, "GET"),
            self.route(f"{base}/avatar/create", self._create_avatar, "POST"),
            self.route(f"{base}/avatar/edit", self._edit_avatar, "POST"),
            self.route(f"{base}/avatar/status", self._read_avatar, "GET"),
        ]

    def make_id(self, order: Order) -> str:
        if order.operation == "asset":
            return uuid.uuid4().hex[:24]
        if order.operation in ("video", "export"):
            return f"run_{uuid.uuid4().hex[:8]}"
        avatar_id = order.input.get("avatar_id") or f"avatar_{uuid.uuid4().hex[:8]}"
        return f"{avatar_id}/look_{uuid.uuid4().hex[:8]}"

    def word(self, job: Job) -> str:
        word = super().word(job)
        return "generating" if word == "processing" and job.order.operation == "asset" else word

    # Envelopes

    def problem(self, refusal: Refusal) -> Response:
        if refusal.problem in (Problem.MALFORMED, Problem.UNKNOWN_MODEL):
            is_model = refusal.problem is Problem.UNKNOWN_MODEL
            message = f"model {refusal.detail} does not exist" if is_model else refusal.detail
            detail = {"code": refusal.code or "invalid_value", "message": message, "field": "model" if is_model else refusal.field}
            return JSONResponse({"error": "Validation failed", "details": [detail]}, 400)
        status, code = STATUS[refusal.problem]
        return JSONResponse({"error": refusal.detail, "code": code}, status)

    def stamp(self, response: Response) -> None:
        """The rate headers, which only good answers carry."""
        now = self.engine.now()
        self._calls.append(now)
        while self._calls[0] < now - timedelta(minutes=1):
            self._calls.popleft()
        response.headers.update(self._rate_headers(max(1, PER_MINUTE - len(self._calls)), 60))  # the limit itself is not enforced

    def _rate_headers(self, remaining: int, seconds: float) -> dict[str, str]:
        reset = int(self.engine.now().timestamp() + seconds)
        return {"x-ratelimit-limit": str(PER_MINUTE), "x-ratelimit-remaining": str(remaining), "x-ratelimit-reset": str(reset)}

    def wait_headers(self, scenario: Scenario) -> dict[str, str]:
        headers = super().wait_headers(scenario)
        return headers if scenario.retry_after is None else headers | self._rate_headers(0, scenario.retry_after)

    # Assets

    async def _start_asset(self, request: Request) -> Response:
        body = await self.read_object(request)
        check_text(body, "type", "model", "prompt")
        if body["type"] not in ("image", "video"):
            raise Refusal(Problem.MALFORMED, "type must be image or video", field="type", code="invalid_value")
        if media_of(body["model"]) not in (None, body["type"]):
            raise Refusal(Problem.MALFORMED, f"{body['model']} does not make {body['type']}", field="type", code="invalid_value")
        _check_slots(body)
        order = Order(
            wire=self,
            operation="asset",
            model=body["model"],
            input=body,
            origin=origin_of(request),
            media=body["type"],
            count=read_count(body, "generation_count", 4),
            fans_out=True,
            callback_url=_read_webhook(body),
        )
        return await self.submit(order, self._asset_taken)

    def _asset_taken(self, jobs: list[Job]) -> Response:
        cost = ASSET_COSTS[jobs[0].order.media] if jobs else 0
        body = {
            "asset_ids": [job.id for job in jobs],
            "status": "generating",
            "count": len(jobs),
            "cost_per_generation": cost,
            "total_cost": cost * len(jobs),
        }
        return JSONResponse(body, 201)

    async def _list_models(self, request: Request) -> Response:
        return JSONResponse({"models": [{"name": "veo-3.1", "type": "video"}, {"name": "nano-banana", "type": "image"}], "count": 2})

    async def _read_asset(self, request: Request) -> Response:
        return await self.poll(request.path_params["job_id"], self._asset)

    def _asset(self, job: Job) -> dict[str, Any]:
        body: dict[str, Any] = {"asset_id": job.id, "status": self.word(job), "type": job.order.media}
        names = ("model", "prompt", "aspect_ratio", "resolution", "duration")
        asked = {"generation_params": {name: job.order.input[name] for name in names if name in job.order.input}}
        if not job.state.is_final:
            return body | asked
        if job.state is not State.SUCCEEDED:
            return body | {"error": self._error(job)}
        body |= {"url": next(iter(self.links.urls(job)), None), **_size(job)}
        if job.order.media == "video":
            body["thumbnail_url"] = self.links.thumbnail(job)
        return body | {"cost": ASSET_COSTS[job.order.media], "created_at": _iso(job.created_at)} | asked

    # Videos, exports, avatars

    async def _start_video(self, request: Request) -> Response:
        return await self._start_run(request, "video", outputs=0)  # its result names a video, no file

    async def _start_export(self, request: Request) -> Response:
        return await self._start_run(request, "export", outputs=1)

    async def _start_run(self, request: Request, operation: str, outputs: int) -> Response:
        order = await self._read_order(request, operation, outputs)
        cost = VIDEO_CREDITS if operation == "video" else 0
        return await self.submit(order, lambda jobs: _created({"job_id": jobs[0].id, "status": "pending", "estimated_credits": cost}))

    async def _read_order(self, request: Request, operation: str, outputs: int) -> Order:
        body = await self.read_object(request)
        return Order(
            wire=self,
            operation=operation,
            model="",
            input=body,
            origin=origin_of(request),
            media="image" if operation.startswith("avatar") else "video",
            outputs=outputs,
            callback_url=_read_webhook(body),
        )

    async def _read_video(self, request: Request) -> Response:
        return await self.poll(request.path_params["job_id"], lambda job: self._run(job, "progress_step"))

    async def _read_export(self, request: Request) -> Response:
        return await self.poll(request.path_params["job_id"], lambda job: self._run(job, "progress"))

    def _run(self, job: Job, progress: str) -> dict[str, Any]:
        body: dict[str, Any] = {"job_id": job.id, "status": self.word(job), progress: round(self.engine.progress(job) * 100)}
        if job.order.operation == "video":
            body["current_step"] = self.word(job)
        if job.state is State.SUCCEEDED:
            duration = {"duration": 3} if job.order.operation == "video" else {}
            body["result"] = {**self._run_result(job), **duration}
        elif job.state.is_final:
            body["error"] = self._error(job)
        return body

    def _run_result(self, job: Job) -> dict[str, Any]:
        is_video = job.order.operation == "video"
        found = {"video_id": f"vid_{job.id[-8:]}"} if is_video else {"video_url": next(iter(self.links.urls(job)), None)}
        cost = VIDEO_CREDITS if is_video else 0
        return {**found, "thumbnail_url": self.links.thumbnail(job), "cost": cost, "created_at": _iso(job.created_at)}

    async def _create_avatar(self, request: Request) -> Response:
        return await self._start_avatar(request, "avatar_create")

    async def _edit_avatar(self, request: Request) -> Response:
        return await self._start_avatar(request, "avatar_edit")

    async def _start_avatar(self, request: Request, operation: str) -> Response:
        order = await self._read_order(request, operation, outputs=1)
        if operation == "avatar_edit":
            check_text(order.input, "avatar_id")
        return await self.submit(order, lambda jobs: _created(_look(jobs[0])))

    async def _read_avatar(self, request: Request) -> Response:
        ids = (request.query_params.get(name, "") for name in ("avatar_id", "look_id"))
        return await self.poll("/".join(ids), self._avatar)

    def _avatar(self, job: Job) -> dict[str, Any]:
        body: dict[str, Any] = {**_look(job), "status": self.word(job)}
        if job.state is State.SUCCEEDED:
            return {**body, "result": self._look_result(job)}
        return {**body, "error": self._error(job)} if job.state.is_final else body

    def _look_result(self, job: Job) -> dict[str, Any]:
        return {"id": _look(job)["look_id"], "thumbnail": next(iter(self.links.urls(job)), None), "format": "vertical", "place": "studio"}

    # Callbacks

    def news(self, job: Job) -> News:
        revision, operation = job.scenario.revision, job.order.operation
        body: dict[str, Any] = {} if revision == "A" else {"task": TASKS[operation]}
        body |= _look(job) if operation.startswith("avatar") else {_id_field(job): job.id}
        body["status"] = self.word(job)
        if job.state is State.SUCCEEDED:
            body["result"] = self._result(job)
        elif job.state.is_final:
            body["error"] = self._error(job)
        return News(body, ("asset_id", "job_id", "avatar_id", "look_id"), {"user-agent": "Hoox-API/1.0", "x-hoox-webhook": "true"})

    def _result(self, job: Job) -> dict[str, Any]:
        if job.order.operation == "asset":
            return {"asset_url": next(iter(self.links.urls(job)), None), "asset_type": job.order.media, **_size(job)}
        return self._look_result(job) if job.order.operation.startswith("avatar") else self._run_result(job)

    def _error(self, job: Job) -> dict[str, str]:
        code = job.scenario.error_code
        return {"code": code.lower() if job.scenario.revision == "A" else code.upper(), "message": job.scenario.error}


def _id_field(job: Job) -> str:
    """Assets were named by `job_id` until revision C."""
    return "asset_id" if job.order.operation == "asset" and job.scenario.revision == "C" else "job_id"


def _created(body: dict[str, Any]) -> Response:
    return JSONResponse(body, 201)


def _look(job: Job) -> dict[str, str]:
    avatar_id, _, look_id = job.id.partition("/")
    return {"avatar_id": avatar_id, "look_id": look_id}


def _size(job: Job) -> dict[str, int]:
    """What the files of the simulator really measure."""
    size = {"width": 256, "height": 256}
    return size | {"duration_seconds": 3} if job.order.media == "video" else size


def _read_webhook(body: dict[str, Any]) -> str | None:
    return check_callback_url(body.pop("webhook_url", None), "webhook_url", "invalid_webhook_url")


def _check_slots(body: dict[str, Any]) -> None:
    """Named slots: in order, without gaps, and not beside `references`."""
    slots = NAMED_SLOTS.get(body["model"], ())
    if slots and "references" in body:
        raise Refusal(Problem.MALFORMED, f"{body['model']} takes named slots, not references", field="references", code="invalid_value")
    given = [name in body for name in slots]
    if given != sorted(given, reverse=True):
        gap = slots[given.index(False)]
        raise Refusal(Problem.MALFORMED, f"{gap} is required by a later slot", field=gap, code="missing_field")


def _iso(at: datetime) -> str:
    return at.strftime("%Y-%m-%dT%H:%M:%S.000Z")
