"""The README's code runs, and its commands are the real ones."""

import asyncio
import io
import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
import uuid
from contextlib import AsyncExitStack
from functools import partial
from importlib.metadata import entry_points
from pathlib import Path

import click
import httpx
import pytest
from click.testing import CliRunner
from starlette.applications import Starlette
from starlette.responses import Response
from starlette.routing import Route

from receiver.app import check
from receiver.cli.init import SIMULATOR
from receiver.cli.root import COMMANDS, root
from receiver.client import Client
from receiver.config import load
from receiver.model import Status
from receiver.simulator.serving import serve_app
from tests.cli.running import running
from tests.loopback import free_port
from tests.stories.home import make_config, open_home, recorded, recorder

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
ENVIRON = dict.fromkeys(re.findall(r"\$\{([A-Z_]+)\}", README), "value-of-the-test") | {
    "SLACK_WEBHOOK_URL": "https://hooks.slack.com/services/T/B/X",
    "APP_WEBHOOK_SECRET": SECRET,
}


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def block(language: str, start: str) -> str:
    return next(text for text in blocks(language) if text.startswith(start))


def write_files(folder):
    """Every block that begins with the name of a file."""
    for text in blocks(r"\w+"):
        if named := re.match(r"# ([\w/]+\.\w+)\n", text):
            file = folder / named[1]
            file.parent.mkdir(exist_ok=True)
            file.write_text(text)


def test_every_block_of_settings_loads(tmp_path):
    write_files(tmp_path)
    settings = [text for text in blocks("toml") if not text.startswith("# providers/")]
    assert len(settings) >= 9
    for text in settings:
        check(load(text, ENVIRON, folder=tmp_path))


def test_a_provider_of_your_own_reads_what_it_is_shown(tmp_path, monkeypatch):
    write_files(tmp_path)
    monkeypatch.chdir(tmp_path)
    echo, command = block("sh", "echo ").splitlines()
    (tmp_path / "body.json").write_text(re.search("'(.*)'", echo)[1])
    result = CliRunner().invoke(root, shlex.split(command)[1:])
    assert result.exit_code == 0
    assert json.loads(result.stdout)["updates"][0]["status"] == "succeeded"


async def test_the_first_handler_is_told(sim, tmp_path):
    name = f"tell_{uuid.uuid4().hex}"  # a module is imported once
    (tmp_path / f"{name}.py").write_text(block("python", "# tell.py"))
    table = block("toml", '[[handlers]]\nname = "tell"').replace('"tell:handle"', f'"{name}:handle"')
    async with open_home(sim, tmp_path, more=table) as home:
        (job,) = await home.submit("elkapi", metadata={"user": "42"})
        await home.final(job["id"])
        (delivery,) = await home.until(lambda: deliveries(home, "done"))
    assert delivery["handler"] == "tell"


async def test_what_is_stored_is_told_to_the_app(sim, tmp_path, monkeypatch):
    monkeypatch.setenv("APP_WEBHOOK_SECRET", SECRET)
    hook = {}
    exec(block("python", "# hook.py"), hook)
    recipe = block("toml", '[[handlers]]\nname = "archive"\nuse = "storage"                ')
    options = tomllib.loads(recipe)["handlers"]
    assert options[0]["options"]["path"].startswith("s3://")
    recipe = re.sub(r"(?m)^path = .*$", 'path = "outputs"', re.sub(r"(?m)^region = .*\n", "", recipe))  # the bucket has tests of its own
    async with serve_app(hook["app"]) as url:
        recipe = recipe.replace("https://app.example.com", url)
        async with open_home(sim, tmp_path, more=recipe) as home:
            (job,) = await home.submit("elkapi")
            await home.final(job["id"])
            ((event_id, (event_type, kept)),) = await home.until(lambda: list(hook["seen"].items()))
            assert event_type == "job.stored"
            assert event_id.startswith("evt_")
            assert all(Path(uri.removeprefix("file://")).is_file() for uri in kept)
            assert re.search(rf"outputs/\d{{4}}/\d{{2}}/{job['id']}-0\.\w+$", kept[0])
        async with httpx.AsyncClient() as stranger:
            assert (await stranger.post(f"{url}/receiver", json={"id": "forged"})).status_code == 401


async def test_the_worked_handler_does_what_it_says(sim, tmp_path):
    told = []

    async def usage(request):
        told.append((await request.json(), request.headers["idempotency-key"]))
        return Response(status_code=429 if len(told) == 1 else 204)

    options = tomllib.loads(block("toml", '[[handlers]]\nname = "quota"'))["handlers"][0]
    assert options["use"] == "quota:Quota"
    (tmp_path / "quota_live.py").write_text(block("python", "# quota.py").replace("RetryLater(30)", "RetryLater(0.1)"))
    async with serve_app(Starlette(routes=[Route("/usage", usage, methods=["POST"])])) as url, AsyncExitStack() as stack:
        handler = (
            '[[handlers]]\nname = "quota"\nuse = "quota_live:Quota"\nevents = ["job.succeeded"]\nretry = {first = "0.1s", max = "0.1s"}\n'
            f'[handlers.options]\nurl = "{url}/usage"\n'
        )
        home = await stack.enter_async_context(open_home(sim, tmp_path, more=handler + recorder(tmp_path, events='["acme.*"]')))
        (named,) = await home.submit("elkapi", metadata={"user": "42"})
        await home.final(named["id"])
        (billed,) = await home.until(lambda: recorded(tmp_path))
        assert (billed["type"], billed["data"]["user"], billed["job"]) == ("acme.billed", "42", named["id"])
        assert [body for body, _ in told] == [{"user": "42", "job": named["id"]}] * 2
        assert len({key for _, key in told}) == 1
        (nameless,) = await home.submit("elkapi")
        await home.final(nameless["id"])
        (dead,) = await home.until(lambda: deliveries(home, "dead"))
        assert dead["last_error"] == "PermanentError: the job names no user"


async def test_the_client_programs_run_as_they_stand(sim, tmp_path, monkeypatch):
    monkeypatch.delenv("RECEIVER_API_KEY", raising=False)
    async with open_home(sim, tmp_path) as home:
        assert (await home.api.get("/readyz")).status_code == 200
        said = await asyncio.to_thread(run_block, "ask.py", home.url)
        assert re.match(r"succeeded \['http.*\n400 /model: ", said)
        following = asyncio.create_task(asyncio.to_thread(run_block, "follow.py", home.url))
        while not following.done():  # a stream begins with what happens once it is open
            (job,) = await home.submit("elkapi")
            await home.final(job["id"])
        assert "job.succeeded job_" in following.result()


def run_block(name, url):
    """A program of the README, asking another server than it says; what it prints."""
    said = io.StringIO()
    code = block("python", f"# {name}").replace("http://127.0.0.1:8080", url)
    exec(code, {"print": partial(print, file=said)})
    return said.getvalue()


async def test_the_application_that_mounts_it_runs_as_it_stands(sim, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "receiver.toml").write_text(make_config(sim, tmp_path, 8080, public=False))
    shop = {"__name__": "shop"}
    exec(block("python", "# shop.py"), shop)
    async with serve_app(shop["app"]) as url, Client(f"{url}/receiver") as client, asyncio.timeout(20):
        submitted = await client.submit("pixazo", "hunyuan-image", {"prompt": "paper boats"})
        job = await client.wait(submitted["jobs"][0]["id"])
        assert job["status"] == "succeeded"
        while shop["finished"] != [job["id"]]:
            await asyncio.sleep(0.01)


async def deliveries(home, state):
    return (await home.api.get("/v1/deliveries", params={"state": state})).json()["deliveries"]


def test_every_command_is_named():
    commands = README.split("## Commands")[1].split("## Words")[0]
    assert set(COMMANDS) <= set(re.findall(r"`([a-z-]+)`", commands))


@pytest.mark.long
async def test_the_first_job_comes_home_by_the_lines_as_they_stand(sim, tmp_path):
    """But for the places of server and simulator, and the questions, which a test of their own answers."""
    binaries = tmp_path / ".venv" / "bin"
    binaries.mkdir(parents=True)
    (binaries / "receiver").write_text(f'#!/bin/sh\nexec {sys.executable} -m receiver "$@"\n')
    (binaries / "receiver").chmod(0o755)
    (binaries / "activate").write_text(f"PATH={binaries}:$PATH\n")

    def shell(lines):
        environ = {name: value for name, value in os.environ.items() if not name.startswith("RECEIVER_")}
        done = subprocess.run(["sh", "-ec", lines], cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    activate, init, export, doctor, serve = block("sh", ". .venv/bin/activate  ").splitlines()
    shell(f"{activate}\n{init.replace('receiver init', 'receiver init --simulated --provider pixazo --outputs outputs')}")
    file = tmp_path / "receiver.toml"
    file.write_text(file.read_text().replace("#port = 8080", f"port = {free_port()}").replace(SIMULATOR, sim.url))
    said = await asyncio.to_thread(shell, f"{activate}\n{export}\n{doctor}")
    assert "fail" not in said
    assert serve.strip() == "receiver serve"
    with running(tmp_path, "serve") as server:
        server.line("Receiver listens on")
        said = await asyncio.to_thread(shell, block("sh", ". .venv/bin/activate\n"))
        assert re.match(r"job_\w+ succeeded", said)
        async with asyncio.timeout(20):
            while not list((tmp_path / "outputs").rglob("job_*.png")):
                await asyncio.sleep(0.05)
        assert server.stop() == 0


def command_lines():
    """Every call of ours that a block or a sentence shows."""
    shown = [line for text in blocks("sh") for line in text.splitlines()]
    shown += re.findall(r"`(receiver [^`\n]+)`", README)
    for line in shown:
        for call in re.findall(r"(?:^|\$\()receiver ([a-z][^)#]*)", line.strip()):
            yield shlex.split(call)


def test_every_command_line_would_be_understood():
    lines = list(command_lines())
    assert len(lines) > 20
    for name, *words in lines:
        command = root.get_command(click.Context(root), name)
        assert command is not None, name
        options = {option for parameter in command.params for option in parameter.opts}
        assert {word for word in words if word.startswith("-")} <= options, [name, *words]


def test_every_option_of_a_built_in_handler_is_named():
    table = README.split("| `use` | what it does | options |\n|---|---|---|\n")[1].split("\n\n")[0]
    rows = dict(re.findall(r"^\| `(\w+)` \|.*\|(.*)\|$", table, re.MULTILINE))
    built_in = {point.name: point.load() for point in entry_points(group="receiver.handlers")}
    assert set(rows) == set(built_in)
    for name, handler in built_in.items():
        assert set(re.findall(r"`(\w+)`", rows[name])) == set(handler.Options.__struct_fields__), name


def test_every_method_of_the_client_is_named():
    methods = {name for name in vars(Client) if not name.startswith("_")} - {"close", "not_reachable"}
    told = README.split("There is a method for each route:")[1].split("\n\n")[0]
    assert set(re.findall(r"`([a-z_]+)`", told)) == methods


def test_what_is_looked_for_in_the_log_and_the_metrics_is_there():
    source = "\n".join(path.read_text() for path in (ROOT / "receiver").rglob("*.py"))
    events = re.findall(r"under\s`([a-z]+\.[a-z_]+)`", README)
    metrics = re.findall(r"`(receiver_[a-z_]+)`", README)
    assert len(events) >= 3
    assert len(metrics) >= 1
    assert [name for name in (*events, *metrics) if f'"{name}' not in source] == []


def test_every_event_is_named():
    told = set(re.findall(r"`((?:job|receiver)\.\w+)`", README.split("| event | when |")[1].split("\n\n")[0]))
    assert told == {f"job.{status}" for status in ("submitted", "stored", *Status)} - {"job.submitting", "job.queued"} | {
        f"receiver.{name}" for name in ("dead_letter", "unconfirmed", "provider_failing", "callbacks_lost", "test")
    }


def test_the_two_lines_stand_on_the_first_screen():
    first = "\n".join(README.splitlines()[:22])
    assert "receiver demo --once" in first
    assert "pytest -q -n 4" in first
