"""Values to rows and back: the one place that knows how a field of the model stands in a column."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime
from operator import attrgetter
from typing import Any, Generic, TypeVar

import msgspec

from receiver.keys import ApiKey, Scope
from receiver.model import (
    Call,
    Channel,
    Cost,
    Delivery,
    DeliveryState,
    Event,
    FinishedBy,
    Job,
    JobError,
    Notice,
    Outcome,
    Output,
    Poll,
    Status,
    Submission,
    SubmissionState,
)
from receiver.stores.terms import Breaker, Duration, Learned
from receiver.times import from_micros, to_micros

ARGUMENTS = 15  # by name: more are gathered in a dictionary first
AMONG = "IN (SELECT value FROM json_each(?))"  # a list of ids is bound as one JSON text

T = TypeVar("T", bound=msgspec.Struct)
Encode = Callable[[Any], Any]
Codec = tuple[Encode, Encode]  # to the column, from the column; neither meets None


def json_text(value: Any) -> str:
    return msgspec.json.encode(value).decode()


def json_codec(type: Any) -> Codec:
    return json_text, msgspec.json.Decoder(type).decode


def enum_codec(type: Any) -> Codec:
    members = {member.value: member for member in type}
    return attrgetter("_value_"), members.__getitem__  # `value` is a property that is written in Python


TIME: Codec = (to_micros, from_micros)
BOOL: Codec = (bool, bool)


class Rows(Generic[T]):
    """How a struct stands in a table: a column per field, in the order of the fields.

    Fields named `at` or `…_at` are times, those named `is_…` are truth values; `codecs` names the others that are not plain.
    """

    def __init__(self, type: type[T], codecs: dict[str, Codec] | None = None, *, beside: Sequence[str] = ()) -> None:
        self.type = type
        self.fields = tuple(field for field in type.__struct_fields__ if field not in beside)
        by_name = {field: TIME for field in self.fields if field == "at" or field.endswith("_at")}
        by_name |= {field: BOOL for field in self.fields if field.startswith("is_")}
        by_name |= codecs or {}
        self.codecs = by_name
        self.columns = ", ".join(self.fields)
        self.marks = ", ".join("?" * len(self.fields))
        self.encode, self.decode = self._compile(beside)
        """`decode` takes a row that begins with these columns, in their order, and the fields that stand beside them."""

    def _compile(self, beside: Sequence[str]) -> tuple[Callable[[T], tuple[Any, ...]], Callable[..., T]]:
        """Both written out field by field, as a named tuple's are: a loop over the fields takes three times as long."""
        names: dict[str, Any] = {"make": self.type, "replace": msgspec.structs.replace}
        written = [f"whole.{field}" for field in self.fields]
        read = [f"{field}={field}" for field in (*self.fields, *beside)]
        for number, field in enumerate(self.fields):
            if field in self.codecs:
                names[f"encode_{field}"], names[f"decode_{field}"] = self.codecs[field]
                written[number] = f"None if whole.{field} is None else encode_{field}(whole.{field})"
                read[number] = f"{field}=None if {field} is None else decode_{field}({field})"
        source = (
            f"def encode(whole):\n    return {', '.join(written)},\n"
            f"def decode({', '.join(('row', *beside))}):\n"
            f"    {self.columns}, = row[:{len(self.fields)}]\n"
            f"    return {self._making(read)}\n"
        )
        exec(source, names)  # noqa: S102  # made of our own fields' names
        return names["encode"], names["decode"]

    def _making(self, arguments: Sequence[str]) -> str:
        """The struct made of `name=value`s; of more than Python hands over as they are in two steps, which takes half the time."""
        fields = msgspec.structs.fields(self.type)
        required = {field.name for field in fields if field.required}
        ordered = sorted(arguments, key=lambda argument: argument.partition("=")[0] not in required)
        most = max(ARGUMENTS, len(required))
        made = f"make({', '.join(ordered[:most])})"
        return f"replace({made}, {', '.join(ordered[most:])})" if ordered[most:] else made

    def columns_of(self, alias: str) -> str:
        return ", ".join(f"{alias}.{field}" for field in self.fields)

    def replacing(self, *, but: Sequence[str]) -> str:
        """The SET list of an upsert: every column but these."""
        return ", ".join(f"{field} = excluded.{field}" for field in self.fields if field not in but)


STRINGS = json_codec(dict[str, str])

SUBMISSIONS = Rows(Submission, {"metadata": STRINGS, "state": enum_codec(SubmissionState)}, beside=("input",))
JOBS = Rows(
    Job,
    {
        "status": enum_codec(Status),
        "outputs": json_codec(tuple[Output, ...]),
        "error": json_codec(JobError),
        "cost": json_codec(Cost),
        "metadata": STRINGS,
        "finished_by": enum_codec(FinishedBy),
    },
)
JOB_KEEPS = (  # for ever
    *("id", "submission_id", "provider", "operation", "model", "media", "metadata"),
    *("created_at", "deadline_at", "position", "traceparent"),
)
NOTICES = Rows(
    Notice,
    {"channel": enum_codec(Channel), "headers": STRINGS, "outcome": enum_codec(Outcome), "status": enum_codec(Status)},
    beside=("body",),
)
BODY = "(SELECT body FROM bodies WHERE bodies.arrival = notices.arrival)"  # null where it is empty
DELIVERIES = Rows(Delivery, {"state": enum_codec(DeliveryState)})
POLLS = Rows(Poll, {"cancel": BOOL})
CALLS = Rows(Call)
BREAKERS = Rows(Breaker, {"open_until": TIME})
KEYS = Rows(ApiKey, {"scopes": json_codec(tuple[Scope, ...])})

decode_input = msgspec.json.Decoder(dict[str, Any]).decode
decode_outputs = msgspec.json.Decoder(tuple[Output, ...]).decode
decode_metadata = msgspec.json.Decoder(dict[str, str]).decode
_decode_envelope = msgspec.json.Decoder(Event).decode
_decode_seconds = msgspec.json.Decoder(tuple[float, ...]).decode

LEARNED_FROM = 100  # durations kept per provider and model


EventRow = tuple[str, str | None, int, int, str]
"""id, job_id, at, depth, envelope."""


def encode_event(event: Event, job_id: str | None) -> EventRow:
    return event.id, job_id, to_micros(datetime.fromisoformat(event.time)), event.depth, json_text(event.envelope())


def decode_event(envelope: str, depth: int) -> Event:
    event = _decode_envelope(envelope)
    return msgspec.structs.replace(event, depth=depth) if depth else event


def decode_learned(provider: str, model: str, seconds: str) -> Learned:
    return Learned(provider=provider, model=model, seconds=_decode_seconds(seconds))


def add_duration(learned: Learned | None, duration: Duration) -> Learned:
    """The same with one more, the oldest left out when there are enough."""
    known = () if learned is None else learned.seconds
    return Learned(provider=duration.provider, model=duration.model, seconds=(*known, duration.seconds)[-LEARNED_FROM:])
