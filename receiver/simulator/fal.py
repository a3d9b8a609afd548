"""fal's queue: a status, and the result elsewhere; callbacks signed by Ed25519 (https://docs.fal.ai/model-endpoints/queue)."""

from __future__ import annotations

import hashlib
import uuid
from typing import Any, ClassVar

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from receiver.simulator.engine import Job, News, Order, State
from receiver.simulator.signing import make_jwks, make_key
from receiver.simulator.wire import Problem, Refusal, Wire, check_callback_url, media_of, origin_of, read_count

STATUS = {
    Problem.MALFORMED: 422,
    Problem.UNAUTHENTICATED: 401,
    Problem.BALANCE: 403,
    Problem.UNKNOWN_MODEL: 404,
    Problem.UNKNOWN_JOB: 404,
    Problem.TOO_MANY: 429,
    Problem.BROKEN: 500,
    Problem.UNAVAILABLE: 503,
}
JWKS_PATH = "/.well-known/jwks.json"
FIELDS = {"video": "video", "audio": "audio", "3d": "model_mesh"}  # of a result; pictures are a list


class Fal(Wire):
    """The words of callbacks are not those of polls."""

    name = "fal"
    is_at_root = False  # any two words are a model
    tells = frozenset(state for state in State if state.is_final)
    retries: tuple[float, ...] = (2.0, 4.0)
    is_signed = True
    signing_key = make_key("fal")
    words: ClassVar = {
        State.QUEUED: "IN_QUEUE",
        State.PROCESSING: "IN_PROGRESS",
        State.SUCCEEDED: "COMPLETED",
        State.FAILED: "COMPLETED",
        State.ERROR: "COMPLETED",
        State.CANCELLED: "COMPLETED",
    }

    def routes(self) -> list[Route]:
        return [
            Route(JWKS_PATH, self._show_keys),
            self.route("/{owner}/{alias}/requests/{request_id}/status", self._read, "GET"),
            self.route("/{owner}/{alias}/requests/{request_id}/cancel", self._cancel, "PUT"),
            self.route("/{owner}/{alias}/requests/{request_id}", self._read_result, "GET"),
            self.route("/{owner}/{alias}", self._submit, "POST"),
            self.route("/{owner}/{alias}/{subpath:path}", self._submit, "POST"),
        ]

    def settings(self, url: str) -> dict[str, Any]:
        return {**super().settings(url), "jwks_url": f"{url}/{self.name}{JWKS_PATH}"}

    async def _show_keys(self, request: Request) -> Response:
        return JSONResponse(make_jwks(self.signing_key), headers={"cache-control": "max-age=3600"})

    def sign(self, job: Job, body: bytes) -> dict[str, str]:
        values = [job.id, "user_1", str(int(self.engine.now().timestamp()))]
        message = "\n".join([*values, hashlib.sha256(body).hexdigest()]).encode()
        names = ("request-id", "user-id", "timestamp", "signature")
        signature = self.signing_key.sign(message).hex()
        return {f"x-fal-webhook-{name}": value for name, value in zip(names, [*values, signature], strict=True)}

    def check_key(self, request: Request) -> None:
        scheme, _, key = request.headers.get("authorization", "").partition(" ")
        self.check_key_is(key.strip() if scheme.lower() == "key" else "")

    def make_id(self, order: Order) -> str:
        return str(uuid.uuid4())

    def problem(self, refusal: Refusal) -> Response:
        detail: Any = refusal.detail
        if refusal.problem is Problem.BALANCE:
            detail = "User is locked. Reason: Exhausted balance."
        elif refusal.problem is Problem.MALFORMED:
            detail = [{"loc": ["body", refusal.field or ""], "msg": refusal.detail, "type": refusal.code or "value_error"}]
        return JSONResponse({"detail": detail}, STATUS[refusal.problem])

    async def _submit(self, request: Request) -> Response:
        parts = [request.path_params[part] for part in ("owner", "alias")] + [request.path_params.get("subpath", "")]
        model = "/".join(filter(None, parts))
        body = await self.read_object(request)
        media = media_of(model) or "image"
        order = Order(
            wire=self,
            model=model,
            input=body,
            origin=origin_of(request),
            media=media,
            outputs=read_count(body, "num_images", 4) if media == "image" else 1,
            callback_url=check_callback_url(request.query_params.get("fal_webhook"), "fal_webhook"),
        )
        base = f"{origin_of(request)}{request.scope.get('root_path', '')}"
        return await self.submit(order, lambda jobs: JSONResponse({**self._status(jobs[0]), **_urls(jobs[0], base)}))

    async def _read(self, request: Request) -> Response:
        base = f"{origin_of(request)}{request.scope.get('root_path', '')}"
        return await self.poll(request.path_params["request_id"], lambda job: {**self._status(job), **_urls(job, base)})

    async def _read_result(self, request: Request) -> Response:
        job = self.find(request.path_params["request_id"])
        if not job.state.is_final:
            return JSONResponse({"detail": "Request is still in progress"}, 400)
        if job.state is not State.SUCCEEDED:
            return JSONResponse({"detail": _error(job)["error"]}, 422, headers={"x-fal-error-type": _error(job)["error_type"]})
        return JSONResponse(self._result(job))

    async def _cancel(self, request: Request) -> Response:
        job = self.find(request.path_params["request_id"])
        if job.state.is_final:
            return JSONResponse({"status": "ALREADY_COMPLETED"}, 400)
        self.engine.cancel(job)
        return JSONResponse({"status": "CANCELLATION_REQUESTED"}, 202)

    def _status(self, job: Job) -> dict[str, Any]:
        body: dict[str, Any] = {"request_id": job.id, "status": self.word(job)}
        if job.state is State.QUEUED:
            body["queue_position"] = 0
        return body if not job.state.is_final or job.state is State.SUCCEEDED else {**body, **_error(job)}

    def news(self, job: Job) -> News:
        body: dict[str, Any] = {"request_id": job.id, "gateway_request_id": job.id}
        if job.state is State.SUCCEEDED:
            body |= {"status": "OK", "payload": self._result(job)}
        elif job.state.is_final:
            body |= {"status": "ERROR", **_error(job), "payload": None}
        else:
            body |= {"status": self.word(job)}
        return News(body, ("request_id",))

    def _result(self, job: Job) -> dict[str, Any]:
        links = self.links.urls(job)
        files = [{"url": link, "content_type": file.media_type} for link, file in zip(links, job.files, strict=True)]
        field = FIELDS.get(job.files[0].kind) if job.files else None
        return {"images": files, "seed": 42} if field is None else {field: files[0]}


def _urls(job: Job, base: str) -> dict[str, str]:
    """The subpath of the model is not part of them."""
    url = f"{base}/{'/'.join(job.order.model.split('/')[:2])}/requests/{job.id}"
    return {"response_url": url, "status_url": f"{url}/status", "cancel_url": f"{url}/cancel"}


def _error(job: Job) -> dict[str, str]:
    if job.state is State.CANCELLED:
        return {"error": "Request was cancelled", "error_type": "client_cancelled"}
    return {"error": job.scenario.error, "error_type": job.scenario.error_code.lower()}
