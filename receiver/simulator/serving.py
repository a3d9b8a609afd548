"""Runs a simulator on a real port, in the event loop of the caller."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any

import uvicorn
from starlette.types import ASGIApp

from receiver.simulator.app import Simulator


@dataclass(frozen=True)
class Served:
    """A simulator that answers at `url`."""

    simulator: Simulator
    url: str

    def base_url(self, provider: str) -> str:
        """What to configure as this provider's `base_url`."""
        return str(self.settings(provider)["base_url"])

    def settings(self, provider: str) -> dict[str, Any]:
        """What to configure for this provider beside a key."""
        return self.simulator.settings(self.url)[provider]


class Server(uvicorn.Server):
    """uvicorn without signal handlers: the program that runs us has its own."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.is_up = asyncio.Event()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.is_up.set()


def open_listener(host: str, port: int) -> socket.socket:
    """A bound socket. asyncio turns Nagle's delay off only where the protocol is named: without it an answer takes 40 ms."""
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
    except OSError:
        listener.close()
        raise
    return listener


@asynccontextmanager
async def serve_app(app: ASGIApp, host: str = "127.0.0.1", port: int = 0) -> AsyncIterator[str]:
    """Serves an application while the block runs, and gives its URL."""
    with open_listener(host, port) as listener:
        config = uvicorn.Config(app, log_config=None, log_level="critical", access_log=False, timeout_graceful_shutdown=1)
        server = Server(config)
        serving = asyncio.create_task(server.serve([listener]))
        waiting = asyncio.create_task(server.is_up.wait())
        await asyncio.wait({serving, waiting}, return_when=asyncio.FIRST_COMPLETED)
        shown_host = f"[{host}]" if ":" in host else host
        try:
            yield f"http://{shown_host}:{listener.getsockname()[1]}"
        finally:
            waiting.cancel()
            server.should_exit = True
            await serving


@asynccontextmanager
async def serve_simulator(simulator: Simulator, host: str = "127.0.0.1", port: int = 0) -> AsyncIterator[Served]:
    """Serves the simulator while the block runs; port 0 takes a free one. An OSError tells that the port cannot be had."""
    async with serve_app(simulator.app, host, port) as url:
        try:
            yield Served(simulator, url)
        finally:
            await simulator.close()  # before the server waits for its open streams
