"""The way from the public URL to us, through real proxies on loopback that each do one thing wrong."""

import asyncio
import re
from dataclasses import dataclass, replace
from urllib.parse import urlsplit

import pytest

from receiver.app import check
from receiver.config import load
from receiver.net import ProviderClient
from receiver.probing import SIZE, Cause, make_body, make_headers, probe
from receiver.providers.account import Account
from receiver.simulator.serving import serve_app
from receiver.tokens import Tokens
from tests.loopback import Seen, free_port, reset, response, serve
from tests.web.opened import open_web

LARGEST = 1024 * 1024


@dataclass
class Way:
    """Our server, and a proxy in front of it that `talk` makes."""

    upstream: str
    tokens: Tokens

    async def hand_on(self, seen: Seen) -> bytes:
        """What the server answers to this request."""
        parts = urlsplit(self.upstream)
        reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
        headers = {**seen.headers, "content-length": str(len(seen.body)), "connection": "close"}
        head = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        writer.write(f"{seen.method} {seen.target} HTTP/1.1\r\n{head}\r\n".encode("latin-1") + seen.body)
        try:
            return await reader.read()
        finally:
            writer.close()

    async def ask(self, change, accounts=(), largest=LARGEST):
        """What a probe finds where the proxy hands on what `change` makes of a request, or answers with the bytes that it gives."""

        async def talk(seen, writer):
            changed = change(seen)
            writer.write(changed if isinstance(changed, bytes) else await self.hand_on(changed))

        return await self.meet(talk, accounts, largest)

    async def meet(self, talk, accounts=(), largest=LARGEST):
        async with serve(talk) as proxy:
            return await self.find(proxy.url, accounts, largest)

    async def find(self, url, accounts=(), largest=LARGEST):
        client = ProviderClient()
        try:
            return await probe(client, self.tokens, url, accounts, largest)
        finally:
            await client.close()


@pytest.fixture
async def way(tmp_path):
    async with open_web(tmp_path) as web, serve_app(web.app) as url:
        yield Way(url, web.tokens)


def without(seen: Seen, *names: str) -> Seen:
    return replace(seen, headers={name: value for name, value in seen.headers.items() if name not in names})


def with_body(seen: Seen, body: bytes) -> Seen:
    return replace(seen, body=body)


def with_header(seen: Seen, name: str, value: str) -> Seen:
    return replace(seen, headers={**seen.headers, name: value})


def only_known(seen: Seen) -> Seen:
    known = {"host", "content-type", "content-length", "user-agent", "connection", "receiver-probe-headers"}
    return without(seen, *(seen.headers.keys() - known))


def renamed(seen: Seen) -> Seen:
    return replace(seen, headers={name.replace("webhook-", "x-webhook-"): value for name, value in seen.headers.items()})


def limited(seen: Seen) -> Seen | bytes:
    return seen if len(seen.body) < 16_000 else response(413)


def firewall(seen: Seen) -> Seen | bytes:
    return response(403) if b"<script>" in seen.body else seen


def small_heads(seen: Seen) -> Seen | bytes:
    return response(431) if sum(map(len, seen.headers.values())) > 1_500 else seen


def utf8(body: bytes) -> bytes:
    return body.decode("utf-8", "replace").encode()


async def test_a_faithful_proxy_is_well(way):
    assert await way.ask(lambda seen: with_header(seen, "x-forwarded-for", "203.0.113.9")) is None


async def test_without_a_proxy_all_is_well(way):
    assert await way.find(way.upstream) is None


PROXIES = {
    "line ends": (lambda seen: with_body(seen, seen.body.replace(b"\r\n", b"\n")), Cause.REWRITTEN, "bytes arrive of 65536"),
    "zero bytes": (lambda seen: with_body(seen, seen.body.replace(b"\0", b"")), Cause.REWRITTEN, "bytes arrive of 65536"),
    "character set": (lambda seen: with_body(seen, utf8(seen.body)), Cause.REWRITTEN, "bytes arrive of 65536"),
    "seven bits": (lambda seen: with_body(seen, bytes(byte & 127 for byte in seen.body)), Cause.REWRITTEN, "as many bytes arrive"),
    "trimmed": (lambda seen: with_body(seen, seen.body.strip(b" \r\n\0")), Cause.REWRITTEN, "bytes arrive of 65536"),
    "cut off": (lambda seen: with_body(seen, seen.body[:8192]), Cause.REWRITTEN, "8192 bytes arrive of 65536"),
    "no body": (lambda seen: with_body(seen, b""), Cause.REWRITTEN, "0 bytes arrive of 65536"),
    "strips a header": (lambda seen: without(seen, "webhook-signature"), Cause.HEADERS, "webhook-signature does not arrive"),
    "strips unknown headers": (only_known, Cause.HEADERS, "webhook-id does not arrive"),
    "strips what asks": (lambda seen: without(seen, "receiver-probe-headers"), Cause.HEADERS, "receiver-probe-headers does not arrive"),
    "renames headers": (renamed, Cause.HEADERS, "webhook-timestamp does not arrive"),
    "sets the type": (lambda seen: with_header(seen, "content-type", "text/plain"), Cause.HEADERS, "content-type arrives as 'text/plain'"),
    "short heads": (small_heads, Cause.HEADERS, "it answered 431"),
    "limits bodies": (limited, Cause.TOO_LARGE, "65536 bytes do not"),
    "looks into bodies": (firewall, Cause.FILTERED, "it answered 403"),
    "redirects": (
        lambda seen: response(308, location=f"https://other.example{seen.target}?a=b"),
        Cause.REDIRECTED,
        "https://other.example,",
    ),
    "loses the location": (lambda seen: response(301), Cause.REDIRECTED, "to nowhere"),
    "asks for a sign-in": (lambda seen: response(401), Cause.ELSEWHERE, "it answered 401"),
    "knows no such path": (lambda seen: response(404), Cause.ELSEWHERE, "it answered 404"),
    "takes no POST": (lambda seen: response(405), Cause.ELSEWHERE, "it answered 405"),
    "does not reach us": (lambda seen: response(502), Cause.ELSEWHERE, "it answered 502"),
    "is another site": (lambda seen: response(200, b"<h1>It works!</h1>"), Cause.ELSEWHERE, "it answered 200"),
    "is an echo": (lambda seen: response(200, seen.body, receiver_probe=seen.target.rpartition("/")[2]), Cause.ELSEWHERE, "answered 200"),
}


@pytest.mark.parametrize("name", PROXIES)
async def test_a_proxy_that_misbehaves_in_one_way_is_found_out(way, name):
    change, cause, words = PROXIES[name]
    fault = await way.ask(change)
    assert fault is not None
    assert (fault.cause, fault.is_proven) == (cause, cause not in {Cause.REDIRECTED, Cause.ELSEWHERE})
    assert words in fault.detail
    assert fault.mend.endswith((".", "?"))
    assert not re.search(r"[0-9a-f]{32}", fault.detail), "a token is shown"


def test_every_cause_has_its_proxy():
    assert {cause for _, cause, _ in PROXIES.values()} | {Cause.UNREACHABLE, Cause.SILENT} == set(Cause)


async def test_an_answer_that_is_changed_on_the_way_back_is_no_other_site(way):
    async def talk(seen, writer):
        head, _, body = (await way.hand_on(seen)).partition(b"\r\n\r\n")
        writer.write(head + b"\r\n\r\n" + body[:-3] + b"   ")

    fault = await way.meet(talk)
    assert (fault.cause, fault.is_proven) == (Cause.REWRITTEN, True)
    assert "does not come back" in fault.detail


async def test_a_proxy_that_lets_no_header_of_ours_back_is_well(way):
    async def talk(seen, writer):
        writer.write(re.sub(rb"receiver-probe: [^\r]*\r\n", b"", await way.hand_on(seen), flags=re.IGNORECASE))

    assert await way.meet(talk) is None


async def test_a_proxy_that_breaks_the_connection_over_a_large_body_limits_it(way):
    async def talk(seen, writer):
        if len(seen.body) > 16_000:
            await reset(seen, writer)
        else:
            writer.write(await way.hand_on(seen))

    fault = await way.meet(talk)
    assert (fault.cause, fault.is_proven) == (Cause.TOO_LARGE, True)


async def test_one_that_never_answers_is_silent(way):
    fault = await way.meet(reset)
    assert (fault.cause, fault.is_proven) == (Cause.SILENT, False)


async def test_where_nobody_listens_it_is_unreachable(way):
    fault = await way.find(f"http://127.0.0.1:{free_port()}")
    assert (fault.cause, fault.is_proven) == (Cause.UNREACHABLE, False)
    assert "/callbacks/" not in fault.detail


async def test_another_receiver_with_other_secrets_is_not_us(way):
    fault = await replace(way, tokens=Tokens(["another secret altogether"])).find(way.upstream)
    assert (fault.cause, "server.secrets" in fault.mend) == (Cause.ELSEWHERE, True)


async def test_no_more_is_asked_than_we_ourselves_take(tmp_path):
    async with open_web(tmp_path, 'max_body_bytes = "8KiB"') as web, serve_app(web.app) as url:
        assert await Way(url, web.tokens).find(url, largest=8 * 1024) is None


async def test_headers_that_an_account_is_proven_by_have_to_arrive(way, tmp_path):
    spec = tmp_path / "providers" / "acme.toml"
    spec.parent.mkdir()
    spec.write_text(ACME)
    config = load('[server]\nprovider_specs = ["providers"]\n[providers.acme]\ncallback_secrets = ["who:knows"]', {}, folder=tmp_path)
    accounts: list[Account] = list(check(config).accounts.values())
    assert {"authorization", "x-acme-event"} <= make_headers(accounts).keys()
    assert await way.ask(lambda seen: seen, accounts) is None
    fault = await way.ask(lambda seen: without(seen, "authorization"), accounts)
    assert (fault.cause, "authorization does not arrive" in fault.detail) == (Cause.HEADERS, True)


ACME = """
base_url = "https://api.acme.example"
[operations.default]
media = ["image"]
[operations.default.submit]
path = "/generate"
callback = {body = "webhook"}
[poll]
path = "/generations/{id}"
[callback]
kept_headers = ["X-Acme-Event"]
[callback.signature]
scheme = "basic"
[status]
queued = ["pending"]
processing = ["running"]
succeeded = ["done"]
failed = ["error"]
[read]
id = "id"
status = "state"
"""


def test_the_body_holds_every_byte_and_is_no_text():
    body = make_body(SIZE)
    assert (len(body), set(body)) == (SIZE, set(range(256)))
    assert all(sign in body for sign in (b"\r\n", b"\n\r", b"\0\0"))
    with pytest.raises(UnicodeDecodeError):
        body.decode()
    assert len(make_body(100)) == 100


async def test_a_question_leaves_nothing_and_costs_no_room(tmp_path):
    async with open_web(tmp_path) as web, serve_app(web.app) as url:
        assert await Way(url, web.tokens).find(url) is None
        assert await web.services.store.inbox_depth() == 0
        assert await web.services.store.last_callback_at() is None


async def test_a_stranger_gets_nothing_echoed(way):
    async def unsigned(seen):
        return await way.hand_on(replace(seen, target="/callbacks/receiver-probe/x.y"))

    answered = await unsigned(Seen("POST", "", {"host": "a", "receiver-probe-headers": "cookie", "cookie": "secret"}, b"x" * 100))
    assert answered.startswith(b"HTTP/1.1 401")
    assert b"secret" not in answered
