"""Requests to providers, built from a spec without sending them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote, urlencode, urlsplit, urlunsplit

import msgspec

from receiver.errors import Invalid
from receiver.model import MEDIA, Job, Request, Submission
from receiver.providers.account import Account
from receiver.providers.paths import ID_SEPARATOR, FieldPath
from receiver.providers.spec import Call, Operation, Submit

MODEL_PART = re.compile(r"[A-Za-z0-9._~:@+-]+")  # of a model that goes into a path: nothing that a server could decode or resolve
MAX_MODEL = 512


class Plan(msgspec.Struct, frozen=True):
    """What a request for jobs comes to."""

    operation: str
    model: str | None
    media: str | None
    count: int


def plan_submission(
    account: Account, *, model: str | None, input: Mapping[str, Any], operation: str | None = None, media: str | None = None
) -> Plan:
    """Check a request against the spec. Raises Invalid with everything that is wrong and where."""
    errors: list[dict[str, str]] = []
    names = account.spec.operations
    if operation is not None and operation not in names:
        raise Invalid([_error("/operation", f"expected one of {', '.join(names)}")])
    name = operation or names[0]
    chosen = account.spec.operation(name)
    errors.extend(_check_model(chosen, model))
    errors.extend(_check_input(chosen.submit, input))
    count, count_errors = _read_count(chosen.submit, input)
    errors.extend(count_errors)
    found_media, media_errors = _choose_media(chosen, model, input, media)
    errors.extend(media_errors)
    if errors:
        raise Invalid(errors)
    return Plan(name, model, found_media, count)


def build_submit_request(account: Account, submission: Submission, callback_url: str | None) -> Request:
    """The one call that costs money. The callback URL stands where the spec says and nowhere else."""
    operation = account.spec.operation(submission.operation)
    submit = operation.submit
    headers = {**_headers(account), **submit.headers, "Content-Type": "application/json"}
    query = dict(submit.query)
    body: dict[str, Any] = {}
    fields = {**submit.defaults, **submission.input}
    if submit.media_field is not None and submit.media_field not in fields and submission.media is not None:
        fields[submit.media_field] = submission.media
    if submit.input is None:
        body.update(fields)
    else:
        submit.input.put(body, fields)
    body.update(submit.constants)
    if submit.model is not None and submission.model is not None:
        submit.model.put(body, submission.model)
    if submit.callback is not None and callback_url is not None:
        if submit.callback.body is not None:
            body.update(submit.callback.companions)
            submit.callback.body.put(body, callback_url)
        elif submit.callback.header is not None:
            headers[submit.callback.header] = callback_url
        elif submit.callback.query is not None:
            query[submit.callback.query] = callback_url
    path = _submit_path(operation, submission.model)
    return Request(method=submit.method, url=_url(account, path, query), headers=headers, body=msgspec.json.encode(body))


def build_poll_request(account: Account, job: Job) -> Request:
    """Ask about one job: at the URL the provider gave, where that may have our key, else at the spec's path."""
    call = account.spec.poll_call(job.operation)
    if job.polling_url is not None and account.may_have_key(job.polling_url):
        return Request(method=call.method, url=job.polling_url, headers=_headers(account))
    return _job_request(account, call, job)


def build_result_request(account: Account, job: Job) -> Request | None:
    """Where the outputs of a job are whose poll said no more than that it succeeded (`read_result_answer`); None: the poll says all."""
    call = account.spec.table.result
    return None if call is None or job.remote_id is None else _job_request(account, call, job)


def build_cancel_request(account: Account, job: Job) -> Request:
    """Only where `account.has_cancel(job.operation)`."""
    call = account.spec.cancel_call(job.operation)
    assert call is not None
    return _job_request(account, call, job)


def build_list_requests(account: Account, jobs: Sequence[Job]) -> list[Request]:
    """Calls whose answers (`read_list_answer`) speak of these jobs: what runs now and, for jobs without an id, also what is
    finished already. Narrowed to a model where all jobs share one. Nothing where the provider has no list."""
    table = account.spec.table
    if table.list is None or not jobs:
        return []
    calls = [table.list]
    if table.history is not None and any(job.remote_id is None for job in jobs):
        calls.append(table.history)
    models = {job.model for job in jobs}
    model = models.pop() if len(models) == 1 else None
    return [_list_request(account, call, model) for call in calls]


def build_lookup_request(account: Account, job: Job) -> Request | None:
    """The last look at a job that polls do not find any more (`read_lookup_answer`); None where there is no such place."""
    call = account.spec.table.lookup
    return None if call is None or job.remote_id is None else _job_request(account, call, job)


def build_check_request(account: Account) -> Request | None:
    """A call that costs nothing, whose answer (`read_check_answer`) tells whether the key is good; None where there is none."""
    call = account.spec.table.check
    return None if call is None else Request(method=call.method, url=_url(account, call.path, call.query), headers=_headers(account))


def build_stream_request(account: Account) -> Request:
    """Only where `account.has_stream`."""
    stream = account.spec.table.stream
    assert stream is not None
    return Request(method="GET", url=_url(account, stream.path, {}), headers={**_headers(account), "Accept": "text/event-stream"})


def _check_model(operation: Operation, model: str | None) -> list[dict[str, str]]:
    in_path = "{model}" in (operation.submit.path or "")
    if model is None:
        wanted = operation.models or operation.submit.model is not None or in_path
        return [_error("/model", "is missing")] if wanted else []
    if operation.models and model not in operation.models:
        return [_error("/model", f"unknown; this provider's models are {', '.join(operation.models)}")]
    if not model or len(model) > MAX_MODEL or not model.isprintable():
        return [_error("/model", f"expected 1 to {MAX_MODEL} printable characters")]
    if in_path and not all(MODEL_PART.fullmatch(part) and part.strip(".") for part in model.split("/")):
        return [_error("/model", "goes into the path: parts of letters, digits and . _ - with / between, as in `vendor/name/capability`")]
    return []


def _check_input(submit: Submit, input: Mapping[str, Any]) -> list[dict[str, str]]:
    refused = dict(submit.forbidden)
    if submit.callback is not None and submit.callback.body is not None:
        own = _inside_input(submit, submit.callback.body) or submit.callback.body.names[0]
        refused[own] = "is set by Receiver, which takes the callback itself"
    if submit.model is not None and (own_model := _inside_input(submit, submit.model)) is not None:
        refused[own_model] = "is the model: give it as `model` of the request"
    if submit.input is None:
        refused.update(dict.fromkeys(submit.constants, "is set by the provider's spec"))
    return [_error(f"/input/{_escape(name)}", reason) for name, reason in refused.items() if name in input]


def _inside_input(submit: Submit, field: FieldPath) -> str | None:
    """The input's own name of a field of the body; None for one that stands outside of the input."""
    outer = () if submit.input is None else submit.input.names
    inner = field.names[len(outer) :]
    return inner[0] if inner and field.names[: len(outer)] == outer else None


def _read_count(submit: Submit, input: Mapping[str, Any]) -> tuple[int, list[dict[str, str]]]:
    if submit.count is None or submit.count.field not in input:
        return 1, []
    value = input[submit.count.field]
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= submit.count.max:
        return 1, [_error(f"/input/{_escape(submit.count.field)}", f"expected a whole number from 1 to {submit.count.max}")]
    return value, []


def _choose_media(
    operation: Operation, model: str | None, input: Mapping[str, Any], media: str | None
) -> tuple[str | None, list[dict[str, str]]]:
    if media is not None and media not in MEDIA:
        return None, [_error("/media", f"expected one of {', '.join(MEDIA)}")]
    if operation.media and media is not None and media not in operation.media:
        return None, [_error("/media", f"this operation makes {' or '.join(operation.media)}")]
    entry = operation.models.get(model or "")
    if entry is not None and entry.media is not None:
        if media not in (None, entry.media):
            return None, [_error("/media", f"this model makes {entry.media}")]
        return entry.media, []
    return media or _media_from_input(operation, input), []


def _media_from_input(operation: Operation, input: Mapping[str, Any]) -> str | None:
    field = operation.submit.media_field
    said = input.get(field) if field is not None else None
    if isinstance(said, str) and said in MEDIA:
        return said
    return operation.media[0] if len(operation.media) == 1 else None


def _submit_path(operation: Operation, model: str | None) -> str:
    path = operation.submit.path
    if path is None:
        return operation.models[model or ""].path
    return path.replace("{model}", model or "")


def _job_request(account: Account, call: Call, job: Job) -> Request:
    known = _beside_poll(account, call, job)
    if known is not None:
        return Request(method=call.method, url=known, headers=_headers(account))
    remote_id = job.remote_id or ""
    first, _, second = remote_id.partition(ID_SEPARATOR)
    model = job.model or ""
    values = {"id": remote_id, "id.1": first, "id.2": second, "model": model, "model.app": "/".join(model.split("/")[:2])}
    path = call.path
    for name, value in values.items():
        path = path.replace(f"{{{name}}}", quote(value, safe=ID_SEPARATOR if name.startswith("model") else ""))
    query = {field: _fill(value, values) for field, value in call.query.items()}
    return Request(method=call.method, url=_url(account, path, query), headers=_headers(account))


def _beside_poll(account: Account, call: Call, job: Job) -> str | None:
    """The URL of a call that stands beside the polling URL that the provider gave."""
    if not call.beside_poll or job.polling_url is None or not account.may_have_key(job.polling_url):
        return None
    end, other = call.beside_poll
    parts = urlsplit(job.polling_url)
    return urlunsplit((parts.scheme, parts.netloc, parts.path.removesuffix(end) + other, "", "")) if parts.path.endswith(end) else None


def _list_request(account: Account, call: Call, model: str | None) -> Request:
    asked = {field: value for field, value in call.query.items() if model is not None or "{model}" not in value}
    query = {field: _fill(value, {"model": model or ""}) for field, value in asked.items()}
    return Request(method=call.method, url=_url(account, call.path, query), headers=_headers(account))


def _fill(template: str, values: Mapping[str, str]) -> str:
    return re.sub(r"\{([^{}]*)\}", lambda found: values[found[1]], template)


def _headers(account: Account) -> dict[str, str]:
    return {"Accept": "application/json", **account.spec.table.headers, **account.auth_headers}


def _url(account: Account, path: str, query: Mapping[str, str]) -> str:
    joined = account.base_url + path
    if not query:
        return joined
    return joined + ("&" if "?" in path else "?") + urlencode(query, quote_via=quote)


def _error(pointer: str, detail: str) -> dict[str, str]:
    return {"pointer": pointer, "detail": detail}


def _escape(name: str) -> str:
    return name.replace("~", "~0").replace("/", "~1")
