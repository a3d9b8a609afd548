"""What every page for people shares: templates and their filters, links, forms, headers, errors as pages."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Awaitable, Callable, Iterable, Mapping
from datetime import UTC, datetime, timedelta
from functools import lru_cache, wraps
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, quote, urlencode, urlsplit

import msgspec
from jinja2 import Environment, PackageLoader, StrictUndefined
from starlette.requests import Request
from starlette.responses import Response

from receiver import __version__
from receiver.errors import Invalid, ReceiverError
from receiver.web.bodies import read_body
from receiver.web.keyring import caller_of
from receiver.web.operations import Answer, Endpoint, Operation, services_of
from receiver.web.paths import root_of
from receiver.web.problems import problem_of
from receiver.web.query import MAX_TEXT, Query, split_query

GROUP = "Pages"
STATIC = Path(__file__).parent / "static"
MEDIA_TYPES = {".js": "text/javascript", ".css": "text/css", ".html": "text/html", ".svg": "image/svg+xml"}
MEDIA_HEADER = "Page-Media"
MAX_FORM = 2 * 1024 * 1024
ORIGIN = re.compile(r"https?://[a-z0-9]([a-z0-9.-]*[a-z0-9])?(:[0-9]{1,5})?")
IN_A_LINK = "/?&=%#:~+,@!$'()*;"
Form = Mapping[str, str]
Action = Callable[[Request, Form], Awaitable[str]]
"""What a button does; answers with the path to go on to."""


# Files


@lru_cache(maxsize=1)
def static_files() -> dict[str, bytes]:
    """By name: the files of the folder and of `vendor` in it. A name that is not here is not looked for on the disk."""
    return {path.name: path.read_bytes() for path in (*STATIC.iterdir(), *(STATIC / "vendor").iterdir()) if path.suffix in MEDIA_TYPES}


@lru_cache(maxsize=1)
def static_marks() -> dict[str, str]:
    """What a link to a file carries, so that a browser may keep the file for ever."""
    return {name: hashlib.sha256(content).hexdigest()[:12] for name, content in static_files().items()}


@lru_cache(maxsize=1)
def templates() -> Environment:
    environment = Environment(
        loader=PackageLoader("receiver.web"), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {
        "iso": lambda at: at.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
        "parsed": datetime.fromisoformat,
        "clock": lambda at: at.astimezone(UTC).strftime("%-d %b %Y, %H:%M:%S UTC"),
        "span": show_span,
        "bytes": show_bytes,
        "number": lambda count: f"{count:,}".replace(",", "\u202f"),
        "money": lambda amount: f"{amount.normalize():,f}".replace(",", "\u202f"),
        "json": show_json,
        "encoded": lambda value: msgspec.json.encode(value).decode(),
        "path": lambda text: quote(text, safe=""),
        "query": lambda given: urlencode([(key, value) for key, value in given.items() if value]),
        "short": lambda name: f"{name[:4]}…{name[-8:]}" if re.fullmatch("[a-z]{3}_[0-9a-f]{32}", name) else name,
    }
    environment.globals |= {"version": __version__, "static": lambda name: f"static/{name}?v={static_marks()[name]}"}
    return environment


def prepare() -> None:
    """Read the files and compile the templates now, so that the first person to look need not wait for it."""
    static_marks()
    for name in templates().list_templates(extensions=["html"]):
        templates().get_template(name)


# Values for people


def show_span(span: timedelta | float | None) -> str:
    """A duration with the precision that a person wants."""
    if span is None:
        return "–"
    seconds = span.total_seconds() if isinstance(span, timedelta) else span
    if seconds < 1:
        return f"{max(seconds, 0) * 1000:.0f} ms"
    if seconds < 59.95:
        return f"{seconds:.1f}".removesuffix(".0") + " s"
    whole = round(seconds)
    for size, unit, below, small in ((86_400, "d", 3_600, "h"), (3_600, "h", 60, "min"), (60, "min", 1, "s")):
        if whole >= size:
            rest = whole % size // below
            return f"{whole // size} {unit} {rest} {small}" if rest else f"{whole // size} {unit}"
    return f"{whole} s"


def show_bytes(count: int) -> str:
    size = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024 or unit == "GiB":
            break
        size /= 1024
    return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"


def show_json(value: Any) -> str:
    """Indented. Bytes are shown as JSON if they are JSON, else as the text that they are."""
    if isinstance(value, bytes):
        try:
            return msgspec.json.format(value, indent=2).decode()
        except (msgspec.DecodeError, UnicodeError, RecursionError):
            return value.decode(errors="replace")
    return msgspec.json.format(msgspec.json.encode(value), indent=2).decode()


# Answers


def media_of(origins: Iterable[str]) -> str:
    """From where a page may show media, as a policy says it."""
    return " ".join(["'self'", *sorted({origin for origin in origins if ORIGIN.fullmatch(origin)})])


def page_headers(media: str = "'self'") -> dict[str, str]:
    policy = (
        f"default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src {media}; media-src {media}; "
        "base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
    )
    # The origin is sent to ourselves, so that browsers without Sec-Fetch-Site can prove where a form stood.
    return {"Content-Security-Policy": policy, "Referrer-Policy": "same-origin"}


def origin_of(url: str) -> str:
    try:
        parts = urlsplit(url)
    except ValueError:
        return ""
    return f"{parts.scheme}://{parts.netloc.lower()}"


def show(request: Request, name: str, status: int = 200, origins: Iterable[str] = (), **values: Any) -> Response:
    """A page made of a template."""
    query: bytes = request.scope["query_string"]
    path: str = request.scope["path"].removeprefix(request.scope.get("root_path", ""))
    root, media = root_of(request.scope), media_of(origins)
    shown_on = request.headers.get(MEDIA_HEADER, media)  # an open page asks for itself again, under the policy that it came with
    if not set(media.split()) <= set(shown_on.split()):
        return Response(headers={"HX-Refresh": "true"})
    here = root + path.lstrip("/") + ("?" + query.decode("ascii", "replace") if query else "")
    text = (
        templates()
        .get_template(name)
        .render(
            root=root,
            here=here,
            section=path.split("/")[1],
            is_session=getattr(request.state, "is_session", False),
            now=services_of(request).clock.now(),
            beat=getattr(request.state, "beat", 0),
            scopes=caller_of(request.scope).scopes,
            asks_with={MEDIA_HEADER: shown_on},
            **{"is_bare": path == "/sign-in", **values},
        )
    )
    return Response(text, status, headers=page_headers(media), media_type="text/html")


def go_to(request: Request, path: str) -> Response:
    """On to another page, by GET."""
    return Response(status_code=303, headers={"Location": root_of(request.scope) + quote(path.lstrip("/"), safe=IN_A_LINK)})


def show_error(request: Request, error: ReceiverError) -> Response:
    """What went wrong, as a page with the status that the API would answer with."""
    told, message, details = problem_of(error), str(error), list[str]()
    if isinstance(error, Invalid):
        places = [(each.get("pointer") or each.get("parameter") or "").lstrip("/") for each in error.errors]
        message, *details = [f"{place} {each['detail']}".strip() for place, each in zip(places, error.errors, strict=True)]
    response = show(request, "error.html", told.status_code, message=message, details=details)
    if "retry-after" in told.headers:
        response.headers["Retry-After"] = told.headers["retry-after"]
    return response


# Routes


def page(path: str, endpoint: Endpoint, summary: str) -> Operation:
    """A page to look at. Its query string is read by itself, mildly: a form sends its empty fields too."""

    @wraps(endpoint)
    async def serve(request: Request, query: Query) -> Response:
        request.state.beat = services_of(request).pulse.beat  # what changes from here on is told to the page
        try:
            return await endpoint(request, query)
        except ReceiverError as error:
            return show_error(request, error)

    return Operation("GET", path, serve, GROUP, summary, (Answer(200, "A page.", str, "text/html"),), None)


def button(path: str, action: Action, summary: str) -> Operation:
    """What a form of a page does; works without JavaScript."""

    @wraps(action)
    async def serve(request: Request, query: Query) -> Response:
        try:
            return go_to(request, await action(request, await read_form(request)))
        except ReceiverError as error:
            return show_error(request, error)

    return Operation("POST", path, serve, GROUP, summary, (Answer(303, "Done: look there."),), None)


async def read_form(request: Request) -> Form:
    """The fields of a form that was sent, without the empty ones."""
    body = await read_body(request, MAX_FORM)
    try:
        pairs = parse_qsl(body.decode("ascii"), errors="strict", max_num_fields=100)
    except ValueError:
        raise Invalid([{"pointer": "", "detail": "this is no form of ours"}]) from None
    return dict(pairs)


def read_fields(request: Request) -> Form:
    """The parameters of a page's address, without the empty ones."""
    pairs = {name: text.strip() for name, text in split_query(request.scope["query_string"])}
    for name, text in pairs.items():
        if len(text) > MAX_TEXT or "\0" in text:
            raise Invalid([{"parameter": name, "detail": f"is not a text of up to {MAX_TEXT} characters without NUL"}])
    return {name: text for name, text in pairs.items() if text}
