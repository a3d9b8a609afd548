"""What a person tells a job to do: cancel, poll now, resolve, settle a notice again, try a handler."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime

from receiver.decisions import Decision
from receiver.errors import Conflict, Invalid, NotFound
from receiver.herald import own_event
from receiver.ids import make_id
from receiver.model import Delivery, Event, Family, Job, Status, SubmissionState
from receiver.providers.values import is_remote_id
from receiver.rules import Change
from receiver.services import Services
from receiver.verdicts import abandon, cancel_unsent, resolve


async def find(services: Services, job_id: str) -> Job:
    job = await services.store.read_job(job_id)
    if job is None:
        raise NotFound(f"There is no job {job_id}.")
    return job


async def cancel_job(services: Services, job_id: str) -> Job:
    """Cancel here what was not sent yet, else ask the provider. NotFound; Conflict where it cannot be cancelled."""
    job = await find(services, job_id)
    if job.is_final:
        raise Conflict(f"The job is {job.status} already.")
    if job.status is Status.UNCONFIRMED:
        raise Conflict("The provider's answer was lost, so there is no id to cancel by. Resolve the job first.")
    account = services.accounts.get(job.provider)
    if job.remote_id is None:
        count = account.spec.operation(job.operation).submit.count if account else None
        if not await decide_on(services, job, lambda family: cancelled(family, job, count.field if count else None, services.clock.now())):
            raise Conflict("The job is being submitted at this moment. Try again in a few seconds.")
        return await find(services, job_id)
    if account is None:
        raise Conflict(f"The provider {job.provider} is not in the configuration any more.")
    if not account.has_cancel(job.operation):
        raise Conflict(f"{job.provider} has no way to cancel a job.")
    await services.store.poll_now(services.clock.now(), job_ids=[job_id], cancel=True)
    services.pulse.strike()
    return await find(services, job_id)


async def poll_job(services: Services, job_id: str) -> Job:
    """Ask the provider about the job now, an expired one too. NotFound; Conflict where there is nothing to ask about."""
    job = await find(services, job_id)
    if job.is_final and not (job.status is Status.EXPIRED and job.is_own_verdict):
        raise Conflict(f"The job is {job.status} already.")
    if job.remote_id is None:
        raise Conflict("The job has no id at the provider yet.")
    if job.provider not in services.accounts:
        raise Conflict(f"The provider {job.provider} is not in the configuration any more.")
    await services.store.poll_now(services.clock.now(), job_ids=[job_id])
    services.pulse.strike()
    return job


async def resolve_job(services: Services, job_id: str, remote_id: str | None = None, give_up: bool = False) -> Job:
    """Tell an unconfirmed job its id at the provider, or give it up. NotFound; Conflict for any other job; Invalid for an id that a
    sibling holds."""
    job = await find(services, job_id)
    if job.status is not Status.UNCONFIRMED:
        raise Conflict(f"Only an unconfirmed job can be resolved; this one is {job.status}.")
    if remote_id is not None and not is_remote_id(remote_id):
        detail = "must be printable text of at most 512 characters, neither blank nor a step in a path"
        raise Invalid([{"pointer": "/remote_id", "detail": detail}])
    now = services.clock.now()

    def change(family: Family) -> Change | None:
        fresh = family.find(job_id)
        if fresh is None or fresh.status is not Status.UNCONFIRMED:
            return None
        if remote_id is not None and any(sibling.remote_id == remote_id for sibling in family.jobs):
            raise Invalid([{"pointer": "/remote_id", "detail": "another job of the submission has this id"}])
        return abandon(family, fresh, now) if give_up or remote_id is None else resolve(family, fresh, remote_id, now)

    if not await decide_on(services, job, change):
        raise Conflict("The job has left the status unconfirmed by itself.")
    if remote_id is not None and not give_up:
        await services.store.poll_now(now, job_ids=[job_id])
    return await find(services, job_id)


async def settle_notice(services: Services, notice_id: str) -> Job | None:
    """Settle an unreadable notice again, after a fix; the job that it is about, where one can be told. NotFound; Conflict."""
    notice = await services.store.read_notice(notice_id)
    if notice is None:
        raise NotFound(f"There is no notice {notice_id}.")
    if not await services.store.reopen_notice(notice_id):
        raise Conflict("Only an unreadable notice can be settled again.")
    seen = services.pulse.beat
    services.pulse.strike()
    for _ in range(50):  # the settler does the work; wait for its outcome, at most about five seconds
        notice = await services.store.read_notice(notice_id)
        if notice is None or notice.outcome is not None:
            break
        seen = await services.pulse.wait(seen, 0.1)
    if notice is not None and notice.job_id is not None:
        return await services.store.read_job(notice.job_id)
    if notice is not None and notice.submission_id is not None:
        family = (await services.store.load_families([notice.submission_id])).get(notice.submission_id)
        return family.jobs[0] if family else None
    return None


async def send_test_event(services: Services, handler: str) -> Event:
    """Give one handler an event about nothing, whatever its filters say; once, for nothing is won by a second time. NotFound for one
    that is not configured."""
    config = services.handlers.get(handler)
    if config is None:
        raise NotFound(f"There is no handler {handler} in the configuration.")
    now = services.clock.now()
    event = own_event("test", {"message": "A test event, sent by hand."}, now)
    delivery = Delivery(
        id=make_id("dlv", now),
        event_id=event.id,
        event_type=event.type,
        job_id=None,
        handler=handler,
        attempts=config.retry.attempts - 1,
        next_attempt_at=now,
        created_at=now,
        updated_at=now,
    )
    await services.store.emit(event, [delivery])
    services.pulse.strike()
    return event


def cancelled(family: Family, job: Job, count_field: str | None, now: datetime) -> Change | None:
    fresh = family.find(job.id)
    if fresh is None or fresh.is_final or family.submission.state is not SubmissionState.WAITING:
        return None
    return cancel_unsent(family, fresh, count_field, now)


async def decide_on(services: Services, job: Job, change: Callable[[Family], Change | None]) -> bool:
    """Settle a change of the job's family; False when the family as it stands does not allow it."""

    def decide(family: Family) -> Decision | None:
        made = change(family)
        return None if made is None else Decision(made)

    written = await services.settling.settle({job.submission_id: decide}, services.clock.now())
    return job.submission_id in written
