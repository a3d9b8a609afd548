"""Jobs that wait for their callback, and a handler that notes when it was called: what the lines about the whole way share."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory

from receiver.clock import SystemClock
from receiver.model import Family, Job, Poll, Status, Submission, SubmissionState
from receiver.stores import open_store
from receiver.stores.terms import Settlement
from tests.benchmarks.servers import name_of, receivers

ALL = "web,submit,settle,poll,stream,dispatch"
APART = ("web", "submit,settle,poll,stream", "dispatch")  # a process for each part of the way
TOGETHER = 250
MARKS = '''
import os
import time

class Marks:
    """Notes for which job it was called, and when."""

    def __init__(self, options, context):
        self._file = os.open(options["path"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    async def handle(self, event):
        os.write(self._file, b"%s %d\\n" % (event.subject[4:].encode(), time.monotonic_ns()))
'''
HANDLER = """
[[handlers]]
name = "marks"
use = "benchmark_marks:Marks"
concurrency = 200
[handlers.options]
path = "{path}"
"""


class Marks:
    """What the handler noted."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.touch()

    def count(self) -> int:
        return self.path.stat().st_size // LINE

    def read(self) -> dict[int, int]:
        """Number of the job → CLOCK_MONOTONIC in nanoseconds of its first call."""
        times: dict[int, int] = {}
        for line in self.path.read_text().splitlines():
            job, at = line.split()
            times.setdefault(int(job, 16), int(at))
        return times

    def wait_for(self, count: int, seconds: float) -> bool:
        ends_at = time.monotonic() + seconds
        while self.count() < count and time.monotonic() < ends_at:
            time.sleep(0.05)
        return self.count() >= count


LINE = 32 + 1 + len(str(time.monotonic_ns())) + 1


@contextmanager
def installation(url: str, jobs: int, roles: Sequence[str] = (ALL,)) -> Iterator[tuple[list[str], Marks]]:
    """Servers, one for each of `roles`, over a store with so many queued jobs, and one trivial handler."""
    asyncio.run(fill(url, jobs))
    with TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "benchmark_marks.py").write_text(MARKS)
        marks = Marks(folder / "marks.txt")
        with receivers(url, roles, HANDLER.format(path=marks.path), folder=folder) as addresses:
            yield addresses, marks


async def fill(url: str, jobs: int) -> None:
    """Queued jobs with a poll that is due in an hour."""
    now = datetime.now(UTC)
    async with open_store(url, clock=SystemClock()) as store:
        for first in range(0, jobs, TOGETHER):
            families = [make_family(number, now) for number in range(first, min(first + TOGETHER, jobs))]
            await asyncio.gather(*(store.create_submission(family) for family in families))
            await store.settle([make_settlement(family, now) for family in families])


def make_family(number: int, now: datetime) -> Family:
    submission = Submission(
        id=name_of("sub", number),
        provider="elkapi",
        operation="default",
        model="elk-1",
        media="image",
        input={"prompt": "paper boats on a canal"},
        state=SubmissionState.ANSWERED,
        next_attempt_at=now,
        deadline_seconds=7200.0,
        created_at=now,
    )
    job = Job(
        id=name_of("job", number),
        submission_id=submission.id,
        provider="elkapi",
        operation="default",
        model="elk-1",
        media="image",
        status=Status.QUEUED,
        remote_id=f"task_{number}",
        metadata={},
        created_at=now,
        updated_at=now,
        deadline_at=now + timedelta(hours=2),
    )
    return Family(submission, (job,))


def make_settlement(family: Family, now: datetime) -> Settlement:
    (job,) = family.jobs
    poll = Poll(job_id=job.id, submission_id=job.submission_id, provider=job.provider, due_at=now + timedelta(hours=1))
    return Settlement(submission=family.submission, version=0, polls=(poll,))


def percentile(values: Sequence[float], part: float) -> float:
    ordered = sorted(values)
    return ordered[min(int(len(ordered) * part), len(ordered) - 1)] if ordered else float("nan")
