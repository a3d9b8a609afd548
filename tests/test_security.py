"""The README's threat model names tests that are there."""

import re
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
README = (TESTS.parent / "README.md").read_text()
SECTION = README.split("## Security\n")[1].split("\n## ")[0]
ROWS = [line for line in SECTION.splitlines() if line.startswith("| ") and line.count("|") == 5][1:]


def test_the_threat_model_has_its_rows():
    assert len(ROWS) >= 12


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.split("|")[2].strip())
def test_each_threat_names_tests_that_are_there(row):
    named = re.findall(r"`([\w/]+\.py)`", row.split("|")[4])
    assert named
    for name in named:
        assert "def test_" in (TESTS / name).read_text() or "TestCase" in (TESTS / name).read_text()


def test_every_secret_of_the_configuration_is_said_how_to_change():
    changing = SECTION.split("**Changing secrets**")[1]
    for name in ("server.secrets", "server.api_keys", "api_key", "callback_secrets", "secrets", "the database's password"):
        assert name in changing
