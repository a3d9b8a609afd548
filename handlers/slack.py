"""Posts events to a Slack channel by an incoming webhook: Block Kit, with previews of pictures.

Limits: https://docs.slack.dev/reference/block-kit/blocks
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import datetime
from typing import Any
from urllib.parse import quote, urlsplit

import msgspec

from receiver.handling import BadOptions, Context, Event, HTTPError, PermanentError, is_web_address, post

HEADER_LIMIT = 150
SECTION_LIMIT = 3000
FIELD_LIMIT = 2000
FIELDS_LIMIT = 10
CONTEXT_LIMIT = 10  # elements
ALT_LIMIT = 2000
URL_LIMIT = 3000
PREVIEWS = 10  # of the 50 blocks that a message may have
LINKS = 20
PICTURE_NAMES = (".png", ".jpg", ".jpeg", ".gif", ".webp")
TRANSIENT = frozenset({408, 425, 429})
ICONS = {"succeeded": "✅", "failed": "❌", "cancelled": "🚫", "expired": "⌛", "unconfirmed": "❓"}


class SlackOptions(msgspec.Struct):
    """`webhook_url`: the address of the incoming webhook, which is a secret."""

    webhook_url: str

    def __post_init__(self) -> None:
        if not is_web_address(self.webhook_url):
            raise BadOptions({"webhook_url": 'must be the address of an incoming webhook, "https://hooks.slack.com/services/…"'})

    def __repr__(self) -> str:
        return "SlackOptions(…)"  # the address is a secret


class Slack:
    """Posts one message per event."""

    Options = SlackOptions

    def __init__(self, options: SlackOptions, context: Context) -> None:
        self._url, self._context = options.webhook_url, context

    async def handle(self, event: Event) -> None:
        message = build_message(event)
        status, reason = await self._post(message)
        if status == 400 and reason == "invalid_blocks" and any(block["type"] == "image" for block in message["blocks"]):
            # Slack fetches each picture itself and refuses the whole message when one cannot be had.
            status, reason = await self._post(build_message(event, has_previews=False))
        if 200 <= status < 300:
            return
        said = f"Slack answered {status}" + (f" ({reason})" if reason else "")
        if 400 <= status < 500 and status not in TRANSIENT:
            raise PermanentError(said)
        raise HTTPError(said)

    async def _post(self, message: dict[str, Any]) -> tuple[int, str]:
        headers = {"content-type": "application/json; charset=utf-8"}
        status, body = await post(self._context.direct_http, self._url, msgspec.json.encode(message), headers)
        # Slack's reasons are single words: https://docs.slack.dev/messaging/sending-messages-using-incoming-webhooks#handling_errors
        reason = body.decode("utf-8", "replace").strip()
        return status, reason if re.fullmatch(r"[a-z_]{1,60}", reason) else ""


def build_message(event: Event, *, has_previews: bool = True) -> dict[str, Any]:
    """The message about an event, within all limits of Block Kit."""
    job = event.data.get("job")
    title = _title(event, job)
    blocks: list[dict[str, Any]] = [{"type": "header", "text": {"type": "plain_text", "text": clip(title, HEADER_LIMIT), "emoji": True}}]
    if job:
        blocks += _job_blocks(job, has_previews)
    elif event.data:
        text = msgspec.json.encode(event.data).decode()
        blocks.append(_section("```" + escape(text.replace("```", "'''"), SECTION_LIMIT - 6) + "```"))
    blocks.append({"type": "context", "elements": list(_context_elements(event, job))[:CONTEXT_LIMIT]})
    # `text` is what notifications show, and screen readers read.
    return {"text": escape(title, SECTION_LIMIT), "blocks": blocks, "unfurl_links": False, "unfurl_media": False}


def _title(event: Event, job: dict[str, Any] | None) -> str:
    if not job:
        return event.type
    what = " ".join(part for part in (job["provider"], job.get("model")) if part)
    word = event.type.removeprefix("job.")
    late = " (late)" if event.data.get("late") else ""
    return " ".join(part for part in (ICONS.get(word), f"{what}: {word}{late}") if part)


def _job_blocks(job: dict[str, Any], has_previews: bool) -> Iterator[dict[str, Any]]:
    fields = [{"type": "mrkdwn", "text": f"*{name}*\n{escape(value, FIELD_LIMIT - 100)}"} for name, value in _facts(job)]
    yield {"type": "section", "fields": fields[:FIELDS_LIMIT]}
    error = job.get("error")
    if error:
        yield _section(f"*{escape(error['code'], 100)}*\n{escape(error['message'], SECTION_LIMIT - 200)}")
    outputs = [output for output in job.get("outputs") or () if _is_linkable(output.get("url"))]
    links = [f"<{escape_url(output['url'])}|Output {output['index']}>" for output in outputs[:LINKS]]
    if links:
        yield from (_section(text) for text in _join(links))
    if len(outputs) > LINKS:
        yield _section(f"… and {len(outputs) - LINKS} more")
    if has_previews:
        for output in [output for output in outputs if _is_picture(output, job.get("media"))][:PREVIEWS]:
            alt = clip(f"Output {output['index']} of {job['id']}", ALT_LIMIT)
            yield {"type": "image", "image_url": output["url"], "alt_text": alt}


def _facts(job: dict[str, Any]) -> Iterator[tuple[str, str]]:
    yield "Status", job["status"]
    for key in ("provider", "model", "operation", "media"):
        if job.get(key):
            yield key.capitalize(), job[key]
    if job.get("cost"):
        yield "Cost", f"{job['cost']['amount']:g} {job['cost']['unit']}"
    if job.get("finished_at") and job.get("created_at"):
        took = datetime.fromisoformat(job["finished_at"]) - datetime.fromisoformat(job["created_at"])
        yield "Took", f"{took.total_seconds():.0f} s"


def _context_elements(event: Event, job: dict[str, Any] | None) -> Iterator[dict[str, Any]]:
    metadata = (job or {}).get("metadata") or {}
    for text in (event.subject, event.time, *(f"{name}: {value}" for name, value in metadata.items())):
        if text:
            yield {"type": "mrkdwn", "text": escape(text, FIELD_LIMIT)}


def _section(text: str) -> dict[str, Any]:
    return {"type": "section", "text": {"type": "mrkdwn", "text": text}}


def _join(links: list[str]) -> Iterator[str]:
    """Lines of links, as many per section as its limit allows."""
    text = ""
    for link in links:
        if text and len(text) + 3 + len(link) > SECTION_LIMIT:
            yield text
            text = ""
        text = f"{text} · {link}" if text else link
    yield text


def _is_linkable(url: str | None) -> bool:
    # 100 characters are kept for the rest of the link.
    return url is not None and is_web_address(url) and len(escape_url(url)) <= URL_LIMIT - 100


def _is_picture(output: dict[str, Any], media: str | None) -> bool:
    media_type = (output.get("stored") or {}).get("media_type") or output.get("media_type")
    if media_type:
        return str(media_type).lower().startswith("image/")
    name = urlsplit(output["url"]).path.rpartition("/")[2].lower()
    return name.endswith(PICTURE_NAMES) or (media == "image" and "." not in name)


def escape(text: str, limit: int) -> str:
    """Text in which Slack sees no markup of links and mentions, at most `limit` characters, no entity cut in two."""
    escaped = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    if len(escaped) <= limit:
        return escaped
    return re.sub(r"&[a-z]{0,3}\Z", "", escaped[: limit - 1]) + "…"


def escape_url(url: str) -> str:
    """A URL as it may stand between `<` and `|`."""
    return re.sub(r"[\s<>|]", lambda found: quote(found[0]), url).replace("&", "&amp;")


def clip(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"
