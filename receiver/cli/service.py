"""`receiver serve` and `receiver poll`: what runs for long."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click
import structlog
import uvicorn

from receiver.app import ROLES, Plan, run
from receiver.cli.bounds import Bounded, raise_file_limit
from receiver.cli.connections import MAX_HEAD, find_protocol
from receiver.cli.session import Session, pass_session
from receiver.cli.sockets import BACKLOG, address_of, notify_systemd, open_sockets
from receiver.cli.stopping import Stop
from receiver.config import Config, check_exposure
from receiver.errors import ConfigError

if TYPE_CHECKING:
    from starlette.types import ASGIApp

KEEP_ALIVE = 75  # seconds; longer than proxies keep their side open, so that they never meet a closing connection
LAST_SECONDS = 2  # for what was cancelled to end
GRACE = 10  # seconds for requests under way to end
log = structlog.get_logger("receiver.cli")


class Roles(click.ParamType[tuple[str, ...]]):
    """Roles separated by commas."""

    name = "roles"

    def __init__(self, known: Sequence[str]) -> None:
        self.known = known

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, ...]:
        if isinstance(value, tuple):
            return value
        roles = tuple(dict.fromkeys(word.strip() for word in value.split(",") if word.strip()))
        wrong = [role for role in roles if role not in self.known]
        if wrong or not roles:
            self.fail(f"{', '.join(wrong) or repr(value)} is no role; there are {', '.join(self.known)}", param, ctx)
        return roles


DAEMON_ROLES = tuple(role for role in ROLES if role != "web")


@click.command()
@click.option("--host", help="The address to listen on, in place of [server] host.")
@click.option("--port", type=click.IntRange(0, 65535), help="The port, in place of [server] port; 0 takes a free one.")
@click.option("--roles", type=Roles(ROLES), default=ROLES, metavar="ROLE,…", help=f"What to do: {','.join(ROLES)}. Default: all.")
@pass_session
def serve(session: Session, host: str | None, port: int | None, roles: tuple[str, ...]) -> None:
    """Run the server until SIGTERM or Ctrl-C; once more ends it at once."""
    plan = session.check(with_address(session.config, host, port))
    session.set_up_logs(is_daemon=True)
    server = plan.config.server
    sockets = open_sockets(server.host, server.port, os.environ, plan.config.file) if "web" in roles else []
    try:
        run_until_stopped(lambda stop: run_roles(plan, roles, sockets, stop))
    finally:
        for listener in sockets:
            listener.close()


@click.command()
@click.option("--roles", type=Roles(DAEMON_ROLES), default=DAEMON_ROLES, metavar="ROLE,…", help=f"Default: {','.join(DAEMON_ROLES)}.")
@pass_session
def poll(session: Session, roles: tuple[str, ...]) -> None:
    """Run everything but HTTP, beside a server or alone, until SIGTERM or Ctrl-C."""
    plan = session.check()
    session.set_up_logs(is_daemon=True)
    run_until_stopped(lambda stop: run_roles(plan, roles, [], stop))


def with_address(config: Config, host: str | None, port: int | None) -> Config:
    """The configuration with another address; ConfigError where that would let strangers in."""
    from msgspec.structs import replace

    server = replace(config.server, host=host or config.server.host, port=config.server.port if port is None else port)
    changed = replace(config, server=server)
    mistakes = check_exposure(changed)
    if mistakes:
        raise ConfigError(mistakes)
    return changed


def run_until_stopped(work: Callable[[Stop], Any]) -> None:
    """On uvloop where it is installed."""

    async def main() -> None:
        raise_file_limit()
        await work(Stop())
        await end_leftovers()

    with asyncio.Runner(loop_factory=uvicorn.Config(app="", log_config=None).get_loop_factory()) as runner:
        runner.run(main())


async def end_leftovers() -> None:
    """Everything is written and closed by now. A handler that ignores its cancellation would be waited for without end, so it goes with
    the process."""
    left = asyncio.all_tasks() - {asyncio.current_task()}
    for task in left:
        task.cancel()
    _, left = await asyncio.wait(left, timeout=LAST_SECONDS) if left else ((), set())
    if left:
        log.error("receiver.left_behind", tasks=sorted(task.get_name() for task in left))
        logging.shutdown()
        os._exit(0)


async def run_roles(plan: Plan, roles: Sequence[str], sockets: list[socket.socket], stop: Stop) -> None:
    async with run(plan, roles) as services:
        spare_collector()
        if not sockets:
            announce(f"Receiver runs: {', '.join(roles)}")
            await stop.wait()
        else:
            from receiver.web.application import create_app
            from receiver.web.pages_frame import prepare

            app = create_app(services)
            preparing = asyncio.create_task(asyncio.to_thread(prepare), name="prepare pages")
            await serve_until_stopped(app, sockets, stop, on_stop=app.state.waiting.stop)
            await preparing
        notify_systemd("STOPPING=1", os.environ)
        log.info("receiver.stopping", roles=list(roles))


def spare_collector() -> None:
    """What a start has made lives to the end: nothing in it is garbage. And what a callback makes goes without the collector, which
    took a sixth of its time with the interpreter's own thresholds."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 50)


def announce(line: str) -> None:
    click.echo(line)
    notify_systemd("READY=1", os.environ)


async def serve_until_stopped(app: ASGIApp, sockets: list[socket.socket], stop: Stop, *, on_stop: Callable[[], None]) -> None:
    """Answer requests until told to stop; then let those under way end."""
    addresses = " and ".join(address_of(listener) for listener in sockets)
    server = Server(make_config(app), lambda: announce(f"Receiver listens on {addresses}"))
    serving = asyncio.create_task(server.serve(sockets))
    stopping = asyncio.create_task(stop.wait())
    await asyncio.wait({serving, stopping}, return_when=asyncio.FIRST_COMPLETED)
    stopping.cancel()
    on_stop()
    server.should_exit = True
    await serving


def make_config(app: ASGIApp) -> uvicorn.Config:
    """No access log (tokens stand in paths), no word about what serves, and X-Forwarded-* are not uvicorn's business."""
    return uvicorn.Config(
        Bounded(app),
        http=find_protocol(),
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        lifespan="off",
        ws="none",
        backlog=BACKLOG,
        h11_max_incomplete_event_size=MAX_HEAD,
        timeout_keep_alive=KEEP_ALIVE,
        timeout_graceful_shutdown=GRACE,
    )


class Server(uvicorn.Server):
    """uvicorn that leaves signals to us and says when it is up."""

    def __init__(self, config: uvicorn.Config, on_up: Callable[[], None]) -> None:
        super().__init__(config)
        self._on_up = on_up

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._on_up()
