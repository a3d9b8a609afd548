"""What a spec file must say beyond the right types: parts that belong together, variables, words that collide."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import urlsplit

from receiver.model import MEDIA, ErrorCode, Status
from receiver.providers.check_signature import check_signature
from receiver.providers.spec import READ_CHANNELS, Call, Form, KeyCheck, Operation, ReadChannel, Reading, SpecTable, Submit

Fault = tuple[str, str]  # key, what would be right
Readings = Mapping[tuple[str, ReadChannel], Reading]

NAME = re.compile(r"[a-z][a-z0-9_-]*")
TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")  # RFC 9110, the name of a header
METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE")
VARIABLE = re.compile(r"\{([^{}]*)\}")
PATH = re.compile(r"/[A-Za-z0-9._~!$&'()*+,;=:@/{}-]*(\?[A-Za-z0-9._~!$&'()*+,;=:@/?{}-]*)?")


def check_table(name: str, table: SpecTable, readings: Readings) -> Iterator[Fault]:
    """Every fault of a table whose types are right."""
    if not NAME.fullmatch(name):
        yield "", f"the file's name is the provider's name: small letters, digits, - and _, not {name!r}"
    yield from _check_base_url(table.base_url)
    yield from _check_auth(table)
    yield from _check_status(table)
    yield from _check_errors(table)
    if not table.operations:
        yield "operations", "is empty: a provider needs at least one operation"
    for label, operation in table.operations.items():
        yield from _check_operation(label, operation, table, readings)
    yield from _check_calls(table, readings)
    yield from _check_callback(table)
    for position, form in enumerate(table.answers.forms):
        yield from _check_form(f"answers.forms[{position}]", form)
    for code in (*table.answers.refused, *table.answers.not_taken, *table.answers.unknown):
        if not 300 <= code <= 599:
            yield "answers", f"{code} is no HTTP code of a refusal; expected 300 to 599"


def _check_base_url(base_url: str) -> Iterator[Fault]:
    try:
        parts = urlsplit(base_url)
        right = parts.scheme in ("http", "https") and parts.hostname and not (parts.query or parts.fragment or parts.username is not None)
    except ValueError:
        right = None
    if not right:
        yield "base_url", "expected an http(s) address with a host and no query, as in https://api.example.com"


def _check_auth(table: SpecTable) -> Iterator[Fault]:
    yield from _check_header("auth.header", table.auth.header)
    yield from _check_headers("headers", table.headers)
    for key, hosts in (("auth.hosts", table.auth.hosts), ("auth.output_hosts", table.auth.output_hosts)):
        for host in hosts:
            if not re.fullmatch(r"[a-z0-9.-]+", host):
                yield key, f"{host!r} is no host: write it in small letters without scheme, port or path"
    for key, header in (("limits.remaining_header", table.limits.remaining_header), ("limits.reset_header", table.limits.reset_header)):
        if header is not None:
            yield from _check_header(key, header)


def _check_headers(key: str, headers: Mapping[str, str]) -> Iterator[Fault]:
    for header, value in headers.items():
        yield from _check_header(f"{key}.{header}", header)
        if not value.isprintable() or not value.isascii():
            yield f"{key}.{header}", "the value of a header is printable ASCII"


def _check_header(key: str, header: str) -> Iterator[Fault]:
    if not TOKEN.fullmatch(header):
        yield key, f"{header!r} is no name of a header"


def _check_status(table: SpecTable) -> Iterator[Fault]:
    seen: dict[str, Status] = {}
    for status, words in table.status.items():
        for word in words:
            folded = word.strip().casefold()
            if folded in seen:
                yield f"status.{status.value}", f"{word!r} is already {seen[folded].value}; capitals do not count"
            seen[folded] = status
    for status in (Status.SUCCEEDED, Status.FAILED):
        if not table.status.get(status):
            yield f"status.{status.value}", "is missing: without it no job would ever end that way"


def _check_errors(table: SpecTable) -> Iterator[Fault]:
    errors = table.errors
    for http in errors.words_at:
        if not re.fullmatch(r"[345]\d\d", http):
            yield f"errors.words_at.{http}", "expected an HTTP code from 300 to 599"
    tables: dict[str, Mapping[ErrorCode, tuple[Any, ...]]] = {"http": errors.http, "codes": errors.codes, "words": errors.words}
    tables.update({f"words_at.{http}": meanings for http, meanings in errors.words_at.items()})
    for kind, meanings in tables.items():
        seen: dict[Any, str] = {}
        for ours, theirs in meanings.items():
            for word in theirs:
                folded = word.strip().casefold() if isinstance(word, str) else word
                if folded in seen:
                    yield f"errors.{kind}.{ours.value}", f"{word!r} already means {seen[folded]}"
                if folded == "":
                    yield f"errors.{kind}.{ours.value}", "an empty word would be found everywhere"
                seen[folded] = ours.value


def _check_operation(label: str, operation: Operation, table: SpecTable, readings: Readings) -> Iterator[Fault]:
    key = f"operations.{label}"
    if not NAME.fullmatch(label):
        yield key, "the name of an operation is small letters, digits, - and _"
    yield from _check_media(f"{key}.media", operation.media)
    yield from _check_submit(f"{key}.submit", operation.submit, bool(operation.models))
    for model, entry in operation.models.items():
        yield from _check_path(f'{key}.models."{model}".path', entry.path, ())
        yield from _check_media(f'{key}.models."{model}".media', () if entry.media is None else (entry.media,))
    poll = operation.poll or table.poll
    if poll is None:
        yield f"{key}.poll", "is missing: without a poll a lost callback would lose the job (a [poll] table serves every operation)"
    yield from _check_example(key, operation)
    for part, call in (("poll", operation.poll), ("cancel", operation.cancel)):
        if call is not None:
            yield from _check_job_call(f"{key}.{part}", call)
    for channel in READ_CHANNELS:
        path = readings[label, channel].output_path
        if path is not None:
            yield from _check_path("read.output_path", path, ("id",))
    for channel, field, value in (
        ("submit", "id", readings[label, "submit"].id),
        ("poll", "status", readings[label, "poll"].status),
    ):
        if value is None:
            yield f"read.{field}", f"is missing: where is the {field} in the answer to a {channel} of operation {label!r}?"


def _check_media(key: str, media: tuple[str, ...]) -> Iterator[Fault]:
    for medium in media:
        if medium not in MEDIA:
            yield key, f"{medium!r} is no medium: expected one of {', '.join(MEDIA)}"


def _check_submit(key: str, submit: Submit, has_models: bool) -> Iterator[Fault]:
    if submit.path is None and not has_models:
        yield f"{key}.path", "is missing (or a `models` table that gives each model's path)"
    if submit.path is not None and has_models:
        yield f"{key}.path", "and a `models` table exclude each other"
    if submit.path is not None:
        yield from _check_path(f"{key}.path", submit.path, ("model",))
    yield from _check_method(f"{key}.method", submit.method)
    yield from _check_headers(f"{key}.headers", submit.headers)
    place = submit.callback
    if place is not None and sum(where is not None for where in (place.body, place.header, place.query)) != 1:
        yield f"{key}.callback", "expected exactly one of body, header, query"
    if place is not None and place.header is not None:
        yield from _check_header(f"{key}.callback.header", place.header)
    if submit.count is not None and submit.count.max < 1:
        yield f"{key}.count.max", "expected 1 or more"
    companions = place.companions if place is not None else {}
    if companions and place is not None and place.body is None:
        yield f"{key}.callback.companions", "go along in the body: only with `body`"
    for part, values in (("constants", submit.constants), ("defaults", submit.defaults), ("callback.companions", companions)):
        for field, value in values.items():
            if not _is_json(value):
                yield f"{key}.{part}.{field}", "dates, inf and nan are no JSON; write a string"


def _is_json(value: Any) -> bool:
    if isinstance(value, dict):
        return all(_is_json(inner) for inner in value.values())
    if isinstance(value, list):
        return all(_is_json(inner) for inner in value)
    if isinstance(value, float):
        return value - value == 0
    return isinstance(value, str | int)


def _check_calls(table: SpecTable, readings: Readings) -> Iterator[Fault]:
    for key, call in (("poll", table.poll), ("result", table.result), ("cancel", table.cancel), ("lookup", table.lookup)):
        if call is not None:
            yield from _check_job_call(key, call)
    for key, call in (("list", table.list), ("history", table.history)):
        if call is not None:
            yield from _check_path(f"{key}.path", call.path, ())
            yield from _check_query(f"{key}.query", call.query, ("model",))
            yield from _check_method(f"{key}.method", call.method)
            if readings["", "list"].items is None:
                yield "read.list.items", "is missing: where are the rows in the answer of a list call?"
    if table.check is not None:
        yield from _check_key_check(table.check)
    if table.history is not None and table.list is None:
        yield "history", "needs a `list` table beside it"
    if table.stream is not None:
        yield from _check_path("stream.path", table.stream.path, ())


def _check_key_check(call: KeyCheck) -> Iterator[Fault]:
    yield from _check_path("check.path", call.path, ())
    yield from _check_query("check.query", call.query, ())
    if call.method != "GET":
        yield "check.method", "expected GET: whether a key is good must never cost anything"
    for code in call.taken:
        if not 400 <= code <= 499 or code in (401, 403, 429):
            yield "check.taken", f"{code} says nothing of a good key; expected codes from 400 to 499 but 401, 403 and 429"


def _check_example(key: str, operation: Operation) -> Iterator[Fault]:
    """Of each example only that it is JSON and names what it must: what an input may hold is the provider's business."""
    inputs = {f"{key}.models.{name}.example": entry.example for name, entry in operation.models.items() if entry.example is not None}
    if operation.example is not None:
        inputs[f"{key}.example.input"] = operation.example.input
        yield from _check_media(f"{key}.example.media", (operation.example.media,) if operation.example.media is not None else ())
        if operation.models and operation.example.model not in operation.models:
            yield f"{key}.example.model", f"expected one of {', '.join(operation.models)}"
    for place, example in inputs.items():
        for field, value in example.items():
            if not _is_json(value):
                yield f"{place}.{field}", "dates, inf and nan are no JSON; write a string"


def _check_job_call(key: str, call: Call) -> Iterator[Fault]:
    variables = ("id", "id.1", "id.2", "model", "model.app")
    if call.beside_poll and len(call.beside_poll) != 2:
        yield f"{key}.beside_poll", "expected two texts: the end of the polling URL, and what stands there in this call's"
    yield from _check_path(f"{key}.path", call.path, variables)
    yield from _check_query(f"{key}.query", call.query, variables)
    yield from _check_method(f"{key}.method", call.method)
    if not any("{id" in part for part in (call.path, *call.query.values())):
        yield f"{key}.path", "has no {id}: which job would be meant?"


def _check_query(key: str, query: Mapping[str, str], variables: tuple[str, ...]) -> Iterator[Fault]:
    for field, value in query.items():
        yield from _check_variables(f"{key}.{field}", value, variables)


def _check_path(key: str, path: str, variables: tuple[str, ...]) -> Iterator[Fault]:
    if not PATH.fullmatch(path):
        yield key, f"{path!r} is no path below base_url: it starts with / and holds no spaces, % or #"
    yield from _check_variables(key, path, variables)


def _check_variables(key: str, text: str, variables: tuple[str, ...]) -> Iterator[Fault]:
    for name in VARIABLE.findall(text):
        if name not in variables:
            known = ", ".join(f"{{{variable}}}" for variable in variables) or "none here"
            yield key, f"unknown variable {{{name}}}; known: {known}"
    if "{" in VARIABLE.sub("", text) or "}" in VARIABLE.sub("", text):
        yield key, "has a brace without its other half"


def _check_method(key: str, method: str) -> Iterator[Fault]:
    if method not in METHODS:
        yield key, f"expected one of {', '.join(METHODS)}"


def _check_callback(table: SpecTable) -> Iterator[Fault]:
    placed = [label for label, operation in table.operations.items() if operation.submit.callback is not None]
    callback = table.callback
    if placed and callback is None:
        yield "callback", f"is missing, but operation {placed[0]!r} says where the callback URL goes (an empty [callback] will do)"
    if callback is None:
        return
    if not placed and not callback.account_wide:
        yield "callback", "no operation says where the callback URL goes (operations.NAME.submit.callback)"
    if callback.account_wide and callback.signature is None:
        yield "callback.account_wide", "needs a [callback.signature]: without a token in its URL nothing else would prove a callback"
    for position, header in enumerate(callback.kept_headers):
        yield from _check_header(f"callback.kept_headers[{position}]", header)
    if callback.signature is not None:
        yield from check_signature(callback.signature)
    for part, meanings in (("tasks", callback.tasks), ("fields", callback.fields)):
        for label in meanings:
            if label not in table.operations:
                yield f"callback.{part}.{label}", f"is no operation; expected one of {', '.join(table.operations)}"
    if (callback.task is None) != (not callback.tasks):
        yield "callback.task", "and callback.tasks belong together: the path of the word, and which word means which operation"


def _check_form(key: str, form: Form) -> Iterator[Fault]:
    if form.equals and form.empty:
        yield key, "expected `equals` or `empty`, not both"
