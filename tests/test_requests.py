"""Requests to providers: what is sent where, what is refused before, and who gets the key."""

import json
from datetime import UTC, datetime, timedelta
from urllib.parse import parse_qs, urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from receiver.config import PollingConfig, ProviderConfig
from receiver.errors import Invalid
from receiver.model import Job, Status, Submission
from receiver.providers.account import make_account
from receiver.providers.loader import load_specs, parse_spec
from receiver.providers.requests import (
    Plan,
    build_cancel_request,
    build_list_requests,
    build_lookup_request,
    build_poll_request,
    build_stream_request,
    build_submit_request,
    plan_submission,
)
from receiver.units import RateLimit

NOW = datetime(2026, 6, 1, 12, 0, tzinfo=UTC)
SPECS = load_specs()
CALLBACK = "https://hooks.example.org/callbacks/x/t.o-k_en"


def account_of(name, wide=None, **config):
    return make_account(name, ProviderConfig(api_key="secret-key", **config), wide or PollingConfig(), SPECS[name])


def make_job(**values):
    return Job(**{
        "id": "job_1", "submission_id": "sub_1", "provider": "x", "operation": "default", "model": "m", "media": None,
        "status": Status.QUEUED, "remote_id": "r-1", "created_at": NOW, "updated_at": NOW, "deadline_at": NOW, **values,
    })  # fmt: skip


def submit(name, callback=CALLBACK, config=None, **values):
    submission = Submission(**{
        "id": "sub_1", "provider": name, "operation": SPECS[name].operations[0], "model": "m", "media": None, "input": {},
        "next_attempt_at": NOW, "deadline_seconds": 60.0, "created_at": NOW, **values,
    })  # fmt: skip
    request = build_submit_request(account_of(name, **(config or {})), submission, callback)
    return request, json.loads(request.body)


def plan(name, model="m", input=None, **values):
    return plan_submission(account_of(name), model=model, input=input or {}, **values)


def pointers(name, **values):
    with pytest.raises(Invalid) as caught:
        plan(name, **values)
    return [error["pointer"] for error in caught.value.errors]


def test_huzz_puts_the_model_into_the_path_and_sends_the_bare_input():
    request, body = submit("huzz", model="kling/kling-v2.6-pro/text-to-video", input={"prompt": "x"})
    assert (request.method, request.url) == ("POST", "https://api.huzz.ai/api/v3/kling/kling-v2.6-pro/text-to-video")
    assert request.headers["Authorization"] == "Bearer secret-key"
    assert request.headers["Content-Type"] == "application/json"
    assert body == {"prompt": "x"}


def test_elkapi_wraps_the_input():
    request, body = submit("elkapi", model="kling-v3/text-to-video", input={"prompt": "x", "duration": "5"})
    assert request.url == "https://api.elkapi.com/v1/task/submit"
    assert body == {"model": "kling-v3/text-to-video", "input": {"prompt": "x", "duration": "5"}, "callback_url": CALLBACK}


def test_oxen_sends_input_beside_the_model_and_no_callback():
    request, body = submit("oxen", input={"prompt": "x", "num_generations": 2})
    assert request.url == "https://hub.oxen.ai/api/ai/queue"
    assert body == {"model": "m", "prompt": "x", "num_generations": 2}


def test_pixazo_takes_the_path_from_the_model_and_the_callback_in_a_header():
    request, body = submit("pixazo", model="hunyuan-image", input={"prompt": "x"})
    assert request.url == "https://gateway.pixazo.ai/hunyuan-image/v1/hunyuan-image/generateRequest"
    assert request.headers["X-Webhook-URL"] == CALLBACK
    assert request.headers["Ocp-Apim-Subscription-Key"] == "secret-key"
    assert request.headers["Cache-Control"] == "no-cache"
    assert "Authorization" not in request.headers
    assert body == {"prompt": "x"}


def test_hoox_takes_the_type_from_the_media_unless_the_input_has_one():
    assert submit("hoox", media="video", input={"prompt": "x"})[1] == {
        "prompt": "x",
        "type": "video",
        "model": "m",
        "webhook_url": CALLBACK,
    }
    assert submit("hoox", media="video", input={"type": "image"})[1]["type"] == "image"
    assert "type" not in submit("hoox")[1]


@pytest.mark.parametrize(
    ("operation", "path"),
    [
        ("asset", "/asset/start"),
        ("video", "/generation/start"),
        ("export", "/export/start"),
        ("avatar_create", "/avatar/create"),
        ("avatar_edit", "/avatar/edit"),
    ],
)
def test_hoox_has_a_start_for_each_operation(operation, path):
    request, body = submit("hoox", operation=operation, model=None, input={"a": 1})
    assert request.url == "https://app.hoox.video/api/public/v1" + path
    assert body == {"a": 1, "webhook_url": CALLBACK}


def test_a_base_url_with_a_path_and_a_slash_at_its_end_is_kept():
    request, _ = submit("huzz", model="a/b", config={"base_url": "http://127.0.0.1:9/huzz/"})
    assert request.url == "http://127.0.0.1:9/huzz/api/v3/a/b"


def test_without_a_key_no_key_is_sent():
    account = make_account("elkapi", ProviderConfig(api_key=""), PollingConfig(), SPECS["elkapi"])
    assert "Authorization" not in build_poll_request(account, make_job()).headers


def test_constants_defaults_and_a_query_callback():
    text = """
base_url = "https://api.example.com"
[operations.default.submit]
path = "/jobs?v=2"
query = {mode = "a b"}
headers = {X-One = "1"}
callback = {query = "cb"}
constants = {fixed = [1, {a = true}]}
defaults = {size = "m", quality = 1}
[callback]
[poll]
path = "/jobs/{id}"
[status]
succeeded = ["done"]
failed = ["failed"]
[read]
id = "id"
status = "status"
"""
    account = make_account("x", ProviderConfig(api_key="k"), PollingConfig(), parse_spec(text, "x.toml"))
    submission = Submission(
        id="s",
        provider="x",
        operation="default",
        model=None,
        media=None,
        input={"size": "l"},
        next_attempt_at=NOW,
        deadline_seconds=1.0,
        created_at=NOW,
    )
    request = build_submit_request(account, submission, CALLBACK)
    assert parse_qs(urlsplit(request.url).query) == {"v": ["2"], "mode": ["a b"], "cb": [CALLBACK]}
    assert request.headers["X-One"] == "1"
    assert json.loads(request.body) == {"size": "l", "quality": 1, "fixed": [1, {"a": True}]}
    with pytest.raises(Invalid, match="set by the provider's spec"):
        plan_submission(account, model=None, input={"fixed": 2})


def test_a_field_inside_the_input_is_guarded_where_it_stands():
    text = """
base_url = "https://api.example.com"
[operations.default.submit]
path = "/jobs"
input = "task.input"
model = "task.input.model"
callback = {body = "task.input.hooks.url"}
[callback]
[poll]
path = "/jobs/{id}"
[status]
succeeded = ["done"]
failed = ["failed"]
[read]
id = "id"
status = "status"
"""
    account = make_account("x", ProviderConfig(api_key="k"), PollingConfig(), parse_spec(text, "x.toml"))
    with pytest.raises(Invalid) as caught:
        plan_submission(account, model="m", input={"hooks": {}, "model": "n", "task": 1})
    assert [error["pointer"] for error in caught.value.errors] == ["/input/hooks", "/input/model"]


def test_a_plan_has_the_default_operation_and_the_count():
    assert plan("oxen", input={"num_generations": 3}) == Plan("default", "m", None, 3)
    assert plan("hoox", input={"generation_count": 4}, media="image") == Plan("asset", "m", "image", 4)
    assert plan("elkapi", media="audio") == Plan("default", "m", "audio", 1)
    assert plan("hoox", model=None, operation="export") == Plan("export", None, "video", 1)


def test_media_comes_from_the_model_or_the_input():
    assert plan("pixazo", model="hunyuan3d-3-0-api-294").media == "3d"
    assert plan("hoox", input={"type": "video"}).media == "video"
    assert plan("hoox", input={"type": "nonsense"}).media is None


@pytest.mark.parametrize(
    ("name", "values", "expected"),
    [
        ("hoox", {"operation": "assets"}, ["/operation"]),
        ("huzz", {"model": None}, ["/model"]),
        ("elkapi", {"model": None}, ["/model"]),
        ("elkapi", {"model": ""}, ["/model"]),
        ("elkapi", {"model": "a\nb"}, ["/model"]),
        ("elkapi", {"model": "x" * 600}, ["/model"]),
        ("pixazo", {"model": "hunyuan-imagex"}, ["/model"]),
        ("pixazo", {"model": None}, ["/model"]),
        ("pixazo", {"model": "hunyuan-image", "media": "3d"}, ["/media"]),
        ("pixazo", {"model": "hunyuan-image", "input": {"sync_mode": None}}, ["/input/sync_mode"]),
        ("hoox", {"media": "audio"}, ["/media"]),
        ("hoox", {"media": "film"}, ["/media"]),
        ("elkapi", {"media": "film"}, ["/media"]),
        ("hoox", {"operation": "export", "media": "image"}, ["/media"]),
        ("oxen", {"input": {"num_generations": 5}}, ["/input/num_generations"]),
        ("oxen", {"input": {"num_generations": 0}}, ["/input/num_generations"]),
        ("oxen", {"input": {"num_generations": True}}, ["/input/num_generations"]),
        ("oxen", {"input": {"num_generations": 2.0}}, ["/input/num_generations"]),
        ("hoox", {"input": {"generation_count": "2"}}, ["/input/generation_count"]),
        ("hoox", {"input": {"webhook_url": "https://evil.example"}}, ["/input/webhook_url"]),
        ("elkapi", {"input": {"callback_url": "https://evil.example"}}, ["/input/callback_url"]),
        ("oxen", {"input": {"model": "dearer"}}, ["/input/model"]),
        (
            "hoox",
            {"model": None, "input": {"webhook_url": 1, "generation_count": 9}, "media": "3d"},
            ["/model", "/input/webhook_url", "/input/generation_count", "/media"],
        ),
    ],
)
def test_what_the_provider_could_not_do_is_refused_with_its_place(name, values, expected):
    assert pointers(name, **values) == expected


@pytest.mark.parametrize(
    "model", ["..", "a/../b", "a//b", "/a", "a/", "a?b", "a#b", "a\\b", "a%2e%2e/b", ".", "a/./b", "a b", "ä", "a;b", "{model}", "a\n"]
)
def test_a_model_that_would_leave_its_place_in_the_path_is_refused(model):
    assert pointers("huzz", model=model) == ["/model"]


def test_hoox_operations_without_a_model_may_have_a_model_in_their_input():
    assert plan("hoox", model=None, operation="video", input={"model": "x"}).operation == "video"


def test_ids_are_encoded_in_poll_cancel_and_lookup():
    job = make_job(remote_id="a/b?c#d é%")
    account = account_of("oxen")
    encoded = "a%2Fb%3Fc%23d%20%C3%A9%25"
    assert build_poll_request(account, job).url == f"https://hub.oxen.ai/api/ai/queue/{encoded}"
    cancel = build_cancel_request(account, job)
    assert (cancel.method, cancel.url) == ("DELETE", f"https://hub.oxen.ai/api/ai/queue/{encoded}")
    assert build_lookup_request(account, job).url == f"https://hub.oxen.ai/api/ai/generations/{encoded}"
    assert build_lookup_request(account_of("huzz"), job) is None


@given(st.text(min_size=1, max_size=30).filter(lambda text: text.encode(errors="ignore").decode() == text))
def test_no_id_changes_the_host_or_adds_a_parameter(remote_id):
    for name in SPECS:
        for operation in SPECS[name].operations:
            url = build_poll_request(account_of(name), make_job(operation=operation, remote_id=remote_id)).url
            parts = urlsplit(url)
            assert parts.hostname == urlsplit(SPECS[name].base_url).hostname
            assert parts.fragment == ""
            assert set(parse_qs(parts.query)) <= ({"avatar_id", "look_id"} if operation.startswith("avatar") else set())


def test_an_id_of_two_parts_is_polled_with_both():
    url = build_poll_request(account_of("hoox"), make_job(operation="avatar_edit", remote_id="av 1/lk&2")).url
    assert url == "https://app.hoox.video/api/public/v1/avatar/status?avatar_id=av%201&look_id=lk%262"


def test_a_polling_url_is_followed_only_to_hosts_that_may_have_the_key():
    account = account_of("pixazo")
    good = "https://gateway.pixazo.ai/v2/requests/status/other"
    assert build_poll_request(account, make_job(polling_url=good)).url == good
    fallback = "https://gateway.pixazo.ai/v2/requests/status/r-1"
    for bad in (
        "https://evil.example/x", "http://gateway.pixazo.ai/x", "https://gateway.pixazo.ai:8443/x", "https://gateway.pixazo.ai@evil.example/x",
        "https://u:p@gateway.pixazo.ai/x", "https://gateway.pixazo.ai\\@evil.example/x", "https://gateway.pixazo.ai.evil.example/",
        "//gateway.pixazo.ai/x",
        "https://[::1", "javascript:alert(1)", "https://gateway.pixazo.ai/a b", "", "https://gateway.pixazo.ai:99999/",
    ):  # fmt: skip
        assert build_poll_request(account, make_job(polling_url=bad)).url == fallback, bad


def test_where_the_base_url_was_changed_only_its_origin_has_the_key():
    account = account_of("oxen", base_url="http://127.0.0.1:9000/oxen")
    assert account.may_have_key("http://127.0.0.1:9000/anything")
    assert not account.may_have_key("https://hub.oxen.ai/api/ai/queue")
    assert account.output_may_have_key("http://127.0.0.1:9000/files/1")
    assert not account.output_may_have_key("https://hub.oxen.ai/api/repos/x")
    assert not account_of("elkapi", base_url="http://127.0.0.1:9000").output_may_have_key("http://127.0.0.1:9000/f")


def test_outputs_have_the_key_only_where_the_spec_names_their_host():
    assert account_of("oxen").output_may_have_key("https://hub.oxen.ai/api/repos/x")
    assert not account_of("oxen").output_may_have_key("http://hub.oxen.ai/api/repos/x")
    assert not account_of("oxen").output_may_have_key("https://cdn.example/x")
    assert not account_of("pixazo").output_may_have_key("https://gateway.pixazo.ai/x")


def test_a_spec_that_is_at_home_on_plain_http_has_the_key_for_outputs_of_its_own_origin():
    spec = parse_spec(
        'base_url = "http://127.0.0.1:9000/api"\n[auth]\noutput_hosts = ["127.0.0.1"]\n[operations.default.submit]\npath = "/jobs"\n'
        '[poll]\npath = "/jobs/{id}"\n[status]\nsucceeded = ["done"]\nfailed = ["failed"]\n[read]\nid = "id"\nstatus = "status"\n',
        "mine.toml",
    )
    account = make_account("mine", ProviderConfig(api_key="k"), PollingConfig(), spec)
    assert account.output_may_have_key("http://127.0.0.1:9000/files/1")
    assert not account.output_may_have_key("http://127.0.0.1:9001/files/1")


def test_one_list_call_asks_about_many_jobs():
    account = account_of("oxen")
    one_model = [make_job(id="a", model="k/1"), make_job(id="b", model="k/1")]
    assert [request.url for request in build_list_requests(account, one_model)] == ["https://hub.oxen.ai/api/ai/queue?model=k%2F1"]
    two_models = [make_job(id="a", model="x"), make_job(id="b", model="y")]
    assert [request.url for request in build_list_requests(account, two_models)] == ["https://hub.oxen.ai/api/ai/queue"]
    lost = [make_job(model="x", remote_id=None)]
    assert [request.url for request in build_list_requests(account, lost)] == [
        "https://hub.oxen.ai/api/ai/queue?model=x", "https://hub.oxen.ai/api/ai/generations?model=x&page_size=200",
    ]  # fmt: skip
    assert build_list_requests(account, []) == []
    assert build_list_requests(account_of("huzz"), lost) == []


def test_the_stream_is_asked_for_as_a_stream():
    request = build_stream_request(account_of("oxen"))
    assert request.url == "https://hub.oxen.ai/api/events"
    assert request.headers["Accept"] == "text/event-stream"


def test_an_account_knows_what_its_provider_can_do():
    oxen, pixazo, huzz = account_of("oxen"), account_of("pixazo"), account_of("huzz")
    assert (oxen.has_callback, oxen.has_stream, oxen.has_list, oxen.spec.table.lookup is not None, oxen.has_cancel("default")) == (
        False,
        True,
        True,
        True,
        True,
    )
    assert (pixazo.has_callback, pixazo.has_stream, pixazo.has_list, pixazo.has_cancel("default")) == (True, False, False, False)
    assert not huzz.has_callback
    assert "secret-key" not in repr(oxen)


def seconds(number):
    return timedelta(seconds=number)


def test_what_the_user_wrote_beats_the_spec_and_the_narrower_table_the_wider():
    wide = PollingConfig(interval=seconds(7), deadline={"": seconds(100), "video": seconds(200)}, overdue_after=seconds(9), concurrency=3)
    narrow = PollingConfig(interval=seconds(2), deadline={"image": seconds(50)}, overdue_after="auto")
    account = account_of("elkapi", wide, polling=narrow)
    assert account.interval_for("video") == seconds(2)
    assert account.deadline_for("image") == seconds(50)
    assert account.deadline_for("video") == seconds(200)
    assert account.deadline_for(None) == seconds(100)
    assert account.overdue_for("image") is None
    assert account.concurrency == 3
    assert account_of("elkapi", wide).overdue_for("image") == seconds(9)


def test_the_spec_beats_the_built_in_defaults():
    account = account_of("hoox")
    assert account.deadline_for("image") == seconds(900)
    assert account.deadline_for("video", "export") == seconds(7200)
    assert account.overdue_prior("video", "export") == seconds(300)
    assert account.max_interval_for("video") == seconds(10)
    assert account.concurrency == 50
    assert account.rate_limit == RateLimit(100, 60.0)
    assert account_of("hoox", rate_limit=RateLimit(5, 1.0)).rate_limit == RateLimit(5, 1.0)


def test_the_longest_interval_is_never_below_the_first():
    assert account_of("elkapi", PollingConfig(interval=seconds(90))).max_interval_for("image") == seconds(90)


@given(
    st.dictionaries(st.text(max_size=8), st.none() | st.integers() | st.text(max_size=8) | st.lists(st.integers(), max_size=2), max_size=4),
    st.text(max_size=12),
)
def test_any_input_and_model_is_planned_or_invalid(input, model):
    for name in SPECS:
        for operation in SPECS[name].operations:
            errors = []
            try:
                plan(name, model=model, input=input, operation=operation)
            except Invalid as error:
                errors = error.errors
            assert all(each["pointer"].startswith("/") and each["detail"] for each in errors)
