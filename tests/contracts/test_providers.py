"""Every spec against recorded bodies: what each one comes to, and what must hold for all of them."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from receiver.config import PollingConfig, ProviderConfig
from receiver.errors import Unproven, Unreadable
from receiver.explain import show_update
from receiver.model import MEDIA, Answer, Job, Status, Submission, Update
from receiver.normalize import (
    Accepted,
    NotTakenAnswer,
    PollFailure,
    RefusedAnswer,
    UnknownAnswer,
    read_callback,
    read_list_answer,
    read_lookup_answer,
    read_poll_answer,
    read_result_answer,
    read_stream_event,
    read_submit_answer,
)
from receiver.providers.account import Account, make_account
from receiver.providers.loader import load_specs
from receiver.providers.requests import (
    build_cancel_request,
    build_check_request,
    build_list_requests,
    build_lookup_request,
    build_poll_request,
    build_result_request,
    build_stream_request,
    build_submit_request,
    plan_submission,
)
from receiver.providers.signatures import Keys, Presented, make_keys, prove, read_jwks

NOW = datetime(2026, 6, 1, 12, 0, tzinfo=UTC)
RECORDED = Path(__file__).parent.parent / "recorded"
SPECS = load_specs()
ACCOUNTS = {name: make_account(name, ProviderConfig(api_key="key-of-a-test"), PollingConfig(), spec) for name, spec in SPECS.items()}
OTHER_JWKS = b'{"keys": [{"kty": "OKP", "crv": "Ed25519", "x": "PUAXw-hDiVqStwqnTRt-vJyYLM8uxJaMwM1V8Sr0Zgw"}]}'  # RFC 8032, test 2
CALLBACK_URL = "https://hooks.example.org/callbacks/x/token"


def recorded(channel: str) -> list[Any]:
    cases = []
    for file in sorted(RECORDED.glob(f"*/{channel}.json")):
        provider = file.parent.name
        if provider in SPECS:
            cases += [pytest.param(provider, case, id=f"{provider}: {case['name']}") for case in json.loads(file.read_text())]
    return cases


def body_of(case: dict[str, Any]) -> bytes:
    return case["text"].encode() if "text" in case else json.dumps(case["body"]).encode()


def answer_of(case: dict[str, Any]) -> Answer:
    return Answer(status=case.get("http_status", 200), headers=case.get("headers", {}), body=body_of(case))


def operation_of(account: Account, case: dict[str, Any]) -> str:
    return case.get("operation", account.spec.operations[0])


def make_job(account: Account, case: dict[str, Any]) -> Job:
    return Job(
        id="job_1", submission_id="sub_1", provider=account.name, operation=operation_of(account, case), model="some-model", media=None,
        status=Status.QUEUED, remote_id=case.get("remote_id"), created_at=NOW, updated_at=NOW, deadline_at=NOW,
    )  # fmt: skip


def make_submission(account: Account, operation: str, **changes: Any) -> Submission:
    values: dict[str, Any] = {
        "id": "sub_1", "provider": account.name, "operation": operation, "model": "some-model", "media": None, "input": {},
        "next_attempt_at": NOW, "deadline_seconds": 60.0, "created_at": NOW,
    }  # fmt: skip
    return Submission(**{**values, **changes})


def show_submit(found: Any) -> dict[str, Any]:
    if isinstance(found, Accepted):
        return {"accepted": [show_update(update) for update in found.updates]}
    error = {"code": found.error.code.value, "message": found.error.message, "provider_code": found.error.provider_code}
    if isinstance(found, NotTakenAnswer):
        return {"not_taken": error, "retry_after": found.retry_after}
    assert isinstance(found, RefusedAnswer | UnknownAnswer)
    return {"refused" if isinstance(found, RefusedAnswer) else "unknown": error}


def show_poll(found: Update | PollFailure) -> dict[str, Any]:
    if isinstance(found, Update):
        return show_update(found)
    shown = {"failed_poll": found.reason, "retry_after": found.retry_after}
    return {**shown, "not_found": found.not_found, "is_provider_fault": found.is_provider_fault}


def read_case(channel: str, account: Account, case: dict[str, Any]) -> Any:
    try:
        if channel == "submit":
            return show_submit(read_submit_answer(account, make_submission(account, operation_of(account, case)), answer_of(case), NOW))
        if channel == "poll":
            return show_poll(read_poll_answer(account, make_job(account, case), answer_of(case), NOW))
        if channel == "result":
            return show_poll(read_result_answer(account, make_job(account, case), answer_of(case), NOW))
        if channel == "lookup":
            return show_poll(read_lookup_answer(account, make_job(account, case), answer_of(case), NOW))
        if channel == "callback":
            return [show_update(read_callback(account, case.get("operation"), {}, body_of(case), NOW))]
        if channel == "stream":
            update = read_stream_event(account, case.get("event", account.spec.table.stream.events[0]), body_of(case).decode(), NOW)
            return None if update is None else show_update(update)
        return [show_update(update) for update, _ in read_list_answer(account, answer_of(case), NOW)]
    except Unreadable as fault:
        return {"unreadable": str(fault)}


@pytest.mark.parametrize(("provider", "case"), recorded("submit"))
def test_a_recorded_submit_answer_is_read(provider, case):
    assert read_case("submit", ACCOUNTS[provider], case) == case["expect"]


@pytest.mark.parametrize(("provider", "case"), recorded("poll"))
def test_a_recorded_poll_is_read(provider, case):
    assert read_case("poll", ACCOUNTS[provider], case) == case["expect"]


@pytest.mark.parametrize(("provider", "case"), recorded("result"))
def test_a_recorded_result_is_read(provider, case):
    assert read_case("result", ACCOUNTS[provider], case) == case["expect"]


@pytest.mark.parametrize(("provider", "case"), recorded("callback"))
def test_a_recorded_callback_is_read(provider, case):
    assert read_case("callback", ACCOUNTS[provider], case) == case["expect"]


@pytest.mark.parametrize(("provider", "case"), recorded("stream"))
def test_a_recorded_event_is_read(provider, case):
    assert read_case("stream", ACCOUNTS[provider], case) == case["expect"]


@pytest.mark.parametrize(("provider", "case"), recorded("list"))
def test_a_recorded_list_is_read(provider, case):
    assert read_case("list", ACCOUNTS[provider], case) == case["expect"]


@pytest.mark.parametrize(("provider", "case"), recorded("lookup"))
def test_a_recorded_lookup_is_read(provider, case):
    assert read_case("lookup", ACCOUNTS[provider], case) == case["expect"]


@pytest.mark.parametrize("provider", SPECS)
def test_every_spec_has_recordings_of_every_channel_it_names(provider):
    table = SPECS[provider].table
    wanted = {"submit", "poll"}
    wanted |= {"callback"} if table.callback is not None else set()
    wanted |= {"result"} if table.result is not None else set()
    wanted |= {"stream"} if table.stream is not None else set()
    wanted |= {"list"} if table.list is not None else set()
    assert wanted <= {file.stem for file in (RECORDED / provider).glob("*.json")}


@pytest.mark.parametrize("provider", SPECS)
def test_a_poll_and_a_push_about_the_same_end_say_the_same(provider):
    pushes = [case.values[1] for channel in ("callback", "stream") for case in recorded(channel) if case.values[0] == provider]
    ends = {}
    for case in pushes:
        if "same_end" in case:
            said = case["expect"][0] if isinstance(case["expect"], list) else case["expect"]
            ends[case["same_end"]] = said
    polled = {
        case.values[1]["same_end"]: case.values[1]["expect"]
        for channel in ("poll", "result")
        for case in recorded(channel)
        if case.values[0] == provider and "same_end" in case.values[1]
    }
    assert set(ends) == set(polled)
    callback = SPECS[provider].table.callback
    told = ("status", "remote_id") if callback is not None and callback.thin else ("status", "remote_id", "outputs", "error")
    for name, said in ends.items():
        assert {key: said.get(key) for key in told} == {key: polled[name].get(key) for key in told}
    assert ends or not (SPECS[provider].table.callback or SPECS[provider].table.stream)


@pytest.mark.parametrize("provider", SPECS)
def test_every_recording_survives_being_cut_short(provider):
    account = ACCOUNTS[provider]
    for channel in ("submit", "poll", "result", "callback", "stream", "list", "lookup"):
        for case in recorded(channel):
            if case.values[0] == provider and "body" in case.values[1]:
                text = json.dumps(case.values[1]["body"])
                read_case(channel, account, {**case.values[1], "text": text[: len(text) // 2]})


@pytest.mark.parametrize("provider", SPECS)
def test_requests_carry_the_key_to_the_base_url_and_nowhere_else(provider):
    account = ACCOUNTS[provider]
    auth = account.spec.table.auth
    expected = f"{auth.prefix} key-of-a-test".strip()
    for name in account.spec.operations:
        job = make_job(account, {"operation": name, "remote_id": "a b/c?d#é"})
        job = Job(**{**{field: getattr(job, field) for field in job.__struct_fields__}, "polling_url": "https://evil.example/steal"})
        operation = account.spec.operation(name)
        model = next(iter(operation.models), "some/model")
        requests = [
            build_submit_request(account, make_submission(account, name, model=model), CALLBACK_URL),
            build_poll_request(account, job),
        ]
        if account.has_cancel(name):
            requests.append(build_cancel_request(account, job))
        if (result := build_result_request(account, job)) is not None:
            requests.append(result)
        if (lookup := build_lookup_request(account, job)) is not None:
            requests.append(lookup)
        requests += build_list_requests(account, [job])
        if (key_check := build_check_request(account)) is not None:
            requests.append(key_check)
        if account.has_stream:
            requests.append(build_stream_request(account))
        for request in requests:
            assert request.url.startswith(account.base_url + "/")
            assert request.headers[auth.header] == expected
            assert "key-of-a-test" not in request.url
            assert " " not in request.url
            assert "#" not in request.url


@pytest.mark.parametrize("provider", SPECS)
def test_every_operation_and_model_has_an_example_that_can_be_submitted(provider):
    account = ACCOUNTS[provider]
    for name, operation in account.spec.table.operations.items():
        examples = [(model, entry.media, entry.example) for model, entry in operation.models.items()]
        if not examples:
            assert operation.example is not None, name
            examples = [(operation.example.model, operation.example.media, operation.example.input)]
        for model, media, example in examples:
            assert example is not None, model
            assert plan_submission(account, model=model, input=example, operation=name, media=media).media in (media, *operation.media)


@pytest.mark.parametrize("provider", SPECS)
def test_the_callback_url_stands_in_one_place_or_nowhere(provider):
    account = ACCOUNTS[provider]
    for name in account.spec.operations:
        operation = account.spec.operation(name)
        model = next(iter(operation.models), "some/model")
        submission = make_submission(account, name, model=model, input={"prompt": "x"})
        request = build_submit_request(account, submission, CALLBACK_URL)
        places = (
            request.body.decode().count(CALLBACK_URL)
            + list(request.headers.values()).count(CALLBACK_URL)
            + request.url.count(quote(CALLBACK_URL, safe=""))
        )
        assert places == (1 if account.has_callback and not account.is_account_wide else 0)
        silent = build_submit_request(account, submission, None)
        assert b"hooks.example" not in silent.body
        assert not any("hooks.example" in value for value in silent.headers.values())


@pytest.mark.parametrize("provider", SPECS)
def test_every_operation_can_be_planned_and_its_times_are_sane(provider):
    account = ACCOUNTS[provider]
    for name in account.spec.operations:
        operation = account.spec.operation(name)
        plan = plan_submission(account, model=next(iter(operation.models), "vendor/model"), input={"prompt": "x"}, operation=name)
        assert (plan.operation, plan.count) == (name, 1)
        for media in (None, *MEDIA):
            assert timedelta(seconds=1) <= account.interval_for(media, name) <= account.max_interval_for(media, name)
            assert account.overdue_prior(media, name) < account.deadline_for(media, name)
            assert account.overdue_for(media, name) is None


# What is signed


def keys_of(provider: str, case: dict[str, Any]) -> Keys:
    if "jwks" in case:
        return Keys(public=read_jwks(json.dumps(case["jwks"]).encode()))
    return make_keys(SPECS[provider].signature, case["secrets"])


def prove_case(provider: str, case: dict[str, Any], *, seconds: float = 0, body: bytes | None = None, **headers: str | None) -> None:
    """Checks a recording, `seconds` after it came, with these headers in place of its own (None: without)."""
    given = {name: value for name, value in (case["headers"] | headers).items() if value is not None}
    at = datetime.fromtimestamp(case["at"], UTC) + timedelta(seconds=seconds)
    prove(SPECS[provider].signature, keys_of(provider, case), Presented(given, case["text"].encode() if body is None else body), at)


HOSTILE = [
    "",
    " ",
    ",",
    "=",
    "v1,",
    "v1",
    "v1a,",
    "t=,v1=",
    "0",
    "-1",
    "9" * 5_000,
    "1e9",
    "nan",
    "٣",
    "\x00",
    "é",
    "\udcff",
    "v1," * 4_000,
    "A" * 60_000,
]


@pytest.mark.parametrize("provider", SPECS)
def test_every_provider_that_signs_has_signed_recordings(provider):
    assert (SPECS[provider].signature is not None) == (RECORDED / provider / "signed.json").exists()


@pytest.mark.parametrize(("provider", "case"), recorded("signed"))
def test_a_signed_recording_is_proven_and_read(provider, case):
    for seconds in (0, 300, -300):
        prove_case(provider, case, seconds=seconds)
    body = case["text"].encode()
    assert [show_update(read_callback(ACCOUNTS[provider], None, case["headers"], body, NOW))] == case["expect"]


@pytest.mark.parametrize(("provider", "case"), recorded("signed"))
def test_a_signed_recording_with_one_changed_byte_is_unproven(provider, case):
    body = case["text"].encode()
    for position in range(len(body)):
        changed = body[:position] + bytes([body[position] ^ 1]) + body[position + 1 :]
        with pytest.raises(Unproven):
            prove_case(provider, case, body=changed)
    for changed in (b"", body + b"\n", body[:-1]):
        with pytest.raises(Unproven):
            prove_case(provider, case, body=changed)


@pytest.mark.parametrize(("provider", "case"), recorded("signed"))
@pytest.mark.parametrize("seconds", [301, -301, 86_400, -86_400])
def test_a_signed_recording_that_is_stale_or_from_the_future_is_unproven(provider, case, seconds):
    with pytest.raises(Unproven):
        prove_case(provider, case, seconds=seconds)


@pytest.mark.parametrize(("provider", "case"), recorded("signed"))
def test_a_signed_recording_with_a_hostile_header_is_unproven_and_nothing_worse(provider, case):
    for name in case["headers"]:
        for value in (None, *HOSTILE):
            with pytest.raises(Unproven):
                prove_case(provider, case, **{name: value})


@pytest.mark.parametrize(("provider", "case"), recorded("signed"))
def test_a_signed_recording_is_unproven_without_keys_and_with_others(provider, case):
    signature, presented = SPECS[provider].signature, Presented(case["headers"], case["text"].encode())
    other = Keys(secrets=(b"another secret",), public=read_jwks(OTHER_JWKS))
    for keys in (Keys(), other):
        with pytest.raises(Unproven):
            prove(signature, keys, presented, datetime.fromtimestamp(case["at"], UTC))
