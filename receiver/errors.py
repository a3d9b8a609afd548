"""The exceptions that cross rooms.

ReceiverError
├─ ConfigError              start only; lists every mistake
├─ Refused                  the request is at fault: 4xx
│   ├─ Invalid              400, with a list of what is wrong where
│   ├─ NotFound             404      └─ UnknownProvider
│   ├─ Conflict             409
│   ├─ KeyReused            422, the same Idempotency-Key with another body
│   ├─ Unproven             401, nothing was stored
│   │   └─ WrongSignature   no key that is known made its signature
│   ├─ BodyOverLimit        413
│   └─ TooMany              429, with retry_after
├─ Unavailable              503, with retry_after
│   ├─ StoreUnavailable
│   └─ Overloaded
├─ ProviderFault            our call to a provider
│   ├─ NotTaken             it was certainly not taken: may be sent again
│   └─ AnswerLost           it may have been taken: never sent again
├─ Unreadable               a notice that cannot be normalized
├─ Denied                   an address or redirect that the guarded client refuses
├─ OutputGone               an output cannot be had any more
├─ PermanentError           raised by handlers: dead at once
└─ RetryLater               raised by handlers: try again after so many seconds
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any


class ReceiverError(Exception):
    """Something went wrong."""

    def __init__(self, message: str = "") -> None:
        super().__init__(message or (type(self).__doc__ or "").split("\n")[0])


class Mistake:
    """One mistake in a configuration or spec: where it stands and what would be right."""

    __slots__ = ("detail", "file", "key")

    def __init__(self, file: str, key: str, detail: str) -> None:
        self.file, self.key, self.detail = file, key, detail

    def __str__(self) -> str:
        return ": ".join(part for part in (self.file, self.key, self.detail) if part)


class ConfigError(ReceiverError):
    """The configuration has mistakes."""

    def __init__(self, mistakes: Sequence[Mistake], rest: Any = None) -> None:
        self.mistakes = tuple(mistakes)
        self.rest = rest  # the configuration without what is wrong, where there is one
        super().__init__("\n".join(str(mistake) for mistake in self.mistakes))


class Refused(ReceiverError):
    """The request was refused."""


class Invalid(Refused):
    """The request is malformed."""

    def __init__(self, errors: Sequence[dict[str, str]]) -> None:
        self.errors = list(errors)  # each {"pointer" | "parameter", "detail"}
        super().__init__("; ".join(error["detail"] for error in self.errors))


class NotFound(Refused):
    """There is no such thing."""


class UnknownProvider(NotFound):
    """There is no such provider, or it has no callback."""


class Conflict(Refused):
    """The state of the resource does not allow this."""


class KeyReused(Refused):
    """This Idempotency-Key was used with another body."""


class Unproven(Refused):
    """The origin of this callback is not proven."""


class WrongSignature(Unproven):
    """No key that is known made this signature."""


class BodyOverLimit(Refused):
    """The body is over the limit."""


class TooMany(Refused):
    """Too many requests."""

    def __init__(self, message: str = "", retry_after: int = 60) -> None:
        self.retry_after = retry_after
        super().__init__(message)


class Unavailable(ReceiverError):
    """The service cannot do this now; try again later."""

    def __init__(self, message: str = "", retry_after: int = 5) -> None:
        self.retry_after = retry_after
        super().__init__(message)


class StoreUnavailable(Unavailable):
    """The database cannot be written now; try again later."""


class Overloaded(Unavailable):
    """There is more work than can be taken; try again later."""


class ProviderFault(ReceiverError):
    """A call to a provider failed."""

    def __init__(self, message: str = "", provider: str = "", retry_after: float | None = None) -> None:
        self.provider, self.retry_after = provider, retry_after
        super().__init__(message)


class NotTaken(ProviderFault):
    """The provider certainly did not take the call."""


class AnswerLost(ProviderFault):
    """The provider may have taken the call; its answer is lost."""


class Unreadable(ReceiverError):
    """The notice cannot be normalized."""


class Denied(ReceiverError):
    """The address is not one that may be reached."""


class OutputGone(ReceiverError):
    """The output is not there any more, and a fresh link did not help."""


class PermanentError(ReceiverError):
    """This delivery can never succeed: it is dead at once."""


class RetryLater(ReceiverError):
    """Try this delivery again after so many seconds. ValueError where that is no number."""

    def __init__(self, seconds: float, message: str = "") -> None:
        self.seconds = float(seconds)  # it may come from a header
        if math.isnan(self.seconds):
            raise ValueError("seconds must be a number")
        super().__init__(message or f"try again in {self.seconds:g} s")
