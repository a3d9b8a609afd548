"""Pass: ask about jobs that are due."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime, timedelta

import msgspec
import structlog

from receiver.adoption import adopt_from_list
from receiver.asking import Asking, Refused
from receiver.backoff import retry_at
from receiver.clock import Clock
from receiver.crew import Crew, until_stored
from receiver.decisions import Decide, Decision, in_turn
from receiver.errors import Unreadable
from receiver.limiter import Limiter
from receiver.model import Answer, Channel, Family, Job, Notice, Outcome, Poll, Request, Status, Update
from receiver.net import ProviderClient
from receiver.normalize import (
    PollFailure,
    read_lookup_answer,
    read_poll_answer,
    read_result_answer,
)
from receiver.providers.account import Account
from receiver.providers.requests import (
    build_cancel_request,
    build_lookup_request,
    build_poll_request,
    build_result_request,
)
from receiver.rules import Change, apply_update
from receiver.settling import Settling, body_hash
from receiver.stores.terms import Confirmation
from receiver.tracing import Span
from receiver.verdicts import not_found

NOT_FOUND_AFTER = 3  # answers in a row that the provider does not know the id
LISTED = 1_000  # jobs that one list call is made for
SETTLED = 100  # of them at a time
WORTH_A_LIST = 3  # due jobs from which on one list call is cheaper than asking about each
PAUSE_AFTER_BUG = timedelta(seconds=30)
LIST_PAUSE = timedelta(seconds=10)  # between list calls for submissions whose answer was lost
ReadAnswer = Callable[[Account, Job, Answer, datetime], Update | PollFailure]
log = structlog.get_logger("receiver.poller")


class Poller:
    """Asks providers about jobs that are due, each provider with a bounded number of calls at once."""

    def __init__(self, settling: Settling, client: ProviderClient, limiter: Limiter, clock: Clock, wake: Callable[[], None]) -> None:
        self._settling, self._store, self._limiter, self._clock = settling, settling.store, limiter, clock
        self._calls = Asking(settling, client, limiter, clock)
        self._next_list_at: dict[str, datetime] = {}
        self._list_again_at: dict[str, datetime] = {}
        self._listing: set[str] = set()  # accounts: one list call at a time
        self.crew = Crew("poll", self._limit_of, wake)

    def _limit_of(self, name: str) -> int:
        account = self._settling.accounts[name]
        return 1 if self._limiter.is_probing(name) else account.concurrency

    async def run_pass(self, now: datetime) -> bool:
        has_more = False
        for account in self._settling.accounts.values():
            room = self.crew.room(account.name)
            if not room or self._limiter.is_open(account.name, now) or account.name in self._listing:
                continue
            may_list = account.has_list and self._list_again_at.get(account.name, now) <= now
            claimed = await self._claim(account, now, LISTED if may_list else room, with_soon=may_list)
            if may_list and len(claimed) >= WORTH_A_LIST:
                self._list_again_at[account.name] = now + (timedelta() if len(claimed) == LISTED else account.interval_for(None))
                self._listing.add(account.name)
                self.crew.start(account.name, self._poll_by_list(account, claimed))
            else:
                self._start(account, claimed)
            if account.has_list:
                await self._look_for_unconfirmed(account, now)
            has_more = has_more or (len(claimed) >= room and self.crew.room(account.name) > 0)
        return has_more

    async def _claim(self, account: Account, now: datetime, most: int, *, with_soon: bool) -> list[tuple[Poll, Job]]:
        claimed = await self._store.claim_polls(now, most, [account.name])
        if with_soon and claimed and len(claimed) < most:  # the call that answers for these answers for those due soon as well
            claimed += await self._store.claim_polls(now + account.interval_for(None), most - len(claimed), [account.name])
        return claimed

    def _start(self, account: Account, pairs: Iterable[tuple[Poll, Job]]) -> None:
        for poll, job in pairs:
            self.crew.start(account.name, self._poll(account, poll, job))

    # One job

    async def _poll(self, account: Account, poll: Poll, job: Job) -> None:
        try:
            with self._begin(account, poll, job):
                await self._poll_now(account, poll, job)
        except Exception:  # whatever it was, the job must be asked about again
            await self._release(msgspec.structs.replace(poll, due_at=self._clock.now() + PAUSE_AFTER_BUG, failures=poll.failures + 1))
            raise

    def _begin(self, account: Account, poll: Poll, job: Job) -> Span:
        return self._settling.tracing.begin(
            "poll",
            job.traceparent,
            provider=account.name,
            submission_id=job.submission_id,
            job_id=job.id,
            attempt=poll.attempts + 1,
        )

    async def _poll_now(self, account: Account, poll: Poll, job: Job) -> None:
        room_at = await self._limiter.take(account, self._clock.now(), for_poll=True)
        if room_at is not None:
            await self._release(msgspec.structs.replace(poll, due_at=room_at))
            return
        if poll.cancel:
            poll = await self._cancel(account, poll, job)
            room_at = await self._limiter.take(account, self._clock.now(), for_poll=True)
            if room_at is not None:
                await self._release(msgspec.structs.replace(poll, due_at=room_at))
                return
        await self._ask(account, poll, job, build_poll_request(account, job))

    async def _cancel(self, account: Account, poll: Poll, job: Job) -> Poll:
        """Ask the provider to cancel. Its answer is never a status: the poll that follows tells."""
        answer, fault = await self._calls.send("cancel", account, build_cancel_request(account, job))
        is_settled = answer is not None and answer.status < 500 and answer.status != 429
        log.info("cancel.sent", job=job.id, provider=account.name, http_status=answer and answer.status, error=fault)
        return msgspec.structs.replace(poll, cancel=not is_settled)

    async def _ask(self, account: Account, poll: Poll, job: Job, request: Request) -> None:
        answer, read = await self._ask_for("poll", account, job, request, read_poll_answer)
        result = build_result_request(account, job) if says_no_more_than_done(read) else None
        if result is not None:
            room_at = await self._limiter.take(account, self._clock.now(), for_poll=True)
            if room_at is not None:
                await self._release(msgspec.structs.replace(poll, due_at=room_at))
                return
            answer, read = await self._ask_for("result", account, job, result, read_result_answer)
        if answer is None or isinstance(read, PollFailure):
            assert isinstance(read, PollFailure)
            await self._failed(account, poll, job, read, answer)
            return
        self._settling.counters.add(f"provider:{account.name}", "polls_answered")
        self._settling.note_status(account, read)
        await self._limiter.succeeded(account)
        await self._settle({job.submission_id: self._decide(poll, job.id, read, answer)})

    async def _ask_for(
        self, what: str, account: Account, job: Job, request: Request, read: ReadAnswer
    ) -> tuple[Answer | None, Update | PollFailure]:
        """One call about one job, and what its answer says."""
        answer, fault = await self._calls.send(what, account, request)
        if answer is None:
            return None, PollFailure(0, None, False, fault or "no answer", True)
        try:
            return answer, read(account, job, answer, self._clock.now())
        except Unreadable as error:
            return answer, PollFailure(answer.status, None, False, str(error), False)

    async def _failed(self, account: Account, poll: Poll, job: Job, failure: PollFailure, answer: Answer | None) -> None:
        now = self._clock.now()
        masker = self._settling.masker_of(job.provider, job.submission_id)
        failure = msgspec.structs.replace(failure, reason=masker.mask_cut(failure.reason))
        self._settling.counters.add(f"provider:{account.name}", "polls_failed")
        log.warning("poll.failed", job=job.id, provider=account.name, http_status=failure.http_status, reason=failure.reason)
        if failure.http_status == 429 and failure.retry_after is not None:
            self._limiter.pause(account, now, failure.retry_after)
        if failure.is_provider_fault:
            await self._limiter.failed(account, now, failure.reason)
        else:
            await self._limiter.succeeded(account)
        missing = poll.not_found + 1 if failure.not_found else 0
        due = retry_at(
            now,
            poll.failures + 1,
            account.interval_for(job.media, job.operation),
            account.max_interval_for(job.media, job.operation),
            failure.retry_after,
        )
        poll = msgspec.structs.replace(poll, due_at=due, failures=poll.failures + 1, not_found=missing)
        if answer is None and not job.is_final:
            await self._release(poll)
        elif answer is not None and missing >= NOT_FOUND_AFTER:
            await self._look_up(account, poll, job, failure, answer)
        else:
            await self._settle({job.submission_id: self._decide_failed(poll, job.id, failure, answer)})

    async def _look_up(self, account: Account, poll: Poll, job: Job, failure: PollFailure, answer: Answer) -> None:
        """The provider does not know the id: look once where it keeps its history, then believe it."""
        request = build_lookup_request(account, job)
        if request is not None:
            room_at = await self._limiter.take(account, self._clock.now(), for_poll=True)
            if room_at is not None:
                await self._release(msgspec.structs.replace(poll, due_at=room_at))
                return
            found, _ = await self._calls.send("lookup", account, request)
            if found is None or found.status >= 500 or found.status == 429:
                await self._release(poll)  # cannot tell: ask again later
                return
            try:
                read = read_lookup_answer(account, job, found, self._clock.now())
            except Unreadable:
                read = failure
            if isinstance(read, Update):
                await self._settle({job.submission_id: self._decide(poll, job.id, read, found)})
                return
        await self._settle({job.submission_id: self._decide_not_found(poll, job.id, failure.reason, answer)})

    # Many jobs by one call

    async def _poll_by_list(self, account: Account, claimed: Sequence[tuple[Poll, Job]]) -> None:
        """One call answers for all active jobs; those that it does not name are asked about one by one."""
        links = [job.traceparent for _, job in claimed]
        try:
            with self._settling.tracing.begin_trace("list", links=links, provider=account.name, jobs=len(claimed)):
                await self._poll_listed(account, claimed)
        finally:
            self._listing.discard(account.name)

    async def _poll_listed(self, account: Account, claimed: Sequence[tuple[Poll, Job]]) -> None:
        listed: defaultdict[str | None, list[tuple[Poll, Job]]] = defaultdict(list)  # two jobs may have one id
        for poll, job in claimed:
            listed[None if poll.cancel or job.is_final else job.remote_id].append((poll, job))
        alone = listed.pop(None, [])
        try:
            refused = await self._settle_listed(account, listed)
        except Exception:  # then each is asked about alone
            log.error("list.failed", provider=account.name, exc_info=True)
        else:
            if refused is not None:
                await self._put_off(account, [poll for pairs in listed.values() for poll, _ in pairs], refused)
                listed.clear()
        alone += [pair for pairs in listed.values() for pair in pairs]
        room = self.crew.room(account.name) + 1  # this call's own place is free now
        self._start(account, alone[:room])
        if alone[room:]:
            await until_stored(lambda: self._store.release_polls([poll for poll, _ in alone[room:]]), self._clock)

    async def _settle_listed(self, account: Account, listed: dict[str | None, list[tuple[Poll, Job]]]) -> Refused | None:
        """Takes out of `listed` what is settled."""
        jobs = [job for pairs in listed.values() for _, job in pairs]
        rows, refused = await self._calls.read_list(account, jobs, listed)
        for start in range(0, len(rows), SETTLED):  # others have a turn in between
            decides: defaultdict[str, list[Decide]] = defaultdict(list)
            part = {update.remote_id: (update, row) for update, row in rows[start : start + SETTLED] if update.remote_id in listed}
            for remote_id, (update, row) in part.items():
                for poll, job in listed[remote_id]:
                    decides[job.submission_id].append(self._decide(poll, job.id, update, Answer(status=200, body=row)))
            await self._settle({submission_id: in_turn(parts) for submission_id, parts in decides.items()})
            for remote_id in part:
                self._settling.counters.add(f"provider:{account.name}", "polls_answered", len(listed.pop(remote_id)))
        return refused

    async def _put_off(self, account: Account, polls: Sequence[Poll], refused: Refused) -> None:
        """Where the list is refused at present, single calls would fare no better, and there would be many of them."""
        now, interval, longest = self._clock.now(), account.interval_for(None, None), account.max_interval_for(None, None)
        later = [
            msgspec.structs.replace(
                poll, due_at=retry_at(now, poll.failures + 1, interval, longest, refused.seconds), failures=poll.failures + 1
            )
            for poll in polls
        ]
        await until_stored(lambda: self._store.release_polls(later), self._clock)

    async def _look_for_unconfirmed(self, account: Account, now: datetime) -> None:
        """Submissions whose answer was lost may be in the provider's list."""
        if self._next_list_at.get(account.name, now) > now or not self.crew.room(account.name):
            return
        families = await self._store.find_unconfirmed(account.name)
        self._next_list_at[account.name] = now + (LIST_PAUSE if families else timedelta(seconds=1))
        if families:
            self.crew.start(account.name, self._adopt(account, families))

    async def _adopt(self, account: Account, families: Sequence[Family]) -> None:
        rows, _ = await self._calls.read_list(account, [job for family in families for job in family.jobs])
        held = {job.remote_id for job in await self._store.find_open_jobs(account.name, [update.remote_id or "" for update, _ in rows])}
        rows = [row for row in rows if row[0].remote_id not in held]
        adopted = adopt_from_list(families, [update for update, _ in rows], account.submit_timeout)
        bodies = {update.remote_id: body for update, body in rows}
        decides = {
            submission_id: in_turn(
                [self._decide(None, None, update, Answer(status=200, body=bodies[update.remote_id])) for update in updates]
            )
            for submission_id, updates in adopted.items()
        }
        await self._settle(decides)

    # What is written

    async def _settle(self, decides: dict[str, Decide]) -> None:
        if decides:
            await until_stored(lambda: self._settling.settle(decides, self._clock.now()), self._clock)

    async def _release(self, poll: Poll) -> None:
        await until_stored(lambda: self._store.release_polls([poll]), self._clock)

    def _notice(
        self, family: Family, poll: Poll | None, job_id: str | None, answer: Answer, now: datetime
    ) -> tuple[Notice | None, Poll | None]:
        """The answer as a notice; None when it equals the job's last one, which is then repeated."""
        digest = body_hash(answer)
        if poll is not None and poll.last_notice_id and poll.last_hash == digest:
            return None, poll
        notice = self._settling.answer_notice(Channel.POLL, family, job_id, answer, now)
        return notice, None if poll is None else msgspec.structs.replace(poll, last_notice_id=notice.id, last_hash=digest)

    def _decide(self, poll: Poll | None, job_id: str | None, update: Update, answer: Answer) -> Decide:
        def decide(family: Family) -> Decision:
            now = self._clock.now()
            notice, known = self._notice(family, poll, job_id, answer, now)
            notice_id = notice.id if notice else known.last_notice_id if known else None
            change = apply_update(family, update, Channel.POLL, now, notice_id=notice_id)
            if notice is not None:
                notice = msgspec.structs.replace(
                    notice, job_id=change.job_id, outcome=change.outcome, status=update.status, reason=change.reason
                )
            return Decision(
                change,
                Channel.POLL,
                notices=(notice,) if notice else (),
                repeats=((known.last_notice_id, now),) if notice is None and known and known.last_notice_id else (),
                polled={known.job_id: known} if known else {},
                confirmations=(Confirmation(job_id=change.job_id, status=update.status),) if change.job_id else (),
            )

        return decide

    def _decide_failed(self, poll: Poll, job_id: str, failure: PollFailure, answer: Answer | None) -> Decide:
        """A poll that failed changes nothing, and its answer is kept for whoever looks. An expired job keeps to its own pace."""

        def decide(family: Family) -> Decision:
            now = self._clock.now()
            notice, known = self._notice(family, poll, job_id, answer, now) if answer else (None, poll)
            if notice is not None:
                notice = msgspec.structs.replace(notice, outcome=Outcome.UNREADABLE, reason=failure.reason)
            is_repeat = answer is not None and notice is None
            asked = known or poll
            has_ended = any(job.id == job_id and job.is_final for job in family.jobs)
            return Decision(
                Change(family),
                notices=(notice,) if notice else (),
                repeats=((asked.last_notice_id, now),) if is_repeat and asked.last_notice_id else (),
                polled={job_id: asked} if has_ended else {},
                kept_polls=() if has_ended else (asked,),
            )

        return decide

    def _decide_not_found(self, poll: Poll, job_id: str, reason: str, answer: Answer) -> Decide:
        def decide(family: Family) -> Decision:
            now = self._clock.now()
            notice = self._settling.answer_notice(Channel.POLL, family, job_id, answer, now)
            change = not_found(family, job_id, reason, now)
            notice = msgspec.structs.replace(notice, outcome=Outcome.APPLIED, reason=reason)
            return Decision(change, notices=(notice,), polled={job_id: poll})

        return decide


def says_no_more_than_done(read: Update | PollFailure) -> bool:
    """Whether the outputs of a job that succeeded are still to be asked for, where its provider keeps them elsewhere."""
    return isinstance(read, Update) and read.status is Status.SUCCEEDED and not read.outputs
