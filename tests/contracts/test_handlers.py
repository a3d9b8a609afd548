"""What every built-in handler keeps, whatever it does: it comes in by the door that is open to anyone."""

from __future__ import annotations

import asyncio
import inspect
import subprocess
import sys
import tomllib
from pathlib import Path

import msgspec
import pytest

from receiver.config import HandlerConfig
from receiver.errors import ConfigError
from receiver.handling import load_handler
from receiver.model import ErrorCode, JobError, Status
from tests.factories import make_event, make_job
from tests.handler_kit import open_desk
from tests.loopback import Seen, hang, response, serve

ROOT = Path(__file__).resolve().parents[2]
OPTIONS = {
    "command": {"argv": ["cat"]},
    "log": {},
    "notify": {"urls": ["NOTIFY"]},
    "slack": {"webhook_url": "URL"},
    "storage": {},
    "webhook": {"url": "URL"},
}
NAMES = sorted(OPTIONS)
EVENTS = ["submitted", "processing", "succeeded", "failed", "cancelled", "expired", "unconfirmed", "stored"]
WAIT = 10.0


def options_of(name: str, url: str) -> dict:
    addresses = {"URL": url, "NOTIFY": url.replace("http://", "json://")}
    filled = {
        option: [addresses.get(each, each) for each in value] if isinstance(value, list) else value
        for option, value in OPTIONS[name].items()
    }
    return {option: addresses.get(value, value) if isinstance(value, str) else value for option, value in filled.items()}


def load(name: str, folder: Path, **options):
    return load_handler(HandlerConfig(name="any", use=name, options=options), folder)


async def answer(seen: Seen, writer: asyncio.StreamWriter) -> None:
    writer.write(response(200, b"ok" if seen.method == "POST" else b"%PDF-"))


def test_every_file_in_the_folder_is_an_entry_point_or_a_part_of_one():
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]["receiver.handlers"]
    assert {name: entry.partition(":")[0] for name, entry in declared.items()} == {name: f"receiver.handlers.{name}" for name in NAMES}
    files = {path.stem for path in (ROOT / "handlers").glob("*.py")}
    assert set(NAMES) <= files
    assert {name for name in files - set(NAMES) if name.partition("_")[0] not in NAMES} == set()


@pytest.mark.parametrize("name", NAMES)
def test_importing_it_does_nothing(name, tmp_path):
    count = "threading.active_count()"
    code = f"import threading, receiver.handling; before = {count}; import receiver.handlers.{name}; assert {count} == before"
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], cwd=tmp_path, capture_output=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", NAMES)
def test_it_says_what_it_is_and_which_options_it_takes(name, tmp_path):
    target = load(name, tmp_path, **options_of(name, "http://localhost")).target
    assert inspect.cleandoc(target.__doc__)
    assert inspect.cleandoc(sys.modules[target.__module__].__doc__ or "")
    assert issubclass(target.Options, msgspec.Struct)
    assert list(inspect.signature(target).parameters) == ["options", "context"]


@pytest.mark.parametrize("name", NAMES)
def test_an_unknown_option_is_a_mistake(name, tmp_path):
    with pytest.raises(ConfigError) as raised:
        load(name, tmp_path, **options_of(name, "http://localhost"), surely_unknown=1)
    assert [mistake.key for mistake in raised.value.mistakes] == ["handlers.any.options.surely_unknown"]


@pytest.mark.parametrize("name", NAMES)
async def test_it_takes_every_event_twice_and_without_harm(name, tmp_path):
    async with serve(answer) as peer, open_desk(tmp_path) as desk:
        handler = desk.make(name, **options_of(name, peer.url))
        await handler.start()
        succeeded = desk.succeed(f"{peer.url}/a")
        job = desk.jobs[succeeded.subject]
        failed = make_job(status=Status.FAILED, error=JobError(ErrorCode.UNKNOWN, "no"), model=None, media=None)
        events = [make_event(failed if what == "failed" else job, f"job.{what}") for what in EVENTS]
        events.append(make_event(None, "receiver.delivery_dead", data={"handler": "other"}))
        for event in events:
            before = msgspec.json.encode(event)
            await asyncio.wait_for(handler.handle(event), WAIT)
            await asyncio.wait_for(handler.handle(event), WAIT)
            assert msgspec.json.encode(event) == before
        await handler.close()
        assert all(emitted == desk.emitted[0] for emitted in desk.emitted)


@pytest.mark.parametrize("name", NAMES)
async def test_events_at_once_do_not_mix(name, tmp_path):
    async with serve(answer) as peer, open_desk(tmp_path) as desk:
        handler = desk.make(name, **options_of(name, peer.url))
        events = [desk.succeed(f"{peer.url}/a", f"{peer.url}/b") for _ in range(4)]
        await asyncio.wait_for(asyncio.gather(*(handler.handle(event) for event in events)), WAIT)
        assert sorted({job_id for _, job_id, _ in desk.emitted}) in ([], sorted(event.subject for event in events))
        assert all(uri.uri.endswith(f"{job_id}-{index}.pdf") for job_id, index, uri in desk.stored)


@pytest.mark.parametrize("name", [name for name in NAMES if name != "log"])
async def test_a_cancellation_gets_through_at_once(name, tmp_path):
    begun = asyncio.Event()

    async def stall(seen: Seen, writer: asyncio.StreamWriter) -> None:
        begun.set()
        await hang(seen, writer)

    async with serve(stall) as peer, open_desk(tmp_path) as desk:
        options = options_of(name, peer.url) | ({"argv": ["sleep", "60"]} if name == "command" else {})
        task = asyncio.create_task(desk.make(name, **options).handle(desk.succeed(f"{peer.url}/a")))
        if name == "command":
            await asyncio.sleep(0)
        else:
            await asyncio.wait_for(begun.wait(), WAIT)
        task.cancel()
        await asyncio.wait({task}, timeout=WAIT)
        assert task.cancelled()
