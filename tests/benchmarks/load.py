"""A load on loopback, in a process of its own: as fast as it is answered, or so many a second. Bounded in time."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from itertools import cycle, islice
from typing import Any
from urllib.parse import urlsplit

from tests.benchmarks.servers import CONNECTIONS, callbacks

PAUSE = 0.05  # seconds that a connection rests after a 503
TICK = 0.001


class Seen:
    """What came of it."""

    def __init__(self) -> None:
        self.laps: list[float] = []
        self.statuses: Counter[int] = Counter()
        self.sent: dict[int, int] = {}  # number of the callback → CLOCK_MONOTONIC when its first byte left, in nanoseconds
        self.late = 0  # of those that were due when no connection was free

    def report(self, seconds: float) -> dict[str, Any]:
        laps = sorted(self.laps) or [0.0]
        return {
            "per_second": self.statuses[200] / seconds,
            "p50_ms": laps[len(laps) // 2] * 1000,
            "p99_ms": laps[int(len(laps) * 0.99)] * 1000,
            "statuses": dict(self.statuses),
            "late": self.late,
        }


class Caller(asyncio.Protocol):
    """One connection. Cheap, so that the load does not measure itself."""

    def __init__(self, load: Load) -> None:
        self.load = load
        self.buffer = b""
        self.sent_at = 0.0

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def send(self, request: bytes) -> None:
        self.sent_at = time.perf_counter()
        self.transport.write(request)

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        head, gap, body = self.buffer.partition(b"\r\n\r\n")
        if not gap:
            return
        length = next((int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")), 0)
        if len(body) < length:
            return
        status = int(head[9:12])
        self.load.seen.statuses[status] += 1
        self.load.seen.laps.append(time.perf_counter() - self.sent_at)
        self.buffer = b""
        self.load.answered(self, status)


class Load:
    """Sends each callback once, then begins again, unless `once`. With `rate` so many a second over connections that are free; else
    each connection sends when it was answered, and rests a little after a 503."""

    def __init__(self, count: int, first: int = 0, status: str = "in_progress", *, rate: float | None = None, once: bool = False) -> None:
        self.seen = Seen()
        self._rate = rate
        made = enumerate(callbacks(count, first, status), first)
        requests = [(number, make_request(path, body)) for number, (path, body) in made]
        self._requests: Iterator[tuple[int, bytes]] = iter(requests) if once else cycle(requests)
        self._free: deque[Caller] = deque()
        self._is_over = False

    async def run(self, urls: Sequence[str], connections: int, seconds: float) -> dict[str, Any]:
        loop = asyncio.get_running_loop()
        parts = [urlsplit(url) for url in urls]
        for part in islice(cycle(parts), connections):
            _, caller = await loop.create_connection(lambda: Caller(self), part.hostname, part.port)
            self._free.append(caller)
        began, at = loop.time(), time.monotonic_ns()
        if self._rate is None:
            while self._free:
                self._send(self._free.popleft())
            while loop.time() < began + seconds and not self._is_over:
                await asyncio.sleep(0.01)
        else:
            await self._pace(began, self._rate, seconds)
        took = loop.time() - began
        self._is_over = True
        report = self.seen.report(took)
        await asyncio.sleep(0.3)  # what is under way may still come
        return report | {"began": at, "seconds": took, "sent": list(self.seen.sent.items())}

    async def _pace(self, began: float, rate: float, seconds: float) -> None:
        loop = asyncio.get_running_loop()
        sent = 0
        while (now := loop.time()) < began + seconds:
            due = int((now - began) * rate)
            while sent < due and self._free:
                self._send(self._free.popleft())
                sent += 1
            self.seen.late = max(self.seen.late, due - sent)
            await asyncio.sleep(TICK)

    def _send(self, caller: Caller) -> None:
        found = next(self._requests, None)
        if found is None or self._is_over:
            self._is_over = True
            return
        number, request = found
        if self._rate is not None:
            self.seen.sent[number] = time.monotonic_ns()
        caller.send(request)

    def answered(self, caller: Caller, status: int) -> None:
        if self._rate is not None:
            self._free.append(caller)
        elif status == 503:
            asyncio.get_running_loop().call_later(PAUSE, self._send, caller)
        else:
            self._send(caller)


def make_request(path: str, body: str) -> bytes:
    head = "POST %s HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
    return (head % (path, len(body)) + body).encode()


def main() -> None:
    asked = json.load(sys.stdin)
    urls, connections, seconds = asked.pop("urls"), asked.pop("connections", CONNECTIONS), asked.pop("seconds")
    load = Load(**asked)
    print(json.dumps(asyncio.run(load.run(urls, connections, seconds))))


if __name__ == "__main__":
    main()
