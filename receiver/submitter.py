"""Pass: submissions that wait → provider, once.

A submission is marked `sent` on disk before the first byte leaves. Only an answer that proves that it was not taken takes
the mark back; whatever else happens, it is never sent again.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta

import msgspec
import structlog

from receiver.backoff import retry_at
from receiver.clock import Clock
from receiver.crew import Crew, until_stored
from receiver.decisions import Decide, Decision
from receiver.errors import AnswerLost, NotTaken
from receiver.limiter import Limiter
from receiver.model import Answer, Channel, ErrorCode, Family, JobError, Outcome, Request, Status, SubmissionState
from receiver.net import ProviderClient
from receiver.normalize import Accepted, NotTakenAnswer, RefusedAnswer, UnknownAnswer, read_rate_headers, read_submit_answer
from receiver.providers.account import Account
from receiver.providers.requests import build_submit_request
from receiver.rules import Change, apply_accepted, apply_lost, apply_not_taken, apply_refused
from receiver.settling import Settling, make_call
from receiver.tracing import Span

FIRST_RETRY = timedelta(seconds=2)
LAST_RETRY = timedelta(minutes=2)
PAUSE_AFTER_BUG = timedelta(minutes=1)
ROOM = 20  # submits at once per provider
Read = Accepted | NotTakenAnswer | RefusedAnswer | UnknownAnswer
log = structlog.get_logger("receiver.submitter")


class Submitter:
    """Sends what waits. `callback_url` gives the URL for a submission, None where none is to be sent."""

    def __init__(
        self,
        settling: Settling,
        client: ProviderClient,
        limiter: Limiter,
        clock: Clock,
        callback_url: Callable[[Account, str], str | None],
        wake: Callable[[], None],
    ) -> None:
        self._settling, self._store, self._client, self._limiter, self._clock = settling, settling.store, client, limiter, clock
        self._callback_url = callback_url
        self.crew = Crew("submit", lambda name: ROOM, wake)

    async def run_pass(self, now: datetime) -> bool:
        has_more = await self._settle_lost(now)
        for account in self._settling.accounts.values():
            room = self.crew.room(account.name)
            if not room:
                continue
            families = await self._store.claim_submissions(now, room, [account.name])
            for family in families:
                self.crew.start(account.name, self._submit(account, family))
        return has_more

    async def _settle_lost(self, now: datetime) -> bool:
        """What a process had marked sent when it died: it may have been taken."""
        lost = await self._store.claim_lost_submissions(100)
        reason = "The submit was under way when the process that sent it ended."
        decides = {family.submission.id: decide_lost(reason, now) for family in lost}
        if decides:  # nobody else claims them as long as we live
            await until_stored(lambda: self._settling.settle_apart(decides, now), self._clock)
        return len(lost) == 100

    async def _submit(self, account: Account, family: Family) -> None:
        submission_id = family.submission.id
        try:
            with self._begin(account, family):
                await self._submit_now(account, family)
        except Exception:  # whatever it was: unmarked it waits, marked it may have been taken
            now = self._clock.now()
            lost = decide_lost("The submit broke off by a fault of our own.", now)
            await until_stored(lambda: self._settling.settle({submission_id: lost}, now), self._clock)
            await until_stored(lambda: self._store.release_submission(submission_id, now + PAUSE_AFTER_BUG), self._clock)
            raise

    def _begin(self, account: Account, family: Family) -> Span:
        submission = family.submission
        return self._settling.tracing.begin(
            "send",
            family.traceparent,
            provider=account.name,
            operation=submission.operation,
            model=submission.model,
            submission_id=submission.id,
            attempt=submission.attempts + 1,
        )

    async def _submit_now(self, account: Account, family: Family) -> None:
        now = self._clock.now()
        submission_id = family.submission.id
        room_at = await self._limiter.take(account, now, for_poll=False)
        if room_at is not None:
            await until_stored(lambda: self._store.release_submission(submission_id, room_at), self._clock)
            return
        request = build_submit_request(account, family.submission, self._callback_url(account, submission_id))
        sent_at = self._clock.now()
        if not await until_stored(lambda: self._store.mark_sent(submission_id, sent_at), self._clock):
            return  # cancelled meanwhile
        self._settling.counters.add(f"provider:{account.name}", "submits")
        answer, read = await self._send(account, family, request)
        decide = self._decide(account, answer, read, sent_at)
        await until_stored(lambda: self._settling.settle({submission_id: decide}, self._clock.now()), self._clock)
        log.info(
            "submission.answered",
            submission=submission_id,
            provider=account.name,
            outcome=type(read).__name__,
            http_status=answer and answer.status,
        )

    async def _send(self, account: Account, family: Family, request: Request) -> tuple[Answer | None, Read]:
        """The call itself, on a connection of its own: a kept-alive one may die under the request and leave us in doubt."""
        try:
            with self._settling.begin_call("submit", account, request) as span:
                answer = await self._client.send(request, timeout=account.submit_timeout, fresh=True)
                span.note(http_status=answer.status)
        except NotTaken as error:
            return None, NotTakenAnswer(error.retry_after, JobError(ErrorCode.PROVIDER_UNAVAILABLE, str(error)))
        except AnswerLost as error:
            return None, UnknownAnswer(JobError(ErrorCode.SUBMIT_UNKNOWN, str(error)), str(error))
        now = self._clock.now()
        pause = read_rate_headers(account, answer, now)
        if pause is not None:
            self._limiter.pause(account, now, pause)
        return answer, read_submit_answer(account, family.submission, answer, now)

    def _decide(self, account: Account, answer: Answer | None, read: Read, sent_at: datetime) -> Decide:
        def decide(family: Family) -> Decision:
            now = self._clock.now()
            notice = None if answer is None else self._settling.answer_notice(Channel.SUBMIT, family, None, answer, now)
            change = read_change(account, family, read, now, notice.id if notice else None)
            if notice is not None:
                outcome = Outcome.UNREADABLE if isinstance(read, UnknownAnswer) else Outcome.APPLIED
                notice = msgspec.structs.replace(
                    notice, outcome=outcome, status=said(read), reason=read.reason if isinstance(read, UnknownAnswer) else None
                )
            error = None if answer is not None or isinstance(read, Accepted) else read.error.message
            call = make_call(family, sent_at, answer.status if answer else None, error)
            return Decision(change, Channel.SUBMIT, notices=(notice,) if notice else (), calls=(call,))

        return decide


def read_change(account: Account, family: Family, read: Read, now: datetime, notice_id: str | None) -> Change:
    """What the answer does to the family."""
    match read:
        case Accepted():
            count = account.spec.operation(family.submission.operation).submit.count
            maximum = max(count.max if count else 1, len(family.jobs))
            return apply_accepted(family, read.updates, maximum, now, notice_id)
        case RefusedAnswer():
            return apply_refused(family, read.error, now)
        case UnknownAnswer():
            return apply_lost(family, read.reason, now, read.error.provider_code)
        case NotTakenAnswer():
            attempts = family.submission.attempts
            if attempts >= account.submit_attempts:
                return apply_refused(family, read.error, now)
            return apply_not_taken(family, retry_at(now, attempts, FIRST_RETRY, LAST_RETRY, read.retry_after), now)


def said(read: Read) -> Status | None:
    """The status that the answer gave, for the timeline."""
    match read:
        case Accepted():
            return read.updates[0].status if read.updates else None
        case RefusedAnswer():
            return Status.FAILED
        case _:
            return None


def decide_lost(reason: str, now: datetime) -> Decide:
    def decide(family: Family) -> Decision | None:
        if family.submission.state is not SubmissionState.SENT:
            return None
        sent_at = family.submission.sent_at or now
        return Decision(apply_lost(family, reason, now), calls=(make_call(family, sent_at, None, reason),))

    return decide
