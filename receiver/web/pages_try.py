"""Try it: a job submitted from the browser."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from receiver.errors import Conflict, Invalid, TooMany, Unavailable
from receiver.keys import Scope
from receiver.providers.account import Account
from receiver.services import Services
from receiver.stores.terms import Replayed
from receiver.tracing import Span
from receiver.web.bodies import parse_json
from receiver.web.operations import Answer, Operation, services_of
from receiver.web.pages_frame import GROUP, Form, go_to, page, read_fields, read_form, show, show_error, show_json
from receiver.web.providers import show_operations
from receiver.web.query import Query
from receiver.web.submitting import begin_submit, check_body, make_family

PROMPT = {"prompt": "A lighthouse in the morning fog, seen from the sea"}
"""Where a spec has no example."""


class Example(msgspec.Struct, frozen=True, kw_only=True):
    """A request to begin with, as the form's fields."""

    provider: str
    operation: str
    model: str
    media: str
    input: str

    def fits(self, form: Form) -> bool:
        return all(form.get(name) in (None, getattr(self, name)) for name in ("provider", "operation", "model"))


async def show_form(request: Request, query: Query) -> Response:
    """The address may say what to begin with."""
    form = read_fields(request)
    examples = list_examples(services_of(request))
    ready = [each for each in examples if has_key(request, each.provider)] or examples
    example = next((each for each in (*ready, *examples) if each.fits(form)), None)
    begun = msgspec.structs.asdict(example) if example else {"provider": form.get("provider", ""), "input": show_json(PROMPT)}
    return show_filled(request, begun | dict(form), ())


def show_filled(request: Request, form: Form, mistakes: tuple[str, ...]) -> Response:
    services = services_of(request)
    accounts = [
        {"name": account.name, "operations": show_operations(account.spec), "has_key": bool(account.api_key)}
        for account in services.accounts.values()
    ]
    return show(
        request,
        "try.html",
        400 if mistakes else 200,
        accounts=accounts,
        examples=list_examples(services),
        filled={name: form.get(name, "") for name in ("provider", "operation", "model", "media", "input", "metadata")},
        mistakes=mistakes,
        token=form.get("token") or secrets.token_hex(16),
    )


def has_key(request: Request, provider: str) -> bool:
    return bool(services_of(request).accounts[provider].api_key)


def list_examples(services: Services) -> list[Example]:
    """Of every account: what its spec says, in the spec's order; one with a prompt where it says nothing."""
    return [example for account in services.accounts.values() for example in examples_of(account)]


def examples_of(account: Account) -> Iterator[Example]:
    for name, operation in account.spec.table.operations.items():
        given = [(model, entry.media, entry.example) for model, entry in operation.models.items() if entry.example is not None]
        if operation.example is not None:
            given.insert(0, (operation.example.model or "", operation.example.media, operation.example.input))
        for model, media, example in given or [(next(iter(operation.models), ""), None, PROMPT)]:
            text = show_json(operation.submit.defaults | example)
            yield Example(provider=account.name, operation=name, model=model, media=media or "", input=text)


async def submit_form(request: Request, query: Query) -> Response:
    """Submits as the API does. Sent twice, the same form makes one submission."""
    with begin_submit(request, "/try") as span:
        return await submit_traced(request, span)


async def submit_traced(request: Request, span: Span) -> Response:
    services, form = services_of(request), await read_form(request)
    try:
        await request.app.state.headroom.take_submission()
        document = read_document(form)
        asked, account, plan = check_body(services, document)
        key = f"page-{form.get('token', '')[:64]}"
        api_key_id = getattr(request.state, "api_key_id", "")
        family = make_family(services, document, asked, account, plan, key=key, api_key_id=api_key_id, span=span)
        kept = await request.app.state.brakes.create(family)
    except Invalid as error:
        told = tuple(f"{each.get('pointer', '').lstrip('/') or 'input'} {each['detail']}" for each in error.errors)
        return show_filled(request, form, told)
    except Conflict as error:
        return show_filled(request, {**form, "token": ""}, (str(error),))
    except TooMany as error:
        return show_filled(request, form, (str(error),))
    except Unavailable as error:
        return show_error(request, error)
    services.pulse.strike()
    request.app.state.answered.add(family.submission)
    jobs = kept.family.jobs if isinstance(kept, Replayed) else family.jobs
    return go_to(request, f"jobs/{jobs[0].id}" if len(jobs) == 1 else f"jobs?submission_id={jobs[0].submission_id}")


def read_document(form: Form) -> dict[str, Any]:
    """The body that the API would be given; Invalid where a field is no JSON."""
    errors = []
    document: dict[str, Any] = {name: form[name] for name in ("provider", "model", "operation", "media") if name in form}
    try:
        document["input"] = parse_json(form.get("input", "{}"), "/input")
    except Invalid as error:
        errors += error.errors
    metadata = [line.partition("=") for line in form.get("metadata", "").splitlines() if line.strip()]
    if any(not sign for _, sign, _ in metadata):
        errors.append({"pointer": "/metadata", "detail": "is not lines of key=value"})
    if metadata:
        document["metadata"] = {key.strip(): value.strip() for key, _, value in metadata}
    if errors:
        raise Invalid(errors)
    return document


PAGES = (
    page("/try", show_form, "A form to submit a job with."),
    Operation("POST", "/try", submit_form, GROUP, "Submit a job from the form.", (Answer(303, "Look there."),), None, scope=Scope.SUBMIT),
)
