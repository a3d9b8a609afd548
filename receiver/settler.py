"""Pass: kept notices → normalize → rules → store."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import datetime

import msgspec
import structlog

from receiver.clock import Clock
from receiver.counters import LAGS
from receiver.crew import until_stored
from receiver.decisions import Decide, Decision
from receiver.ending import end
from receiver.errors import Unavailable, Unreadable
from receiver.ids import make_id
from receiver.model import Channel, Family, Job, Notice, Outcome, Status, Update
from receiver.normalize import read_callback
from receiver.providers.account import Account
from receiver.rules import Change, apply_update, may_adopt
from receiver.rush import Rush
from receiver.settling import Settling
from receiver.stores.terms import NoticeBound, NoticeFilter, NoticeOutcome
from receiver.tracing import Span

BATCH = 200
MOST_BYTES = 8 * 1024 * 1024  # of callbacks that were claimed with the write that keeps them, and are not begun
NOT_CONFIGURED = "the provider is not in the configuration"
NEEDS_POLL = frozenset({Outcome.UNREADABLE, Outcome.MISMATCHED, Outcome.WAITING})
log = structlog.get_logger("receiver.settler")


class Settler:
    """Settles callbacks that the inbox kept. While some are written the next ones are claimed: with SQLite by the same transaction.

    Callbacks that come while nobody else waits are claimed with the write that keeps them, and handed over here (`reserve`, `take`).
    """

    def __init__(self, settling: Settling, clock: Clock, wake: Callable[[], None], rush: Rush) -> None:
        self._settling, self._store, self._clock, self._wake = settling, settling.store, clock, wake
        self._log = log.bind()  # once: the lazy one binds itself anew for every line, told or not
        self._rush = rush
        self._is_first_pass = True
        self._claiming: asyncio.Task[list[Notice]] | None = None
        self._claimed: list[Notice] = []
        self._taken: list[Notice] = []
        self._room, self._room_bytes = BATCH, MOST_BYTES
        self._is_behind = True  # who comes now waits behind others
        self._left = 0  # how often one was kept that nobody has claimed
        self._is_stopping = False

    # From the inbox

    def reserve(self, size: int) -> bool:
        """Whether a callback that is to be kept may be claimed with that; then `take` has to follow."""
        if self._is_behind or self._room == 0 or self._room_bytes < size:
            return False
        self._room, self._room_bytes = self._room - 1, self._room_bytes - size
        return True

    def take(self, notice: Notice, *, is_claimed: bool) -> None:
        """Settle it; or give back its place."""
        if is_claimed:
            self._taken.append(notice)
            self._wake()
        else:
            self._give_back([notice])

    def leave(self) -> None:
        """One was kept and is not claimed: whatever comes after it waits, too."""
        self._left += 1
        self._is_behind = True
        self._wake()

    def _give_back(self, notices: Sequence[Notice]) -> None:
        self._room += len(notices)
        self._room_bytes += sum(len(notice.body) for notice in notices)

    # The pass

    async def run_pass(self, now: datetime) -> bool:
        if self._is_first_pass:  # a process may have died between writing an id and looking who waits for it
            for account in self._settling.accounts.values():
                if account.is_account_wide:
                    await self._store.reopen_orphans(account.name)
                await self._reopen_kept(account.name)
            self._is_first_pass = False
        await self._rush.end()
        notices = await self._next()
        if not notices:
            return False
        try:
            await self._settle_all(notices)
        except Unavailable:  # they stay ours, for the next pass; the loop tells that it fails
            self._claimed = notices
            raise
        if self._claiming is not None:
            claiming, self._claiming = self._claiming, None
            self._claimed = await claiming
        has_more = len(notices) >= BATCH or any(notice.tries > 1 for notice in notices)  # what is tried again comes one by one
        return has_more or bool(self._claimed or self._taken)

    async def _next(self) -> list[Notice]:
        if self._claimed:
            claimed, self._claimed = self._claimed, []
            return claimed
        return self._take_all() if self._taken else await self._claim()

    def _take_all(self) -> list[Notice]:
        taken, self._taken = self._taken, []
        self._give_back(taken)
        return taken

    async def _claim(self) -> list[Notice]:
        """What waits; behind what is here already, because that came first."""
        left = self._left
        claimed = await self._store.claim_notices(BATCH)
        is_again = any(notice.tries > 1 for notice in claimed)  # then it is one, and stays alone
        self._is_behind = self._is_stopping or is_again or len(claimed) == BATCH or self._left > left
        return claimed if is_again or not claimed else [*self._take_all(), *claimed]

    def _claim_ahead(self) -> None:
        if self._claiming is None:
            self._claiming = asyncio.create_task(self._claim(), name="claim ahead")

    async def finish(self) -> None:
        """Give back what was claimed ahead; after the last pass."""
        self._is_stopping = self._is_behind = True
        if self._claiming is not None:
            await end(self._claiming)  # the store takes back what it claims for nobody
            if not self._claiming.cancelled() and self._claiming.exception() is None:
                self._claimed += self._claiming.result()
            self._claiming = None
        claimed, self._claimed, self._taken = self._claimed + self._taken, [], []
        if claimed:
            with suppress(Unavailable):  # whoever starts next frees them
                await self._store.release_notices([notice.id for notice in claimed])

    async def _reopen_kept(self, provider: str) -> None:
        """Callbacks that came while the account was out of the configuration bring their jobs home now."""
        unreadable = NoticeFilter(provider=provider, outcome=Outcome.UNREADABLE, channel=Channel.CALLBACK)
        cursor: str | None = None
        while True:
            page = await self._store.read_notices(unreadable, BATCH, cursor, most_raw=0)
            for notice in page.rows:
                if notice.reason == NOT_CONFIGURED:
                    await self._store.reopen_notice(notice.id)
            cursor = page.cursor
            if cursor is None:
                return

    async def _settle_all(self, notices: Sequence[Notice]) -> None:
        try:
            await self._settle(notices)
        except Unavailable:
            raise
        except Exception:  # one of them is poison: alone it is set aside and holds up nobody
            log.error("notices.failed", notices=len(notices), exc_info=True)
            if len(notices) == 1:
                aside = NoticeOutcome(id=notices[0].id, outcome=Outcome.UNREADABLE, reason="settling it failed by a fault of our own")
                await until_stored(lambda: self._store.set_aside_notices([aside]), self._clock)
                return
            for notice in notices:
                await self._settle_all([notice])

    async def _settle(self, notices: Sequence[Notice]) -> None:
        by_submission: defaultdict[str, list[Notice]] = defaultdict(list)
        for notice in notices:
            if notice.submission_id is not None:
                by_submission[notice.submission_id].append(notice)
        for submission_id, notice in await self._find_submissions([notice for notice in notices if notice.submission_id is None]):
            by_submission[submission_id].append(notice)
        written = await self._settling.settle(
            {key: self._decide(family_notices) for key, family_notices in by_submission.items()},
            self._clock.now(),
            on_write=self._claim_ahead,
        )
        orphans = [notice for key, family_notices in by_submission.items() if key not in written for notice in family_notices]
        if orphans:
            await self._store.set_aside_notices([orphan_outcome(notice) for notice in orphans])
        now = self._clock.now()
        for notice in notices:
            self._settling.counters.observe("settle_lag", (now - notice.at).total_seconds(), LAGS)

    async def _find_submissions(self, notices: Sequence[Notice]) -> list[tuple[str, Notice]]:
        """Callbacks for a whole account name their job by its remote id. One that finds no job is set aside under that id: it may have
        come before the answer to the submit, which looks for it."""
        named: defaultdict[str, dict[str, list[Notice]]] = defaultdict(dict)
        aside: list[NoticeOutcome] = []
        for notice in notices:
            try:
                remote_id = read_remote_id(self._settling.accounts.get(notice.provider), notice)
            except Unreadable as error:
                aside.append(NoticeOutcome(id=notice.id, outcome=Outcome.UNREADABLE, reason=str(error)))
            else:
                named[notice.provider].setdefault(remote_id, []).append(notice)
        found: list[tuple[str, Notice]] = []
        for provider, by_id in named.items():
            jobs: defaultdict[str | None, list[Job]] = defaultdict(list)
            for job in await self._store.find_jobs(provider, list(by_id)):
                jobs[job.remote_id].append(job)
            for remote_id, same in by_id.items():
                owners = choose_submissions(jobs[remote_id])
                aside += [orphan_outcome(notice, remote_id) for notice in same if not owners]
                found += [(owner, notice) for notice in same for owner in owners[:1]]
                await self._hand_on(same, owners[1:])
        await self._set_aside(aside)
        return found

    async def _hand_on(self, notices: Sequence[Notice], submission_ids: Sequence[str]) -> None:
        """Remote ids are not unique: further submissions get copies, which are settled like callbacks of their own."""
        for notice in notices:
            for submission_id in submission_ids:
                copy = msgspec.structs.replace(notice, id=make_id("ntc", self._clock.now()), submission_id=submission_id, tries=0)
                await self._store.keep_notice(copy, NoticeBound())

    async def _set_aside(self, outcomes: Sequence[NoticeOutcome]) -> None:
        if not outcomes:
            return
        await self._store.set_aside_notices(outcomes)
        for account in self._settling.accounts.values():
            if account.is_account_wide:  # a job may have got its id between our look and this
                ids = [outcome.remote_id for outcome in outcomes if outcome.remote_id is not None]
                await self._store.reopen_orphans(account.name, ids)

    def _decide(self, notices: Sequence[Notice]) -> Decide:
        def decide(family: Family) -> Decision:
            now = self._clock.now()
            account = self._settling.accounts.get(family.submission.provider)
            total = Change(family)
            changes: list[Change] = []
            for notice in notices:
                change = self._read(total.family, account, notice, now)
                changes.append(change)
                total = total.then(change)
            return Decision(
                total,
                Channel.CALLBACK,
                outcomes=tuple(map(self._note, notices, changes)),
                is_urgent=not NEEDS_POLL.isdisjoint([change.outcome for change in changes]),
                causes=self._trace(family.traceparent, notices, changes),
            )

        return decide

    def _note(self, notice: Notice, change: Change) -> NoticeOutcome:
        self._log.info("notice.settled", notice=notice.id, job=change.job_id, outcome=change.outcome, reason=change.reason)
        return NoticeOutcome(id=notice.id, outcome=change.outcome, status=change.status, job_id=change.job_id, reason=change.reason)

    def _trace(self, traceparent: str | None, notices: Sequence[Notice], changes: Sequence[Change]) -> tuple[Span, ...]:
        """A callback finds its trace only here: its submission is not looked up before it is answered. So it is told afterwards."""
        tracing = self._settling.tracing
        if traceparent is None or not tracing.is_on:
            return ()
        return tuple(
            tracing.begin(
                "callback",
                traceparent,
                kind="server",
                at=notice.at,
                provider=notice.provider,
                channel=notice.channel,
                notice_id=notice.id,
                job_id=change.job_id,
                outcome=change.outcome,
                status=change.status,
            )
            for notice, change in zip(notices, changes, strict=True)
        )

    def _read(self, family: Family, account: Account | None, notice: Notice, now: datetime) -> Change:
        """One notice on the family as the notices before it left it. A poison one is set aside and holds back nobody."""
        if account is None:
            return Change(family, Outcome.UNREADABLE, reason=NOT_CONFIGURED)
        try:
            update = read_callback(account, family.submission.operation, notice.headers, notice.body, notice.at)
            self._settling.note_status(account, update)
            confirm = needs_poll(account, update)
            return apply_update(family, update, Channel.CALLBACK, now, notice_id=notice.id, confirm=confirm)
        except Unreadable as error:
            return Change(family, Outcome.UNREADABLE, reason=str(error))
        except Exception as error:  # a bug that one body brings out must not stop the others
            log.error("notice.poisonous", notice=notice.id, exc_info=True)
            return Change(family, Outcome.UNREADABLE, reason=f"{type(error).__name__} while it was settled")


def read_remote_id(account: Account | None, notice: Notice) -> str:
    """Which job a callback for a whole account is about. Unreadable where it does not say."""
    if account is None:
        raise Unreadable(NOT_CONFIGURED)
    remote_id = read_callback(account, None, notice.headers, notice.body, notice.at).remote_id
    if remote_id is None:
        raise Unreadable("it names no id")
    return remote_id


def choose_submissions(jobs: Sequence[Job]) -> list[str]:
    """Those of all jobs that its news may still change; else the newest one's, where it shows as late or as a duplicate."""
    open_jobs = [job for job in jobs if may_adopt(job)]
    return list(dict.fromkeys(job.submission_id for job in open_jobs or jobs[-1:]))


def needs_poll(account: Account, update: Update) -> bool:
    """Whether a final status waits for a poll: where the spec or the user says so, and where the outputs are still to be asked for."""
    is_bare = account.spec.table.result is not None and update.status is Status.SUCCEEDED and not update.outputs
    return account.confirms_callbacks or is_bare or update.is_unusable


def orphan_outcome(notice: Notice, remote_id: str | None = None) -> NoticeOutcome:
    log.warning("notice.orphan", notice=notice.id, provider=notice.provider, submission=notice.submission_id)
    reason = "no such submission is known here" if remote_id is None else f"no job here has the id {remote_id!r}"
    return NoticeOutcome(id=notice.id, outcome=Outcome.ORPHAN, reason=reason, remote_id=remote_id)
