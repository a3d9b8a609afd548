"""What provider answers come to, beyond what the recordings show."""

import base64
import json
from datetime import UTC, datetime, timedelta

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from receiver.config import PollingConfig, ProviderConfig
from receiver.errors import Unreadable
from receiver.model import Answer, Channel, ErrorCode, Job, JobError, Notice, Status, Submission, Update
from receiver.normalize import (
    Accepted,
    NotTakenAnswer,
    PollFailure,
    RefusedAnswer,
    UnknownAnswer,
    matches_submission,
    read_callback,
    read_data_uri,
    read_list_answer,
    read_lookup_answer,
    read_poll_answer,
    read_rate_headers,
    read_stream_event,
    read_submit_answer,
)
from receiver.providers.account import make_account
from receiver.providers.loader import load_specs, parse_spec
from receiver.providers.values import decode_data_uri, guess_media_type, read_expiry, read_time, read_wait

NOW = datetime(2026, 6, 1, 12, 0, tzinfo=UTC)
ACCOUNTS = {name: make_account(name, ProviderConfig(api_key="k"), PollingConfig(), spec) for name, spec in load_specs().items()}
PIXEL = "data:image/png;base64," + base64.b64encode(b"\x89PNG\r\n").decode()

SMALL = """
base_url = "https://api.example.com"
[operations.default.submit]
path = "/jobs"
[poll]
path = "/jobs/{id}"
[status]
succeeded = ["done", "true", "3"]
failed = ["failed"]
[read]
id = "id"
status = "status"
error_message = "why"
error_code = "code"
"""


def small(extra=""):
    return make_account("small", ProviderConfig(api_key="k"), PollingConfig(), parse_spec(SMALL + extra, "small.toml"))


def make_job(**values):
    return Job(**{
        "id": "job_1", "submission_id": "sub_1", "provider": "x", "operation": "default", "model": "m", "media": None,
        "status": Status.QUEUED, "remote_id": "r-1", "created_at": NOW, "updated_at": NOW, "deadline_at": NOW, **values,
    })  # fmt: skip


def make_submission(**values):
    return Submission(**{
        "id": "sub_1", "provider": "x", "operation": "default", "model": "m", "media": None, "input": {},
        "next_attempt_at": NOW, "deadline_seconds": 60.0, "created_at": NOW, **values,
    })  # fmt: skip


def answer(status, body=b"", **headers):
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    return Answer(status=status, body=raw, headers={name.replace("_", "-"): value for name, value in headers.items()})


def submit(account, *args, **headers):
    return read_submit_answer(account, make_submission(operation=account.spec.operations[0]), answer(*args, **headers), NOW)


def poll(account, *args, **headers):
    return read_poll_answer(account, make_job(operation=account.spec.operations[0]), answer(*args, **headers), NOW)


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (301, RefusedAnswer),
        (307, RefusedAnswer),
        (400, RefusedAnswer),
        (404, RefusedAnswer),
        (408, RefusedAnswer),
        (409, RefusedAnswer),
        (429, NotTakenAnswer),
        (500, UnknownAnswer),
        (502, UnknownAnswer),
        (503, UnknownAnswer),
        (504, UnknownAnswer),
        (599, UnknownAnswer),
        (100, UnknownAnswer),
        (200, UnknownAnswer),
        (204, UnknownAnswer),
    ],
)
def test_what_a_code_without_a_body_means_for_a_submit(status, kind):
    assert isinstance(submit(small(), status), kind)


def test_503_was_not_taken_where_it_says_when_to_come_back():
    assert submit(small(), 503, retry_after="4").retry_after == 4.0
    assert submit(small(), 503, retry_after="soon").retry_after is None
    assert isinstance(submit(small("[answers]\nnot_taken = [503]"), 503), NotTakenAnswer)


def test_a_spec_says_of_codes_what_they_mean():
    account = small("[answers]\nrefused = [500]\nnot_taken = [409]\nunknown = [404, 429]")
    assert isinstance(submit(account, 500), RefusedAnswer)
    assert isinstance(submit(account, 409), NotTakenAnswer)
    assert isinstance(submit(account, 404), UnknownAnswer)
    assert isinstance(submit(account, 429), UnknownAnswer)


def test_a_spec_says_of_forms_what_they_mean():
    extra = """
[[answers.forms]]
at = "code"
equals = ["busy"]
means = "not_taken"
[[answers.forms]]
at = "code"
equals = ["lost"]
means = "unknown"
[[answers.forms]]
at = "code"
means = "refused"
"""
    account = small(extra)
    busy = submit(account, 200, {"code": "BUSY", "why": "full"}, retry_after="3")
    assert busy == NotTakenAnswer(3.0, JobError(ErrorCode.PROVIDER_ERROR, "full", "BUSY"))
    assert isinstance(submit(account, 200, {"code": "lost"}), UnknownAnswer)
    assert isinstance(submit(account, 200, {"code": 7}), RefusedAnswer)
    assert isinstance(submit(account, 200, {"code": 7, "id": "a"}), Accepted)


def test_an_unknown_answer_is_a_submit_unknown():
    assert submit(small(), 500, {"why": "oops"}).error == JobError(ErrorCode.SUBMIT_UNKNOWN, "HTTP 500: oops", None)


def test_a_status_may_be_a_number_or_a_boolean():
    assert poll(small(), 200, {"status": True}).status is Status.SUCCEEDED
    assert poll(small(), 200, {"status": 3}).status is Status.SUCCEEDED
    assert poll(small(), 200, {"status": 4}).status is Status.PROCESSING


@pytest.mark.parametrize("status", [{}, [], None, "", "  "])
def test_a_status_that_is_no_word_is_none(status):
    assert isinstance(poll(small(), 200, {"status": status}), PollFailure)


def test_a_final_status_of_another_job_is_no_news():
    found = poll(small(), 200, {"id": "r-2", "status": "done"})
    assert found == PollFailure(200, None, False, "the answer is about another id, 'r-2'", False)
    assert poll(small(), 500, {"id": "r-2", "status": "done"}).is_provider_fault


def test_a_final_status_wins_over_the_code_only_if_it_is_this_jobs():
    assert poll(small(), 404, {"id": "r-1", "status": "failed", "why": "gone"}).status is Status.FAILED
    assert poll(small(), 404, {"status": "failed"}).not_found
    assert (
        poll(small("[operations.default.poll]\npath = '/j/{id}'\nfinal_without_id = true"), 404, {"status": "failed"}).status
        is Status.FAILED
    )


def test_rate_headers_tell_when_the_window_is_used_up():
    hoox = ACCOUNTS["hoox"]
    reset = str(int((NOW + timedelta(seconds=42)).timestamp()))
    assert read_rate_headers(hoox, answer(200, x_ratelimit_remaining="0", x_ratelimit_reset=reset), NOW) == 42.0
    assert read_rate_headers(hoox, answer(200, x_ratelimit_remaining="0", x_ratelimit_reset="15"), NOW) == 15.0
    assert read_rate_headers(hoox, answer(200, x_ratelimit_remaining="1", x_ratelimit_reset=reset), NOW) is None
    assert read_rate_headers(hoox, answer(200, x_ratelimit_remaining="0"), NOW) is None
    assert read_rate_headers(hoox, answer(200, x_ratelimit_remaining="none", x_ratelimit_reset=reset), NOW) is None
    assert read_rate_headers(ACCOUNTS["huzz"], answer(200, x_ratelimit_remaining="0", x_ratelimit_reset=reset), NOW) is None


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("7", 7.0),
        ("0", 0.0),
        ("-5", 0.0),
        ("1.5", 1.5),
        ("1e300", 604800.0),
        ("nan", None),
        ("soon", None),
        ("", None),
        (None, None),
        ("Mon, 01 Jun 2026 12:01:00 GMT", 60.0),
        ("Mon, 01 Jun 2026 11:00:00 GMT", 0.0),
        ("Mon, 01 Jun 2026 12:01:00 -0000", 60.0),
        ("Mon, 99 Jun 2026 12:01:00 GMT", None),
        ("9" * 400, None),
    ],
)
def test_retry_after_is_read_in_both_forms(value, seconds):
    assert read_wait(value, NOW) == seconds


@pytest.mark.parametrize(
    ("value", "at"),
    [
        (1767225600, "2026-01-01T00:00:00+00:00"),
        (1767225600123, "2026-01-01T00:00:00.123000+00:00"),
        ("1767225601", "2026-01-01T00:00:01+00:00"),
        ("2026-01-01T00:00:00.000Z", "2026-01-01T00:00:00+00:00"),
        ("2026-01-01T02:00:00+02:00", "2026-01-01T00:00:00+00:00"),
        ("2026-01-01T00:00:00", "2026-01-01T00:00:00+00:00"),
        (0, None),
        (-1, None),
        (True, None),
        ("yesterday", None),
        (1e300, None),
        ({}, None),
        (None, None),
    ],
)
def test_times_are_read_in_every_form(value, at):
    found = read_time(value)
    assert (None if found is None else found.isoformat()) == at


@pytest.mark.parametrize(
    ("link", "at"),
    [
        ("https://c/x.png?X-Amz-Date=20260601T120000Z&X-Amz-Expires=60", NOW + timedelta(seconds=60)),
        ("https://c/x.png?X-Goog-Date=20260601T120000Z&X-Goog-Expires=60", NOW + timedelta(seconds=60)),
        ("https://c/x.png?Expires=1780315200&Signature=a", NOW),
        ("https://c/x.png?sv=1&se=2026-06-01T12%3A00%3A00Z&sig=a", NOW),
        ("https://c/x.png?expires=60", None),
        ("https://c/x.png?X-Amz-Date=today&X-Amz-Expires=60", None),
        ("https://c/x.png?X-Amz-Date=20260601T120000Z&X-Amz-Expires=1e99", None),
        ("https://c/x.png", None),
        ("https://c/x.png?se=1", None),
    ],
)
def test_a_signed_link_tells_when_it_dies(link, at):
    assert read_expiry(link) == at


def test_a_stated_lifetime_counts_from_the_end_of_the_job():
    account = small('[read.poll]\noutputs = "url"\noutput_lifetime = "1h"\nfinished_at = "end"')
    body = {"status": "done", "url": "https://c.example/x.png"}
    assert poll(account, 200, {**body, "end": "2026-06-01T11:30:00Z"}).outputs[0].expires_at == NOW + timedelta(minutes=30)
    assert poll(account, 200, body).outputs[0].expires_at == NOW + timedelta(hours=1)


@pytest.mark.parametrize(
    ("said", "link", "media_type"),
    [
        ("image/webp", "https://c/x.png", "image/webp"),
        ("Image/PNG; q=1", "https://c/x", "image/png"),
        ("video", "https://c/x.mp4?a=.png", "video/mp4"),
        ("application/octet-stream", "https://c/x.GLB", "model/gltf-binary"),
        (None, "https://c/x.unknown", None),
        (5, "https://c/x", None),
    ],
)
def test_the_media_type_is_what_tells_something(said, link, media_type):
    found = poll(small('[read.poll]\noutputs = "url"\nmedia_type = "kind"'), 200, {"status": "done", "url": link, "kind": said})
    assert found.outputs[0].media_type == media_type


def test_each_output_may_have_its_own_media_type():
    account = small('[read.poll]\noutputs = "files[]"\nmedia_type = "files[].mime"')
    files = [{"url": "https://c/1", "mime": "image/png"}, {"url": "https://c/2", "mime": "audio/mpeg"}]
    assert [output.media_type for output in poll(account, 200, {"status": "done", "files": files}).outputs] == ["image/png", "audio/mpeg"]
    assert poll(account, 200, {"status": "done", "files": [*files, files[0]]}).outputs[1].media_type is None


def test_more_outputs_than_anyone_makes_are_unreadable():
    links = [f"https://c/{number}" for number in range(1001)]
    assert "1000" in poll(ACCOUNTS["elkapi"], 200, {"status": "completed", "outputs": links}).reason


@pytest.mark.parametrize(
    ("link", "media_type"),
    [
        ("https://c", None),
        ("HTTPS://c/a.png", "image/png"),
        ("https://c.mov", None),  # a host, no file
        ("https://c:8443/a.b/c.MP4?d=e.png#f.gif", "video/mp4"),
        ("https://c?d=/e.png", None),
        ("https://user:word@c/a.webp", "image/webp"),
        ("http://[::1]/a.glb", "model/gltf-binary"),
        ("https://bücher.example/ä.png", "image/png"),
    ],
)
def test_every_form_of_a_link_is_an_output(link, media_type):
    (output,) = poll(ACCOUNTS["elkapi"], 200, {"status": "completed", "outputs": [link]}).outputs
    assert (output.url, output.media_type) == (link, media_type)


@pytest.mark.parametrize(
    "link",
    [
        "file:///etc/passwd",
        "javascript:alert(1)",
        "//c/x",
        "https://",
        "https:///x",
        "https://c/\nx",
        "https://c:d@/x",
        "http://[::1",
        "x",
        "data:",
    ],
)
def test_only_links_are_outputs(link):
    assert poll(ACCOUNTS["elkapi"], 200, {"status": "completed", "outputs": [link]}).outputs == ()


def test_costs_are_numbers_or_texts_and_never_nonsense():
    account = small('[read.poll]\ncost = ["a", "b"]\ncost_unit = "USD"')
    assert poll(account, 200, {"status": "done", "a": "0.35"}).cost.amount == 0.35
    for nonsense in (True, "much", -1, "nan", "inf", {}):
        assert poll(account, 200, {"status": "done", "a": nonsense}).cost is None


def test_progress_is_between_nothing_and_all():
    account = small('[read.poll]\nprogress = "p"\nprogress_max = 100')
    assert [poll(account, 200, {"status": "x", "p": number}).progress for number in (0, 25, "50", 250, -1, None)] == [
        0.0,
        0.25,
        0.5,
        1.0,
        None,
        None,
    ]


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ({"why": "Insufficient credits"}, "insufficient_balance"),
        ({"why": "blocked by our content policy"}, "content_rejected"),
        ({"why": "NSFW content"}, "content_rejected"),
        ({"why": "too dark", "code": "E1"}, "provider_error"),
        ({"why": "x", "code": "no_MONEY"}, "insufficient_balance"),
        ({"why": "the GPU melted"}, "provider_unavailable"),
        ({}, "provider_error"),
    ],
)
def test_the_providers_words_become_our_code(body, code):
    account = small('[errors.codes]\ninsufficient_balance = ["No_Money"]\n[errors.words]\nprovider_unavailable = ["gpu MELTED"]')
    assert poll(account, 200, {"status": "failed", **body}).error.code == code


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (400, "invalid_request"),
        (401, "authentication"),
        (402, "insufficient_balance"),
        (403, "permission"),
        (404, "not_found"),
        (418, "content_rejected"),
        (302, "provider_error"),
    ],
)
def test_an_http_code_becomes_our_code(status, code):
    assert submit(small("[errors.http]\ncontent_rejected = [418]"), status, {"why": "x"}).error.code == code


def test_a_page_of_a_gateway_is_no_message():
    assert submit(small(), 404, b"<html><h1>Not here</h1></html>").error.message == "the provider answered with HTTP 404"
    assert submit(small(), 404, b"Not\n here").error.message == "Not here"
    assert len(submit(small(), 400, {"why": "x" * 9_000}).error.message) == 2_000


def test_a_cancelled_job_has_an_error_only_with_a_reason():
    account = make_account(
        "s", ProviderConfig(api_key="k"), PollingConfig(), parse_spec(SMALL.replace("[read]", 'cancelled = ["off"]\n[read]'), "s.toml")
    )
    assert poll(account, 200, {"status": "off"}).error is None
    assert poll(account, 200, {"status": "off", "why": "by the user"}).error == JobError(ErrorCode.CANCELLED, "by the user", None)


def test_a_data_uri_is_read_again_from_the_notice_that_brought_it():
    elk = ACCOUNTS["elkapi"]
    body = json.dumps({"id": "r-1", "status": "completed", "outputs": ["https://c/x.png", PIXEL]}).encode()
    update = read_callback(elk, None, {}, body)
    assert [output.url for output in update.outputs] == ["https://c/x.png", None]
    assert update.data_uris == {1: PIXEL}
    for channel in (Channel.CALLBACK, Channel.POLL, Channel.SUBMIT):
        notice = Notice(id="ntc_1", channel=channel, provider="elkapi", at=NOW, body=body)
        assert read_data_uri(elk, make_job(), notice, 1) == ("image/png", b"\x89PNG\r\n")
        with pytest.raises(Unreadable):
            read_data_uri(elk, make_job(), notice, 0)


def test_a_data_uri_of_an_event_and_of_a_row_is_found_too():
    oxen = ACCOUNTS["oxen"]
    row = json.dumps({"generation_id": "r-1", "status": "succeeded", "result_url": PIXEL}).encode()
    for channel in (Channel.STREAM, Channel.POLL):
        notice = Notice(id="ntc_1", channel=channel, provider="oxen", at=NOW, body=row)
        assert read_data_uri(oxen, make_job(), notice, 0)[0] == "image/png"
    wrapped = Notice(id="ntc_1", channel=Channel.POLL, provider="oxen", at=NOW, body=b'{"generation": ' + row + b"}")
    assert read_data_uri(oxen, make_job(), wrapped, 0)[0] == "image/png"
    with pytest.raises(Unreadable):
        read_data_uri(oxen, make_job(remote_id="r-2"), wrapped, 0)


@pytest.mark.parametrize(
    ("uri", "found"),
    [
        ("data:,a%20b", ("text/plain", b"a b")),
        ("DATA:Image/PNG;BASE64,iVBO", ("image/png", b"\x89PN")),
        ("data:image/png;base64,iVBORw0", ("image/png", b"\x89PNG\r")),
        ("data:audio/wav;codecs=1;base64,_-8", ("audio/wav", b"\xff\xef")),
    ],
)
def test_data_uris_are_decoded(uri, found):
    assert decode_data_uri(uri) == found


@pytest.mark.parametrize("uri", ["data:image/png;base64", "http://x,", "data:x;base64,a", "data:x;base64,\u00e4==="])
def test_malformed_data_uris_are_unreadable(uri):
    with pytest.raises(Unreadable):
        decode_data_uri(uri)


def row(**fields):
    return Update(created_at=fields.pop("at", NOW), fields={"model": fields.pop("model", "m"), "input": fields})


WINDOW = (NOW - timedelta(minutes=1), NOW + timedelta(minutes=1))


@pytest.mark.parametrize(
    ("found", "fits"),
    [
        (row(prompt="fog", duration=5), True),
        (row(prompt="fog", duration="5"), True),
        (row(prompt="fog"), True),
        (row(prompt="fog", duration=None), True),
        (row(prompt="sun", duration=5), False),
        (row(prompt="fog", duration=6), False),
        (row(), False),
        (row(prompt="fog", model="n"), False),
        (row(prompt="fog", at=NOW - timedelta(hours=1)), False),
        (row(prompt="fog", at=None), False),
    ],
)
def test_a_row_fits_a_submission_by_model_echo_and_time(found, fits):
    assert matches_submission(found, make_submission(input={"prompt": "fog", "duration": 5, "seed": 1}), WINDOW) is fits


def test_the_count_of_a_submission_is_no_mark_of_its_rows():
    body = {
        "generations": [
            {
                "generation_id": "a",
                "model_name": "m",
                "prompt": "fog",
                "status": "queued",
                "enqueued_at": NOW.timestamp(),
                "num_generations": 1,
            }
        ]
    }
    [(update, raw)] = read_list_answer(ACCOUNTS["oxen"], answer(200, body), NOW)
    assert matches_submission(update, make_submission(input={"prompt": "fog", "num_generations": 2}), WINDOW)
    assert msgspec.json.decode(raw) == body["generations"][0]


NAMES = [
    "id", "status", "outputs", "error", "message", "url", "output", "media_url",
    "data", "generations", "generation", "generation_id", "asset_ids", "asset_id", "job_id", "task",
    "result", "avatar_id", "look_id", "request_id", "progress", "cost", "created_at", "completed_at",
    "polling_url", "details", "code",
]  # fmt: skip
TEXTS = [PIXEL, "https://c/x.png", "failed", "completed", "succeeded", "COMPLETED", "r-1"]

json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=12)
    | st.sampled_from(TEXTS),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(NAMES),
            inner,
            max_size=6,
        )
    ),
    max_leaves=25,
)


@given(
    json_values.map(lambda value: json.dumps(value).encode()) | st.binary(max_size=60),
    st.sampled_from([200, 202, 302, 404, 429, 500, 503]),
    st.sampled_from(sorted(ACCOUNTS)),
)
def test_no_bytes_make_a_reader_fail_in_another_way_than_unreadable(body, status, name):
    account = ACCOUNTS[name]
    for operation in account.spec.operations:
        job, found = make_job(operation=operation), answer(status, body, retry_after="x")
        assert isinstance(read_poll_answer(account, job, found, NOW), Update | PollFailure)
        assert isinstance(read_lookup_answer(account, job, found, NOW), Update | PollFailure)
        taken = read_submit_answer(account, make_submission(operation=operation), found, NOW)
        assert isinstance(taken, Accepted | NotTakenAnswer | RefusedAnswer | UnknownAnswer)
        for read in (
            lambda operation=operation: read_callback(account, operation, {}, body),
            lambda found=found: read_list_answer(account, found, NOW),
            lambda: read_stream_event(account, "media_generation_completed", body.decode(errors="replace")),
            lambda job=job: read_data_uri(account, job, Notice(id="n", channel=Channel.CALLBACK, provider=name, at=NOW, body=body), 0),
            lambda job=job: read_data_uri(account, job, Notice(id="n", channel=Channel.POLL, provider=name, at=NOW, body=body), 0),
        ):
            try:
                read()
            except Unreadable:
                pass


def test_a_body_nested_beyond_reason_is_unreadable():
    with pytest.raises(Unreadable):
        read_callback(ACCOUNTS["elkapi"], None, {}, b"[" * 200_000)
    deep = b'{"status":"completed","outputs":' + b"[" * 900 + b"]" * 900 + b"}"
    try:
        read_callback(ACCOUNTS["elkapi"], None, {}, deep)
    except Unreadable:
        pass


@given(st.text(max_size=60))
def test_any_text_is_measured_without_failing(text):
    read_wait(text, NOW)
    read_time(text)
    guess_media_type("https://c/" + text)
    read_expiry("https://c/?" + text)


def test_a_reset_far_away_is_no_reason_to_stay_silent_for_ever():
    assert read_rate_headers(ACCOUNTS["hoox"], answer(200, x_ratelimit_remaining="0", x_ratelimit_reset="99999999999"), NOW) == 3600.0


def test_the_type_of_a_data_uri_is_a_media_type_or_plain_text():
    assert guess_media_type("data:<script>,x") == "text/plain"
    assert guess_media_type("data:image/png;base64,x") == "image/png"


@pytest.mark.parametrize(
    "prompt",
    [
        rb'"cut \ud83d"',  # JSON.stringify, of a text that was cut within a character
        rb'"\udc4d\\ud83d"',
        b'"cut \xd0"',  # the same of bytes
        b"NaN",
        b"[-Infinity]",
    ],
)
def test_what_was_paid_for_is_not_lost_over_a_prompt_that_was_cut_off(prompt):
    account = small('outputs = "outputs"\n')
    taken = submit(account, 200, b'{"id": "r-1", "status": "queued", "prompt": %s}' % prompt)
    assert isinstance(taken, Accepted)
    assert [update.remote_id for update in taken.updates] == ["r-1"]
    done = poll(account, 200, b'{"id": "r-1", "status": "done", "outputs": ["https://cdn.example/1.png"], "prompt": %s}' % prompt)
    assert isinstance(done, Update)
    assert (done.status, done.outputs[0].url) == (Status.SUCCEEDED, "https://cdn.example/1.png")


def test_an_error_in_words_that_are_no_characters_can_be_stored():
    failed = poll(small(), 200, rb'{"id": "r-1", "status": "failed", "why": "no \ud83d"}')
    assert isinstance(failed, Update)
    assert failed.error is not None
    assert failed.error.message == "no ?"


@pytest.mark.parametrize("odd", ['["javascript:1"]', '"https://a/\\u0000"', '[{"url": "ftp://a/1.png"}]'])
def test_a_callback_whose_outputs_nobody_could_fetch_says_so(odd):
    account = small('outputs = "outputs"\n')
    assert read_callback(account, None, {}, b'{"id": "r-1", "status": "done", "outputs": %s}' % odd.encode()).is_unusable


@pytest.mark.parametrize("none", ["null", "[]", '""', "{}"])
def test_a_callback_may_bring_none_at_all(none):
    account = small('outputs = "outputs"\n')
    update = read_callback(account, None, {}, b'{"id": "r-1", "status": "done", "outputs": %s}' % none.encode())
    assert (update.status, update.outputs, update.is_unusable) == (Status.SUCCEEDED, (), False)


def test_an_answer_that_leaves_it_open_keeps_the_providers_code():
    lost = submit(small(), 502, {"why": "upstream", "code": "c502"})
    assert isinstance(lost, UnknownAnswer)
    assert (lost.error.code, lost.error.message, lost.error.provider_code) == (ErrorCode.SUBMIT_UNKNOWN, "HTTP 502: upstream", "c502")
