"""When again."""

from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from receiver.backoff import full_jitter, poll_interval, retry_at

NOW = datetime(2026, 5, 1, tzinfo=UTC)
SECOND = timedelta(seconds=1)


@given(st.integers(1, 1000))
def test_a_backoff_never_exceeds_its_ceiling_and_never_comes_at_once(attempt):
    wait = full_jitter(attempt, SECOND, 60 * SECOND)
    assert timedelta(seconds=0.1) <= wait <= 60 * SECOND


@given(st.integers(1, 20), st.floats(0, 1e9))
def test_a_hint_is_honoured_and_believed_up_to_a_day(attempt, hint):
    due = retry_at(NOW, attempt, SECOND, 60 * SECOND, hint)
    assert due - NOW >= min(timedelta(seconds=hint), timedelta(days=1))
    assert due - NOW <= timedelta(days=1)


@given(st.integers(0, 10_000))
def test_a_poll_interval_grows_up_to_its_maximum(attempts):
    wait = poll_interval(attempts, 5 * SECOND, 60 * SECOND)
    assert 4.7 * SECOND <= wait <= 63 * SECOND


def test_later_polls_are_further_apart():
    assert poll_interval(10, 5 * SECOND, 600 * SECOND) > 2 * poll_interval(0, 5 * SECOND, 600 * SECOND)
