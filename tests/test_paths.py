"""The path language."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from receiver.providers.paths import find_all, parse_candidates, parse_field, parse_id_paths, parse_path

BODY = {"output": {"media_url": ["a", "b"], "one": "c"}, "rows": [{"id": 1}, {"id": None}, {}, {"id": 2}, "x"], "n": None}

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(["a", "b", "c"]) | st.text(max_size=4), inner, max_size=4),
    max_leaves=20,
)


@pytest.mark.parametrize(
    ("path", "found"),
    [
        ("output.media_url[]", ["a", "b"]),
        ("output.media_url", [["a", "b"]]),
        ("output.media_url[1]", ["b"]),
        ("output.media_url[7]", []),
        ("output.one[]", ["c"]),
        ("output.one.more", []),
        ("rows[].id", [1, 2]),
        ("n", []),
        ("missing[].x", []),
        ("[].n", []),
        ("[].output.one", ["c"]),
    ],
)
def test_a_path_finds_what_stands_there(path, found):
    assert parse_path(path).find(BODY) == found


def test_a_list_at_the_root_is_walked():
    assert parse_path("[].id").find([{"id": 1}, {"id": 2}]) == [1, 2]
    assert parse_path("[1].id").find([{"id": 1}, {"id": 2}]) == [2]


def test_the_first_candidate_that_finds_anything_counts():
    assert find_all(parse_candidates(["n", "missing", "output.one", "rows[].id"]), BODY) == ["c"]
    assert find_all(None, BODY) == []


def test_an_id_can_be_made_of_two():
    assert [[path.text for path in parts] for parts in parse_id_paths(["id", "avatar_id + look_id"])] == [["id"], ["avatar_id", "look_id"]]


def test_a_field_is_put_where_its_names_lead():
    body = {"a": {"x": 1}, "b": "text"}
    parse_field("a.b.c").put(body, 2)
    parse_field("b.c").put(body, 3)
    assert body == {"a": {"x": 1, "b": {"c": 2}}, "b": {"c": 3}}


@pytest.mark.parametrize("text", ["", ".", "a.", ".a", "a..b", "a[", "a[x]", "a]", "a[]b", "a.[0]", "a[-1]", "ä", "a+b", "a/b"])
def test_what_is_no_path_is_refused(text):
    with pytest.raises(ValueError, match="path"):
        parse_path(text)


@pytest.mark.parametrize("raw", [[], 1, None, {}, [1], ["a", None]])
def test_candidates_are_one_path_or_a_list(raw):
    with pytest.raises(ValueError, match="path"):
        parse_candidates(raw)


@pytest.mark.parametrize("raw", ["", "a[]", "a..b", ".a", 1, None])
def test_what_is_no_field_is_refused(raw):
    with pytest.raises(ValueError, match="field"):
        parse_field(raw)


@given(st.text(max_size=20) | st.from_regex(r"[ab.\[\]0-9]{0,12}", fullmatch=True))
def test_any_text_is_a_path_or_a_value_error(text):
    try:
        assert parse_path(text).text == text
    except ValueError:
        pass


@given(st.lists(st.sampled_from(["a", "b", "c"]), min_size=1, max_size=3), json_values)
def test_no_value_makes_a_path_fail(names, value):
    assert None not in parse_path(".".join(names)).find(value)
    assert None not in parse_path("[]." + "[].".join(names) + "[]").find(value)
