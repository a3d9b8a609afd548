from __future__ import annotations

import json
from datetime import timedelta

import pytest

from receiver.config import HandlerConfig
from receiver.errors import ConfigError
from receiver.handlers.slack import build_message
from receiver.handling import HTTPError, PermanentError, RetryLater, load_handler
from receiver.model import Cost, ErrorCode, JobError, Status
from tests.factories import NOW, make_event, make_job, make_output
from tests.handler_kit import open_desk
from tests.loopback import free_port, response, say, serve


@pytest.fixture
async def desk(tmp_path):
    async with open_desk(tmp_path, "team") as opened:
        yield opened


def succeeded(*urls: str | None, **fields):
    outputs = tuple(make_output(index=index, url=url, media_type=fields.get("media_type")) for index, url in enumerate(urls))
    fields.pop("media_type", None)
    return make_event(make_job(**{"status": Status.SUCCEEDED, "outputs": outputs} | fields))


def failed(message: str, **fields):
    error = JobError(ErrorCode.CONTENT_REJECTED, message)
    return make_event(make_job(**{"status": Status.FAILED, "error": error} | fields), "job.failed")


def check_limits(message: dict) -> None:
    """What Slack refuses: https://docs.slack.dev/reference/block-kit/blocks"""
    assert 0 < len(message["text"]) <= 40_000
    assert 0 < len(message["blocks"]) <= 50
    for block in message["blocks"]:
        if block["type"] == "header":
            assert block["text"]["type"] == "plain_text"
            assert 0 < len(block["text"]["text"]) <= 150
        elif block["type"] == "section":
            assert ("text" in block) != ("fields" in block)
            assert "text" not in block or 0 < len(block["text"]["text"]) <= 3000
            assert 0 < len(block.get("fields", [1])) <= 10
            assert all(0 < len(field["text"]) <= 2000 for field in block.get("fields", ()))
        elif block["type"] == "context":
            assert 0 < len(block["elements"]) <= 10
            assert all(0 < len(element["text"]) <= 3000 for element in block["elements"])
        else:
            assert block["type"] == "image"
            assert 0 < len(block["alt_text"]) <= 2000
            assert 0 < len(block["image_url"]) <= 3000


def images(message: dict) -> list[str]:
    return [block["image_url"] for block in message["blocks"] if block["type"] == "image"]


def text_of(message: dict) -> str:
    return json.dumps(message, ensure_ascii=False)


async def test_an_event_is_posted_as_block_kit_with_a_preview_of_its_picture(desk):
    event = succeeded("https://cdn.example.com/a.png?x=1&y=2", media_type="image/png", metadata={"user": "42"}, cost=Cost(12, "credits"))
    async with serve(say(response(200, b"ok"))) as peer:
        await desk.make("slack", webhook_url=f"{peer.url}/services/T/B/x").handle(event)
    (seen,) = peer.seen
    assert (seen.method, seen.target) == ("POST", "/services/T/B/x")
    assert seen.headers["content-type"].startswith("application/json")
    message = json.loads(seen.body)
    check_limits(message)
    assert [block["type"] for block in message["blocks"]] == ["header", "section", "section", "image", "context"]
    assert message["blocks"][0]["text"]["text"] == message["text"] == "✅ elkapi elk-1: succeeded"
    assert images(message) == ["https://cdn.example.com/a.png?x=1&y=2"]
    assert "<https://cdn.example.com/a.png?x=1&amp;y=2|Output 0>" in text_of(message)
    assert "*Cost*" in text_of(message)
    assert "12 credits" in text_of(message)
    assert "user: 42" in text_of(message)


@pytest.mark.parametrize(
    ("url", "media_type", "media", "has_preview"),
    [
        ("https://a/1", "image/png", None, True),
        ("https://a/1.png", None, None, True),
        ("https://a/1.JPG?sig=x", None, "video", True),
        ("https://a/file", None, "image", True),
        ("https://a/1.mp4", "video/mp4", "video", False),
        ("https://a/1.png", "video/mp4", "image", False),
        ("https://a/1.glb", None, "image", False),
        (None, "image/png", "image", False),
        ("data:image/png;base64,AAAA", "image/png", "image", False),
        ("https://a/" + "x" * 3000, "image/png", "image", False),
    ],
)
def test_only_pictures_behind_links_that_slack_takes_are_previewed(url, media_type, media, has_preview):
    message = build_message(succeeded(url, media_type=media_type, media=media))
    assert images(message) == ([url] if has_preview else [])
    check_limits(message)


def test_words_of_others_make_no_mention_and_no_link():
    message = build_message(failed("<!channel> & <https://evil.example|click> *bold*", model="<@U1>", metadata={"<!here>": "<#C1>"}))
    text = json.dumps([block for block in message["blocks"] if block["type"] != "header"]) + message["text"]
    assert "&lt;!channel&gt; &amp; &lt;https://evil.example|click&gt;" in text
    for mark in ("<!", "<@", "<#", "<https://evil"):
        assert mark not in text


def test_a_link_cannot_be_left_by_the_characters_in_it():
    message = build_message(succeeded("https://a/x|y>z <!channel>.png"))
    assert "<https://a/x%7Cy%3Ez%20%3C!channel%3E.png|Output 0>" in text_of(message)


@pytest.mark.parametrize("sign", ["x", "&", "<", "🦌", "é"])
def test_the_limits_of_block_kit_are_kept_however_much_there_is_to_say(sign):
    many = sign * 5000
    urls = [f"https://cdn.example.com/{index}/{'u' * 2500}.png" for index in range(60)]
    crowded = {"model": many, "metadata": {f"{index}{sign * 200}": many for index in range(16)}, "media_type": "image/png"}
    for event in (failed(many, model=many, metadata=crowded["metadata"]), succeeded(*urls, **crowded)):
        message = build_message(event)
        check_limits(message)
        markup = [message["text"], *(block for block in message["blocks"] if block["type"] != "header")]
        for cut in ("&am…", "&l…", "&…"):
            assert cut not in json.dumps(markup, ensure_ascii=False)


def test_an_event_without_a_job_is_told_too():
    message = build_message(make_event(None, "receiver.delivery_dead", data={"handler": "<archive>"}))
    check_limits(message)
    assert "&lt;archive&gt;" in text_of(message)
    check_limits(build_message(make_event(None, "receiver.started")))


def test_a_late_end_says_so_and_how_long_it_took():
    job = make_job(status=Status.SUCCEEDED, finished_at=NOW + timedelta(seconds=83))
    event = make_event(job, data={"job": job.public(), "late": True})
    assert "succeeded (late)" in build_message(event)["text"]
    assert "83 s" in text_of(build_message(event))


async def test_a_picture_that_slack_cannot_fetch_costs_the_previews_and_not_the_message(desk):
    async def picky(seen, writer):
        writer.write(response(400, b"invalid_blocks") if images(json.loads(seen.body)) else response(200, b"ok"))

    async with serve(picky) as peer:
        await desk.make("slack", webhook_url=peer.url).handle(succeeded("https://cdn.example.com/a.png"))
    assert [len(images(json.loads(seen.body))) for seen in peer.seen] == [1, 0]
    assert "|Output 0>" in peer.seen[1].body.decode()


@pytest.mark.parametrize(
    ("status", "reason"),
    [
        (400, "invalid_payload"),
        (400, "invalid_blocks"),
        (403, "no_service"),
        (403, "action_prohibited"),
        (404, "channel_not_found"),
        (410, "channel_is_archived"),
    ],
)
async def test_a_refusal_is_dead_at_once_with_slacks_word(desk, status, reason):
    async with serve(say(response(status, reason.encode()))) as peer:
        with pytest.raises(PermanentError, match=rf"answered {status} \({reason}\)"):
            await desk.make("slack", webhook_url=peer.url).handle(failed("no"))
        assert len(peer.seen) == 1


@pytest.mark.parametrize("status", [302, 408, 429, 500, 502, 503])
async def test_a_passing_failure_is_tried_again(desk, status):
    async with serve(say(response(status, b"<html>secret</html>"))) as peer:
        with pytest.raises(HTTPError) as raised:
            await desk.make("slack", webhook_url=peer.url).handle(failed("no"))
    assert str(raised.value) == f"Slack answered {status}"


async def test_retry_after_is_honoured(desk):
    async with serve(say(response(429, b"rate_limited", retry_after="30"))) as peer:
        with pytest.raises(RetryLater) as raised:
            await desk.make("slack", webhook_url=peer.url).handle(failed("no"))
    assert raised.value.seconds == 30


async def test_nobody_there_is_tried_again_and_the_error_does_not_hold_the_address(desk):
    with pytest.raises(HTTPError) as raised:
        await desk.make("slack", webhook_url=f"http://127.0.0.1:{free_port()}/services/hidden").handle(failed("no"))
    assert "hidden" not in str(raised.value)


@pytest.mark.parametrize(
    ("options", "key"), [({}, "webhook_url"), ({"webhook_url": "hooks.slack.com/x"}, "webhook_url"), ({"webhook_url": 3}, "webhook_url")]
)
def test_mistakes_in_its_options_are_told_at_start(tmp_path, options, key):
    with pytest.raises(ConfigError) as raised:
        load_handler(HandlerConfig(name="team", use="slack", options=options), tmp_path)
    assert [mistake.key for mistake in raised.value.mistakes] == [f"handlers.team.options.{key}"]


def test_its_address_does_not_show(tmp_path):
    options = {"webhook_url": "https://hooks.slack.com/services/hidden"}
    plugin = load_handler(HandlerConfig(name="team", use="slack", options=options), tmp_path)
    assert "hidden" not in repr(plugin) + repr(plugin.options)
