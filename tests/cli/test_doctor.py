"""What the doctor finds, and that it says how to mend it."""

import json
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path

import msgspec
import pytest

from receiver.cli.checks_local import MIB, check_contents, check_disk, check_sqlite, check_target, nearest_folder
from receiver.cli.checks_remote import check_address, check_network, check_provider, check_public_url, skew_of
from receiver.config import PollingConfig, ProviderConfig, load
from receiver.model import Answer
from receiver.net import ProviderClient
from receiver.providers.account import make_account
from receiver.providers.loader import load_specs
from receiver.simulator.serving import serve_app
from receiver.stores import open_store
from receiver.stores.terms import NoticeBound
from tests.factories import make_notice
from tests.loopback import free_port, response, say, serve
from tests.test_probing import Way
from tests.web.opened import SECRET, open_web

NOW = datetime(2026, 1, 31, 12, 0, 0, 500_000, tzinfo=UTC)


def found_by(result):
    return {check["check"]: check for check in json.loads(result.stdout)["checks"]}


def test_a_fresh_folder_is_well_and_stays_empty(receiver, tmp_path):
    result = receiver("doctor", "--offline", "--json")
    assert result.exit_code == 0
    assert {check["state"] for check in json.loads(result.stdout)["checks"]} == {"ok", "warn"}
    assert list(tmp_path.iterdir()) == []


def test_every_mistake_is_a_failure_with_its_key(receiver, tmp_path):
    (tmp_path / "receiver.toml").write_text('[server]\nprot = 1\n[providers.pixazo]\napi_key = "${NOWHERE}"\n')
    result = receiver("doctor", "--json")
    assert result.exit_code == 2
    assert {name: check["state"] for name, check in found_by(result).items()} == {"server.prot": "fail", "providers.pixazo.api_key": "fail"}


def test_what_the_handlers_say_is_found_beside_the_rest(receiver, tmp_path):
    (tmp_path / "receiver.toml").write_text('[[handlers]]\nname = "a"\nuse = "slak"\n')
    found = found_by(receiver("doctor", "--offline", "--json"))
    assert (found["handlers.a.use"]["state"], found["disk"]["check"]) == ("fail", "disk")


def test_what_keeps_traces_from_being_sent_is_found(receiver, monkeypatch):
    assert "traces" not in found_by(receiver("doctor", "--offline", "--json"))
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    assert found_by(receiver("doctor", "--offline", "--json"))["traces"]["state"] == "ok"
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")
    found = found_by(receiver("doctor", "--offline", "--json"))["traces"]
    assert (found["state"], "only http/protobuf is spoken" in found["detail"]) == ("fail", True)


def test_each_line_tells_how_it_stands_and_how_to_mend_it(receiver, tmp_path):
    (tmp_path / "receiver.toml").write_text("[providers.pixazo]\n")
    lines = receiver("doctor", "--offline").stdout.splitlines()
    place = lines.index("warn provider pixazo: has no key")
    assert lines[place + 1].startswith("     → api_key = ")


def test_short_keys_and_an_open_secret_are_warned_of(receiver, tmp_path):
    (tmp_path / "receiver.toml").write_text('[server]\napi_keys = ["short"]\n')
    (tmp_path / "receiver.secret").write_text("s" * 43)
    (tmp_path / "receiver.secret").chmod(0o644)
    found = found_by(receiver("doctor", "--offline", "--json"))
    assert (found["API keys"]["state"], found["secret"]["state"]) == ("warn", "warn")
    assert "chmod 600" in found["secret"]["mend"]


def test_a_database_that_is_none_is_a_failure(receiver, tmp_path):
    (tmp_path / "receiver.db").write_text("no database" * 100)
    result = receiver("doctor", "--offline", "--json")
    assert (result.exit_code, found_by(result)["database"]["state"]) == (2, "fail")


@pytest.mark.parametrize(
    ("version", "has_bug"),
    [
        ((3, 40, 1), True),
        ((3, 44, 6), False),
        ((3, 45, 0), True),
        ((3, 50, 6), True),
        ((3, 50, 7), False),
        ((3, 51, 2), True),
        ((3, 52, 0), False),
    ],
)
def test_the_version_of_sqlite_is_named_with_its_bug(version, has_bug):
    assert ("WAL-reset" in check_sqlite(version).detail) == has_bug


@pytest.mark.parametrize(("free", "state"), [(50 * MIB, "fail"), (500 * MIB, "warn"), (5000 * MIB, "ok")])
def test_a_full_disk_is_foreseen(free, state):
    assert check_disk(Path("/"), free).state == state


def test_the_nearest_folder_is_one_that_is_there(tmp_path):
    assert nearest_folder(tmp_path / "a" / "b" / "receiver.db") == tmp_path


@pytest.mark.parametrize(
    ("use", "options", "state"),
    [
        ("storage", {"path": "outputs"}, "ok"),
        ("storage", {"path": "s3://bucket"}, None),
        ("command", {"argv": ["sh", "-c", "true"]}, "ok"),
        ("command", {"argv": ["no-such-program"]}, "fail"),
        ("log", {}, None),
    ],
)
def test_the_targets_of_handlers_are_looked_at(tmp_path, use, options, state):
    finding = check_target("a", use, options, tmp_path)
    assert (finding and finding.state) == state


@pytest.mark.parametrize(("there", "skew"), [(0, 0), (-30, 29), (30, 30)])
def test_the_difference_of_two_clocks_is_what_the_call_cannot_explain(there, skew):
    date = format_datetime((NOW + timedelta(seconds=there)).replace(microsecond=0), usegmt=True)
    found = skew_of(Answer(status=200, headers={"date": date}), NOW, NOW)
    assert abs(found.total_seconds() - skew) <= 0.5


@pytest.mark.parametrize("headers", [{}, {"date": "yesterday"}])
def test_who_tells_no_time_has_no_clock_to_compare(headers):
    assert skew_of(Answer(status=200, headers=headers), NOW, NOW) is None


async def test_an_address_is_well_when_somebody_listens_and_is_shown_without_its_path():
    async with serve(say(response())) as peer:
        [well] = await check_address("hook", f"{peer.url}/secret-path")
    [ill] = await check_address("hook", f"http://127.0.0.1:{free_port()}/secret-path")
    assert (well.state, ill.state) == ("ok", "fail")
    assert "secret-path" not in well.detail + ill.detail


async def test_a_key_goes_to_its_provider_only_and_a_foreign_public_url_is_found_out(tmp_path):
    from receiver.app import check

    answer = say(response(404, date="Sat, 31 Jan 2026 12:00:00 GMT"))
    async with serve(answer) as peer, serve(answer) as foreign:
        text = f"""
        [server]
        public_url = "{foreign.url}"
        secrets = ["a-long-secret-of-mine"]
        port = {free_port()}
        [providers.pixazo]
        api_key = "key-of-mine"
        base_url = "{peer.url}"
        """
        plan = check(load(text, {}, folder=tmp_path))
        found = {finding.check: finding for finding in [finding async for finding in check_network(plan)]}
    assert {name: finding.state for name, finding in found.items()} == {
        "server": "warn",
        "public URL": "fail",
        "provider pixazo": "ok",
        "clock": "fail",
    }
    assert not any("key-of-mine" in str(seen.headers) for seen in foreign.seen)
    assert [(seen.method, seen.headers["ocp-apim-subscription-key"]) for seen in peer.seen] == [("GET", "key-of-mine")]


def account_at(url, provider="openai", key="key-of-mine"):
    return make_account(provider, ProviderConfig(api_key=key, base_url=url), PollingConfig(), load_specs()[provider])


@pytest.fixture
async def client():
    client = ProviderClient()
    yield client
    await client.close()


@pytest.mark.parametrize("provider", load_specs())
async def test_each_provider_says_whether_the_key_is_good_and_nothing_is_submitted(client, sim, provider):
    url = sim.base_url(provider)
    good, *_ = await check_provider(client, account_at(url, provider))
    bad, *_ = await check_provider(client, account_at(url, provider, "wrong"))
    none, *_ = await check_provider(client, account_at(url, provider, ""))
    assert (good.state, good.detail) == ("ok", "127.0.0.1 answers, and takes the key")
    assert (bad.state, bad.detail.startswith("the key was refused (HTTP 401")) == ("fail", True)
    assert f"providers.{provider}.api_key" in bad.mend
    assert (none.state, none.detail) == ("ok", "127.0.0.1 answers")
    assert sim.simulator.ledger.submits == []


@pytest.mark.parametrize(
    ("status", "body", "state", "said"),
    [
        (401, b'{"error": {"message": "Incorrect API key provided: key-of-mine"}}', "fail", "the key was refused (HTTP 401: Incorrect"),
        (403, b"", "fail", "the key was refused (HTTP 403"),
        (402, b"", "warn", "short of money"),
        (404, b"", "warn", "whether the key is good it does not say"),
        (429, b"", "warn", "whether the key is good it does not say"),
        (500, b"<html>", "warn", "whether the key is good it does not say"),
    ],
)
async def test_what_a_provider_says_to_a_key_is_told_with_what_to_do(client, status, body, state, said):
    async with serve(say(response(status, body))) as peer:
        finding, *_ = await check_provider(client, account_at(peer.url))
    assert (finding.state, said in finding.detail, bool(finding.mend)) == (state, True, True)
    assert "key-of-mine" not in finding.detail


async def test_clocks_that_agree_are_told_once(sim, tmp_path):
    from receiver.app import check

    tables = [f'[providers.{name}]\napi_key = "k"\nbase_url = "{sim.base_url(name)}"' for name in ("huzz", "hoox")]
    plan = check(load("\n".join([f"[server]\nport = {free_port()}", *tables]), {}, folder=tmp_path))
    found = [finding async for finding in check_network(plan)]
    assert [(finding.state, finding.detail) for finding in found if finding.check == "clock"] == [
        ("ok", "agrees with those of the providers")
    ]


async def test_a_provider_without_such_a_call_is_only_looked_for(client, tmp_path):
    spec = load_specs()["openai"]
    bare = msgspec.structs.replace(spec, table=msgspec.structs.replace(spec.table, check=None))
    async with serve(say(response(401))) as peer:
        account = make_account("openai", ProviderConfig(api_key="key-of-mine", base_url=peer.url), PollingConfig(), bare)
        finding, *_ = await check_provider(client, account)
    assert (finding.state, finding.detail) == ("ok", "127.0.0.1 answers; its spec knows no call to try the key by")
    assert "key-of-mine" not in str(peer.seen[0].headers)


@asynccontextmanager
async def far_side(tmp_path, change):
    """A plan whose public URL leads to a proxy before the real server that hands on what `change` makes of a request."""
    from receiver.app import check

    async with open_web(tmp_path) as web, serve_app(web.app) as upstream:
        way = Way(upstream, web.tokens)

        async def talk(seen, writer):
            writer.write(await way.hand_on(change(seen)))

        async with serve(talk) as proxy:
            text = f"""
            [server]
            public_url = "{proxy.url}"
            secrets = ["{SECRET}"]
            """
            yield check(load(text, {}, folder=tmp_path)), web.services.store


def rewriting(seen):
    return replace(seen, body=seen.body.replace(b"\r\n", b"\n"))


async def find_public_url(plan):
    client = ProviderClient()
    try:
        [finding] = await check_public_url(client, plan)
    finally:
        await client.close()
    return finding


async def test_a_public_url_that_leads_home_unchanged_is_well(tmp_path):
    async with far_side(tmp_path, lambda seen: seen) as (plan, _):
        assert (await find_public_url(plan)).state == "ok"


async def test_a_proxy_that_rewrites_bodies_is_named_with_its_mending(tmp_path):
    async with far_side(tmp_path, rewriting) as (plan, store):
        finding = await find_public_url(plan)
        assert finding.state == "fail"
        assert "Bodies are changed on the way" in finding.detail
        assert "Turn off what changes it in the proxy" in finding.mend
        await store.keep_notice(make_notice("sub_1", at=datetime.now(UTC)), NoticeBound())
        finding = await find_public_url(plan)
        assert (finding.state, "Callbacks arrive all the same" in finding.detail) == ("warn", True)


async def test_where_callbacks_arrive_a_probe_that_cannot_get_out_is_no_failure(tmp_path):
    from receiver.app import check

    text = f"""
    [server]
    public_url = "http://127.0.0.1:{free_port()}"
    secrets = ["{SECRET}"]
    """
    plan = check(load(text, {}, folder=tmp_path))
    assert (await find_public_url(plan)).state == "fail"
    async with open_store(plan.config.store.url) as store:
        await store.keep_notice(make_notice("sub_1", at=datetime.now(UTC)), NoticeBound())
    finding = await find_public_url(plan)
    assert (finding.state, "cannot be tried from here" in finding.detail) == ("ok", True)


class Counts:
    """A store with these open jobs and deliveries."""

    def __init__(self, jobs, deliveries):
        self.jobs, self.deliveries = jobs, deliveries

    async def count_jobs(self):
        return self.jobs

    async def count_deliveries(self):
        return self.deliveries


async def test_what_waits_for_a_person_is_named(tmp_path):
    from receiver.app import check

    plan = check(load("[providers.pixazo]\n", {}, folder=tmp_path))
    store = Counts({("pixazo", "unconfirmed"): 2, ("gone", "queued"): 3}, {("old", "dead"): 4})
    found = [(finding.state, finding.check, finding.detail) async for finding in check_contents(store, plan)]
    assert found == [
        ("warn", "deliveries", "4 are dead"),
        ("warn", "jobs", "2 are unconfirmed: they may run, and may be billed"),
        ("warn", "provider gone", "has 3 open jobs and is not configured any more"),
        ("warn", "handler old", "has deliveries and is not configured any more"),
    ]
