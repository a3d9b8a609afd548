"""Providers as a page: how our calls do, what was learned, when the last callback came, and how to set the webhook."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from receiver.model import Channel
from receiver.providers.account import Account
from receiver.services import Services
from receiver.stores.terms import NoticeFilter
from receiver.web.operations import services_of
from receiver.web.pages_frame import page, show
from receiver.web.pages_overview import draw_chart
from receiver.web.pages_troubles import tell_refusal
from receiver.web.providers import provider_rows
from receiver.web.query import Query

LOOK_AGAIN = timedelta(seconds=10)
Known = dict[str, tuple[datetime, datetime | None]]
"""By provider: when we looked, and when its last callback had come by then."""


async def show_providers(request: Request, query: Query) -> Response:
    services = services_of(request)
    refusing = {each.provider: each for each in (await draw_chart(request, services)).refusing}
    rows = []
    for row in await provider_rows(services):
        account = services.accounts.get(row["name"])
        rows.append(
            {
                **row,
                "last_callback_at": await last_callback(services, request.app.state.last_callbacks, row),
                "rate_limit": show_rate(account),
                "refusing": tell_refusal(refusing[row["name"]]) if row["name"] in refusing else "",
                "has_key": bool(account and account.api_key),
                "webhook": how_to_call_back(services, account) if account else "",
            }
        )
    used = [row for row in rows if row["configured"] or row["open_jobs"]]
    return show(request, "providers.html", providers=used, others=[row["name"] for row in rows if row not in used])


async def last_callback(services: Services, known: Known, row: dict[str, Any]) -> datetime | None:
    """When the last callback came. Asked only where one ever came, and seldom: the search may go through many notices."""
    count = row["counters"].get("callbacks_accepted", 0)
    now, name = services.clock.now(), row["name"]
    asked_at, found = known.get(name, (datetime.min.replace(tzinfo=UTC), None))
    if not count or now - asked_at < LOOK_AGAIN:
        return found
    listed = await services.store.read_notices(NoticeFilter(provider=name, channel=Channel.CALLBACK), 1, None, 0)
    known[name] = (now, listed.rows[0].at if listed.rows else None)
    return known[name][1]


def show_rate(account: Account | None) -> str:
    rate = account.rate_limit if account else None
    return f"{rate.count} per {rate.seconds:g} s" if rate else ""


def how_to_call_back(services: Services, account: Account) -> str:
    public_url, callback = services.config.server.public_url, account.spec.table.callback
    if callback is None:
        way = "its event stream is held open while jobs run" if account.has_stream else "every job is polled"
        return f"This provider does not call back: {way}."
    if public_url is None:
        return "No callback URL is sent, because public_url is not set: every job is polled."
    wide, secret = f"{public_url}/callbacks/{account.name}", f"callback_secrets under [providers.{account.name}]"
    if not account.spec.sends_callback_url:
        return f"To be set once, in the account at the provider: its webhook is {wide}, and its secret goes into {secret}."
    told = f"Nothing to set: each submit carries its own URL, {wide}/…"
    if callback.account_wide:
        told += f" A webhook of the whole account may point to {wide}, if it is signed"
        told += "." if account.callback_secrets else f"; its secret goes into {secret}."
    return told


PAGES = (page("/providers", show_providers, "The providers."),)
