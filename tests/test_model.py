"""How values of the model are shown."""

from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from receiver.times import from_micros, to_rfc3339

ZONES = st.sampled_from([UTC, timezone(timedelta(hours=2)), timezone(timedelta(minutes=-570))])


@pytest.mark.parametrize(
    ("microsecond", "shown"),
    [(0, "2026-01-02T03:04:05.000000Z"), (120_000, "2026-01-02T03:04:05.120000Z"), (7, "2026-01-02T03:04:05.000007Z")],
)
def test_a_time_always_has_six_digits_after_the_second(microsecond, shown):
    assert to_rfc3339(datetime(2026, 1, 2, 3, 4, 5, microsecond, UTC)) == shown


@given(st.integers(0, 2**52), ZONES)
def test_a_time_is_shown_in_utc_and_reads_back(micros, zone):
    at = from_micros(micros).astimezone(zone)
    shown = to_rfc3339(at)
    assert shown is not None
    assert shown.endswith("Z")
    assert datetime.fromisoformat(shown) == at


def test_no_time_is_shown_as_none():
    assert to_rfc3339(None) is None
