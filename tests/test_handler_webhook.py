from __future__ import annotations

import asyncio
import base64
import json
from datetime import datetime, timedelta

import pytest
from cloudevents.core.bindings.http import HTTPMessage, from_structured_event
from cloudevents.core.formats.json import JSONFormat
from standardwebhooks.webhooks import Webhook as Oracle
from standardwebhooks.webhooks import WebhookVerificationError

from receiver.clock import SystemClock
from receiver.config import HandlerConfig
from receiver.errors import ConfigError
from receiver.handlers.webhook import decode_secret, sign
from receiver.handling import HTTPError, PermanentError, RetryLater, load_handler
from receiver.model import Status
from tests.factories import make_event, make_job, make_output
from tests.handler_kit import open_desk
from tests.loopback import free_port, hang, response, say, serve

NEW = "whsec_" + base64.b64encode(b"n" * 32).decode()
OLD = "whsec_" + base64.b64encode(b"o" * 24).decode()


@pytest.fixture
async def desk(tmp_path):
    async with open_desk(tmp_path, "app") as opened:
        yield opened


def event():
    return make_event(make_job(status=Status.SUCCEEDED, outputs=(make_output(),), metadata={"user": "Zoë <42>"}))


async def test_an_event_arrives_as_a_cloud_event(desk):
    sent = event()
    async with serve(say(response(204))) as peer:
        await desk.make("webhook", url=f"{peer.url}/hooks?a=1").handle(sent)
    (seen,) = peer.seen
    assert (seen.method, seen.target) == ("POST", "/hooks?a=1")
    assert seen.headers["content-type"].startswith("application/cloudevents+json")
    read = from_structured_event(HTTPMessage(headers=seen.headers, body=seen.body), JSONFormat())
    assert (read.get_id(), read.get_type(), read.get_source(), read.get_subject()) == (sent.id, sent.type, sent.source, sent.subject)
    assert read.get_time() == datetime.fromisoformat(sent.time)
    assert read.get_extension("sequence") == sent.sequence
    assert read.get_data() == sent.data
    assert json.loads(seen.body) == sent.envelope()


async def test_it_is_signed_by_every_secret(desk):
    sent = event()
    desk.clock.advance(SystemClock().now() - desk.clock.now())  # the oracle asks the wall clock
    async with serve(say(response(200))) as peer:
        await desk.make("webhook", url=peer.url, secrets=[NEW, OLD]).handle(sent)
    (seen,) = peer.seen
    assert seen.headers["webhook-id"] == sent.id
    assert seen.headers["webhook-timestamp"] == str(int(desk.clock.now().timestamp()))
    assert len(seen.headers["webhook-signature"].split(" ")) == 2
    for secret in (NEW, OLD):
        assert Oracle(secret).verify(seen.body, seen.headers) == sent.envelope()
    with pytest.raises(WebhookVerificationError):
        Oracle("whsec_" + base64.b64encode(b"x" * 32).decode()).verify(seen.body, seen.headers)
    with pytest.raises(WebhookVerificationError):
        Oracle(NEW).verify(seen.body + b" ", seen.headers)


async def test_another_attempt_has_the_same_id_and_a_new_time_and_signature(desk):
    sent = event()
    async with serve(say(response(200))) as peer:
        handler = desk.make("webhook", url=peer.url, secrets=[NEW])
        await handler.handle(sent)
        desk.clock.advance(timedelta(seconds=90))
        await handler.handle(sent)
    first, second = peer.seen
    assert first.headers["webhook-id"] == second.headers["webhook-id"]
    assert int(second.headers["webhook-timestamp"]) - int(first.headers["webhook-timestamp"]) == 90
    assert first.headers["webhook-signature"] != second.headers["webhook-signature"]
    assert first.body == second.body


async def test_without_secrets_it_is_not_signed(desk):
    async with serve(say(response(200))) as peer:
        await desk.make("webhook", url=peer.url).handle(event())
    assert "webhook-signature" not in peer.seen[0].headers
    assert "webhook-id" in peer.seen[0].headers


# https://github.com/standard-webhooks/standard-webhooks
def test_it_signs_as_the_published_vectors_say():
    key = decode_secret("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
    headers = sign("msg_p5jXN8AQM9LWM0D4loKWxJek", "1614265330", b'{"test": 2432232314}', [key])
    assert headers["webhook-signature"] == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


@pytest.mark.parametrize(
    "secret", ["MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaS", "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSwBr"]
)
def test_prefix_and_padding_of_a_secret_may_be_missing(secret):
    padded = secret + "=" * (-len(secret) % 4)
    assert decode_secret(secret) == decode_secret(f"whsec_{secret}") == base64.b64decode(padded)


@pytest.mark.parametrize("status", [200, 201, 202, 204, 299])
async def test_any_2xx_is_done(desk, status):
    async with serve(say(response(status, b"" if status == 204 else b"thanks"))) as peer:
        await desk.make("webhook", url=peer.url).handle(event())


@pytest.mark.parametrize("status", [301, 302, 307, 308, 400, 401, 404, 429, 500, 502, 503])
async def test_anything_else_is_tried_again(desk, status):
    async with serve(say(response(200))) as other, serve(say(response(status, location=other.url))) as peer:
        with pytest.raises(HTTPError, match=f"answered {status}"):
            await desk.make("webhook", url=peer.url).handle(event())
        assert (len(peer.seen), len(other.seen)) == (1, 0)


async def test_410_is_dead_at_once(desk):
    async with serve(say(response(410))) as peer:
        with pytest.raises(PermanentError, match="410"):
            await desk.make("webhook", url=peer.url).handle(event())


@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize(
    "said", [{"retry_after": "120"}, {"date": "Wed, 01 Jul 2026 12:00:00 GMT", "retry_after": "Wed, 01 Jul 2026 12:02:00 GMT"}]
)
async def test_retry_after_is_honoured(desk, status, said):
    async with serve(say(response(status, **said))) as peer:
        with pytest.raises(RetryLater) as raised:
            await desk.make("webhook", url=peer.url).handle(event())
    assert raised.value.seconds == 120


async def test_a_retry_after_that_says_nothing_is_a_plain_failure(desk):
    async with serve(say(response(503, retry_after="soon"))) as peer:
        with pytest.raises(HTTPError, match="answered 503"):
            await desk.make("webhook", url=peer.url).handle(event())


async def test_an_answer_without_end_is_not_read_to_its_end(desk):
    async def flood(seen, writer):
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 1000000000000\r\n\r\n")
        while True:
            writer.write(bytes(65536))
            await writer.drain()

    async with serve(flood) as peer:
        await desk.make("webhook", url=peer.url).handle(event())


async def test_nobody_there_is_tried_again_and_the_error_holds_no_secret(desk):
    url = f"http://user:hidden@127.0.0.1:{free_port()}/hooks?key=hidden"
    with pytest.raises(HTTPError) as raised:
        await desk.make("webhook", url=url).handle(event())
    assert "hidden" not in str(raised.value)


async def test_it_can_be_cut_off_while_it_waits(desk):
    async with serve(hang) as peer:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(desk.make("webhook", url=peer.url).handle(event()), 0.05)


@pytest.mark.parametrize(
    ("options", "key", "said"),
    [
        ({}, "url", "is missing"),
        ({"url": "localhost:9000"}, "url", "begins with http://"),
        ({"url": "ftp://example.com"}, "url", "begins with http://"),
        ({"url": "http://[::1"}, "url", "begins with http://"),
        ({"url": "http://a", "secrets": NEW}, "secrets", "Expected `array`"),
        ({"url": "http://a", "secrets": ["whsec_"]}, "secrets[0]", "in base64"),
        ({"url": "http://a", "secrets": [NEW, "whsec_not base64!"]}, "secrets[1]", "in base64"),
        ({"url": "http://a", "secrets": [NEW, ""]}, "secrets[1]", "in base64"),
        ({"url": "http://a", "secret": NEW}, "secret", 'did you mean "secrets"?'),
    ],
)
def test_mistakes_in_its_options_are_told_at_start(tmp_path, options, key, said):
    with pytest.raises(ConfigError) as raised:
        load_handler(HandlerConfig(name="app", use="webhook", options=options), tmp_path)
    (mistake,) = raised.value.mistakes
    assert mistake.key == f"handlers.app.options.{key}"
    assert said in mistake.detail
