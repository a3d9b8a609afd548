"""Whether the demo ended well: what came home is held against what the simulator knows it sent."""

from __future__ import annotations

import hashlib
import io
import struct
import wave
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from receiver.cli.demo_story import (
    FORGED,
    JOBS,
    LOST,
    STREAMED,
    TWICE,
    UNANSWERED,
    act_of,
    callbacks_of,
    count_duplicates,
    finals_of,
    jobs_of,
)
from receiver.client import FINAL, Job, Output, Timeline
from receiver.simulator import Fault, Ledger


@dataclass(frozen=True)
class Evidence:
    """Both sides of the story, when it is over."""

    jobs: Sequence[Job]
    timelines: Mapping[str, Timeline]
    ledger: Ledger
    refused: int  # callbacks that the server counted as refused

    @property
    def finals(self) -> int:
        return sum(len(finals_of(timeline)) for timeline in self.timelines.values())

    @property
    def duplicates(self) -> int:
        """Final events beyond one for each job."""
        return sum(max(len(finals_of(timeline)) - 1, 0) for timeline in self.timelines.values())

    @property
    def lost(self) -> int:
        """Generations at the providers that no job of ours brought home."""
        home = {(job["provider"], job["remote_id"]) for job in self.jobs if job["status"] in FINAL}
        return sum((entry.provider, entry.id) not in home for entry in self.ledger.jobs)

    @property
    def files(self) -> list[tuple[Job, Output]]:
        return [(job, output) for job in self.jobs for output in job["outputs"]]

    @property
    def verified(self) -> int:
        """Files that are right, as they are on disk now."""
        return sum(not find_fault(job, output, self.ledger) for job, output in self.files)


@dataclass(frozen=True)
class Check:
    """What should be true, and what is not; empty: it is."""

    name: str
    faults: tuple[str, ...]

    @property
    def is_good(self) -> bool:
        return not self.faults


def check_story(evidence: Evidence) -> list[Check]:
    """Every check with what it found. Reads the files."""
    return [Check(name, tuple(find(evidence))) for name, find in CHECKS.items()]


# Files


def find_fault(job: Job, output: Output, ledger: Ledger) -> str:
    """What is wrong with the file of an output, as it is on disk now; empty: nothing."""
    stored = output.get("stored")
    if stored is None:
        return "it was not stored"
    entry = next((entry for entry in ledger.jobs if (entry.provider, entry.id) == (job["provider"], job["remote_id"])), None)
    sent = next((served for served in entry.outputs if served.index == output["index"]), None) if entry else None
    if sent is None:
        return "the provider never gave it out"
    try:
        content = Path(unquote(urlsplit(stored["uri"]).path)).read_bytes()
    except OSError as error:
        return f"it cannot be read: {error.strerror}"
    if hashlib.sha256(content).hexdigest() != sent.sha256:
        return "its sha256 is not that of the file that the provider sent"
    if stored["sha256"] != sent.sha256:
        return "the job names another sha256"
    return "" if OPENS[act_of(job).media](content) else f"it does not open as {act_of(job).media}"


def opens_png(content: bytes) -> bool:
    return content.startswith(b"\x89PNG\r\n\x1a\n") and content[-8:-4] == b"IEND"


def opens_mp4(content: bytes) -> bool:
    """Its boxes follow each other from the first byte to the last."""
    boxes: list[bytes] = []
    at = 0
    while at + 8 <= len(content):
        size, name = struct.unpack_from(">I4s", content, at)
        if size < 8:
            return False
        boxes.append(name)
        at += size
    return at == len(content) and boxes[:1] == [b"ftyp"] and b"moov" in boxes and b"mdat" in boxes


def opens_wav(content: bytes) -> bool:
    try:
        with wave.open(io.BytesIO(content)) as sound:
            return bool(sound.getnframes() > 0)
    except (wave.Error, EOFError):
        return False


def opens_glb(content: bytes) -> bool:
    return len(content) > 12 and struct.unpack_from("<4sII", content) == (b"glTF", 2, len(content))


OPENS: dict[str, Callable[[bytes], bool]] = {"image": opens_png, "video": opens_mp4, "audio": opens_wav, "3d": opens_glb}


# Checks: each gives what is wrong


def all_home(evidence: Evidence) -> Iterator[str]:
    if len(evidence.jobs) != JOBS:
        yield f"there are {len(evidence.jobs)} jobs, not {JOBS}"
    for job in evidence.jobs:
        if job["status"] != "succeeded":
            yield f"{describe(job)} is {job['status']}"
    if evidence.lost:
        yield f"{evidence.lost} generations did not come home"


def one_event_each(evidence: Evidence) -> Iterator[str]:
    for job in evidence.jobs:
        finals = finals_of(evidence.timelines[job["id"]])
        if len(finals) != 1:
            yield f"{describe(job)} has {len(finals)} final events"


def files_whole(evidence: Evidence) -> Iterator[str]:
    for job in evidence.jobs:
        if not job["outputs"]:
            yield f"{describe(job)} has no output"
    for job, output in evidence.files:
        fault = find_fault(job, output, evidence.ledger)
        if fault:
            yield f"the file of {describe(job)}: {fault}"


def every_way(evidence: Evidence) -> Iterator[str]:
    ways = {job["finished_by"] for job in evidence.jobs}
    for way in ("callback", "poll", "stream"):
        if way not in ways:
            yield f"no job came home by {way}"
    for job in jobs_of(STREAMED, evidence.jobs):
        if job["finished_by"] != "stream":
            yield f"{describe(job)} came home by {job['finished_by']}, not by the stream"


def lost_found(evidence: Evidence) -> Iterator[str]:
    if not callbacks_of(evidence.ledger, LOST, evidence.jobs, Fault.LOST) or callbacks_of(evidence.ledger, LOST, evidence.jobs, "real"):
        yield "no callback was lost"
    for job in jobs_of(LOST, evidence.jobs):
        if job["finished_by"] != "poll":
            yield f"{describe(job)} came home by {job['finished_by']}, not by a poll"


def doubled_once(evidence: Evidence) -> Iterator[str]:
    sent = [entry for entry in callbacks_of(evidence.ledger, TWICE, evidence.jobs, "real") if entry.state == "succeeded"]
    if [entry.status for entry in sent] != [200, 200]:
        yield f"the answers to the doubled callback were {[entry.status for entry in sent]}, not 200 twice"
    for job in jobs_of(TWICE, evidence.jobs):
        finals, duplicates = len(finals_of(evidence.timelines[job["id"]])), count_duplicates(evidence.timelines[job["id"]])
        if (finals, duplicates) != (1, 1):
            yield f"{describe(job)} has {finals} final events and {duplicates} duplicates, not one of each"


def forged_refused(evidence: Evidence) -> Iterator[str]:
    statuses = [entry.status for entry in callbacks_of(evidence.ledger, FORGED, evidence.jobs, Fault.FORGED)]
    if statuses != [401]:
        yield f"the answers to the forged callback were {statuses}, not one 401"
    if evidence.refused != 1:
        yield f"the server counted {evidence.refused} refused callbacks, not one"


def cleared_up(evidence: Evidence) -> Iterator[str]:
    submits = [entry for entry in evidence.ledger.submits if entry.prompt == UNANSWERED.prompt]
    if len(submits) != 1:
        yield f"the submit without an answer was sent {len(submits)} times"
    for job in jobs_of(UNANSWERED, evidence.jobs):
        types = [entry["type"] for entry in evidence.timelines[job["id"]]["entries"] if entry["kind"] == "event"]
        if "job.unconfirmed" not in types:
            yield f"{describe(job)} never was unconfirmed"
        if job["finished_by"] != "callback":
            yield f"{describe(job)} came home by {job['finished_by']}, not by its own callback"


def billed_once(evidence: Evidence) -> Iterator[str]:
    if evidence.ledger.billed != len(evidence.jobs):
        yield f"{evidence.ledger.billed} generations were billed for {len(evidence.jobs)} jobs"


CHECKS: dict[str, Callable[[Evidence], Iterator[str]]] = {
    "every job came home": all_home,
    "one final event for each job": one_event_each,
    "every file is on disk, opens, and has the sha256 that the provider sent": files_whole,
    "jobs came home by callback, by poll and by stream": every_way,
    "the lost callback was made up for by polling": lost_found,
    "the doubled callback counted once": doubled_once,
    "the forged callback was refused": forged_refused,
    "the submit without an answer was cleared up by its own callback": cleared_up,
    "nothing was billed twice": billed_once,
}


def describe(job: Job) -> str:
    return f"{job['provider']} {job['model']} ({job['id']})"
