"""The suite that every store passes: it sees nothing but the promise in `receiver.stores.base`."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from random import Random

import pytest
from msgspec.structs import replace

from receiver.errors import Conflict, Invalid, KeyReused
from receiver.keys import ApiKey, Scope
from receiver.model import Channel, Cost, DeliveryState, ErrorCode, Family, JobError, Notice, Outcome, Status, SubmissionState
from receiver.stores import listings, postgres_polls, sqlite_polls
from receiver.stores.terms import (
    Breaker,
    Confirmation,
    DeliveryFilter,
    Duration,
    JobFilter,
    NoticeBound,
    NoticeFilter,
    NoticeOutcome,
    Replayed,
    Settlement,
)
from tests.factories import (
    NOW,
    make_call,
    make_delivery,
    make_event,
    make_family,
    make_job,
    make_notice,
    make_output,
    make_poll,
    make_running_family,
    make_stored,
    make_submission,
    seconds,
)

BOUND = NoticeBound()
DAY = timedelta(days=1)


async def seed(store, *families):
    for family in families:
        assert await store.create_submission(family) == family


async def load(store, family):
    return (await store.load_families([family.submission.id]))[family.submission.id]


async def settle(store, family, **fields):
    """One settlement over the family as it stands in the store."""
    now = await load(store, family)
    settlement = Settlement(**{"submission": now.submission, "version": now.submission.version} | fields)
    (won,) = await store.settle([settlement])
    return won


async def draft_event(store, job, type="job.succeeded", *, sequence=1, handlers=("archive",), at=NOW, **fields):
    """A settlement that makes an event, with a delivery for each handler."""
    event = make_event(job, type, sequence=sequence, at=at)
    deliveries = tuple(make_delivery(event, handler, **fields) for handler in handlers)
    family = (await store.load_families([job.submission_id]))[job.submission_id]
    (current,) = [one for one in family.jobs if one.id == job.id]
    return Settlement(
        submission=family.submission,
        version=family.submission.version,
        jobs=(replace(current, sequence=sequence),),
        events=(event,),
        deliveries=deliveries,
    )


async def put_event(store, job, type="job.succeeded", **fields):
    settlement = await draft_event(store, job, type, **fields)
    assert await store.settle([settlement]) == [True]
    return settlement.events[0], settlement.deliveries


async def put_and_claim(store, job, type="job.succeeded", **fields):
    """The deliveries of the event, and what this node has claimed of them at once."""
    settlement = await draft_event(store, job, type, state=DeliveryState.RUNNING, attempts=1, **fields)
    written, claimed = await store.settle_and_claim([settlement])
    assert written == [True]
    return settlement.deliveries, claimed


WORDS = (
    "",
    " ",
    "NULL",
    "null",
    '{"a": [1, null]}',
    '"it\'s" \\ 100 % {,}',
    "\\u0000",
    "\x01\t\n\x1f\x7f\u2028",
    "\U0001f600 \u00e9 e\u0301",
    "a\0b \\u0000",
)


class TestValues:
    """Strangers choose ids and words."""

    @pytest.mark.parametrize("word", WORDS, ids=ascii)
    async def test_words_come_back_as_they_were_written(self, store, word):
        family = make_running_family(metadata={"word": word}, job={"remote_id": word, "polling_url": word})
        (job,) = family.jobs
        callback = make_notice(family.submission.id, headers={"word": word}, provider=word)
        orphan = make_notice(None)
        done = replace(job, outputs=(make_output(url=word),), error=JobError(ErrorCode.UNKNOWN, word, word))
        event = make_event(done)
        delivery = make_delivery(event, last_error=word)
        poll = make_poll(job, last_hash=word)
        await seed(store, replace(family, submission=replace(family.submission, input={"word": word})))
        assert await asyncio.gather(store.keep_notice(callback, BOUND), store.keep_notice(orphan, BOUND)) == [True, True]
        aside = NoticeOutcome(id=orphan.id, outcome=Outcome.ORPHAN, reason=word, remote_id=word)
        assert len(await store.claim_notices(10)) == 2
        assert await settle(store, family, jobs=(done,), outcomes=(aside,), events=(event,), deliveries=(delivery,), polls=(poll,))

        whole = (word, word.replace("\0", "\ufffd"))  # where a database has no such character
        found = await load(store, family)
        (kept,) = found.jobs
        assert {kept.remote_id, kept.polling_url} <= set(whole)
        assert (found.submission.input, kept.metadata) == ({"word": word}, {"word": word})
        assert (kept.outputs, kept.error) == (done.outputs, done.error)
        notice, other = await store.read_notice(callback.id), await store.read_notice(orphan.id)
        assert notice.headers == callback.headers
        assert {notice.provider, other.reason, other.remote_id} <= set(whole)
        assert [found.data for _, found, _ in await store.read_events(0, 10)] == [event.data]
        assert (await store.read_delivery(delivery.id)).last_error in whole
        assert (await store.load_polls([job.id]))[job.id].last_hash in whole

    @pytest.mark.parametrize("number", [0.1 + 0.2, 5e-324, 1.7976931348623157e308, -0.0, 1e22, 123456789.123456789])
    async def test_numbers_come_back_to_the_last_bit(self, store, number):
        family = make_running_family(job={"progress": number, "cost": Cost(number, "USD")})
        await seed(store, family)
        (job,) = family.jobs
        learned = Duration(provider="elkapi", model="elk-1", seconds=number)
        assert await settle(store, family, jobs=(replace(job, sequence=2**63 - 1),), durations=(learned,))
        assert (await load(store, family)).jobs == (replace(job, sequence=2**63 - 1),)
        assert (await store.read_learned())[0].seconds == (number,)


class TestSubmissions:
    async def test_a_new_submission_is_kept_whole(self, store):
        family = make_family(2, metadata={"user": "42"})
        assert await store.create_submission(family) == family
        assert await load(store, family) == family

    async def test_the_same_key_and_body_give_the_submission_as_it_stands_now(self, store):
        family = make_family(idempotency_key="k", api_key_id="a", body_hash="h")
        await seed(store, family)
        job = replace(family.jobs[0], status=Status.QUEUED, remote_id="r")
        assert await settle(store, family, jobs=(job,))
        again = await store.create_submission(make_family(idempotency_key="k", api_key_id="a", body_hash="h"))
        assert isinstance(again, Replayed)
        assert again.family.jobs == (job,)
        assert again.family.submission.version == 1

    async def test_the_same_key_with_another_body_is_refused(self, store):
        await seed(store, make_family(idempotency_key="k", body_hash="h"))
        with pytest.raises(KeyReused):
            await store.create_submission(make_family(idempotency_key="k", body_hash="other"))

    async def test_a_key_counts_for_its_api_key_only(self, store):
        await seed(store, make_family(idempotency_key="k", api_key_id="a"), make_family(idempotency_key="k", api_key_id="b"))

    async def test_of_many_callers_at_once_with_one_key_one_creates(self, open_store):
        async with open_store() as a, open_store() as b:
            families = [make_family(idempotency_key="k", body_hash="h") for _ in range(10)]
            answers = await asyncio.gather(*((a, b)[n % 2].create_submission(family) for n, family in enumerate(families)))
        created = [answer for answer in answers if isinstance(answer, Family)]
        assert len(created) == 1
        assert {answer.family.submission.id for answer in answers if isinstance(answer, Replayed)} == {created[0].submission.id}

    async def test_due_submissions_are_claimed_oldest_due_first(self, store):
        late, soon, never = (make_family(next_attempt_at=NOW + seconds(n)) for n in (2, 1, 60))
        other = make_family(provider="oxen")
        await seed(store, late, soon, never, other)
        assert await store.claim_submissions(NOW + seconds(5), 10, ["elkapi"]) == [soon, late]
        assert await store.claim_submissions(NOW + seconds(5), 10, ["elkapi"]) == []

    async def test_two_nodes_never_claim_the_same_submission(self, open_store):
        async with open_store() as a, open_store() as b:
            await seed(a, *(make_family() for _ in range(20)))
            batches = await asyncio.gather(*(node.claim_submissions(NOW, 3, ["elkapi"]) for node in (a, b) * 5))
        ids = [family.submission.id for batch in batches for family in batch]
        assert len(ids) == len(set(ids)) == 20

    async def test_only_the_claiming_node_marks_sent_and_only_once(self, open_store):
        async with open_store() as a, open_store() as b:
            family = make_family()
            await seed(a, family)
            assert not await a.mark_sent(family.submission.id, NOW)
            await a.claim_submissions(NOW, 1, ["elkapi"])
            assert not await b.mark_sent(family.submission.id, NOW)
            assert await a.mark_sent(family.submission.id, NOW + seconds(1))
            assert not await a.mark_sent(family.submission.id, NOW)
            sent = (await load(a, family)).submission
        assert (sent.state, sent.sent_at, sent.attempts, sent.version) == (SubmissionState.SENT, NOW + seconds(1), 1, 1)

    async def test_a_submission_cancelled_meanwhile_is_not_marked(self, store):
        family = make_family()
        await seed(store, family)
        await store.claim_submissions(NOW, 1, ["elkapi"])
        assert await settle(store, family, submission=replace(family.submission, state=SubmissionState.CLOSED))
        assert not await store.mark_sent(family.submission.id, NOW)

    async def test_what_was_decided_before_the_mark_is_not_written(self, store):
        family = make_family()
        await seed(store, family)
        await store.claim_submissions(NOW, 1, ["elkapi"])
        await store.mark_sent(family.submission.id, NOW)
        cancelled = replace(family.submission, state=SubmissionState.CLOSED)
        assert await store.settle([Settlement(submission=cancelled, version=0)]) == [False]
        assert (await load(store, family)).submission.state is SubmissionState.SENT

    async def test_a_released_submission_is_claimed_again_when_due(self, store):
        family = make_family()
        await seed(store, family)
        await store.claim_submissions(NOW, 1, ["elkapi"])
        await store.release_submission(family.submission.id, NOW + seconds(10))
        assert await store.claim_submissions(NOW + seconds(9), 1, ["elkapi"]) == []
        (again,) = await store.claim_submissions(NOW + seconds(10), 1, ["elkapi"])
        assert again.submission.id == family.submission.id

    async def test_settling_releases_a_family_claimed_for_submitting(self, store):
        family = make_family()
        await seed(store, family)
        await store.claim_submissions(NOW, 1, ["elkapi"])
        await store.mark_sent(family.submission.id, NOW)
        again_at = NOW + seconds(30)
        not_taken = replace((await load(store, family)).submission, state=SubmissionState.WAITING, sent_at=None, next_attempt_at=again_at)
        assert await settle(store, family, submission=not_taken)
        (again,) = await store.claim_submissions(again_at, 1, ["elkapi"])
        assert (again.submission.attempts, again.submission.state) == (1, SubmissionState.WAITING)

    async def test_a_sent_submission_is_lost_only_when_its_node_is_gone(self, open_store):
        async with open_store() as b:
            async with open_store() as a:
                family = make_family()
                await seed(a, family)
                await a.claim_submissions(NOW, 1, ["elkapi"])
                await a.mark_sent(family.submission.id, NOW)
                assert await settle(a, family, notices=(make_notice(family.submission.id, outcome=Outcome.MISMATCHED),))
                assert await b.claim_lost_submissions(10) == []
            assert await b.claim_submissions(NOW + DAY, 10, ["elkapi"]) == []
            (lost,) = await b.claim_lost_submissions(10)
            assert lost.submission.id == family.submission.id
            assert await b.claim_lost_submissions(10) == []


class TestInbox:
    async def test_kept_notices_are_claimed_whole_in_the_order_they_came(self, store):
        notices = [make_notice(f"sub_{n % 3}", body=bytes([n])) for n in range(9)]
        for notice in notices:
            assert await store.keep_notice(notice, BOUND)
        claimed = await store.claim_notices(100)
        assert [replace(notice, tries=0) for notice in claimed] == notices
        assert {notice.tries for notice in claimed} == {1}

    async def test_many_notices_at_once_are_all_kept(self, store):
        notices = [make_notice(f"sub_{n}") for n in range(300)]
        assert all(await asyncio.gather(*(store.keep_notice(notice, BOUND) for notice in notices)))
        assert await store.inbox_depth() == 300

    async def test_keeping_a_notice_twice_keeps_one(self, store):
        notice = make_notice("sub_1")
        assert await store.keep_notice(notice, BOUND)
        assert await store.keep_notice(notice, BOUND)
        assert await store.inbox_depth() == 1

    async def test_a_submission_leaves_no_more_callbacks_than_the_bound_allows(self, store):
        bound = NoticeBound(callbacks=3)
        kept = await asyncio.gather(*(store.keep_notice(make_notice("sub_1"), bound) for _ in range(5)))
        assert sorted(kept) == [False, False, True, True, True]
        assert not await store.keep_notice(make_notice("sub_1"), bound)
        assert await store.keep_notice(make_notice("sub_2"), bound)
        assert await store.keep_notice(make_notice(None), bound)
        assert await store.inbox_depth() == 5

    async def test_a_submission_leaves_no_more_bytes_than_the_bound_allows(self, store):
        bound = NoticeBound(bytes=10)
        assert await store.keep_notice(make_notice("sub_1", body=b"12345678"), bound)
        assert not await store.keep_notice(make_notice("sub_1", body=b"123"), bound)
        assert await store.keep_notice(make_notice("sub_1", body=b"12"), bound)

    async def test_two_nodes_never_claim_the_same_notice(self, open_store):
        async with open_store() as a, open_store() as b:
            await asyncio.gather(*(a.keep_notice(make_notice(f"sub_{n}"), BOUND) for n in range(40)))
            batches = await asyncio.gather(*(node.claim_notices(5) for node in (a, b) * 5))
        ids = [notice.id for batch in batches for notice in batch]
        assert len(ids) == len(set(ids)) == 40

    async def test_the_notices_of_a_submission_go_to_one_node_at_a_time(self, open_store):
        async with open_store() as a, open_store() as b:
            first, second, other = make_notice("sub_1"), make_notice("sub_1"), make_notice("sub_2")
            for notice in (first, second, other):
                await a.keep_notice(notice, BOUND)
            assert [notice.id for notice in await a.claim_notices(1)] == [first.id]
            assert [notice.id for notice in await b.claim_notices(10)] == [other.id]
            await a.set_aside_notices([NoticeOutcome(id=first.id, outcome=Outcome.ORPHAN)])
            assert [notice.id for notice in await b.claim_notices(10)] == [second.id]

    async def test_a_notice_may_be_claimed_with_the_write_that_keeps_it(self, open_store):
        async with open_store() as a, open_store() as b:
            notice, unclaimed = make_notice("sub_1", tries=1, body=b"x"), make_notice("sub_2")
            assert await asyncio.gather(a.keep_and_claim(notice, BOUND), a.keep_notice(unclaimed, BOUND)) == [(True, True), True]
            assert await a.read_notice(notice.id) == notice
            assert [one.id for one in await b.claim_notices(10)] == [unclaimed.id]
            await b.set_aside_notices([NoticeOutcome(id=notice.id, outcome=Outcome.ORPHAN)])  # only who holds the claim
            await a.release_notices([notice.id])
            assert await b.claim_notices(10) == [notice]

    async def test_a_notice_that_is_not_kept_or_was_kept_before_is_not_claimed(self, store):
        notice, bound = make_notice("sub_1", tries=1), NoticeBound(callbacks=1)
        assert await store.keep_notice(replace(notice, tries=0), bound)
        assert await store.keep_and_claim(make_notice("sub_1", tries=1), bound) == (False, False)
        assert await store.keep_and_claim(notice, BOUND) == (True, False)
        assert await store.claim_notices(10) == [notice]

    async def test_a_notice_of_a_submission_that_another_node_is_at_is_kept_for_that_one(self, open_store):
        async with open_store() as a, open_store() as b:
            first, second, other = (make_notice(name, tries=1) for name in ("sub_1", "sub_1", "sub_2"))
            assert await a.keep_and_claim(first, BOUND) == (True, True)
            assert await asyncio.gather(*(b.keep_and_claim(one, BOUND) for one in (second, other))) == [(True, False), (True, True)]
            assert (await b.read_notice(second.id)).tries == 0
            assert await b.claim_notices(10) == []
            await a.set_aside_notices([NoticeOutcome(id=first.id, outcome=Outcome.ORPHAN)])
            assert await b.claim_notices(10) == [second]

    async def test_callbacks_for_a_whole_account_are_claimed_with_their_write(self, open_store):
        async with open_store() as a, open_store() as b:
            assert await a.keep_and_claim(make_notice(None, tries=1), BOUND) == (True, True)
            assert await b.keep_and_claim(make_notice(None, tries=1), BOUND) == (True, True)

    async def test_what_a_node_kept_as_its_own_is_free_when_it_is_gone(self, open_store):
        async with open_store() as a:
            async with open_store() as b:
                notice = make_notice("sub_1", tries=1)
                assert await b.keep_and_claim(notice, BOUND) == (True, True)
            await a.bury_dead_nodes()
            assert await a.claim_notices(10) == [replace(notice, tries=2)]

    async def test_a_notice_that_was_tried_too_often_is_set_aside_and_blocks_nobody(self, store):
        poison, good = make_notice("sub_1"), make_notice("sub_2")
        await store.keep_notice(replace(poison, tries=2), BOUND)
        await store.keep_notice(good, BOUND)
        assert [notice.id for notice in await store.claim_notices(10, max_tries=2)] == [good.id]
        aside = await store.read_notice(poison.id)
        assert aside.outcome is Outcome.UNREADABLE
        assert "2 times" in aside.reason

    async def test_what_was_claimed_before_is_claimed_alone_and_new_ones_together(self, store):
        again = [replace(make_notice(f"sub_{number}"), tries=1) for number in range(2)]
        fresh = [make_notice(f"sub_{number}") for number in range(2, 5)]
        for notice in (fresh[0], *again, *fresh[1:]):
            await store.keep_notice(notice, BOUND)
        claimed = [[notice.id for notice in await store.claim_notices(10)] for _ in range(5)]
        assert claimed == [[fresh[0].id], [again[0].id], [again[1].id], [fresh[1].id, fresh[2].id], []]

    async def test_the_try_of_a_released_notice_does_not_count(self, store):
        notice = make_notice("sub_1")
        await store.keep_notice(notice, BOUND)
        await store.claim_notices(10)
        await store.release_notices([notice.id])
        (again,) = await store.claim_notices(10)
        assert again.tries == 1

    async def test_an_outcome_is_written_over_an_unsettled_waiting_or_unreadable_notice_only(self, store):
        for before, is_written in ((None, True), (Outcome.WAITING, True), (Outcome.UNREADABLE, True), (Outcome.APPLIED, False)):
            notice = make_notice("sub_1", outcome=before)
            await store.keep_notice(notice, NoticeBound())
            await store.claim_notices(10)
            await store.set_aside_notices([NoticeOutcome(id=notice.id, outcome=Outcome.ORPHAN, reason="because")])
            assert ((await store.read_notice(notice.id)).outcome is Outcome.ORPHAN) == is_written

    async def test_only_an_unreadable_notice_is_reopened(self, store):
        unreadable = make_notice("sub_1", outcome=Outcome.UNREADABLE, reason="no id", tries=9)
        applied = make_notice("sub_1", outcome=Outcome.APPLIED)
        for notice in (unreadable, applied):
            await store.keep_notice(notice, BOUND)
        assert not await store.reopen_notice(applied.id)
        assert not await store.reopen_notice("ntc_none")
        assert await store.reopen_notice(unreadable.id)
        assert not await store.reopen_notice(unreadable.id)
        (again,) = await store.claim_notices(10)
        assert (again.id, again.outcome, again.reason, again.tries) == (unreadable.id, None, None, 1)

    async def test_an_orphan_waits_for_a_job_of_its_account_with_its_id(self, store):
        early, foreign, owned = make_notice(None), make_notice(None, provider="oxen"), make_notice("sub_gone")
        for notice in (early, foreign, owned):
            await store.keep_notice(notice, BOUND)
        await store.claim_notices(10)
        await store.set_aside_notices([NoticeOutcome(id=n.id, outcome=Outcome.ORPHAN, remote_id="r-1") for n in (early, foreign, owned)])
        aside = await store.read_notice(early.id)
        assert (aside.outcome, aside.remote_id) == (Outcome.ORPHAN, "r-1")
        assert await store.reopen_orphans("elkapi", ["r-1"]) == 0
        await seed(store, make_running_family(job={"remote_id": "r-1"}))
        assert await store.reopen_orphans("elkapi", ["r-2"]) == 0
        assert await store.reopen_orphans("elkapi", ["r-2", "r-1"]) == 1
        assert await store.reopen_orphans("elkapi", ["r-1"]) == 0
        (again,) = await store.claim_notices(10)
        assert (again.id, again.outcome, again.remote_id, again.tries) == (early.id, None, "r-1", 1)

    async def test_all_orphans_whose_job_is_there_by_now_are_reopened_at_once(self, store):
        notices = [make_notice(None) for _ in range(3)]
        for notice in notices:
            await store.keep_notice(notice, BOUND)
        await store.claim_notices(10)
        await store.set_aside_notices(
            [NoticeOutcome(id=notice.id, outcome=Outcome.ORPHAN, remote_id=f"r-{n}") for n, notice in enumerate(notices)]
        )
        await seed(
            store, make_running_family(job={"remote_id": "r-0"}), make_running_family(job={"remote_id": "r-2", "status": Status.FAILED})
        )
        assert await store.reopen_orphans("elkapi") == 2
        assert [notice.id for notice in await store.claim_notices(10)] == [notices[0].id, notices[2].id]

    async def test_an_orphan_that_nobody_claims_is_pruned_after_its_time(self, store):
        notice = make_notice(None)
        await store.keep_notice(notice, BOUND)
        await store.claim_notices(10)
        await store.set_aside_notices([NoticeOutcome(id=notice.id, outcome=Outcome.ORPHAN, remote_id="r-1")])
        assert await store.prune(NOW + DAY, DAY * 30, DAY * 7, DAY, 100) == 0
        assert await store.prune(NOW + DAY + seconds(1), DAY * 30, DAY * 7, DAY, 100) == 1
        assert await store.read_notice(notice.id) is None


class TestSettling:
    async def test_a_settlement_writes_everything_it_holds(self, store):
        family = make_running_family(metadata={"user": "42"})
        await seed(store, family)
        (job,) = family.jobs
        kept = make_notice(family.submission.id)
        await store.keep_notice(kept, BOUND)
        await store.claim_notices(10)
        done = replace(
            job,
            status=Status.SUCCEEDED,
            outputs=(make_output(),),
            error=JobError(ErrorCode.UNKNOWN, "words", "E1"),
            finished_at=NOW + seconds(5),
            sequence=1,
        )
        extra = make_job(family.submission, position=1, metadata=job.metadata)
        answer = make_notice(family.submission.id, channel=Channel.POLL, job_id=job.id, outcome=Outcome.APPLIED, http_status=200)
        event = make_event(done)
        delivery = make_delivery(event)
        call = make_call(family.submission.id)
        poll = make_poll(extra, attempts=3)
        assert await settle(
            store,
            family,
            jobs=(done, extra),
            notices=(answer,),
            outcomes=(NoticeOutcome(id=kept.id, outcome=Outcome.DUPLICATE, status=Status.SUCCEEDED, job_id=job.id),),
            events=(event,),
            deliveries=(delivery,),
            polls=(poll,),
            calls=(call,),
            durations=(Duration(provider="elkapi", model="elk-1", seconds=5.0),),
        )
        assert await load(store, family) == Family(replace(family.submission, version=1), (done, extra))
        settled = await store.read_notice(kept.id)
        assert (settled.outcome, settled.status, settled.job_id) == (Outcome.DUPLICATE, Status.SUCCEEDED, job.id)
        assert [entry.row.id for entry in await store.read_timeline(job.id)] == [call.id, kept.id, answer.id, event.id, delivery.id]
        assert await store.load_polls([extra.id]) == {extra.id: poll}
        assert (await store.read_learned())[0].seconds == (5.0,)
        assert [event for _, event, _ in await store.read_events(0, 10)] == [event]
        assert (await store.read_jobs(JobFilter(metadata={"user": "42"}), 10, None)).rows == (extra, done)

    async def test_of_two_settlements_from_one_version_one_is_written_and_of_the_other_nothing(self, open_store):
        async with open_store() as a, open_store() as b:
            family = make_running_family()
            await seed(a, family)
            (job,) = family.jobs
            settlements = []
            for status in (Status.SUCCEEDED, Status.FAILED):
                event = make_event(job, f"job.{status.value}")
                settlements.append(
                    Settlement(
                        submission=family.submission,
                        version=0,
                        jobs=(replace(job, status=status, sequence=1),),
                        events=(event,),
                        deliveries=(make_delivery(event),),
                    )
                )
            won = await asyncio.gather(a.settle([settlements[0]]), b.settle([settlements[1]]))
            assert sorted(won) == [[False], [True]]
            events = [event for _, event, _ in await a.read_events(0, 10)]
            now = await a.read_job(job.id)
            assert [event.type for event in events] == [f"job.{now.status.value}"]
            assert sum((await a.count_deliveries()).values()) == 1

    async def test_one_conflict_in_a_call_leaves_the_others_written(self, store):
        families = [make_running_family() for _ in range(3)]
        await seed(store, *families)
        settlements = [Settlement(submission=family.submission, version=n % 2) for n, family in enumerate(families)]
        assert await store.settle(settlements) == [True, False, True]
        assert [(await load(store, family)).submission.version for family in families] == [1, 0, 1]

    async def test_a_settlement_of_an_unknown_submission_is_not_written(self, store):
        assert await store.settle([Settlement(submission=make_submission(), version=0)]) == [False]

    async def test_what_a_settlement_is_computed_from_is_loaded_with_its_polls(self, store):
        several, alone = make_running_family(3), make_running_family()
        await seed(store, several, alone)
        await settle(store, several, polls=tuple(make_poll(job) for job in several.jobs[1:]))
        claimed = [poll.job_id for poll, _ in await store.claim_polls(NOW + DAY, 1, ["elkapi"])]
        assert len(claimed) == 1
        ids = [family.submission.id for family in (several, alone)]
        families, polls = await store.load_to_settle(ids)
        assert families == await store.load_families(ids)
        assert [len(families[submission_id].jobs) for submission_id in ids] == [3, 1]
        assert polls == await store.load_polls([job.id for family in families.values() for job in family.jobs])
        assert set(polls) == {job.id for job in several.jobs[1:]}

    async def test_an_equal_poll_answer_counts_as_a_repeat(self, store):
        family = make_running_family()
        await seed(store, family)
        notice = make_notice(family.submission.id, channel=Channel.POLL, outcome=Outcome.APPLIED)
        await settle(store, family, notices=(notice,))
        await settle(store, family, repeats=((notice.id, NOW + seconds(1)), (notice.id, NOW + seconds(2))))
        repeated = await store.read_notice(notice.id)
        assert (repeated.repeats, repeated.last_at) == (2, NOW + seconds(2))

    async def test_a_confirmation_decides_what_waits(self, store):
        family = make_running_family()
        await seed(store, family)
        (job,) = family.jobs
        right, wrong, old = (
            make_notice(family.submission.id, job_id=job.id, status=status, outcome=outcome)
            for status, outcome in (
                (Status.SUCCEEDED, Outcome.WAITING),
                (Status.FAILED, Outcome.WAITING),
                (Status.FAILED, Outcome.LATE),
            )
        )
        await settle(store, family, notices=(right, wrong, old))
        await settle(store, family, confirmations=(Confirmation(job_id=job.id, status=Status.SUCCEEDED),))
        outcomes = [(await store.read_notice(notice.id)).outcome for notice in (right, wrong, old)]
        assert outcomes == [Outcome.APPLIED, Outcome.REFUTED, Outcome.LATE]

    async def test_what_was_emitted_and_stored_meanwhile_survives_a_settlement(self, store):
        family = make_running_family(job={"status": Status.SUCCEEDED, "outputs": (make_output(),)})
        await seed(store, family)
        (job,) = family.jobs
        before = await load(store, family)
        emitted = make_event(job, "thumbnail.made")
        assert await store.emit(emitted, [make_delivery(emitted)])
        assert await store.record_stored(job.id, 0, make_stored(), NOW)
        event = make_event(job, "job.processing", sequence=1)
        settlement = Settlement(
            submission=before.submission,
            version=before.submission.version,
            jobs=(replace(before.jobs[0], progress=1.0, sequence=1),),
            events=(event,),
            deliveries=(make_delivery(event, "later"),),
        )
        assert await store.settle([settlement]) == [True]
        now = await store.read_job(job.id)
        assert (now.sequence, now.progress, now.outputs[0].stored) == (2, 1.0, make_stored())
        assert [event.sequence for _, event, _ in await store.read_events(0, 10)] == ["1", "2"]
        (delivery,) = (await store.read_deliveries(DeliveryFilter(handler="later"), 10, None)).rows
        assert delivery.sequence == 2

    async def test_jobs_are_found_by_remote_id_while_open_or_ended_by_our_own_verdict(self, store):
        same = {"remote_id": "r"}
        queued = make_running_family(job=same)
        expired = make_running_family(job=same | {"status": Status.EXPIRED, "is_own_verdict": True})
        done = make_running_family(job=same | {"status": Status.SUCCEEDED})
        other = make_running_family(job=same, provider="oxen")
        await seed(store, queued, expired, done, other)
        found = await store.find_open_jobs("elkapi", ["r", "nothing"])
        assert {job.id for job in found} == {queued.jobs[0].id, expired.jobs[0].id}

    async def test_jobs_of_an_account_are_found_by_remote_id_open_or_final_oldest_first(self, store):
        same = {"remote_id": "r"}
        newer = make_running_family(job=same, created_at=NOW + seconds(1))
        older = make_running_family(job=same | {"status": Status.SUCCEEDED})
        other = make_running_family(job=same, provider="oxen")
        await seed(store, newer, older, other)
        assert await store.find_jobs("elkapi", ["r", "nothing"]) == [older.jobs[0], newer.jobs[0]]

    async def test_unconfirmed_families_are_found_until_an_id_is_known(self, store):
        lost = JobError(ErrorCode.SUBMIT_UNKNOWN, "the answer was lost")
        unconfirmed = make_family(job={"status": Status.UNCONFIRMED, "error": lost})
        expired = make_family(job={"status": Status.EXPIRED, "is_own_verdict": True, "error": lost})
        adopted = make_family(job={"status": Status.UNCONFIRMED, "error": lost, "remote_id": "r"})
        failed = make_family(job={"status": Status.FAILED, "error": JobError(ErrorCode.INVALID_REQUEST, "no")})
        await seed(store, unconfirmed, expired, adopted, failed)
        assert {family.submission.id for family in await store.find_unconfirmed("elkapi")} == {
            unconfirmed.submission.id,
            expired.submission.id,
        }

    async def test_families_over_their_deadline_are_found_earliest_first(self, store):
        late, later = (make_running_family(deadline_seconds=float(n)) for n in (1, 2))
        final = make_running_family(deadline_seconds=1.0, job={"status": Status.FAILED})
        await seed(store, later, late, final, make_running_family())
        assert [family.submission.id for family in await store.claim_overdeadline(NOW + seconds(2), 10)] == [
            late.submission.id,
            later.submission.id,
        ]
        assert len(await store.claim_overdeadline(NOW + seconds(2), 1)) == 1

    async def test_at_most_a_hundred_durations_are_kept(self, store):
        family = make_running_family()
        await seed(store, family)
        await settle(store, family, durations=tuple(Duration(provider="p", model="m", seconds=float(n)) for n in range(103)))
        (learned,) = await store.read_learned()
        assert learned.seconds == tuple(float(n) for n in range(3, 103))


class TestPolls:
    async def seed(self, store, count=1, **fields):
        family = make_running_family(count)
        await seed(store, family)
        polls = tuple(make_poll(job, **fields) for job in family.jobs)
        assert await settle(store, family, polls=polls)
        return family, polls

    async def test_due_polls_are_claimed_oldest_due_first_with_their_jobs(self, store):
        _, (late,) = await self.seed(store, due_at=NOW + seconds(2))
        _, (soon,) = await self.seed(store, due_at=NOW + seconds(1))
        await self.seed(store, due_at=NOW + seconds(60))
        claimed = await store.claim_polls(NOW + seconds(5), 10, ["elkapi"])
        assert [poll for poll, _ in claimed] == [soon, late]
        assert [job.id for _, job in claimed] == [soon.job_id, late.job_id]
        assert await store.claim_polls(NOW + seconds(5), 10, ["elkapi"]) == []
        assert await store.claim_polls(NOW + seconds(99), 10, ["oxen"]) == []
        assert await store.claim_polls(NOW + seconds(99), 10, []) == []

    async def test_two_nodes_never_claim_the_same_poll(self, open_store):
        async with open_store() as a, open_store() as b:
            await self.seed(a, 40)
            batches = await asyncio.gather(*(node.claim_polls(NOW, 5, ["elkapi"]) for node in (a, b) * 5))
        ids = [poll.job_id for batch in batches for poll, _ in batch]
        assert len(ids) == len(set(ids)) == 40

    async def test_a_released_poll_is_written_back_where_the_claim_still_holds(self, open_store):
        async with open_store() as a, open_store() as b:
            _, (poll,) = await self.seed(a)
            await a.claim_polls(NOW, 1, ["elkapi"])
            await b.release_polls([replace(poll, failures=9)])
            assert await a.load_polls([poll.job_id]) == {poll.job_id: poll}
            failed = replace(poll, failures=1, due_at=NOW + seconds(10))
            await a.release_polls([failed])
            assert [poll for poll, _ in await b.claim_polls(NOW + seconds(10), 1, ["elkapi"])] == [failed]

    async def test_settling_replaces_a_poll_and_frees_it_or_ends_it(self, store):
        family, (poll,) = await self.seed(store)
        await store.claim_polls(NOW, 1, ["elkapi"])
        again = replace(poll, attempts=1, due_at=NOW + seconds(5))
        await settle(store, family, polls=(again,), polls_answered=(poll.job_id,))
        assert [poll for poll, _ in await store.claim_polls(NOW + seconds(5), 1, ["elkapi"])] == [again]
        await settle(store, family, polls_ended=(poll.job_id,))
        assert await store.load_polls([poll.job_id]) == {}

    async def test_what_is_heard_while_a_node_asks_leaves_the_poll_to_it(self, open_store):
        async with open_store() as a, open_store() as b:
            family, (poll,) = await self.seed(a)
            await a.claim_polls(NOW, 1, ["elkapi"])
            await settle(b, family, polls=(replace(poll, attempts=7, due_at=NOW + seconds(3)),))
            assert await b.claim_polls(NOW + seconds(60), 1, ["elkapi"]) == []
            answered = replace(poll, attempts=1, due_at=NOW + seconds(5))
            await settle(a, family, polls=(answered,), polls_answered=(poll.job_id,))
            assert [one for one, _ in await b.claim_polls(NOW + seconds(3), 1, ["elkapi"])] == [replace(answered, due_at=NOW + seconds(3))]

    async def test_who_does_not_hold_a_poll_any_more_writes_no_answer_to_it(self, open_store):
        async with open_store() as a, open_store() as b:
            family, (poll,) = await self.seed(a)
            await a.claim_polls(NOW, 1, ["elkapi"])
            assert await settle(b, family, polls=(replace(poll, failures=9),), polls_answered=(poll.job_id,))
            assert await b.load_polls([poll.job_id]) == {poll.job_id: poll}
            assert await b.claim_polls(NOW, 1, ["elkapi"]) == []
            await a.release_polls([poll])
            assert await settle(b, family, polls=(replace(poll, failures=9),), polls_answered=(poll.job_id,))
            assert [one for one, _ in await b.claim_polls(NOW, 1, ["elkapi"])] == [poll]

    async def test_polls_are_made_due_by_job_submission_or_provider(self, store):
        for by in ({"job_ids": True}, {"submission_id": True}, {"provider": True}):
            family, (poll,) = await self.seed(store, due_at=NOW + seconds(60))
            chosen = {"job_ids": [poll.job_id], "submission_id": family.submission.id, "provider": "elkapi"}
            assert await store.poll_now(NOW, **{key: chosen[key] for key in by}) == 1
            (claimed,) = await store.claim_polls(NOW, 10, ["elkapi"])
            assert claimed[0] == replace(poll, due_at=NOW)
            await settle(store, family, polls_ended=(poll.job_id,), jobs=(replace(family.jobs[0], status=Status.FAILED),))

    async def test_a_poll_that_is_due_sooner_stays(self, store):
        _, (poll,) = await self.seed(store, due_at=NOW - seconds(60))
        assert await store.poll_now(NOW, job_ids=[poll.job_id]) == 0
        assert await store.load_polls([poll.job_id]) == {poll.job_id: poll}

    async def test_a_job_without_a_poll_but_with_an_id_gets_one(self, store):
        expired = make_running_family(job={"status": Status.EXPIRED, "is_own_verdict": True, "remote_id": "r"})
        unknown = make_family(job={"status": Status.UNCONFIRMED})
        await seed(store, expired, unknown)
        assert await store.poll_now(NOW, job_ids=[expired.jobs[0].id, unknown.jobs[0].id]) == 1
        assert [poll for poll, _ in await store.claim_polls(NOW, 10, ["elkapi"])] == [make_poll(expired.jobs[0])]

    async def test_a_whole_provider_made_due_leaves_expired_jobs_their_pace(self, store):
        family, (poll,) = await self.seed(store, due_at=NOW + seconds(60))
        expired = replace(family.jobs[0], status=Status.EXPIRED, is_own_verdict=True)
        await settle(store, family, jobs=(expired,), polls=(poll,))
        assert await store.poll_now(NOW, provider="elkapi") == 0
        assert await store.load_polls([poll.job_id]) == {poll.job_id: poll}

    async def test_a_cancel_that_is_asked_for_during_a_poll_is_not_lost(self, store):
        _, (poll,) = await self.seed(store)
        await store.claim_polls(NOW, 1, ["elkapi"])
        assert await store.poll_now(NOW + seconds(1), job_ids=[poll.job_id], cancel=True) == 1
        await store.release_polls([replace(poll, due_at=NOW + seconds(60))])
        ((again, _),) = await store.claim_polls(NOW + seconds(1), 1, ["elkapi"])
        assert (again.due_at, again.cancel) == (NOW + seconds(1), True)
        await store.release_polls([replace(again, cancel=False, due_at=NOW + seconds(60))])
        assert await store.claim_polls(NOW + seconds(2), 1, ["elkapi"]) == []

    async def test_an_account_is_asked_about_slice_by_slice(self, store, monkeypatch):
        for module in (sqlite_polls, postgres_polls):
            monkeypatch.setattr(module, "OPEN_AFTER", module.OPEN_AFTER.replace("LIMIT 250", "LIMIT 2"))
        families = [make_running_family(job={"status": status}) for status in (Status.QUEUED, Status.PROCESSING) for _ in range(3)]
        await seed(store, *families)
        jobs = [family.jobs[0] for family in families]
        for family, job in zip(families[:4], jobs[:4], strict=True):
            await settle(store, family, polls=(make_poll(job, due_at=NOW + DAY),))
        assert await store.poll_now(NOW, provider="elkapi") == 6  # two had no poll
        assert {poll.due_at for poll in (await store.load_polls([job.id for job in jobs])).values()} == {NOW}
        assert await store.poll_now(NOW, provider="elkapi") == 0

    async def test_an_account_has_open_jobs_while_one_has_an_id_and_is_not_final(self, store):
        await seed(store, make_family(), make_running_family(job={"status": Status.FAILED}), make_running_family(provider="oxen"))
        assert not await store.has_open_jobs("elkapi")
        await seed(store, make_running_family(job={"status": Status.PROCESSING}))
        assert await store.has_open_jobs("elkapi")


async def claim_ids(store, at=NOW, **room):
    return [delivery.id for delivery, _ in await store.claim_deliveries(at, room or {"archive": 100})]


class TestDeliveries:
    async def seed_job(self, store, **fields):
        family = make_running_family(job=fields or None)
        await seed(store, family)
        return family.jobs[0] if fields else (await load(store, family)).jobs[0]

    async def finish(self, store, delivery_id, state=DeliveryState.DONE, at=NOW, **fields):
        delivery = await store.read_delivery(delivery_id)
        (is_written,) = await store.finish_deliveries([replace(delivery, state=state, updated_at=at, **fields)])
        return is_written

    async def test_a_claimed_delivery_runs_and_counts_the_attempt(self, store):
        job = await self.seed_job(store)
        event, (delivery,) = await put_event(store, job)
        assert await store.claim_deliveries(NOW - seconds(1), {"archive": 1}) == []
        ((claimed, its_event),) = await store.claim_deliveries(NOW, {"archive": 1, "other": 5})
        assert its_event == event
        assert claimed == replace(delivery, state=DeliveryState.RUNNING, attempts=1)
        assert await claim_ids(store) == []

    async def test_a_delivery_may_be_claimed_with_the_write_that_makes_it(self, open_store):
        async with open_store() as a, open_store() as b:
            job = await self.seed_job(a)
            settlement = await draft_event(a, job, handlers=("archive", "log"), state=DeliveryState.RUNNING, attempts=1)
            other = await draft_event(a, await self.seed_job(a))
            assert await a.settle_and_claim([settlement, other]) == (
                [True, True],
                [(delivery, settlement.events[0]) for delivery in settlement.deliveries],
            )
            assert await claim_ids(b, archive=9, log=9) == [other.deliveries[0].id]
            first, second = settlement.deliveries
            assert not await self.finish(b, first.id)  # only who holds the claim
            assert await self.finish(a, first.id)
            await a.release_deliveries([second.id])
            ((again, _),) = await b.claim_deliveries(NOW, {"log": 1})
            assert (again.id, again.attempts) == (second.id, 1)

    async def test_what_is_not_written_is_not_claimed(self, store):
        job = await self.seed_job(store)
        settlement = await draft_event(store, job, state=DeliveryState.RUNNING, attempts=1)
        await put_event(store, job, handlers=())
        assert await store.settle_and_claim([settlement]) == ([False], [])
        assert await store.read_delivery(settlement.deliveries[0].id) is None

    async def test_what_an_earlier_one_holds_back_is_not_claimed_with_its_write(self, store):
        job = await self.seed_job(store)
        (first,), _ = await put_and_claim(store, job, "job.queued", sequence=1)
        (second, other), claimed = await put_and_claim(store, job, "job.stored", sequence=2, handlers=("archive", "log"))
        assert [delivery.id for delivery, _ in claimed] == [other.id]
        held = await store.read_delivery(second.id)
        assert (held.state, held.attempts) == (DeliveryState.PENDING, 0)
        await self.finish(store, first.id)
        assert await claim_ids(store) == [second.id]

    async def test_two_events_of_one_settlement_are_not_claimed_together(self, store):
        job = await self.seed_job(store)
        one = await draft_event(store, job, "job.queued", sequence=1, state=DeliveryState.RUNNING, attempts=1)
        two = await draft_event(store, job, "job.stored", sequence=2, state=DeliveryState.RUNNING, attempts=1)
        both = replace(two, events=one.events + two.events, deliveries=one.deliveries + two.deliveries)
        _, claimed = await store.settle_and_claim([both])
        assert claimed == [(one.deliveries[0], one.events[0])]
        await self.finish(store, one.deliveries[0].id)
        assert await claim_ids(store) == [two.deliveries[0].id]

    async def test_what_is_not_claimed_waits_for_the_earlier_one_of_its_settlement_that_is(self, store):
        job = await self.seed_job(store)
        one = await draft_event(store, job, "job.queued", sequence=1, state=DeliveryState.RUNNING, attempts=1)
        two = await draft_event(store, job, "job.stored", sequence=2)
        both = replace(two, events=one.events + two.events, deliveries=one.deliveries + two.deliveries)
        _, claimed = await store.settle_and_claim([both])
        assert claimed == [(one.deliveries[0], one.events[0])]
        assert await claim_ids(store) == []
        await self.finish(store, one.deliveries[0].id)
        assert await claim_ids(store) == [two.deliveries[0].id]

    async def test_what_is_claimed_with_its_write_stands_where_emitted_events_have_pushed_it(self, store):
        job = await self.seed_job(store)
        settlement = await draft_event(store, job, "job.stored", sequence=1, state=DeliveryState.RUNNING, attempts=1)
        assert await store.emit(make_event(job, "acme.note", sequence=0), [])
        _, ((claimed, event),) = await store.settle_and_claim([settlement])
        assert (claimed.sequence, int(event.sequence)) == (2, 2)
        assert await store.read_delivery(claimed.id) == claimed

    async def test_a_dead_node_s_first_claims_are_free(self, open_store):
        async with open_store() as a:
            async with open_store() as b:
                (delivery,), _ = await put_and_claim(b, await self.seed_job(b))
            await a.bury_dead_nodes()
            assert await claim_ids(a) == [delivery.id]

    async def test_two_nodes_never_claim_the_same_delivery(self, open_store):
        async with open_store() as a, open_store() as b:
            for _ in range(20):
                await put_event(a, await self.seed_job(a), handlers=("archive", "log"))
            batches = await asyncio.gather(*(node.claim_deliveries(NOW, {"archive": 3, "log": 2}) for node in (a, b) * 5))
        ids = [delivery.id for batch in batches for delivery, _ in batch]
        assert len(ids) == len(set(ids)) == 40

    async def test_no_handler_gets_more_than_it_has_room_for(self, store):
        for _ in range(3):
            await put_event(store, await self.seed_job(store), handlers=("a", "b", "c"))
        claimed = await store.claim_deliveries(NOW, {"a": 2, "b": 1, "c": 0})
        assert sorted(delivery.handler for delivery, _ in claimed) == ["a", "a", "b"]

    async def test_those_whose_links_die_soonest_go_first_then_the_oldest(self, store):
        made = {}
        for name, at, urgent_at in (
            ("young", NOW, None),
            ("old", NOW - seconds(9), None),
            ("soon", NOW, NOW + seconds(60)),
            ("sooner", NOW, NOW + seconds(30)),
        ):
            _, (delivery,) = await put_event(store, await self.seed_job(store), at=at, urgent_at=urgent_at)
            made[name] = delivery.id
        assert await claim_ids(store) == [made[name] for name in ("sooner", "soon", "old", "young")]

    async def test_the_deliveries_of_a_job_to_a_handler_start_in_event_order(self, store):
        job = await self.seed_job(store)
        _, (first,) = await put_event(store, job, "job.queued", sequence=1)
        _, (second,) = await put_event(store, job, "job.succeeded", sequence=2)
        assert await claim_ids(store) == [first.id]
        assert await claim_ids(store) == []
        assert await self.finish(store, first.id, DeliveryState.RETRYING, next_attempt_at=NOW + seconds(60))
        assert await claim_ids(store, NOW + seconds(59)) == []
        assert await claim_ids(store, NOW + seconds(60)) == [first.id]
        await self.finish(store, first.id, at=NOW + seconds(61))
        assert await claim_ids(store, NOW + seconds(61)) == [second.id]

    async def test_a_dead_delivery_holds_nothing_back(self, store):
        job = await self.seed_job(store)
        _, (first,) = await put_event(store, job, "job.succeeded", sequence=1)
        _, (second,) = await put_event(store, job, "job.stored", sequence=2)
        await claim_ids(store)
        await self.finish(store, first.id, DeliveryState.DEAD)
        assert await claim_ids(store) == [second.id]

    async def test_other_jobs_and_handlers_are_not_held_back(self, store):
        job, other = await self.seed_job(store), await self.seed_job(store)
        _, (first, elsewhere) = await put_event(store, job, sequence=1, handlers=("archive", "log"))
        _, (held, also_held) = await put_event(store, job, "job.stored", sequence=2, handlers=("archive", "log"))
        _, (free,) = await put_event(store, other)
        assert set(await claim_ids(store, archive=9, log=9)) == {first.id, elsewhere.id, free.id}
        await self.finish(store, elsewhere.id)
        assert await claim_ids(store, archive=9, log=9) == [also_held.id]
        assert (await store.read_delivery(held.id)).state is DeliveryState.PENDING

    async def test_submitted_and_processing_hold_back_no_final_event(self, store):
        job = await self.seed_job(store)
        _, (submitted,) = await put_event(store, job, "job.submitted", sequence=1)
        _, (processing,) = await put_event(store, job, "job.processing", sequence=2)
        _, (final,) = await put_event(store, job, "job.failed", sequence=3)
        assert await claim_ids(store) == [submitted.id, final.id]
        await self.finish(store, submitted.id)
        assert await claim_ids(store) == [processing.id]

    async def test_an_event_about_no_job_waits_for_nothing(self, store):
        for _ in range(2):
            event = make_event(None, "receiver.started")
            assert await store.emit(event, [make_delivery(event)])
        assert len(await claim_ids(store)) == 2

    async def test_a_released_delivery_counts_as_no_attempt(self, store):
        job = await self.seed_job(store)
        _, (delivery,) = await put_event(store, job)
        await claim_ids(store)
        await store.release_deliveries([delivery.id])
        assert await store.read_delivery(delivery.id) == delivery
        ((again, _),) = await store.claim_deliveries(NOW, {"archive": 1})
        assert again.attempts == 1

    async def test_only_the_node_that_holds_the_claim_finishes_and_only_once(self, open_store):
        async with open_store() as a, open_store() as b:
            job = await self.seed_job(a)
            _, (delivery,) = await put_event(a, job)
            await claim_ids(a)
            assert not await self.finish(b, delivery.id)
            assert await self.finish(a, delivery.id, last_error="none")
            assert not await self.finish(a, delivery.id, DeliveryState.DEAD)
            done = await b.read_delivery(delivery.id)
        assert (done.state, done.last_error, done.attempts) == (DeliveryState.DONE, "none", 1)

    async def test_what_a_run_emits_and_stores_is_put_on_its_job_without_a_new_version(self, store):
        job = await self.seed_job(store, outputs=(make_output(), make_output(index=1)), remote_id="r", status=Status.SUCCEEDED)
        await put_event(store, job)
        emitted = make_event(job, "job.stored")
        follow = make_delivery(emitted, "log")
        before = await load(store, make_family_of(job))
        assert await store.emit(emitted, [follow])
        assert await store.record_stored(job.id, 1, make_stored(), NOW)
        after = await load(store, make_family_of(job))
        assert after.submission.version == before.submission.version
        assert [output.stored for output in after.jobs[0].outputs] == [None, make_stored()]
        ((_, event),) = await store.claim_deliveries(NOW, {"log": 1})
        assert event == replace(emitted, sequence="2")
        assert (await store.read_delivery(follow.id)).sequence == after.jobs[0].sequence == 2

    async def test_an_event_with_a_known_id_is_not_emitted_again(self, store):
        job = await self.seed_job(store)
        event = make_event(job, "job.stored")
        assert await store.emit(event, [make_delivery(event, "a")])
        assert not await store.emit(event, [make_delivery(event, "b")])
        assert (await store.read_job(job.id)).sequence == 1
        assert len((await store.read_deliveries(DeliveryFilter(), 10, None)).rows) == 1

    async def test_what_is_stored_is_put_on_its_output(self, store):
        job = await self.seed_job(store, outputs=(make_output(),), remote_id="r")
        assert await store.record_stored(job.id, 0, make_stored(), NOW)
        assert not await store.record_stored(job.id, 1, make_stored(), NOW)
        assert not await store.record_stored("job_none", 0, make_stored(), NOW)
        assert (await store.read_job(job.id)).outputs == (make_output(stored=make_stored()),)

    async def test_a_replay_starts_anew_out_of_order(self, store):
        job = await self.seed_job(store)
        _, (first,) = await put_event(store, job, "job.succeeded", sequence=1)
        _, (second,) = await put_event(store, job, "job.stored", sequence=2)
        await claim_ids(store)
        await self.finish(store, first.id, DeliveryState.RETRYING, next_attempt_at=NOW + seconds(999))
        later = NOW + seconds(5)
        assert await store.replay(DeliveryFilter(handler="archive"), later) == 1
        replayed = await store.read_delivery(first.id)
        assert (replayed.state, replayed.attempts, replayed.next_attempt_at) == (DeliveryState.PENDING, 0, later)
        assert set(await claim_ids(store, later)) == {first.id, second.id}

    async def test_a_replay_takes_what_matches_and_nothing_that_waits_or_runs(self, store):
        dead, done, running, other = [(await put_event(store, await self.seed_job(store)))[1][0] for _ in range(4)]
        await claim_ids(store)
        await self.finish(store, dead.id, DeliveryState.DEAD)
        await self.finish(store, done.id)
        await self.finish(store, other.id, DeliveryState.DEAD)
        assert await store.replay(DeliveryFilter(state=DeliveryState.DEAD, job_id=dead.job_id), NOW) == 1
        assert await store.replay(DeliveryFilter(), NOW, delivery_id=running.id) == 0
        assert await store.replay(DeliveryFilter(), NOW, delivery_id=done.id) == 1
        assert await store.replay(DeliveryFilter(event_type="job.succeeded"), NOW) == 1
        assert set(await claim_ids(store)) == {dead.id, done.id, other.id}


class Outbox:
    """The rules of `claim_deliveries` once more, written for clarity: looks at every delivery each time."""

    def __init__(self):
        self.deliveries = {}

    def is_held(self, later):
        return later.is_ordered and any(
            earlier.job_id == later.job_id
            and earlier.handler == later.handler
            and earlier.sequence < later.sequence
            and earlier.is_ordered
            and earlier.state in (DeliveryState.PENDING, DeliveryState.RUNNING, DeliveryState.RETRYING)
            and not (later.event_type == "job.succeeded" and earlier.event_type in ("job.submitted", "job.processing"))
            for earlier in self.deliveries.values()
        )

    def add(self, made):
        """Which of them are claimed at once."""
        self.deliveries |= {delivery.id: delivery for delivery in made}
        running = [delivery for delivery in made if delivery.state is DeliveryState.RUNNING]
        held = [delivery.id for delivery in running if self.is_held(delivery)]
        for delivery_id in held:
            self.change(delivery_id, state=DeliveryState.PENDING, attempts=0)
        return [delivery.id for delivery in running if delivery.id not in held]

    def claim(self, now, room):
        due = [
            one
            for one in self.deliveries.values()
            if one.state in (DeliveryState.PENDING, DeliveryState.RETRYING) and one.next_attempt_at <= now and not self.is_held(one)
        ]
        due.sort(key=lambda one: (one.urgent_at is None, one.urgent_at, one.created_at))
        claimed = [one for handler, most in room.items() for one in [one for one in due if one.handler == handler][:most]]
        for one in claimed:
            self.change(one.id, state=DeliveryState.RUNNING, attempts=one.attempts + 1)
        return [one.id for one in claimed]

    def change(self, delivery_id, **fields):
        self.deliveries[delivery_id] = replace(self.deliveries[delivery_id], **fields)

    def pick(self, random, *states):
        return random.choice([one for one in self.deliveries.values() if one.state in states] or [None])


@pytest.mark.parametrize("seed_number", range(6))
async def test_any_history_of_the_outbox_claims_by_the_rules(store, seed_number):
    random = Random(seed_number)
    outbox, now, handlers = Outbox(), NOW, ("archive", "log")
    families = [make_running_family() for _ in range(2)]
    await seed(store, *families)
    sequences = [0, 0]
    for _ in range(120):
        now += seconds(1)
        step = random.choice(("event", "event", "claim", "claim", "finish", "finish", "finish", "release", "replay"))
        if step == "event":
            which = random.randrange(2)
            sequences[which] += 1
            event_type = random.choice(("job.submitted", "job.processing", "job.succeeded", "job.stored"))
            put = random.choice((put_event, put_and_claim))
            made, claimed = await put(store, families[which].jobs[0], event_type, sequence=sequences[which], handlers=handlers, at=now)
            if put is put_event:
                made, claimed = claimed, []
            assert [delivery.id for delivery, _ in claimed] == outbox.add(made)
        elif step == "claim":
            room = {handler: random.randrange(4) for handler in handlers}
            assert await claim_ids(store, now, **room) == outbox.claim(now, room)
        elif step == "finish" and (running := outbox.pick(random, DeliveryState.RUNNING)):
            end = random.choice((DeliveryState.DONE, DeliveryState.DEAD, DeliveryState.RETRYING, DeliveryState.RETRYING))
            outbox.change(running.id, state=end, next_attempt_at=now + seconds(random.randrange(9)), updated_at=now)
            assert await store.finish_deliveries([outbox.deliveries[running.id]]) == [True]
        elif step == "release" and (running := outbox.pick(random, DeliveryState.RUNNING)):
            state = DeliveryState.RETRYING if running.attempts > 1 else DeliveryState.PENDING
            outbox.change(running.id, state=state, attempts=running.attempts - 1)
            await store.release_deliveries([running.id])
        elif step == "replay" and (ended := outbox.pick(random, DeliveryState.DEAD, DeliveryState.DONE, DeliveryState.RETRYING)):
            outbox.change(ended.id, state=DeliveryState.PENDING, attempts=0, next_attempt_at=now, is_ordered=False)
            assert await store.replay(DeliveryFilter(), now, ended.id) == 1


def make_family_of(job):
    return Family(make_submission(id=job.submission_id), (job,))


class TestReading:
    async def test_a_page_leads_to_the_next_until_the_last(self, store):
        families = [make_running_family(created_at=NOW + seconds(n // 2)) for n in range(7)]
        await seed(store, *families)
        seen, cursor = [], None
        for _ in range(4):
            page = await store.read_jobs(JobFilter(), 2, cursor)
            seen += [job.id for job in page.rows]
            cursor = page.cursor
        assert cursor is None
        assert seen == [family.jobs[0].id for family in sorted(families, key=lambda f: (f.jobs[0].created_at, f.jobs[0].id), reverse=True)]

    async def test_every_filter_of_jobs_narrows(self, store):
        wanted = make_running_family(created_at=NOW + seconds(5), metadata={"user": "42", "team": "red"}, model="m", provider="oxen")
        others = [
            make_running_family(metadata={"user": "42", "team": "blue"}),
            make_running_family(metadata={"user": "4"}),
            make_running_family(created_at=NOW + seconds(9), job={"status": Status.FAILED}),
        ]
        await seed(store, wanted, *others)
        for narrow in (
            JobFilter(provider="oxen"),
            JobFilter(model="m"),
            JobFilter(submission_id=wanted.submission.id),
            JobFilter(metadata={"team": "red"}),
            JobFilter(metadata={"user": "42", "team": "red"}),
            JobFilter(created_after=NOW + seconds(5), created_before=NOW + seconds(9)),
            JobFilter(created_after=NOW + seconds(5), status=Status.QUEUED),
            JobFilter(metadata={"user": "42"}, created_after=NOW + seconds(1)),
        ):
            assert (await store.read_jobs(narrow, 10, None)).rows == wanted.jobs

    @pytest.mark.parametrize("cursor", ["", "x", "é", "eyJhIjoxfQ", "W10", "WzEsMl0", "Wzk5OTk5OTk5OTk5OTk5OTk5OTk5LCJhIl0"])
    async def test_a_malformed_cursor_is_refused(self, store, cursor):
        for listing in (
            store.read_jobs(JobFilter(), 1, cursor),
            store.read_notices(NoticeFilter(), 1, cursor),
            store.read_deliveries(DeliveryFilter(), 1, cursor),
        ):
            with pytest.raises(Invalid) as refused:
                await listing
            assert refused.value.errors[0]["parameter"] == "cursor"

    async def test_notices_are_listed_newest_first_by_outcome_provider_and_channel(self, store):
        notices = [
            make_notice("sub_1", outcome=outcome, provider=provider, channel=channel)
            for outcome in (None, Outcome.UNREADABLE, Outcome.APPLIED)
            for provider in ("elkapi", "oxen")
            for channel in (Channel.CALLBACK, Channel.STREAM)
        ]
        for notice in notices:
            await store.keep_notice(notice, BOUND)
        newest = notices[::-1]
        assert list((await store.read_notices(NoticeFilter(), 100, None)).rows) == newest
        first = await store.read_notices(NoticeFilter(outcome=Outcome.UNREADABLE), 3, None)
        rest = await store.read_notices(NoticeFilter(outcome=Outcome.UNREADABLE), 3, first.cursor)
        assert [*first.rows, *rest.rows] == [notice for notice in newest if notice.outcome is Outcome.UNREADABLE]
        assert rest.cursor is None
        narrow = NoticeFilter(outcome=Outcome.APPLIED, provider="oxen", channel=Channel.STREAM)
        assert (await store.read_notices(narrow, 9, None)).rows == (notices[-1],)

    async def test_deliveries_are_listed_newest_first_by_every_filter(self, store):
        made = []
        for n in range(4):
            family = make_running_family()
            await seed(store, family)
            _, deliveries = await put_event(
                store, family.jobs[0], "job.failed" if n == 3 else "job.succeeded", at=NOW + seconds(n), handlers=("a", "b")
            )
            made.append(deliveries)
        await store.claim_deliveries(NOW, {"a": 1})
        page = await store.read_deliveries(DeliveryFilter(handler="b"), 3, None)
        rest = await store.read_deliveries(DeliveryFilter(handler="b"), 3, page.cursor)
        assert [one.id for one in (*page.rows, *rest.rows)] == [made[n][1].id for n in (3, 2, 1, 0)]
        for narrow, expected in (
            (DeliveryFilter(state=DeliveryState.RUNNING), {made[0][0].id}),
            (DeliveryFilter(job_id=made[1][0].job_id), {one.id for one in made[1]}),
            (DeliveryFilter(event_type="job.failed", handler="a"), {made[3][0].id}),
            (DeliveryFilter(state=DeliveryState.DONE), set()),
        ):
            assert {one.id for one in (await store.read_deliveries(narrow, 9, None)).rows} == expected

    async def test_who_looks_for_rare_notices_looks_at_so_many_and_may_go_on(self, store, monkeypatch):
        monkeypatch.setattr(listings, "LOOKED_AT", 3)
        rare = make_notice("sub_rare", provider="oxen")
        await store.keep_notice(rare, BOUND)
        for n in range(6):
            await store.keep_notice(make_notice(f"sub_{n}"), BOUND)
        pages, cursor = [], None
        while not pages or cursor is not None:
            page = await store.read_notices(NoticeFilter(provider="oxen"), 2, cursor)
            pages.append([notice.id for notice in page.rows])
            cursor = page.cursor
        assert pages == [[], [], [rare.id]]

    async def test_a_timeline_is_in_order_and_has_its_submissions_stray_notices(self, store):
        family = make_running_family(2)
        await seed(store, family)
        first, second = family.jobs
        call = make_call(family.submission.id, at=NOW)
        stray = make_notice(family.submission.id, at=NOW + seconds(1), outcome=Outcome.MISMATCHED)
        own = make_notice(family.submission.id, at=NOW + seconds(3), outcome=Outcome.APPLIED, job_id=first.id)
        foreign = make_notice(family.submission.id, at=NOW + seconds(2), outcome=Outcome.APPLIED, job_id=second.id)
        event = make_event(first, at=NOW + seconds(2))
        delivery = make_delivery(event, created_at=NOW + seconds(4))
        await settle(store, family, calls=(call,), notices=(own, foreign, stray), events=(event,), deliveries=(delivery,))
        timeline = await store.read_timeline(first.id)
        assert [entry.row for entry in timeline] == [call, stray, event, own, delivery]
        assert [entry.at for entry in timeline] == [NOW + seconds(n) for n in range(5)]
        assert await store.read_timeline("job_none") is None

    async def test_bodies_are_read_up_to_a_sum_and_only_where_they_are_wanted(self, store):
        family = make_running_family()
        await seed(store, family)
        (job,) = family.jobs
        notices = [
            make_notice(family.submission.id, at=NOW + seconds(n), outcome=Outcome.APPLIED, job_id=job.id, body=body)
            for n, body in enumerate((b"\0" * 10, b"", "bücher".encode() * 5, b"x", b""))
        ]
        for notice in notices:
            await store.keep_notice(notice, BOUND)
        whole = [notice.body for notice in notices]
        for most, expected, truncated in (
            (1_000, whole, set()),
            (10 + 35 + 1, whole, set()),
            (10 + 35, [*whole[:3], b"", b""], {3}),
            (15, [whole[0], b"", whole[2][:5], b"", b""], {2, 3}),
            (1, [b"\0", b"", b"", b"", b""], {0, 2, 3}),
            (0, [b""] * 5, set()),
        ):
            entries = await store.read_timeline(job.id, most)
            assert [entry.row.body for entry in entries] == expected
            assert [entry.is_truncated for entry in entries] == [n in truncated for n in range(5)]
        page = await store.read_notices(NoticeFilter(), 3, None, 2)
        assert [notice.body for notice in page.rows] == [b"", b"x", whole[2][:1]]
        assert page.truncated == {notices[2].id}
        page = await store.read_notices(NoticeFilter(), 3, None, 0)
        assert ([notice.body for notice in page.rows], page.truncated) == ([b""] * 3, set())

    async def test_events_are_read_in_order_by_position(self, store):
        assert await store.newest_event() is None
        family = make_running_family(provider="oxen")
        await seed(store, family)
        about_job, _ = await put_event(store, family.jobs[0])
        about_us = make_event(None, "receiver.started", depth=2)
        await store.emit(about_us, [])
        (first, one, provider), (second, two, nobody) = await store.read_events(0, 10)
        assert (one, provider, two, nobody) == (about_job, "oxen", about_us, None)
        assert first < second
        assert await store.newest_event() == (second, about_us.id)
        assert await store.read_events(first, 10) == [(second, about_us, None)]
        assert await store.find_event_position(about_us.id) == second
        assert await store.find_event_position("evt_none") is None

    async def test_nothing_is_found_for_unknown_ids(self, store):
        assert await store.read_job("job_none") is None
        assert await store.read_notice("ntc_none") is None
        assert await store.read_delivery("dlv_none") is None
        assert await store.load_families(["sub_none"]) == {}
        assert await store.load_to_settle(["sub_none"]) == ({}, {})

    async def test_counts_tell_what_is_open(self, store):
        family = make_running_family(2)
        await seed(store, family, make_family(provider="oxen"), make_running_family(job={"status": Status.FAILED}))
        await put_event(store, family.jobs[0], handlers=("a", "b"))
        await store.claim_deliveries(NOW, {"a": 1})
        assert await store.count_jobs() == {("elkapi", "queued"): 2, ("oxen", "submitting"): 1}
        assert await store.open_accounts() == ["elkapi", "oxen"]
        assert [await store.count_open(*asked) for asked in (("elkapi", 9), ("elkapi", 1), ("huzz", 9))] == [2, 1, 0]
        assert await store.count_deliveries() == {("a", "running"): 1, ("b", "pending"): 1}

    async def test_the_oldest_notice_tells_how_far_the_settler_is_behind(self, store):
        assert await store.inbox_oldest() is None
        first, second = make_notice("sub_1", at=NOW - seconds(9)), make_notice("sub_2")
        for notice in (first, second):
            await store.keep_notice(notice, BOUND)
        assert await store.inbox_oldest() == first.at
        await store.claim_notices(1)
        assert await store.inbox_oldest() == first.at
        await store.set_aside_notices([NoticeOutcome(id=first.id, outcome=Outcome.ORPHAN)])
        assert await store.inbox_oldest() == second.at

    async def test_the_latest_callback_is_known_among_other_notices(self, store):
        assert await store.last_callback_at() is None
        poll = make_notice(None, channel=Channel.POLL, at=NOW + seconds(5))
        for notice in (make_notice("sub_1", at=NOW - seconds(9)), make_notice("sub_2"), poll):
            await store.keep_notice(notice, BOUND)
        assert await store.last_callback_at() == NOW

    async def test_jobs_that_are_asked_about_for_want_of_news_are_counted(self, store):
        silent, fresh, ended = make_running_family(), make_running_family(), make_running_family(job={"status": Status.EXPIRED})
        await seed(store, silent, fresh, ended)
        for family, attempts in [(silent, 2), (fresh, 0), (ended, 3)]:
            await settle(store, family, polls=(make_poll(family.jobs[0], attempts=attempts),))
        assert await store.count_overdue() == {"elkapi": 1}

    async def test_costs_of_an_account_add_up_without_what_is_refunded(self, store):
        assert await store.sum_costs("elkapi", NOW) == 0
        cost = {"cost": Cost(1.5, "credits")}
        await seed(
            store,
            make_running_family(2, job=cost, created_at=NOW),
            make_running_family(job=cost | {"status": Status.FAILED}, created_at=NOW),
            make_running_family(job=cost, created_at=NOW - seconds(1)),
            make_running_family(job=cost, provider="oxen", created_at=NOW),
            make_family(created_at=NOW),
        )
        assert await store.sum_costs("elkapi", NOW) == 3
        assert await store.sum_costs("elkapi", NOW - DAY) == 4.5

    async def test_recent_deliveries_of_a_handler_are_counted(self, store):
        family = make_running_family()
        await seed(store, family)
        made = [make_delivery(make_event(family.jobs[0]), created_at=NOW + seconds(number)) for number in range(4)]
        await settle(store, family, deliveries=(*made, make_delivery(make_event(family.jobs[0]), handler="other", created_at=NOW)))
        assert await store.count_recent(made[0].handler, NOW + seconds(1), 10) == 3
        assert await store.count_recent(made[0].handler, NOW, 2) == 2
        assert await store.count_recent("nobody", NOW, 10) == 0

    async def test_costs_are_added_up_by_what_is_asked_for(self, store):
        """Tenths add up to tenths, units are never mixed, days are those of UTC."""
        assert await store.add_up_costs(JobFilter(), ("provider",), 10) == []
        midnight = NOW.replace(hour=0)
        await seed(
            store,
            make_running_family(job={"cost": Cost(0.1, "USD")}, metadata={"team": "red"}, created_at=midnight - seconds(0.000001)),
            make_running_family(2, job={"cost": Cost(0.2, "USD")}, metadata={"team": 'a "blue" one', "$.team": "1"}, created_at=midnight),
            make_running_family(job={"cost": Cost(12, "credits"), "status": Status.EXPIRED}, model=None, provider="oxen", created_at=NOW),
            make_running_family(job={"cost": Cost(99, "USD"), "status": Status.FAILED}, created_at=NOW),
            make_running_family(job={"cost": Cost(99, "USD"), "status": Status.CANCELLED}, created_at=NOW),
            make_running_family(created_at=NOW - 400 * DAY),
        )

        async def sums(*by, **filter):
            found = await store.add_up_costs(JobFilter(**filter), by, 10)
            return {(*each.group, each.unit): (each.amount, each.jobs) for each in found}

        assert await sums("provider", "model") == {("elkapi", "elk-1", "USD"): (0.5, 3), ("oxen", None, "credits"): (12, 1)}
        assert await sums("day") == {("2026-06-30", "USD"): (0.1, 1), ("2026-07-01", "USD"): (0.4, 2), ("2026-07-01", "credits"): (12, 1)}
        assert await sums("metadata.team") == {('a "blue" one', "USD"): (0.4, 2), ("red", "USD"): (0.1, 1), (None, "credits"): (12, 1)}
        assert await sums("metadata.$.team", provider="elkapi") == {("1", "USD"): (0.4, 2), (None, "USD"): (0.1, 1)}
        assert await sums("operation", "media", created_after=midnight) == {
            ("default", "image", "credits"): (12, 1),
            ("default", "image", "USD"): (0.4, 2),
        }
        assert await sums("model", created_before=midnight, model="elk-1") == {("elk-1", "USD"): (0.1, 1)}
        assert await sums("provider", metadata={"team": "red"}) == {("elkapi", "USD"): (0.1, 1)}
        ordered = await store.add_up_costs(JobFilter(), ("day",), 3)
        assert [each.amount for each in ordered] == [12, 0.4, 0.1]
        assert await store.add_up_costs(JobFilter(), ("day",), 2) is None, "there would be more"

    async def test_a_key_that_was_used_is_known(self, store):
        await seed(store, make_family(api_key_id="a", idempotency_key="order-1"))
        assert await store.has_submission("a", "order-1")
        assert not await store.has_submission("b", "order-1")
        assert not await store.has_submission("a", "order-2")

    async def test_counters_add_up(self, store):
        await asyncio.gather(*(store.add_counts({("oxen", "polls"): 2, ("", "refused"): 1}) for _ in range(5)))
        assert await store.read_counters() == {("oxen", "polls"): 10, ("", "refused"): 5}


class TestUpkeep:
    async def test_a_closed_node_gives_back_all_that_it_had_claimed(self, open_store):
        async with open_store() as b:
            async with open_store() as a:
                waiting, running = make_family(), make_running_family()
                await seed(a, waiting, running)
                await settle(a, running, polls=(make_poll(running.jobs[0]),))
                await put_event(a, running.jobs[0])
                await a.keep_notice(make_notice(running.submission.id), BOUND)
                assert await a.take_lease("stream:oxen", NOW, DAY)
                assert await a.claim_submissions(NOW, 1, ["elkapi"])
                assert await a.claim_polls(NOW, 1, ["elkapi"])
                assert await a.claim_notices(1)
                assert await claim_ids(a)
                assert await b.bury_dead_nodes() == 0
                assert not await b.take_lease("stream:oxen", NOW, DAY)
            assert await b.bury_dead_nodes() == 0
            assert await b.claim_submissions(NOW, 1, ["elkapi"])
            assert await b.claim_polls(NOW, 1, ["elkapi"])
            (notice,) = await b.claim_notices(1)
            assert notice.tries == 2
            ((delivery, _),) = await b.claim_deliveries(NOW, {"archive": 1})
            assert delivery.attempts == 2
            assert await b.take_lease("stream:oxen", NOW, DAY)

    async def test_a_change_by_any_node_ends_the_wait(self, open_store):
        async with open_store() as a, open_store() as b:
            while await b.wait_for_change(timedelta(0)):
                pass
            assert not await b.wait_for_change(timedelta(milliseconds=60))
            for writer in (a, b):
                waiting = asyncio.create_task(b.wait_for_change(timedelta(seconds=20)))
                await writer.add_counts({("", "n"): 1})
                async with asyncio.timeout(5):
                    assert await waiting

    async def test_what_was_written_between_two_waits_ends_the_second(self, open_store):
        async with open_store() as a, open_store() as b:
            while await b.wait_for_change(timedelta(0)):
                pass
            await a.add_counts({("", "n"): 1})
            assert await b.wait_for_change(timedelta(seconds=20))

    async def test_looking_for_work_that_is_not_there_wakes_nobody(self, open_store):
        async with open_store() as a, open_store() as b:
            while await b.wait_for_change(timedelta(0)):
                pass
            for node in (a, b):
                await node.claim_submissions(NOW, 1, ["elkapi"])
                await node.claim_polls(NOW, 1, ["elkapi"])
                await node.claim_notices(1)
                await claim_ids(node)
            assert not await b.wait_for_change(timedelta(0))

    async def test_a_lease_is_held_renewed_dropped_and_runs_out(self, open_store):
        async with open_store() as a, open_store() as b:
            assert await a.take_lease("x", NOW, seconds(10))
            assert await a.take_lease("x", NOW + seconds(5), seconds(10))
            assert not await b.take_lease("x", NOW + seconds(14), seconds(10))
            await b.drop_lease("x")
            assert not await b.take_lease("x", NOW + seconds(14), seconds(10))
            assert await b.take_lease("x", NOW + seconds(15), seconds(10))
            await b.drop_lease("x")
            assert await a.take_lease("x", NOW + seconds(15), seconds(10))

    async def test_tokens_are_never_given_over_the_limit(self, open_store):
        async with open_store() as a, open_store() as b:
            granted = 0
            for tick in range(100):
                at = NOW + seconds(tick / 10)
                answers = await asyncio.gather(*(node.take_tokens("oxen", at, 2.0, 3, 2) for node in (a, b)))
                granted += sum(count for count, _ in answers)
            assert granted == 3 + int(9.9 * 2)

    async def test_an_empty_bucket_says_when_there_is_room(self, store):
        assert await store.take_tokens("x", NOW, 1.0, 2, 5) == (2, NOW + seconds(1))
        count, room_at = await store.take_tokens("x", NOW, 1.0, 2, 1)
        assert (count, room_at) == (0, NOW + seconds(1))
        assert (await store.take_tokens("x", room_at, 1.0, 2, 1))[0] == 1
        assert await store.take_tokens("other", NOW, 1.0, 2, 1) == (1, NOW)

    async def test_breakers_are_shared(self, open_store):
        async with open_store() as a, open_store() as b:
            assert await a.count_failure("oxen", NOW, "503") == 1
            assert sorted(await asyncio.gather(*(node.count_failure("oxen", NOW, "503") for node in (a, b) * 2))) == [2, 3, 4, 5]
            for until in (NOW + seconds(9), NOW + seconds(5)):
                await b.leave_alone("oxen", until)
            broken = Breaker(provider="oxen", failures=5, open_until=NOW + seconds(9), last_error="503", last_error_at=NOW)
            assert await a.read_breakers() == {"oxen": broken}
            assert [await node.forgive("oxen") for node in (a, b)] == [True, False]
            assert await b.read_breakers() == {"oxen": replace(broken, failures=0, open_until=None)}

    async def test_a_final_submission_is_pruned_with_all_that_belongs_to_it(self, store):
        family = make_running_family(metadata={"user": "42"}, idempotency_key="k")
        await seed(store, family)
        job = replace(family.jobs[0], status=Status.SUCCEEDED, finished_at=NOW)
        event, _ = await put_event(store, family.jobs[0])
        ((delivery, _),) = await store.claim_deliveries(NOW, {"archive": 1})
        await store.keep_notice(make_notice(family.submission.id), BOUND)
        await settle(store, family, jobs=(replace(job, sequence=1),), calls=(make_call(family.submission.id),))
        assert await self.prune(store, NOW + 31 * DAY, raw_retention=999 * DAY) == 0  # its delivery is open
        await store.finish_deliveries([replace(delivery, state=DeliveryState.DONE)])
        assert await self.prune(store, NOW + 30 * DAY, raw_retention=999 * DAY) == 0
        assert await self.prune(store, NOW + 31 * DAY) == 1
        assert await self.prune(store, NOW + 31 * DAY) == 0
        assert await store.read_job(job.id) is None
        assert await store.find_event_position(event.id) is None
        assert (await store.read_notices(NoticeFilter(), 9, None)).rows == ()
        assert (await store.read_deliveries(DeliveryFilter(), 9, None)).rows == ()
        assert (await store.read_jobs(JobFilter(metadata={"user": "42"}), 9, None)).rows == ()
        assert isinstance(await store.create_submission(make_family(idempotency_key="k")), Family)

    async def test_an_open_job_or_a_delivery_that_died_lately_keeps_its_submission(self, store):
        half_open, died = make_running_family(2), make_running_family()
        await seed(store, half_open, died)
        await settle(store, half_open, jobs=(replace(half_open.jobs[0], status=Status.FAILED, finished_at=NOW),))
        await settle(store, died, jobs=(replace(died.jobs[0], status=Status.FAILED, finished_at=NOW),))
        await put_event(store, died.jobs[0])
        ((delivery, _),) = await store.claim_deliveries(NOW, {"archive": 1})
        await settle(store, died, jobs=(replace(died.jobs[0], status=Status.FAILED, finished_at=NOW, sequence=1),))
        await store.finish_deliveries([replace(delivery, state=DeliveryState.DEAD, updated_at=NOW + 20 * DAY)])
        assert await self.prune(store, NOW + 40 * DAY, raw_retention=999 * DAY) == 0
        assert await self.prune(store, NOW + 51 * DAY, raw_retention=999 * DAY) == 1
        assert await store.read_job(half_open.jobs[0].id) is not None

    async def test_pruning_takes_no_more_than_its_limit(self, store):
        await seed(store, *(make_running_family(job={"status": Status.FAILED, "finished_at": NOW}) for _ in range(5)))
        counts = [await self.prune(store, NOW + 31 * DAY, raw_retention=999 * DAY, limit=2) for _ in range(4)]
        assert counts == [2, 2, 1, 0]

    async def test_bodies_are_emptied_after_their_own_time(self, store):
        family = make_running_family()
        await seed(store, family)
        (job,) = family.jobs
        own = make_notice(family.submission.id, job_id=job.id, outcome=Outcome.APPLIED)
        stray = make_notice(family.submission.id, outcome=Outcome.MISMATCHED)
        done = replace(job, status=Status.FAILED, finished_at=NOW)
        await settle(store, family, jobs=(done,), notices=(own, stray))
        assert await self.prune(store, NOW + 6 * DAY) == 0
        while await self.prune(store, NOW + 8 * DAY):
            pass
        assert [(await store.read_notice(notice.id)).body for notice in (own, stray)] == [b"", b""]
        late = make_notice(family.submission.id, job_id=job.id, outcome=Outcome.LATE)
        await settle(store, family, notices=(late,))
        assert await self.prune(store, NOW + 8 * DAY) > 0
        assert (await store.read_notice(late.id)).body == b""
        assert await store.read_job(job.id) == done

    async def test_orphans_and_what_belongs_to_nobody_are_pruned(self, store):
        orphan, young = make_notice("sub_none", at=NOW), make_notice("sub_none", at=NOW + DAY)
        astray = make_notice(None, at=NOW, outcome=Outcome.UNREADABLE)
        event = make_event(None, "receiver.started")
        await store.emit(event, [])
        for notice in (orphan, young, astray):
            await store.keep_notice(notice, BOUND)
        await store.claim_notices(9)
        await store.set_aside_notices([NoticeOutcome(id=notice.id, outcome=Outcome.ORPHAN) for notice in (orphan, young)])
        assert await self.prune(store, NOW + 1.5 * DAY) == 1
        assert await store.read_notice(orphan.id) is None
        assert await store.read_notice(young.id) is not None
        assert await self.prune(store, NOW + 31 * DAY) == 3
        assert await store.read_notice(astray.id) is None
        assert await store.find_event_position(event.id) is None

    async def prune(self, store, now, retention=30 * DAY, raw_retention=7 * DAY, orphan_retention=DAY, limit=100):
        return await store.prune(now, retention, raw_retention, orphan_retention, limit)

    async def test_a_final_job_is_deleted_and_the_submission_with_its_last(self, store):
        family = make_running_family(2, metadata={"user": "42"}, job={"status": Status.SUCCEEDED})
        await seed(store, family)
        before = await load(store, family)
        first, second = before.jobs
        await put_event(store, first)
        notice = make_notice(family.submission.id, job_id=first.id, outcome=Outcome.APPLIED)
        await settle(store, family, notices=(notice,))
        assert await store.delete_job(first.id)
        assert not await store.delete_job(first.id)
        assert await store.read_notice(notice.id) is None
        assert (await store.read_events(0, 9), await store.claim_deliveries(NOW, {"archive": 9})) == ([], [])
        assert (await store.read_jobs(JobFilter(metadata={"user": "42"}), 9, None)).rows == (second,)
        assert await store.delete_job(second.id)
        assert await store.load_families([family.submission.id]) == {}

    async def test_a_job_that_is_not_final_is_not_deleted(self, store):
        family = make_running_family()
        await seed(store, family)
        with pytest.raises(Conflict):
            await store.delete_job(family.jobs[0].id)
        assert await store.read_job(family.jobs[0].id) is not None

    async def test_a_deleted_job_is_not_brought_back_by_what_was_computed_before(self, store):
        family = make_running_family(2, job={"status": Status.SUCCEEDED})
        await seed(store, family)
        before = await load(store, family)
        await store.delete_job(before.jobs[0].id)
        settlement = Settlement(submission=before.submission, version=before.submission.version, jobs=before.jobs)
        assert await store.settle([settlement]) == [False]

    async def test_a_store_that_can_be_written_says_so(self, store):
        await store.check_writable()

    async def test_all_that_was_answered_is_there_after_reopening(self, open_store):
        family = make_running_family()
        async with open_store() as store:
            await seed(store, family)
        async with open_store() as store:
            assert await load(store, family) == family

    async def test_what_a_cancelled_caller_kept_as_its_own_is_free(self, store):
        known = set()
        for turn in range(10):
            task = asyncio.create_task(store.keep_and_claim(make_notice(f"sub_{turn}", tries=1), BOUND))
            await asyncio.wait([task], timeout=turn / 1_000)
            task.cancel()
            await asyncio.wait([task])
            if not task.cancelled():
                known.add(f"sub_{turn}")
        free: set[str] = set()
        async with asyncio.timeout(10):
            while len(free | known) < await store.inbox_depth():
                free |= {notice.submission_id for notice in await store.claim_notices(20)}
        assert not free & known

    async def test_cancelled_callers_never_wedge_the_store(self, store):
        for _ in range(20):
            tasks = [asyncio.create_task(store.keep_notice(make_notice("sub_1"), NoticeBound(callbacks=10**6))) for _ in range(10)]
            await asyncio.sleep(0)
            for task in tasks[::2]:
                task.cancel()
            done = await asyncio.gather(*tasks, return_exceptions=True)
            assert done[1::2] == [True] * 5
        async with asyncio.timeout(5):
            await store.check_writable()

    async def test_what_a_cancelled_caller_claimed_is_given_back(self, store):
        await asyncio.gather(*(store.keep_notice(make_notice(f"sub_{n}"), BOUND) for n in range(20)))
        for _ in range(10):
            task = asyncio.create_task(store.claim_notices(20))
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait([task])
        claimed: list[Notice] = []
        async with asyncio.timeout(10):  # the last one may be given back just behind this claim
            while len(claimed) < 20:
                claimed += await store.claim_notices(20)
        assert len({notice.id for notice in claimed}) == 20

    async def test_what_a_cancelled_caller_claimed_with_its_write_is_given_back(self, store):
        families = [make_running_family() for _ in range(10)]
        await seed(store, *families)
        known = set()
        for turn, family in enumerate(families):
            settlement = await draft_event(store, family.jobs[0], state=DeliveryState.RUNNING, attempts=1)
            task = asyncio.create_task(store.settle_and_claim([settlement]))
            await asyncio.wait([task], timeout=turn / 1_000)  # some before the work, some during it, perhaps some after it
            task.cancel()
            await asyncio.wait([task])
            if not task.cancelled():
                known |= {delivery.id for delivery, _ in task.result()[1]}
        free: set[str] = set()
        async with asyncio.timeout(10):  # until what was written and nobody knows of is free
            while free | known != {delivery.id for delivery in (await store.read_deliveries(DeliveryFilter(), 10, None)).rows}:
                free |= set(await claim_ids(store))
        assert free
        assert not free & known


def make_key(number, **fields):
    return ApiKey(
        **{"id": f"key_{number}", "name": f"name {number}", "scopes": (Scope.READ,), "digest": f"{number:064x}", "created_at": NOW} | fields
    )


class TestKeys:
    async def test_keys_come_back_as_they_were_kept_oldest_first(self, store):
        old, young = make_key(1), make_key(2, scopes=tuple(Scope), created_at=NOW + seconds(1))
        assert [await store.create_key(key) for key in (young, old)] == [True, True]
        assert await store.read_keys() == [old, young]

    async def test_a_name_is_taken_until_its_key_is_revoked(self, store):
        assert await store.create_key(make_key(1, name="ci"))
        assert not await store.create_key(make_key(2, name="ci"))
        assert await store.revoke_key("key_1", NOW + seconds(1))
        assert await store.create_key(make_key(3, name="ci"))
        assert [(key.id, key.revoked_at) for key in await store.read_keys()] == [("key_1", NOW + seconds(1)), ("key_3", None)]

    async def test_a_key_is_revoked_once(self, store):
        await store.create_key(make_key(1))
        assert [await store.revoke_key("key_1", NOW + seconds(number)) for number in (1, 2)] == [True, False]
        assert not await store.revoke_key("key_9", NOW)
        assert [key.revoked_at for key in await store.read_keys()] == [NOW + seconds(1)]
