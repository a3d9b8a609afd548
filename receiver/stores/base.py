"""What every store promises. Each method is one transaction; nothing is acknowledged before it is on disk.

Ids and times come from the caller. A *node* is one opened store of one process. What a node has claimed stays its own
until it finishes or releases it, or until the node is found dead (`bury_dead_nodes`): then it can be claimed again. A node
that was declared dead and lives after all can no longer write a result for what it had claimed.

Foreign errors are translated: a full disk, an I/O error, a database that is away or locked → StoreUnavailable.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, Protocol

from receiver.keys import ApiKey
from receiver.model import Delivery, Event, Family, Job, Notice, Poll
from receiver.stores.terms import (
    MOST_RAW,
    Breaker,
    CostSum,
    DeliveryFilter,
    JobFilter,
    Kept,
    Learned,
    NoticeBound,
    NoticeFilter,
    NoticeOutcome,
    Page,
    Replayed,
    Settlement,
    TimelineEntry,
)


class Submissions(Protocol):
    """The road from a request to the provider."""

    async def create_submission(self, family: Family) -> Family | Replayed:
        """Keep a new submission with its jobs. With an idempotency key that is known: the same body → Replayed (whole as
        it stands now); another body → KeyReused. The key counts per `api_key_id`. Of two callers at once with one key,
        one creates."""
        ...

    async def claim_submissions(self, now: datetime, limit: int, providers: Sequence[str]) -> list[Family]:
        """Claim submissions of these providers that wait and are due, oldest due first. No two callers get the same."""
        ...

    async def claim_lost_submissions(self, limit: int) -> list[Family]:
        """Claim submissions that are marked `sent` and whose node died before the answer was written."""
        ...

    async def mark_sent(self, submission_id: str, at: datetime) -> bool:
        """Before the first byte leaves: waiting → sent, `sent_at`, one more attempt. True only for the one call that made the change,
        while this node holds the claim and the submission still waits (it may have been cancelled). version + 1: what was decided
        on the unmarked submission is decided again."""
        ...

    async def release_submission(self, submission_id: str, next_attempt_at: datetime) -> None:
        """Give back a claimed submission that was not marked sent (no rate-limit room, our own stop)."""
        ...


class Inbox(Protocol):
    """Notices that were pushed to us."""

    async def keep_notice(self, notice: Notice, bound: NoticeBound) -> bool:
        """Keep a notice on disk. False, and nothing kept, when its submission already left as many as the bound allows.
        Whether the submission exists is not looked at."""
        ...

    async def keep_and_claim(self, notice: Notice, bound: NoticeBound) -> Kept:
        """As `keep_notice`, of a notice that comes with one try: it is this node's own claim from the start, except where another node
        is at a notice of the same submission."""
        ...

    async def claim_notices(self, limit: int, max_tries: int = 5) -> list[Notice]:
        """Claim unsettled notices, oldest first, and count the try. One that has had `max_tries` is settled as unreadable
        (`reason` says so) in place of being claimed; one that was claimed before is claimed alone: it may be what killed its settler.
        No two callers get the same. All unsettled notices of
        one submission go to one node at a time."""
        ...

    async def release_notices(self, notice_ids: Sequence[str]) -> None:
        """Give back claimed notices, unsettled; the try does not count."""
        ...

    async def set_aside_notices(self, outcomes: Sequence[NoticeOutcome]) -> None:
        """Write outcomes that change no job (orphans, what cannot be read, what brings out a fault)."""
        ...

    async def reopen_notice(self, notice_id: str) -> bool:
        """Make an unreadable notice unsettled again. False when there is no such notice or it is not unreadable."""
        ...

    async def reopen_orphans(self, provider: str, remote_ids: Sequence[str] | None = None) -> int:
        """Make orphans of this account that have no submission unsettled again (tries 0) where a job of the account has their
        `remote_id` by now; given ids, only those with one of them. How many. It sees all that was committed before the call:
        a notice that is set aside and a job that gets its id find each other when both sides call this afterwards."""
        ...


class Settling(Protocol):
    """The one way in which a job changes."""

    async def load_families(self, submission_ids: Sequence[str]) -> dict[str, Family]:
        """By submission id; unknown ids are left out."""
        ...

    async def load_to_settle(self, submission_ids: Sequence[str]) -> tuple[dict[str, Family], dict[str, Poll]]:
        """What a settlement is computed from: the same families, and by job id the polls of their jobs, claimed or not."""
        ...

    async def find_open_jobs(self, provider: str, remote_ids: Sequence[str]) -> list[Job]:
        """All jobs of this account that have one of the ids and are open, or ended by a verdict of our own."""
        ...

    async def find_jobs(self, provider: str, remote_ids: Sequence[str]) -> list[Job]:
        """All jobs of this account that have one of the ids, open or final, oldest first."""
        ...

    async def find_unconfirmed(self, provider: str) -> list[Family]:
        """Families of this account with a job that is `unconfirmed` (or ended from there by our own verdict) and has no remote id."""
        ...

    async def settle(self, settlements: Sequence[Settlement]) -> list[bool]:
        """Write each settlement whose submission still has the version it was computed from, then version + 1; False
        for the others, of which nothing is written. A family that this node had claimed for submitting is released.
        At most one settlement per submission in a call."""
        ...

    async def settle_and_claim(self, settlements: Sequence[Settlement]) -> tuple[list[bool], list[tuple[Delivery, Event]]]:
        """As `settle`; and deliveries that come as running with one attempt are this node's own claims from the start, given back
        with their events. Except where an earlier one of the job and handler holds one back: that becomes pending."""
        ...

    async def claim_overdeadline(self, now: datetime, limit: int) -> list[Family]:
        """Families with a job that is open and whose deadline has passed. Reads only: `settle` decides who wins."""
        ...


class Polls(Protocol):
    """Asking about jobs."""

    async def claim_polls(self, now: datetime, limit: int, providers: Sequence[str]) -> list[tuple[Poll, Job]]:
        """Claim due polls of these providers, oldest due first. No two callers get the same."""
        ...

    async def load_polls(self, job_ids: Sequence[str]) -> dict[str, Poll]:
        """By job id, claimed or not."""
        ...

    async def release_polls(self, polls: Sequence[Poll]) -> None:
        """Write these polls back and release them, where this node still holds the claim (a failed poll, our own stop)."""
        ...

    async def poll_now(
        self,
        now: datetime,
        *,
        job_ids: Sequence[str] = (),
        submission_id: str | None = None,
        provider: str | None = None,
        cancel: bool = False,
    ) -> int:
        """Make polls of these jobs, or of a submission's or provider's jobs, due at `now` if they are not sooner; `cancel` asks
        the provider to
        cancel first. A job without a poll but with a remote id (expired long ago) gets one. How many changed."""
        ...

    async def has_open_jobs(self, provider: str) -> bool:
        """Whether any job of this account is open and has a remote id: then a stream is worth holding."""
        ...


class Deliveries(Protocol):
    """The outbox."""

    async def claim_deliveries(self, now: datetime, room: Mapping[str, int]) -> list[tuple[Delivery, Event]]:
        """Claim due deliveries, for each handler at most as many as it has room for: state running, attempts + 1. Those with the
        earliest `urgent_at` go first, then the oldest. For one job and handler in event order: one that is pending, running or
        retrying holds back
        those of later events, but job.submitted and job.processing do not hold back a final event; those that were
        replayed wait for nothing and hold nothing back. No two callers get the same."""
        ...

    async def finish_deliveries(self, deliveries: Sequence[Delivery]) -> list[bool]:
        """Write the state of each after its run (done, retrying or dead) if this node still holds the claim."""
        ...

    async def emit(self, event: Event, deliveries: Sequence[Delivery]) -> bool:
        """Write an event that no settlement makes (about ourselves, or emitted by a handler), with its deliveries. The store
        gives `sequence`, the job's next, and puts it into event and deliveries; the submission's version stays. False, and nothing
        written, when the id exists."""
        ...

    async def record_stored(self, job_id: str, index: int, stored: Any, at: datetime) -> bool:
        """Put a `model.Stored` on an output of a job; the submission's version stays. False when there is no such job or output."""
        ...

    async def release_deliveries(self, delivery_ids: Sequence[str]) -> None:
        """Give back running deliveries that our own stop cut off; counts as no attempt."""
        ...

    async def replay(self, filter: DeliveryFilter, now: datetime, delivery_id: str | None = None) -> int:
        """Done, dead and retrying deliveries that match: pending at `now`, attempts 0, `is_ordered` False. How many."""
        ...


class Reading(Protocol):
    """Everything that only looks."""

    async def read_job(self, job_id: str) -> Job | None: ...

    async def read_jobs(self, filter: JobFilter, limit: int, cursor: str | None) -> Page[Job]:
        """Newest first. A malformed cursor → Invalid (parameter `cursor`)."""
        ...

    async def read_timeline(self, job_id: str, most_raw: int = MOST_RAW) -> list[TimelineEntry] | None:
        """Calls of its submission; notices of the job, and those of its submission that found no job; its events; its
        deliveries (bounded: the
        first 1,000 of each). Of the bodies of all notices together at most `most_raw` bytes are read, the first ones first; with 0
        none is, and none counts as truncated. None: no such job."""
        ...

    async def read_notice(self, notice_id: str) -> Notice | None: ...

    async def read_notices(self, filter: NoticeFilter, limit: int, cursor: str | None, most_raw: int = MOST_RAW) -> Page[Notice]:
        """Newest first. At most 10,000 notices are looked at for a page, so one with a cursor may have fewer rows than `limit`, or none.
        `most_raw` as for a timeline."""
        ...

    async def read_delivery(self, delivery_id: str) -> Delivery | None: ...

    async def read_deliveries(self, filter: DeliveryFilter, limit: int, cursor: str | None) -> Page[Delivery]: ...

    async def read_events(self, after: int, limit: int) -> list[tuple[int, Event, str | None]]:
        """(position, event, provider of its job) with a position above `after`, in order. Positions become visible in commit order."""
        ...

    async def find_event_position(self, event_id: str) -> int | None:
        """None: not kept (any more)."""
        ...

    async def newest_event(self) -> tuple[int, str] | None:
        """Its position and its id; None when there are none."""
        ...

    async def count_jobs(self) -> dict[tuple[str, str], int]:
        """(provider, status) → jobs, of those that are open; final ones are in the counters."""
        ...

    async def open_accounts(self) -> list[str]:
        """The accounts that have open jobs, by name. Quick, however many those are."""
        ...

    async def count_open(self, provider: str, most: int) -> int:
        """Open jobs of this account, counted up to `most`."""
        ...

    async def count_deliveries(self) -> dict[tuple[str, str], int]:
        """(handler, state) → deliveries, of those that are not done."""
        ...

    async def count_recent(self, handler: str, since: datetime, limit: int) -> int:
        """Deliveries to a handler that were made since then, `limit` at most."""
        ...

    async def inbox_depth(self) -> int:
        """Notices that are kept and not settled."""
        ...

    async def inbox_oldest(self) -> datetime | None:
        """Since when the oldest notice that is kept and not settled waits."""
        ...

    async def last_callback_at(self) -> datetime | None:
        """When the latest callback came, among the last 10,000 notices."""
        ...

    async def count_overdue(self) -> dict[str, int]:
        """Account → open jobs that are asked about because no news came (polls with `attempts` above 0)."""
        ...

    async def sum_costs(self, provider: str, since: datetime) -> float:
        """What the account's jobs that were made since then cost, as far as the provider told. Failed and cancelled ones are refunded."""
        ...

    async def add_up_costs(self, filter: JobFilter, by: Sequence[str], limit: int) -> list[CostSum] | None:
        """What the jobs that fit cost, as far as the provider told, without what is refunded: one sum for each group of equal `by`
        (COST_FIELDS, or `metadata.KEY`; a day is that of UTC in which a job was made) and each unit, the largest first.
        None: there would be more than `limit`. A long time may be read in several transactions."""
        ...

    async def has_submission(self, api_key_id: str, idempotency_key: str) -> bool:
        """Whether `create_submission` with this key would find it used."""
        ...

    async def read_learned(self) -> list[Learned]: ...

    async def read_counters(self) -> dict[tuple[str, str], int]:
        """(scope, name) → count since the database was made."""
        ...


class Upkeep(Protocol):
    """Nodes, leases, limits, pruning."""

    can_notify: bool  # False: `wait_for_change` looks at short intervals

    async def wait_for_change(self, timeout: timedelta) -> bool:
        """Return soon (100 ms at most) after any node wrote something, ours included; False after the timeout."""
        ...

    async def bury_dead_nodes(self) -> int:
        """Release everything that dead nodes had claimed (submissions marked `sent` become claimable by
        `claim_lost_submissions` only). How many nodes."""
        ...

    async def take_lease(self, name: str, now: datetime, duration: timedelta) -> bool:
        """Hold or renew a named lease (`stream:oxen`). True: ours until then. A dead node's lease is free."""
        ...

    async def drop_lease(self, name: str) -> None: ...

    async def take_tokens(self, name: str, now: datetime, per_second: float, burst: int, wanted: int) -> tuple[int, datetime]:
        """Tokens of a shared bucket (GCRA): how many of `wanted` are granted now, and when there is room for one more."""
        ...

    async def read_breakers(self) -> dict[str, Breaker]: ...

    async def count_failure(self, provider: str, at: datetime, error: str) -> int:
        """One more call in a row that failed, whoever made it: how many there are now."""
        ...

    async def leave_alone(self, provider: str, until: datetime) -> None:
        """At least until then."""
        ...

    async def forgive(self, provider: str) -> bool:
        """A call succeeded: no failures in a row, and nobody leaves it alone. True: this call made the change."""
        ...

    async def add_counts(self, counts: Mapping[tuple[str, str], int]) -> None: ...

    async def prune(self, now: datetime, retention: timedelta, raw_retention: timedelta, orphan_retention: timedelta, limit: int) -> int:
        """Delete at most `limit` final submissions whose jobs are all final for longer than `retention` and have no open
        delivery and no dead one tried since;
        empty the bodies of notices of jobs final for longer than `raw_retention`; delete orphans. How many rows. 0: nothing left."""
        ...

    async def delete_job(self, job_id: str) -> bool:
        """Delete a final job with its notices, events and deliveries; its submission with its last job. False: no such job. Not
        final → Conflict."""
        ...

    async def check_writable(self) -> None:
        """Write something durable, or raise StoreUnavailable."""
        ...

    async def backup(self, path: str) -> None:
        """A consistent copy of the database in a new file, where the store is a file."""
        ...


class Keys(Protocol):
    """API keys that were made here."""

    async def create_key(self, key: ApiKey) -> bool:
        """Keep a new key. False, and nothing kept, when one that is not revoked has its name."""
        ...

    async def read_keys(self) -> list[ApiKey]:
        """All of them, revoked ones too, oldest first."""
        ...

    async def revoke_key(self, key_id: str, at: datetime) -> bool:
        """False when there is no such key, or it is revoked already."""
        ...


class Store(Submissions, Inbox, Settling, Polls, Deliveries, Reading, Upkeep, Keys, Protocol):
    """All of it."""

    async def close(self) -> None: ...
