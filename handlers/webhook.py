"""Forwards events to the user's own application: CloudEvents as structured JSON, signed by Standard Webhooks."""

from __future__ import annotations

import base64
import hashlib
import hmac

import msgspec

from receiver.handling import BadOptions, Context, Event, HTTPError, PermanentError, is_web_address, post

GONE = 410


class WebhookOptions(msgspec.Struct):
    """`url`; `secrets`, each of which signs, so that the receiver can rotate. Without secrets events are not signed."""

    url: str
    secrets: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        mistakes = {} if is_web_address(self.url) else {"url": "must be an address that begins with http:// or https://"}
        for index, secret in enumerate(self.secrets):
            try:
                decode_secret(secret)
            except ValueError as error:
                mistakes[f"secrets[{index}]"] = str(error)
        if mistakes:
            raise BadOptions(mistakes)

    def __repr__(self) -> str:
        return "WebhookOptions(…)"  # the secrets hide


class Webhook:
    """POSTs each event to one address. 2xx: done. 410: dead at once. Anything else, a redirect too, is tried again."""

    Options = WebhookOptions

    def __init__(self, options: WebhookOptions, context: Context) -> None:
        self._url, self._context = options.url, context
        self._keys = [decode_secret(secret) for secret in options.secrets]

    async def handle(self, event: Event) -> None:
        body = msgspec.json.encode(event.envelope())
        now = self._context.now()
        headers = {"content-type": "application/cloudevents+json; charset=utf-8", **self._context.trace_headers()}
        headers |= sign(event.id, str(int(now.timestamp())), body, self._keys)
        status, _ = await post(self._context.direct_http, self._url, body, headers)
        if status == GONE:
            raise PermanentError("the address answered 410: it does not want events any more")
        if not 200 <= status < 300:
            raise HTTPError(f"the address answered {status}")


def sign(id: str, timestamp: str, body: bytes, keys: list[bytes]) -> dict[str, str]:
    """The headers of Standard Webhooks, with one `v1` signature per key.

    https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md
    """
    headers = {"webhook-id": id, "webhook-timestamp": timestamp}
    content = f"{id}.{timestamp}.".encode() + body
    signatures = (base64.b64encode(hmac.digest(key, content, hashlib.sha256)).decode() for key in keys)
    if keys:
        headers["webhook-signature"] = " ".join(f"v1,{signature}" for signature in signatures)
    return headers


def decode_secret(secret: str) -> bytes:
    """The key in `whsec_<base64>`; prefix and padding may be missing. ValueError says what would be right, without the secret."""
    text = secret.strip().removeprefix("whsec_")
    try:
        key = base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except ValueError:
        key = b""
    if not key:
        raise ValueError('must be "whsec_" and the secret in base64')
    return key
