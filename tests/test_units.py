from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from receiver.units import (
    LARGEST,
    LONGEST,
    RateLimit,
    format_duration,
    format_size,
    parse_duration,
    parse_rate,
    parse_size,
)


@given(st.timedeltas(min_value=timedelta(0), max_value=LONGEST))
def test_a_formatted_duration_parses_to_the_same(duration):
    assert parse_duration(format_duration(duration)) == duration


@given(st.integers(min_value=0, max_value=LARGEST))
def test_a_formatted_size_parses_to_the_same(size):
    assert parse_size(format_size(size)) == size


@given(st.integers(min_value=1, max_value=999_999_999), st.sampled_from([("s", 1.0), ("m", 60.0), ("h", 3600.0)]))
def test_a_rate_is_so_many_in_a_unit(count, unit):
    assert parse_rate(f"{count}/{unit[0]}") == RateLimit(count, unit[1])


@pytest.mark.parametrize(
    ("written", "seconds"),
    [("90s", 90), ("5m", 300), ("1h", 3600), ("30d", 2_592_000), ("250ms", 0.25), ("1.5h", 5400), ("2 s", 2), (0.1, 0.1), (7, 7), ("7", 7)],
    ids=repr,
)
def test_durations_are_read_exactly(written, seconds):
    assert parse_duration(written) == timedelta(seconds=seconds)


@pytest.mark.parametrize(("duration", "written"), [(90, "90s"), (300, "5m"), (3600, "1h"), (86_400, "1d"), (0, "0s"), (0.1, "0.1s")])
def test_durations_are_written_short(duration, written):
    assert format_duration(timedelta(seconds=duration)) == written


@pytest.mark.parametrize(
    ("written", "size"), [("1MiB", 1_048_576), ("5GiB", 5 * 2**30), ("1kB", 1000), ("1.5KiB", 1536), ("7B", 7), ("7", 7), (7, 7)], ids=repr
)
def test_sizes_are_read_in_bytes(written, size):
    assert parse_size(written) == size


@pytest.mark.parametrize(
    "wrong", ["", "soon", "-1s", "1 hour", "1H", "1h30m", "٣s", "1e3s", True, None, [], -1, float("nan"), float("inf")], ids=repr
)
def test_what_is_no_duration_is_refused_with_an_example(wrong):
    with pytest.raises(ValueError, match='such as "90s"'):
        parse_duration(wrong)


@pytest.mark.parametrize("wrong", ["36501d", 1e300, "9" * 30], ids=repr)
def test_a_duration_that_no_date_survives_is_refused(wrong):
    with pytest.raises(ValueError, match="at most 36500d"):
        parse_duration(wrong)


@pytest.mark.parametrize("wrong", ["", "big", "-1", "1Mib", "1M", True, 1.5, None], ids=repr)
def test_what_is_no_size_is_refused_with_an_example(wrong):
    with pytest.raises(ValueError, match='such as "512KiB"'):
        parse_size(wrong)


def test_a_size_over_63_bits_is_refused():
    with pytest.raises(ValueError, match="at most"):
        parse_size("9" * 29 + "TiB")


@pytest.mark.parametrize("wrong", ["", "60", "0/m", "60/d", "-1/s", "1.5/s", 60, None], ids=repr)
def test_what_is_no_rate_is_refused_with_an_example(wrong):
    with pytest.raises(ValueError, match="60/m"):
        parse_rate(wrong)
