"""Which addresses on the network may be reached when somebody else named them: an explicit table, nothing trusted to a library."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

# https://www.iana.org/assignments/iana-ipv4-special-registry, and addresses of clouds that are special without being registered.
DENIED_IPV4: tuple[tuple[IPv4Network, str], ...] = tuple(
    (IPv4Network(network), why)
    for network, why in (
        ("0.0.0.0/8", "this network"),
        ("10.0.0.0/8", "private"),
        ("100.64.0.0/10", "carrier-grade NAT, and the metadata service of Alibaba Cloud"),
        ("127.0.0.0/8", "loopback"),
        ("168.63.129.16/32", "the metadata service of Azure"),
        ("169.254.0.0/16", "link-local, and the metadata service of most clouds"),
        ("172.16.0.0/12", "private"),
        ("192.0.0.0/24", "protocol assignments, and the metadata service of Oracle Cloud"),
        ("192.0.2.0/24", "documentation"),
        ("192.31.196.0/24", "AS112"),
        ("192.52.193.0/24", "automatic multicast tunnelling"),
        ("192.88.99.0/24", "6to4 relay"),
        ("192.168.0.0/16", "private"),
        ("192.175.48.0/24", "AS112"),
        ("198.18.0.0/15", "benchmarking"),
        ("198.51.100.0/24", "documentation"),
        ("203.0.113.0/24", "documentation"),
        ("224.0.0.0/4", "multicast"),
        ("240.0.0.0/4", "reserved, and broadcast"),
    )
)

# https://www.iana.org/assignments/iana-ipv6-special-registry; what is outside of 2000::/3 is denied whole.
GLOBAL_IPV6 = IPv6Network("2000::/3")
DENIED_IPV6: tuple[tuple[IPv6Network, str], ...] = tuple(
    (IPv6Network(network), why)
    for network, why in (
        ("2001::/23", "protocol assignments: Teredo, benchmarking, ORCHID"),
        ("2001:db8::/32", "documentation"),
        ("2002::/16", "6to4"),
        ("2620:4f:8000::/48", "AS112"),
        ("3ffe::/16", "6bone"),
        ("3fff::/20", "documentation"),
    )
)

MAPPED = IPv6Network("::ffff:0:0/96")
# Where an IPv4 address hides in an IPv6 one, and how far from its right end. Local-use NAT64 has it at the end for a /96 only.
EMBEDDING: tuple[tuple[IPv6Network, int], ...] = (
    (IPv6Network("::/96"), 0),
    (IPv6Network("::ffff:0:0:0/96"), 0),
    (IPv6Network("64:ff9b::/96"), 0),
    (IPv6Network("64:ff9b:1::/48"), 0),
    (IPv6Network("2002::/16"), 80),
)


def parse_networks(texts: Iterable[str]) -> tuple[Network, ...]:
    """CIDRs or single addresses; ValueError names the one that is neither."""
    return tuple(ip_network(text.strip(), strict=False) for text in texts)


def find_denial(address: str, allowed: Sequence[Network] = ()) -> str | None:
    """Why this numeric address may not be reached, or None when it may. `allowed` lifts the denial."""
    try:
        parsed = ip_address(address.partition("%")[0])  # a zone says which interface, not which address
    except ValueError:
        return "not an address"
    if isinstance(parsed, IPv6Address) and parsed in MAPPED:
        # The kernel connects to the IPv4 address that it maps.
        parsed = IPv4Address(int(parsed) & 0xFFFFFFFF)
    return _find_denial(parsed, allowed)


def _find_denial(address: Address, allowed: Sequence[Network]) -> str | None:
    why = _look_up(address)
    if why is None or not any(network.version == address.version and address in network for network in allowed):
        return why
    # A lifted translation prefix must not lead to an IPv4 address that is denied itself.
    embedded = _find_embedded(address)
    return None if embedded is None else _find_denial(embedded, allowed)


def _look_up(address: Address) -> str | None:
    if isinstance(address, IPv4Address):
        return next((why for network, why in DENIED_IPV4 if address in network), None)
    if address not in GLOBAL_IPV6:
        return "not a global IPv6 address"
    return next((why for network, why in DENIED_IPV6 if address in network), None)


def _find_embedded(address: Address) -> IPv4Address | None:
    # The loopback and the unspecified address lie in ::/96 without embedding anything.
    if isinstance(address, IPv4Address) or int(address) <= 1:
        return None
    for network, shift in EMBEDDING:
        if address in network:
            return IPv4Address((int(address) >> shift) & 0xFFFFFFFF)
    return None
