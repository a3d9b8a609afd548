"""When a job is asked about next, and how the overdue time is learned."""

from datetime import timedelta

import pytest

from receiver.config import PollingConfig, ProviderConfig
from receiver.learning import ENOUGH, duration_of, overdue_after
from receiver.model import Channel, FinishedBy, Status, Update
from receiver.pacing import next_poll, urgent_poll
from receiver.providers.account import make_account
from receiver.providers.loader import load_specs
from receiver.stores.terms import Learned
from tests.factories import NOW, make_job, make_poll

SECOND = timedelta(seconds=1)
MINUTE = timedelta(minutes=1)
HOUR = timedelta(hours=1)


def account(**polling):
    return make_account("elkapi", ProviderConfig(polling=PollingConfig(**polling)), PollingConfig(), load_specs()["elkapi"])


def job(**fields):
    fields = {"status": Status.QUEUED, "remote_id": "t1", "created_at": NOW, "updated_at": NOW, "deadline_at": NOW + HOUR, **fields}
    return make_job(provider="elkapi", model="kling-v2", media="video", **fields)


def plan(job, now=NOW, poll=None, *, heard_at=NOW, overdue=MINUTE, was_polled=False, is_news=True, **polling):
    return next_poll(
        job, account(interval=5 * SECOND, **polling), now, poll, heard_at=heard_at, overdue=overdue, was_polled=was_polled, is_news=is_news
    )


def test_who_can_call_back_is_first_asked_about_when_overdue():
    assert plan(job()).due_at == NOW + MINUTE


def test_a_callback_that_brings_progress_pushes_the_due_time_out():
    later = NOW + 50 * SECOND
    assert plan(job(updated_at=later), later, make_poll(job())).due_at == later + MINUTE


def test_who_cannot_call_back_is_asked_about_from_the_start():
    assert 4 * SECOND < plan(job(), overdue=None).due_at - NOW < 6 * SECOND


def test_an_overdue_job_is_asked_about_at_the_interval_from_then_on():
    now, first = NOW + MINUTE, make_poll(job())
    second = plan(job(), now, first, was_polled=True, is_news=False)
    assert 4 * SECOND < second.due_at - now < 6 * SECOND
    # News that a poll brought says nothing of the callbacks, which still do not come.
    third = plan(job(updated_at=now), now, second, heard_at=now, was_polled=True)
    assert 4 * SECOND < third.due_at - now < 6 * SECOND


def test_a_poll_ahead_of_time_does_not_start_polling():
    now = NOW + 10 * SECOND
    assert plan(job(), now, make_poll(job()), was_polled=True, is_news=False).due_at == NOW + MINUTE


def test_polls_without_news_are_further_and_further_apart_up_to_the_maximum():
    poll = make_poll(job(), attempts=30)
    wait = plan(job(), NOW + HOUR / 2, poll, was_polled=True, is_news=False, max_interval=20 * SECOND).due_at - (NOW + HOUR / 2)
    assert 18 * SECOND < wait < 22 * SECOND


def test_the_last_poll_comes_just_before_the_deadline():
    assert plan(job(deadline_at=NOW + 10 * SECOND)).due_at == NOW + 9 * SECOND


@pytest.mark.parametrize("ended", [{"status": Status.SUCCEEDED}, {"status": Status.FAILED, "is_own_verdict": True}, {"remote_id": None}])
def test_no_other_ended_job_and_none_without_an_id_is_polled(ended):
    assert plan(job(**{"finished_at": NOW, **ended})) is None
    assert urgent_poll(job(**{"status": Status.FAILED, **ended}), NOW, None) is None


def test_an_expired_job_is_polled_further_and_further_apart_for_a_day():
    expired = job(status=Status.EXPIRED, is_own_verdict=True, finished_at=NOW, finished_by=FinishedBy.DEADLINE)
    now, waits, poll = NOW, [], plan(expired)
    while poll is not None:
        waits.append(poll.due_at - now)
        now = poll.due_at
        poll = plan(expired, now, poll, was_polled=True, is_news=False)
    assert waits[:3] == [10 * MINUTE, 20 * MINUTE, 40 * MINUTE]
    assert sum(waits, timedelta()) <= timedelta(days=1)


def test_a_job_with_a_short_deadline_is_asked_about_again_after_as_long():
    expired = job(status=Status.EXPIRED, is_own_verdict=True, finished_at=NOW, deadline_at=NOW + MINUTE)
    assert plan(expired).due_at == NOW + MINUTE


def test_how_often_a_job_was_polled_before_it_expired_does_not_count():
    expired = job(status=Status.EXPIRED, is_own_verdict=True, finished_at=NOW)
    assert plan(expired, poll=make_poll(expired, attempts=30, due_at=NOW + 5 * SECOND)).due_at == NOW + 10 * MINUTE


# Learning


def learned(*seconds):
    return Learned(provider="elkapi", model="kling-v2", seconds=seconds)


def test_until_enough_is_known_the_overdue_time_is_the_prior():
    few = learned(*[1.0] * (ENOUGH - 1))
    assert overdue_after(account(), job(), few) == overdue_after(account(), job(), None) == account().overdue_prior("video")


def test_the_overdue_time_is_learned_from_the_slowest_usual_jobs():
    assert overdue_after(account(), job(), learned(*[10.0] * 20)) == timedelta(seconds=14.5)


def test_a_learned_overdue_time_never_exceeds_a_quarter_of_the_deadline():
    assert overdue_after(account(), job(), learned(*[7200.0] * 20)) == HOUR / 4


def test_what_the_user_wrote_beats_what_was_learned():
    assert overdue_after(account(overdue_after=3 * SECOND), job(), learned(*[10.0] * 20)) == 3 * SECOND


def finished(channel, **update):
    done = job(status=Status.SUCCEEDED, submitted_at=NOW, finished_at=NOW + 30 * SECOND)
    return duration_of(done, Update(status=Status.SUCCEEDED, **update), channel)


def test_jobs_that_came_home_by_a_push_teach():
    assert finished(Channel.CALLBACK).seconds == finished(Channel.STREAM).seconds == 30


def test_a_job_that_a_poll_found_late_teaches_only_by_the_providers_own_times():
    assert finished(Channel.POLL) is None
    assert finished(Channel.POLL, created_at=NOW, finished_at=NOW + 12 * SECOND).seconds == 12
