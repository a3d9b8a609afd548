"""What the protocols share: keys, refusals, and the faults of submits and polls."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Mapping
from datetime import timedelta
from email.utils import format_datetime
from enum import StrEnum
from typing import Any, ClassVar
from urllib.parse import urlsplit

import msgspec
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from receiver.simulator.courier import Courier
from receiver.simulator.engine import Engine, Job, News, Order, State
from receiver.simulator.ledger import RefusedEntry, SubmitEntry
from receiver.simulator.links import Links
from receiver.simulator.media import Kind
from receiver.simulator.scenario import Fault, Scenario, UnknownWord

NO_SUCH_MODEL = "no-such-model"  # the name of a model that no provider has
WRONG_KEY = "wrong"  # a key that is refused where no other one is asked for
HUNG_UP = "receiver.simulator.hung_up"


class Problem(StrEnum):
    """Why a call is refused; each protocol has its own words for it."""

    MALFORMED = "malformed"
    UNSUPPORTED = "unsupported"  # Oxen only: a model that makes neither images nor videos
    UNAUTHENTICATED = "unauthenticated"
    BALANCE = "balance"
    UNKNOWN_MODEL = "unknown_model"
    UNKNOWN_JOB = "unknown_job"
    TOO_MANY = "too_many"
    BROKEN = "broken"
    UNAVAILABLE = "unavailable"


class Refusal(Exception):
    """The call is refused."""

    def __init__(self, problem: Problem, detail: str, *, field: str | None = None, code: str = "") -> None:
        self.problem, self.detail, self.field, self.code = problem, detail, field, code
        super().__init__(detail)


class HangUp(Response):
    """No answer at all: the connection is closed."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope["state"][HUNG_UP] = True


Endpoint = Callable[[Request], Awaitable[Response]]
SUBMIT_PROBLEMS = {
    Fault.TOO_MANY: (Problem.TOO_MANY, "too many requests"),
    Fault.UNAVAILABLE: (Problem.UNAVAILABLE, "overloaded, try again later"),
    Fault.BROKEN: (Problem.BROKEN, "something broke on our side"),
    Fault.REFUSED: (Problem.MALFORMED, "these parameters are not supported"),
    Fault.BALANCE: (Problem.BALANCE, "the balance is too low for this request"),
}
POLL_PROBLEMS = {
    Fault.POLL_404: (Problem.UNKNOWN_JOB, "no such job"),
    Fault.POLL_429: (Problem.TOO_MANY, "too many requests"),
    Fault.POLL_500: (Problem.BROKEN, "something broke on our side"),
    Fault.POLL_503: (Problem.UNAVAILABLE, "overloaded, try again later"),
}
NOT_JSON = "<html><body>oops</body></html>"


class Wire(ABC):
    """One provider's protocol: its routes, its envelopes, its words."""

    name: str
    base_path: str = ""  # what a base URL has after the provider's prefix
    tells: frozenset[State] = frozenset()
    is_stream: bool = False
    retries: tuple[float, ...] = ()
    is_signed: bool = False
    is_at_root: bool = True  # its routes are also served without its name in front
    webhook_url: str | None = None  # registered for the whole account, where a submit names none
    words: ClassVar[Mapping[State, str]]

    def __init__(self, engine: Engine, courier: Courier, links: Links, key: str | None) -> None:
        self.engine, self.courier, self.links, self.key = engine, courier, links, key

    @abstractmethod
    def routes(self) -> list[Route]: ...

    @abstractmethod
    def make_id(self, order: Order) -> str:
        """An id in the provider's style."""

    @abstractmethod
    def problem(self, refusal: Refusal) -> Response:
        """A refusal in the provider's envelope."""

    @abstractmethod
    def news(self, job: Job) -> News:
        """What is told of the state that the job has now."""

    def settings(self, url: str) -> dict[str, Any]:
        """What to configure beside a key, given where the simulator is reached."""
        return {"base_url": f"{url}/{self.name}{self.base_path}"}

    def sign(self, job: Job, body: bytes) -> dict[str, str]:
        """The headers that prove a callback."""
        return {}

    def stamp(self, response: Response) -> None:  # noqa: B027 - most providers have none
        """Adds the headers that every good answer has."""

    # Calls

    def route(self, path: str, endpoint: Endpoint, method: str) -> Route:
        """A route that wants the key and turns refusals into answers."""

        async def guarded(request: Request) -> Response:
            try:
                self.check_key(request)
                response = await endpoint(request)
                if response.status_code < 400:
                    self.stamp(response)
                return response
            except Refusal as refusal:
                return self._refuse(request, refusal)

        return Route(path, guarded, methods=[method])

    def _refuse(self, request: Request, refusal: Refusal) -> Response:
        response = self.problem(refusal)
        entry = RefusedEntry(
            at=self.engine.now(),
            provider=self.name,
            method=request.method,
            path=request.url.path,
            status=response.status_code,
            detail=refusal.detail,
        )
        self.engine.ledger.refused.append(entry)
        return response

    def check_key(self, request: Request) -> None:
        scheme, _, key = request.headers.get("authorization", "").partition(" ")
        self.check_key_is(key.strip() if scheme.lower() == "bearer" else "")

    def check_key_is(self, key: str) -> None:
        if not key or (key != self.key if self.key is not None else key == WRONG_KEY):
            raise Refusal(Problem.UNAUTHENTICATED, "the API key is missing or wrong")

    async def read_object(self, request: Request) -> dict[str, Any]:
        """The body, which must be a JSON object."""
        try:
            return msgspec.json.decode(await request.body(), type=dict[str, Any])
        except msgspec.DecodeError:
            raise Refusal(Problem.MALFORMED, "the body must be a JSON object") from None

    # Submits

    async def submit(self, order: Order, build: Callable[[list[Job]], Response]) -> Response:
        """Takes the order as its scenario says; `build` makes the answer that a good day would bring."""
        if NO_SUCH_MODEL in order.model.split("/"):
            raise Refusal(Problem.UNKNOWN_MODEL, order.model)
        try:
            scenario = self.engine.choose(order)
        except UnknownWord as error:
            raise Refusal(Problem.MALFORMED, str(error), field="prompt", code="invalid_value") from None
        entry = self._enter(order)
        fault = self.engine.refusal(order, scenario)
        if fault is not None:
            response = self._turn_away(*SUBMIT_PROBLEMS[fault], scenario)
            entry.status = response.status_code
            return response
        jobs = await self.engine.take(order, scenario)
        entry.job_ids = tuple(dict.fromkeys(job.id for job in jobs))
        entry.billed = len(entry.job_ids)
        response = await self._spoil(scenario, build, jobs)
        entry.status = None if isinstance(response, HangUp) else response.status_code
        return response

    def _enter(self, order: Order) -> SubmitEntry:
        entry = SubmitEntry(
            at=self.engine.now(),
            provider=self.name,
            operation=order.operation,
            model=order.model,
            prompt=order.prompt,
            callback_url=order.callback_url,
        )
        self.engine.ledger.submits.append(entry)
        return entry

    def _turn_away(self, problem: Problem, detail: str, scenario: Scenario) -> Response:
        """A refusal that is no fault of the caller, with word of when to come again."""
        response = self.problem(Refusal(problem, detail))
        if problem in (Problem.TOO_MANY, Problem.UNAVAILABLE):
            response.headers.update(self.wait_headers(scenario))
        return response

    async def _spoil(self, scenario: Scenario, build: Callable[[list[Job]], Response], jobs: list[Job]) -> Response:
        faults = scenario.faults
        if Fault.SUBMIT_SLOW in faults:
            await self.engine.pause(scenario.delay)
        if Fault.SUBMIT_LOST in faults:
            return HangUp()
        if Fault.SUBMIT_502 in faults:
            return Response(NOT_JSON, 502, media_type="text/html")
        response = build(jobs)
        if Fault.SUBMIT_GARBLED in faults:
            return Response(NOT_JSON, response.status_code, media_type="text/html")
        return JSONResponse({}, response.status_code) if Fault.SUBMIT_EMPTY in faults else response

    def wait_headers(self, scenario: Scenario) -> dict[str, str]:
        if scenario.retry_after is None:
            return {}
        if scenario.as_date:
            return {"retry-after": format_datetime(self.engine.now() + timedelta(seconds=scenario.retry_after), usegmt=True)}
        return {"retry-after": str(math.ceil(scenario.retry_after))}

    # Polls

    async def poll(self, job_id: str, build: Callable[[Job], Any]) -> Response:
        """The state of a job as its scenario lets it be seen; `build` makes the body of a good day."""
        job = self.find(job_id)
        job.polls += 1
        if job.polls <= job.scenario.polls:
            for fault, (problem, detail) in POLL_PROBLEMS.items():
                if job.has(fault):
                    return self._turn_away(problem, detail, job.scenario)
            if job.has(Fault.POLL_LOST):
                return HangUp()
            if job.has(Fault.POLL_GARBLED):
                return Response(NOT_JSON, media_type="text/html")
            if job.has(Fault.POLL_SLOW):
                await self.engine.pause(job.scenario.delay)
        return JSONResponse(build(job))

    def find(self, job_id: str) -> Job:
        job = self.engine.find(self.name, job_id)
        if job is None:
            raise Refusal(Problem.UNKNOWN_JOB, "no such job")
        return job

    def word(self, job: Job) -> str:
        """The provider's word for where the job stands."""
        if job.state is State.PROCESSING and job.has(Fault.UNKNOWN_STATUS):
            return "warming_up"
        return self.words[job.state]


def check_text(body: Mapping[str, Any], *names: str) -> None:
    """These fields must be texts that are not empty."""
    for name in names:
        if not isinstance(body.get(name), str) or not body[name]:
            raise Refusal(Problem.MALFORMED, f"{name} is required and must be a string", field=name, code="missing_field")


def read_count(body: Mapping[str, Any], name: str, maximum: int) -> int:
    """A whole number from 1 to the maximum; 1 where it is left out."""
    count = body.get(name)
    if count is None:
        return 1
    if not isinstance(count, int) or isinstance(count, bool) or not 1 <= count <= maximum:
        raise Refusal(Problem.MALFORMED, f"{name} must be an integer between 1 and {maximum}", field=name, code="invalid_value")
    return count


def check_callback_url(url: Any, name: str, code: str = "invalid_value") -> str | None:
    """A callback URL that can be called, or None where none is given."""
    if url is None:
        return None
    try:
        parts = urlsplit(url if isinstance(url, str) else "")
        is_good = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0 and url.isprintable()
    except ValueError:
        is_good = False
    if not is_good:
        raise Refusal(Problem.MALFORMED, f"{name} must be an http or https URL", field=name, code=code)
    return str(url)


def origin_of(request: Request) -> str:
    """Scheme and host as the client knows them, without the provider's prefix."""
    return f"{request.url.scheme}://{request.url.netloc}"


MEDIA_WORDS: tuple[tuple[Kind, str], ...] = (
    ("3d", "3d mesh tripo meshy"),
    ("audio", "music audio song suno udio speech tts voice lyria"),
    ("image", "image photon flux jimeng wanx picture t2i"),
    ("video", "video kling veo ray luma runway gen3 gen4 vidu seedance minimax sora hailuo"),
)


def media_of(model: str) -> Kind | None:
    """What a model of this name makes; None if the name does not tell."""
    tail = model.lower().replace("image-to-video", "video").replace("image-to-3d", "3d")
    return next((kind for kind, words in MEDIA_WORDS if any(word in tail for word in words.split())), None)


def seconds_of(job: Job) -> tuple[int, int | None]:
    """When the job was made and when it ended, in Unix seconds."""
    return int(job.created_at.timestamp()), None if job.finished_at is None else int(job.finished_at.timestamp())
