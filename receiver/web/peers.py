"""Whose request it is: the address of the peer, or what proxies that are trusted say of it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from ipaddress import IPv6Address, IPv6Network, ip_address
from typing import NamedTuple

from starlette.datastructures import Headers
from starlette.types import Scope

from receiver.addresses import Address, Network

FORWARDING = ("x-forwarded-for", "forwarded")
SUBSCRIBER = 64  # bits of an IPv6 address that one subscriber has to himself at least
# One `name=value` of a Forwarded header, https://www.rfc-editor.org/rfc/rfc7239#section-4; ports unquoted are common in the wild.
PAIR = re.compile(r'[ \t]*([!#$%&\'*+.^_`|~0-9A-Za-z-]+)=(?:([^\s",;]+)|"((?:[^"\\]|\\.)*)")[ \t]*([,;]|$)')


class Peer(NamedTuple):
    """Who asks. `address` is None where the connection has none (a Unix socket); not `is_certain`: an unknown proxy stands between."""

    address: Address | None
    is_certain: bool

    @property
    def group(self) -> str:
        """What counts as one caller: an IPv4 address, or the /64 of an IPv6 one."""
        if isinstance(self.address, IPv6Address):
            return str(IPv6Network((self.address, SUBSCRIBER), strict=False))
        return str(self.address)


def find_peer(scope: Scope, trusted: Sequence[Network]) -> Peer:
    """The client as far as trusted proxies vouch for it; what they say in a form that cannot be read counts for nothing."""
    near = _parse((scope.get("client") or ("",))[0])
    said = [_read(name, lines) for name in FORWARDING if (lines := Headers(scope=scope).getlist(name))]
    if near is None or not said:
        return Peer(near, near is not None)
    if not _is_among(near, trusted):
        return Peer(near, False)
    found = {_walk(chain, trusted) for chain in said}
    # Two headers that disagree: a proxy writes one of them, and passes on what a stranger wrote into the other.
    far = found.pop() if len(found) == 1 else None
    return Peer(far or near, True)


def _walk(chain: Sequence[str], trusted: Sequence[Network]) -> Address | None:
    """From the right, where the nearest proxy wrote, to the first that is no proxy of ours; None where one cannot be read."""
    address: Address | None = None
    for text in reversed(chain):
        address = _parse_node(text)
        if address is None or not _is_among(address, trusted):
            return address
    return address


def _is_among(address: Address, networks: Sequence[Network]) -> bool:
    return any(network.version == address.version and address in network for network in networks)


def _read(name: str, lines: Sequence[str]) -> list[str]:
    text = ",".join(lines)
    return list(_split_forwarded(text)) if name == "forwarded" else text.split(",")


def _split_forwarded(text: str) -> Iterator[str]:
    """The `for` of each element, from left to right; an empty one where an element has none or cannot be read."""
    node, position = "", 0
    while position <= len(text):
        pair = PAIR.match(text, position)
        if pair is None:
            yield ""
            return
        if pair[1].lower() == "for":
            node = pair[2] or re.sub(r"\\(.)", r"\1", pair[3] or "")
        if pair[4] != ";":
            yield node
            node = ""
        position = pair.end() if pair[4] else len(text) + 1


def _parse_node(text: str) -> Address | None:
    """An address with or without a port; an IPv6 one with a port stands in brackets."""
    text = text.strip(" \t")
    if text.startswith("["):
        host, closing, port = text[1:].partition("]")
        return _parse(host) if closing and re.fullmatch("(:[0-9]{1,5})?", port, re.ASCII) else None
    if text.count(":") == 1:
        host, _, port = text.partition(":")
        return _parse(host) if re.fullmatch("[0-9]{1,5}", port, re.ASCII) else None
    return _parse(text)


def _parse(text: str) -> Address | None:
    try:
        address = ip_address(text.partition("%")[0])
    except ValueError:
        return None
    return address.ipv4_mapped or address if isinstance(address, IPv6Address) else address
