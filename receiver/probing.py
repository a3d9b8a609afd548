"""One question to ourselves from outside in: does what is posted under the public URL arrive here, byte for byte?

The question is 64 KiB of bytes that no text has, with headers like those of signatures. The answer tells what arrived, and who
answers proves to be us by a token that only our secrets make. What differs is a `Fault`: the cause, what was seen, how to mend it.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Awaitable, Callable, Collection, Mapping
from datetime import timedelta
from enum import StrEnum
from urllib.parse import urlsplit

import msgspec

from receiver.errors import NotTaken, ProviderFault
from receiver.model import Answer, Request
from receiver.net import ProviderClient
from receiver.providers.account import Account
from receiver.providers.signatures import split_message
from receiver.providers.spec import Signature
from receiver.tokens import Tokens

PROBED = "receiver-probe"  # the provider's place in the path; no account can have this name's token
SIZE = 64 * 1024
SMALL = b'{"status":"done"}'
TIMEOUT = timedelta(seconds=10)
PROOF = "receiver-probe"  # the header of the answer; its body says it as well, where a proxy lets only known headers back
ASKED = "receiver-probe-headers"  # names the headers whose arrival is asked for
SHOWN = 60  # signs of a header's value
STANDARD = ("webhook-id", "webhook-timestamp", "webhook-signature")
RAISE_LIMIT = "Raise the proxy's limit for bodies to max_body_bytes at least: client_max_body_size in nginx, request_body in Caddy."
MEND = "The address, the tunnel or the proxy in front of the server has to hand /callbacks/… through to it, as it comes."


class Cause(StrEnum):
    """What is wrong with the way from the public URL to us."""

    UNREACHABLE = "unreachable"  # no connection
    SILENT = "silent"  # no answer
    REDIRECTED = "redirected"
    ELSEWHERE = "elsewhere"  # it is not we who answer
    TOO_LARGE = "too_large"
    FILTERED = "filtered"
    REWRITTEN = "rewritten"
    HEADERS = "headers"


class Fault(msgspec.Struct, frozen=True):
    """Why callbacks do not arrive as they were sent. `is_proven`: something of the question arrived here, so the way itself is at fault;
    else it may be that only we cannot get there from inside (no hairpin NAT)."""

    cause: Cause
    detail: str
    mend: str
    is_proven: bool = False


class Echo(msgspec.Struct, frozen=True):
    """What our callback route says of a question."""

    proof: str
    bytes: int
    sha256: str
    headers: dict[str, str]
    ok: bool = True


def make_proof(tokens: Tokens, token: str) -> str:
    """What our own callback route answers to a probe: nobody else can sign it. Unproven for a token that is not ours."""
    return tokens.make(PROBED + ".proof", tokens.check(PROBED, token))


def make_echo(proof: str, headers: Mapping[str, str], body: bytes) -> bytes:
    """The answer of the callback route, as JSON. Only headers that were asked for are told: others may be secrets of proxies."""
    asked = {name.strip().lower() for name in headers.get(ASKED, "").split(",")}
    arrived = {name: value for name, value in headers.items() if name in asked}
    return msgspec.json.encode(Echo(proof, len(body), hashlib.sha256(body).hexdigest(), arrived))


Ask = Callable[[bytes, dict[str, str]], Awaitable["Echo | Fault"]]


async def probe(client: ProviderClient, tokens: Tokens, public_url: str, accounts: Collection[Account], largest_body: int) -> Fault | None:
    """None: all arrives as it is sent."""

    async def ask(body: bytes, headers: dict[str, str]) -> Echo | Fault:
        return await _ask(client, tokens, public_url, body, headers)

    headers, body = make_headers(accounts), make_body(min(SIZE, largest_body))
    answer = await ask(body, headers)
    if isinstance(answer, Echo):
        return _compare(answer, body, headers)
    if answer.cause in {Cause.SILENT, Cause.ELSEWHERE}:
        return await _find_what_stops_it(ask, answer, body, headers)
    return answer


async def _find_what_stops_it(ask: Ask, fault: Fault, body: bytes, headers: dict[str, str]) -> Fault:
    """Whether something smaller or plainer comes through where the question did not."""
    if isinstance(await ask(SMALL, {"content-type": "application/json"}), Fault):
        return fault
    if isinstance(await ask(SMALL, headers), Fault):
        detail = f"A request with the headers of a signed callback does not come through: {fault.detail}"
        mend = "Let the proxy or firewall pass the headers of callbacks, Authorization too, and up to 8 KiB of them."
        return Fault(Cause.HEADERS, detail, mend, is_proven=True)
    if isinstance(await ask(b" " * len(body), headers), Fault):
        return Fault(Cause.TOO_LARGE, f"Small bodies come through, {len(body)} bytes do not: {fault.detail}", RAISE_LIMIT, is_proven=True)
    mend = "Something in front looks into bodies (a firewall, a scanner): let it leave /callbacks/… alone."
    return Fault(Cause.FILTERED, f"Plain bodies come through, one of odd bytes does not: {fault.detail}", mend, is_proven=True)


async def _ask(client: ProviderClient, tokens: Tokens, public_url: str, body: bytes, headers: dict[str, str]) -> Echo | Fault:
    token = tokens.make(PROBED, "sub_" + secrets.token_hex(16))
    url = f"{public_url}/callbacks/{PROBED}/{token}"
    request = Request(method="POST", url=url, headers={**headers, ASKED: ",".join(headers)}, body=body)
    try:
        answer = await client.send(request, timeout=TIMEOUT, max_bytes=SIZE, fresh=True)
    except ProviderFault as error:
        cause = Cause.UNREACHABLE if isinstance(error, NotTaken) else Cause.SILENT
        detail = str(error).replace(f"/callbacks/{PROBED}/{token}", "")
        return Fault(cause, f"{detail[:1].upper()}{detail[1:]}.", f"Does the server run, and does the name lead to it? {MEND}")
    return _read(answer, tokens, token, public_url)


def _read(answer: Answer, tokens: Tokens, token: str, public_url: str) -> Echo | Fault:
    proof = make_proof(tokens, token)
    try:
        echo = msgspec.json.decode(answer.body, type=Echo)
    except (msgspec.MsgspecError, UnicodeError):
        if answer.headers.get(PROOF) != proof:
            return explain(public_url, answer)
        mend = "Update the server, if it is older; else let the proxy leave answers alone."
        return Fault(Cause.REWRITTEN, "The server answers, and what it says of the body does not come back.", mend, is_proven=True)
    return echo if proof in (echo.proof, answer.headers.get(PROOF)) else explain(public_url, answer)


def explain(public_url: str, answer: Answer) -> Fault:
    """What stands there, where the answer is not ours."""
    status = answer.status
    if 300 <= status < 400:
        where = urlsplit(answer.headers.get("location", ""))._replace(query="", fragment="").geturl().partition("/callbacks/")[0]
        detail = f"{public_url} redirects ({status}) to {where[:200] or 'nowhere'}, and providers do not follow."
        return Fault(Cause.REDIRECTED, detail, "Set public_url to the address that it ends at, or let the proxy hand /callbacks/… through.")
    detail = f"{public_url} leads to something else: it answered {status} without the server's proof."
    return Fault(Cause.ELSEWHERE, detail, HINTS.get(status, MEND))


HINTS = {
    401: "Another Receiver answers, with other server.secrets, or a sign-in stands in front: let /callbacks/… pass without it.",
    403: "A firewall or a sign-in stands in front: let /callbacks/… pass without it.",
    404: "Let the proxy hand /callbacks/… through to the server; where public_url has a path, with it or without.",
    405: "Let the proxy hand POST through to the server.",
    413: RAISE_LIMIT,
    **dict.fromkeys((502, 503, 504), "The proxy does not reach the server: does it run, and at the host and port that the proxy names?"),
}


def _compare(echo: Echo, body: bytes, headers: Mapping[str, str]) -> Fault | None:
    if echo.bytes != len(body) or echo.sha256 != hashlib.sha256(body).hexdigest():
        seen = f"{echo.bytes} bytes arrive of {len(body)}" if echo.bytes != len(body) else "as many bytes arrive, and they are others"
        mend = "No signature can be checked over such a body. Turn off what changes it in the proxy: line ends, character sets, scanning."
        return Fault(Cause.REWRITTEN, f"Bodies are changed on the way: {seen}.", mend, is_proven=True)
    told = compare_headers(echo.headers, headers) if echo.headers else [f"{ASKED} does not arrive"]
    if not told:
        return None
    mend = "A signature cannot be checked without them. Let the proxy pass all headers as they come."
    return Fault(Cause.HEADERS, f"Headers are changed on the way: {'; '.join(told)}.", mend, is_proven=True)


def compare_headers(arrived: Mapping[str, str], sent: Mapping[str, str]) -> list[str]:
    """What became of those that did not arrive as they were sent."""
    lost = [f"{name} does not arrive" for name in sorted(sent) if name not in arrived]
    changed = [name for name in sorted(sent) if name in arrived and arrived[name] != sent[name]]
    return lost + [f"{name} arrives as {arrived[name][:SHOWN]!r} in place of {sent[name][:SHOWN]!r}" for name in changed]


# What is sent


def make_body(size: int) -> bytes:
    """Every byte there is, line ends of all kinds, no text in any encoding; and what does not compress, so that nothing shrinks it."""
    odd = b'{"odd":"\r\n\n\r\x00\x00\xc3\x28\xed\xa0\x80\xff\xfe' + bytes(range(256)) + b"%00&amp;<script>\t  \r\n"
    rest = hashlib.shake_256(odd).digest(max(size - len(odd) - 4, 0))
    return (odd + rest + b" \r\n\x00")[:size]


def make_headers(accounts: Collection[Account]) -> dict[str, str]:
    """Those that signatures are read from, with values that only a faithful proxy leaves alone."""
    names = {*STANDARD, *(name for account in accounts for name in names_of(account))}
    values = {name: f"v1,{name}=\"aB+/=; q=0.5\", (c) {{d}}, 'e'" for name in sorted(names)}
    long = {"receiver-probe-long": "".join(f"{number:x}." for number in range(600))}
    given = {"authorization": "Basic cmVjZWl2ZXI6cHJvYmU="} if "authorization" in values else {}
    return {"content-type": 'application/octet-stream; odd="yes, A"', **values, **long, **given}


def names_of(account: Account) -> set[str]:
    """The headers that callbacks of this account need to have."""
    callback, signature = account.spec.table.callback, account.signature
    kept = set() if callback is None else set(callback.kept_headers)
    return {name.lower() for name in kept | (set() if signature is None else headers_of(signature)) if name}


def headers_of(signature: Signature) -> set[str]:
    variables = split_message(signature.message)[1::2]
    signed = {name.partition(":")[2] for name in variables if name.startswith("header:")}
    basic = "authorization" if signature.scheme == "basic" else ""
    return signed | {signature.header or basic, signature.id_header or "", signature.timestamp_header or ""}
