"""What a provider's spec file may say. `config/providers/README.md` explains every key."""

from __future__ import annotations

from datetime import timedelta
from typing import Any, Literal

import msgspec

from receiver.model import ErrorCode, Status
from receiver.providers.paths import Candidates, FieldPath, IdPath, JsonPath
from receiver.units import RateLimit

ReadChannel = Literal["submit", "poll", "result", "callback", "stream", "list", "lookup", "http_error"]
READ_CHANNELS: tuple[ReadChannel, ...] = ("submit", "poll", "result", "callback", "stream", "list", "lookup", "http_error")

IdPaths = tuple[IdPath, ...]
ByMedia = dict[str, timedelta]  # by media; "" is every other one


class Table(msgspec.Struct, frozen=True, kw_only=True):
    """One table of a spec file."""


class Auth(Table, frozen=True, kw_only=True):
    """How our key travels, and where it may go besides the base URL."""

    header: str = "Authorization"
    prefix: str = "Bearer"  # "" sends the bare key
    hosts: tuple[str, ...] = ()
    output_hosts: tuple[str, ...] = ()


class Call(Table, frozen=True, kw_only=True):
    """A call that needs nothing but an id or a model."""

    path: str
    method: str = "GET"
    query: dict[str, str] = {}
    beside_poll: tuple[str, ...] = ()  # the end of the job's polling URL, and what stands there in this call's


class ResultCall(Call, frozen=True, kw_only=True):
    """Where the outputs are once a poll says that the job succeeded."""

    failed: tuple[int, ...] = ()  # HTTP codes that mean that the job failed after all


class PollCall(Call, frozen=True, kw_only=True):
    """How one job is asked about."""

    final_without_id: bool = False


class KeyCheck(Call, frozen=True, kw_only=True):
    """A call that costs nothing and tells whether our key is good."""

    taken: tuple[int, ...] = ()  # HTTP codes beside 2xx that only a good key is answered with


class CallbackPlace(Table, frozen=True, kw_only=True):
    """Where the callback URL goes in the submit call: exactly one of the three."""

    body: FieldPath | None = None
    header: str | None = None
    query: str | None = None
    companions: dict[str, Any] = {}  # fields of the body that go along with it


class Count(Table, frozen=True, kw_only=True):
    """Which input field says how many generations are made."""

    field: str
    max: int


class Example(Table, frozen=True, kw_only=True):
    """A request that a person could begin with."""

    input: dict[str, Any]
    model: str | None = None
    media: str | None = None


class ModelEntry(Table, frozen=True, kw_only=True):
    """One model of a table by model."""

    path: str
    media: str | None = None
    example: dict[str, Any] | None = None  # an input to begin with


class Submit(Table, frozen=True, kw_only=True):
    """The submit call of an operation."""

    path: str | None = None
    method: str = "POST"
    query: dict[str, str] = {}
    headers: dict[str, str] = {}
    input: FieldPath | None = None  # None: the input is the body
    model: FieldPath | None = None
    callback: CallbackPlace | None = None
    media_field: str | None = None
    count: Count | None = None
    constants: dict[str, Any] = {}
    defaults: dict[str, Any] = {}
    forbidden: dict[str, str] = {}  # input field → why


class Reading(Table, frozen=True, kw_only=True):
    """Where things stand in an answer of one kind. None: not said here."""

    root: JsonPath | None = None
    items: JsonPath | None = None
    id: IdPaths | None = None
    status: Candidates | None = None
    outputs: Candidates | None = None
    media_type: Candidates | None = None
    output_lifetime: timedelta | None = None
    output_path: str | None = None
    failed_by: Candidates | None = None
    error_message: Candidates | None = None
    error_code: Candidates | None = None
    progress: Candidates | None = None
    progress_max: float | None = None
    cost: Candidates | None = None
    cost_unit: str | None = None
    created_at: Candidates | None = None
    finished_at: Candidates | None = None
    polling_url: Candidates | None = None
    model: Candidates | None = None


class ReadTable(Reading, frozen=True, kw_only=True):
    """A Reading, and what differs by kind of answer."""

    submit: Reading | None = None
    poll: Reading | None = None
    result: Reading | None = None
    callback: Reading | None = None
    stream: Reading | None = None
    list: Reading | None = None
    lookup: Reading | None = None
    http_error: Reading | None = None


class Times(Table, frozen=True, kw_only=True):
    """What the provider recommends, by media."""

    interval: ByMedia = {}
    max_interval: ByMedia = {}
    overdue: ByMedia = {}
    deadline: ByMedia = {}


class Operation(Table, frozen=True, kw_only=True):
    """One thing that the provider can be asked to do."""

    submit: Submit
    poll: PollCall | None = None
    cancel: Call | None = None
    media: tuple[str, ...] = ()
    models: dict[str, ModelEntry] = {}
    example: Example | None = None
    read: ReadTable = ReadTable()
    times: Times = Times()


class Signature(Table, frozen=True, kw_only=True):
    """How the provider proves that a callback is its own."""

    scheme: Literal["standard_webhooks", "hmac", "ed25519", "static", "basic"]
    header: str | None = None
    separator: str = ""  # between several signatures in the header
    prefix: str = ""  # before each signature
    digest: Literal["sha1", "sha256", "sha512"] = "sha256"
    encoding: Literal["hex", "base64", "base64url"] = "hex"
    key_form: Literal["text", "base64"] = "text"  # what the configured secret is
    key_prefix: str = ""  # of the secret, that is no part of the key
    message: str = "{body}"
    fields: dict[str, Candidates] = {}  # values of the body that the message is made of
    id_header: str | None = None
    timestamp_header: str | None = None
    timestamp_field: str | None = None  # in the header of the signature: `t` of `t=1700000000,v1=…`
    timestamp_unit: Literal["s", "ms", "http_date"] = "s"
    tolerance: timedelta = timedelta(minutes=5)
    lax: bool = False
    jwks: str | None = None

    @property
    def covers_body(self) -> bool:
        """Whether the body itself is signed; else it is a hint."""
        if self.scheme == "standard_webhooks":
            return True
        return self.scheme in ("hmac", "ed25519") and ("{body}" in self.message or "{body_sha256}" in self.message)


class CallbackTable(Table, frozen=True, kw_only=True):
    """What there is to know of callbacks beside how they are read."""

    signature: Signature | None = None
    account_wide: bool = False
    thin: bool = False  # it tells that a job ended, and nothing more
    method: Literal["POST", "PUT", "PATCH"] = "POST"  # that it comes by; a POST is taken in any case
    handshake: Literal["cloudevents"] | None = None
    kept_headers: tuple[str, ...] = ()
    task: JsonPath | None = None
    tasks: dict[str, tuple[str, ...]] = {}  # operation → the provider's words
    fields: dict[str, Candidates] = {}  # operation → fields that only its callbacks have


class Stream(Table, frozen=True, kw_only=True):
    """The event stream that we hold open."""

    path: str
    events: tuple[str, ...]


class Form(Table, frozen=True, kw_only=True):
    """What a 2xx answer to a submit means that holds no id."""

    at: JsonPath
    means: Literal["refused", "not_taken", "unknown"]
    equals: tuple[str, ...] = ()
    empty: bool = False


class Answers(Table, frozen=True, kw_only=True):
    """What HTTP codes and forms of a submit answer mean, where the general rule does not hold."""

    refused: tuple[int, ...] = ()
    not_taken: tuple[int, ...] = ()
    unknown: tuple[int, ...] = ()
    forms: tuple[Form, ...] = ()


class Errors(Table, frozen=True, kw_only=True):
    """Whose words mean which error code: ours → theirs."""

    http: dict[ErrorCode, tuple[int, ...]] = {}
    codes: dict[ErrorCode, tuple[str, ...]] = {}
    words: dict[ErrorCode, tuple[str, ...]] = {}
    words_at: dict[str, dict[ErrorCode, tuple[str, ...]]] = {}  # the same, only beside this HTTP code


class Limits(Table, frozen=True, kw_only=True):
    """How often we may call, and the headers that tell what is left."""

    rate: RateLimit | None = None
    remaining_header: str | None = None
    reset_header: str | None = None


class SpecTable(Table, frozen=True, kw_only=True):
    """A whole spec file."""

    base_url: str
    operations: dict[str, Operation]
    status: dict[Status, tuple[str, ...]]
    auth: Auth = Auth()
    headers: dict[str, str] = {}
    poll: PollCall | None = None
    result: ResultCall | None = None
    cancel: Call | None = None
    list: Call | None = None
    history: Call | None = None
    lookup: Call | None = None
    check: KeyCheck | None = None
    stream: Stream | None = None
    callback: CallbackTable | None = None
    read: ReadTable = ReadTable()
    answers: Answers = Answers()
    errors: Errors = Errors()
    limits: Limits = Limits()
    times: Times = Times()


class Spec(msgspec.Struct, frozen=True, kw_only=True):
    """A checked spec file, ready to be worked with."""

    name: str
    file: str
    table: SpecTable
    statuses: dict[str, Status]  # the provider's words in lower case
    readings: dict[tuple[str, ReadChannel], Reading]  # by operation ("" is none in particular) and kind of answer

    @property
    def operations(self) -> tuple[str, ...]:
        """The names, the default one first."""
        return tuple(self.table.operations)

    @property
    def base_url(self) -> str:
        return self.table.base_url

    @property
    def signature(self) -> Signature | None:
        return None if self.table.callback is None else self.table.callback.signature

    @property
    def sends_callback_url(self) -> bool:
        """Whether a submit can say where to call back; else a URL for the whole account is set at the provider."""
        return any(operation.submit.callback is not None for operation in self.table.operations.values())

    def operation(self, name: str) -> Operation:
        """An operation that left the spec reads like the default one."""
        operations = self.table.operations
        return operations.get(name) or next(iter(operations.values()))

    def reading(self, operation: str | None, channel: ReadChannel) -> Reading:
        found = self.readings.get((operation or "", channel))
        return found if found is not None else self.readings["", channel]

    def poll_call(self, operation: str) -> PollCall:
        call = self.operation(operation).poll or self.table.poll
        assert call is not None  # the loader sees to it
        return call

    def cancel_call(self, operation: str) -> Call | None:
        return self.operation(operation).cancel or self.table.cancel
