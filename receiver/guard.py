"""Connecting to a host that somebody else named: looked up once, every address checked, and the checked number is what is connected to."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from typing import Any

import httpcore

from receiver.addresses import Network, find_denial
from receiver.errors import Denied

Resolve = Callable[[str, int], Awaitable[Sequence[str]]]
"""All numeric addresses of a host, as the system would look them up. Raises OSError where there is none."""

READ_BYTES = 256 * 1024  # what asyncio and uvloop hand over at most
MAX_TRIED = 4  # addresses of one host


async def resolve(host: str, port: int) -> Sequence[str]:
    """Ask the system, which also understands `0x7f.1` and reads /etc/hosts: what it says is what is checked."""
    rows = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(row[4][0]) for row in rows))


class WideStream(httpcore.AsyncNetworkStream):
    """Reads as much at once as there is: httpcore asks for 64 KiB, and what is over is copied back and forth each time; of TLS it gets
    16 KiB, a record, though more have come, and each goes the whole way up alone."""

    def __init__(self, stream: httpcore.AsyncNetworkStream) -> None:
        self._stream = stream
        self._tls: ssl.SSLObject | None = stream.get_extra_info("ssl_object")

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        first = await self._stream.read(max(max_bytes, READ_BYTES), timeout)
        if self._tls is None or not first:
            return first
        return b"".join((first, *self._read_records(self._tls, READ_BYTES - len(first))))

    def _read_records(self, tls: ssl.SSLObject, most: int) -> Iterator[bytes]:
        """Those that have come already. Their end or a fault is the next read's to meet."""
        with suppress(ssl.SSLError):
            while most > 0 and (record := tls.read(most)):
                yield record
                most -= len(record)

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        await self._stream.write(buffer, timeout)

    async def aclose(self) -> None:
        await self._stream.aclose()

    async def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.AsyncNetworkStream:
        return WideStream(await self._stream.start_tls(ssl_context, server_hostname, timeout))

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)


class Guard(httpcore.AsyncNetworkBackend):
    """Sits below the connection pool, so nothing gets around it: no redirect, no kept-alive name, no second look-up by the library."""

    def __init__(self, allowed: Sequence[Network], resolve: Resolve) -> None:
        self._allowed, self._resolve = allowed, resolve
        self._sockets = httpcore.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        now = asyncio.get_running_loop().time
        until = None if timeout is None else now() + timeout
        addresses = await self._find_addresses(host, port, timeout)
        failure: Exception | None = None
        for position, address in enumerate(addresses):
            # Each gets a fair share of what is left, so that one that swallows packets leaves time for the next.
            share = None if until is None else max(until - now(), 0.01) / (len(addresses) - position)
            try:
                return WideStream(await self._sockets.connect_tcp(address, port, share, local_address, socket_options))
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                failure = error
        raise failure or httpcore.ConnectError(f"{host} has no address")

    async def connect_unix_socket(self, path: str, timeout: float | None = None, socket_options: Iterable[Any] | None = None) -> Any:
        raise Denied("A Unix socket is not an address on the internet.")

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    async def _find_addresses(self, host: str, port: int, timeout: float | None) -> Sequence[str]:
        try:
            async with asyncio.timeout(timeout):
                addresses = await self._resolve(host, port)
        except TimeoutError:
            raise httpcore.ConnectTimeout(f"looking up {host} timed out") from None
        except (OSError, UnicodeError) as error:
            raise httpcore.ConnectError(f"{host} cannot be looked up: {error}") from None
        for address in addresses:
            why = find_denial(address, self._allowed)
            if why is not None:
                raise Denied(f"{host} is {address} ({why}), which may not be reached; network.allow_private can name it.")
        return addresses[:MAX_TRIED]
