"""Where providers call back: prove, keep, answer. A bare ASGI application, because bursts arrive here."""

from __future__ import annotations

import re
from collections.abc import Sequence
from urllib.parse import quote
from weakref import WeakValueDictionary

import structlog
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from receiver.addresses import Network, parse_networks
from receiver.errors import BodyOverLimit, NotFound, Overloaded, ReceiverError, TooMany, Unavailable, UnknownProvider, Unproven
from receiver.probing import PROBED, PROOF, make_echo, make_proof
from receiver.providers.signatures import Presented
from receiver.services import Services
from receiver.web.bodies import BODY_TIMEOUT
from receiver.web.guard import Sender, encode_headers
from receiver.web.headroom import Headroom
from receiver.web.operations import Answer, Operation
from receiver.web.patience import Patience
from receiver.web.peers import find_peer
from receiver.web.prepared import Prepared, exchange_of
from receiver.web.problems import last_resort, problem, problem_of
from receiver.web.slowing import Slowing
from receiver.web.views import Kept

ORIGIN = re.compile(r"[A-Za-z0-9.:_-]{1,255}")
PATH = re.compile(r"/callbacks/([^/]+)(?:/([^/]+))?/?")
KEPT = Prepared(encode_headers(("Content-Type", "application/json"), ("Content-Length", "11")), b'{"ok":true}')
log = structlog.get_logger("receiver.web")
NO_ROOM = "Too many callbacks arrive at once; try again later."
HELD_BODIES = 64  # of the largest size, that may be in memory at once
HELD_UNPROVEN = 16  # and as many that nothing is known of before they are whole: these must not crowd out the others
SHARES = 4  # of those, that one address may have as long as others want some
HELD_BYTES = 256 * 1024 * 1024  # at most, however large one may be; four of those fit all the same


OPERATIONS = (
    Operation(
        "POST",
        "/callbacks/{provider}/{token}",
        "receive_callback",
        "Callbacks",
        "A provider's news about one submission, which the token names.",
        (Answer(200, "It is on disk.", Kept),),
        None,
        errors=(401, 413, 429),
        is_open=True,
    ),
    Operation(
        "POST",
        "/callbacks/{provider}",
        "receive_signed_callback",
        "Callbacks",
        "News of a provider that knows one URL for the whole account; only with a signature that it can be told by.",
        (Answer(200, "It is on disk.", Kept),),
        None,
        errors=(401, 413, 429),
        is_open=True,
    ),
)


class Disconnected(Exception):
    """The caller went away before its body was whole."""


class Room:
    """Bytes that several bodies share; a room within another one takes of both."""

    def __init__(self, size: int, within: Room | None = None) -> None:
        self.left, self._within = size, within

    def has(self, size: int) -> bool:
        return self.left >= size and (self._within is None or self._within.has(size))

    def take(self, size: int) -> None:
        """Give back what is taken, as a negative size."""
        self.left -= size
        if self._within is not None:
            self._within.take(size)


class Strangers:
    """The room for bodies that nothing is known of before they are whole, of which an address has a share: none crowds out all others."""

    def __init__(self, whole: Room, trusted: Sequence[Network]) -> None:
        self._whole, self._trusted = whole, trusted
        self._share = max(whole.left // SHARES, 1)
        self._rooms: WeakValueDictionary[str, Room] = WeakValueDictionary()  # of those whose bodies are on their way

    def find(self, scope: Scope) -> Room:
        peer = find_peer(scope, self._trusted)
        if not peer.is_certain:  # behind an unknown proxy everybody has the same address
            return self._whole
        room = self._rooms.get(peer.group)
        if room is None:
            room = self._rooms[peer.group] = Room(self._share, self._whole)
        return room


def make_room(limit: int, bodies: int) -> Room:
    """For so many bodies of the largest size, where that is not too much."""
    return Room(min(limit * bodies, max(HELD_BYTES, limit * 4)))


class Callbacks:
    """Answers `/callbacks/{provider}` and `/callbacks/{provider}/{token}`."""

    def __init__(self, services: Services, headroom: Headroom) -> None:
        self._services, self._headroom = services, headroom
        self._limit = services.inbox.max_body_bytes
        networks = parse_networks(services.config.server.trusted_proxies)
        self._room, self._strangers = make_room(self._limit, HELD_BODIES), Strangers(make_room(self._limit, HELD_UNPROVEN), networks)
        self._patience = Patience(BODY_TIMEOUT)
        self._slowing = Slowing(services.clock, networks, lambda: services.counters.add("receiver", "callbacks_slowed"))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        sender = Sender(send)
        try:
            await self._serve(scope, receive, sender)
        except Exception as error:  # the last resort, as for every route
            log.error("callback.failed", error=f"{type(error).__name__}: {error}", exc_info=True)
            if sender.has_started:
                raise
            await last_resort()(scope, receive, sender)

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            answer = await self._answer(scope, receive)
        except Unproven as error:
            answer = await self._refuse_slowly(scope, error)
        except ReceiverError as error:
            self._note_unkept(scope, error)
            answer = problem_of(error)
        except Disconnected:
            return
        await answer(scope, receive, send)

    def _note_unkept(self, scope: Scope, error: ReceiverError) -> None:
        """Strangers must not make up names to count under."""
        found = PATH.fullmatch(scope["path"])
        if isinstance(error, Unavailable) and found is not None and found[1] in self._services.accounts:
            self._services.counters.add(f"provider:{found[1]}", "callbacks_unkept")

    async def _refuse_slowly(self, scope: Scope, error: Unproven) -> Response:
        try:
            await self._slowing.hold(scope)
        except TooMany as too_many:
            return problem_of(too_many)
        return problem_of(error)

    async def _answer(self, scope: Scope, receive: Receive) -> ASGIApp:
        found = PATH.fullmatch(scope["path"])
        if found is None:
            raise NotFound("There is nothing at this address.")
        provider, token = found[1], found[2]
        if scope["method"] != "POST" and scope["method"] != self._other_method(provider):
            return self._answer_method(scope, provider, token)
        if provider == PROBED:
            return await self._answer_probe(scope, receive, token)
        inbox = self._services.inbox
        submission_id = inbox.prove(provider, token)
        headers = read_headers(scope)
        try:
            room = self._room if token is not None else self._strangers.find(scope)
            await self._headroom.take_notice()
            body = self._take_body(scope, room)
            if body is None:
                body = await self._read_body(receive, headers.get("content-length", ""), room)
        except BodyOverLimit:
            await inbox.poll_instead(provider, submission_id)
            raise
        if inbox.wants_signature(provider):
            await inbox.prove_signature(provider, submission_id, present(scope, headers, body))
        await inbox.keep(provider, token, submission_id, headers, body)
        return KEPT

    async def _answer_probe(self, scope: Scope, receive: Receive, token: str | None) -> Response:
        """Our own question, asked from outside: is it we who answer under the public URL, and what arrived? Nothing is kept."""
        proof = make_proof(self._services.tokens, token or "")
        headers = read_headers(scope)
        body = await self._read_body(receive, headers.get("content-length", ""), self._room)
        return Response(make_echo(proof, headers, body), headers={PROOF: proof}, media_type="application/json")

    def _other_method(self, provider: str) -> str | None:
        spec = self._services.inbox.find_spec(provider)
        return None if spec is None or spec.table.callback is None else spec.table.callback.method

    def _answer_method(self, scope: Scope, provider: str, token: str | None) -> Response:
        """405, or the handshake of CloudEvents where the spec asks for it."""
        spec = self._services.inbox.find_spec(provider)
        if spec is None or spec.table.callback is None:
            raise UnknownProvider
        method, asks_first = spec.table.callback.method, spec.table.callback.handshake is not None
        allow = {"Allow": ", ".join(dict.fromkeys(["POST", method, *(["OPTIONS"] if asks_first else [])]))}
        if not asks_first or scope["method"] != "OPTIONS":
            return problem(405, f"A callback is a {method}.", headers=allow)
        self._services.inbox.prove(provider, token)
        return Response(headers=allow | allow_origin(read_headers(scope).get("webhook-request-origin", "")))

    def _take_body(self, scope: Scope, room: Room) -> bytes | None:
        """A body that is whole already, as a small one mostly is."""
        exchange = exchange_of(scope)
        body = None if exchange is None else exchange.take_body()
        if body is not None and len(body) > self._limit:
            raise BodyOverLimit(f"The body is over {self._limit} bytes.")
        if body is not None and not room.has(len(body)):
            raise Overloaded(NO_ROOM)
        return body

    async def _read_body(self, receive: Receive, announced: str, room: Room) -> bytes:
        """The body, in memory up to the limit of one and within the room for all."""
        if announced.isdecimal() and (len(announced) > 18 or int(announced) > self._limit):
            raise BodyOverLimit(f"The body is over {self._limit} bytes.")
        chunks: list[bytes] = []
        held = 0
        try:
            with self._patience.begin():
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise Disconnected
                    chunk = message.get("body", b"")
                    held += len(chunk)
                    room.take(len(chunk))
                    if held > self._limit:
                        raise BodyOverLimit(f"The body is over {self._limit} bytes.")
                    if not room.has(0):
                        raise Overloaded(NO_ROOM)
                    chunks.append(chunk)
                    if not message.get("more_body", False):
                        return b"".join(chunks)
        except TimeoutError:
            raise Overloaded("The body did not arrive in time; send it again.") from None
        finally:
            room.take(-held)


def read_headers(scope: Scope) -> dict[str, str]:
    """By lower-case name, as ASGI has them; what came several times is joined as RFC 9110 says."""
    headers: dict[str, str] = {}
    for raw_name, raw_value in scope["headers"]:
        name, value = raw_name.decode("latin-1"), raw_value.decode("latin-1")
        headers[name] = f"{headers[name]}, {value}" if name in headers else value
    return headers


def present(scope: Scope, headers: dict[str, str], body: bytes) -> Presented:
    path = scope.get("raw_path") or quote(scope["path"]).encode()
    return Presented(headers, body, scope["method"], path.decode("latin-1"), scope.get("query_string", b"").decode("latin-1"))


def allow_origin(origin: str) -> dict[str, str]:
    """The permission that a sender of CloudEvents asks for (https://github.com/cloudevents/spec/blob/main/cloudevents/http-webhook.md).
    Whoever has no token or key gets nothing kept anyhow, so every origin may ask."""
    return {"WebHook-Allowed-Origin": origin, "WebHook-Allowed-Rate": "*"} if ORIGIN.fullmatch(origin) else {}
