"""A real browser in front of a real installation; what goes wrong in its console fails the test."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from receiver.app import check, run
from receiver.config import load
from receiver.simulator import Served
from receiver.simulator.serving import Server, open_listener
from receiver.web.application import create_app
from tests.stories.home import Home, make_config, uvicorn_config

KEY = "the-api-key-of-the-browser-test"
EXECUTABLE = os.environ.get("RECEIVER_CHROMIUM", "/usr/bin/chromium")
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
]
TOO_SMALL = """[...document.querySelectorAll("button, select, textarea, input:not([type=hidden]), summary, nav a, .troubles a")]
    .filter((each) => each.checkVisibility() && each.getBoundingClientRect().height < 40).map((each) => each.outerHTML.slice(0, 120))"""
PHONE = {"width": 390, "height": 844}
DESK = {"width": 1280, "height": 860}


def missing() -> str | None:
    """Why there can be no browser here."""
    try:
        import playwright.async_api  # noqa: F401
    except ImportError:
        return "playwright is not installed: pip install -e .[browser]"
    return None if Path(EXECUTABLE).exists() else f"there is no {EXECUTABLE}: apt-get install chromium, or set RECEIVER_CHROMIUM"


@asynccontextmanager
async def open_site(sim: Served, folder: Path, *, keys: bool = True, **config: Any) -> AsyncIterator[Home]:
    """An installation that wants an API key."""
    with open_listener("127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]
        text = make_config(sim, folder, port, **config)
        if keys:
            text = text.replace("[server]\n", f'[server]\napi_keys = ["{KEY}"]\n', 1)
        async with run(check(load(text, os.environ, folder=folder))) as services:
            app = create_app(services)
            server = Server(uvicorn_config(app))
            serving = asyncio.create_task(server.serve([listener]))
            url = f"http://127.0.0.1:{port}"
            headers = {"Authorization": f"Bearer {KEY}"} if keys else {}
            try:
                async with httpx.AsyncClient(base_url=url, timeout=65, trust_env=False, headers=headers) as api:
                    yield Home(api, services, sim, folder, url)
            finally:
                app.state.waiting.stop()
                server.should_exit = True
                await serving


@dataclass
class Tab:
    """One page of the browser, and what its console said."""

    page: Any
    url: str
    complaints: list[str]

    async def go(self, path: str) -> None:
        await self.page.goto(self.url + path)

    async def sign_in(self, path: str = "/") -> None:
        await self.go(path)
        await self.page.get_by_label("API key").fill(KEY)
        await self.page.get_by_role("button", name="Sign in").click()
        await self.page.get_by_role("navigation", name="Pages").wait_for()

    async def fits(self) -> bool:
        """Whether nothing is wider than the window."""
        return await self.page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")

    async def open_all(self) -> None:
        """Everything that can be unfolded; `/docs` is made by its script first."""
        if self.page.url.endswith("/docs"):
            await self.page.locator("details").first.wait_for()
        await self.page.evaluate("document.querySelectorAll('details').forEach((each) => { each.open = true })")

    async def too_small(self) -> list[str]:
        """What a thumb would miss: lower than forty pixels."""
        return await self.page.evaluate(TOO_SMALL)


@asynccontextmanager
async def open_tab(browser: Any, home: Home, **options: Any) -> AsyncIterator[Tab]:
    context = await browser.new_context(**{"viewport": DESK} | options)
    context.set_default_timeout(10_000)
    page = await context.new_page()
    complaints: list[str] = []
    page.on("console", lambda message: complaints.append(message.text) if message.type in {"error", "warning"} else None)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    try:
        yield Tab(page, home.url, complaints)
    finally:
        await context.close()
