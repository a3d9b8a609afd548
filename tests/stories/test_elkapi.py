"""One thread, whole: Elk API from a submit through callback and lost callback to a handler."""

from receiver.simulator import Fault, Scenario
from tests.stories.home import open_home, recorded, recorder


async def test_a_job_comes_home_by_callback_and_the_handler_hears_of_it(sim, tmp_path):
    async with open_home(sim, tmp_path, more=recorder(tmp_path)) as home:
        (job,) = await home.submit("elkapi", metadata={"user": "42"})
        assert (job["status"], job["remote_id"] is not None) == ("queued", True)
        done = await home.final(job["id"])
        assert (done["status"], done["finished_by"], done["metadata"]) == ("succeeded", "callback", {"user": "42"})
        assert done["outputs"][0]["url"].startswith(sim.url)
        types = await home.until(lambda: [e["type"] for e in recorded(tmp_path)] if len(recorded(tmp_path)) >= 3 else None)
        assert types == ["job.submitted", "job.processing", "job.succeeded"]
        assert sim.simulator.ledger.billed == 1
        assert sim.simulator.ledger.polls == 0


async def test_a_lost_callback_is_found_by_polling(sim, tmp_path):
    sim.simulator.plan("elkapi", Scenario(seconds=0.3, faults=frozenset({Fault.LOST})))
    async with open_home(sim, tmp_path, polling='overdue_after = "0.6s"\ninterval = "0.2s"') as home:
        (job,) = await home.submit("elkapi")
        done = await home.final(job["id"])
        assert (done["status"], done["finished_by"]) == ("succeeded", "poll")
        assert await home.events(job["id"]) == ["job.submitted", "job.succeeded"]


async def test_a_submit_whose_answer_is_lost_reaches_the_provider_once_and_comes_home_by_its_callback(sim, tmp_path):
    sim.simulator.plan("elkapi", Scenario(seconds=0.6, faults=frozenset({Fault.SUBMIT_LOST})))
    async with open_home(sim, tmp_path) as home:
        (job,) = await home.submit("elkapi")
        assert (job["status"], job["error"]["code"]) == ("unconfirmed", "submit_unknown")
        done = await home.final(job["id"])
        assert (done["status"], done["finished_by"], done["error"]) == ("succeeded", "callback", None)
        assert await home.events(job["id"]) == ["job.unconfirmed", "job.submitted", "job.processing", "job.succeeded"]
        assert len(sim.simulator.ledger.submits) == 1


async def test_while_a_poll_is_under_way_a_callback_starts_no_second_one(sim, tmp_path):
    slow = Scenario(seconds=2.4, delay=3, polls=9, faults=frozenset({Fault.POLL_SLOW}))  # processing is told after 0.6 s
    sim.simulator.plan("elkapi", slow)
    async with open_home(sim, tmp_path, polling='overdue_after = "0.2s"\ninterval = "0.2s"') as home:
        (job,) = await home.submit("elkapi")
        done = await home.final(job["id"])
        assert (done["status"], done["finished_by"]) == ("succeeded", "callback")
        assert await home.outcomes(job["id"]) == ["applied", "applied"]
        assert sim.simulator.ledger.polls == 1
