"""How soon a person sees something: the first contentful paint of the pages with a million jobs, in a real Chromium that signed in."""

from __future__ import annotations

import asyncio
import statistics
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.parse import unquote, urlsplit

from receiver.stores import open_store
from tests.benchmarks.filling import Filling, fill_postgres, fill_sqlite
from tests.benchmarks.inflight import MORE, ROLES
from tests.benchmarks.lines import Line, Settings, tell
from tests.benchmarks.servers import database, receivers
from tests.browser.chromium import DESK, EXECUTABLE, FLAGS, KEY, missing

JOBS = 1_000_000  # one in five is open, the others have ended
FEW = 1_000
STARTS = 3  # of the server
LATER = 5  # looks after the first one
GOAL = 300.0  # ms
PAGES = {
    "/jobs": "jobs",
    "/": "overview",
    "/jobs?status=failed": "jobs, failed",
    "/jobs?status=expired&provider=huzz": "jobs, hardly any fits",
    "/jobs?provider=pixazo&model=pixazo-3": "jobs, many fit",
    "/jobs?q=user%3D7": "search by metadata",
    "/jobs?q=remote-77": "search by the provider's id",
    "/jobs?q=nobody": "search in vain",
    "/deliveries": "deliveries",
    "/deliveries?state=done": "deliveries, done",
    "/notices": "notices",
    "/providers": "providers",
    "/handlers": "handlers",
    "/costs": "costs",
}
PAINTED = """() => new Promise((tell) => new PerformanceObserver((list) => {
    for (const { startTime } of list.getEntriesByName("first-contentful-paint")) tell(startTime);
}).observe({ type: "paint", buffered: true }))"""


async def fill(url: str, jobs: int) -> None:
    async with open_store(url):
        pass
    now, few = datetime.now(UTC), jobs // 5
    fillings = Filling(jobs - few, now), Filling(few, now, "open", jobs - few + 1)
    if url.startswith("sqlite:"):
        await asyncio.to_thread(fill_sqlite, Path(unquote(urlsplit(url).path)), *fillings)
    else:
        from tests.postgres import connect

        async with connect(url) as connection:
            await fill_postgres(connection, *fillings)


async def look(page: Any, address: str) -> float:
    """Milliseconds from the wish to see a page to the first of it on the screen."""
    await page.goto(address, wait_until="commit")
    async with asyncio.timeout(60):
        return float(await page.evaluate(PAINTED))


async def look_at_pages(address: str) -> dict[str, tuple[float, float]]:
    """By path: the first paint of the first look since the server's start, with no file of ours in the cache, and of later ones."""
    from playwright.async_api import async_playwright

    seen: dict[str, tuple[float, float]] = {}
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=EXECUTABLE, args=FLAGS)
        state = await sign_in(browser, address)
        for path in PAGES:
            context = await browser.new_context(viewport=DESK, storage_state=state)
            page = await context.new_page()
            await page.goto(f"{address}/healthz")  # starting a process of the browser is no page's fault
            first = await look(page, address + path)
            seen[path] = first, statistics.median([await look(page, address + path) for _ in range(LATER)])
            await context.close()
        await browser.close()
    return seen


async def sign_in(browser: Any, address: str) -> Any:
    """The cookies of somebody who has signed in, and seen no page yet."""
    context = await browser.new_context(viewport=DESK)
    page = await context.new_page()
    await page.goto(f"{address}/sign-in?next=healthz")
    await page.get_by_label("API key").fill(KEY)
    await page.get_by_role("button", name="Sign in").click()
    await page.wait_for_url(f"{address}/healthz")
    state = await context.storage_state()
    await context.close()
    return state


def look_at_server(url: str) -> dict[str, tuple[float, float]]:
    """The medians over some starts of the server."""
    looks = []
    for _ in range(STARTS):
        with (
            TemporaryDirectory() as folder,
            receivers(url, [ROLES], MORE, folder=Path(folder), server=f'api_keys = ["{KEY}"]') as (address,),
        ):
            looks.append(asyncio.run(look_at_pages(address)))
    return {
        path: (statistics.median(each[path][0] for each in looks), statistics.median(each[path][1] for each in looks)) for path in PAGES
    }


def measure(settings: Settings) -> Iterator[Line]:
    if reason := missing():
        tell(f"  paint is left out: {reason}")
        return
    jobs = max(int(JOBS * settings.scale), FEW)
    for kind in settings.stores:
        found = []
        for count in (FEW, jobs):
            with database(kind) as url:
                asyncio.run(fill(url, count))
                found.append(look_at_server(url))
        few, many = found
        for path, name in PAGES.items():
            for position, when in enumerate(("first", "later")):
                ours, reference = many[path][position], few[path][position]
                yield Line(
                    name=f"first paint: {name}, {when}",
                    store=kind,
                    ours=ours,
                    unit="ms",
                    reference=reference,
                    reference_name=f"{FEW:,} jobs",
                    ratio=ours / reference,
                    goal="" if path == "/costs" else f"< {GOAL:g}",  # its first look adds up a week, for all looks of the next seconds
                    note=f"{jobs:,} jobs, GET {path}",
                )
