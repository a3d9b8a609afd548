"""Is our own callback route reachable under the public URL, and what follows when it is not?"""

from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import msgspec
import pytest
from structlog.testing import capture_logs

from receiver.app import check
from receiver.config import HandlerConfig, ServerConfig, load
from receiver.herald import Herald
from receiver.net import ProviderClient
from receiver.probe import FRESH, PROBE_EVERY, Probe
from receiver.probing import Cause
from receiver.stores import open_store
from receiver.stores.base import Store
from receiver.stores.terms import NoticeBound
from receiver.tokens import Tokens
from tests.factories import NOW, make_notice, make_poll, make_running_family, seconds
from tests.loopback import response, serve

OURS = Tokens(["our-own-secret"])
WELL = 200


@dataclass
class Street:
    """A probe, its store, and what stands at its public URL: an honest server, or one that answers with a code."""

    probe: Probe
    store: Store
    asked: list[str] = field(default_factory=list)
    status: int = WELL

    async def run_at(self, *after: float) -> None:
        for each in after:
            await self.probe.run_pass(NOW + seconds(each))

    def answer(self, seen: Any) -> bytes:
        from receiver.probing import make_echo, make_proof

        self.asked.append(seen.target)
        if self.status != WELL:
            return response(self.status)
        proof = make_proof(OURS, seen.target.rpartition("/")[2])
        return response(WELL, make_echo(proof, seen.headers, seen.body))

    async def events(self) -> list[str]:
        return [event.type for _, event, _ in await self.store.read_events(0, 100)]


class Quick:
    """Waits for nothing."""

    def now(self):
        return NOW

    async def sleep(self, duration):
        pass


@asynccontextmanager
async def open_street(tmp_path, status=WELL):
    accounts = check(load("[providers.elkapi]\n[providers.huzz]\n", {})).accounts
    handler = HandlerConfig(name="tell", use="log", events=("receiver.*",))
    client = ProviderClient()

    async def talk(seen, writer):
        writer.write(street.answer(seen))

    async with open_store(f"sqlite:///{tmp_path / 'receiver.db'}") as store, serve(talk) as peer:
        config = ServerConfig(public_url=f"{peer.url}/hooks")
        street = Street(Probe(config, OURS, client, store, accounts, Herald(store, [handler]), Quick()), store, status=status)
        try:
            yield street
        finally:
            await client.close()


async def test_we_recognize_ourselves_and_ask_again_after_minutes(tmp_path):
    async with open_street(tmp_path) as street:
        await street.run_at(0, 15, PROBE_EVERY.total_seconds())
        assert (street.probe.is_reachable, street.probe.fault, len(street.asked)) == (True, None, 2)
        assert street.asked[0].startswith("/hooks/callbacks/receiver-probe/")


async def test_somebody_else_at_our_address_is_not_us_and_is_asked_again_soon(tmp_path):
    async with open_street(tmp_path, status=502) as street:
        await street.run_at(0)
        asked = len(street.asked)
        await street.run_at(15)
        assert (street.probe.is_reachable, street.probe.fault.cause) == (False, Cause.ELSEWHERE)
        assert len(street.asked) > asked


async def test_one_that_fails_while_the_server_is_only_starting_is_no_alarm(tmp_path):
    async with open_street(tmp_path, status=502) as street:

        async def start(duration):
            street.status = WELL

        street.probe._clock.sleep = start
        await street.run_at(0)
        assert (street.probe.is_reachable, street.probe.fault) == (True, None)


async def test_what_failed_is_well_again_by_itself(tmp_path):
    async with open_street(tmp_path, status=502) as street:
        await street.run_at(0)
        street.status = WELL
        await street.run_at(15)
        assert (street.probe.is_reachable, street.probe.fault) == (True, None)


async def test_a_callback_of_the_last_hour_outweighs_a_failed_probe(tmp_path):
    async with open_street(tmp_path, status=502) as street:
        await street.store.keep_notice(make_notice("sub_1", at=NOW), NoticeBound())
        await street.run_at(0, FRESH.total_seconds() - 1)
        assert (street.probe.is_reachable, street.probe.fault.cause) == (True, Cause.ELSEWHERE)
        assert await street.events() == []
        await street.run_at(FRESH.total_seconds())
        assert street.probe.is_reachable is False


async def test_a_callback_that_comes_ends_the_alarm(tmp_path):
    async with open_street(tmp_path, status=502) as street:
        await street.run_at(0)
        assert street.probe.is_reachable is False
        await street.store.keep_notice(make_notice("sub_1", at=NOW + seconds(9)), NoticeBound())
        await street.run_at(15)
        assert street.probe.is_reachable is True


async def test_what_is_under_way_where_callbacks_are_due_counts_as_overdue(tmp_path):
    async with open_street(tmp_path, status=404) as street:
        families = {name: make_running_family(provider=name) for name in ("elkapi", "huzz")}
        for family in families.values():
            due = [make_poll(job, due_at=NOW + timedelta(hours=1)) for job in family.jobs]
            await street.store.create_submission(family)
            await settle(street.store, family, due)
        await street.run_at(0)
        polls = await street.store.load_polls([family.jobs[0].id for family in families.values()])
        due = {poll.provider: poll.due_at for poll in polls.values()}
        assert due == {"elkapi": NOW, "huzz": NOW + timedelta(hours=1)}


async def settle(store, family, polls):
    from receiver.stores.terms import Settlement

    stored = (await store.load_families([family.submission.id]))[family.submission.id]
    assert await store.settle(
        [
            Settlement(
                submission=msgspec.structs.replace(family.submission, version=stored.submission.version),
                version=stored.submission.version,
                jobs=family.jobs,
                polls=tuple(polls),
            )
        ]
    ) == [True]


async def test_handlers_hear_of_it_once_however_many_processes_ask(tmp_path):
    async with open_street(tmp_path, status=404) as street, open_store(f"sqlite:///{tmp_path / 'receiver.db'}") as other:
        probe = street.probe
        second = Probe(probe._config, OURS, probe._client, other, {}, Herald(other, ()), Quick())
        await probe.run_pass(NOW)
        await second.run_pass(NOW)
        await street.run_at(15, 30)
        assert second.is_reachable is False
        assert await street.events() == ["receiver.callbacks_lost"]


async def test_the_log_has_one_line_for_each_change_with_cause_and_mending(tmp_path):
    async with open_street(tmp_path, status=404) as street:
        with capture_logs() as lines:
            await street.run_at(0, 15, 30)
            street.status = 502
            await street.run_at(45)
            street.status = WELL
            await street.run_at(60)
        told = [(line["event"], line.get("cause")) for line in lines if line["event"].startswith("public_url.")]
        assert told == [("public_url.unreachable", "elsewhere"), ("public_url.reachable", None)]
        assert "Let the proxy hand /callbacks/" in lines[0]["hint"]


@pytest.mark.parametrize("server", [{}, {"public_url": "https://a.example", "probe_public_url": False}])
async def test_without_a_public_url_or_when_told_not_to_nothing_is_asked(tmp_path, server):
    async with open_store(f"sqlite:///{tmp_path / 'receiver.db'}") as store:
        assert not Probe(ServerConfig(**server), OURS, ProviderClient(), store, {}, Herald(store, ()), Quick()).is_needed
