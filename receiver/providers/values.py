"""Single values as providers write them: ids, texts, times, amounts, links, media types."""

from __future__ import annotations

import base64
import binascii
import math
import re
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import parse_qsl, unquote_to_bytes, urlsplit

from receiver.errors import Unreadable

MAX_ID = 512
MAX_TEXT = 2_000
MAX_WORD = 200
MAX_URL = 16_384
MAX_WAIT = 7 * 86_400.0  # seconds; nobody means more by Retry-After
MILLISECONDS_FROM = 1e11  # a Unix time above this is in milliseconds

MEDIA_TYPES = {
    "aac": "audio/aac",
    "avi": "video/x-msvideo",
    "avif": "image/avif",
    "bmp": "image/bmp",
    "flac": "audio/flac",
    "gif": "image/gif",
    "glb": "model/gltf-binary",
    "gltf": "model/gltf+json",
    "heic": "image/heic",
    "jpeg": "image/jpeg",
    "jpg": "image/jpeg",
    "json": "application/json",
    "m4a": "audio/mp4",
    "m4v": "video/mp4",
    "mkv": "video/x-matroska",
    "mov": "video/quicktime",
    "mp3": "audio/mpeg",
    "mp4": "video/mp4",
    "obj": "model/obj",
    "ogg": "audio/ogg",
    "opus": "audio/ogg",
    "pdf": "application/pdf",
    "png": "image/png",
    "srt": "application/x-subrip",
    "stl": "model/stl",
    "svg": "image/svg+xml",
    "tif": "image/tiff",
    "tiff": "image/tiff",
    "txt": "text/plain",
    "usdz": "model/vnd.usdz+zip",
    "vtt": "text/vtt",
    "wav": "audio/wav",
    "webm": "video/webm",
    "webp": "image/webp",
    "zip": "application/zip",
}
UNINFORMATIVE = ("application/octet-stream", "binary/octet-stream")
PLAIN_LINK = re.compile(r"https?://[A-Za-z0-9.-]+(:[0-9]+)?([/?#]|\Z)")  # nearly every link; urlsplit, ten times as slow, judges the others
STEPS = {".", ".."}
MEDIA_TYPE = re.compile(r"[A-Za-z0-9][A-Za-z0-9!#$&^_.+-]{0,126}/[A-Za-z0-9][A-Za-z0-9!#$&^_.+-]{0,126}")


def is_remote_id(text: str) -> bool:
    """Whether a text can be a provider's id: printable, neither blank nor too long, and no step in a path."""
    return len(text.strip()) > 0 and len(text) <= MAX_ID and text.isprintable() and STEPS.isdisjoint(text.split("/"))


def read_id(value: Any) -> str | None:
    """An id as text; numbers too. Unreadable for what cannot be one; None for nothing."""
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str):
        raise Unreadable(f"an id is neither text nor a whole number but {type(value).__name__}")
    if not value:
        return None
    if not is_remote_id(value):
        raise Unreadable(f"{value[:40]!r} cannot be an id (control characters, a step in a path, or more than {MAX_ID} characters)")
    return value


def read_text(value: Any, limit: int = MAX_TEXT) -> str | None:
    """Text or a number as text, without NUL, cut to a sane length; None for anything else and for the empty text."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return None
    text = str(value).replace("\0", "").strip()
    return text[:limit] or None


def read_word(value: Any) -> str | None:
    """A status word; booleans as `true` and `false`."""
    return str(value).lower() if isinstance(value, bool) else read_text(value, MAX_WORD)


def read_time(value: Any) -> datetime | None:
    """ISO 8601, or Unix time in seconds or milliseconds; None for anything else."""
    number = read_number(value)
    try:
        if number is not None:
            seconds = number / 1000 if number > MILLISECONDS_FROM else number
            return datetime.fromtimestamp(seconds, UTC) if seconds > 0 else None
        if not isinstance(value, str):
            return None
        at = datetime.fromisoformat(value.strip())
        return at.replace(tzinfo=UTC) if at.tzinfo is None else at.astimezone(UTC)
    except (ValueError, OverflowError, OSError):
        return None


def read_number(value: Any) -> float | None:
    """A finite number, also one written as text."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def read_wait(value: str | None, now: datetime) -> float | None:
    """`Retry-After` in seconds from now: a number or an HTTP date; None for anything else."""
    if value is None:
        return None
    number = read_number(value)
    if number is None:
        try:
            at = parsedate_to_datetime(value)
        except (ValueError, TypeError, IndexError, OverflowError):
            return None
        number = ((at.replace(tzinfo=UTC) if at.tzinfo is None else at) - now).total_seconds()
    return min(max(number, 0.0), MAX_WAIT)


def find_links(value: Any) -> list[str]:
    """The http(s) and `data:` links of a text, a list, an object with a `url`, or a list of such objects, in order."""
    if isinstance(value, str):
        return [value] if is_link(value) else []
    if isinstance(value, list):
        return [link for element in value if isinstance(element, str | dict) for link in find_links(element)]
    if isinstance(value, dict):
        inner = value.get("url")
        links = inner if isinstance(inner, list) else [inner]
        return [link for link in links if isinstance(link, str) and is_link(link)]
    return []


def is_link(text: str) -> bool:
    if text[:5].lower() == "data:":
        return "," in text
    if len(text) > MAX_URL or not text.isprintable():
        return False
    if PLAIN_LINK.match(text):
        return True
    try:
        parts = urlsplit(text)
        return parts.scheme in ("http", "https") and bool(parts.hostname)
    except ValueError:
        return False


def guess_media_type(link: str) -> str | None:
    """By the extension of the path, or as a `data:` URI says."""
    if link[:5].lower() == "data:":
        return _data_type(link[5:].split(",", 1)[0].split(";", 1)[0])
    path = link.partition("#")[0].partition("?")[0].partition("://")[2].partition("/")[2]
    return MEDIA_TYPES.get(path.rpartition("/")[2].rpartition(".")[2].lower())


def read_media_type(value: Any) -> str | None:
    """A media type that tells something: not a mere class like `video`, not `application/octet-stream`."""
    if not isinstance(value, str):
        return None
    plain = value.split(";", 1)[0].strip().lower()
    return plain if MEDIA_TYPE.fullmatch(plain) and plain not in UNINFORMATIVE else None


def decode_data_uri(uri: str) -> tuple[str, bytes]:
    """Media type and bytes (RFC 2397). Unreadable where it is malformed."""
    head, comma, data = uri.partition(",")
    if head[:5].lower() != "data:" or not comma:
        raise Unreadable("this is no data: URI")
    parameters = [part.strip().lower() for part in head[5:].split(";")]
    raw = unquote_to_bytes(data)
    if "base64" in parameters[1:]:
        digits = b"".join(raw.split()).translate(bytes.maketrans(b"-_", b"+/")).rstrip(b"=")
        try:
            raw = base64.b64decode(digits + b"=" * (-len(digits) % 4), validate=True)
        except binascii.Error:
            raise Unreadable("the base64 of this data: URI is malformed") from None
    return _data_type(parameters[0]), raw


def _data_type(text: str) -> str:
    plain = text.strip().lower()
    return plain if MEDIA_TYPE.fullmatch(plain) else "text/plain"


def read_expiry(link: str) -> datetime | None:
    """When a signed link says that it dies (S3 and Google Cloud Storage, CloudFront, Azure)."""
    if "?" not in link:
        return None
    query = {name.lower(): value for name, value in parse_qsl(urlsplit(link).query)}
    for vendor in ("x-amz", "x-goog"):
        start, seconds = query.get(f"{vendor}-date"), read_number(query.get(f"{vendor}-expires"))
        if start is not None and seconds is not None and 0 <= seconds <= MAX_WAIT:
            try:
                return datetime.strptime(start, "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC) + timedelta(seconds=seconds)
            except (ValueError, OverflowError):
                return None
    if "sig" in query and "se" in query:
        return read_time(query["se"])
    expires = read_number(query.get("expires"))
    return None if expires is None or expires < 1e9 else read_time(expires)
