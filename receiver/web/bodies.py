"""JSON bodies: read within bounds and checked against a struct, with every mistake named by a JSON Pointer."""

from __future__ import annotations

import asyncio
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

import msgspec
from starlette.requests import Request

from receiver.errors import BodyOverLimit, Invalid, Overloaded

MAX_BODY = 4 * 1024 * 1024  # 1 MiB of input takes three where each character beyond ASCII is escaped, as Python does by default
MAX_DEPTH = 64
BODY_TIMEOUT = 30.0  # seconds for a body to arrive
T = TypeVar("T", bound=msgspec.Struct)


async def read_body(request: Request, limit: int = MAX_BODY) -> bytes:
    """The body; BodyOverLimit as soon as it is known to be over the limit."""
    announced = request.headers.get("content-length", "0")
    if announced.isdecimal() and len(announced) < 20 and int(announced) > limit:
        raise BodyOverLimit(f"The body is over {limit} bytes.")
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_TIMEOUT):
            async for chunk in request.stream():
                body += chunk
                if len(body) > limit:
                    raise BodyOverLimit(f"The body is over {limit} bytes.")
    except TimeoutError:
        raise Overloaded("The body did not arrive in time; send it again.") from None
    return bytes(body)


async def read_json(request: Request) -> Any:
    """The parsed body; Invalid for whatever is no JSON, or JSON that cannot be kept and sent on as it is."""
    return parse_json(await read_body(request))


def parse_json(text: bytes | str, pointer: str = "") -> Any:
    """JSON that can be kept and sent on as it is; Invalid for all else. The pointer leads to it where it is but a part of what was sent."""
    what = "" if pointer else "the body "
    too_deep = Invalid([{"pointer": pointer, "detail": f"{what}is nested more than {MAX_DEPTH} levels deep"}])
    try:
        document = msgspec.json.decode(text)
        # What can be read can not always be written again (a lone surrogate, half a million nested lists).
        msgspec.json.encode(document)
    except (msgspec.MsgspecError, UnicodeError, OverflowError) as error:
        raise Invalid([{"pointer": pointer, "detail": f"{what}is not JSON: {error}"}]) from None
    except RecursionError:
        raise too_deep from None
    if depth_of(document) > MAX_DEPTH:
        raise too_deep
    return document


def depth_of(document: Any) -> int:
    """How many levels of lists and objects there are, counted only a little beyond the limit."""
    depth, level = 0, [document]
    while level and depth <= MAX_DEPTH:
        level = [child for each in level for child in children_of(each)]
        depth += 1
    return depth


def children_of(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return list(value.values())
    return value if isinstance(value, list) else []


def read_struct(kind: type[T], document: Any) -> tuple[dict[str, Any], list[dict[str, str]]]:
    """The values of the fields that are right, and the errors of the others."""
    if not isinstance(document, dict):
        raise Invalid([{"pointer": "", "detail": "the body is not a JSON object"}])
    hints = get_type_hints(kind, include_extras=True)
    values: dict[str, Any] = {}
    errors = [
        {"pointer": pointer_to(name), "detail": f"there is no such field here; there are: {', '.join(hints)}"}
        for name in document
        if name not in hints
    ]
    for field in msgspec.structs.fields(kind):
        if field.encode_name not in document:
            if field.required:
                errors.append({"pointer": pointer_to(field.name), "detail": "is missing"})
            values[field.name] = None if field.required else field.default
            continue
        values[field.name] = None
        found = mistakes_in(document[field.name], hints[field.name], pointer_to(field.name))
        if found:
            errors += found
        else:
            values[field.name] = msgspec.convert(document[field.name], hints[field.name])
    return values, errors


def parse_struct(kind: type[T], document: Any) -> T:
    """The document as a struct, or Invalid with all that is wrong."""
    values, errors = read_struct(kind, document)
    if errors:
        raise Invalid(errors)
    return kind(**values)


def mistakes_in(value: Any, kind: Any, pointer: str) -> list[dict[str, str]]:
    """What is wrong with a value; of an object with wrong entries, each entry."""
    error = mistake_of(value, kind)
    if error is None:
        return []
    if isinstance(value, dict):
        entries = [(key, mistake_of({key: value[key]}, kind)) for key in value]
        wrong = [{"pointer": pointer + pointer_to(key), "detail": detail} for key, detail in entries if detail]
        if wrong:
            return wrong
    return [{"pointer": pointer, "detail": error}]


def mistake_of(value: Any, kind: Any) -> str | None:
    try:
        msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        detail = str(error).partition(" - at ")[0].replace("`", "") + choices_of(kind)
        return detail[:1].lower() + detail[1:]
    return None


def choices_of(kind: Any) -> str:
    """`; one of …` for a field that takes one of a few words."""
    words = [word for part in (kind, *get_args(kind)) if get_origin(part) is Literal for word in get_args(part)]
    return f"; it is one of {', '.join(map(str, words))}" if words else ""


def pointer_to(name: str) -> str:
    """A JSON Pointer (RFC 6901) to a member."""
    return "/" + name.replace("~", "~0").replace("/", "~1")
