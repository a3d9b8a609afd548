"""Costs: the route of the API and the page, which say the same as the metric."""

from __future__ import annotations

import json
import re
from html import unescape
from itertools import pairwise

import pytest

from receiver.model import Channel, Cost, Status, Update
from receiver.rules import apply_update
from tests.web.opened import ELK, Web


async def pay(web: Web, amount: float, status: Status = Status.SUCCEEDED, unit: str = "credits", **body) -> None:
    """A job that ends so, and what it cost."""
    submitted = await web.submit(ELK | body)
    submission_id, now = submitted["submission_id"], web.services.clock.now()
    await web.accept(submission_id, submission_id)
    update = Update(remote_id=submission_id, status=status, cost=Cost(amount, unit))
    await web.settle(submission_id, lambda family: apply_update(family, update, Channel.POLL, now), Channel.POLL)


@pytest.fixture
async def paid(web: Web) -> Web:
    await pay(web, 0.1, metadata={"team": "red"})
    await pay(web, 0.2, metadata={"team": "<b>blue</b>"}, model="kling/v2")
    await pay(web, 3, provider="oxen", unit="USD")
    await pay(web, 99, Status.FAILED)
    await pay(web, 99, Status.CANCELLED)
    return web


async def ask(web: Web, query: str = "") -> list[dict]:
    answer = await web.client.get(f"/v1/costs{query}")
    assert answer.status_code == 200, answer.text
    return answer.json()["costs"]


async def test_costs_are_added_up_without_what_is_refunded(paid: Web):
    assert await ask(paid) == [
        {"group": {"provider": "oxen", "model": "flux"}, "unit": "USD", "amount": 3.0, "jobs": 1},
        {"group": {"provider": "elkapi", "model": "kling/v2"}, "unit": "credits", "amount": 0.2, "jobs": 1},
        {"group": {"provider": "elkapi", "model": "flux"}, "unit": "credits", "amount": 0.1, "jobs": 1},
    ]
    assert await ask(paid, "?by=provider&provider=elkapi") == [
        {"group": {"provider": "elkapi"}, "unit": "credits", "amount": 0.3, "jobs": 2}
    ]
    red = {"group": {"metadata.team": "red"}, "unit": "credits", "amount": 0.1, "jobs": 1}
    assert red in await ask(paid, "?by=metadata.team")
    assert await ask(paid, "?by=metadata.team&metadata.team=red") == [red]
    assert await ask(paid, "?created_before=2020-01-01T00:00:00Z") == []


@pytest.mark.parametrize(
    "query", ["by=colour", "by=", "by=metadata.", "by=provider,colour", "by=" + ",".join(f"metadata.{n}" for n in range(9))]
)
async def test_a_field_that_there_is_not_is_a_mistake_of_the_request(web: Web, query: str):
    answer = await web.client.get(f"/v1/costs?{query}")
    assert (answer.status_code, answer.json()["errors"][0]["parameter"]) == (400, "by")


async def test_more_groups_than_anybody_reads_are_refused(paid: Web, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("receiver.web.costs.MOST_SUMS", 2)
    answer = await paid.client.get("/v1/costs")
    assert (answer.status_code, answer.json()["errors"][0]["parameter"]) == (400, "by")
    assert len(await ask(paid, "?by=provider")) == 2


async def test_the_metric_says_the_same(paid: Web):
    text = (await paid.client.get("/metrics")).text
    for each in await ask(paid, "?by=provider,day"):
        assert f'receiver_cost_today{{provider="{each["group"]["provider"]}"}}' in text
        shown = re.search(rf'receiver_cost_today{{provider="{each["group"]["provider"]}"}} (\S+)', text)
        assert shown is not None
        assert float(shown[1]) == pytest.approx(each["amount"])


async def page(web: Web, query: str = "") -> str:
    answer = await web.client.get(f"/costs{query}")
    assert answer.status_code == 200, answer.text
    body = answer.text[answer.text.index('id="live"') :]
    return re.sub(r"\s+", " ", unescape(re.sub(r"<[^>]*>", " ", body)))


async def test_the_page_shows_the_same_sums_by_everything(paid: Web):
    text = await page(paid, "?key=team")
    assert "0.3 credits for 2 jobs" in text
    assert "3 USD for 1 job" in text
    assert "By provider What Cost Jobs Share elkapi 0.3 2 100.0 %" in text
    assert "kling/v2 0.2 1 66.7 %" in text
    assert "By team What Cost Jobs Share <b>blue</b> 0.2 1 66.7 % red 0.1 1 33.3 %" in text
    assert "99" not in text
    assert "USD" not in await page(paid, "?provider=elkapi&days=7&metadata.team=red")


async def test_its_lines_lead_to_their_jobs(paid: Web):
    source = (await paid.client.get("/costs?key=team&provider=elkapi")).text
    links = [unescape(link) for link in re.findall(r'href="\./(jobs\?[^"]+)"', source)]
    assert len(links) == 6  # a provider, two models, two teams, a day
    for link in links:
        listed = (await paid.client.get(f"/{link}")).text
        assert "row-job_" in listed, link


async def test_the_chart_has_every_day_and_one_day_alone_has_none(paid: Web):
    source = (await paid.client.get("/costs?days=7&provider=oxen")).text
    times, amounts = json.loads(unescape(re.search(r'data-series="([^"]*)"', source)[1]))
    assert (len(times), {after - before for before, after in pairwise(times)}) == (7, {86_400})
    assert amounts == [0, 0, 0, 0, 0, 0, 3]
    assert "data-series" not in (await paid.client.get("/costs?days=1")).text


@pytest.mark.parametrize("query", ["days=2", "days=x", "colour=red"])
async def test_a_filter_that_there_is_not_is_said_to_be_none(web: Web, query: str):
    assert (await web.client.get(f"/costs?{query}")).status_code == 400


async def test_without_costs_it_says_who_would_tell(web: Web):
    assert "No job with a known cost. oxen tell what a job cost" in await page(web)
    assert "No job with a known cost. Show all" in await page(web, "?key=team&model=none")


async def test_what_is_too_much_is_said_and_the_rest_is_shown(paid: Web, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("receiver.web.pages_costs.MOST_VALUES", 3)
    await pay(paid, 1, metadata={"team": "green"})
    text = await page(paid, "?key=team")
    assert "too many values of team" in text
    assert "1.3 credits" in text
    monkeypatch.setattr("receiver.web.pages_costs.MOST_SUMS", 2)
    assert "too many models" in await page(paid, "?days=30")


async def test_of_many_values_the_largest_are_shown(paid: Web, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("receiver.web.pages_costs.MOST_ROWS", 1)
    text = await page(paid, "?key=team")
    assert "By team What Cost Jobs Share <b>blue</b> 0.2 1 66.7 % And 1 more, smaller ones." in text
    assert "By provider What Cost Jobs Share elkapi 0.3 2 100.0 % By model" in text


async def test_an_open_page_does_not_add_up_again_at_once(paid: Web, monkeypatch: pytest.MonkeyPatch):
    await page(paid)
    monkeypatch.setattr(paid.services.store, "add_up_costs", None)
    assert "0.3 credits" in await page(paid)
