"""Messages through the library's own JSON service, to a server on loopback."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import logging
import threading
import tomllib
from pathlib import Path

import pytest

pytest.importorskip("apprise")

from receiver.config import HandlerConfig
from receiver.errors import ConfigError
from receiver.handlers import notify
from receiver.handling import HTTPError, load_handler
from receiver.model import Cost, ErrorCode, JobError, Status
from tests.factories import make_event, make_job, make_output, make_stored
from tests.handler_kit import open_desk
from tests.loopback import Seen, free_port, hang, response, serve

USE = "receiver.handlers.notify:Notify"
WAIT = 20.0


@pytest.fixture
async def desk(tmp_path):
    async with open_desk(tmp_path, "tell") as opened:
        yield opened


async def take(seen: Seen, writer: asyncio.StreamWriter) -> None:
    """Takes everything but what goes to /refuse."""
    writer.write(response(403 if "refuse" in seen.target else 200, connection="close"))


def address(peer, path: str = "") -> str:
    return f"json://user:s3cret@{peer.host}:{peer.port}/{path}"


def messages(peer) -> list[dict]:
    return [json.loads(seen.body) for seen in peer.seen]


async def test_one_message_tells_what_happened_with_the_links(desk):
    async with serve(take) as peer:
        event = desk.succeed("https://cdn.example.com/a.png?x=1&y=<2>", "https://cdn.example.com/b.png")
        await desk.make(USE, urls=[address(peer, "hook")]).handle(event)
    (seen,) = peer.seen
    assert seen.target == "/hook"
    assert base64.b64decode(seen.headers["authorization"].removeprefix("Basic ")) == b"user:s3cret"
    (message,) = messages(peer)
    assert (message["title"], message["type"]) == ("elkapi elk-1: succeeded", "success")
    assert message["message"] == f"https://cdn.example.com/a.png?x=1&y=<2>\nhttps://cdn.example.com/b.png\n{event.subject}"


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (Status.FAILED, "failure"),
        (Status.EXPIRED, "failure"),
        (Status.CANCELLED, "warning"),
        (Status.UNCONFIRMED, "warning"),
        (Status.QUEUED, "info"),
    ],
)
async def test_how_it_ended_is_told_with_the_reason(desk, status, kind):
    job = make_job(status=status, model=None, error=JobError(ErrorCode.UNKNOWN, "too\x1b[31m much @everyone"))
    async with serve(take) as peer:
        await desk.make(USE, urls=[address(peer)]).handle(make_event(job, f"job.{status.value}"))
    (message,) = messages(peer)
    assert (message["title"], message["type"]) == (f"elkapi: {status.value}", kind)
    assert message["message"] == f"unknown: too [31m much @\u200beveryone\n{job.id}"


async def test_where_outputs_are_kept_is_told_when_there_is_no_link(desk):
    outputs = [make_output(url=None, stored=make_stored(uri="s3://bucket/a.png")).public()]
    job = make_job(status=Status.SUCCEEDED)
    async with serve(take) as peer:
        await desk.make(USE, urls=[address(peer)]).handle(make_event(job, "job.stored", data={"job": job.public(), "outputs": outputs}))
    assert messages(peer)[0]["message"].startswith("s3://bucket/a.png\n")


async def test_what_is_about_receiver_itself_is_told_as_it_is(desk):
    async with serve(take) as peer:
        event = make_event(None, "receiver.dead_letter", data={"handler": "other", "attempts": 8})
        await desk.make(USE, urls=[address(peer)]).handle(event)
    assert messages(peer) == [
        {"version": "1.0", "title": "receiver.dead_letter", "message": "handler: other\nattempts: 8", "attachments": [], "type": "warning"}
    ]


async def test_templates_say_it_in_the_users_words(desk):
    job = make_job(status=Status.SUCCEEDED, metadata={"user": "42", "note": ""}, cost=Cost(1.5, "USD"), media="video")
    async with serve(take) as peer:
        options = {
            "title": "For {metadata.user}",
            "body": "{media} of {provider}\n\nnote {metadata.note}\nnone {metadata.none}\ncost {cost} {type}",
        }
        await desk.make(USE, urls=[address(peer)], **options).handle(make_event(job))
    (message,) = messages(peer)
    assert (message["title"], message["message"]) == ("For 42", "video of elkapi\n\ncost 1.5 USD job.succeeded")


async def test_only_who_did_not_take_it_gets_it_again_and_is_named_without_its_secrets(desk):
    async with serve(take) as peer:
        handler = desk.make(USE, urls=[address(peer, "a"), address(peer, "refuse"), f"json://user:s3cret@127.0.0.1:{free_port()}"])
        event = desk.succeed("https://cdn.example.com/a.png")
        for _ in range(2):
            with pytest.raises(HTTPError) as raised:
                await handler.handle(event)
            assert str(raised.value) == "not taken by urls[1] (JSON, answered 403), urls[2] (JSON)"
        assert sorted(seen.target for seen in peer.seen) == ["/a", "/refuse", "/refuse"]
        with pytest.raises(HTTPError):
            await handler.handle(desk.succeed("https://cdn.example.com/b.png"))
        assert len(peer.seen) == 5


async def test_an_address_that_does_not_answer_is_given_up(desk, monkeypatch):
    monkeypatch.setattr(notify, "SECONDS", 0.2)
    async with serve(hang) as peer:
        handler = desk.make(USE, urls=[f"{address(peer)}?rto=2"])
        with pytest.raises(HTTPError, match="no answer in time"):
            await asyncio.wait_for(handler.handle(desk.succeed("https://cdn.example.com/a.png")), WAIT)


async def test_a_slow_address_keeps_nothing_else_waiting(desk):
    threads = set()

    async def talk(seen: Seen, writer: asyncio.StreamWriter) -> None:
        threads.add(threading.current_thread())  # the test's own loop answers: were it blocked, nobody would
        await take(seen, writer)

    async with serve(talk) as peer:
        handler = desk.make(USE, urls=[address(peer)])
        await asyncio.wait_for(asyncio.gather(*(handler.handle(desk.succeed("https://x.example/a")) for _ in range(3))), WAIT)
    assert threads == {threading.main_thread()}
    assert len(peer.seen) == 3


@pytest.fixture
def lines():
    """What reaches the root of logging, as the server would write it at its most talkative."""
    root, written = logging.getLogger(), io.StringIO()
    talkative, level = logging.StreamHandler(written), root.level
    root.addHandler(talkative)
    root.setLevel(logging.DEBUG)
    yield written
    root.removeHandler(talkative)
    root.setLevel(level)


async def test_no_log_line_holds_an_address(desk, lines):
    async with serve(take) as peer:
        options = load(desk.context.folder, peer).options
        handler = desk.make(USE, urls=[address(peer, "token-in-path"), address(peer, "refuse")])
        with pytest.raises(HTTPError) as raised:
            await handler.handle(desk.succeed("https://cdn.example.com/a.png"))
    said = lines.getvalue() + str(raised.value) + repr(options)
    assert not any(secret in said for secret in ("s3cret", "token-in-path", "refuse"))


def load(folder, peer=None, **options):
    options = {"urls": [address(peer, "token-in-path")]} if peer else options
    return load_handler(HandlerConfig(name="tell", use=USE, options=options), folder)


@pytest.mark.parametrize(
    ("options", "key", "said"),
    [
        ({}, "urls", "is missing"),
        ({"urls": []}, "urls", "at least one"),
        ({"urls": ["json://localhost", "discrod://a/b"]}, "urls[1]", 'did you mean "discord://"?'),
        ({"urls": ["no-s3cret-shown"]}, "urls[0]", "must be an address"),
        ({"urls": ["discord://s3cret"]}, "urls[0]", "must be an address"),
        ({"urls": ["json://localhost"], "title": "{modle}"}, "title", "did you mean {model}?"),
        ({"urls": ["json://localhost"], "body": "{zzz}"}, "body", "there are {type}"),
        ({"urls": ["json://localhost"], "body": "{job"}, "body", "brace"),
        ({"urls": ["json://localhost"], "body": " "}, "body", "must say something"),
    ],
)
def test_mistakes_in_its_options_are_told_at_start(tmp_path, options, key, said):
    with pytest.raises(ConfigError) as raised:
        load(tmp_path, **options)
    (mistake,) = raised.value.mistakes
    assert mistake.key == f"handlers.tell.options.{key}"
    assert said in mistake.detail
    assert "s3cret" not in mistake.detail


def test_its_name_asks_for_its_extra():
    project = tomllib.loads((Path(__file__).resolve().parents[1] / "pyproject.toml").read_text())["project"]
    assert project["entry-points"]["receiver.handlers"]["notify"] == f"{USE} [notify]"
    assert "notify" in project["optional-dependencies"]
