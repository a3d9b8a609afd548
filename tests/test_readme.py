"""The README's code runs, and its commands are the real ones."""

import asyncio
import io
import re
import tomllib
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path

from starlette.applications import Starlette
from starlette.responses import Response
from starlette.routing import Route

from receiver.app import check
from receiver.cli.root import COMMANDS
from receiver.client import Client
from receiver.config import load
from receiver.simulator.serving import serve_app
from tests.stories.home import make_config, open_home, recorded, recorder

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
ENVIRON = dict.fromkeys(["PIXAZO_API_KEY", "PIXAZO_EU_API_KEY", "HOOX_API_KEY", "RECEIVER_API_KEY", "ACME_API_KEY"], "key-of-the-test")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def block(language: str, start: str) -> str:
    return next(text for text in blocks(language) if text.startswith(start))


def test_every_block_of_settings_loads(tmp_path):
    (tmp_path / "quota.py").write_text(block("python", "# quota.py"))
    (tmp_path / "providers").mkdir()
    (tmp_path / "providers" / "acme.toml").write_text(block("toml", "# providers/acme.toml"))
    settings = [text for text in blocks("toml") if not text.startswith("# providers/")]
    assert len(settings) >= 5
    for text in settings:
        check(load(text, ENVIRON, folder=tmp_path))


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
        (dead,) = await home.until(lambda: dead_letters(home))
        assert dead["last_error"] == "PermanentError: the job names no user"


async def test_the_client_programs_run_as_they_stand(sim, tmp_path):
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


async def dead_letters(home):
    return (await home.api.get("/v1/deliveries", params={"state": "dead"})).json()["deliveries"]


def test_every_command_is_named():
    commands = README.split("## Commands")[1].split("## Words")[0]
    assert set(COMMANDS) <= set(re.findall(r"`([a-z-]+)`", commands))


def test_the_two_lines_stand_on_the_first_screen():
    first = "\n".join(README.splitlines()[:22])
    assert "receiver demo --once" in first
    assert "pytest -q -n 4" in first
