"""Whose request it is: only what trusted proxies wrote counts."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from receiver.addresses import parse_networks
from receiver.web.peers import find_peer

TRUSTED = parse_networks(["10.0.0.0/8", "fd00::/8"])
FAR = "198.51.100.7"


def peer_of(client: str | None, *headers: tuple[str, str]):
    lines = [(name.lower().encode(), value.encode("latin-1", "replace")) for name, value in headers]
    return find_peer({"type": "http", "client": (client, 4711) if client is not None else None, "headers": lines}, TRUSTED)


def address_of(client: str, *headers: tuple[str, str]) -> str:
    return str(peer_of(client, *headers).address)


def test_without_a_proxy_it_is_the_peer():
    assert peer_of(FAR) == peer_of(f"::ffff:{FAR}")
    assert (address_of(FAR), peer_of(FAR).is_certain) == (FAR, True)
    assert address_of("10.0.0.1") == "10.0.0.1"
    for nameless in (None, "", "not an address"):
        assert peer_of(nameless) == (None, False)


def test_a_proxy_that_is_not_trusted_vouches_for_nobody():
    for name in ("X-Forwarded-For", "Forwarded"):
        found = peer_of(FAR, (name, "for=10.0.0.1"))
        assert (str(found.address), found.is_certain) == (FAR, False)


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        (FAR, FAR),
        (f"1.2.3.4, {FAR}", FAR),
        (f"1.2.3.4, {FAR}, 10.9.9.9,fd00::1", FAR),
        (f"{FAR}:4711", FAR),
        ("2001:db8::1", "2001:db8::1"),
        ("[2001:db8::1]", "2001:db8::1"),
        ("[2001:db8::1]:443", "2001:db8::1"),
        (f"::ffff:{FAR}", FAR),
        (f"nonsense, {FAR}", FAR),
        ("10.0.0.7, 10.0.0.8", "10.0.0.7"),
        ("nonsense", "10.0.0.1"),
        (f"{FAR}, nonsense", "10.0.0.1"),
        (f"{FAR},", "10.0.0.1"),
        ("", "10.0.0.1"),
        ("unknown", "10.0.0.1"),
        (f"{FAR}:", "10.0.0.1"),
        (f"{FAR}:99x", "10.0.0.1"),
        ("[2001:db8::1", "10.0.0.1"),
        ("[2001:db8::1]x", "10.0.0.1"),
        ("1.2.3.4.5", "10.0.0.1"),
        ("01.2.3.4", "10.0.0.1"),
        ("1.2.3.4/8", "10.0.0.1"),
    ],
)
def test_x_forwarded_for_is_read_from_the_right_through_trusted_proxies(header, expected):
    assert address_of("10.0.0.1", ("X-Forwarded-For", header)) == expected


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        (f"for={FAR}", FAR),
        (f"For={FAR};proto=https;by=10.0.0.1", FAR),
        (f"for=1.2.3.4, for={FAR};proto=http, for=10.2.2.2", FAR),
        ('for="[2001:db8::1]:4711"', "2001:db8::1"),
        (f'for="{FAR}:80";host="a,b;c\\"d"', FAR),
        (f"proto=https;for={FAR}", FAR),
        ("for=unknown", "10.0.0.1"),
        ("for=_hidden", "10.0.0.1"),
        ("proto=https", "10.0.0.1"),
        (f"for={FAR}, proto=https", "10.0.0.1"),
        (f"for={FAR};", "10.0.0.1"),
        (f"for={FAR} {FAR}", "10.0.0.1"),
        (f'for="{FAR}', "10.0.0.1"),
        ("=", "10.0.0.1"),
        ("", "10.0.0.1"),
    ],
)
def test_forwarded_is_read_in_the_same_way(header, expected):
    assert address_of("10.0.0.1", ("Forwarded", header)) == expected


def test_several_lines_are_one_list():
    assert address_of("10.0.0.1", ("X-Forwarded-For", "1.2.3.4"), ("X-Forwarded-For", FAR)) == FAR


def test_two_headers_count_only_where_they_agree():
    assert address_of("10.0.0.1", ("X-Forwarded-For", FAR), ("Forwarded", f"for={FAR}")) == FAR
    assert address_of("10.0.0.1", ("X-Forwarded-For", FAR), ("Forwarded", "for=1.2.3.4")) == "10.0.0.1"


def test_an_ipv6_caller_is_its_64():
    groups = {peer_of(address).group for address in ("2001:db8:1:2::1", "2001:db8:1:2:ffff::9")}
    assert groups == {"2001:db8:1:2::/64"}
    assert peer_of("2001:db8:1:3::1").group not in groups
    assert peer_of(FAR).group == FAR


@given(
    st.sampled_from(["X-Forwarded-For", "Forwarded"]), st.text(st.characters(max_codepoint=255)) | st.text('for=";,[]:.1 \\', max_size=60)
)
def test_no_header_breaks_it(name, value):
    assert peer_of("10.0.0.1", (name, value)).is_certain
