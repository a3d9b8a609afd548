"""Plans, prompts, the ledger, and running a simulator."""

import socket
from datetime import UTC, datetime, timedelta

import httpx
import msgspec
import pytest

from receiver.clock import ManualClock
from receiver.simulator import Fault, Outcome, Scenario, Simulator, serve_simulator
from receiver.simulator.scenario import UnknownWord, read_prompt
from receiver.simulator.serving import open_listener


@pytest.fixture(scope="module")
def anyio_backend():
    return "asyncio"


@pytest.fixture(scope="module")
async def served(anyio_backend):
    async with serve_simulator(Simulator(Scenario(seconds=0))) as served:
        yield served


@pytest.fixture
async def client(served):
    async with httpx.AsyncClient(headers={"authorization": "Bearer any"}, trust_env=False, verify=False) as client:
        yield client
    await served.simulator.reset()


async def submit(served, client, prompt="a boat"):
    return await client.post(f"{served.base_url('elkapi')}/v1/task/submit", json={"model": "flux", "input": {"prompt": prompt}})


async def test_planned_scenarios_meet_the_submits_that_match(served, client):
    plan = {"provider": "elkapi", "scenario": {"faults": ["refused"]}, "match": {"prompt": "tree"}, "repeat": 2}
    assert (await client.post(f"{served.url}/_sim/scenarios", json=plan)).json() == {"planned": 2}
    codes = [(await submit(served, client, prompt)).status_code for prompt in ("a boat", "a tree", "two trees", "a tree")]
    assert codes == [200, 400, 400, 200]


@pytest.mark.parametrize(
    ("plan", "word"),
    [
        ({"provider": "nobody", "scenario": {}}, "elkapi"),
        ({"provider": "elkapi", "scenario": {"faults": ["explode"]}}, "explode"),
        ({"provider": "elkapi", "scenario": {"second": 1}}, "second"),
        ({"provider": "elkapi"}, "scenario"),
    ],
)
async def test_a_plan_that_means_nothing_is_refused(served, client, plan, word):
    answer = await client.post(f"{served.url}/_sim/scenarios", json=plan)
    assert answer.status_code == 400
    assert word in answer.json()["detail"]


async def test_the_ledger_tells_everything_until_it_is_reset(served, client):
    taken = (await submit(served, client)).json()
    await served.simulator.quiet()
    read = (await client.get(f"{served.base_url('elkapi')}/v1/task/{taken['id']}")).json()
    content = (await client.get(read["outputs"][0])).content
    await client.get(f"{served.base_url('elkapi')}/v1/task/unknown")
    ledger = (await client.get(f"{served.url}/_sim/ledger")).json()
    assert (ledger["billed"], ledger["polls"], ledger["submits"][0]["job_ids"]) == (1, 1, [taken["id"]])
    assert ledger["jobs"][0]["outputs"][0]["bytes"] == len(content)
    assert ledger["refused"][0]["status"] == 404
    assert (await client.post(f"{served.url}/_sim/reset")).status_code == 204
    empty = (await client.get(f"{served.url}/_sim/ledger")).json()
    assert (empty["submits"], empty["jobs"], empty["refused"]) == ([], [], [])


async def test_the_help_page_names_every_fault_and_address(served, client):
    text = (await client.get(served.url)).text
    assert all(fault.value in text and fault.meaning in text for fault in Fault)
    assert all(served.base_url(provider) in text for provider in served.simulator.providers)


async def test_a_word_that_nobody_knows_is_refused_as_the_provider_would(served, client):
    answer = await submit(served, client, "a boat [sim: explode]")
    assert answer.status_code == 400
    assert "'explode'" in answer.json()["error"]["message"]


def test_a_prompt_says_what_is_to_happen():
    default = Scenario(faults=frozenset({Fault.CHATTY}))
    read = read_prompt("a boat [sim: twice fail] at sea [SIM: seconds=3, retry-after=7 as_date=true]", default)
    assert read == Scenario(faults=frozenset({Fault.CHATTY, Fault.TWICE}), outcome=Outcome.FAILED, seconds=3, retry_after=7, as_date=True)
    assert read_prompt("[sim: ok fail]", default).outcome == (Outcome.SUCCEEDED, Outcome.FAILED)
    assert read_prompt("a boat", default) is None


@pytest.mark.parametrize("prompt", ["[sim: explode]", "[sim: seconds=soon]", "[sim: weight=3]", "[sim: revision=D]"])
def test_a_prompt_that_means_nothing_is_refused(prompt):
    with pytest.raises(UnknownWord):
        read_prompt(prompt, Scenario())


def test_a_scenario_travels_as_json():
    scenario = Scenario(faults=frozenset({Fault.TOO_MANY}), outcome=(Outcome.SUCCEEDED, Outcome.ERROR), expires=60)
    assert msgspec.json.decode(msgspec.json.encode(scenario), type=Scenario) == scenario


async def test_time_stands_still_with_a_clock_of_ones_own(client):
    clock = ManualClock(datetime(2026, 1, 1, tzinfo=UTC))
    async with serve_simulator(Simulator(Scenario(seconds=60), clock=clock)) as served:
        taken = (await submit(served, client)).json()
        assert taken["created_at"] == int(clock.now().timestamp())
        for expected in ("queued", "in_progress", "completed"):
            read = (await client.get(f"{served.base_url('elkapi')}/v1/task/{taken['id']}")).json()
            assert read["status"] == expected
            clock.advance(timedelta(seconds=45))
        assert read["completed_at"] - read["created_at"] == 90


async def test_the_port_of_ones_choice_is_taken_or_refused():
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        with pytest.raises(OSError, match="in use"):
            async with serve_simulator(Simulator(), port=other.getsockname()[1]):
                pass


async def test_a_plan_for_nobody_is_a_mistake():
    with pytest.raises(KeyError):
        Simulator().plan("nobody", Scenario())


def test_answers_are_not_held_back_by_nagle():
    with open_listener("127.0.0.1", 0) as listener:
        assert listener.proto == socket.IPPROTO_TCP  # else asyncio does not set TCP_NODELAY, and each answer takes 40 ms
