"""Looking at jobs, and what an operator may do with them."""

from __future__ import annotations

import asyncio
import base64
import json
from datetime import timedelta
from pathlib import Path

import msgspec
import pytest

from receiver.model import Output, Status, Stored
from receiver.rush import Rush
from receiver.settler import Settler
from receiver.times import to_rfc3339
from receiver.web import jobs, notices, views
from tests.web.opened import ELK, Web

NO_JOB = "job_" + "0" * 32
PNG = b"\x89PNG\r\n\x1a\n" + bytes(100)


async def test_a_job_looks_as_documented(web: Web):
    job = await web.succeed(ELK | {"metadata": {"user": "42"}}, [Output(index=0, url="https://cdn.example/1.png")])
    answer = await web.client.get(f"/v1/jobs/{job.id}")
    assert answer.status_code == 200
    shown = answer.json()
    msgspec.convert(shown, views.Job)
    assert set(shown) == {field.name for field in msgspec.structs.fields(views.Job)}
    assert shown["outputs"] == [{"index": 0, "url": "https://cdn.example/1.png", "media_type": None}]
    assert shown["finished_by"] == "poll"


async def test_a_job_that_is_not_there_is_404(web: Web):
    routes = [("GET", ""), ("DELETE", ""), ("GET", "/timeline"), ("GET", "/outputs/0"), ("POST", "/cancel"), ("POST", "/poll")]
    for job_id in (NO_JOB, "nope", "job_", "job_%00", "sub_" + "0" * 32, "%F0%9F%90%82"):
        for method, rest in routes:
            answer = await web.client.request(method, f"/v1/jobs/{job_id}{rest}")
            assert answer.status_code == 404, (method, job_id, rest)
            assert answer.headers["content-type"] == "application/problem+json"


async def test_wait_holds_the_answer_until_the_job_is_final(web: Web):
    submitted = await web.submit()
    await web.accept(submitted["submission_id"], "elk-1")
    waiting = asyncio.create_task(web.client.get(f"/v1/jobs/{submitted['jobs'][0]['id']}?wait=61.5"))
    await asyncio.sleep(0)
    await web.say(submitted["submission_id"], Status.PROCESSING, "elk-1")
    assert not waiting.done()
    await web.say(submitted["submission_id"], Status.SUCCEEDED, "elk-1", [Output(index=0, url="https://cdn.example/1")])
    async with asyncio.timeout(5):
        assert (await waiting).json()["status"] == "succeeded"


async def test_wait_ends_with_the_job_as_it_stands(web: Web):
    submitted = await web.submit()
    answer = await web.client.get(f"/v1/jobs/{submitted['jobs'][0]['id']}?wait=0.05")
    assert answer.json()["status"] == "submitting"


async def test_a_malformed_wait_is_400(web: Web):
    for wait in ["-1", "soon", "", "inf", "nan", "1e2", "1,5", "٣"]:
        answer = await web.client.get(f"/v1/jobs/{NO_JOB}", params={"wait": wait})
        assert answer.status_code == 400
        assert answer.json()["errors"][0]["parameter"] == "wait"


async def test_listings_are_newest_first_and_come_in_pages(web: Web):
    ids = [(await web.submit())["jobs"][0]["id"] for _ in range(5)]
    first = (await web.client.get("/v1/jobs?limit=3")).json()
    second = (await web.client.get("/v1/jobs", params={"limit": 3, "cursor": first["next_cursor"]})).json()
    assert [job["id"] for job in first["jobs"] + second["jobs"]] == ids[::-1]
    assert second["next_cursor"] is None


async def test_jobs_are_filtered(web: Web):
    await web.submit(ELK | {"metadata": {"team": "red", "user": "1"}})
    await web.submit(ELK | {"metadata": {"team": "blue", "user": "1"}, "model": "other"})
    third = await web.submit({"provider": "huzz", "model": "kling/x/text-to-video", "input": {}})
    await web.accept(third["submission_id"], "huzz-1")

    async def count(**query: str) -> int:
        answer = await web.client.get("/v1/jobs", params=query)
        assert answer.status_code == 200, answer.text
        return len(answer.json()["jobs"])

    assert await count(provider="elkapi") == 2
    assert await count(provider="no-such") == 0
    assert await count(model="other") == 1
    assert await count(status="queued") == 1
    assert await count(submission_id=third["submission_id"]) == 1
    assert await count(**{"metadata.user": "1"}) == 2
    assert await count(**{"metadata.user": "1", "metadata.team": "red"}) == 1
    assert await count(**{"metadata.team": ""}) == 0


async def test_created_after_is_inclusive_and_created_before_is_not(web: Web):
    [job] = (await web.submit())["jobs"]
    found = await web.services.store.read_job(job["id"])
    assert found is not None
    later = to_rfc3339(found.created_at + timedelta(microseconds=1))

    async def count(query: str) -> int:
        return len((await web.client.get(f"/v1/jobs?{query}")).json()["jobs"])

    assert await count(f"created_after={job['created_at']}") == 1
    assert await count(f"created_after={later}") == 0
    assert await count(f"created_before={job['created_at']}") == 0
    assert await count(f"created_before={later}") == 1
    assert await count("created_after=2020-01-01T00:00:00+02:00") == 1


async def test_a_malformed_query_is_400(web: Web):
    for query in [
        "colour=red",
        "limit=0",
        "limit=1001",
        "limit=ten",
        "limit=",
        "limit=1&limit=2",
        "status=done",
        "created_after=yesterday",
        "created_after=2026-01-01",
        "created_after=2026-01-01T00:00:00",
        "created_after=2026-13-01T00:00:00Z",
        "created_before=0001-01-01T00:00:00%2B23:59",
        "cursor=nonsense",
        "provider=",
        "model=%00",
        "provider=%FF",
        "metadata=x",
        "&".join(f"metadata.{n}=1" for n in range(200)),
    ]:
        answer = await web.client.get(f"/v1/jobs?{query}")
        assert answer.status_code == 400, answer.text
        assert all({"parameter", "detail"} == set(error) for error in answer.json()["errors"])


async def test_the_timeline_tells_everything_in_order(web: Web):
    submitted = await web.submit()
    submission_id, job_id = submitted["submission_id"], submitted["jobs"][0]["id"]
    await web.client.post(web.callback_path(submission_id), content=b'{"id": "elk-1", "status": "in_progress", "n": "\xff"}')
    await web.accept(submission_id, "elk-1")
    await web.say(submission_id, Status.SUCCEEDED, "elk-1", [Output(index=0, url="https://cdn.example/1")])
    answer = await web.client.get(f"/v1/jobs/{job_id}/timeline")
    timeline = answer.json()
    msgspec.convert(timeline, views.Timeline)
    assert timeline["job"]["id"] == job_id
    kinds = [entry["kind"] for entry in timeline["entries"]]
    assert set(kinds) == {"notice", "event", "delivery"}
    assert [entry["at"] for entry in timeline["entries"]] == sorted(entry["at"] for entry in timeline["entries"])
    [notice] = [entry for entry in timeline["entries"] if entry["kind"] == "notice"]
    assert (notice["channel"], notice["outcome"], notice["repeats"]) == ("callback", None, 0)
    assert notice["raw"] == '{"id": "elk-1", "status": "in_progress", "n": "\ufffd"}'
    events = [entry for entry in timeline["entries"] if entry["kind"] == "event"]
    assert [event["type"] for event in events] == ["job.submitted", "job.succeeded"]
    assert [event["late"] for event in events] == [False, False]
    without = (await web.client.get(f"/v1/jobs/{job_id}/timeline?raw=false")).json()
    assert all("raw" not in entry for entry in without["entries"])
    assert (await web.client.get(f"/v1/jobs/{job_id}/timeline?raw=no")).status_code == 400


async def test_a_job_not_yet_sent_is_cancelled_here(web: Web):
    [job] = (await web.submit())["jobs"]
    answer = await web.client.post(f"/v1/jobs/{job['id']}/cancel")
    assert answer.status_code == 202
    assert answer.json()["status"] == "cancelled"
    assert (await web.client.post(f"/v1/jobs/{job['id']}/cancel")).status_code == 409


async def test_cancelling_is_409_where_the_provider_cannot_and_for_unconfirmed_jobs(web: Web):
    first = await web.submit()
    await web.accept(first["submission_id"], "elk-1")
    assert (await web.client.post(f"/v1/jobs/{first['jobs'][0]['id']}/cancel")).status_code == 409
    second = await web.submit({"provider": "oxen", "model": "flux", "input": {}})
    await web.lose(second["submission_id"])
    assert (await web.client.post(f"/v1/jobs/{second['jobs'][0]['id']}/cancel")).status_code == 409


async def test_a_poll_is_due_at_once(web: Web):
    submitted = await web.submit()
    await web.accept(submitted["submission_id"], "elk-1")
    job_id = submitted["jobs"][0]["id"]
    answer = await web.client.post(f"/v1/jobs/{job_id}/poll")
    assert answer.status_code == 202
    assert answer.json()["id"] == job_id
    assert (await web.services.store.load_polls([job_id]))[job_id].due_at <= web.services.clock.now()


async def test_an_unconfirmed_job_is_resolved_by_its_id(web: Web):
    submitted = await web.submit()
    await web.lose(submitted["submission_id"])
    path = f"/v1/jobs/{submitted['jobs'][0]['id']}/resolve"
    for wrong in (
        {},
        {"abandon": False},
        {"remote_id": ""},
        {"remote_id": "  "},
        {"remote_id": "x", "abandon": True},
        {"remote_id": 3},
        {"remote_id": "x" * 513},
        {"other": 1},
    ):
        assert (await web.client.post(path, json=wrong)).status_code == 400, wrong
    answer = await web.client.post(path, json={"remote_id": "elk-9"})
    assert answer.status_code == 200
    assert answer.json()["remote_id"] == "elk-9"
    assert (await web.client.post(path, json={"remote_id": "elk-9"})).status_code == 409


async def test_an_unconfirmed_job_is_abandoned(web: Web):
    submitted = await web.submit()
    await web.lose(submitted["submission_id"])
    answer = await web.client.post(f"/v1/jobs/{submitted['jobs'][0]['id']}/resolve", json={"abandon": True})
    job = answer.json()
    assert (job["status"], job["finished_by"], job["error"]["code"]) == ("failed", "operator", "submit_unknown")


async def test_a_final_job_is_deleted_and_an_open_one_is_not(web: Web):
    job = await web.succeed()
    [other] = (await web.submit())["jobs"]
    answer = await web.client.delete(f"/v1/jobs/{job.id}")
    assert (answer.status_code, answer.content) == (204, b"")
    assert (await web.client.get(f"/v1/jobs/{job.id}")).status_code == 404
    assert (await web.client.delete(f"/v1/jobs/{other['id']}")).status_code == 409


# Outputs


async def store_file(web: Web, folder: Path, name: str, media_type: str) -> str:
    job = await web.succeed(ELK, [Output(index=0, url="https://cdn.example/1?a=b%2Fc")])
    path = folder / name
    path.write_bytes(PNG)
    stored = Stored(uri=path.as_uri(), bytes=len(PNG), sha256="0" * 64, media_type=media_type)
    assert await web.services.store.record_stored(job.id, 0, stored, web.services.clock.now())
    return f"/v1/jobs/{job.id}/outputs/0"


async def test_a_stored_picture_is_shown_and_made_harmless(web: Web, tmp_path: Path):
    answer = await web.client.get(await store_file(web, tmp_path, "a b.png", "image/png"))
    assert (answer.status_code, answer.content) == (200, PNG)
    assert answer.headers["content-type"] == "image/png"
    assert answer.headers["content-disposition"].startswith("inline")
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["content-security-policy"] == "sandbox; default-src 'none'"


async def test_a_part_of_a_stored_file_is_sent(web: Web, tmp_path: Path):
    path = await store_file(web, tmp_path, "a.png", "image/png")
    part = await web.client.get(path, headers={"Range": "bytes=1-3"})
    assert (part.status_code, part.content) == (206, b"PNG")
    unknown = await web.client.get(path, headers={"Range": "lines=1-3"})
    assert (unknown.status_code, unknown.content) == (200, PNG)
    beyond = await web.client.get(path, headers={"Range": "bytes=1000-"})
    assert beyond.status_code == 416
    assert beyond.headers["content-type"] == "application/problem+json"
    assert beyond.headers["content-range"] == f"bytes */{len(PNG)}"


@pytest.mark.parametrize(
    "media_type", ["text/html", "image/svg+xml", "application/pdf", "model/gltf-binary", "text/html; charset=utf-8", "a\r\nb"]
)
async def test_what_a_browser_might_run_is_an_attachment(web: Web, tmp_path: Path, media_type):
    answer = await web.client.get(await store_file(web, tmp_path, "a.bin", media_type))
    assert answer.status_code == 200
    assert answer.headers["content-disposition"].startswith("attachment")


async def test_an_output_that_is_not_stored_is_redirected_to(web: Web, tmp_path: Path):
    path = await store_file(web, tmp_path, "a.png", "image/png")
    (tmp_path / "a.png").unlink()
    answer = await web.client.get(path)
    assert answer.status_code == 307
    assert answer.headers["location"] == "https://cdn.example/1?a=b%2Fc"
    for index in ("1", "-1", "0x0", "00", "9" * 5000, "%00"):
        assert (await web.client.get(path.removesuffix("0") + index)).status_code == 404


@pytest.mark.parametrize("url", ["javascript:alert(1)", "file:///etc/passwd", "data:text/html,x", "//host/x", "http://["])
async def test_a_link_that_is_no_web_address_is_not_followed(web: Web, url):
    job = await web.succeed(ELK, [Output(index=0, url=url)])
    assert (await web.client.get(f"/v1/jobs/{job.id}/outputs/0")).status_code == 404


def data_callback(media_type: str, content: bytes) -> bytes:
    uri = f"data:{media_type};base64,{base64.b64encode(content).decode()}"
    return json.dumps({"id": "elk-1", "status": "completed", "outputs": [uri]}).encode()


@pytest.mark.parametrize(
    ("media_type", "disposition"), [("image/png", "inline"), ("text/html", "attachment"), ("image/svg+xml", "attachment")]
)
async def test_an_output_that_came_inside_its_notice_is_read_from_there(web: Web, media_type, disposition):
    submitted = await web.submit()
    await web.accept(submitted["submission_id"], "elk-1")
    assert (await web.client.post(web.callback_path(submitted["submission_id"]), content=data_callback(media_type, PNG))).status_code == 200
    await Settler(web.services.settling, web.services.clock, lambda: None, Rush(web.services.clock)).run_pass(web.services.clock.now())
    job = (await web.client.get(f"/v1/jobs/{submitted['jobs'][0]['id']}")).json()
    assert job["outputs"][0]["url"] is None
    answer = await web.client.get(f"/v1/jobs/{job['id']}/outputs/0")
    assert (answer.status_code, answer.content) == (200, PNG)
    assert answer.headers["content-type"].split(";")[0] == media_type
    assert answer.headers["content-disposition"].startswith(disposition)
    assert answer.headers["content-security-policy"] == "sandbox; default-src 'none'"


async def test_an_output_whose_notice_was_emptied_is_404(web: Web):
    job = await web.succeed(ELK, [Output(index=0, url=None, notice_id="ntc_" + "0" * 32)])
    assert (await web.client.get(f"/v1/jobs/{job.id}/outputs/0")).status_code == 404


async def test_a_timeline_holds_so_much_raw_text_and_says_what_is_cut(web: Web, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(jobs, "MOST_RAW", 10)
    monkeypatch.setattr(notices, "MOST_RAW", 10)
    submitted = await web.submit()
    job_id = submitted["jobs"][0]["id"]
    for _ in range(2):
        await web.client.post(web.callback_path(submitted["submission_id"]), content=b"not json")
    for path, name in ((f"/v1/jobs/{job_id}/timeline", "entries"), ("/v1/notices?raw=true", "notices")):
        answer = (await web.client.get(path)).json()
        msgspec.convert(answer, views.Timeline if name == "entries" else views.NoticePage)
        rows = [row for row in answer[name] if row.get("channel") == "callback"]
        assert [(row["raw"], row["raw_truncated"]) for row in rows] == [("not json", False), ("no", True)]
    for path, name in ((f"/v1/jobs/{job_id}/timeline?raw=false", "entries"), ("/v1/notices", "notices")):
        rows = (await web.client.get(path)).json()[name]
        assert rows
        assert not any("raw" in row or "raw_truncated" in row for row in rows)


async def test_a_job_whose_provider_left_the_configuration_is_not_said_to_be_polled(web: Web, monkeypatch: pytest.MonkeyPatch):
    accepted = await web.submit()
    await web.accept(accepted["submission_id"], "elk-1")
    monkeypatch.delitem(web.services.accounts, "elkapi")
    answer = await web.client.post(f"/v1/jobs/{accepted['jobs'][0]['id']}/poll")
    assert answer.status_code == 409
    assert "not in the configuration" in answer.json()["detail"]
