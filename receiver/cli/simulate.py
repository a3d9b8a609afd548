"""`receiver simulate`: the providers' side alone, to try a configuration and handlers without keys."""

from __future__ import annotations

import json
from contextlib import AsyncExitStack
from typing import Any

import click

from receiver.cli.output import print_json
from receiver.cli.session import Session, pass_session, run_async, shows_json
from receiver.cli.sockets import show_address
from receiver.cli.stopping import Stop
from receiver.errors import ConfigError, Mistake
from receiver.simulator import Simulator, serve_simulator


@click.command()
@click.option("--host", default="127.0.0.1", show_default=True, help="The address to listen on.")
@click.option("--port", type=click.IntRange(0, 65535), default=8090, show_default=True, help="The port; 0 takes a free one.")
@click.option("--speed", type=click.FloatRange(min=0, min_open=True), default=1.0, show_default=True, help="10: ten times as fast.")
@shows_json
@pass_session
def simulate(_: Session, host: str, port: int, speed: float, as_json: bool) -> None:
    """Run the simulator of the providers until Ctrl-C. Any API key is good but `wrong`; nothing is billed."""
    run_async(serve_until_stopped(host, port, speed, as_json))


async def serve_until_stopped(host: str, port: int, speed: float, as_json: bool) -> None:
    stop = Stop()
    async with AsyncExitStack() as stack:
        try:
            served = await stack.enter_async_context(serve_simulator(Simulator(speed=speed), host, port))
        except OSError as error:
            detail = f"cannot listen on {show_address(host, port)}: {error.strerror or error}"
            raise ConfigError([Mistake("", "--port", detail)]) from None
        bases, accounts = served.simulator.base_urls(served.url), served.simulator.settings(served.url)
        print_json({"url": served.url, "base_urls": bases, "accounts": accounts}) if as_json else show(served.url, accounts)
        await stop.wait()


def show(url: str, accounts: dict[str, dict[str, Any]]) -> None:
    click.echo(f"The simulator listens on {url}. In receiver.toml:\n")
    for name, settings in accounts.items():
        lines = [f"{key} = {json.dumps(value)}" for key, value in settings.items()]
        click.echo("\n".join([f"[providers.{name}]", 'api_key = "any"', *lines, ""]))
    click.echo('[network]  # its files are on this machine too\nallow_private = ["127.0.0.0/8"]\n')
    click.echo('A prompt says what is to happen: "a boat [sim: twice failed seconds=3]".')
    click.echo(f"{url} explains all words; Ctrl-C ends it.")
