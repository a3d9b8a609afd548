"""Why something failed: the provider's words and codes into ours."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec

from receiver.model import ErrorCode, JobError, Status
from receiver.providers.paths import Candidates
from receiver.providers.spec import Reading, Spec
from receiver.providers.values import MAX_TEXT, MAX_WORD, read_text

HTTP_CODES = {
    401: ErrorCode.AUTHENTICATION,
    402: ErrorCode.INSUFFICIENT_BALANCE,
    403: ErrorCode.PERMISSION,
    404: ErrorCode.NOT_FOUND,
    429: ErrorCode.RATE_LIMITED,
    502: ErrorCode.PROVIDER_UNAVAILABLE,
    503: ErrorCode.PROVIDER_UNAVAILABLE,
    504: ErrorCode.PROVIDER_UNAVAILABLE,
}
MAX_DUMP = 500  # of a body that is shown because it says nothing in words
# What any provider's message says clearly enough; a spec adds its own words.
WORDS = {
    ErrorCode.INSUFFICIENT_BALANCE: (
        "insufficient credit",
        "insufficient balance",
        "insufficient fund",
        "insufficient quota",
        "not enough credit",
        "not enough balance",
    ),
    ErrorCode.CONTENT_REJECTED: (
        "content policy",
        "content_policy",
        "content moderation",
        "content filter",
        "flagged by moderation",
        "moderation_blocked",
        "nsfw",
        "safety system",
        "safety filter",
        "sensitive content",
        "prohibited content",
        "violates our usage policies",
    ),
}


def read_job_error(spec: Spec, reading: Reading, body: Any, status: Status) -> JobError | None:
    """The error of a job that failed; a cancelled one has an error only where the provider gives a reason."""
    message, provider_code = _read_words(reading, body)
    if status is Status.CANCELLED:
        return None if message is None else JobError(ErrorCode.CANCELLED, message, provider_code)
    code = _find_code(spec, message, provider_code) or ErrorCode.PROVIDER_ERROR
    return JobError(code, message or "the provider gave no reason", provider_code)


def read_http_error(spec: Spec, reading: Reading, status: int, body: Any, text: bytes) -> JobError:
    """The error of an answer as a whole. `body` is its JSON, or None where it is none."""
    message, provider_code = _read_words(reading, body)
    code = _find_code(spec, message, provider_code, status) or find_http_code(spec, status)
    if message is None and body:
        message = _as_json(body)
    plain = text[:4_000].decode(errors="replace")
    if message is None and body is None and "<" not in plain:  # a page of a gateway tells a user nothing
        message = read_text(" ".join(plain.split()), MAX_DUMP)
    return JobError(code, message or silent_message(status), provider_code)


def silent_message(status: int) -> str:
    """The message of an answer that has no words."""
    return f"the provider answered with HTTP {status}"


def find_http_code(spec: Spec, status: int) -> ErrorCode:
    for code, statuses in spec.table.errors.http.items():
        if status in statuses:
            return code
    return HTTP_CODES.get(status) or (ErrorCode.INVALID_REQUEST if 400 <= status < 500 else ErrorCode.PROVIDER_ERROR)


def _read_words(reading: Reading, body: Any) -> tuple[str | None, str | None]:
    messages = list(dict.fromkeys(_texts(reading.error_message, body, MAX_TEXT)))
    codes = list(_texts(reading.error_code, body, MAX_WORD))
    if not messages:  # an object in a form of its own is still the provider's words
        messages = [
            _as_json(found) for path in reading.error_message or () for found in path.find(body) if found and isinstance(found, dict | list)
        ][:1]
    return "; ".join(messages)[:MAX_TEXT] or None, codes[0] if codes else None


def _as_json(value: Any) -> str:
    return msgspec.json.encode(value).decode()[:MAX_DUMP]


def _texts(candidates: Candidates | None, body: Any, limit: int) -> Iterator[str]:
    """What the first candidate with any text says: an error is text here, an object there."""
    for path in candidates or ():
        texts = [text for value in path.find(body) if (text := read_text(value, limit)) is not None]
        if texts:
            yield from texts
            return


def _find_code(spec: Spec, message: str | None, provider_code: str | None, http_status: int | None = None) -> ErrorCode | None:
    errors = spec.table.errors
    if provider_code is not None:
        for code, theirs in errors.codes.items():
            if provider_code.casefold() in (word.casefold() for word in theirs):
                return code
    said = f"{message or ''}\n{provider_code or ''}".casefold()
    for words in (errors.words_at.get(str(http_status), {}), errors.words, WORDS):
        for code, phrases in words.items():
            if any(phrase.casefold() in said for phrase in phrases):
                return code
    return None
