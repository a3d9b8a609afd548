"""Secrets planted everywhere, an installation run through good and bad days, and then nothing of them found anywhere."""

from __future__ import annotations

import asyncio
import gzip
import itertools
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, RedirectResponse, Response
from starlette.routing import Route

from receiver.simulator.serving import serve_app
from tests.cli.running import PATIENCE, Program, running
from tests.loopback import free_port

pytestmark = pytest.mark.long

MARK = "kAnArY"
MASTER, INLINE = f"{MARK}-master-key", f"{MARK}/inline+key=="
# With signs that JSON and URLs write otherwise.
ELK, PIXAZO, REPLICATE = f"{MARK}/elk+key==&x%y", f"{MARK}-pixazo-key", f"{MARK}-replicate-key"
SIGNING, CALLBACKS = f"{MARK}-signs-callbacks", "whsec_a0FuQXJZa0FuQXJZa0FuQXJZa0FuQXJZ"
FILLED, NAMED, IN_A_PATH = f"{MARK}-filled-from-outside", f"{MARK}-named-token", f"{MARK}-in-a-path"
WEBHOOK = "whsec_a0FuQXJZX3dlYmhvb2tfc2VjcmV0X2tBbkFyWQ=="
SECRETS = (MASTER, INLINE, ELK, PIXAZO, REPLICATE, SIGNING, CALLBACKS, FILLED, NAMED, WEBHOOK)
CONFIG = """
[server]
port = {port}
public_url = "http://127.0.0.1:{port}"
probe_public_url = false
secrets = ["{SIGNING}"]
api_keys = ["${{MASTER}}", "{INLINE}"]
[store]
url = "sqlite:///{state}/receiver.db"
[network]
allow_private = ["127.0.0.0/8"]
[polling]
interval = "0.2s"
max_interval = "0.5s"
[providers.elkapi]
api_key = "${{ELK}}"
base_url = "{provider}"
submit_attempts = 1
[providers.elkapi.polling]
overdue_after = "0.3s"
[providers.pixazo]
api_key = "${{file:pixazo.key}}"
base_url = "{provider}"
submit_attempts = 1
[providers.replicate]
api_key = "{REPLICATE}"
base_url = "{provider}"
submit_attempts = 1
callback_secrets = ["{CALLBACKS}"]
[[handlers]]
name = "raising"
use = "canary_handler:Raising"
events = ["*"]
retry = {{attempts = 1}}
options = {{channel = "${{FILLED}}", token = "{NAMED}"}}
[[handlers]]
name = "command"
use = "command"
events = ["job.*"]
retry = {{attempts = 1}}
options = {{argv = ["sh", "-c", "echo $0 >&2; exit 3", "${{FILLED}}"]}}
[[handlers]]
name = "slack"
use = "slack"
retry = {{attempts = 1}}
options = {{webhook_url = "{provider}/services/{IN_A_PATH}"}}
[[handlers]]
name = "webhook"
use = "webhook"
retry = {{attempts = 1}}
options = {{url = "{provider}/hook?token=${{FILLED}}", secrets = ["{WEBHOOK}"]}}
[[handlers]]
name = "archive"
use = "storage"
options = {{path = "{state}/outputs"}}
"""
HANDLER = """
class Raising:
    def __init__(self, options, context):
        self.options, self.log = options, context.log
    async def handle(self, event):
        self.log.info("raising.seen", options=self.options, token=self.options["token"])
        try:
            raise ValueError(f"the inner {self.options}")
        except ValueError as error:
            raise RuntimeError(f"cannot reach {self.options['channel']} with {self.options['token']!r}") from error

class Unbuildable:
    def __init__(self, options, context):
        raise RuntimeError(f"no handler with {options['channel']}")

class Unstartable(Raising):
    async def start(self):
        raise RuntimeError(f"no start with {self.options['channel']}")
"""


@dataclass
class Echo:
    """A provider that tells everybody whatever it was told: our key, the callback's address, the headers."""

    mode: str = "taken"
    end: str = "failed"
    numbers: itertools.count[int] = field(default_factory=itertools.count)
    callbacks: list[str] = field(default_factory=list)
    ids: list[str] = field(default_factory=list)

    async def answer(self, request: Request) -> Response:
        body = (await request.body()).decode(errors="replace")
        told = f"you said {dict(request.headers)} {body} to {request.url}"
        if request.url.path.startswith(("/services/", "/hook")):
            return PlainTextResponse(told, 500)
        if request.url.path.startswith("/file"):
            return PlainTextResponse("a file")
        if request.method == "POST":
            return self.take(request, body, told)
        return self.tell(request, told)

    def take(self, request: Request, body: str, told: str) -> Response:
        document = json.loads(body or "{}")
        url = document.get("callback_url") or document.get("webhook") or request.headers.get("x-webhook-url")
        if self.mode.isdigit():
            return JSONResponse(self.problem(told, url), int(self.mode))
        if self.mode == "garbled":
            return PlainTextResponse(f"<html>{told}</html>")
        if self.mode == "elsewhere":
            return RedirectResponse(f"/login?key={request.headers.get('authorization')}&to={url}", 302)
        number = f"task-{next(self.numbers)}"
        self.ids.append(number)
        self.callbacks.append(str(url))
        return JSONResponse({"id": number, "request_id": number, "status": "queued", "note": told, "callback": url})

    def tell(self, request: Request, told: str) -> Response:
        number = request.url.path.rpartition("/")[2]
        own = dict(zip(self.ids, self.callbacks, strict=True)).get(number, "")  # what is masked is a submission's own token
        if self.end.isdigit():
            return JSONResponse(self.problem(told, own), int(self.end))
        if self.end == "garbled":
            return PlainTextResponse(told)
        outputs = [f"{request.base_url}file-{number}.txt"] if self.end == "completed" else []
        ended = {"id": number, "status": self.end, "outputs": outputs, "error": {"message": told + own, "code": told}}
        return JSONResponse({**ended, "headers": dict(request.headers), "progress": told})

    def problem(self, told: str, url: str | None) -> dict[str, Any]:
        return {"detail": told, "error": {"message": f"{told} {url}", "code": told, "type": ELK}, "message": told, "title": PIXAZO}


@dataclass
class Installation:
    """A running server as a process, and all that it ever said to anybody."""

    api: httpx.AsyncClient
    program: Program
    echo: Echo
    folder: Path
    said: list[tuple[str, bytes]] = field(default_factory=list)

    async def ask(self, method: str, path: str, **more: Any) -> httpx.Response:
        answer = await self.api.request(method, path, **more)
        self.said.append((f"{method} {path}", answer.headers.raw.__repr__().encode() + answer.content))
        return answer

    async def submit(self, provider: str, prompt: str = "a boat") -> dict[str, Any]:
        model = {"elkapi": "flux", "pixazo": "hunyuan-image", "replicate": "acme/flux"}[provider]
        body = {"provider": provider, "model": model, "input": {"prompt": prompt}}
        answer = await self.ask("POST", "/v1/jobs", json=body)
        assert answer.status_code == 202, answer.text
        return answer.json()["jobs"][0]

    async def until(self, path: str, condition: Any) -> Any:
        async with asyncio.timeout(PATIENCE):
            while not condition(found := (await self.api.get(path)).json()):
                await asyncio.sleep(0.05)
        return found


def write_config(folder: Path, provider: str, port: int, more: str = "") -> dict[str, str]:
    """The files of an installation; what stands in its environment."""
    (folder / "pixazo.key").write_text(PIXAZO + "\n")
    (folder / "canary_handler.py").write_text(HANDLER)
    values = {"port": port, "provider": provider, "state": folder / "state", **{name: globals()[name] for name in NAMES}}
    (folder / "receiver.toml").write_text(CONFIG.format_map(values) + more)
    return {"MASTER": MASTER, "ELK": ELK, "FILLED": FILLED}


NAMES = ("SIGNING", "INLINE", "REPLICATE", "CALLBACKS", "NAMED", "IN_A_PATH", "WEBHOOK")


@asynccontextmanager
async def installed(folder: Path) -> AsyncIterator[Installation]:
    echo, port = Echo(), free_port()
    app = Starlette(routes=[Route("/{path:path}", echo.answer, methods=["GET", "POST", "PUT", "DELETE"])])
    async with serve_app(app) as provider:
        environ = write_config(folder, provider, port)
        with running(folder, "serve", "-v", environ=environ) as program:
            await asyncio.to_thread(program.line, "listens")
            headers = {"Authorization": f"Bearer {MASTER}"}
            async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", headers=headers, timeout=30, trust_env=False) as api:
                yield Installation(api, program, echo, folder)


def files_of(folder: Path) -> list[tuple[str, bytes]]:
    """All that it left on the disk; the configuration with its secrets lies beside."""
    return [(str(path), path.read_bytes()) for path in (folder / "state").rglob("*") if path.is_file()]


def find_canaries(said: list[tuple[str, bytes]], tokens: set[str]) -> list[str]:
    """Where a secret or a callback's token stands, and what stands around it."""
    wanted = [MARK.encode(), CALLBACKS.encode(), WEBHOOK.encode(), *(token.encode() for token in tokens)]
    found = []
    for place, content in said:
        for word in wanted:
            if (at := content.find(word)) >= 0:
                found.append(f"{place}: …{content[max(0, at - 120) : at + 60]!r}…")
    return found


async def live_a_hard_life(home: Installation) -> list[str]:
    """Submits that end in every way, callbacks that say everything, requests that nobody should send."""
    jobs = []
    for mode in ("401", "400", "403", "429", "500", "503", "garbled", "elsewhere"):
        home.echo.mode = mode
        jobs += [(await home.submit(provider))["id"] for provider in ("elkapi", "pixazo", "replicate")]
    home.echo.mode = "taken"
    for end in ("failed", "completed", "garbled", "500", "401"):
        home.echo.end = end
        job = await home.submit("elkapi")
        jobs.append(job["id"])
        if end in {"failed", "completed"}:
            await home.until(f"/v1/jobs/{job['id']}", lambda found: found["finished_at"])
        else:
            await home.until(f"/v1/jobs/{job['id']}/timeline", lambda found: len(found["entries"]) > 3)
    home.echo.end = "garbled"
    for provider in ("elkapi", "replicate", "elkapi"):
        job = await home.submit(provider)
        jobs.append(job["id"])
        await call_back(home, home.echo.callbacks[-1], home.echo.ids[-1])
    await home.until("/v1/deliveries?state=dead&handler=webhook", lambda found: found["deliveries"])
    await home.until("/v1/deliveries?state=dead&handler=command", lambda found: found["deliveries"])
    await home.until("/v1/deliveries?state=dead&handler=raising", lambda found: found["deliveries"])
    await be_hostile(home)
    return jobs


async def call_back(home: Installation, url: str, number: str) -> None:
    """The provider tells us our own secrets, in each field and form."""
    told = f"{' '.join(SECRETS)} {url}"
    path = "/" + url.split("/", 3)[3]
    headers = {"User-Agent": told, "Content-Type": f"application/json; boundary={told}", "webhook-id": told}
    for body in (
        told.encode(),
        json.dumps({"id": told, "status": told, "error": told}).encode(),
        gzip.compress(told.encode()),
        json.dumps({"id": number, "status": "failed", "error": {"message": told, "code": told}}).replace("/", "\\/").encode(),
        quote(told, safe="").encode(),
    ):
        encoding = {"Content-Encoding": "gzip"} if body[:2] == b"\x1f\x8b" else {}
        await home.ask("POST", path, content=body, headers=headers | encoding)
    token = path.rpartition("/")[2]
    for wrong in (
        f"/callbacks/pixazo/{token}",
        f"/callbacks/elkapi/{token[:-2]}",
        f"/callbacks/elkapi/{MASTER}",
        f"/callbacks/nobody/{MASTER}",
    ):
        await home.ask("POST", wrong, content=told.encode(), headers={"webhook-signature": told})


async def be_hostile(home: Installation) -> None:
    for headers in ({"Authorization": f"Bearer {MASTER}x"}, {"Authorization": f"Basic {MASTER}"}, {"Cookie": f"receiver_session={MASTER}"}):
        for path in ("/v1/jobs", "/", "/metrics", f"/{MASTER}"):
            await home.ask("GET", path, headers={"Authorization": "", **headers})
    for method, path in itertools.product(("GET", "POST", "PATCH"), ("/v1/jobs", "/v1/nothing", "/v1/deliveries/replay", "/%00")):
        await home.ask(method, path, content=b"\xff{", headers={"X-Key": MASTER, "Idempotency-Key": "\x01"})
    await home.ask("POST", "/sign-in", data={"key": f"{MASTER}-wrong"}, headers={"Authorization": ""})
    await home.ask("POST", "/sign-in", data={"key": MASTER}, headers={"Authorization": ""})


async def look_everywhere(home: Installation, jobs: list[str]) -> None:
    """Every answer that there is to see."""
    paths = ["/openapi.json", "/docs", "/metrics", "/healthz", "/readyz", "/v1/providers", "/v1/handlers", "/v1/jobs?limit=1000"]
    paths += ["/v1/deliveries?limit=1000", "/v1/notices?raw=true&limit=1000", "/", "/jobs", "/deliveries", "/notices", "/providers"]
    paths += ["/handlers", "/try", "/sign-in", "/static/pages.css"]
    for job in jobs:
        paths += [f"/v1/jobs/{job}", f"/v1/jobs/{job}/timeline", f"/jobs/{job}", f"/v1/jobs/{job}/outputs/0"]
    for path in paths:
        answer = await home.ask("GET", path, headers={"Accept": "text/html"})
        assert answer.status_code in {200, 307, 404}, path
    notices = (await home.api.get("/v1/notices?limit=1000")).json()["notices"]
    assert len(notices) > 20
    for notice in notices:
        await home.ask("GET", f"/notices/{notice['id']}/raw")
    async with home.api.stream("GET", "/v1/events", headers={"Last-Event-ID": "evt_" + "0" * 32}) as events:
        seen = b""
        async for chunk in events.aiter_bytes():
            seen += chunk
            if seen.count(b"\nevent:") > 30:
                break
    home.said.append(("GET /v1/events", seen))


async def test_no_secret_shows_anywhere(tmp_path: Path):
    async with installed(tmp_path) as home:
        jobs = await live_a_hard_life(home)
        await look_everywhere(home, jobs)
        home.said += files_of(tmp_path)  # with the log beside the database, which a clean stop empties
        assert any(place.endswith("-wal") for place, _ in home.said)
        tokens = {url.rpartition("/")[2] for url in home.echo.callbacks if "/callbacks/" in url}
        assert await asyncio.to_thread(home.program.stop) == 0
    home.said += files_of(tmp_path)
    home.said += [("stderr", line.encode()) for line in home.program.errors]
    home.said += [("stdout", line.encode()) for line in home.program.lines.queue]
    log = "\n".join(home.program.errors)
    assert all(word in log for word in ("delivery.dead", "raising.seen", "***"))
    assert any(b"***" in content for place, content in home.said if place.endswith("/timeline"))
    assert len(tokens) >= 5
    found = find_canaries(home.said, tokens)
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (f'[[handlers]]\nname = "bad"\nuse = "canary_handler:Unstartable"\noptions = {{channel = "{FILLED}", token = "t"}}\n', ("serve",)),
        (f'[[handlers]]\nname = "bad"\nuse = "canary_handler:Unbuildable"\noptions = {{channel = "{FILLED}"}}\n', ("serve",)),
        (f'[[handlers]]\nname = "bad"\nuse = "slack"\noptions = {{webhook_url = "{FILLED}"}}\n', ("serve",)),
        (f'[[handlers]]\nname = "bad"\nuse = "webhook"\noptions = {{url = "http://a", secrets = ["{FILLED}"]}}\n', ("serve",)),
        (f'[providers.oxen]\napi_key = "{FILLED} ü"\n', ("serve",)),
        (f'[providers.oxen]\napi_key = ["{FILLED}"]\n', ("serve",)),
        ('[providers.fal]\nspec = "replicate"\ncallback_secrets = ["whsec_kAnArY!"]\n', ("serve",)),
        ('[providers.oxen]\nrate_limit = "${FILLED}"\n', ("serve",)),
        ("", ("doctor",)),
        ("", ("doctor", "--json")),
        ("", ("keys",)),
        ("", ("keys", "new", "--name", "ci", "--scope", "read", "--json")),
        ("", ("jobs",)),
    ],
)
def test_no_secret_shows_in_what_the_command_line_says(tmp_path: Path, more, words):
    environ = write_config(tmp_path, "http://127.0.0.1:9", free_port(), more)
    with running(tmp_path, *words, environ=environ) as program:
        assert program.wait() in {0, 1, 2, 3}
    said = "\n".join([*program.errors, *program.lines.queue])
    assert said
    assert find_canaries([("said", said.encode()), *(files_of(tmp_path) if (tmp_path / "state").exists() else [])], set()) == []
