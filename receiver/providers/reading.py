"""One body and one Reading → one Update."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import datetime
from typing import Any

import msgspec

from receiver.errors import Unreadable
from receiver.model import Cost, ErrorCode, Output, Status, Update
from receiver.providers.faults import read_job_error
from receiver.providers.paths import ID_SEPARATOR, Candidates, IdPath, find_all
from receiver.providers.spec import Reading, Spec
from receiver.providers.values import (
    find_links,
    guess_media_type,
    is_link,
    read_expiry,
    read_id,
    read_media_type,
    read_number,
    read_text,
    read_time,
    read_word,
)

MAX_OUTPUTS = 1_000


def parse_json(body: bytes) -> Any:
    """Raises Unreadable for anything that is no JSON object or list."""
    body = body.removeprefix(b"\xef\xbb\xbf")
    try:
        value = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, ValueError) as error:
        try:
            value = _parse_leniently(body)
        except (msgspec.DecodeError, RecursionError, ValueError):
            raise Unreadable("the body is empty" if not body.strip() else f"the body is not JSON: {error}") from None
    if not isinstance(value, dict | list):
        raise Unreadable("the body is JSON, but no object")
    return value


def _parse_leniently(body: bytes) -> Any:
    """What others write and call JSON: half of a character, as an escape or as bytes, where a prompt was cut off, and `NaN`. What was paid
    for must not be lost over that. Raises ValueError, RecursionError."""
    value = json.loads(body.decode(errors="replace"), parse_constant=lambda _: None)
    return msgspec.json.decode(json.dumps(value, ensure_ascii=False).encode(errors="replace"))


def at_root(reading: Reading, body: Any) -> Any:
    """The part of a body that a Reading speaks of."""
    if reading.root is None:
        return body
    found = reading.root.find(body)
    if not found:
        raise Unreadable(f"there is nothing at {reading.root.text}")
    return found[0]


def read_ids(reading: Reading, body: Any) -> list[str]:
    """The ids that a body holds, each once, in order."""
    for parts in reading.id or ():
        found = _find_ids(parts, body)
        if found:
            return list(dict.fromkeys(found))
    return []


def read_update(
    spec: Spec, reading: Reading, body: Any, now: datetime | None, *, remote_id: str | None = None, status: Status | None = None
) -> Update:
    """What a body says about one job. `remote_id` and `status` are given where they are known already."""
    word = None
    if status is None:
        word, status = read_status(spec, reading, body)
    if remote_id is None:
        remote_id = next(iter(read_ids(reading, body)), None)
    finished_at = _read_time(reading.finished_at, body)
    error = read_job_error(spec, reading, body, status) if status in (Status.FAILED, Status.CANCELLED) else None
    if error is not None and error.code is ErrorCode.CANCELLED:  # some have no status for it, only a code
        status = Status.CANCELLED
    links = _read_links(reading, body) if status is Status.SUCCEEDED else []
    outputs = _read_outputs(reading, body, links, finished_at or now)
    return Update(
        status=status,
        remote_id=remote_id,
        outputs=outputs,
        data_uris={output.index: links[output.index] for output in outputs if output.url is None},
        error=error,
        progress=None if reading.progress is None else _read_progress(reading, body),
        cost=None if reading.cost is None else _read_cost(reading, body),
        polling_url=None if reading.polling_url is None else _read_polling_url(reading, body),
        provider_status=word,
        created_at=_read_time(reading.created_at, body),
        finished_at=finished_at,
    )


def read_status(spec: Spec, reading: Reading, body: Any) -> tuple[str | None, Status | None]:
    """The provider's word and ours; a word that the spec does not know is `processing`."""
    for value in find_all(reading.status, body):
        word = read_word(value)
        if word is not None:
            status = spec.statuses.get(word.casefold(), Status.PROCESSING)
            return word, Status.FAILED if status is Status.SUCCEEDED and find_all(reading.failed_by, body) else status
    return None, None


def _find_ids(parts: IdPath, body: Any) -> list[str]:
    columns = [[text for value in path.find(body) if (text := read_id(value)) is not None] for path in parts]
    if len(columns) == 1:
        return columns[0]
    if any(ID_SEPARATOR in text for column in columns for text in column):
        raise Unreadable(f"a part of an id that is made of several holds {ID_SEPARATOR!r}")
    return [ID_SEPARATOR.join(row) for row in zip(*columns, strict=False)]


def _read_links(reading: Reading, body: Any) -> list[str]:
    for path in reading.outputs or ():
        links = list(dict.fromkeys([link for value in path.find(body) for link in find_links(value)]))
        if len(links) > MAX_OUTPUTS:
            raise Unreadable(f"more than {MAX_OUTPUTS} outputs")
        if links:
            return links
    return []


def has_outputs(reading: Reading, body: Any) -> bool:
    """Whether there is anything where outputs should be, of whatever use."""
    return any(value not in (None, "", [], {}) for path in reading.outputs or () for value in path.find(body))


def _read_outputs(reading: Reading, body: Any, links: Sequence[str], at: datetime | None) -> tuple[Output, ...]:
    if not links:
        return ()
    said = [read_media_type(value) for value in find_all(reading.media_type, body)]
    types = said if len(said) == len(links) else said[:1] * len(links) if len(said) == 1 else [None] * len(links)
    lifetime = reading.output_lifetime
    dies_at = at + lifetime if at is not None and lifetime is not None else None
    return tuple([_make_output(index, link, types[index], dies_at) for index, link in enumerate(links)])


def _make_output(index: int, link: str, media_type: str | None, dies_at: datetime | None) -> Output:
    if link[:5].lower() == "data:":
        return Output(index=index, url=None, media_type=guess_media_type(link))
    return Output(index=index, url=link, media_type=media_type or guess_media_type(link), expires_at=read_expiry(link) or dies_at)


def _read_polling_url(reading: Reading, body: Any) -> str | None:
    return next((url for url in find_all(reading.polling_url, body) if isinstance(url, str) and is_link(url)), None)


def _read_progress(reading: Reading, body: Any) -> float | None:
    for value in find_all(reading.progress, body):
        number = read_number(value)
        if number is not None and number >= 0:
            return min(number / (reading.progress_max or 1.0), 1.0)
    return None


def _read_cost(reading: Reading, body: Any) -> Cost | None:
    for value in find_all(reading.cost, body):
        amount = read_number(value)
        if amount is not None and amount >= 0:
            return Cost(amount, reading.cost_unit or "units")
    return None


def _read_time(candidates: Candidates | None, body: Any) -> datetime | None:
    for value in find_all(candidates, body):
        at = read_time(value)
        if at is not None:
            return at
    return None


def read_echo(spec: Spec, reading: Reading, row: Any) -> dict[str, Any]:
    """What a row repeats of the request: its model, and its other top-level fields but the count, which no row has of its own."""
    model = next((text for value in find_all(reading.model, row) if (text := read_text(value)) is not None), None)
    counts = {operation.submit.count.field for operation in spec.table.operations.values() if operation.submit.count is not None}
    return {"model": model, "input": {name: value for name, value in row.items() if name not in counts} if isinstance(row, dict) else {}}
