"""Several nodes on one PostgreSQL, behind one address: whichever answers gets the connection."""

from __future__ import annotations

import asyncio
import random
import signal
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path

import httpx

from receiver.simulator import Served
from tests.crash.house import RECORDER, RECORDING, House, Process, configuration, free_port, until
from tests.postgres import Server

PATIENCE = 20.0  # seconds: a request that met a node that stands still is made again
START_AGAIN = 0.2  # seconds, as systemd would wait


class Door:
    """A load balancer: each connection goes to one of the nodes that take it, by chance, and breaks when that node dies."""

    def __init__(self, ports: Sequence[int], rng: random.Random) -> None:
        self._ports, self._rng = list(ports), rng
        self._serving: set[asyncio.Task[None]] = set()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._serving.add(task)
        try:
            for port in self._rng.sample(self._ports, len(self._ports)):
                with suppress(OSError):
                    behind = await asyncio.open_connection("127.0.0.1", port)
                    await asyncio.gather(pump(reader, behind[1]), pump(behind[0], writer))
                    break
        except asyncio.CancelledError:  # at the end of the test
            pass
        finally:
            writer.close()
            self._serving.discard(task)

    async def close(self) -> None:
        for task in self._serving:
            task.cancel()
        await asyncio.gather(*self._serving)


async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """All bytes of one direction; a break on one side is passed on."""
    try:
        with suppress(OSError):
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
    finally:
        writer.close()


class Node:
    """One server of the cluster, started again whenever it is gone, as a supervisor does."""

    def __init__(self, house: House, *, fork: bool) -> None:
        self.house, self._fork = house, fork
        self.kills = 0
        self.gave_up = 0  # starts that ended by themselves, for want of a database
        self.may_give_up = False
        self._process: Process | None = None
        self.is_up = asyncio.Event()

    async def live(self) -> None:
        """Until cancelled. A server that ends by itself while it could work is a failure."""
        while True:
            async with self.house.run("serve", fork=self._fork) as process:
                self._process = process
                await until(lambda process=process: self._has_ended(process) or self.house.is_up(), tell=process.tail)
                if process.code is None:
                    self.is_up.set()
                    await until(lambda process=process: self._has_ended(process), 3600)
                self.is_up.clear()
                self._process = None
                if process.code != -9:
                    assert self.may_give_up, f"a node ended by itself with {process.code}; {process.tail()}"
                    self.gave_up += 1
            await asyncio.sleep(START_AGAIN)

    def _has_ended(self, process: Process) -> bool:
        return process.code is not None

    def kill(self) -> bool:
        """kill -9. False where it is not running at the moment."""
        if self._process is None or self._process.code is not None:
            return False
        self._process.kill()
        self.kills += 1
        return True

    async def stall(self, seconds: float) -> None:
        """As a machine that swaps or is moved: it stands still, and goes on as if nothing had been."""
        process = await until(lambda: self._process)
        with suppress(ProcessLookupError):  # it died meanwhile
            process.signal(signal.SIGSTOP)
            await asyncio.sleep(seconds)
            process.signal(signal.SIGCONT)


class Cluster:
    """The nodes, the door, and the database that they share. `front` is what a user sees."""

    def __init__(self, front: House, nodes: Sequence[Node], postgres: Server) -> None:
        self.front, self.nodes, self._postgres = front, nodes, postgres

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """All nodes up; killed at the end. A node that cannot live ends it all at once."""
        async with asyncio.TaskGroup() as group:
            lives = [group.create_task(node.live()) for node in self.nodes]
            await self.all_up()
            yield
            for life in lives:
                life.cancel()

    async def all_up(self) -> None:
        await until(lambda: all(node.is_up.is_set() for node in self.nodes))

    @property
    def can_restart_postgres(self) -> bool:
        return self._postgres.wheel is not None

    async def restart_postgres(self) -> None:
        """As a crash of the database does it."""
        async with self.without_postgres():
            pass

    @asynccontextmanager
    async def without_postgres(self) -> AsyncIterator[None]:
        """The database is gone meanwhile, and so are nodes that start."""
        for node in self.nodes:
            node.may_give_up = True
        await asyncio.to_thread(self._postgres.stop_hard)
        try:
            yield
        finally:
            await asyncio.to_thread(self._postgres.start)
        await self.all_up()
        for node in self.nodes:
            node.may_give_up = False


@asynccontextmanager
async def open_cluster(
    sim: Served, folder: Path, postgres: Server, count: int, rng: random.Random, *, fork: bool = False, polling: str = ""
) -> AsyncIterator[Cluster]:
    """Nodes that are ready to run, on an empty database, with one handler that records and one that stores."""
    url = await postgres.make_database()
    async with AsyncExitStack() as stack:
        ports = [free_port() for _ in range(count)]
        door = Door(ports, rng)
        listener = await asyncio.start_server(door.serve, "127.0.0.1", 0)
        stack.push_async_callback(door.close)
        stack.callback(listener.close)
        port = listener.sockets[0].getsockname()[1]
        sim.simulator.register_webhook("openai", f"http://127.0.0.1:{port}/callbacks/openai")
        front = House(sim, folder, await stack.enter_async_context(open_client(port)), port)
        nodes = []
        for number, own in enumerate(ports, 1):
            place = folder / f"node-{number}"
            place.mkdir()
            house = House(sim, place, await stack.enter_async_context(open_client(own)), own)
            address = f'port = {own}\npublic_url = "http://127.0.0.1:{port}"\nsecrets = ["a secret that all nodes share, and no one else"]'
            house.file.write_text(configuration(sim, address, url, polling, outputs=f"{folder / 'outputs'}"))
            (place / f"{RECORDER}.py").write_text(
                RECORDING.replace('pathlib.Path(__file__).parent / "events.jsonl"', f"pathlib.Path({str(front.events)!r})")
            )
            nodes.append(Node(house, fork=fork))
        yield Cluster(front, nodes, postgres)


def open_client(port: int) -> httpx.AsyncClient:
    """A connection for each request, so that each may meet another node."""
    limits = httpx.Limits(max_keepalive_connections=0)
    return httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=PATIENCE, trust_env=False, limits=limits)
