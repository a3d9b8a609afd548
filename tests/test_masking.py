import json
from urllib.parse import quote, quote_plus

import pytest
from hypothesis import given
from hypothesis import strategies as st

from receiver.masking import Masker

SECRETS = st.text(st.characters(exclude_categories=["Cs"]), min_size=8, max_size=40)


def json_text(text):
    return json.dumps(text)[1:-1]


def php_text(text):
    return json_text(text).replace("/", "\\/")


def twice(text):
    return json_text(json_text(text))


def php_twice(text):
    return php_text(php_text(text))


def unescaped_twice(text):
    return json.dumps(json.dumps(text, ensure_ascii=False)[1:-1], ensure_ascii=False)[1:-1]


JSON_FORMS = [json_text, php_text, twice, php_twice, unescaped_twice]


@given(SECRETS, st.sampled_from([str, *JSON_FORMS, quote, quote_plus, lambda text: quote(text, safe="")]))
def test_no_form_of_a_secret_gets_through(secret, write):
    text, masker = f"before {write(secret)} after", Masker([secret])
    masked = masker.mask_text(text)
    assert write(secret) not in masked
    assert "***" in masked
    assert masker.mask(text.encode()) == masked.encode()


def test_escapes_in_small_letters_are_known_too():
    assert Masker(["a/b+c=d?e"]).mask(b"x=a%2fb%2bc%3dd%3fe&y=1") == b"x=***&y=1"


def test_every_occurrence_is_replaced():
    assert Masker(["sk-12345678"]).mask(b"sk-12345678,sk-12345678") == b"***,***"


def test_the_longest_goes_first():
    assert Masker(["sk-12345", "sk-12345-and-more"]).mask(b"sk-12345-and-more sk-12345") == b"*** ***"


@pytest.mark.parametrize("short", ["", "key", "1234567"])
def test_what_is_shorter_than_eight_hides_no_ordinary_words(short):
    body = f"the key {short} stays".encode()
    assert Masker([short]).mask(body) == body


def test_a_masker_without_secrets_changes_nothing():
    assert Masker().mask(b"\x00\xff") == b"\x00\xff"


def test_bytes_that_are_no_text_are_left_alone():
    assert Masker(["sk-12345678"]).mask(b"\xff\xfesk-12345678\x80") == b"\xff\xfe***\x80"


def test_a_token_is_masked_beside_the_rest_and_only_by_its_own_masker():
    base = Masker(["sk-12345678"])
    masker = base.with_token("token.abc", "token.def")
    assert masker.mask(b"sk-12345678 token.abc token.def") == b"*** *** ***"
    assert masker.mask_text("sk-12345678 token.abc token.def") == "*** *** ***"
    assert base.mask(b"token.abc") == b"token.abc"


def test_a_masker_shows_no_secret_of_its_own():
    assert "sk-12345678" not in repr(Masker(["sk-12345678"]))


def test_a_secret_that_was_cut_in_the_middle_goes_with_the_end_of_the_text():
    masker = Masker(["abcdef/ghijkl", "abcdxxxxxxxx"])
    assert masker.mask_cut("the key abcdef/ghijkl was cut: abcdef/ghi") == "the key *** was cut: ***"
    assert masker.mask_cut("abcd") == "***"
    assert masker.mask_cut("abcdef\\/gh") == "***"
    assert masker.with_token("token-of-a-callback").mask_cut("…/elkapi/token-of-a-ca") == "…/elkapi/***"
    for text in ("", "abc", "ends with ghijkl", "abcdef/ghi and more"):
        assert masker.mask_cut(text) == text
