"""`receiver keys`: made once, kept as hashes, listed and revoked."""

from __future__ import annotations

import json
import sqlite3

import pytest


def new(receiver, *words):
    return json.loads(receiver("keys", "new", "--json", *words).stdout)


def listed(receiver):
    return json.loads(receiver("keys", "--json").stdout)["keys"]


def test_a_named_key_is_shown_once_and_kept_as_a_hash(receiver, tmp_path):
    result = receiver("keys", "new", "--name", "ci", "--scope", "read", "--scope", "submit")
    key = result.stdout.strip()
    assert (result.exit_code, len(key) > 40) == (0, True)
    assert "submit, read" in result.stderr
    assert "api_keys" in result.stderr  # no key of the configuration: nobody is asked for one yet
    for file in tmp_path.rglob("receiver.db*"):
        assert not file.is_file() or key.encode() not in file.read_bytes()
    [row] = listed(receiver)
    assert (row["name"], row["scopes"], row["revoked_at"]) == ("ci", ["submit", "read"], None)
    assert key not in receiver("keys").output
    assert row["id"] in receiver("keys").stdout


def test_keys_of_the_configuration_are_listed_beside_those_that_were_made(receiver, tmp_path):
    (tmp_path / "receiver.toml").write_text('[server]\napi_keys = ["0123456789abcdef"]\n')
    new(receiver, "--name", "ci", "--scope", "operate")
    configured, made = listed(receiver)
    assert configured["scopes"] == ["submit", "read", "operate"]
    assert made["scopes"] == ["operate"]
    assert "0123456789abcdef" not in receiver("keys").output


@pytest.mark.parametrize("by", ["id", "name"])
def test_a_revoked_key_stays_listed_and_its_name_is_free_again(receiver, by):
    first = new(receiver, "--name", "ci", "--scope", "read")
    assert receiver("keys", "new", "--name", "ci", "--scope", "read").exit_code == 2
    assert receiver("keys", "revoke", first[by]).exit_code == 0
    assert receiver("keys", "revoke", first[by]).exit_code == 2
    second = new(receiver, "--name", "ci", "--scope", "read")
    assert [row["revoked_at"] is None for row in listed(receiver)] == [False, True]
    assert second["key"] != first["key"]


def test_listing_makes_no_database(receiver, tmp_path):
    assert listed(receiver) == []
    assert not (tmp_path / "receiver.db").exists()


@pytest.mark.parametrize(
    "words",
    [
        ("new", "--name", "ci"),
        ("new", "--scope", "read"),
        ("new", "--name", "ci", "--scope", "everything"),
        ("new", "--name", " ci", "--scope", "read"),
        ("new", "--name", "c\ni", "--scope", "read"),
        ("new", "ci"),
        ("revoke",),
        ("revoke", "nobody"),
        ("list", "x"),
        ("list", "--name", "ci", "--scope", "read"),
    ],
)
def test_what_makes_no_sense_is_a_usage_error_and_makes_no_key(receiver, tmp_path, words):
    result = receiver("keys", *words)
    assert (result.exit_code, result.stdout) == (2, "")
    database = tmp_path / "receiver.db"
    assert not database.exists() or sqlite3.connect(database).execute("SELECT count(*) FROM api_keys").fetchone() == (0,)
