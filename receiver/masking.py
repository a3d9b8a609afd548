"""Takes secrets out of what is stored, logged or shown: exact occurrences, also in the forms that JSON and URLs give them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from urllib.parse import quote, quote_plus

SHORTEST = 8  # what is shorter would hide ordinary words
SHORTEST_PART = 4  # of a secret, at the end of what was cut
MASK = "***"
PLAIN = re.compile(r"[A-Za-z0-9._~-]*")  # JSON and URLs leave these as they are: most secrets, every token


class Masker:
    """Replaces every secret of 8 or more characters by `***`, longest first."""

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        self._texts = _all_forms(tuple(secrets))
        self._bytes = _encode(self._texts)

    def with_token(self, *tokens: str) -> Masker:
        """One that masks these as well, first; cheap enough for every call."""
        more = _all_forms(tokens)
        masker = object.__new__(Masker)
        masker._texts = more + self._texts
        masker._bytes = _encode(more) + self._bytes
        return masker

    def mask(self, data: bytes) -> bytes:
        # A plain scan per form is many times faster than one alternation of them all.
        for form in self._bytes:
            data = data.replace(form, MASK.encode())
        return data

    def mask_text(self, text: str) -> str:
        for form in self._texts:
            text = text.replace(form, MASK)
        return text

    def mask_cut(self, text: str) -> str:
        """The same for a text that may have been cut off in the middle of a secret."""
        text = self.mask_text(text)
        parts = (form[:length] for form in self._texts for length in range(len(form) - 1, SHORTEST_PART - 1, -1))
        cut = max((part for part in parts if text.endswith(part)), key=len, default="")
        return text.removesuffix(cut) + MASK if cut else text


def _all_forms(secrets: Sequence[str]) -> tuple[str, ...]:
    if len(secrets) == 1 and len(secrets[0]) >= SHORTEST and PLAIN.fullmatch(secrets[0]):
        return tuple(secrets)  # a token, with every callback
    forms = {form for secret in secrets if len(secret) >= SHORTEST for form in _forms(secret)}
    return tuple(sorted(forms, key=lambda form: (-len(form), form)))


def _forms(secret: str) -> Iterable[str]:
    yield secret
    if PLAIN.fullmatch(secret):
        return
    for once in _escape(secret):
        yield once
        yield from _escape(once)  # JSON as a text in JSON
    for quoted in (quote(secret, safe=""), quote(secret), quote_plus(secret)):
        yield quoted
        yield _lower_escapes(quoted)


def _escape(text: str) -> Iterator[str]:
    """As a part of a JSON string."""
    for ascii_only in (True, False):
        escaped = json.dumps(text, ensure_ascii=ascii_only)[1:-1]
        yield escaped
        yield escaped.replace("/", "\\/")  # as PHP writes it


def _lower_escapes(quoted: str) -> str:
    first, *rest = quoted.split("%")
    return "%".join([first, *(part[:2].lower() + part[2:] for part in rest)])


def _encode(forms: Iterable[str]) -> tuple[bytes, ...]:
    return tuple(map(str.encode, forms))
