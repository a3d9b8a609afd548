"""How things look."""

import pytest

from receiver.cli.output import fit, lasting, plain, print_table, shorten, took


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.0123, "12ms"), (-3, "0ms"), (1, "1.0s"), (99.94, "99.9s"), (250, "4m10s"), (3600 * 25 + 61, "25h01m")]
)
def test_a_time_span_is_told_in_the_unit_that_fits(seconds, text):
    assert lasting(seconds) == text


def test_a_time_span_that_has_not_ended_is_empty():
    assert took("2026-01-31T12:00:00.000000Z", None) == ""
    assert took("2026-01-31T12:00:00.000000Z", "2026-01-31T12:00:02.500000Z") == "2.5s"


def test_the_words_of_a_provider_cannot_steer_the_terminal():
    assert plain("\x1b[2Jgone\x07[red]").plain == "\ufffd[2Jgone\ufffd[red]"


def test_a_long_text_becomes_one_short_line():
    assert shorten("a\n  b " + "c" * 100, 10) == "a b ccccc…"


def test_columns_shrink_where_they_may_and_the_last_ones_fall_off():
    assert fit({0: 36, 1: 9, 2: 50}, [2], 200) == {0: 36, 1: 9, 2: 50}
    assert fit({0: 36, 1: 9, 2: 50}, [2], 80) == {0: 36, 1: 9, 2: 31}
    assert fit({0: 36, 1: 9, 2: 50}, [2], 60) == {0: 36, 1: 9}
    assert fit({0: 36}, [], 20) == {0: 36}


def test_a_piped_table_has_no_colours_no_blanks_at_the_end_and_no_empty_columns(capsys):
    print_table(("JOB", "COST", "ERROR"), [("job_1", "", "x" * 300), ("job_2", "", "")], empty="None.")
    assert capsys.readouterr().out.splitlines() == ["JOB    ERROR", "job_1  " + "x" * 300, "job_2"]


def test_an_empty_table_says_so_beside_the_output(capsys):
    print_table(("JOB",), [], empty="No jobs.")
    assert capsys.readouterr() == ("", "No jobs.\n")
