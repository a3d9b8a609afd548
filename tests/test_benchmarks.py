"""The benchmarks measure by hand; here only that each line can be asked for, and that the table is one."""

from __future__ import annotations

from importlib import import_module

import pytest

from tests.benchmarks.__main__ import LINES
from tests.benchmarks.lines import Line, median_ratio, show, this_machine


@pytest.mark.parametrize("name", LINES)
def test_every_line_has_its_module(name):
    assert callable(import_module(f"tests.benchmarks.{name}").measure)


def test_the_table_names_store_reference_and_ratio():
    line = Line(name="durable accept", ours=8667.4, unit="/s", store="sqlite", reference=27482, reference_name="bare", ratio=0.3154)
    head, rule, row = show([line]).splitlines()
    assert head.count("|") == rule.count("|") == row.count("|")
    assert "| durable accept | sqlite | 1 | 8,667 /s | 27,482 (bare) | 0.32 |" in row


def test_the_ratio_is_that_of_the_middle_pair_and_not_of_the_sums():
    assert median_ratio([(1, 2), (60, 100), (1, 100)]) == 0.5


def test_the_machine_names_its_cores_and_its_server():
    assert f"{this_machine().cores} cores" in str(this_machine())
    assert str(this_machine()).endswith(("uvicorn on h11 and asyncio", "uvicorn on httptools and uvloop"))
