"""Commands that need no server: keys, try-spec, migrate, prune."""

import json
import os
import shutil
import sqlite3
import stat
from pathlib import Path

import pytest

from receiver.providers.loader import shipped_folder

SPECS = shipped_folder()


def test_a_new_key_is_printed_alone_so_that_a_script_can_take_it(receiver):
    result = receiver("keys", "new")
    key = result.stdout.strip()
    assert len(key) > 40
    assert f"RECEIVER_API_KEY={key}" in result.stderr
    assert receiver("keys", "new").stdout.strip() != key


def test_keys_are_listed_by_fingerprint_and_never_shown(receiver, tmp_path):
    new = json.loads(receiver("keys", "new", "--json").stdout)
    (tmp_path / "receiver.toml").write_text('[server]\napi_keys = ["${KEY}"]\n')
    result = receiver("keys", KEY=new["key"])
    assert new["fingerprint"] in result.stdout
    assert new["key"] not in result.output


def test_try_spec_shows_the_update_that_comes_of_a_callback(receiver, tmp_path):
    (tmp_path / "body.json").write_text(
        '{"request_id": "r-1", "status": "COMPLETED", "output": {"media_url": ["https://x.example/1.png"]}}'
    )
    result = receiver("try-spec", SPECS / "pixazo.toml", "--callback", "body.json")
    found = json.loads(result.stdout)
    assert found["answer"] == "read"
    assert (found["updates"][0]["status"], found["updates"][0]["outputs"][0]["url"]) == ("succeeded", "https://x.example/1.png")


def test_try_spec_says_why_a_body_cannot_be_read(receiver):
    result = receiver("try-spec", SPECS / "pixazo.toml", "--callback", "-", stdin="no json")
    assert json.loads(result.stdout)["answer"] == "unreadable"


def test_try_spec_without_a_body_checks_the_spec_and_names_its_mistakes(receiver, tmp_path):
    assert receiver("try-spec", SPECS / "hoox.toml").exit_code == 0
    (tmp_path / "mine.toml").write_text("base_ulr = 1\n")
    result = receiver("try-spec", "mine.toml")
    assert (result.exit_code, "mine.toml: base_ulr" in result.stderr) == (2, True)


@pytest.mark.parametrize("words", [("--operation", "nothing"), ("--callback", "-", "--poll", "-")])
def test_try_spec_refuses_what_makes_no_sense(receiver, words):
    assert receiver("try-spec", SPECS / "hoox.toml", *words, stdin="{}").exit_code == 2


def test_migrate_makes_the_database_and_says_its_version(receiver, tmp_path):
    first, second = (json.loads(receiver("migrate", "--json").stdout) for _ in range(2))
    assert (first["before"], first["version"]) == (0, second["before"])
    with sqlite3.connect(tmp_path / "receiver.db") as db:
        assert db.execute("SELECT max(number) FROM migrations").fetchone()[0] == first["version"]
    db.close()


def test_migrate_names_a_database_that_is_none(receiver, tmp_path):
    (tmp_path / "receiver.db").write_text("this is a letter, and no database at all" * 100)
    result = receiver("migrate")
    assert (result.exit_code, "receiver.db" in result.stderr) == (2, True)


def test_an_installation_is_copied_with_its_secret(receiver, tmp_path):
    receiver("migrate")
    (tmp_path / "receiver.secret").write_text("s" * 43)
    result = receiver("migrate", "--from", "sqlite:///receiver.db", "--to", "sqlite:///new/place.db")
    assert result.exit_code == 0
    copy = tmp_path / "new" / "place.secret"
    assert (copy.read_text(), stat.S_IMODE(copy.stat().st_mode)) == ("s" * 43, 0o600)
    (tmp_path / "receiver.toml").write_text('[store]\nurl = "sqlite:///new/place.db"\n')
    assert "up to date" in receiver("migrate").stdout


def test_a_copy_replaces_nothing(receiver, tmp_path):
    receiver("migrate")
    shutil.copy(tmp_path / "receiver.db", tmp_path / "other.db")
    before = (tmp_path / "other.db").read_bytes()
    assert receiver("migrate", "--from", "sqlite:///receiver.db", "--to", "sqlite:///other.db").exit_code == 2
    assert (tmp_path / "other.db").read_bytes() == before


@pytest.mark.parametrize(
    "words",
    [("--from", "sqlite:///a.db"), ("--from", "a.db", "--to", "sqlite:///b.db"), ("--from", "sqlite:///none.db", "--to", "sqlite:///b.db")],
)
def test_a_copy_that_makes_no_sense_is_refused(receiver, tmp_path, words):
    assert receiver("migrate", *words).exit_code == 2
    assert not os.path.exists(Path(tmp_path) / "b.db")


def test_prune_says_how_much_went(receiver):
    assert json.loads(receiver("prune", "--json").stdout) == {"pruned": 0}
