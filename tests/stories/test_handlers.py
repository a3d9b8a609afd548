"""Events reach the handlers that want them; a broken one harms nobody else."""

import pytest
from structlog.testing import capture_logs

from receiver.simulator import Fault, Scenario
from tests.stories.home import open_home, recorded, recorder


def own(folder, name, source):
    """A module of the user's own beside the configuration file; the name must be new in this process."""
    (folder / f"story_{name}.py").write_text(source)


def handler(name, use, more=""):
    return f'[[handlers]]\nname = "{name}"\nuse = "{use}"\n{more}\n'


async def states(home, **filter):
    answer = await home.api.get("/v1/deliveries", params=filter)
    return [delivery["state"] for delivery in answer.json()["deliveries"]]


async def test_a_raising_handler_is_retried_then_dead_then_replayed(sim, tmp_path):
    own(
        tmp_path,
        "raising",
        "import pathlib\nasync def handle(event, context):\n"
        "    if not pathlib.Path(__file__).with_name('mended').exists():\n        raise RuntimeError('the disk is on fire')\n",
    )
    retry = 'retry = {attempts = 3, first = "0.1s", max = "0.1s"}'
    async with open_home(sim, tmp_path, more=handler("broken", "story_raising:handle", retry) + recorder(tmp_path)) as home:
        (job,) = await home.submit("elkapi")
        await home.final(job["id"])
        await home.until(lambda: is_state(home, "broken", "dead"))
        (dead,) = (await home.api.get("/v1/deliveries", params={"handler": "broken"})).json()["deliveries"]
        assert (dead["attempts"], dead["last_error"], dead["next_attempt_at"]) == (3, "RuntimeError: the disk is on fire", None)
        assert "job.succeeded" in [event["type"] for event in recorded(tmp_path)]
        (tmp_path / "mended").touch()
        answer = await home.api.post("/v1/deliveries/replay", json={"handler": "broken", "state": "dead"})
        assert (answer.status_code, answer.json()) == (202, {"replayed": 1})
        await home.until(lambda: is_state(home, "broken", "done"))


async def is_state(home, name, state):
    return await states(home, handler=name) == [state]


async def test_a_hanging_handler_is_cut_off_and_holds_up_nobody(sim, tmp_path):
    own(tmp_path, "hanging", "import asyncio\nasync def handle(event, context):\n    await asyncio.Event().wait()\n")
    slow = handler("hanging", "story_hanging:handle", 'timeout = "0.3s"\nconcurrency = 1\nretry = {attempts = 1}')
    async with open_home(sim, tmp_path, more=slow + recorder(tmp_path)) as home:
        (job,) = await home.submit("elkapi")
        await home.final(job["id"])
        await home.until(lambda: "job.succeeded" in [event["type"] for event in recorded(tmp_path)])
        await home.until(lambda: is_state(home, "hanging", "dead"))
        (dead,) = (await home.api.get("/v1/deliveries", params={"handler": "hanging"})).json()["deliveries"]
        assert "did not end within 0.3 s" in dead["last_error"]


async def test_a_blocking_handler_is_named(sim, tmp_path):
    own(tmp_path, "blocking", "import time\nasync def handle(event, context):\n    time.sleep(1.6)\n")
    with capture_logs() as logs:
        async with open_home(sim, tmp_path, more=handler("blocking", "story_blocking:handle")) as home:
            (job,) = await home.submit("elkapi")
            await home.until(lambda: [entry for entry in logs if entry["event"] == "loop.stalled"])
            await home.final(job["id"])
    assert {entry["task"] for entry in logs if entry["event"] == "loop.stalled"} == {"handler blocking"}


async def test_a_plain_function_may_block_and_use_its_context(sim, tmp_path):
    own(
        tmp_path,
        "plain",
        "import threading\ndef handle(event, context):\n"
        "    assert threading.current_thread() is not threading.main_thread()\n"
        "    context.run(context.emit('acme.thumbnail', event.subject, {'width': 64}))\n",
    )
    async with open_home(sim, tmp_path, more=handler("plain", "story_plain:handle") + recorder(tmp_path)) as home:
        (job,) = await home.submit("elkapi")
        await home.final(job["id"])
        (emitted,) = await home.until(lambda: [event for event in recorded(tmp_path) if event["type"] == "acme.thumbnail"])
        assert (emitted["data"]["width"], emitted["data"]["late"], emitted["job"]) == (64, False, job["id"])
        assert emitted["data"]["job"]["status"] == "succeeded"


async def test_a_repeated_attempt_emits_once_and_never_to_itself(sim, tmp_path):
    own(
        tmp_path,
        "twice",
        "tries = []\nasync def handle(event, context):\n"
        "    tries.append(event.type)\n    await context.emit('acme.seen', event.subject, {'n': 1})\n"
        "    if len(tries) == 1:\n        raise RuntimeError('again')\n",
    )
    first = handler("twice", "story_twice:handle", 'events = ["job.succeeded", "acme.*"]\nretry = {first = "0.1s", max = "0.1s"}')
    async with open_home(sim, tmp_path, more=first + recorder(tmp_path)) as home:
        (job,) = await home.submit("elkapi")
        await home.final(job["id"])
        await home.until(lambda: is_state(home, "twice", "done"))
        await home.until(lambda: [event for event in recorded(tmp_path) if event["type"] == "acme.seen"])
        assert (await home.events(job["id"])).count("acme.seen") == 1


async def test_a_chain_of_emitted_events_ends(sim, tmp_path):
    own(tmp_path, "pingpong", "async def handle(event, context):\n    await context.emit('acme.ball', event.subject, {'from': event.id})\n")
    both = "".join(handler(name, "story_pingpong:handle", 'events = ["job.succeeded", "acme.ball"]') for name in ("ping", "pong"))
    async with open_home(sim, tmp_path, more=both) as home:
        (job,) = await home.submit("elkapi")
        await home.final(job["id"])
        await home.until(lambda: all_done(home))
        # Two begin, and each ball goes to the other one only: five deep, both ways.
        assert (await home.events(job["id"])).count("acme.ball") == 10


async def all_done(home):
    found = await states(home)
    return len(found) == 12 and set(found) == {"done"}


@pytest.mark.parametrize("type", ["job.succeeded", "receiver.dead_letter"])
async def test_no_handler_can_forge_what_we_say(sim, tmp_path, type):
    name = "forger_" + type.replace(".", "_")
    own(tmp_path, name, f"async def handle(event, context):\n    await context.emit('{type}', event.subject)\n")
    async with open_home(sim, tmp_path, more=handler("forger", f"story_{name}:handle", "retry = {attempts = 1}")) as home:
        (job,) = await home.submit("elkapi")
        await home.final(job["id"])
        await home.until(lambda: is_state(home, "forger", "dead"))
        assert (await home.events(job["id"])).count("job.succeeded") == 1


async def test_filters_pick_events_by_type_and_by_fields_of_the_job(sim, tmp_path):
    where = 'where = {provider = "elkapi", "metadata.team" = ["red", "bl*"]}'
    async with open_home(sim, tmp_path, more=recorder(tmp_path, events='["job.succeeded"]', options=where)) as home:
        jobs = [
            (await home.submit("elkapi", metadata=metadata))[0] for metadata in ({"team": "red"}, {"team": "blue"}, {"team": "green"}, {})
        ]
        for job in jobs:
            await home.final(job["id"])
        heard = await home.until(lambda: recorded(tmp_path) if len(recorded(tmp_path)) >= 2 else None)
        assert {event["job"] for event in heard} == {job["id"] for job in jobs[:2]}
        assert {event["type"] for event in heard} == {"job.succeeded"}
        assert len((await home.api.get("/v1/deliveries")).json()["deliveries"]) == 2


async def test_outputs_are_stored_and_served_and_told_of(sim, tmp_path):
    sim.simulator.plan("pixazo", Scenario(seconds=0.3, outputs=2))
    storage = '[[handlers]]\nname = "archive"\nuse = "storage"\nevents = ["job.succeeded"]\n[handlers.options]\npath = "outputs"\n'
    async with open_home(sim, tmp_path, more=storage + recorder(tmp_path, events='["job.stored"]')) as home:
        (job,) = await home.submit("pixazo", "hunyuan-image")
        await home.final(job["id"])
        await home.until(lambda: recorded(tmp_path))
        stored = [output["stored"] for output in (await home.job(job["id"]))["outputs"]]
        assert [one["sha256"] for one in stored] == [output.sha256 for output in sim.simulator.ledger.jobs[0].outputs]
        answer = await home.api.get(f"/v1/jobs/{job['id']}/outputs/1", headers={"range": "bytes=0-7"})
        assert (answer.status_code, answer.content, answer.headers["x-content-type-options"]) == (206, b"\x89PNG\r\n\x1a\n", "nosniff")


async def test_what_needs_a_person_is_told_to_handlers_that_ask_for_it(sim, tmp_path):
    own(tmp_path, "failing", "async def handle(event, context):\n    raise RuntimeError('no')\n")
    failing = handler("failing", "story_failing:handle", 'events = ["job.succeeded", "receiver.*"]\nretry = {attempts = 1}')
    sim.simulator.plan("elkapi", Scenario(seconds=0.3, faults=frozenset({Fault.SUBMIT_LOST})))
    async with open_home(sim, tmp_path, more=failing + recorder(tmp_path, events='["receiver.*"]')) as home:
        (job,) = await home.submit("elkapi")
        await home.final(job["id"])
        heard = await home.until(lambda: two_heard(tmp_path))
        assert (heard["receiver.unconfirmed"]["job_id"], "job" in heard["receiver.unconfirmed"]) == (job["id"], False)
        assert heard["receiver.dead_letter"]["delivery"]["last_error"] == "RuntimeError: no"
        # The failing handler's own dead letters about us make no further ones.
        await home.until(lambda: no_more_open(home))
        assert [event["type"] for event in recorded(tmp_path)].count("receiver.dead_letter") == 1


def two_heard(folder):
    heard = {event["type"]: event["data"] for event in recorded(folder)}
    return heard if len(heard) == 2 else None


async def no_more_open(home):
    return set(await states(home)) <= {"done", "dead"}
