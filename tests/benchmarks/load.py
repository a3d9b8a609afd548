"""A load on loopback: so many connections that send the next request when the last one was answered. Bounded in time."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from itertools import cycle, islice
from urllib.parse import urlsplit


class Caller(asyncio.Protocol):
    """One connection. Cheap, so that the load does not measure itself."""

    def __init__(self, requests, until: float, laps: list[float], statuses: dict[int, int]) -> None:
        self.requests, self.until, self.laps, self.statuses = requests, until, laps, statuses
        self.done = asyncio.get_running_loop().create_future()
        self.buffer = b""
        self.sent_at = 0.0

    def connection_made(self, transport) -> None:
        self.transport = transport
        self.send()

    def send(self) -> None:
        self.sent_at = time.perf_counter()
        if self.sent_at >= self.until:
            self.transport.close()
        else:
            self.transport.write(next(self.requests))

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        head, gap, body = self.buffer.partition(b"\r\n\r\n")
        if not gap:
            return
        length = next((int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")), 0)
        if len(body) < length:
            return
        status = int(head[9:12])
        self.statuses[status] = self.statuses.get(status, 0) + 1
        self.laps.append(time.perf_counter() - self.sent_at)
        self.buffer = b""
        self.send()

    def connection_lost(self, error) -> None:
        if not self.done.done():
            self.done.set_result(None)


async def press(urls: list[str], bodies: list[tuple[str, bytes]], connections: int, seconds: float) -> dict[str, object]:
    """POST these (path, body) in turn, over connections spread over the addresses. Answers per second, and latencies in milliseconds."""
    parts = [urlsplit(url) for url in urls]
    requests = cycle(
        [
            b"POST %s HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s"
            % (path.encode(), len(body), body)
            for path, body in bodies
        ]
    )
    laps: list[float] = []
    statuses: dict[int, int] = {}
    start = time.perf_counter()
    loop = asyncio.get_running_loop()
    callers = [
        (await loop.create_connection(lambda: Caller(requests, start + seconds, laps, statuses), part.hostname, part.port))[1]
        for part in islice(cycle(parts), connections)
    ]
    await asyncio.wait_for(asyncio.gather(*(caller.done for caller in callers)), seconds + 30)
    took = time.perf_counter() - start
    laps.sort()
    return {
        "per_second": len(laps) / took,
        "p50_ms": laps[len(laps) // 2] * 1000,
        "p99_ms": laps[int(len(laps) * 0.99)] * 1000,
        "statuses": statuses,
    }


if __name__ == "__main__":
    asked = json.load(sys.stdin)
    bodies = [(path, body.encode()) for path, body in asked["bodies"]]
    print(json.dumps(asyncio.run(press(asked["urls"], bodies, asked["connections"], asked["seconds"]))))
