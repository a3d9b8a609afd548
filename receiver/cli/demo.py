"""`receiver demo`: the whole story on this machine, with simulated providers, no keys and no network."""

from __future__ import annotations

import asyncio
import logging
import secrets
import socket
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import AsyncExitStack, aclosing, asynccontextmanager, contextmanager
from dataclasses import dataclass
from io import TextIOWrapper
from pathlib import Path
from time import monotonic
from typing import Any

import click

from receiver.app import check, run
from receiver.cli.demo_checks import Evidence, check_story, find_fault
from receiver.cli.demo_story import ACTS, GAP, INTERVAL, OVERDUE, TOLD_BY_TIMELINE, Act, Scene, act_of, steps, tell
from receiver.cli.demo_table import Screen, choose_screen, show_end
from receiver.cli.service import Server, make_config
from receiver.cli.session import Session, pass_session, run_async
from receiver.cli.stopping import Stop
from receiver.cli.watch import show as show_event
from receiver.client import Client, Timeline
from receiver.config import Config, load
from receiver.errors import ConfigError, Mistake
from receiver.logs import set_up_logs
from receiver.masking import Masker
from receiver.services import Services
from receiver.simulator import Served, Simulator, serve_simulator
from receiver.simulator.serving import open_listener
from receiver.web.application import create_app

HOST = "127.0.0.1"
FILE = "receiver.toml"
MARK = "# Written by `receiver demo`"
PATIENCE = 45.0  # seconds; then the checks say what did not come home
LOOK_EVERY = 0.15
JOB_FAILED, INTERRUPTED = 1, 130


@click.command()
@click.option("--once", is_flag=True, help="End when the story has ended, with exit code 0 if every job came home.")
@click.option("--folder", type=click.Path(file_okay=False, path_type=Path), help="Where files, database and log go; default: a new one.")
@click.option("--port", type=click.IntRange(0, 65535), default=0, help="The port of the server; default: a free one.")
@click.option("--speed", type=click.FloatRange(0.1, 5), default=1.0, show_default=True, help="2: the story takes half the time.")
@pass_session
def demo(_: Session, once: bool, folder: Path | None, port: int, speed: float) -> None:
    """Watch jobs of five simulated providers come home: no keys, no network, no configuration.

    One callback is lost, one comes twice, one is forged, and one submit gets no answer. Without --once the server stays up afterwards,
    with its dashboard, until Ctrl-C.
    """
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # not every terminal has the signs
    code = run_async(perform(prepare(folder), port, speed, stays=not once))
    if code:
        raise click.exceptions.Exit(code)


async def perform(folder: Path, port: int, speed: float, *, stays: bool) -> int:
    """The exit code."""
    stop = Stop()
    async with open_house(folder, port, speed) as house:
        playing = asyncio.create_task(play(house, choose_screen(house.scene)))
        if not await ends_first(playing, stop):
            return INTERRUPTED
        evidence = playing.result()
        checks = await asyncio.to_thread(check_story, evidence)
        show_end(checks, evidence, house.scene.seconds, str(folder))
        if stays:
            await ends_first(asyncio.create_task(stay(house)), stop)
    return 0 if all(check.is_good for check in checks) else JOB_FAILED


async def ends_first(work: asyncio.Task[Any], stop: Stop) -> bool:
    """Whether the work ended by itself; else it is cancelled."""
    stopping = asyncio.create_task(stop.wait())
    await asyncio.wait({work, stopping}, return_when=asyncio.FIRST_COMPLETED)
    stopping.cancel()
    if work.done():
        return True
    work.cancel()
    await asyncio.wait({work})
    return False


# The installation


@dataclass(frozen=True)
class House:
    """The running installation."""

    sim: Served
    client: Client
    scene: Scene
    run_id: str  # marks the jobs of this story
    speed: float


def prepare(folder: Path | None) -> Path:
    """The folder, without harm to a configuration that somebody wrote."""
    if folder is None:
        return Path(tempfile.mkdtemp(prefix="receiver-demo-"))
    file = folder / FILE
    try:
        folder.mkdir(parents=True, exist_ok=True)
        is_foreign = file.exists() and not file.read_text(encoding="utf-8", errors="replace").startswith(MARK)
    except OSError as error:
        raise ConfigError([Mistake("", "--folder", f"{folder} cannot be used: {error.strerror}")]) from None
    if is_foreign:
        raise ConfigError([Mistake("", "--folder", f"{file} is there already and is not the demo's; name another folder")])
    return folder.absolute()


@asynccontextmanager
async def open_house(folder: Path, port: int, speed: float) -> AsyncIterator[House]:
    """Simulator, server and client, each reached by real HTTP."""
    async with AsyncExitStack() as stack:
        listener = stack.enter_context(listen(port))
        url = f"http://{HOST}:{listener.getsockname()[1]}"
        sim = await stack.enter_async_context(serve_simulator(Simulator(speed=speed)))
        config = write_config(folder, url, sim, speed)
        stack.enter_context(logs_in(folder / "receiver.log", config))
        services = await stack.enter_async_context(run(check(config)))
        await stack.enter_async_context(serve(services, listener))
        client = await stack.enter_async_context(Client(url))
        yield House(sim, client, Scene(url), secrets.token_hex(4), speed)


def listen(port: int) -> socket.socket:
    try:
        return open_listener(HOST, port)
    except OSError as error:
        raise ConfigError([Mistake("", "--port", f"cannot listen on {HOST}:{port}: {error.strerror or error}")]) from None


def write_config(folder: Path, url: str, sim: Served, speed: float) -> Config:
    """Writes the configuration as a user would, and reads it."""
    accounts = "\n\n".join(
        f'[providers.{name}]\napi_key = "simulated-key-of-{name}"\nbase_url = "{base}"'
        for name, base in sim.simulator.base_urls(sim.url).items()
    )
    text = f"""{MARK}: it works while the demo runs.

[server]
host = "{HOST}"
port = {url.rpartition(":")[2]}
public_url = "{url}"
probe_public_url = false  # it is this machine

[store]
url = "sqlite:///receiver.db"

[polling]
interval = "{max(INTERVAL / speed, 0.1):.3f}s"
max_interval = "{max(2 * INTERVAL / speed, 0.2):.3f}s"

{accounts}

[providers.pixazo.polling]
overdue_after = "{OVERDUE / speed:.3f}s"

[[handlers]]
name = "archive"
use = "storage"
[handlers.options]
path = "outputs"

[[handlers]]
name = "diary"
use = "log"
events = ["job.*"]

[network]
allow_private = ["127.0.0.0/8"]  # the simulator's files are on this machine
"""
    file = folder / FILE
    try:
        file.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigError([Mistake("", "--folder", f"{file} cannot be written: {error.strerror}")]) from None
    return load(text, {}, file=str(file), folder=folder)


@contextmanager
def logs_in(file: Path, config: Config) -> Iterator[None]:
    """The screen is for the story."""
    with file.open("a", encoding="utf-8") as stream:
        set_up_logs(masker=Masker(config.all_secrets()), stream=stream)
        try:
            yield
        finally:
            logging.getLogger().handlers = [logging.NullHandler()]


@asynccontextmanager
async def serve(services: Services, listener: socket.socket) -> AsyncIterator[None]:
    app = create_app(services)
    is_up = asyncio.Event()
    server = Server(make_config(app), is_up.set)
    serving = asyncio.create_task(server.serve([listener]))
    waiting = asyncio.create_task(is_up.wait())
    await asyncio.wait({serving, waiting}, return_when=asyncio.FIRST_COMPLETED)
    try:
        yield
    finally:
        waiting.cancel()
        app.state.waiting.stop()
        server.should_exit = True
        await serving


# The story


async def play(house: House, screen: Screen) -> Evidence:
    """Submit everything, watch until it is home or patience is over, and bring both sides of the story."""
    scene, refused = house.scene, await count_refused(house)
    began = monotonic()
    with screen:
        submitting = asyncio.create_task(submit_all(house))
        try:
            while monotonic() - began < PATIENCE:
                is_submitted = submitting.done()
                scene.seconds = monotonic() - began
                await look(house, screen)
                if is_submitted:
                    submitting.result()
                    if scene.is_home and await is_quiet(house):
                        break
                await asyncio.sleep(LOOK_EVERY)
        finally:
            submitting.cancel()
        await look(house, screen)
        scene.seconds = monotonic() - began
    return Evidence(scene.jobs, await read_timelines(house), house.sim.simulator.ledger, await count_refused(house) - refused)


async def submit_all(house: House) -> None:
    for act in ACTS.values():
        house.sim.simulator.plan(act.provider, act.scenario, prompt=act.prompt)
        await submit(house, act)
        await asyncio.sleep(GAP / house.speed)


async def submit(house: House, act: Act) -> None:
    metadata = {"demo": house.run_id, "act": act.name}
    await house.client.submit(act.provider, act.model, act.input, media=act.media, metadata=metadata)


async def look(house: House, screen: Screen) -> None:
    """See what is new on both sides, and tell it."""
    scene, ledger = house.scene, house.sim.simulator.ledger
    page = await house.client.jobs(metadata={"demo": house.run_id})
    scene.jobs = page["jobs"][::-1]
    for job in scene.jobs:
        if act_of(job) in TOLD_BY_TIMELINE:
            scene.timelines[job["id"]] = await house.client.timeline(job["id"], raw=False)
        for output in job["outputs"]:
            if output.get("stored") and (job["id"], output["index"]) not in scene.verdicts:
                scene.verdicts[job["id"], output["index"]] = await asyncio.to_thread(find_fault, job, output, ledger)
    screen.take(scene.add([*steps(scene), *tell(scene, ledger)]))


async def is_quiet(house: House) -> bool:
    """Whether nothing is under way any more: callbacks that came twice are settled, events are delivered."""
    try:
        async with asyncio.timeout(LOOK_EVERY):
            await house.sim.simulator.quiet()
    except TimeoutError:
        return False
    entries = [entry for timeline in (await read_timelines(house)).values() for entry in timeline["entries"]]
    is_settled = all(entry["outcome"] is not None for entry in entries if entry["kind"] == "notice")
    return is_settled and all(entry["state"] in ("done", "dead") for entry in entries if entry["kind"] == "delivery")


async def read_timelines(house: House) -> Mapping[str, Timeline]:
    return {job["id"]: await house.client.timeline(job["id"], raw=False) for job in house.scene.jobs}


async def count_refused(house: House) -> int:
    """Callbacks that were refused, also in earlier stories in this folder."""
    return sum(row["counters"].get("callbacks_refused", 0) for row in await house.client.providers())


async def stay(house: House) -> None:
    """Tell what can be tried now, then show what happens, for ever."""
    url = house.scene.url
    click.echo(f"""
The server stays up until Ctrl-C, with its dashboard at {url}
From another terminal:

  export RECEIVER_URL={url}
  receiver submit elkapi kling-v2 -i prompt="a boat [sim: twice]" --wait
  receiver jobs

A prompt says what is to happen: {house.sim.url} explains all words.
What happens is shown here:
""")
    async with aclosing(house.client.events()) as events:
        async for event in events:
            show_event(event)
