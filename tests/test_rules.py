"""The rules of status, and of which job a notice is about."""

from datetime import UTC, datetime, timedelta

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from receiver import rules, verdicts
from receiver.model import (
    Channel,
    ErrorCode,
    Family,
    FinishedBy,
    Job,
    JobError,
    Outcome,
    Output,
    Status,
    Submission,
    SubmissionState,
    Update,
)

NOW = datetime(2026, 5, 1, 12, tzinfo=UTC)
LATER = NOW + timedelta(seconds=10)
PICTURE = (Output(index=0, url="https://cdn.example.net/1.png", media_type="image/png"),)


def make_family(
    *ids: str | None, status: Status = Status.QUEUED, state: SubmissionState = SubmissionState.ANSWERED, **job: object
) -> Family:
    submission = Submission(
        id="sub_1",
        provider="elkapi",
        operation="default",
        model="kling-v2",
        media="video",
        input={"prompt": "paper boats"},
        count=len(ids),
        state=state,
        attempts=1,
        next_attempt_at=NOW,
        sent_at=NOW,
        deadline_seconds=3600,
        created_at=NOW,
    )
    jobs = tuple(
        Job(
            id=f"job_{position}",
            submission_id="sub_1",
            provider="elkapi",
            operation="default",
            model="kling-v2",
            media="video",
            status=status,
            remote_id=remote_id,
            created_at=NOW,
            updated_at=NOW,
            deadline_at=NOW + timedelta(hours=1),
            position=position,
            **job,
        )
        for position, remote_id in enumerate(ids)
    )
    return Family(submission, jobs)


def callback(family: Family, now: datetime = LATER, *, confirm: bool = False, **update: object) -> rules.Change:
    return rules.apply_update(family, Update(**update), Channel.CALLBACK, now, notice_id="ntc_1", confirm=confirm)


def types(change: rules.Change) -> list[str]:
    return [event.type for event in change.events]


# Status


def test_a_success_ends_the_job_with_its_outputs_and_one_event():
    change = callback(make_family("t1"), remote_id="t1", status=Status.SUCCEEDED, outputs=PICTURE)
    job = change.family.jobs[0]
    assert (job.status, job.outputs, job.finished_by, job.finished_at, job.error) == (
        Status.SUCCEEDED,
        PICTURE,
        FinishedBy.CALLBACK,
        LATER,
        None,
    )
    assert types(change) == ["job.succeeded"]
    assert change.events[0].data["late"] is False
    assert change.events[0].data["job"]["status"] == "succeeded"


def test_a_second_final_callback_is_a_duplicate_and_tells_nobody():
    done = callback(make_family("t1"), remote_id="t1", status=Status.SUCCEEDED, outputs=PICTURE).family
    change = callback(done, remote_id="t1", status=Status.SUCCEEDED, outputs=PICTURE)
    assert (change.outcome, change.events, change.family) == (Outcome.DUPLICATE, (), done)


def test_a_different_final_word_after_the_first_is_late_and_changes_nothing():
    done = callback(make_family("t1"), remote_id="t1", status=Status.SUCCEEDED, outputs=PICTURE).family
    change = callback(done, remote_id="t1", status=Status.FAILED, error=JobError(ErrorCode.UNKNOWN, "?"))
    assert (change.outcome, change.events, change.family) == (Outcome.LATE, (), done)


def test_progress_after_the_end_is_late():
    done = callback(make_family("t1"), remote_id="t1", status=Status.FAILED).family
    assert callback(done, remote_id="t1", status=Status.PROCESSING).outcome is Outcome.LATE


def test_status_never_moves_backwards():
    running = callback(make_family("t1"), remote_id="t1", status=Status.PROCESSING).family
    change = callback(running, remote_id="t1", status=Status.QUEUED)
    assert (change.outcome, change.family.jobs[0].status) == (Outcome.DUPLICATE, Status.PROCESSING)


def test_a_failure_without_words_still_says_something():
    job = callback(make_family("t1"), remote_id="t1", status=Status.FAILED).family.jobs[0]
    assert job.error == JobError(ErrorCode.PROVIDER_ERROR, rules.NO_REASON)


def test_progress_is_told_at_most_once_in_five_seconds():
    change = callback(make_family("t1"), remote_id="t1", status=Status.PROCESSING, progress=0.1)
    assert types(change) == ["job.processing"]
    soon = callback(change.family, LATER + timedelta(seconds=4), remote_id="t1", status=Status.PROCESSING, progress=0.5)
    assert (types(soon), soon.family.jobs[0].progress) == ([], 0.5)
    later = callback(soon.family, LATER + timedelta(seconds=5), remote_id="t1", status=Status.PROCESSING, progress=0.6)
    assert types(later) == ["job.processing"]


def test_sequences_of_events_grow_within_a_job():
    change = callback(make_family("t1", sequence=3), remote_id="t1", status=Status.PROCESSING)
    final = callback(change.family, remote_id="t1", status=Status.SUCCEEDED)
    assert [event.sequence for event in (*change.events, *final.events)] == ["4", "5"]


# Our own verdicts


def test_a_late_success_replaces_expired_once():
    expired = verdicts.expire(make_family("t1"), NOW + timedelta(hours=2))
    assert (types(expired), expired.family.jobs[0].error.code) == (["job.expired"], ErrorCode.DEADLINE_EXCEEDED)
    change = callback(expired.family, remote_id="t1", status=Status.SUCCEEDED, outputs=PICTURE)
    assert (types(change), change.events[0].data["late"], change.family.jobs[0].status) == (["job.succeeded"], True, Status.SUCCEEDED)
    again = callback(change.family, remote_id="t1", status=Status.FAILED)
    assert (again.outcome, again.events) == (Outcome.LATE, ())


def test_progress_does_not_wake_an_expired_job():
    expired = verdicts.expire(make_family("t1"), NOW + timedelta(hours=2)).family
    change = callback(expired, remote_id="t1", status=Status.PROCESSING)
    assert (change.outcome, change.family) == (Outcome.LATE, expired)


def test_a_job_that_the_provider_does_not_know_failed_until_it_says_otherwise():
    change = verdicts.not_found(make_family("t1"), "job_0", "no such task", LATER)
    job = change.family.jobs[0]
    assert (job.status, job.error, job.finished_by) == (Status.FAILED, JobError(ErrorCode.NOT_FOUND, "no such task"), FinishedBy.POLL)
    assert callback(change.family, remote_id="t1", status=Status.SUCCEEDED).events[0].data["late"] is True


def test_an_abandoned_job_keeps_its_error_and_yields_to_the_providers_word():
    lost = rules.apply_lost(make_family(None, status=Status.SUBMITTING, state=SubmissionState.SENT), "no answer", NOW).family
    change = verdicts.abandon(lost, lost.jobs[0], LATER)
    job = change.family.jobs[0]
    assert (job.status, job.error.code, job.finished_by) == (Status.FAILED, ErrorCode.SUBMIT_UNKNOWN, FinishedBy.OPERATOR)
    late = callback(change.family, remote_id="t9", status=Status.SUCCEEDED)
    assert (late.events[-1].data["late"], late.family.jobs[0].remote_id) == (True, "t9")


# Which job


def without_first(family: Family) -> Family:
    """As it stands once its first job was deleted."""
    return Family(family.submission, family.jobs[1:])


def test_news_finds_its_job_when_a_sibling_was_deleted():
    left = without_first(make_family("t1", "t2", "t3"))
    change = callback(left, remote_id="t3", status=Status.SUCCEEDED, outputs=PICTURE)
    assert [(job.id, job.status) for job in change.family.jobs] == [("job_1", Status.QUEUED), ("job_2", Status.SUCCEEDED)]
    expired = verdicts.expire(change.family, NOW + timedelta(hours=2))
    assert [(job.id, job.status) for job in expired.family.jobs] == [("job_1", Status.EXPIRED), ("job_2", Status.SUCCEEDED)]


def test_a_further_job_takes_no_position_that_is_held():
    left = without_first(make_family(None, None, status=Status.SUBMITTING, state=SubmissionState.SENT))
    updates = [Update(remote_id=remote_id) for remote_id in ("t1", "t2", "t3")]
    change = rules.apply_accepted(left, updates, 4, NOW)
    assert [(job.position, job.remote_id) for job in change.family.jobs] == [(1, "t1"), (2, "t2"), (3, "t3")]


def test_what_names_no_id_is_not_taken_for_news_of_the_job_that_is_left():
    change = callback(without_first(make_family("t1", "t2")), status=Status.SUCCEEDED, outputs=PICTURE)
    assert (change.outcome, change.events) == (Outcome.UNREADABLE, ())


def test_a_foreign_id_behind_a_good_token_is_mismatched():
    family = make_family("t1")
    change = callback(family, remote_id="t2", status=Status.SUCCEEDED)
    assert (change.outcome, change.family, change.job_id) == (Outcome.MISMATCHED, family, None)


def test_an_early_callback_is_adopted_and_the_answer_adds_nothing():
    family = make_family(None, status=Status.SUBMITTING, state=SubmissionState.SENT)
    early = callback(family, remote_id="t1", status=Status.SUCCEEDED, outputs=PICTURE)
    assert types(early) == ["job.submitted", "job.succeeded"]
    answered = rules.apply_accepted(early.family, [Update(remote_id="t1", status=Status.QUEUED)], 1, LATER)
    assert (answered.events, answered.family.jobs[0].status) == ((), Status.SUCCEEDED)
    assert answered.family.submission.state is SubmissionState.ANSWERED


def test_a_callback_for_a_submission_that_waits_to_be_sent_again_keeps_it_from_being_sent():
    family = make_family(None, status=Status.SUBMITTING, state=SubmissionState.WAITING)
    change = callback(family, remote_id="t1", status=Status.PROCESSING)
    assert change.family.submission.state is SubmissionState.LOST


def test_an_answer_fills_the_jobs_that_callbacks_left():
    family = make_family(None, None, None, status=Status.SUBMITTING, state=SubmissionState.SENT)
    early = callback(family, remote_id="b", status=Status.PROCESSING).family
    answered = rules.apply_accepted(early, [Update(remote_id=name) for name in "abc"], 4, LATER).family
    assert [job.remote_id for job in answered.jobs] == ["b", "a", "c"]
    assert {job.status for job in answered.jobs} == {Status.PROCESSING, Status.QUEUED}


def test_fewer_ids_than_asked_for_fail_the_rest():
    family = make_family(None, None, status=Status.SUBMITTING, state=SubmissionState.SENT)
    jobs = rules.apply_accepted(family, [Update(remote_id="a"), Update(remote_id="a")], 4, LATER).family.jobs
    assert [(job.status, job.error and job.error.code) for job in jobs] == [
        (Status.QUEUED, None),
        (Status.FAILED, ErrorCode.PROVIDER_ERROR),
    ]


def test_more_ids_than_asked_for_add_jobs_up_to_the_maximum():
    family = make_family(None, status=Status.SUBMITTING, state=SubmissionState.SENT)
    change = rules.apply_accepted(family, [Update(remote_id=name) for name in "abc"], 2, LATER)
    assert [job.remote_id for job in change.family.jobs] == ["a", "b"]
    assert types(change) == ["job.submitted", "job.submitted"]


def test_an_answer_that_already_failed_ends_the_job():
    family = make_family(None, status=Status.SUBMITTING, state=SubmissionState.SENT)
    failed = Update(remote_id="a", status=Status.FAILED, error=JobError(ErrorCode.CONTENT_REJECTED, "no"))
    change = rules.apply_accepted(family, [failed], 1, LATER)
    assert (types(change), change.family.jobs[0].finished_by) == (["job.submitted", "job.failed"], FinishedBy.SUBMIT)


def test_an_answer_that_speaks_of_success_without_an_output_does_not_end_the_job():
    family = make_family(None, status=Status.SUBMITTING, state=SubmissionState.SENT)
    change = rules.apply_accepted(family, [Update(remote_id="a", status=Status.SUCCEEDED)], 1, LATER)
    assert (types(change), change.family.jobs[0].status) == (["job.submitted", "job.processing"], Status.PROCESSING)
    done = rules.apply_accepted(family, [Update(remote_id="a", status=Status.SUCCEEDED, outputs=PICTURE)], 1, LATER)
    assert done.family.jobs[0].status is Status.SUCCEEDED


def test_news_without_an_id_leaves_the_job_to_its_answer():
    family = make_family(None, status=Status.SUBMITTING, state=SubmissionState.SENT)
    early = callback(family, status=Status.PROCESSING)
    assert (types(early), early.outcome) == ([], Outcome.APPLIED)
    change = rules.apply_accepted(early.family, [Update(remote_id="a", status=Status.QUEUED)], 1, LATER)
    assert (types(change), change.family.jobs[0].status, change.family.jobs[0].remote_id) == (["job.submitted"], Status.QUEUED, "a")


def test_news_without_an_id_leaves_an_unconfirmed_job_to_the_operator():
    family = make_family(None, status=Status.UNCONFIRMED, state=SubmissionState.LOST)
    assert callback(family, status=Status.PROCESSING).family.jobs[0].status is Status.UNCONFIRMED


def test_news_without_an_id_keeps_a_submission_from_being_sent_again():
    family = make_family(None, status=Status.SUBMITTING, state=SubmissionState.WAITING)
    change = callback(family, status=Status.PROCESSING)
    assert (types(change), change.family.jobs[0].status) == (["job.unconfirmed"], Status.UNCONFIRMED)
    assert change.family.submission.state is SubmissionState.LOST


def test_an_answer_after_an_end_without_an_id_makes_no_second_job():
    family = make_family(None, status=Status.SUBMITTING, state=SubmissionState.SENT)
    early = callback(family, status=Status.SUCCEEDED, outputs=PICTURE).family
    change = rules.apply_accepted(early, [Update(remote_id="a", status=Status.QUEUED)], 4, LATER)
    assert (types(change), [job.status for job in change.family.jobs]) == ([], [Status.SUCCEEDED])


def test_a_body_without_an_id_is_the_only_jobs_or_unreadable():
    assert callback(make_family("t1"), status=Status.SUCCEEDED).family.jobs[0].status is Status.SUCCEEDED
    assert callback(make_family("t1", "t2"), status=Status.SUCCEEDED).outcome is Outcome.UNREADABLE


# Submit


def test_a_lost_answer_makes_the_job_unconfirmed_and_an_own_callback_clears_it_up():
    family = make_family(None, status=Status.SUBMITTING, state=SubmissionState.SENT)
    lost = rules.apply_lost(family, "no answer", LATER)
    job = lost.family.jobs[0]
    assert (job.status, job.error.code, types(lost)) == (Status.UNCONFIRMED, ErrorCode.SUBMIT_UNKNOWN, ["job.unconfirmed"])
    found = callback(lost.family, remote_id="t1", status=Status.PROCESSING)
    assert (found.family.jobs[0].status, found.family.jobs[0].error, types(found)) == (
        Status.PROCESSING,
        None,
        ["job.submitted", "job.processing"],
    )


def test_an_unconfirmed_job_expires_with_its_error():
    family = make_family(None, status=Status.SUBMITTING, state=SubmissionState.SENT)
    lost = rules.apply_lost(family, "no answer", LATER).family
    job = verdicts.expire(lost, NOW + timedelta(hours=2)).family.jobs[0]
    assert (job.status, job.error.code, job.is_own_verdict) == (Status.EXPIRED, ErrorCode.SUBMIT_UNKNOWN, True)


def test_a_job_that_expires_while_its_submit_is_under_way_may_be_billed_and_says_so():
    sent = make_family(None, status=Status.SUBMITTING, state=SubmissionState.SENT)
    expired = verdicts.expire(sent, NOW + timedelta(hours=2)).family
    lost = rules.apply_lost(expired, "the process that sent it ended", NOW + timedelta(hours=2)).family
    for family in (expired, lost):
        assert (family.jobs[0].status, family.jobs[0].error.code) == (Status.EXPIRED, ErrorCode.SUBMIT_UNKNOWN)


def test_a_submission_that_expired_unsent_is_never_sent():
    family = make_family(None, status=Status.SUBMITTING, state=SubmissionState.WAITING)
    assert verdicts.expire(family, NOW + timedelta(hours=2)).family.submission.state is SubmissionState.CLOSED


def test_what_was_not_taken_waits_for_its_next_attempt():
    family = make_family(None, status=Status.SUBMITTING, state=SubmissionState.SENT)
    submission = rules.apply_not_taken(family, LATER, NOW).family.submission
    assert (submission.state, submission.next_attempt_at) == (SubmissionState.WAITING, LATER)


def test_cancelling_one_of_three_unsent_jobs_sends_for_two():
    family = make_family(None, None, None, status=Status.SUBMITTING, state=SubmissionState.WAITING)
    change = verdicts.cancel_unsent(family, family.jobs[1], "num_generations", LATER)
    assert (change.family.submission.count, change.family.submission.input["num_generations"]) == (2, 2)
    assert [job.status for job in change.family.jobs] == [Status.SUBMITTING, Status.CANCELLED, Status.SUBMITTING]
    assert change.family.submission.state is SubmissionState.WAITING


def test_cancelling_the_last_unsent_job_closes_the_submission():
    family = make_family(None, status=Status.SUBMITTING, state=SubmissionState.WAITING)
    assert verdicts.cancel_unsent(family, family.jobs[0], None, LATER).family.submission.state is SubmissionState.CLOSED


# Confirming polls


def test_with_confirm_a_final_callback_waits_and_moves_nothing():
    family = make_family("t1")
    change = callback(family, remote_id="t1", status=Status.SUCCEEDED, outputs=PICTURE, confirm=True)
    assert (change.outcome, change.family, change.job_id) == (Outcome.WAITING, family, "job_0")


def test_with_confirm_progress_counts_at_once():
    assert callback(make_family("t1"), remote_id="t1", status=Status.PROCESSING, confirm=True).outcome is Outcome.APPLIED


# Any order of news

NEWS = st.builds(
    Update,
    remote_id=st.sampled_from(["t1", "t2", "t3", None]),
    status=st.sampled_from([None, Status.QUEUED, Status.PROCESSING, Status.SUCCEEDED, Status.FAILED, Status.CANCELLED]),
    progress=st.none() | st.floats(0, 1),
)
STEP = st.one_of(
    st.tuples(st.just("news"), NEWS, st.sampled_from([Channel.CALLBACK, Channel.POLL, Channel.STREAM])),
    st.tuples(st.just("expire"), st.none(), st.none()),
    st.tuples(st.just("accepted"), st.lists(st.sampled_from(["t1", "t2", "t3"]), min_size=1), st.none()),
    st.tuples(st.just("lost"), st.none(), st.none()),
)


def walk(family: Family, step: tuple, now: datetime) -> rules.Change:
    kind, what, channel = step
    match kind:
        case "news":
            return rules.apply_update(family, what, channel, now)
        case "expire":
            return verdicts.expire(family, now + timedelta(hours=3))
        case "accepted":
            return rules.apply_accepted(family, [Update(remote_id=name) for name in what], 4, now)
        case _:
            return rules.apply_lost(family, "no answer", now)


@given(st.lists(STEP, max_size=25), st.integers(1, 3))
def test_whatever_the_order_each_job_has_one_final_state_and_at_most_one_late_one(steps, count):
    family = make_family(*[None] * count, status=Status.SUBMITTING, state=SubmissionState.SENT)
    finals: dict[str, list[bool]] = {}
    sequences: dict[str, int] = {}
    for number, step in enumerate(steps):
        before = {job.id: job for job in family.jobs}
        change = walk(family, step, NOW + timedelta(seconds=number))
        family = change.family
        for event in change.events:
            assert int(event.sequence) > sequences.get(event.subject, 0)
            sequences[event.subject] = int(event.sequence)
            if Status(event.data["job"]["status"]).is_final and event.type != "job.submitted":
                finals.setdefault(event.subject, []).append(event.data["late"])
        for job in family.jobs:
            old = before.get(job.id)
            if old is not None and old.is_final and not old.is_own_verdict:
                assert msgspec.structs.replace(job, updated_at=old.updated_at) == msgspec.structs.replace(old, updated_at=old.updated_at)
            if old is not None and not old.is_final and old.status not in {Status.SUBMITTING, Status.UNCONFIRMED}:
                assert rules.RANK[job.status] >= rules.RANK[old.status]
        held = [job.remote_id for job in family.jobs if job.remote_id]
        assert len(held) == len(set(held))
    for lates in finals.values():
        assert lates in ([False], [False, True])
