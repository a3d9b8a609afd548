"""The trace that work belongs to is on disk with it, whatever the store."""

from datetime import timedelta

import msgspec

from receiver.model import Status
from receiver.stores.terms import Settlement
from tests.factories import NOW, make_delivery, make_event, make_family, make_poll, make_running_family

ONE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
OTHER = "00-0af7651916cd43dd8448eb211c80319c-00f067aa0ba902b7-01"


async def test_a_job_keeps_the_trace_of_the_request_that_made_it(store):
    family = make_family(2, job={"traceparent": ONE})
    await store.create_submission(family)
    claimed = (await store.claim_submissions(NOW + timedelta(days=1), 5, [family.submission.provider]))[0]
    assert claimed.traceparent == ONE
    changed = msgspec.structs.replace(claimed.jobs[0], status=Status.QUEUED, traceparent=None)
    settlement = Settlement(submission=claimed.submission, version=claimed.submission.version, jobs=(changed,))
    assert await store.settle([settlement]) == [True]
    kept = (await store.load_families([family.submission.id]))[family.submission.id]
    assert [job.traceparent for job in kept.jobs] == [ONE, ONE]


async def test_a_poll_and_a_delivery_come_with_their_traces(store):
    family = make_running_family(job={"traceparent": ONE, "remote_id": "r"})
    await store.create_submission(family)
    (job,) = family.jobs
    event = make_event(job, traceparent=OTHER)
    settlement = Settlement(
        submission=family.submission,
        version=0,
        jobs=(job,),
        events=(event,),
        deliveries=(make_delivery(event),),
        polls=(make_poll(job),),
    )
    assert await store.settle([settlement]) == [True]
    later = NOW + timedelta(days=1)
    ((_, asked),) = await store.claim_polls(later, 5, [job.provider])
    ((_, told),) = await store.claim_deliveries(later, {"archive": 1})
    assert (asked.traceparent, told.traceparent) == (ONE, OTHER)
    assert told.envelope()["traceparent"] == OTHER
