"""Whether a callback was signed by its provider: every scheme that a spec can name. Pure; Unproven for whatever is not right.

https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md is the first of them; most others are
an HMAC with its parts in other places, so one verifier with parameters serves them all.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from functools import cache

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from receiver.errors import Unproven, Unreadable, WrongSignature
from receiver.providers.paths import find_all
from receiver.providers.reading import parse_json
from receiver.providers.spec import Signature
from receiver.times import to_micros

FAMILIES = ("webhook", "svix")  # of headers that Standard Webhooks knows
MAX_SIGNATURES = 16  # in one header, of one kind, that are looked at
MICROSECOND = timedelta(microseconds=1)
TIMESTAMP = re.compile(r"\+?[0-9]{1,18}")
HEX = re.compile(r"(?:[0-9a-fA-F]{2})+")
VARIABLE = re.compile(r"\{([^{}]*)\}")


@dataclass(frozen=True)
class Presented:
    """A callback as it came. Header names are in lower case; their values and the rest of the head stand for bytes (Latin-1)."""

    headers: Mapping[str, str]
    body: bytes
    method: str = "POST"
    path: str = "/"
    query: str = ""


@dataclass(frozen=True)
class Keys:
    """What signatures are checked with; nothing here shows in a repr."""

    secrets: tuple[bytes, ...] = field(default=(), repr=False)
    public: tuple[Ed25519PublicKey, ...] = field(default=(), repr=False)


def prove(signature: Signature, keys: Keys, presented: Presented, now: datetime) -> None:
    """Returns only where one of the keys signed it, in time; raises Unproven with the reason for everything else."""
    match signature.scheme:
        case "standard_webhooks":
            _prove_standard(signature, keys, presented, now)
        case "hmac" | "ed25519":
            _prove_message(signature, keys, presented, now)
        case "static":
            given = _read_header(presented, signature.header)
            if not given.startswith(signature.prefix):
                raise Unproven("its secret is not in the form that the spec names")
            _match(keys.secrets, [_raw(given.removeprefix(signature.prefix))])
        case "basic":
            _match(keys.secrets, [_read_basic(_read_header(presented, signature.header or "Authorization"))])


# Keys


def make_keys(signature: Signature, secrets: Sequence[str]) -> Keys:
    """The configured secrets, ready to be used; those that are malformed are left out (`check_secrets` names them)."""
    found: list[bytes | Ed25519PublicKey] = []
    for secret in secrets:
        try:
            found.append(_read_secret(signature, secret))
        except ValueError:
            continue
    return Keys(
        secrets=tuple(key for key in found if isinstance(key, bytes)),
        public=tuple(key for key in found if isinstance(key, Ed25519PublicKey)),
    )


def check_secrets(signature: Signature, secrets: Sequence[str], *, publishes: bool) -> Iterator[tuple[int | None, str]]:
    """What is wrong with an account's secrets: at which position (None: with all of them), and what would be right. `publishes`: the
    provider's keys are fetched."""
    if not secrets and not publishes:
        yield None, "is missing: this provider signs its callbacks, and without the secret none of them can be believed"
    if secrets and publishes:
        yield None, "means nothing here: this provider publishes its keys; leave it out"
        return
    for position, secret in enumerate(secrets):
        try:
            _read_secret(signature, secret)
        except ValueError as error:
            yield position, str(error)


def read_jwks(body: bytes) -> tuple[Ed25519PublicKey, ...]:
    """The Ed25519 keys of a JWK Set (RFC 7517, RFC 8037); keys of other kinds are skipped. Unreadable where there is none."""
    document = parse_json(body)
    listed = document.get("keys") if isinstance(document, dict) else None
    found = [key for entry in listed if (key := _read_jwk(entry)) is not None] if isinstance(listed, list) else []
    if not found:
        raise Unreadable("there is no Ed25519 key in it")
    return tuple(found[:MAX_SIGNATURES])


def _read_jwk(entry: object) -> Ed25519PublicKey | None:
    if not isinstance(entry, dict) or (entry.get("kty"), entry.get("crv")) != ("OKP", "Ed25519") or entry.get("use", "sig") != "sig":
        return None
    text = entry.get("x")
    key = _decode(text, "base64url", 32) if isinstance(text, str) else None
    return None if key is None else Ed25519PublicKey.from_public_bytes(key)


def _read_secret(signature: Signature, text: str) -> bytes | Ed25519PublicKey:
    """Never quotes the secret."""
    match signature.scheme:
        case "standard_webhooks":
            return _read_standard_secret(text, lax=signature.lax)
        case "ed25519":
            return _read_public_key(text.removeprefix(signature.key_prefix))
        case "hmac" if signature.key_form == "base64":
            return _read_base64(text.removeprefix(signature.key_prefix))
        case "basic" if ":" not in text:
            raise ValueError('expected "user:password"')
    plain = text.removeprefix(signature.key_prefix).encode()
    if not plain:
        raise ValueError("is empty")
    return plain


def _read_standard_secret(text: str, *, lax: bool) -> bytes | Ed25519PublicKey:
    if text.startswith("whsk_"):
        raise ValueError('is a key for signing; here belongs the public one, "whpk_…"')
    if text.startswith("whpk_"):
        return _read_public_key(text.removeprefix("whpk_"))
    if lax and text and not text.startswith("whsec_"):
        return text.encode()
    return _read_base64(text.removeprefix("whsec_"))


def _read_public_key(text: str) -> Ed25519PublicKey:
    raw = _read_base64(text)
    if len(raw) != 32:
        raise ValueError("is no Ed25519 public key: expected 32 bytes in base64")
    return Ed25519PublicKey.from_public_bytes(raw)


def _read_base64(text: str) -> bytes:
    """Padding may be missing, and bits behind the last whole byte are overlooked: secrets are made by others."""
    digits = text.rstrip("=")
    try:
        raw = base64.b64decode(digits + "=" * (-len(digits) % 4), validate=True)
    except ValueError:  # binascii.Error is one
        raise ValueError("is not base64; copy the secret as the provider shows it") from None
    if not raw:
        raise ValueError("is empty")
    return raw


# Schemes


def _prove_standard(signature: Signature, keys: Keys, presented: Presented, now: datetime) -> None:
    headers = presented.headers
    family = next((name for name in FAMILIES if all(headers.get(f"{name}-{part}") for part in ("id", "timestamp", "signature"))), None)
    if family is None:
        raise Unproven("the headers webhook-id, webhook-timestamp and webhook-signature are not all there")
    event, timestamp, given = (headers[f"{family}-{part}"] for part in ("id", "timestamp", "signature"))
    _check_age(timestamp, signature, now)
    message = b".".join((_raw(event), _raw(timestamp), presented.body))
    elements = given.split() if signature.lax else given.split(" ")
    symmetric = [element.removeprefix("v1,") for element in elements if element.startswith("v1,") or (signature.lax and "," not in element)]
    asymmetric = [element.removeprefix("v1a,") for element in elements if element.startswith("v1a,")]
    if not symmetric and not asymmetric:
        raise Unproven("it has no signature of a known version")
    if _is_match(_digests(keys.secrets, message, "sha256"), _decode_all(symmetric, "base64", 32)):
        return
    _verify(keys.public, _decode_all(asymmetric, "base64", 64), message)


def _prove_message(signature: Signature, keys: Keys, presented: Presented, now: datetime) -> None:
    given = _read_header(presented, signature.header)
    elements = [element.strip() for element in given.split(signature.separator)] if signature.separator else [given]
    timestamp = _find_timestamp(signature, presented, elements)
    if timestamp is not None:
        _check_age(timestamp, signature, now)
    found = [element.removeprefix(signature.prefix) for element in elements if element.startswith(signature.prefix)]
    if not found:
        raise Unproven("it has no signature in the form that the spec names")
    message = _fill(signature, presented, timestamp)
    if signature.scheme == "ed25519":
        _verify(keys.public, _decode_all(found, signature.encoding, 64), message)
    else:
        size = hashlib.new(signature.digest).digest_size
        _match(_digests(keys.secrets, message, signature.digest), _decode_all(found, signature.encoding, size))


def _find_timestamp(signature: Signature, presented: Presented, elements: Sequence[str]) -> str | None:
    if signature.timestamp_header is not None:
        return _read_header(presented, signature.timestamp_header)
    if signature.timestamp_field is None:
        return None
    marks = f"{signature.timestamp_field}="
    found = [element.removeprefix(marks) for element in elements if element.startswith(marks)]
    if len(found) != 1:
        raise Unproven("it has no timestamp, or several")
    return found[0]


def _check_age(text: str, signature: Signature, now: datetime) -> None:
    if abs(to_micros(now) - _read_timestamp(text, signature)) > signature.tolerance // MICROSECOND:
        raise Unproven("its timestamp is too old or too far ahead")


def _read_timestamp(text: str, signature: Signature) -> int:
    """Microseconds; of whole seconds or milliseconds as far ahead as anybody writes them."""
    if signature.timestamp_unit == "http_date":
        try:
            at = parsedate_to_datetime(text)
            return to_micros(at if at.tzinfo is not None else at.replace(tzinfo=UTC))
        except (ValueError, TypeError, IndexError, OverflowError):
            raise Unproven("its timestamp is no date") from None
    if not TIMESTAMP.fullmatch(text):
        raise Unproven("its timestamp is no number")
    return int(text) * (1_000_000 if signature.timestamp_unit == "s" else 1_000)


# The message


@cache
def split_message(template: str) -> tuple[str, ...]:
    """Literal texts, and between them the names of variables: a name stands at every odd position."""
    return tuple(VARIABLE.split(template))


def _fill(signature: Signature, presented: Presented, timestamp: str | None) -> bytes:
    pieces = split_message(signature.message)
    return b"".join(
        _find_variable(piece, signature, presented, timestamp) if position % 2 else piece.encode() for position, piece in enumerate(pieces)
    )


def _find_variable(name: str, signature: Signature, presented: Presented, timestamp: str | None) -> bytes:
    kind, _, argument = name.partition(":")
    match kind:
        case "body":
            return presented.body
        case "body_sha256":
            return hashlib.sha256(presented.body).hexdigest().encode()
        case "timestamp":
            return _raw(timestamp or "")
        case "id":
            return _raw(_read_header(presented, signature.id_header))
        case "header":
            return _raw(_read_header(presented, argument))
        case "headers":  # the headers that this one names, each on a line
            names = [part.strip() for part in _read_header(presented, argument).split(";")]
            return b"".join(_raw(f"{named}:{_read_header(presented, named)}\n") for named in names[:MAX_SIGNATURES])
        case "method" | "path" | "query":
            return _raw(getattr(presented, kind))
        case "field":
            return _find_field(signature, presented, argument)
    raise Unproven("its message cannot be put together")


def _find_field(signature: Signature, presented: Presented, name: str) -> bytes:
    try:
        found = find_all(signature.fields.get(name), parse_json(presented.body))
        if len(found) == 1 and isinstance(found[0], str | int):
            return str(found[0]).encode()
    except (Unreadable, UnicodeEncodeError):
        pass
    raise Unproven(f"its body has no {name}")


# Bytes


def _read_header(presented: Presented, name: str | None) -> str:
    value = presented.headers.get((name or "").lower())
    if not value:
        raise Unproven(f"it has no header {name}")
    return value


def _raw(text: str) -> bytes:
    try:
        return text.encode("latin-1")
    except UnicodeEncodeError:
        raise Unproven("it has signs that no header can have") from None


def _read_basic(value: str) -> bytes:
    scheme, _, credentials = value.partition(" ")
    pair = _decode(credentials.strip(), "base64", None) if scheme.lower() == "basic" else None
    if pair is None:
        raise Unproven("it has no Basic credentials")
    return pair


def _decode_all(texts: Sequence[str], encoding: str, size: int) -> list[bytes]:
    return [raw for text in texts[:MAX_SIGNATURES] if (raw := _decode(text, encoding, size)) is not None]


def _decode(text: str, encoding: str, size: int | None) -> bytes | None:
    """None for what is malformed. Only one spelling of a value counts, so that no bit of a signature is loose; hex may be in capitals."""
    if encoding == "hex":
        raw = bytes.fromhex(text) if HEX.fullmatch(text) else b""
    else:
        try:
            plain = text.rstrip("=").translate(str.maketrans("-_", "+/")) if encoding == "base64url" else text.rstrip("=")
            raw = base64.b64decode(plain + "=" * (-len(plain) % 4), validate=True)
        except (binascii.Error, ValueError):
            return None
        spelled = (base64.urlsafe_b64encode if encoding == "base64url" else base64.b64encode)(raw).decode()
        if text != spelled and (encoding == "base64" or text != spelled.rstrip("=")):
            return None
    return raw if size is None or len(raw) == size else None


def _digests(secrets: Sequence[bytes], message: bytes, digest: str) -> list[bytes]:
    return [hmac.digest(secret, message, digest) for secret in secrets if secret]


def _match(expected: Sequence[bytes], given: Sequence[bytes]) -> None:
    if not _is_match(expected, given):
        raise WrongSignature


def _is_match(expected: Sequence[bytes], given: Sequence[bytes]) -> bool:
    """Every pair is compared, each in constant time."""
    return any([hmac.compare_digest(one, other) for one in expected for other in given])  # noqa: C419 - not to stop at the first


def _verify(public: Sequence[Ed25519PublicKey], given: Sequence[bytes], message: bytes) -> None:
    for key in public:
        for one in given:
            try:
                key.verify(one, message)
            except InvalidSignature:
                continue
            return
    raise WrongSignature
