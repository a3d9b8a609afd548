"""Stores over one fresh database: two opened stores are two nodes."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import pytest

from receiver.stores import open_store as open_by_url
from receiver.stores.base import Store
from tests.postgres import get_server

OpenStore = Callable[[], AbstractAsyncContextManager[Store]]


@pytest.fixture(params=["sqlite", "postgres"])
async def store_url(request: pytest.FixtureRequest, tmp_path: Path):
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path}/receiver.db"
        return
    server = get_server()
    url = await server.take_database()
    yield url
    await server.give_back(url)


@pytest.fixture
def open_store(store_url: str) -> OpenStore:
    """Opens a node; all of one test stand on the same database."""
    return lambda: open_by_url(store_url)


@pytest.fixture
async def store(open_store: OpenStore):
    async with open_store() as opened:
        yield opened
