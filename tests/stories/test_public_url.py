"""A public URL that leads nowhere, or through a proxy that spoils what it hands on: jobs come home all the same."""

from receiver.simulator import Scenario
from tests.loopback import free_port, response, say, serve
from tests.stories.home import open_home, recorded, recorder

SLOW = 'overdue_after = "10m"\ninterval = "0.2s"'


async def test_where_no_callback_can_come_home_jobs_are_polled_as_if_overdue(sim, tmp_path):
    sim.simulator.plan("elkapi", Scenario(seconds=0.3))
    dead_end = f"http://127.0.0.1:{free_port()}"
    async with open_home(sim, tmp_path, url=dead_end, polling=SLOW, more=recorder(tmp_path, events='["receiver.*"]')) as home:
        await home.until(lambda: not home.services.is_reachable())
        (job,) = await home.submit("elkapi")
        done = await home.final(job["id"])
        assert (done["status"], done["finished_by"]) == ("succeeded", "poll")
        told = await home.until(lambda: recorded(tmp_path))
        assert (told[0]["type"], told[0]["data"]["cause"]) == ("receiver.callbacks_lost", "unreachable")
        assert "receiver_public_url_reachable 0.0" in (await home.api.get("/metrics")).text


async def test_a_process_without_the_web_polls_for_want_of_callbacks_too(sim, tmp_path):
    async with (
        serve(say(response(404))) as peer,
        open_home(sim, tmp_path, ("submit", "settle", "poll"), url=peer.url, polling=SLOW) as home,
    ):
        await home.until(lambda: not home.services.is_reachable())
        (job,) = await home.submit("elkapi")
        assert (await home.final(job["id"]))["finished_by"] == "poll"
