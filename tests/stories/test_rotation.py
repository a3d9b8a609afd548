"""Each secret is changed for another by a restart, as the README's section on security says, and no callback is lost over it."""

import json
from datetime import UTC, datetime
from urllib.parse import urlsplit, urlunsplit

import httpx
import pytest
from standardwebhooks.webhooks import Webhook, WebhookVerificationError
from starlette.applications import Starlette
from starlette.responses import Response
from starlette.routing import Route

from receiver.simulator import Fault, Scenario
from receiver.simulator.serving import serve_app
from receiver.simulator.signing import make_secret, sign_standard
from receiver.tokens import Tokens
from tests.postgres import connect, get_server
from tests.stories.home import open_home

SLOW = 'overdue_after = "10m"\ninterval = "0.2s"'  # who comes home, comes by callback
QUICK = 'overdue_after = "0.5s"\ninterval = "0.2s"'
SILENT = Scenario(seconds=0.1, faults=frozenset({Fault.LOST}))
OLD, NEW = "the-old-secret-of-the-story", "the-new-secret-of-the-story"


def server(*, secrets=(), api_keys=()):
    return "\n".join(f"{name} = {json.dumps(values)}" for name, values in [("secrets", secrets), ("api_keys", api_keys)] if values)


def callback_path(sim, number=-1):
    return urlsplit(sim.simulator.ledger.submits[number].callback_url).path


async def call_back(home, path, job, **headers):
    return (await home.api.post(path, json={"id": job["remote_id"], "status": "completed"}, headers=headers)).status_code


# The secret that signs callback URLs and sessions


async def test_the_secret_of_callback_urls_is_changed_while_jobs_run(sim, tmp_path):
    sim.simulator.plan("elkapi", SILENT, SILENT, SILENT)
    async with open_home(sim, tmp_path, polling=SLOW, server=server(secrets=[OLD])) as home:
        (first,), (second,) = await home.submit("elkapi"), await home.submit("elkapi")
        paths = [callback_path(sim, 0), callback_path(sim, 1)]
    async with open_home(sim, tmp_path, polling=SLOW, server=server(secrets=[NEW, OLD])) as home:
        assert await call_back(home, paths[0], first) == 200
        assert (await home.final(first["id"]))["finished_by"] == "callback"
        (third,) = await home.submit("elkapi")
        assert Tokens([NEW]).check("elkapi", callback_path(sim).rpartition("/")[2]) == third["submission_id"]
    async with open_home(sim, tmp_path, polling=SLOW, server=server(secrets=[NEW])) as home:
        assert await call_back(home, callback_path(sim), third) == 200
        assert (await home.final(third["id"]))["finished_by"] == "callback"
        assert await call_back(home, paths[1], second) == 401, "what was signed by a secret that is gone counts no more"


@pytest.mark.long
async def test_the_secret_that_was_made_beside_the_database_is_changed_too(sim, tmp_path):
    sim.simulator.plan("elkapi", SILENT)
    async with open_home(sim, tmp_path, polling=SLOW) as home:
        (job,) = await home.submit("elkapi")
    kept = tmp_path / "receiver.secret"
    async with open_home(sim, tmp_path, polling=SLOW, server=server(secrets=[NEW, f"${{file:{kept}}}"])) as home:
        assert await call_back(home, callback_path(sim), job) == 200
        assert (await home.final(job["id"]))["finished_by"] == "callback"


async def sign_in(home, key):
    answer = await home.api.post("/sign-in", data={"key": key}, headers={"Sec-Fetch-Site": "same-origin"})
    assert answer.status_code == 303, answer.text
    return answer.cookies["receiver_session"]


async def is_in(home, cookie):
    async with httpx.AsyncClient(base_url=home.url, cookies={"receiver_session": cookie}) as browser:
        return (await browser.get("/")).status_code == 200


@pytest.mark.long
async def test_people_stay_signed_in_while_the_secret_is_changed_and_not_after(sim, tmp_path):
    key = "a-key-of-the-story"
    async with open_home(sim, tmp_path, server=server(secrets=[OLD], api_keys=[key])) as home:
        cookie = await sign_in(home, key)
        assert await is_in(home, cookie)
    async with open_home(sim, tmp_path, server=server(secrets=[NEW, OLD], api_keys=[key])) as home:
        assert await is_in(home, cookie)
        fresh = await sign_in(home, key)
    async with open_home(sim, tmp_path, server=server(secrets=[NEW], api_keys=[key])) as home:
        assert (await is_in(home, cookie), await is_in(home, fresh)) == (False, True)


# API keys


async def may_read(home, key):
    return (await home.api.get("/v1/jobs", headers={"Authorization": f"Bearer {key}"})).status_code


async def test_an_api_key_is_changed_and_callbacks_do_not_notice(sim, tmp_path):
    sim.simulator.plan("elkapi", SILENT)
    async with open_home(sim, tmp_path, polling=SLOW, server=server(api_keys=[OLD])) as home:
        home.api.headers["Authorization"] = f"Bearer {OLD}"
        (job,) = await home.submit("elkapi")
        cookie = await sign_in(home, OLD)
    async with open_home(sim, tmp_path, polling=SLOW, server=server(api_keys=[NEW, OLD])) as home:
        assert (await may_read(home, OLD), await may_read(home, NEW)) == (200, 200)
        assert await call_back(home, callback_path(sim), job) == 200
    async with open_home(sim, tmp_path, polling=SLOW, server=server(api_keys=[NEW])) as home:
        assert (await may_read(home, OLD), await may_read(home, NEW)) == (401, 200)
        assert not await is_in(home, cookie), "a session ends with the key that opened it"
        home.api.headers["Authorization"] = f"Bearer {NEW}"
        assert (await home.final(job["id"]))["finished_by"] == "callback"


# A provider's API key


@pytest.mark.long
async def test_a_providers_key_is_changed_while_its_jobs_run(sim, tmp_path):
    wire = sim.simulator._simulation.wires["elkapi"]
    wire.key = OLD
    sim.simulator.plan("elkapi", SILENT, SILENT)

    def account(key):
        return f'[providers.elkapi]\napi_key = "{key}"\nbase_url = "{sim.base_url("elkapi")}"'

    async with open_home(sim, tmp_path, polling=SLOW, providers=account(OLD)) as home:
        (called,), (polled,) = await home.submit("elkapi"), await home.submit("elkapi")
    wire.key = NEW
    async with open_home(sim, tmp_path, polling=QUICK, providers=account(NEW)) as home:
        assert await call_back(home, callback_path(sim, 0), called) == 200
        await home.api.post(f"/v1/jobs/{polled['id']}/poll")
        done = {(job["status"], job["finished_by"]) for job in [await home.final(called["id"]), await home.final(polled["id"])]}
        assert done == {("succeeded", "callback"), ("succeeded", "poll")}
    assert [entry for entry in sim.simulator.ledger.refused if entry.status == 401] == []


# The secret that a provider signs with


@pytest.mark.long
async def test_the_secret_that_a_provider_signs_with_is_changed_at_its_side(sim, tmp_path):
    sim.simulator.plan("replicate", *[SILENT] * 3)
    old, new = make_secret("replicate"), make_secret("another")

    def account(*secrets):
        url = sim.base_url("replicate")
        return f'[providers.replicate]\napi_key = "key-of-replicate"\nbase_url = "{url}"\ncallback_secrets = {json.dumps(secrets)}'

    async def say(home, number, secret):
        entry = sim.simulator.ledger.submits[number]
        body = json.dumps({"id": entry.job_ids[0], "status": "succeeded", "output": ["https://cdn.example/1.png"]}).encode()
        headers = sign_standard(secret, body, datetime.now(UTC)) | {"content-type": "application/json"}
        return (await home.api.post(urlsplit(entry.callback_url).path, content=body, headers=headers)).status_code

    async def submit(home):
        (job,) = await home.submit("replicate", "black-forest-labs/flux-schnell")
        return job["id"]

    async with open_home(sim, tmp_path, polling=SLOW, providers=account(old)) as home:
        jobs = [await submit(home)]
    async with open_home(sim, tmp_path, polling=SLOW, providers=account(new, old)) as home:
        jobs.append(await submit(home))
        assert await say(home, 0, old) == 200, "the provider still signs with the old one"
        assert await say(home, 1, new) == 200, "and now with the new one"
        jobs.append(await submit(home))
        assert {(await home.final(job))["finished_by"] for job in jobs[:2]} == {"callback"}
    async with open_home(sim, tmp_path, polling=SLOW, providers=account(new)) as home:
        assert (await say(home, 2, old), await say(home, 2, new)) == (401, 200)
        assert (await home.final(jobs[2]))["status"] == "succeeded"


# The secret that we sign for your app with


@pytest.mark.long
async def test_the_secret_of_the_webhook_handler_is_changed_while_events_wait(sim, tmp_path):
    old, new = make_secret("app"), make_secret("app, later")
    verified, is_up = {old: [], new: []}, []

    async def hook(request):
        body = await request.body()
        if not is_up:
            return Response(status_code=503)
        for secret, seen in verified.items():
            try:
                Webhook(secret).verify(body, dict(request.headers))
                seen.append(request.headers["webhook-id"])
            except WebhookVerificationError:
                pass
        return Response(status_code=204)

    async with serve_app(Starlette(routes=[Route("/hook", hook, methods=["POST"])])) as url:

        def handler(*secrets):
            return (
                '[[handlers]]\nname = "app"\nuse = "webhook"\nevents = ["job.succeeded"]\n'
                'retry = {first = "0.2s", max = "0.4s", attempts = 99}\n'
                f'[handlers.options]\nurl = "{url}/hook"\nsecrets = {json.dumps(secrets)}'
            )

        async with open_home(sim, tmp_path, more=handler(old)) as home:
            (waits,) = await home.submit("elkapi")
            await home.final(waits["id"])
        is_up.append(True)
        async with open_home(sim, tmp_path, more=handler(new, old)) as home:
            await home.until(lambda: verified[new])
            assert verified[old] == verified[new], "whoever knows either of them believes what waited"
        async with open_home(sim, tmp_path, more=handler(new)) as home:
            (later,) = await home.submit("elkapi")
            await home.final(later["id"])
            await home.until(lambda: len(verified[new]) >= 2)
            assert len(set(verified[new]) - set(verified[old])) == 1


# The password of the database


@pytest.mark.long
async def test_the_database_is_opened_by_a_second_role_while_the_first_one_still_counts(sim, tmp_path):
    server = get_server()
    if server.wheel is None:
        pytest.skip("the server that RECEIVER_TEST_POSTGRES_URL names is not ours to set up")
    hba = server.wheel.pgdata / "pg_hba.conf"
    trusting = hba.read_text()
    url = await server.make_database()
    name = urlsplit(url).path[1:]
    first, second = f"{name}_a", f"{name}_b"
    async with connect(server.url) as connection:
        await connection.execute(f"CREATE ROLE {first} LOGIN PASSWORD 'one'")
        await connection.execute(f"CREATE ROLE {second} LOGIN PASSWORD 'two' IN ROLE {first}")
        await connection.execute(f"ALTER ROLE {second} SET role = {first}")
        await connection.execute(f"ALTER DATABASE {name} OWNER TO {first}")
        hba.write_text(f"local {name} {first},{second} scram-sha-256\nhost {name} {first},{second} all scram-sha-256\n{trusting}")
        await connection.execute("SELECT pg_reload_conf()")
    async with connect(url) as connection:
        await connection.execute(f"ALTER SCHEMA public OWNER TO {first}")
    sim.simulator.plan("elkapi", SILENT, SILENT)
    try:
        async with open_home(sim, tmp_path, polling=SLOW, store=as_role(url, first, "one")) as old:
            (one,), (two,) = await old.submit("elkapi"), await old.submit("elkapi")
            async with open_home(sim, tmp_path, polling=SLOW, store=as_role(url, second, "two")) as home:  # node by node
                assert await call_back(old, callback_path(sim, 0), one) == 200
                assert (await home.final(one["id"]))["finished_by"] == "callback"
        async with connect(server.url) as connection:
            await connection.execute(f"ALTER ROLE {first} NOLOGIN")
        async with open_home(sim, tmp_path, polling=SLOW, store=as_role(url, second, "two")) as home:
            assert await call_back(home, callback_path(sim, 1), two) == 200
            assert (await home.final(two["id"]))["finished_by"] == "callback"
    finally:
        hba.write_text(trusting)
        async with connect(server.url) as connection:
            await connection.execute("SELECT pg_reload_conf()")
            await connection.execute(f"DROP DATABASE {name} WITH (FORCE)")
            await connection.execute(f"DROP ROLE {second}")
            await connection.execute(f"DROP ROLE {first}")


def as_role(url, role, password):
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=f"{role}:{password}@{parts.netloc.rpartition('@')[2]}"))
