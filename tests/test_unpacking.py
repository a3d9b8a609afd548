"""Compressed callbacks: what is whole and not too much is read, all else stays as it came."""

from __future__ import annotations

import gzip
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from receiver.inbox import decode

LIMIT = 1_000
BODY = b'{"status": "completed"}'


def raw_deflate(body):
    packer = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return packer.compress(body) + packer.flush()


@pytest.mark.parametrize(
    ("encoding", "packed"),
    [
        ("", BODY),
        ("identity", BODY),
        ("gzip", gzip.compress(BODY)),
        (" X-GZIP ", gzip.compress(BODY)),
        ("gzip", gzip.compress(BODY[:5]) + gzip.compress(BODY[5:]) + b"\0\0"),
        ("deflate", zlib.compress(BODY)),
        ("deflate", raw_deflate(BODY)),
    ],
    ids=["none", "identity", "gzip", "x-gzip", "members", "deflate", "raw deflate"],
)
def test_a_body_is_read_as_it_was_meant(encoding, packed):
    assert decode(packed, encoding, LIMIT) == BODY


@pytest.mark.parametrize(
    ("encoding", "packed"),
    [
        ("gzip", BODY),
        ("gzip", gzip.compress(BODY)[:-9]),
        ("gzip", gzip.compress(b"x" * (LIMIT + 1))),
        ("gzip", gzip.compress(b"") * 50_000),
        ("deflate", zlib.compress(BODY)[:-3]),
        ("deflate", raw_deflate(BODY * 9)[:-3]),
        ("br", BODY),
    ],
    ids=["no gzip", "cut off", "too much", "thousands of nothing", "cut deflate", "cut raw deflate", "not known"],
)
def test_what_cannot_be_decoded_is_kept_as_it_came(encoding, packed):
    assert decode(packed, encoding, LIMIT) == packed


@given(st.binary(max_size=300), st.sampled_from(["gzip", "deflate"]), st.integers(0, 300))
def test_no_bytes_do_more_than_that(body, encoding, limit):
    found = decode(body, encoding, limit)
    assert found == body or len(found) <= limit


@given(st.binary(max_size=LIMIT), st.sampled_from([("gzip", gzip.compress), ("deflate", zlib.compress), ("deflate", raw_deflate)]))
def test_what_was_packed_is_unpacked(body, packing):
    encoding, pack = packing
    assert decode(pack(body), encoding, LIMIT) == body
