"""`POST /v1/jobs`: a request becomes a submission on disk; the submitter makes the call."""

from __future__ import annotations

import hashlib
import json
import re
from collections import OrderedDict
from datetime import datetime, timedelta
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from receiver.errors import Conflict, Invalid, Unavailable
from receiver.ids import make_id
from receiver.model import Family, Job, Status, Submission
from receiver.providers.account import Account
from receiver.providers.requests import Plan, plan_submission
from receiver.services import Services
from receiver.stores.terms import Replayed
from receiver.tracing import Span, read_traceparent
from receiver.web.bodies import read_json, read_struct
from receiver.web.brakes import Brakes
from receiver.web.operations import answer_json, services_of
from receiver.web.query import Query
from receiver.web.views import NewJob
from receiver.web.waiting import Waiting

MAX_INPUT = 1024 * 1024
QUOTED = re.compile(r'"((?:[ !#-\[\]-~]|\\["\\])*)"')  # a string as of RFC 9651
BARE = re.compile(r"[!#-~]+")


class Answered:
    """The submissions whose request this process has answered, the last ones of them."""

    def __init__(self, remembered: int = 10_000) -> None:
        self._ids: OrderedDict[str, None] = OrderedDict()
        self._remembered = remembered

    def add(self, submission: Submission) -> None:
        self._ids[submission.id] = None
        if len(self._ids) > self._remembered:
            self._ids.popitem(last=False)

    def is_underway(self, submission: Submission, now: datetime, patience: timedelta) -> bool:
        """Whether the request that made it may still wait, here or in another process."""
        return submission.id not in self._ids and now - submission.created_at < patience


async def submit_jobs(request: Request, query: Query) -> Response:
    with begin_submit(request, "/v1/jobs") as span:
        answer = await submit_traced(request, span)
        span.note(http_status=answer.status_code)
        return answer


def begin_submit(request: Request, route: str) -> Span:
    """Where the trace of a submission begins, or goes on from the caller's."""
    within = read_traceparent(request.headers.getlist("traceparent"))
    return services_of(request).settling.tracing.begin_trace("submit", within, kind="server", http_method="POST", http_route=route)


async def submit_traced(request: Request, span: Span) -> Response:
    services = services_of(request)
    await request.app.state.headroom.take_submission()
    document = await read_json(request)
    key = read_idempotency_key(request)
    asked, account, plan = check_body(services, document)
    family = make_family(services, document, asked, account, plan, key=key, api_key_id=getattr(request.state, "api_key_id", ""), span=span)
    brakes: Brakes = request.app.state.brakes
    kept = await brakes.create(family)
    if isinstance(kept, Replayed):
        return answer_again(request, kept.family, services.clock.now(), account)
    try:
        return await wait_for_provider(request, services, account, family)
    finally:
        request.app.state.answered.add(family.submission)


def answer_again(request: Request, family: Family, now: datetime, account: Account) -> Response:
    """The answer to a repeated request: the submission of the first one, as it stands now."""
    answered: Answered = request.app.state.answered
    if is_submitting(family) and answered.is_underway(family.submission, now, patience_with(account)):
        raise Conflict("The first request with this Idempotency-Key is still under way.")
    return answer_family(family, {"Idempotency-Replayed": "true"})


async def wait_for_provider(request: Request, services: Services, account: Account, family: Family) -> Response:
    """Let the submitter do its work, and answer with what came of it."""
    services.pulse.strike()
    if wants_no_wait(request):
        return answer_family(family, {"Preference-Applied": "respond-async"})
    waiting: Waiting = request.app.state.waiting

    async def look() -> Family:
        try:
            return (await services.store.load_families([family.submission.id])).get(family.submission.id, family)
        except Unavailable:  # it is on disk and will be sent: a refusal now would have the caller pay twice
            return family

    return answer_family(await waiting.until(look, lambda found: not is_submitting(found), patience_with(account).total_seconds()))


def patience_with(account: Account) -> timedelta:
    """How long a request waits for the provider's answer: a little longer than the call may take."""
    return account.submit_timeout + timedelta(seconds=1)


def answer_family(family: Family, headers: dict[str, str] | None = None) -> Response:
    document = {"submission_id": family.submission.id, "jobs": [job.public() for job in family.jobs]}
    return answer_json(document, 202, headers)


def is_submitting(family: Family) -> bool:
    return any(job.status is Status.SUBMITTING for job in family.jobs)


def make_family(
    services: Services, document: Any, asked: NewJob, account: Account, plan: Plan, *, key: str | None, api_key_id: str, span: Span
) -> Family:
    """A checked request as the submission that it becomes, with its jobs."""
    now = services.clock.now()
    submission = Submission(
        id=make_id("sub", now),
        provider=account.name,
        operation=plan.operation,
        model=plan.model,
        media=plan.media,
        input=asked.input,
        metadata=asked.metadata or {},
        count=plan.count,
        next_attempt_at=now,
        deadline_seconds=asked.deadline_seconds or account.deadline_for(plan.media, plan.operation).total_seconds(),
        created_at=now,
        api_key_id=api_key_id,
        idempotency_key=key,
        body_hash=hash_of(document) if key is not None else "",
    )
    span.note(provider=account.name, operation=plan.operation, model=plan.model, submission_id=submission.id, jobs=plan.count)
    return Family(submission, make_jobs(submission, span.traceparent))


def make_jobs(submission: Submission, traceparent: str | None) -> tuple[Job, ...]:
    now = submission.created_at
    return tuple(
        Job(
            id=make_id("job", now),
            submission_id=submission.id,
            provider=submission.provider,
            operation=submission.operation,
            model=submission.model,
            media=submission.media,
            status=Status.SUBMITTING,
            metadata=submission.metadata,
            created_at=now,
            updated_at=now,
            deadline_at=now + timedelta(seconds=submission.deadline_seconds),
            position=position,
            traceparent=traceparent,
        )
        for position in range(submission.count)
    )


def check_body(services: Services, document: Any) -> tuple[NewJob, Account, Plan]:
    """What is asked for, of which account, and how it will be sent; Invalid with all mistakes at once."""
    values, errors = read_struct(NewJob, document)
    account = services.accounts.get(values["provider"] or "")
    if account is None and values["provider"] is not None:
        errors.append({"pointer": "/provider", "detail": no_such_provider(services, values["provider"])})
    if values["input"] is not None and len(msgspec.json.encode(values["input"])) > MAX_INPUT:
        errors.append({"pointer": "/input", "detail": "is over 1 MiB"})
    errors += [
        {"pointer": f"/{name}", "detail": "holds a NUL character"}
        for name in ("provider", "model", "operation")
        if "\0" in (values[name] or "")
    ]
    if any("\0" in word for pair in (values["metadata"] or {}).items() for word in pair):
        errors.append({"pointer": "/metadata", "detail": "holds a NUL character"})
    wrong = {error["pointer"].split("/")[1] for error in errors if error["pointer"]}
    plan: Plan | None = None
    if account is not None and not wrong & {"input", "model", "operation", "media"}:
        try:
            plan = plan_submission(
                account, model=values["model"], input=values["input"], operation=values["operation"], media=values["media"]
            )
        except Invalid as error:
            errors += error.errors
    if errors or account is None or plan is None:
        raise Invalid(errors)
    return NewJob(**values), account, plan


def no_such_provider(services: Services, name: str) -> str:
    if name in services.specs:
        return f"{name} is known but not configured: it needs a table [providers.{name}] with its api_key."
    return f"There is no such provider here; there are: {', '.join(sorted(services.accounts)) or 'none'}."


def read_idempotency_key(request: Request) -> str | None:
    """The header's value, with or without the quotes that the IETF draft wants around it."""
    given = request.headers.getlist("idempotency-key")
    if not given:
        return None
    text = given[0].strip()
    quoted = QUOTED.fullmatch(text)
    key = re.sub(r"\\(.)", r"\1", quoted[1]) if quoted else text if BARE.fullmatch(text) else ""
    if len(given) > 1 or not 1 <= len(key) <= 255:
        raise Invalid(
            [{"parameter": "Idempotency-Key", "detail": 'is not one string of 1 to 255 printable ASCII characters, like "8e03978e"'}]
        )
    return key


def wants_no_wait(request: Request) -> bool:
    preferences = ",".join(request.headers.getlist("prefer")).split(",")
    return any(re.split("[;=]", preference)[0].strip().lower() == "respond-async" for preference in preferences)


def hash_of(document: Any) -> str:
    """The same for the same JSON, however it was written: order, spaces and `1.0` for `1` make no difference."""
    return hashlib.sha256(json.dumps(canonical(document), sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def canonical(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: canonical(child) for key, child in value.items()}
    if isinstance(value, list):
        return [canonical(child) for child in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value
