"""What `-i` means."""

import click
import pytest

from receiver.cli.inputs import read_input, read_metadata, read_pair


@pytest.mark.parametrize(
    ("pair", "value"),
    [
        ("n=5", 5),
        ("n=-1.5", -1.5),
        ("n=true", True),
        ("n=null", None),
        ("n=[1, 2]", [1, 2]),
        ('n={"a": 1}', {"a": 1}),
        ('n="5"', "5"),
        ("n=a boat", "a boat"),
        ("n=007", "007"),
        ("n=1.0.0", "1.0.0"),
        ("n=NaN", "NaN"),
        ("n=1e999", "1e999"),
        ("n=", ""),
        ("n=a=b", "a=b"),
        ("n=https://example.com/?a=1", "https://example.com/?a=1"),
        ("n:=5", 5),
        ('n:="5"', "5"),
    ],
)
def test_a_value_is_json_where_it_is_valid_json_and_else_text(pair, value):
    assert read_pair(pair) == ("n", value)


@pytest.mark.parametrize("pair", ["n", "=5", ":=5", "n:=a boat", "n:=NaN", "n=@nowhere.txt"])
def test_what_cannot_be_read_is_a_usage_error(pair):
    with pytest.raises(click.UsageError):
        read_pair(pair)


def test_a_file_gives_text_or_json(tmp_path):
    (tmp_path / "five").write_text("5")
    assert read_pair(f"n=@{tmp_path}/five") == ("n", "5")
    assert read_pair(f"n:=@{tmp_path}/five") == ("n", 5)


def test_single_fields_stand_above_the_file(tmp_path):
    file = tmp_path / "input.json"
    file.write_text('{"prompt": "a boat", "seed": 1}')
    assert read_input(str(file), ["seed=2"]) == {"prompt": "a boat", "seed": 2}


def test_an_input_that_is_no_object_is_a_usage_error(tmp_path):
    file = tmp_path / "input.json"
    file.write_text("[1]")
    with pytest.raises(click.UsageError, match="must be a JSON object"):
        read_input(str(file), [])


def test_metadata_is_always_text():
    assert read_metadata(["user=42", "note="]) == {"user": "42", "note": ""}
    with pytest.raises(click.UsageError):
        read_metadata(["user"])
