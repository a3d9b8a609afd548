"""What must be true whenever everything has come home, read from the API, the simulator's ledger, the handler's file and the disk."""

from __future__ import annotations

import asyncio
import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from receiver.simulator.ledger import JobEntry, Ledger
from tests.crash.house import House
from tests.crash.seams import FINAL

STATUSES = {  # at the provider, and what it may be here: not every provider has a word for cancelled, and what never ends expires
    "succeeded": {"succeeded"},
    "failed": {"failed"},
    "error": {"failed"},
    "cancelled": {"cancelled", "failed"},
    "queued": {"expired"},
    "processing": {"expired"},
}
FINAL_STATUSES = {"succeeded", "failed", "cancelled", "expired"}
OWN_VERDICTS = {"not_found", "submit_unknown"}
AT_ONCE = 8
Timeline = tuple[dict[str, Any], list[dict[str, Any]]]  # a job and its entries


@dataclass
class Books:
    """Both sides, counted; `faults` has a line for everything that was lost, doubled or wrong."""

    counts: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    timelines: list[Timeline] = field(default_factory=list)

    def table(self) -> str:
        lines = [f"  {name:34}{count:8,}" for name, count in self.counts.items()]
        return "\n".join([*lines, f"  {'losses, doubles, wrong ends':34}{len(self.faults):8,}", *(f"    {fault}" for fault in self.faults)])


async def balance(house: House, orders: Mapping[str, str], *, stores: bool = False) -> Books:
    """Compare what was ordered (submission id → prompt) with what the provider saw and what came home."""
    books = Books()
    ledger = house.sim.simulator.ledger
    jobs: defaultdict[str, list[dict[str, Any]]] = defaultdict(list)
    for job in await house.jobs():
        jobs[job["submission_id"]].append(job)
    count_submits(books, ledger, jobs, orders)
    turns = asyncio.Semaphore(AT_ONCE)

    async def read(job: dict[str, Any]) -> Timeline:
        async with turns:
            return job, await house.timeline(job["id"])

    timelines = books.timelines = await asyncio.gather(*(read(job) for family in jobs.values() for job in family))
    count_callbacks(books, ledger, timelines, orders)
    handled = house.handled()
    check_runs(books, timelines, handled)
    own = {run["id"] for run in handled if run["type"] == "job.expired" or run["code"] in OWN_VERDICTS}
    states = {job.id: job for job in ledger.jobs}
    for job, entries in timelines:
        check_events(books, job, entries, own)
        if stores and job["status"] == "succeeded":
            check_files(books, job, states.get(job["remote_id"]), orders.get(job["submission_id"], ""))
    return books


def count_submits(books: Books, ledger: Ledger, jobs: Mapping[str, list[dict[str, Any]]], orders: Mapping[str, str]) -> None:
    taken: defaultdict[str, list[str]] = defaultdict(list)
    for entry in ledger.submits:
        if entry.billed:
            taken[entry.prompt] += entry.job_ids
            books.counts["submits taken by the provider"] += 1
            books.counts["generations billed"] += entry.billed
    states = {job.id: job for job in ledger.jobs}
    books.counts["submissions"] = len(orders)
    books.counts["jobs"] = sum(map(len, jobs.values()))
    books.faults += [f"{submission_id}: acknowledged and gone" for submission_id in orders if submission_id not in jobs]
    calls = Counter(entry.prompt for entry in ledger.submits if entry.billed)
    books.faults += [f"{prompt}: taken {count} times" for prompt, count in calls.items() if count > 1]
    for submission_id, prompt in orders.items():
        check_family(books, jobs.get(submission_id, []), prompt, taken[prompt], states)


def check_family(books: Books, family: list[dict[str, Any]], prompt: str, taken: list[str], states: Mapping[str, JobEntry]) -> None:
    """What was billed is what we have, and it ended here as it ended there."""
    known = {job["remote_id"] for job in family if job["remote_id"]}
    for job in family:
        books.counts[f"jobs {job['status']}"] += 1
        if job["status"] not in FINAL_STATUSES:
            books.faults.append(f"{job['id']} ({job['provider']}) is not final: {job['status']}")
    if taken and len(taken) != len(family) and " same-id" not in prompt:
        books.faults.append(f"{family[0]['submission_id']}: {len(taken)} billed, {len(family)} jobs")
    if known - set(taken):
        books.faults.append(f"{family[0]['submission_id']}: ids that nobody gave out: {known - set(taken)}")
    for job in family:
        if job["status"] == "expired" and job["error"]["code"] == "submit_unknown":
            books.counts["expired while unconfirmed"] += 1
            continue
        state = states.get(job["remote_id"]) if job["remote_id"] else states[taken[0]] if len(taken) == len(family) == 1 else None
        if state is not None and job["status"] not in STATUSES[state.state]:
            books.faults.append(f"{job['id']} ({job['provider']}) is {job['status']}, at the provider {state.state}")


def count_callbacks(books: Books, ledger: Ledger, timelines: Iterable[Timeline], orders: Mapping[str, str]) -> None:
    """A callback that was answered 2xx is there."""
    prompts = {job_id: entry.prompt for entry in ledger.submits for job_id in entry.job_ids}
    acknowledged = Counter(prompts[entry.job_id] for entry in ledger.callbacks if entry.status is not None and entry.status < 300)
    kept: defaultdict[str, set[str]] = defaultdict(set)
    for job, entries in timelines:
        notices = {entry["id"]: entry for entry in entries if entry["kind"] == "notice" and entry["channel"] == "callback"}
        kept[orders.get(job["submission_id"], "")] |= notices.keys()
        books.faults += [f"{job['id']}: the notice {one} was never settled" for one, entry in notices.items() if entry["outcome"] is None]
    books.counts["callbacks acknowledged"] = acknowledged.total()
    books.counts["callbacks kept"] = sum(map(len, kept.values()))
    for prompt, count in acknowledged.items():
        if len(kept[prompt]) < count:
            books.faults.append(f"{prompt}: {count} callbacks were acknowledged, {len(kept[prompt])} are there")


def check_events(books: Books, job: dict[str, Any], entries: list[dict[str, Any]], own: set[str]) -> None:
    """One final event (and one more that is late, where the first told a verdict of our own), each delivered to each handler."""
    events = {entry["id"]: entry for entry in entries if entry["kind"] == "event"}
    finals = [entry for entry in events.values() if entry["type"] in FINAL]
    books.counts["final events"] += len(finals)
    books.counts["late ones"] += sum(entry["late"] for entry in finals)
    if [entry["late"] for entry in finals] not in ([False], [False, True]) or (len(finals) > 1 and finals[0]["id"] not in own):
        books.faults.append(f"{job['id']}: final events {[entry['type'] for entry in finals]}")
    if finals and finals[-1]["type"] != f"job.{job['status']}":
        books.faults.append(f"{job['id']}: is {job['status']}, told {finals[-1]['type']}")
    deliveries = [entry for entry in entries if entry["kind"] == "delivery"]
    books.counts["deliveries"] += len(deliveries)
    books.faults += [f"{job['id']}: a delivery is {one['state']}: {one['last_error']}" for one in deliveries if one["state"] != "done"]
    pairs = Counter((one["event_id"], one["handler"]) for one in deliveries)
    books.faults += [f"{job['id']}: {pair} has {count} deliveries" for pair, count in pairs.items() if count > 1]
    wanted = {(event_id, "record") for event_id in events}
    if not wanted <= pairs.keys():
        books.faults.append(f"{job['id']}: events without a delivery: {wanted - pairs.keys()}")


def check_runs(books: Books, timelines: Iterable[Timeline], handled: list[dict[str, Any]]) -> None:
    """A handler was given every event, and nothing that is not an event of the job."""
    known = {entry["id"]: job["id"] for job, entries in timelines for entry in entries if entry["kind"] == "event"}
    runs = Counter(run["id"] for run in handled)
    books.counts["handler runs"] = runs.total()
    books.counts["of them again, same event id"] = runs.total() - len(runs)
    books.faults += [f"{event_id} of {job_id} never reached the handler" for event_id, job_id in known.items() if event_id not in runs]
    books.faults += [f"{run['id']} ({run['type']}) was handled and is no event" for run in handled if run["id"] not in known]


def check_files(books: Books, job: dict[str, Any], state: JobEntry | None, prompt: str) -> None:
    given = {output.index: output for output in state.outputs} if state else {}
    if not job["outputs"]:
        books.faults.append(f"{job['id']} ({job['provider']}, {prompt}) succeeded, without an output")
    for output in job["outputs"]:
        stored = output.get("stored")
        path = Path(unquote(urlsplit(stored["uri"]).path)) if stored else None
        if stored is None or path is None or not path.is_file():
            books.faults.append(f"{job['id']}: output {output['index']} is not stored")
            continue
        books.counts["files stored"] += 1
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        if digest != stored["sha256"] or (given and digest != given[output["index"]].sha256):
            books.faults.append(f"{job['id']}: output {output['index']} on disk is not what the provider gave")
