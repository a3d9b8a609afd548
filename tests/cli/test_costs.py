"""What `receiver costs` asks for and shows; what is added up is the store's business."""

import json

import pytest

from tests.loopback import response, serve

SUMS = [
    {"group": {"model": "m", "metadata.team": "red"}, "unit": "USD", "amount": 0.3, "jobs": 3},
    {"group": {"model": None, "metadata.team": None}, "unit": "USD", "amount": 1e-05, "jobs": 1},
    {"group": {"model": "m", "metadata.team": "red"}, "unit": "credits", "amount": 1200.0, "jobs": 1},
]


@pytest.fixture
async def costs(receiver):
    """`await costs(sums, "--by", …)`: (the lines that are printed, what the server was asked)."""
    import asyncio

    async def ask(sums, *words):
        async def talk(seen, writer):
            writer.write(response(200, json.dumps({"costs": sums}).encode()))

        async with serve(talk) as peer:
            result = await asyncio.to_thread(receiver, "costs", "--server", peer.url, *words)
        assert result.exit_code == 0, result.stderr
        return result.stdout, peer.seen[0].target

    return ask


async def test_sums_are_shown_with_all_their_digits_and_a_total_of_each_unit(costs):
    shown, asked = await costs(SUMS, "--by", "model, metadata.team", "--provider", "hoox", "--metadata", "user=42", "--since", "2026-01-31")
    assert [line.split() for line in shown.splitlines()] == [
        ["MODEL", "METADATA.TEAM", "UNIT", "COST", "JOBS"],
        ["m", "red", "USD", "0.3", "3"],
        ["-", "-", "USD", "0.00001", "1"],
        ["m", "red", "credits", "1200", "1"],
        ["USD", "in", "all", "0.30001", "4"],
    ]
    assert asked.startswith("/v1/costs?by=model%2Cmetadata.team&provider=hoox&metadata.user=42&created_after=2026-01-3")


async def test_programs_get_one_flat_object_for_each_sum(costs):
    shown, _ = await costs(SUMS, "--json")
    assert json.loads(shown)["costs"][0] == {"model": "m", "metadata.team": "red", "unit": "USD", "amount": 0.3, "jobs": 3}


async def test_no_costs_are_told_as_such(costs):
    assert (await costs([]))[0] == ""
