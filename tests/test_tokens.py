"""The token in a callback URL."""

import hashlib
import hmac

import pytest
from hypothesis import given
from hypothesis import strategies as st
from itsdangerous import Signer

from receiver.errors import Unproven
from receiver.tokens import Tokens, make_signer

SUBMISSION = "sub_019e11aa2b3c7d4e8f506172839405a6"


def test_a_token_names_its_submission():
    tokens = Tokens(["secret-one"])
    assert tokens.check("elkapi", tokens.make("elkapi", SUBMISSION)) == SUBMISSION


def test_a_token_is_worth_nothing_at_another_provider():
    tokens = Tokens(["secret-one"])
    with pytest.raises(Unproven):
        tokens.check("hoox", tokens.make("elkapi", SUBMISSION))


def test_the_newest_secret_signs_and_all_verify():
    old, rotated, gone = Tokens(["old"]), Tokens(["new", "old"]), Tokens(["new"])
    token = old.make("elkapi", SUBMISSION)
    assert rotated.check("elkapi", token) == SUBMISSION
    assert gone.check("elkapi", rotated.make("elkapi", SUBMISSION)) == SUBMISSION
    with pytest.raises(Unproven):
        gone.check("elkapi", token)


def test_every_names_the_token_under_each_secret():
    assert Tokens(["new", "old"]).every("elkapi", SUBMISSION) == (
        Tokens(["new"]).make("elkapi", SUBMISSION),
        Tokens(["old"]).make("elkapi", SUBMISSION),
    )


def test_an_empty_secret_signs_nothing():
    with pytest.raises(ValueError, match="secret"):
        Tokens([""])


@given(st.text(max_size=300))
def test_no_other_text_is_a_token(text):
    with pytest.raises(Unproven):
        Tokens(["secret-one"]).check("elkapi", text)


@given(st.data())
def test_no_changed_character_is_accepted(data):
    tokens = Tokens(["secret-one"])
    token = tokens.make("elkapi", SUBMISSION)
    at = data.draw(st.integers(0, len(token) - 1))
    other = data.draw(st.characters(codec="ascii").filter(lambda sign: sign != token[at]))
    changed = token[:at] + other + token[at + 1 :]
    with pytest.raises(Unproven):
        tokens.check("elkapi", changed)


@given(st.text(min_size=8, max_size=80), st.text(max_size=80))
def test_the_key_taken_in_once_signs_as_itsdangerous_does(secret, value):
    key = hmac.digest(secret.encode(), b"receiver.callback.elkapi", "sha256")
    usual = Signer(key, key_derivation="none", digest_method=hashlib.sha256)
    assert make_signer(secret, "receiver.callback.elkapi").sign(value) == usual.sign(value)
