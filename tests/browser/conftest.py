"""One browser for all tests of a module; skipped with the reason where there is none."""

from __future__ import annotations

import pytest

from tests.browser.chromium import EXECUTABLE, FLAGS, missing


@pytest.fixture
async def browser():
    reason = missing()
    if reason:
        pytest.skip(reason)
    from playwright.async_api import async_playwright

    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=EXECUTABLE, args=FLAGS)
        yield browser
        await browser.close()
