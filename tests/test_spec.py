"""Spec files: loaded, checked, explained."""

import re
import tomllib
from dataclasses import dataclass
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from receiver.errors import ConfigError
from receiver.explain import explain
from receiver.providers import spec as tables
from receiver.providers.loader import load_specs, parse_spec, shipped_folder

README = (shipped_folder() / "README.md").read_text()
EXAMPLE = re.search(r"```toml\n(.*?)```", README, re.DOTALL)[1]

SMALL = """
base_url = "https://api.example.com"
[operations.default.submit]
path = "/jobs"
[poll]
path = "/jobs/{id}"
[status]
succeeded = ["done"]
failed = ["failed"]
[read]
id = "id"
status = "status"
"""


@dataclass
class Change:
    old: str
    new: str
    key: str
    words: str


def mistakes(text, file="small.toml"):
    with pytest.raises(ConfigError) as caught:
        parse_spec(text, file)
    return [(mistake.key, mistake.detail) for mistake in caught.value.mistakes]


def test_the_shipped_specs_are_the_five_and_three_that_sign():
    specs = load_specs()
    assert {name for name, spec in specs.items() if spec.signature is None} == {"huzz", "elkapi", "oxen", "pixazo", "hoox"}
    assert {name for name, spec in specs.items() if spec.signature is not None} == {"fal", "openai", "replicate"}


def test_the_first_operation_is_the_default_one():
    assert load_specs()["hoox"].operations == ("asset", "video", "export", "avatar_create", "avatar_edit")


def test_a_later_folder_replaces_a_spec_and_adds_one(tmp_path):
    (tmp_path / "elkapi.toml").write_text(SMALL)
    (tmp_path / "mine.toml").write_text(SMALL)
    (tmp_path / "notes.txt").write_text("no spec")
    specs = load_specs([tmp_path])
    assert specs["elkapi"].base_url == "https://api.example.com"
    assert "mine" in specs
    assert "huzz" in specs


def test_mistakes_of_all_files_are_told_at_once_with_their_file(tmp_path):
    (tmp_path / "one.toml").write_text(SMALL + "[limit]\nrate = '1/s'")
    (tmp_path / "two.toml").write_text("= broken")
    (tmp_path / "three.toml").write_bytes(b"\xff")
    with pytest.raises(ConfigError) as caught:
        load_specs([tmp_path, tmp_path / "nowhere"])
    assert {Path(mistake.file).name for mistake in caught.value.mistakes} == {"one.toml", "two.toml", "three.toml", "nowhere"}


CHANGES = [
    Change("[poll]", "[check]\npath = '/a'\nmethod = 'POST'\n[poll]", "check.method", "must never cost anything"),
    Change("[poll]", "[check]\npath = '/{id}'\n[poll]", "check.path", "unknown variable {id}"),
    Change("[poll]", "[check]\npath = '/a'\ntaken = [401]\n[poll]", "check.taken", "401 says nothing of a good key"),
    Change("[poll]", "[check]\npath = '/a'\ntaken = [500]\n[poll]", "check.taken", "500 says nothing of a good key"),
    Change("[poll]", "[operations.default.example]\ninput = 1\n[poll]", "operations.default.example.input", "expected a table"),
    Change("[poll]", "[operations.default.example.input]\nat = 2026-01-01\n[poll]", "operations.default.example.input.at", "no JSON"),
    Change("[poll]", "[operations.default.example]\ninput = {}\nmedia = 'x'\n[poll]", "operations.default.example.media", "is no medium"),
    Change("[poll]", "[pol]\nx = 1\n[poll]", "pol", "unknown key; did you mean 'poll'?"),
    Change("[poll]", "[poll]\nmetod = 'GET'", "poll.metod", "did you mean 'method'?"),
    Change('base_url = "https://api.example.com"', "", "base_url", "is missing"),
    Change("https://api.example.com", "ftp://x", "base_url", "expected an http(s) address"),
    Change("https://api.example.com", "https://a@b/c", "base_url", "expected an http(s) address"),
    Change("https://api.example.com", "https://b/c?d=e", "base_url", "expected an http(s) address"),
    Change('path = "/jobs"', 'path = "jobs"', "operations.default.submit.path", "starts with /"),
    Change('path = "/jobs"', 'path = "/j obs"', "operations.default.submit.path", "no spaces"),
    Change('path = "/jobs"', "", "operations.default.submit.path", "is missing"),
    Change('path = "/jobs"', "path = 5", "operations.default.submit.path", "expected a string"),
    Change('path = "/jobs"', 'path = "/jobs/{modl}"', "operations.default.submit.path", "unknown variable {modl}; known: {model}"),
    Change('path = "/jobs"', 'path = "/jobs/{model"', "operations.default.submit.path", "brace"),
    Change('path = "/jobs"', 'path = "/jobs"\nmethod = "FETCH"', "operations.default.submit.method", "expected one of GET"),
    Change('path = "/jobs"', 'path = "/jobs"\nmodel = "a[]"', "operations.default.submit.model", "is no field"),
    Change('path = "/jobs"', 'path = "/jobs"\ncallback = {}\n[callback]', "operations.default.submit.callback", "exactly one of"),
    Change(
        'path = "/jobs"',
        'path = "/jobs"\ncallback = {header = "a b"}\n[callback]',
        "operations.default.submit.callback.header",
        "no name of a header",
    ),
    Change('path = "/jobs"', 'path = "/jobs"\ncallback = {body = "cb"}', "callback", "is missing"),
    Change('path = "/jobs"', 'path = "/jobs"\ncount = {field = "n", max = 0}', "operations.default.submit.count.max", "1 or more"),
    Change('path = "/jobs"', 'path = "/jobs"\ncount = {field = "n"}', "operations.default.submit.count.max", "is missing"),
    Change('path = "/jobs"', 'path = "/jobs"\nconstants = {at = 2026-01-01}', "operations.default.submit.constants.at", "no JSON"),
    Change('path = "/jobs"', 'path = "/jobs"\nheaders = {A = "x\\ny"}', "operations.default.submit.headers.A", "printable"),
    Change("[poll]", '[operations.default.models]\nm = {path = "/m"}\n[poll]', "operations.default.submit.path", "exclude each other"),
    Change("[poll]", "[operations.Default.submit]\npath = '/x'\n[poll]", "operations.Default", "small letters"),
    Change("[poll]", "[operations.default]\nmedia = ['vidoe']\n[poll]", "operations.default.media", "no medium"),
    Change('[poll]\npath = "/jobs/{id}"', "", "operations.default.poll", "is missing"),
    Change("/jobs/{id}", "/jobs", "poll.path", "has no {id}"),
    Change("[status]", "[list]\npath = '/jobs'\n[status]", "read.list.items", "is missing"),
    Change("[status]", "[lookup]\npath = '/jobs'\n[status]", "lookup.path", "has no {id}"),
    Change("[status]", "[callback]\n[status]", "callback", "no operation says"),
    Change("[status]", "[stream]\npath = '/s'\n[status]", "stream.events", "is missing"),
    Change("[status]", "[status]\ndone = ['x']", "status.done", "expected one of queued"),
    Change("[status]", "[status]\nexpired = ['x']", "status.expired", "expected one of queued"),
    Change("[status]", "[status]\nqueued = ['DONE']", "status.succeeded", "already queued"),
    Change('failed = ["failed"]', "failed = []", "status.failed", "is missing"),
    Change('failed = ["failed"]', 'failed = "failed"', "status.failed", "expected a list"),
    Change('id = "id"', 'id = "a..b"', "read.id", "is no path"),
    Change('id = "id"', "", "read.id", "is missing"),
    Change('status = "status"', "", "read.status", "is missing"),
    Change("[read]", "[read]\nprogres = 'x'", "read.progres", "did you mean 'progress'?"),
    Change("[read]", "[read]\nprogress_max = 'x'", "read.progress_max", "a number"),
    Change("[read]", "[read]\noutput_lifetime = 'soon'", "read.output_lifetime", "duration"),
    Change("[read]", "[read.poll]\nroot = 1\n[read]", "read.poll.root", "expected a path"),
    Change("[read]", "[errors.codes]\nno_money = ['x']\n[read]", "errors.codes.no_money", "expected one of"),
    Change("[read]", "[errors.codes]\nunknown = ['x']\nnot_found = ['X']\n[read]", "errors.codes.not_found", "already means unknown"),
    Change("[read]", "[errors.words]\nunknown = ['']\n[read]", "errors.words.unknown", "found everywhere"),
    Change("[read]", "[errors.words_at.99]\nunknown = ['x']\n[read]", "errors.words_at.99", "HTTP code"),
    Change("[read]", "[errors.http]\nunknown = ['x']\n[read]", "errors.http.unknown[0]", "a whole number"),
    Change("[read]", "[answers]\nnot_taken = [200]\n[read]", "answers", "no HTTP code of a refusal"),
    Change("[read]", "[[answers.forms]]\nat = 'x'\nmeans = 'maybe'\n[read]", "answers.forms[0].means", "expected one of refused"),
    Change(
        "[read]", "[[answers.forms]]\nat = 'x'\nmeans = 'refused'\nequals = ['a']\nempty = true\n[read]", "answers.forms[0]", "not both"
    ),
    Change("[read]", "[limits]\nrate = 'often'\n[read]", "limits.rate", "rate"),
    Change("[read]", "[times]\ninterval = {vidoe = '3s'}\n[read]", "times.interval", "did you mean 'video'?"),
    Change("[read]", "[times]\ndeadline = 0\n[read]", "times.deadline", "above zero"),
    Change("[read]", "[auth]\nheader = 'a b'\n[read]", "auth.header", "no name of a header"),
    Change("[read]", "[auth]\nhosts = ['https://x']\n[read]", "auth.hosts", "is no host"),
]


@pytest.mark.parametrize("change", CHANGES, ids=[f"{change.key}: {change.new!r}" for change in CHANGES])
def test_a_mistake_is_told_with_its_key_and_what_would_be_right(change):
    assert change.old in SMALL
    found = mistakes(SMALL.replace(change.old, change.new, 1))
    assert any(key == change.key and change.words in detail for key, detail in found), found
    assert len(found) == 1, "one mistake is told once"


def test_every_mistake_is_told_at_once():
    text = (
        SMALL.replace("[poll]", "[pol]").replace('"id"', '"a..b"').replace('failed = ["failed"]', "fialed = []") + "[times]\ninterval = 'x'"
    )
    keys = {key for key, _ in mistakes(text)}
    assert {"pol", "read.id", "status.fialed", "times.interval", "status.failed"} <= keys


def test_the_name_of_the_file_is_checked():
    assert mistakes(SMALL, "My Spec.toml")[0][0] == ""


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=5),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    ),
    st.data(),
)
def test_no_value_anywhere_makes_the_loader_fail_in_another_way(value, data):
    from receiver.providers.shape import build_table

    raw = tomllib.loads(EXAMPLE)
    place = raw
    while True:
        key = data.draw(st.sampled_from(sorted(place)))
        if not isinstance(place[key], dict) or not place[key] or data.draw(st.booleans()):
            break
        place = place[key]
    place[key] = value
    found = []
    build_table(tables.SpecTable, raw, "x.toml", found)


def test_the_example_of_the_reference_does_what_it_says():
    spec = parse_spec(EXAMPLE, "example.toml")
    submitted = explain(spec, submit=b'{"job": {"id": "r-1", "state": "WAITING"}}')
    assert submitted == {"answer": "accepted", "updates": [{"status": "queued", "remote_id": "r-1", "provider_status": "WAITING"}]}
    called = explain(
        spec,
        callback=b'{"event": "render", "job_id": "r-1", "state": "DONE", "files": [{"url": "https://c.example/1", "mime": "image/png"}]}',
    )
    output = {"index": 0, "url": "https://c.example/1", "media_type": "image/png"}
    assert called == {
        "answer": "read",
        "updates": [{"status": "succeeded", "remote_id": "r-1", "outputs": [output], "provider_status": "DONE"}],
    }
    polled = explain(spec, poll=b'{"job": {"id": "r-1", "state": "broken", "problem": {"text": "too dark", "code": "E1"}}}')
    assert polled["updates"][0]["error"] == {"code": "provider_error", "message": "too dark", "provider_code": "E1"}


def test_explain_tells_every_kind_of_answer():
    spec = parse_spec(EXAMPLE, "example.toml")
    assert explain(spec, submit=b"{}", http_status=429)["answer"] == "not_taken"
    assert explain(spec, submit=b'{"error": {"text": "no", "code": "no_money"}}', http_status=400)["error"]["message"] == "no"
    assert explain(spec, submit=b"{}")["answer"] == "unknown"
    assert explain(spec, poll=b"{}", http_status=404) == {
        "answer": "failed_poll", "reason": "the provider answered with HTTP 404", "not_found": True, "retry_after": None,
    }  # fmt: skip
    assert explain(spec, callback=b'{"event": "other"}') == {"answer": "unreadable", "reason": "unknown task 'other'"}


def test_the_reference_names_every_key():
    known = {
        field.name
        for table in vars(tables).values()
        if isinstance(table, type) and issubclass(table, tables.Table)
        for field in msgspec.structs.fields(table)
    }
    assert len(known) > 60
    assert [name for name in sorted(known) if not re.search(rf"[`\[.{{ ]{name}[`\].= ]", README)] == []


def test_the_narrowest_table_wins_field_by_field():
    text = (
        SMALL + '[read.poll]\nstatus = "p"\ncost = "c"\n[operations.default.read]\nstatus = "o"\n[operations.default.read.poll]\nid = "i"\n'
    )
    spec = parse_spec(text, "small.toml")
    reading = spec.reading("default", "poll")
    assert [paths[0].text for paths in (reading.status, reading.cost, reading.id[0])] == ["o", "c", "i"]
    assert spec.reading(None, "poll").status[0].text == "p"
    assert spec.reading("gone", "poll").status[0].text == "p"
