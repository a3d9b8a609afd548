"""What the doctor sees when it calls others: the server itself, the public URL from outside in, providers, handlers' targets."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import Literal
from urllib.parse import urlsplit

from receiver.app import Plan
from receiver.cli.findings import Finding
from receiver.cli.output import shorten
from receiver.cli.session import server_address
from receiver.cli.store import path_of
from receiver.config import Config
from receiver.config_values import is_postgres
from receiver.errors import ConfigError, ProviderFault, Unavailable
from receiver.handling import is_web_address
from receiver.masking import Masker
from receiver.model import Answer, ErrorCode, Request
from receiver.net import ProviderClient
from receiver.normalize import read_check_answer
from receiver.probe import has_fresh_callback
from receiver.probing import probe
from receiver.providers.account import Account
from receiver.providers.requests import build_check_request
from receiver.stores import open_store
from receiver.tokens import Tokens

TIMEOUT = timedelta(seconds=10)
SOME_SKEW, MUCH_SKEW = timedelta(seconds=30), timedelta(minutes=5)  # signatures are believed for five minutes
PORTS = {"http": 80, "https": 443}


async def check_network(plan: Plan) -> AsyncIterator[Finding]:
    """One finding after the other, in the order of the configuration; the calls run side by side."""
    client = ProviderClient()
    try:
        works = [check_server(client, plan.config), check_public_url(client, plan)]
        works += [check_provider(client, account) for account in plan.accounts.values()]
        works += [check_address(plugin.name, url) for plugin in plan.plugins for url in addresses_of(plugin.config.options)]
        tasks = [asyncio.create_task(work) for work in works]
        clocks = []
        for task in tasks:
            for finding in await task:
                if finding.check == "clock":
                    clocks.append(finding)
                else:
                    yield finding
        for finding in [each for each in clocks if each.state != "ok"] or clocks[:1]:
            yield finding
    finally:
        await client.close()


async def check_server(client: ProviderClient, config: Config) -> list[Finding]:
    address = server_address(config.server.host, config.server.port)
    try:
        answer = await get(client, f"{address}/readyz")
    except ProviderFault:
        return [Finding("warn", "server", f"none answers at {address}", "`receiver serve` starts it")]
    if answer.status == 200:
        return [Finding("ok", "server", f"is ready at {address}")]
    detail = answer.body.decode(errors="replace")[:300]
    return [Finding("fail", "server", f"is not ready at {address}: {detail}", "its log says why; it tries again by itself")]


async def check_public_url(client: ProviderClient, plan: Plan) -> list[Finding]:
    """Whether what is posted there arrives at the server with our secret, as it was sent."""
    config = plan.config
    url = config.server.public_url
    if url is None:
        return []
    known = secrets_of(config)
    if not known:
        return [Finding("warn", "public URL", "cannot be checked before the first start", "start the server, then ask again")]
    fault = await probe(client, Tokens(known), url, plan.accounts.values(), config.server.max_body_bytes)
    if fault is None:
        return [Finding("ok", "public URL", f"{url} leads to the server, and bodies and headers arrive as they are sent")]
    if not await receives_callbacks(config):
        return [Finding("fail", "public URL", fault.detail, f"{fault.mend} Until then jobs are polled.")]
    if fault.is_proven:
        return [Finding("warn", "public URL", f"{fault.detail} Callbacks arrive all the same.", fault.mend)]
    return [Finding("ok", "public URL", f"cannot be tried from here, and callbacks arrive: {fault.detail}")]


async def receives_callbacks(config: Config) -> bool:
    """Whether a callback came within the last hour."""
    if not is_postgres(config.store.url) and not path_of(config.store.url).exists():
        return False
    try:
        async with open_store(config.store.url, listen_url=config.store.listen_url) as store:
            return await has_fresh_callback(store, datetime.now(UTC))
    except (ConfigError, Unavailable):
        return False


def secrets_of(config: Config) -> tuple[str, ...]:
    """The configured secrets, else the one that the server keeps beside the database."""
    if config.server.secrets or is_postgres(config.store.url):
        return config.server.secrets
    with suppress(OSError):
        return tuple(filter(None, [path_of(config.store.url).with_suffix(".secret").read_text().strip()]))
    return ()


async def check_provider(client: ProviderClient, account: Account) -> list[Finding]:
    """Whether its host answers, whether it takes the key, by a call that costs nothing, and whether our clocks agree."""
    asked_at = datetime.now(UTC)
    request = build_check_request(account) if account.api_key else None
    try:
        answer = await (client.send(request, timeout=TIMEOUT) if request else get(client, account.base_url))
    except ProviderFault as error:
        mend = f"look at providers.{account.name}.base_url and at the way out of this machine"
        return [Finding("fail", f"provider {account.name}", str(error), mend)]
    host = urlsplit(account.base_url).hostname or ""
    if request:
        found = [check_answer(account, host, answer)]
    else:
        found = [
            Finding(
                "ok", f"provider {account.name}", f"{host} answers" + ("; its spec knows no call to try the key by" * bool(account.api_key))
            )
        ]
    skew = skew_of(answer, asked_at, datetime.now(UTC))
    return found if skew is None else [*found, check_clock(account, skew)]


def check_clock(account: Account, skew: timedelta) -> Finding:
    if skew <= SOME_SKEW:
        return Finding("ok", "clock", "agrees with those of the providers")
    state: Literal["fail", "warn"] = "fail" if skew > MUCH_SKEW else "warn"
    detail = f"differs by {skew.total_seconds():.0f} s from {account.name}'s"
    return Finding(state, "clock", detail, "let this machine keep its time by NTP; signatures and deadlines depend on it")


def check_answer(account: Account, host: str, answer: Answer) -> Finding:
    """What a provider says to the key."""
    check, error = f"provider {account.name}", read_check_answer(account, answer)
    if error is None:
        return Finding("ok", check, f"{host} answers, and takes the key")
    said = Masker((account.api_key,)).mask_text(f"HTTP {answer.status}: {shorten(error.message, 300)}")
    if error.code is ErrorCode.AUTHENTICATION:
        mend = f"copy the key anew from the provider's own pages into providers.{account.name}.api_key, or into the variable that it names"
        return Finding("fail", check, f"the key was refused ({said})", mend)
    if error.code is ErrorCode.PERMISSION:
        return Finding("fail", check, f"the key was refused ({said})", "the provider's own pages say what the key and the plan may do")
    if error.code is ErrorCode.INSUFFICIENT_BALANCE:
        return Finding("warn", check, f"the account is short of money ({said})", "top it up; until then submits fail")
    return Finding("warn", check, f"{host} answers, and whether the key is good it does not say ({said})", "ask again later")


def skew_of(answer: Answer, before: datetime, after: datetime) -> timedelta | None:
    """How far our clock is from the other side's; the call's own time does not count."""
    try:
        there = parsedate_to_datetime(answer.headers["date"]).astimezone(UTC)
    except (KeyError, ValueError, TypeError):
        return None
    return max(before - there - timedelta(seconds=1), there - after, timedelta(0))


def addresses_of(options: dict[str, object]) -> list[str]:
    return [value for value in options.values() if isinstance(value, str) and is_web_address(value)]


async def check_address(handler: str, url: str) -> list[Finding]:
    """Whether somebody listens there. Only the host is shown: the rest of such an address may be a secret."""
    parts = urlsplit(url)
    host, port = parts.hostname or "", parts.port or PORTS[parts.scheme]
    try:
        async with asyncio.timeout(TIMEOUT.total_seconds()):
            _, writer = await asyncio.open_connection(host, port)
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()
    except (OSError, TimeoutError) as error:
        detail = f"nobody answers at {host}:{port}: {error or type(error).__name__}"
        return [Finding("fail", f"handler {handler}", detail, "start what should listen there, or mend the address in its options")]
    return [Finding("ok", f"handler {handler}", f"{host}:{port} answers")]


async def get(client: ProviderClient, url: str) -> Answer:
    return await client.send(Request(method="GET", url=url), timeout=TIMEOUT)
