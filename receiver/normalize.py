"""Notices into Updates: what a provider's answer, callback or event says, in one shape. Pure; raises Unreadable."""

from __future__ import annotations

from collections.abc import Container, Mapping
from datetime import datetime
from typing import Any
from urllib.parse import quote

import msgspec

from receiver.errors import Unreadable
from receiver.model import Answer, Channel, ErrorCode, Job, JobError, Notice, Output, Status, Submission, Update
from receiver.providers.account import Account
from receiver.providers.faults import read_http_error, silent_message
from receiver.providers.reading import at_root, has_outputs, parse_json, read_echo, read_ids, read_update
from receiver.providers.spec import Form, ReadChannel, Reading, Spec
from receiver.providers.values import decode_data_uri, read_number, read_time, read_wait, read_word

TOO_MANY = 429
UNAVAILABLE = 503
LONGEST_WINDOW = 3_600.0  # seconds; whatever a reset header says, we look again after that
RELATIVE_BELOW = 1e9  # a reset header below this counts seconds from now, above it is a Unix time


class Accepted(msgspec.Struct, frozen=True):
    """The provider took the submission: one Update per id."""

    updates: tuple[Update, ...]


class NotTakenAnswer(msgspec.Struct, frozen=True):
    """It certainly did not take it: send again, after `retry_after` seconds where it says so."""

    retry_after: float | None
    error: JobError


class RefusedAnswer(msgspec.Struct, frozen=True):
    """It will never take it."""

    error: JobError


class UnknownAnswer(msgspec.Struct, frozen=True):
    """Nobody can tell whether it took it."""

    error: JobError
    reason: str


SubmitAnswer = Accepted | NotTakenAnswer | RefusedAnswer | UnknownAnswer


class PollFailure(msgspec.Struct, frozen=True):
    """A poll that says nothing about its job. `is_provider_fault` counts against the provider's health."""

    http_status: int
    retry_after: float | None
    not_found: bool
    reason: str
    is_provider_fault: bool


def read_submit_answer(account: Account, submission: Submission, answer: Answer, now: datetime) -> SubmitAnswer:
    """What came of a submit."""
    spec, status = account.spec, answer.status
    if 200 <= status < 300:
        taken = _read_taken(spec, submission, answer, now)
        reading = spec.reading(submission.operation, "submit")
        return (
            Accepted(tuple(_with_output(account, reading, each, None) for each in taken.updates)) if isinstance(taken, Accepted) else taken
        )
    error = _read_error(spec, submission.operation, answer)
    wait = read_retry_after(spec, answer, now)
    table = spec.table.answers
    if status in table.unknown:
        return _unknown(_describe(status, error), error.provider_code)
    if status == TOO_MANY or status in table.not_taken or (status == UNAVAILABLE and "retry-after" in answer.headers):
        return RefusedAnswer(error) if status in table.refused else NotTakenAnswer(wait, error)
    if 300 <= status < 500 or status in table.refused:
        return RefusedAnswer(error)
    return _unknown(_describe(status, error), error.provider_code)


def read_poll_answer(account: Account, job: Job, answer: Answer, now: datetime) -> Update | PollFailure:
    """What a poll says. A final status of this job in the body wins over the HTTP code."""
    return _read_job_answer(account, job, answer, now, "poll")


def read_result_answer(account: Account, job: Job, answer: Answer, now: datetime) -> Update | PollFailure:
    """What the answer to `build_result_request` says of a job that a poll called succeeded."""
    call, reading = account.spec.table.result, account.spec.reading(job.operation, "result")
    if call is not None and answer.status in call.failed:
        return Update(status=Status.FAILED, remote_id=job.remote_id, error=_read_error(account.spec, job.operation, answer))
    try:
        if not 200 <= answer.status < 300:
            raise Unreadable(_describe(answer.status, _read_error(account.spec, job.operation, answer)))
        body = parse_json(answer.body)
        return read_update(account.spec, reading, at_root(reading, body), now, remote_id=job.remote_id, status=Status.SUCCEEDED)
    except Unreadable as fault:
        return _fail(account.spec, job, answer, now, str(fault))


def read_lookup_answer(account: Account, job: Job, answer: Answer, now: datetime) -> Update | PollFailure:
    """What the answer to `build_lookup_request` says."""
    return _read_job_answer(account, job, answer, now, "lookup")


def read_check_answer(account: Account, answer: Answer) -> JobError | None:
    """What the answer to `build_check_request` says against the key; None: it is good."""
    call = account.spec.table.check
    if 200 <= answer.status <= 299 or (call is not None and answer.status in call.taken):
        return None
    return _read_error(account.spec, account.spec.operations[0], answer)


def read_rate_headers(account: Account, answer: Answer, now: datetime) -> float | None:
    """Seconds to leave the provider alone because its headers say that the window is used up."""
    limits = account.spec.table.limits
    if limits.remaining_header is None:
        return None
    remaining = read_number(answer.headers.get(limits.remaining_header.lower()))
    if remaining is None or remaining > 0:
        return None
    return _read_reset(account.spec, answer, now)


def read_list_answer(
    account: Account, answer: Answer, now: datetime, wanted: Container[str | None] | None = None
) -> list[tuple[Update, bytes]]:
    """What each row of a list says, with the row as JSON; rows without an id are left out, and those about ids that are not `wanted`."""
    if not 200 <= answer.status < 300:
        raise Unreadable(f"the list was answered with HTTP {answer.status}")
    reading = account.spec.reading(None, "list")
    body = parse_json(answer.body)
    rows = [] if reading.items is None else reading.items.find(at_root(reading, body))
    found = []
    for row in rows:
        try:
            if wanted is not None and next(iter(read_ids(reading, row)), None) not in wanted:
                continue
            update = read_update(account.spec, reading, row, now)
        except Unreadable:
            continue  # one odd row must not hide the others
        if update.remote_id is not None:
            found.append((msgspec.structs.replace(update, fields=read_echo(account.spec, reading, row)), msgspec.json.encode(row)))
    return found


def read_callback(
    account_or_spec: Account | Spec, operation: str | None, headers: Mapping[str, str], body: bytes, now: datetime | None = None
) -> Update:
    """What a callback says. `operation` is that of its submission, where it is known; `now` dates outputs that live for a known time."""
    spec = account_or_spec.spec if isinstance(account_or_spec, Account) else account_or_spec
    value = parse_json(body)
    reading = spec.reading(_find_operation(spec, operation, value), "callback")
    update = read_update(spec, reading, at_root(reading, value), now)
    if update.status is None:
        raise Unreadable("there is no status in it")
    if update.status is Status.SUCCEEDED and not update.outputs and has_outputs(reading, at_root(reading, value)):
        return msgspec.structs.replace(update, is_unusable=True)
    return update


def read_stream_event(account: Account, event: str, data: str, now: datetime | None = None) -> Update | None:
    """What an event of the provider's stream says; None for events that are not about jobs."""
    stream = account.spec.table.stream
    if stream is None or event not in stream.events:
        return None
    reading = account.spec.reading(None, "stream")
    update = read_update(account.spec, reading, at_root(reading, parse_json(data.encode(errors="replace"))), now)
    if update.remote_id is None:
        raise Unreadable("there is no id in it")
    if update.status is None:
        raise Unreadable("there is no status in it")
    return update


def read_data_uri(account: Account, job: Job, notice: Notice, index: int) -> tuple[str, bytes]:
    """Media type and bytes of an output that came as a `data:` URI, out of the notice that brought it."""
    for update in _read_again(account, job, notice):
        uri = update.data_uris.get(index)
        if uri is not None and update.remote_id in (None, job.remote_id):
            return decode_data_uri(uri)
    raise Unreadable(f"the notice holds no data: URI for output {index}")


def matches_submission(update: Update, submission: Submission, window: tuple[datetime, datetime]) -> bool:
    """Whether a row of a list may be a submission whose answer was lost: made in the window, of the same model, and nothing that
    it repeats of the input differs. A row that repeats nothing of the input proves nothing."""
    if update.created_at is None or not window[0] <= update.created_at <= window[1]:
        return False
    if submission.model is not None and update.fields.get("model") != submission.model:
        return False
    echo = update.fields.get("input", {})
    shared = [name for name in submission.input if echo.get(name) is not None]
    if submission.input and not shared:
        return False
    return all(_is_same(submission.input[name], echo[name]) for name in shared)


def _is_same(ours: Any, theirs: Any) -> bool:
    return ours == theirs or (isinstance(ours, str | int | float) and isinstance(theirs, str | int | float) and str(ours) == str(theirs))


def _read_taken(spec: Spec, submission: Submission, answer: Answer, now: datetime) -> SubmitAnswer:
    reading = spec.reading(submission.operation, "submit")
    try:
        body = parse_json(answer.body)
        updates = _read_submitted(spec, reading, body, now)
    except Unreadable as fault:
        return _unknown(str(fault))
    if updates:
        return Accepted(tuple(updates))
    for form in spec.table.answers.forms:
        if _has_form(form, body):
            return _read_form(spec, submission, answer, now, form)
    return _unknown(f"HTTP {answer.status} without an id")


def _read_form(spec: Spec, submission: Submission, answer: Answer, now: datetime, form: Form) -> SubmitAnswer:
    error = _read_error(spec, submission.operation, answer)
    if form.means == "refused":
        return RefusedAnswer(error)
    return (
        NotTakenAnswer(read_retry_after(spec, answer, now), error)
        if form.means == "not_taken"
        else _unknown(error.message, error.provider_code)
    )


def _read_submitted(spec: Spec, reading: Reading, body: Any, now: datetime) -> list[Update]:
    try:
        root = at_root(reading, body)
    except Unreadable:
        return []
    updates: dict[str, Update] = {}
    if reading.items is not None:
        for item in reading.items.find(root):
            for remote_id in read_ids(reading, item):
                updates.setdefault(remote_id, _queued(read_update(spec, reading, item, now, remote_id=remote_id)))
        return list(updates.values())
    ids = read_ids(reading, root)
    update = _queued(read_update(spec, reading, root, now, remote_id="")) if ids else Update()
    if len(ids) > 1:  # what is said about all of them at once is no one's output
        update = msgspec.structs.replace(update, outputs=(), data_uris={})
    return [msgspec.structs.replace(update, remote_id=remote_id) for remote_id in ids]


def _queued(update: Update) -> Update:
    return update if update.status is not None else msgspec.structs.replace(update, status=Status.QUEUED)


def _has_form(form: Form, body: Any) -> bool:
    if form.empty:
        return any(found in ([], {}, "") for found in form.at.find(body))
    words = [word.casefold() for word in form.equals]
    return any(not words or (read_word(found) or "").casefold() in words for found in form.at.find(body))


def _unknown(reason: str, provider_code: str | None = None) -> UnknownAnswer:
    return UnknownAnswer(JobError(ErrorCode.SUBMIT_UNKNOWN, reason, provider_code), reason)


def _read_job_answer(account: Account, job: Job, answer: Answer, now: datetime, channel: ReadChannel) -> Update | PollFailure:
    spec = account.spec
    reading = spec.reading(job.operation, channel)
    is_good = 200 <= answer.status < 300
    try:
        body = at_root(reading, parse_json(answer.body))
        ids = read_ids(reading, body)
        if ids and job.remote_id is not None and ids[0] != job.remote_id:
            raise Unreadable(f"the answer is about another id, {ids[0]!r}")
        if not is_good and not ids and not spec.poll_call(job.operation).final_without_id:
            raise Unreadable("the answer names no job")
        update = read_update(spec, reading, body, now)
        if update.status is None or not (is_good or update.status.is_final):
            raise Unreadable("there is no status in it")
    except Unreadable as fault:
        return _fail(spec, job, answer, now, str(fault) if is_good else None)
    return _with_output(account, reading, update, job.remote_id)


def _with_output(account: Account, reading: Reading, update: Update, remote_id: str | None) -> Update:
    """With the output whose address is made of the id, where the provider names none."""
    remote_id = update.remote_id or remote_id
    if reading.output_path is None or update.status is not Status.SUCCEEDED or update.outputs or remote_id is None:
        return update
    url = account.base_url + reading.output_path.replace("{id}", quote(remote_id, safe=""))
    return msgspec.structs.replace(update, outputs=(Output(index=0, url=url),))


def _fail(spec: Spec, job: Job, answer: Answer, now: datetime, reason: str | None) -> PollFailure:
    return PollFailure(
        http_status=answer.status,
        retry_after=read_retry_after(spec, answer, now),
        not_found=answer.status == 404,
        reason=reason or _describe(answer.status, _read_error(spec, job.operation, answer)),
        is_provider_fault=answer.status >= 500,
    )


def read_retry_after(spec: Spec, answer: Answer, now: datetime) -> float | None:
    """Seconds for which the provider asks to be left alone."""
    wait = read_wait(answer.headers.get("retry-after"), now)
    if wait is None and answer.status == TOO_MANY:
        return _read_reset(spec, answer, now)
    return wait


def _read_reset(spec: Spec, answer: Answer, now: datetime) -> float | None:
    header = spec.table.limits.reset_header
    value = answer.headers.get(header.lower()) if header is not None else None
    number = read_number(value)
    if number is None or number >= RELATIVE_BELOW:
        at = read_time(value)
        number = None if at is None else (at - now).total_seconds()
    return None if number is None else min(max(number, 0.0), LONGEST_WINDOW)


def _find_operation(spec: Spec, operation: str | None, body: Any) -> str | None:
    table = spec.table.callback
    if table is None:
        return operation
    if table.task is not None and (said := table.task.find(body)):
        word = read_word(said[0]) or ""
        for name, words in table.tasks.items():
            if word.casefold() in (known.casefold() for known in words):
                return name
        raise Unreadable(f"unknown task {word!r}")
    for name, fields in table.fields.items():
        if any(path.find(body) for path in fields):
            return name
    return operation


def _read_again(account: Account, job: Job, notice: Notice) -> list[Update]:
    spec = account.spec
    if notice.channel is Channel.CALLBACK:
        return [read_callback(spec, job.operation, notice.headers, notice.body)]
    body = parse_json(notice.body)
    if notice.channel is Channel.SUBMIT:
        return _read_submitted(spec, spec.reading(job.operation, "submit"), body, notice.at)
    channels: tuple[ReadChannel, ...] = ("stream",) if notice.channel is Channel.STREAM else ("poll", "list", "lookup", "result")
    updates = []
    for channel in channels:  # a row of a list, and a result, are kept as the answer of a poll
        reading = spec.reading(job.operation, channel)
        try:
            status = Status.SUCCEEDED if channel == "result" else None
            updates.append(read_update(spec, reading, at_root(reading, body), None, status=status))
        except Unreadable:
            continue
    return updates


def _describe(status: int, error: JobError) -> str:
    return error.message if error.message == silent_message(status) else f"HTTP {status}: {error.message}"


def _read_error(spec: Spec, operation: str, answer: Answer) -> JobError:
    try:
        body = parse_json(answer.body)
    except Unreadable:
        body = None
    return read_http_error(spec, spec.reading(operation, "http_error"), answer.status, body, answer.body)
