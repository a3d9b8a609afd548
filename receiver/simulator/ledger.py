"""What the simulator saw and did: the other side of every story, for tests and for the demo."""

from __future__ import annotations

from datetime import datetime

import msgspec


class SubmitEntry(msgspec.Struct, kw_only=True):
    """One submit call that was well-formed."""

    at: datetime
    provider: str
    operation: str
    model: str
    prompt: str
    callback_url: str | None
    job_ids: tuple[str, ...] = ()
    billed: int = 0  # generations that are paid for
    status: int | None = None  # of the answer; None: it was never sent


class RefusedEntry(msgspec.Struct, frozen=True, kw_only=True):
    """One call that was refused for what it said: no key, malformed, unknown."""

    at: datetime
    provider: str
    method: str
    path: str
    status: int
    detail: str


class CallbackEntry(msgspec.Struct, frozen=True, kw_only=True):
    """One POST of ours to a callback URL; `kind` is `real` or the fault that made it."""

    at: datetime
    provider: str
    job_id: str
    state: str
    kind: str
    attempt: int
    status: int | None = None  # of the answer; None: there was none, or it was never sent
    error: str | None = None


class StreamEntry(msgspec.Struct, frozen=True, kw_only=True):
    """One event on a provider's stream."""

    at: datetime
    job_id: str
    state: str
    listeners: int  # that were connected


class DownloadEntry(msgspec.Struct, frozen=True, kw_only=True):
    """One request for an output."""

    at: datetime
    job_id: str
    index: int
    status: int
    has_key: bool  # an Authorization or subscription header came along
    range: str | None


class OutputEntry(msgspec.Struct, frozen=True, kw_only=True):
    """A file of a job that was given out."""

    index: int
    media_type: str
    bytes: int
    sha256: str


class JobEntry(msgspec.Struct, frozen=True, kw_only=True):
    """A job as it stands."""

    id: str
    provider: str
    operation: str
    model: str
    state: str
    polls: int
    cancels: int
    outputs: tuple[OutputEntry, ...]


class Ledger(msgspec.Struct, kw_only=True):
    """Everything in the order in which it happened."""

    submits: list[SubmitEntry] = []
    refused: list[RefusedEntry] = []
    callbacks: list[CallbackEntry] = []
    streamed: list[StreamEntry] = []
    streams_opened: int = 0
    lists: int = 0
    downloads: list[DownloadEntry] = []
    jobs: list[JobEntry] = []  # as they stood when the ledger was asked for

    @property
    def billed(self) -> int:
        """Generations that are paid for."""
        return sum(entry.billed for entry in self.submits)

    @property
    def polls(self) -> int:
        """Polls of all jobs together."""
        return sum(job.polls for job in self.jobs)

    def job(self, job_id: str) -> JobEntry:
        return next(job for job in self.jobs if job.id == job_id)
