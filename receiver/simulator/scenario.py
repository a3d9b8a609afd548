"""What is to happen to a job: how long it takes, how it ends, and what goes wrong on the way."""

from __future__ import annotations

import re
from collections.abc import Iterable
from enum import StrEnum
from typing import Any, Literal, TypeVar

import msgspec

E = TypeVar("E", bound=StrEnum)


class Outcome(StrEnum):
    """How a job ends. A provider without a word for it uses the nearest one that it has."""

    SUCCEEDED = "succeeded"
    FAILED = "failed"
    ERROR = "error"  # the provider's own fault; Pixazo has a word for it
    CANCELLED = "cancelled"
    STUCK = "stuck"  # it never ends


class Fault(StrEnum):
    """What goes wrong. `meaning` is what the help page says about it."""

    meaning: str

    def __new__(cls, word: str, meaning: str) -> Fault:
        fault = str.__new__(cls, word)
        fault._value_ = word
        fault.meaning = meaning
        return fault

    # The submit call is refused, and no job comes of it. The first three are taken after `times` refusals.
    TOO_MANY = "429", "the submit is answered 429, with Retry-After if retry_after is given"
    UNAVAILABLE = "503", "the submit is answered 503, with Retry-After if retry_after is given"
    BROKEN = "500", "the submit is answered 500"
    REFUSED = "refused", "the submit is answered 400 in the provider's own words"
    BALANCE = "balance", "the submit is answered as by an empty account"
    # The submit call is taken and billed, and its answer is of no use.
    SUBMIT_LOST = "submit-lost", "the job is made and billed, the connection closes without an answer"
    SUBMIT_SLOW = "submit-slow", "the job is made and billed, the answer comes after `delay`"
    SUBMIT_GARBLED = "submit-garbled", "the job is made and billed, the answer is no JSON"
    SUBMIT_EMPTY = "submit-empty", "the job is made and billed, the answer holds no id"
    SUBMIT_502 = "submit-502", "the job is made and billed, a gateway answers 502"
    INSTANT = "instant", "the job is final when the submit is answered, and the answer says so"
    SAME_ID = "same-id", "a fan-out answers the same id for all generations"
    # What is pushed: callbacks, and events of a stream.
    LOST = "lost", "nothing is pushed"
    LATE = "late", "the final news is pushed `delay` after the job is final"
    TWICE = "twice", "everything is pushed twice"
    REORDERED = "reordered", "the final news is pushed first, then the earlier ones"
    CHATTY = "chatty", "every status is pushed, also by a provider that tells final ones only"
    EARLY = "early", "the final callback comes before the submit is answered"
    FORGED = "forged", "before the final callback comes one with a wrong token, or a wrong signature where there is one"
    FOREIGN = "foreign", "before the final callback comes one with the right token and an unknown id"
    NO_ID = "no-id", "callbacks name no id"
    GARBLED = "garbled", "callbacks are no JSON"
    TRUNCATED = "truncated", "callbacks break off in the middle"
    HUGE = "huge", "callbacks are 2 MiB long"
    GZIP = "gzip", "callbacks are compressed"
    STREAM_DROPPED = "stream-dropped", "open streams are cut just before the event of this job, which is lost"
    # Polls.
    POLL_404 = "poll-404", "the first `polls` polls are answered 404"
    POLL_429 = "poll-429", "the first `polls` polls are answered 429, with Retry-After if retry_after is given"
    POLL_500 = "poll-500", "the first `polls` polls are answered 500"
    POLL_503 = "poll-503", "the first `polls` polls are answered 503, with Retry-After if retry_after is given"
    POLL_GARBLED = "poll-garbled", "the first `polls` polls are answered with something that is no JSON"
    POLL_LOST = "poll-lost", "the first `polls` polls are closed without an answer"
    POLL_SLOW = "poll-slow", "the first `polls` polls are answered after `delay`"
    UNKNOWN_STATUS = "unknown-status", "while it runs the job says `warming_up`, which no document knows"
    # Outputs.
    DATA_URI = "data-uri", "outputs come as data: URIs in place of links"
    PRIVATE = "private", "outputs want the provider's key: 401 without it"
    REDIRECTED = "redirected", "output links redirect to another host name"
    CUT = "cut", "the first download of each output breaks off in the middle"


TOLD_ONCE_MORE = frozenset({Fault.TOO_MANY, Fault.UNAVAILABLE, Fault.BROKEN})
REFUSALS = TOLD_ONCE_MORE | {Fault.REFUSED, Fault.BALANCE}


class Scenario(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is to happen to the jobs of one submission. Seconds are divided by the simulator's speed."""

    outcome: Outcome | tuple[Outcome, ...] = Outcome.SUCCEEDED  # several: the generations of a fan-out take them in turn
    faults: frozenset[Fault] = frozenset()
    seconds: float = 2.0  # from the submit to the end
    delay: float = 2.0  # how long takes what is slow or late
    times: int = 1  # refusals (429, 503, 500) of a submission before it is taken; 0: it never is
    polls: int = 2  # polls that a poll fault befalls
    retry_after: float | None = None  # seconds for Retry-After, as given: not divided by the speed
    as_date: bool = False  # Retry-After as an HTTP date
    expires: float | None = None  # seconds that an output link lives; a fresh poll gives a fresh link
    outputs: int | None = None  # files per generation, in place of what the input asks for
    ids: int | None = None  # ids in the answer of a fan-out, in place of what the input asks for
    media: Literal["image", "video", "audio", "3d"] | None = None  # in place of what the model's name suggests
    revision: Literal["A", "B", "C"] = "C"  # of Hoox's callback bodies
    error: str = "content policy violation"  # the provider's words when the job fails
    error_code: str = "GENERATION_FAILED"  # the provider's code when the job fails, where it has codes

    def outcome_of(self, position: int) -> Outcome:
        """The outcome of one generation of a fan-out."""
        return self.outcome if isinstance(self.outcome, Outcome) else self.outcome[position % len(self.outcome)]


class UnknownWord(Exception):
    """A word in a prompt's `[sim: …]` that means nothing here."""


DIRECTIVE = re.compile(r"\[sim:([^\]]*)\]", re.IGNORECASE)
NICKNAMES = {"fail": Outcome.FAILED, "success": Outcome.SUCCEEDED, "ok": Outcome.SUCCEEDED, "cancel": Outcome.CANCELLED}


def read_prompt(text: str, default: Scenario) -> Scenario | None:
    """What a prompt such as `a boat [sim: twice fail seconds=3]` asks for, on top of the default; None if it asks for nothing."""
    directives = DIRECTIVE.findall(text)
    if not directives:
        return None
    changes = _read_words(re.split(r"[\s,]+", " ".join(directives).strip()), default)
    try:
        return msgspec.convert({**msgspec.to_builtins(default), **changes}, Scenario, strict=False)
    except msgspec.ValidationError as error:
        raise UnknownWord(f"[sim: …] in the prompt: {error}") from None


def _read_words(words: Iterable[str], default: Scenario) -> dict[str, Any]:
    changes: dict[str, Any] = {}
    faults = set(default.faults)
    outcomes: list[Outcome] = []
    for word in filter(None, words):
        key, equals, value = word.partition("=")
        key = key.lower()
        if equals and key.replace("-", "_") in Scenario.__struct_fields__:
            changes[key.replace("-", "_")] = value
        elif not equals and (outcome := NICKNAMES.get(key) or _member(Outcome, key)) is not None:
            outcomes.append(outcome)
        elif not equals and (fault := _member(Fault, key.replace("_", "-"))) is not None:
            faults.add(fault)
        else:
            raise UnknownWord(f"the simulator does not know {word!r} in [sim: …]")
    if outcomes:
        changes["outcome"] = outcomes[0] if len(outcomes) == 1 else outcomes
    return {**changes, "faults": sorted(faults)}


def _member(kind: type[E], word: str) -> E | None:
    return next((member for member in kind if member.value == word), None)
