"""Adding up what jobs cost."""

import json

import click
import httpx
import pytest

from receiver.cli.costs import add_up, read_fields
from receiver.client import Client


def job(cost, status="succeeded", **more):
    known = {"provider": "hoox", "model": "m", "metadata": {}, "created_at": "2026-01-31T23:59:59.000000Z"}
    return {**known, "status": status, "cost": cost and {"amount": cost[0], "unit": cost[1]}, **more}


JOBS = [
    job((0.1, "USD")),
    job((0.2, "USD"), created_at="2026-02-01T00:00:00.000000Z"),
    job((12, "credits"), metadata={"team": "red"}),
    job((99, "USD"), "failed"),
    job((99, "USD"), "cancelled"),
    job((0.7, "USD"), "expired", model=None),
    job(None),
]


async def sums(*fields):
    transport = httpx.MockTransport(lambda _: httpx.Response(200, content=json.dumps({"jobs": JOBS, "next_cursor": None})))
    async with Client("http://receiver.test", transport=transport) as client:
        found = await add_up(client, fields, {})
    return {key: (str(each.amount), each.jobs) for key, each in found.items()}


async def test_tenths_add_up_to_tenths_and_units_are_never_mixed():
    assert await sums("provider") == {(("hoox",), "USD"): ("1.0", 3), (("hoox",), "credits"): ("12", 1)}


async def test_they_are_grouped_by_what_is_asked_for():
    assert await sums("model", "day") == {
        (("m", "2026-01-31"), "USD"): ("0.1", 1),
        (("m", "2026-02-01"), "USD"): ("0.2", 1),
        (("m", "2026-01-31"), "credits"): ("12", 1),
        ((None, "2026-01-31"), "USD"): ("0.7", 1),
    }
    assert (("red",), "credits") in await sums("metadata.team")


@pytest.mark.parametrize("by", ["", "colour", "provider,colour", "metadata."])
def test_an_unknown_field_is_a_usage_error(by):
    with pytest.raises(click.BadParameter):
        read_fields(by)
