"""Receiver inside another application."""

import asyncio
from contextlib import asynccontextmanager

import httpx
import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Mount, Route

from receiver.client import Client
from receiver.embedding import create_app, handler
from receiver.errors import ConfigError
from receiver.simulator.serving import Server, open_listener
from tests.stories.home import make_config


@asynccontextmanager
async def served(make):
    """The application that `make(port)` makes, on a free port, with its lifespan run as a server does."""
    with open_listener("127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]
        server = Server(uvicorn.Config(make(port), log_config=None, access_log=False, timeout_graceful_shutdown=1))
        serving = asyncio.create_task(server.serve([listener]))
        waiting = asyncio.create_task(server.is_up.wait())
        await asyncio.wait({serving, waiting}, return_when=asyncio.FIRST_COMPLETED)
        try:
            yield f"http://127.0.0.1:{port}"
        finally:
            waiting.cancel()
            server.should_exit = True
            await serving


def write_config(sim, folder, port, mount="", **more):
    text = make_config(sim, folder, port, **more).replace(f'"http://127.0.0.1:{port}"', f'"http://127.0.0.1:{port}{mount}"')
    file = folder / "receiver.toml"
    file.write_text(text)
    return file


async def test_a_mounted_receiver_brings_jobs_home_and_tells_functions(sim, tmp_path):
    told = asyncio.Queue()

    async def tell(event, context):
        told.put_nowait((context.name, event.type, event.subject))

    def note(event, context):  # blocking code runs in a thread
        context.run(put("note", event))

    async def put(name, event):
        told.put_nowait((name, event.type, event.subject))

    def make(port):
        file = write_config(sim, tmp_path, port, "/ai", polling='interval = "30s"\noverdue_after = "30s"')
        receiver = create_app(file, handlers=[tell, handler(note, name="second", events=["job.submitted"], timeout="5s")])
        routes = [Route("/", lambda request: PlainTextResponse("my own page")), Mount("/ai", receiver)]
        return Starlette(routes=routes, lifespan=receiver.lifespan)

    async with asyncio.timeout(20), served(make) as url:
        async with Client(f"{url}/ai") as client:
            submitted = await client.submit("elkapi", "kling-v2", {"prompt": "a boat"})
            job = await client.wait(submitted["jobs"][0]["id"])
            assert (job["status"], job["finished_by"]) == ("succeeded", "callback")
            assert {await told.get(), await told.get()} == {
                ("note", "job.submitted", job["id"]),
                ("tell", "job.succeeded", job["id"]),
            }
            assert {row["name"]: row["events"] for row in await client.handlers()}["second"] == ["job.submitted"]
        async with httpx.AsyncClient(base_url=url, trust_env=False, follow_redirects=True) as browser:
            assert (await browser.get("/")).text == "my own page"
            assert (await browser.get("/ai")).status_code == 200
            assert (await browser.get("/ai/readyz")).json() == {"status": "ok"}
            assert (await browser.get("/ai/static/pages.css")).status_code == 200
            assert (await browser.post("/ai/callbacks/elkapi/forged")).status_code == 401


async def test_it_runs_within_a_lifespan_of_ones_own_and_again_afterwards(sim, tmp_path):
    receiver = create_app(write_config(sim, tmp_path, 8080, public=False))

    @asynccontextmanager
    async def lifespan(app):
        async with receiver.lifespan():
            yield

    app = Starlette(routes=[Mount("/ai", receiver)], lifespan=lifespan)
    for _ in range(2):
        async with served(lambda port: app) as url, Client(f"{url}/ai") as client:
            assert [provider["name"] for provider in await client.providers() if provider["configured"]]


async def test_a_server_may_run_it_alone(sim, tmp_path):
    async with served(lambda port: create_app(write_config(sim, tmp_path, port))) as url, httpx.AsyncClient(trust_env=False) as browser:
        assert (await browser.get(f"{url}/readyz")).status_code == 200


async def test_one_that_does_not_run_says_what_is_missing(sim, tmp_path):
    receiver = create_app(write_config(sim, tmp_path, 8080))
    app = Starlette(routes=[Mount("/ai", receiver)])
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as browser:
        answer = await browser.get("/ai/v1/jobs")
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")
    assert "lifespan" in answer.json()["detail"]


def test_every_mistake_in_given_handlers_is_told_at_once(tmp_path):
    (tmp_path / "receiver.toml").write_text("")

    async def takes_one(event): ...

    async def fine(event, context): ...

    given = [takes_one, fine, handler(fine), handler(fine, name="late", timeout="soon"), handler(fine, name="odd", evnts=[])]
    with pytest.raises(ConfigError) as caught:
        create_app(tmp_path / "receiver.toml", handlers=given)
    told = str(caught.value)
    assert "must take (event, context)" in told
    assert "handlers.fine: is the name of another handler" in told
    assert "handlers.late.timeout" in told
    assert 'did you mean "events"?' in told
    assert len(caught.value.mistakes) == 4
