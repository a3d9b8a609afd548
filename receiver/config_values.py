"""What a single value of the configuration may be: each function gives the value, or a ValueError that says what would be right."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from datetime import timedelta
from fnmatch import fnmatchcase
from ipaddress import IPv6Address, ip_address, ip_network
from pathlib import Path
from typing import Any, Literal
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

from receiver.units import format_duration, format_size, parse_duration, parse_rate, parse_size

NAME_HELP = 'must be a name of small letters, digits, "-" and "_" that begins with a letter or digit'
LARGEST_BODY = 64 * 1024 * 1024
MOST = 10_000  # of anything that is counted
MOST_MONEY = 1_000_000_000

_NAME = re.compile(r"[a-z0-9][a-z0-9_-]*")
_HOST = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]*[A-Za-z0-9_.])?")
_AUTHORITY = re.compile(r"(\[[^\[\]@]*\]|[^:@\[\]]*)(?::([0-9]{1,5}))?")
_HEADER_VALUE = re.compile(r"[\x21-\x7e](?:[\x20-\x7e]*[\x21-\x7e])?")


def text(value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError("must be a text" if not isinstance(value, str) else "must not be empty; leave the key out")
    return str(value)


def name(value: Any) -> str:
    if not isinstance(value, str) or not _NAME.fullmatch(value):
        raise ValueError(NAME_HELP)
    return str(value)


def key(value: Any) -> str:
    """A key that travels in a header."""
    if not _HEADER_VALUE.fullmatch(text(value)):
        raise ValueError("must be printable ASCII without spaces around it")
    return str(value)


def token(value: Any) -> str:
    """A key that callers send as `Bearer KEY`."""
    if " " in key(value):
        raise ValueError("must be printable ASCII without spaces")
    return str(value)


def switch(value: Any) -> bool:
    """A variable can only hold text, so `true` and `false` may come from one."""
    if isinstance(value, bool):
        return value
    if hasattr(value, "parts") and value in ("true", "false"):
        return bool(value == "true")
    raise ValueError("must be true or false")


def whole(least: int, most: int = MOST) -> Callable[[Any], int]:
    """A whole number in this range; digits that came from a variable count as one."""

    def parse(value: Any) -> int:
        if hasattr(value, "parts") and re.fullmatch(r"[0-9]{1,9}", value):
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise ValueError(f"must be a whole number from {least} to {most}")
        return value

    return parse


def amount(value: Any) -> float:
    """Of money or credits; digits that came from a variable count as a number."""
    if hasattr(value, "parts") and re.fullmatch(r"[0-9]{1,12}(\.[0-9]{1,6})?", value):
        value = float(value)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= MOST_MONEY:
        raise ValueError(f"must be a number from 0 to {MOST_MONEY}")
    return float(value)


def duration(least: timedelta = timedelta(seconds=0.1)) -> Callable[[Any], timedelta]:
    def parse(value: Any) -> timedelta:
        found = parse_duration(value)
        if found < least:
            raise ValueError(f"must be at least {format_duration(least)}")
        return found

    return parse


deadline = duration(timedelta(seconds=1))


def overdue(value: Any) -> timedelta | Literal["auto"]:
    if value == "auto":
        return "auto"
    try:
        parse_duration(value)
    except ValueError as error:
        raise ValueError(str(error).replace("must be", 'must be "auto" or', 1)) from None
    return duration()(value)


def body_size(value: Any) -> int:
    size = parse_size(value)
    if not 0 < size <= LARGEST_BODY:
        raise ValueError(f"must be a size from 1 byte to {format_size(LARGEST_BODY)}")
    return size


rate = parse_rate


def glob(known: Sequence[str]) -> Callable[[Any], str]:
    """A text with `*`, `?` and `[…]`; where the values are known it has to match one of them."""

    def parse(value: Any) -> str:
        found = text(value)
        if known and not any(fnmatchcase(word, found) for word in known):
            raise ValueError(f"must match one of {', '.join(known)}")
        return found

    return parse


def network(value: Any) -> str:
    """A CIDR or a single address."""
    help_text = 'must be a CIDR such as "10.0.0.0/8" or "fd00::/8"'
    if not isinstance(value, str):
        raise ValueError(help_text)
    try:
        return str(ip_network(value))
    except ValueError:
        pass
    try:
        wider = ip_network(value, strict=False)
    except ValueError:
        raise ValueError(help_text) from None
    raise ValueError(f'must be a CIDR without host bits, such as "{wider}"')


def host(value: Any) -> str:
    found = text(value)
    bare = found[1:-1] if found.startswith("[") and found.endswith("]") else found
    try:
        ip_address(bare)
        return bare
    except ValueError:
        pass
    if not _HOST.fullmatch(found):
        raise ValueError('must be an address or a host name without port and scheme, such as "127.0.0.1" or "0.0.0.0"')
    return found


def public_url(value: Any) -> str:
    """Without a slash at its end, so that paths can be put behind it."""
    return _web_url(value, 'must be a URL such as "https://hooks.example.com"')


def base_url(value: Any) -> str:
    return _web_url(value, 'must be a URL such as "https://api.example.com"')


def store_url(folder: Path) -> Callable[[Any], str]:
    """A SQLite path becomes absolute; a PostgreSQL address is left as it is."""

    def parse(value: Any) -> str:
        found = text(value)
        if is_postgres(found):
            return _postgres_url(found)
        if not found.startswith("sqlite:"):
            raise ValueError('must be "sqlite:///receiver.db" or "postgresql://user@host/db"')
        path = found.removeprefix("sqlite:///")
        if path == found or not path.strip("/") or path.endswith("/") or path == ":memory:":
            raise ValueError('must name a file: "sqlite:///receiver.db" beside this file, or "sqlite:////var/lib/receiver.db"')
        if any(sign in path for sign in "?#\0"):
            raise ValueError('must be a plain path after "sqlite:///", without "?" and "#"')
        return f"sqlite:///{absolute(folder, path)}"

    return parse


def listen_url(value: Any) -> str:
    if value == "":
        return ""
    found = text(value)
    if not is_postgres(found):
        raise ValueError('must be a direct connection such as "postgresql://user@host/db", or empty')
    return _postgres_url(found)


def path_below(folder: Path) -> Callable[[Any], Path]:
    """A folder that is there, absolute."""

    def parse(value: Any) -> Path:
        found = Path(absolute(folder, text(value)))
        try:
            is_folder = found.is_dir()
        except ValueError:  # a NUL in it
            is_folder = False
        if not is_folder:
            raise ValueError(f"must be a folder that exists (looked for {found})")
        return found

    return parse


def absolute(folder: Path, path: str) -> str:
    return os.path.abspath(folder / path)


def is_postgres(url: str) -> bool:
    return url.startswith(("postgresql://", "postgres://"))


def is_loopback(found: str) -> bool:
    """Only programs on this machine reach this host."""
    if found.lower().rstrip(".") == "localhost" or found.lower().rstrip(".").endswith(".localhost"):
        return True
    try:
        address = ip_address(found)
    except ValueError:
        return False
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped.is_loopback
    return address.is_loopback


def passwords_of(url: str) -> tuple[str, ...]:
    """The password in an address of a database, as written and as meant."""
    if not is_postgres(url):
        return ()
    parts = urlsplit(url)
    written = [parts.password or "", *(value for field, value in parse_qsl(parts.query) if field in ("password", "sslpassword"))]
    return tuple(dict.fromkeys(form for password in written if password for form in (password, unquote(password))))


def _web_url(value: Any, help_text: str) -> str:
    found = text(value)
    parts = _split(found, help_text)
    if "?" in found or "#" in found or "@" in parts.netloc:
        raise ValueError(f"{help_text}, without user, query and fragment")
    authority = _AUTHORITY.fullmatch(parts.netloc)
    if parts.scheme not in ("http", "https") or authority is None or not _is_host(authority[1]) or not _is_port(authority[2]):
        raise ValueError(help_text)
    return f"{parts.scheme}://{parts.netloc.lower()}{parts.path.rstrip('/')}"


def _postgres_url(found: str) -> str:
    """Several hosts are allowed, with commas between them; none means the socket."""
    help_text = 'must be an address such as "postgresql://user@host/db"; in a password write "%2F" for "/" and "%40" for "@"'
    for one in _split(found, help_text).netloc.rpartition("@")[2].split(","):
        authority = _AUTHORITY.fullmatch(one)
        if authority is None or not _is_port(authority[2]):
            raise ValueError(help_text)
    return found


def _split(found: str, help_text: str) -> SplitResult:
    if "\\" in found or not found.isascii() or any(sign.isspace() or not sign.isprintable() for sign in found):
        raise ValueError(f"{help_text}, in ASCII without spaces")
    try:
        return urlsplit(found)
    except ValueError:
        raise ValueError(help_text) from None


def _is_host(found: str) -> bool:
    if not found.startswith("["):
        return _HOST.fullmatch(found) is not None
    try:
        return ip_address(found[1:-1]).version == 6
    except ValueError:
        return False


def _is_port(found: str | None) -> bool:
    return found is None or 0 < int(found) <= 65_535
