"""The demo: it tells the truth on both sides, on a terminal and off it."""

import json
import os
import re
import signal
from datetime import UTC, datetime

import msgspec
import pytest

from receiver.cli.demo_checks import CHECKS, Evidence, check_story
from receiver.cli.demo_story import ACTS, FORGED, JOBS, LOST, TWICE, UNANSWERED, Scene, steps, tell
from receiver.simulator.ledger import CallbackEntry, JobEntry, Ledger, OutputEntry, SubmitEntry
from receiver.simulator.media import MediaFile
from receiver.simulator.serving import open_listener
from tests.cli.running import call, running
from tests.cli.terminal import BOUND, Terminal

SPEED = "3"
AT = datetime(2026, 5, 1, tzinfo=UTC)
WAYS = {"oxen": "stream", "huzz": "poll", "pixazo": "poll"}


def finish(program):
    lines = [program.line()]
    while not lines[-1].startswith("Files, database and log are in"):
        lines.append(program.line())
    return program.wait(), lines


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    """The story, told once: folder, exit code, lines, complaints."""
    folder = tmp_path_factory.mktemp("demo") / "new"
    (folder.parent / "receiver.toml").write_text("[server\n")  # nobody's configuration is read
    with running(folder.parent, "demo", "--once", "--folder", "new", "--speed", SPEED) as program:
        code, lines = finish(program)
        return folder, code, lines, program.errors


def test_the_story_ends_well_and_says_so_in_plain_lines(told):
    _, code, lines, errors = told
    text = "\n".join(lines)
    assert (code, errors) == (0, []), text
    assert "\x1b" not in text
    assert [line[3:] for line in lines if line.startswith(" ✓ ")] == list(CHECKS)
    facts = f"{JOBS} jobs · {JOBS} billed · {JOBS} final events · {JOBS} files verified · duplicates 0 · lost 0"
    assert facts in text
    for part in (
        "counted once",
        "found by polling",
        "refused with 401",
        "unconfirmed, and not sent again",
        "bills: 1",
        "home by stream",
        "sha256 is right",
    ):
        assert part in text


def test_its_files_are_in_the_folder_and_its_log_is_no_trouble(told):
    folder = told[0]
    assert sorted(path.suffix for path in (folder / "outputs").rglob("job_*")) == sorted([".mp4"] * 2 + [".png"] * 5 + [".wav", ".glb"])
    log = [json.loads(line) for line in (folder / "receiver.log").read_text().splitlines()]
    assert {line["level"] for line in log if line["event"] != "submit.unknown"} <= {"info", "warning"}
    assert [line for line in log if line["level"] == "error"] == []


@pytest.mark.long
def test_a_broken_file_is_seen_on_the_terminal_and_makes_exit_1(told):
    """Also: a second story in the same folder, and Ctrl-C where the demo stays up."""
    folder = told[0]
    before = set((folder / "outputs").rglob("job_*"))
    terminal = Terminal(folder.parent, "demo", "--folder", "new", "--speed", SPEED)
    try:
        terminal.read_until(lambda _: set((folder / "outputs").rglob("job_*")) - before)
        with (set((folder / "outputs").rglob("job_*")) - before).pop().open("ab") as file:
            file.write(b"!")
        terminal.read_until(lambda text: "What happens is shown here" in text)
        terminal.process.send_signal(signal.SIGINT)
        assert terminal.process.wait(BOUND) == 1
    finally:
        terminal.close()
    assert "\x1b[?25l" in terminal.text  # it drew
    seen = re.sub(r"\x1b(\[[0-9;?]*[A-Za-z]|\]8;[^\x1b]*\x1b\\)", "", terminal.text)
    assert re.search(r"✓\s+Oxen.ai\s+flux-2-pro\s+image\s+succeeded\s+stream\s+\d\.\ds", seen)
    assert re.search(r"[⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏]\s+Pixazo\s+hunyuan-3d\s+3d\s+queued", seen)
    assert "1 of 9 checks failed" in seen
    assert "its sha256 is not that of the file that the provider sent" in seen
    assert "Traceback" not in seen


def test_a_configuration_that_somebody_wrote_is_not_overwritten(tmp_path):
    (tmp_path / "receiver.toml").write_text("[server]\n")
    code, _, errors = call(tmp_path, "demo", "--once", "--folder", tmp_path)
    assert code == 2
    assert "name another folder" in errors
    assert (tmp_path / "receiver.toml").read_text() == "[server]\n"


def test_a_folder_that_cannot_be_and_a_port_that_is_taken_are_said(tmp_path):
    (tmp_path / "file").touch()
    assert call(tmp_path, "demo", "--folder", tmp_path / "file" / "below")[0] == 2
    with open_listener("127.0.0.1", 0) as listener:
        listener.listen()
        port = listener.getsockname()[1]
        code, _, errors = call(tmp_path, "demo", "--once", "--folder", tmp_path / "new", "--port", port)
    assert (code, f"127.0.0.1:{port}" in errors) == (2, True)


# The checks, each against a story in which one thing is wrong


@pytest.fixture
def evidence(tmp_path):
    """A story in which all is well."""
    found = Evidence([], {}, Ledger(submits=[], callbacks=[], jobs=[]), refused=1)
    for act in ACTS.values():
        ids = [f"{act.name}-{number}" for number in range(act.jobs)]
        submit = SubmitEntry(
            at=AT, provider=act.provider, operation="", model=act.model, prompt=act.prompt, callback_url=None, billed=act.jobs
        )
        found.ledger.submits.append(submit)
        for remote_id in ids:
            add_job(found, tmp_path, act, remote_id)
    return found


def add_job(found, folder, act, remote_id):
    file = MediaFile(act.media, remote_id)
    path = folder / f"{remote_id}.{file.extension}"
    path.write_bytes(file.content)
    sent = OutputEntry(index=0, media_type=file.media_type, bytes=len(file.content), sha256=file.sha256)
    found.ledger.jobs.append(
        JobEntry(id=remote_id, provider=act.provider, operation="", model=act.model, state="", polls=1, cancels=0, outputs=(sent,))
    )
    stored = {"uri": path.as_uri(), "bytes": sent.bytes, "sha256": sent.sha256, "media_type": sent.media_type}
    way = WAYS.get(act.provider, "callback")
    times = {"created_at": "2026-05-01T00:00:00Z", "finished_at": "2026-05-01T00:00:08Z"}
    job = {"id": f"job_{remote_id}", "provider": act.provider, "model": act.model, "remote_id": remote_id, "status": "succeeded"}
    job |= {"finished_by": way, "metadata": {"act": act.name}, "outputs": [{"index": 0, "url": "…", "stored": stored}], **times}
    found.jobs.append(job)
    events = ["job.unconfirmed"] * (act is UNANSWERED) + ["job.succeeded", "job.stored"]
    entries = [{"kind": "event", "type": type_} for type_ in events]
    usual = ["real"] if way == "callback" else []
    kinds = {"twice": ["real", "real"], "lost": ["lost"], "forged": ["forged", "real"]}.get(act.name, usual)
    for number, kind in enumerate(kinds):
        status = {"real": 200, "forged": 401}.get(kind)
        found.ledger.callbacks.append(
            CallbackEntry(at=AT, provider=act.provider, job_id=remote_id, state="succeeded", kind=kind, attempt=1, status=status)
        )
        if kind == "real":
            outcome = "duplicate" if act is TWICE and number else "applied"
            entries.append({"kind": "notice", "channel": "callback", "status": "succeeded", "outcome": outcome})
    found.timelines[job["id"]] = {"job": job, "entries": entries}


def failures(evidence):
    return [check.name for check in check_story(evidence) if not check.is_good]


def job_of(evidence, act):
    return next(job for job in evidence.jobs if job["metadata"]["act"] == act.name)


def callback_of(evidence, act, **changes):
    found = evidence.ledger.callbacks
    number = next(number for number, entry in enumerate(found) if entry.job_id == f"{act.name}-0")
    found[number] = msgspec.structs.replace(found[number], **changes)


def path_of(evidence, act):
    uri = job_of(evidence, act)["outputs"][0]["stored"]["uri"]
    return uri.removeprefix("file://")


def test_a_story_in_which_all_is_well_passes(evidence):
    assert [check for check in check_story(evidence) if not check.is_good] == []
    assert (evidence.finals, evidence.verified, evidence.duplicates, evidence.lost) == (JOBS, JOBS, 0, 0)


HOME, ONE_EVENT, FILES, WAYS_HOME, FOUND, DOUBLED, REFUSED, CLEARED, BILLED = CHECKS


def break_file(evidence, content):
    with open(path_of(evidence, LOST), "wb") as file:
        file.write(content)


@pytest.mark.parametrize(
    ("harm", "failed"),
    [
        (lambda e: job_of(e, FORGED).update(status="expired"), {HOME}),
        (lambda e: e.jobs.pop(), {HOME, REFUSED, BILLED}),
        (lambda e: e.timelines[job_of(e, FORGED)["id"]]["entries"].append({"kind": "event", "type": "job.failed"}), {ONE_EVENT}),
        (lambda e: break_file(e, b"glTF"), {FILES}),
        (lambda e: os.unlink(path_of(e, LOST)), {FILES}),
        (lambda e: job_of(e, LOST)["outputs"][0].pop("stored"), {FILES}),
        (lambda e: job_of(e, LOST)["outputs"].clear(), {FILES}),
        (lambda e: job_of(e, LOST)["outputs"][0]["stored"].update(sha256="0" * 64), {FILES}),
        (lambda e: [job.update(finished_by="poll") for job in e.jobs if job["provider"] == "oxen"], {WAYS_HOME}),
        (lambda e: job_of(e, LOST).update(finished_by="callback"), {FOUND}),
        (lambda e: callback_of(e, LOST, kind="real"), {FOUND}),
        (lambda e: callback_of(e, TWICE, status=503), {DOUBLED}),
        (lambda e: e.timelines[job_of(e, TWICE)["id"]]["entries"].pop(), {DOUBLED}),
        (lambda e: callback_of(e, FORGED, status=200), {REFUSED}),
        (lambda e: e.ledger.submits.append(e.ledger.submits[-2]), {CLEARED, BILLED}),
        (lambda e: e.timelines[job_of(e, UNANSWERED)["id"]]["entries"].pop(0), {CLEARED}),
        (lambda e: job_of(e, UNANSWERED).update(finished_by="poll"), {CLEARED}),
    ],
)
def test_a_story_in_which_one_thing_is_wrong_fails_by_its_check(evidence, harm, failed):
    harm(evidence)
    assert set(failures(evidence)) == failed


def test_a_file_with_the_right_hash_must_also_open(evidence):
    """Where the simulator itself sent rubbish."""
    job = job_of(evidence, LOST)
    sent = next(entry for entry in evidence.ledger.jobs if entry.id == job["remote_id"])
    rubbish = MediaFile("image", "x")
    break_file(evidence, rubbish.content)
    evidence.ledger.jobs.remove(sent)
    outputs = (msgspec.structs.replace(sent.outputs[0], sha256=rubbish.sha256),)
    evidence.ledger.jobs.append(msgspec.structs.replace(sent, outputs=outputs))
    job["outputs"][0]["stored"]["sha256"] = rubbish.sha256
    assert [check.faults for check in check_story(evidence) if not check.is_good] == [
        (f"the file of pixazo hunyuan-3d ({job['id']}): it does not open as 3d",)
    ]


def test_nothing_is_told_twice_and_a_believed_forgery_is_cried_out(evidence):
    callback_of(evidence, FORGED, status=200)
    scene = Scene("http://127.0.0.1:1", evidence.jobs, evidence.timelines)
    told = [line.text for line in scene.add([*steps(scene), *tell(scene, evidence.ledger)])]
    assert "a forged callback claimed that Hoox's video is done: answered 200!" in told
    assert "Pixazo's callback was overdue: the 3D model was found by polling, 8.0 s after it was done" in told
    assert "Elk API's own callback cleared up what became of that submit; bills: 1" in told
    assert scene.add([*steps(scene), *tell(scene, evidence.ledger)]) == []
