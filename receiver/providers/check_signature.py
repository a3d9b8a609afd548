"""What a `[callback.signature]` must say beyond the right types: the parts that its scheme needs, and none that it overlooks."""

from __future__ import annotations

import re
from collections.abc import Iterator
from urllib.parse import urlsplit

import msgspec

from receiver.providers.signatures import split_message
from receiver.providers.spec import Signature

KEY = "callback.signature"
TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")  # RFC 9110, the name of a header
MESSAGE = frozenset(
    {"header", "separator", "prefix", "encoding", "key_prefix", "message", "fields", "id_header"}
    | {"timestamp_header", "timestamp_field", "timestamp_unit", "tolerance"}
)
USES = {
    "standard_webhooks": frozenset({"tolerance", "lax"}),
    "hmac": MESSAGE | {"digest", "key_form"},
    "ed25519": MESSAGE | {"jwks"},
    "static": frozenset({"header", "prefix"}),
    "basic": frozenset({"header"}),
}
PLAIN = ("body", "body_sha256", "timestamp", "id", "method", "path", "query")
WITH_NAME = ("header", "headers", "field")


def check_signature(signature: Signature) -> Iterator[tuple[str, str]]:
    """Every fault, as key and what would be right."""
    uses = USES[signature.scheme]
    for field in msgspec.structs.fields(Signature):
        default = {} if field.name == "fields" else field.default
        if field.name != "scheme" and field.name not in uses and getattr(signature, field.name) != default:
            yield f"{KEY}.{field.name}", f"means nothing to the scheme {signature.scheme}; leave it out"
    if signature.scheme in ("hmac", "ed25519", "static") and signature.header is None:
        yield f"{KEY}.header", "is missing: which header holds the signature?"
    for name in ("header", "id_header", "timestamp_header"):
        header = getattr(signature, name)
        if header is not None and not TOKEN.fullmatch(header):
            yield f"{KEY}.{name}", f"{header!r} is no name of a header"
    if signature.scheme in ("hmac", "ed25519"):
        yield from _check_message(signature)
    if signature.jwks is not None and not _is_address(signature.jwks):
        yield f"{KEY}.jwks", "expected an https address without user, query or fragment"


def _check_message(signature: Signature) -> Iterator[tuple[str, str]]:
    names = split_message(signature.message)[1::2]
    for name in names:
        kind, colon, argument = name.partition(":")
        known = kind in WITH_NAME if colon else kind in PLAIN
        if not known or (kind in ("header", "headers") and not TOKEN.fullmatch(argument)):
            shown = ", ".join([*(f"{{{plain}}}" for plain in PLAIN), *(f"{{{one}:NAME}}" for one in WITH_NAME)])
            yield f"{KEY}.message", f"unknown variable {{{name}}}; known: {shown}"
        if kind == "field" and argument not in signature.fields:
            yield f"{KEY}.fields.{argument}", "is missing: where in the body is it?"
    if not names:
        yield f"{KEY}.message", "has no variable: the same signature would do for everything"
    if "id" in names and signature.id_header is None:
        yield f"{KEY}.id_header", "is missing: the message has an {id}"
    has_source = signature.timestamp_header is not None or signature.timestamp_field is not None
    if "timestamp" in names and not has_source:
        yield f"{KEY}.timestamp_header", "is missing (or timestamp_field): the message has a {timestamp}"
    if signature.timestamp_header is not None and signature.timestamp_field is not None:
        yield f"{KEY}.timestamp_field", "and timestamp_header exclude each other"
    if has_source and not _signs_timestamp(signature, names):
        yield f"{KEY}.message", "leaves the timestamp out: who sends an old callback again could write any other"


def _signs_timestamp(signature: Signature, names: tuple[str, ...]) -> bool:
    header = (signature.timestamp_header or "").lower()
    return "timestamp" in names or any(name.lower() == f"header:{header}" for name in names)


def _is_address(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return parts.scheme == "https" and bool(parts.hostname) and "@" not in parts.netloc and not (parts.query or parts.fragment)
    except ValueError:
        return False
