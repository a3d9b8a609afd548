"""The table of addresses, and the guarded client that goes by it: a canary listens and must hear nothing."""

import asyncio
import gzip
import ipaddress
import os
import socket
import struct
from contextlib import asynccontextmanager

import httpcore
import httpx
import pytest

from receiver.addresses import find_denial, parse_networks
from receiver.errors import Denied
from receiver.guard import Guard, WideStream, resolve
from receiver.guarded import AddressDenied, guarded_client
from receiver.net import HTTPError
from tests.loopback import by_path, free_port, hang, make_tls, response, say, say_and_close, serve


def words(text):
    return text.split()


DENIED_NUMBERS = words("""
0.0.0.0 0.1.2.3 0.255.255.255 10.0.0.0 10.1.2.3 10.255.255.255 100.64.0.0 100.64.0.1 100.100.100.200 100.127.255.255 127.0.0.0 127.0.0.1
127.0.0.53 127.1.2.3 127.255.255.254 127.255.255.255 168.63.129.16 169.254.0.0 169.254.0.23 169.254.42.42 169.254.169.123
169.254.169.254 169.254.170.2 169.254.255.255 172.16.0.0 172.16.0.1 172.17.0.1 172.20.10.1 172.31.255.255 192.0.0.0 192.0.0.1 192.0.0.8
192.0.0.170 192.0.0.192 192.0.0.255 192.0.2.1 192.31.196.1 192.52.193.1 192.88.99.1 192.88.99.255 192.168.0.0 192.168.0.1 192.168.1.254
192.168.255.255 192.175.48.1 198.18.0.0 198.18.0.1 198.19.255.255 198.51.100.7 203.0.113.9 224.0.0.0 224.0.0.1 224.0.0.251 232.1.1.1
239.255.255.250 239.255.255.255 240.0.0.0 240.0.0.1 250.1.2.3 255.255.255.254 255.255.255.255 :: ::1 ::2 ::7f00:1 ::a9fe:a9fe
::127.0.0.1 ::8.8.8.8 ::ffff:0.0.0.0 ::ffff:127.0.0.1 ::ffff:7f00:1 ::ffff:10.0.0.1 ::ffff:169.254.169.254 ::ffff:a9fe:a9fe
::ffff:192.168.0.1 ::ffff:172.16.0.1 ::ffff:100.64.0.1 ::ffff:168.63.129.16 ::ffff:255.255.255.255 ::ffff:0:127.0.0.1 ::ffff:0:8.8.8.8
64:ff9b::127.0.0.1 64:ff9b::7f00:1 64:ff9b::169.254.169.254 64:ff9b::8.8.8.8 64:ff9b::a00:1 64:ff9b:1::1 64:ff9b:1::7f00:1
64:ff9b:1:fffe::1 100::1 100:0:0:1::1 2001::1 2001:0:7f00:1:: 2001:0:53aa:64c:0:0:80ff:fffe 2001:1::1 2001:2::1 2001:3::1 2001:4:112::1
2001:10::1 2001:20::1 2001:30::1 2001:1ff:ffff::1 2001:db8::1 2001:db8:ffff::1 2002:7f00:1:: 2002:7f00:1::1 2002:a9fe:a9fe::1
2002:a00:1::1 2002:c0a8:1::1 2002:808:808::1 2620:4f:8000::1 3ffe::1 3ffe:ffff::1 3fff::1 3fff:fff::1 4000::1 5f00::1 8000::1 fc00::1
fc00:ffff::1 fd00::1 fd00:ec2::254 fd20:ce::254 fdff:ffff:ffff:ffff::1 fe00::1 fe80::1 fe80::a9fe:a9fe febf::1 fec0::1 feff::1 ff00::1
ff02::1 ff02::fb ff0e::1 ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff fe80::1%lo
""")
PUBLIC_NUMBERS = words("""
1.1.1.1 8.8.8.8 9.255.255.255 11.0.0.0 100.63.255.255 100.128.0.0 126.255.255.255 128.0.0.0 168.63.129.15 168.63.129.17 169.253.255.255
169.255.0.0 172.15.255.255 172.32.0.0 192.0.1.1 192.0.3.0 192.167.255.255 192.169.0.0 198.17.255.255 198.20.0.0 203.0.112.1 203.0.114.1
223.255.255.255 ::ffff:8.8.8.8 2000::1 2001:200::1 2001:4860:4860::8888 2001:db7:ffff::1 2001:db9::1 2003::1 2606:4700::1111
2a00:1450::1 3ffd::1 3fff:1000::1
""")


@pytest.mark.parametrize("number", DENIED_NUMBERS)
def test_an_address_that_is_not_public_is_denied(number):
    assert find_denial(number)


@pytest.mark.parametrize("number", PUBLIC_NUMBERS)
def test_a_public_address_is_not_denied(number):
    assert find_denial(number) is None


def test_what_is_not_a_plain_number_is_denied():
    for text in ("", "localhost", "0x7f.1", "127.1", "2130706433", "1.1.1.1.", " 1.1.1.1", "01.1.1.1", "1.1.1.1/32", "[::1]", "１.1.1.1"):
        assert find_denial(text) == "not an address"


def test_a_network_lifts_the_denial_of_its_own_addresses_only():
    allowed = parse_networks(["127.0.0.0/8", "10.1.0.0/16", "fd00::/8", "192.168.1.7"])
    for number in ("127.0.0.1", "::ffff:127.0.0.1", "10.1.255.255", "fd00::1", "192.168.1.7", "8.8.8.8"):
        assert find_denial(number, allowed) is None
    for number in ("10.2.0.1", "::ffff:10.2.0.1", "192.168.1.8", "fe80::1", "::1", "2002:7f00:1::", "64:ff9b::127.0.0.1"):
        assert find_denial(number, allowed)


def test_a_lifted_translation_prefix_leads_to_public_addresses_only():
    allowed = parse_networks(["64:ff9b::/96", "2002::/16", "::/96"])
    for number in ("64:ff9b::8.8.8.8", "2002:808:808::1", "::8.8.8.8", "::1"):
        assert find_denial(number, allowed) is None
    for number in ("64:ff9b::127.0.0.1", "64:ff9b::169.254.169.254", "2002:7f00:1::1", "::10.0.0.1"):
        assert find_denial(number, allowed)
    assert find_denial("64:ff9b::10.0.0.1", parse_networks(["64:ff9b::/96", "10.0.0.0/8"])) is None


def test_a_network_that_is_none_is_named():
    with pytest.raises(ValueError, match="/33"):
        parse_networks(["10.0.0.0/33"])


# Whole URLs. The canary listens on all of loopback, on the port that stands in each of them.

TRICKS = words("""
127.1 127.0.1 0 0.0.0.0 0x7f.1 0x7f.0.0.1 0x7f000001 0X7F000001 2130706433 017700000001 0177.0.0.1 0177.1 0x7f.0x0.0x0.0x1 0300.0250.0.1
3232235521 2852039166 0xa9fea9fe 169.254.43518 0251.0376.0251.0376 10.1 192.168.257 localhost LOCALHOST [::1] [::] [0:0:0:0:0:0:0:1]
[0000::1] [::ffff:127.0.0.1] [::ffff:7f00:1] [::ffff:0:127.0.0.1] [::127.0.0.1] [64:ff9b::7f00:1] [64:ff9b:1::7f00:1] [2002:7f00:1::]
[fe80::1] [fec0::1] [fd00:ec2::254] [::FFFF:169.254.169.254] [ff02::1]
""")
UNUSABLE = [
    "http://127.0.0.1:{port}@127.0.0.1:{port}/",
    "http://user@127.0.0.1:{port}/",
    "http://user:pass@localhost:{port}/",
    "http://8.8.8.8@127.0.0.1:{port}/",
    "http://@127.0.0.1:{port}/",
    "http://127.0.0.1:{port}\\@8.8.8.8/",
    "http://127.0.0.1:{port}%2f@8.8.8.8/",
    "http://8.8.8.8:80\\@127.0.0.1:{port}/",
    "http://１２７.0.0.1:{port}/",
    "http://127。0。0。1:{port}/",
    "http://①②⑦.0.0.1:{port}/",
    "http://ⓛⓞⓒⓐⓛⓗⓞⓢⓣ:{port}/",
    "http://localhost.:{port}/",
    "http://127.0.0.1.:{port}/",
    "http://127.0.0.1%00:{port}/",
    "http://127.0.0.1%20:{port}/",
    "http://%31%32%37.0.0.1:{port}/",
    "http://127.0.0.256:{port}/",
    "http://[::1%25lo]:{port}/",
    "http://[fe80::1%25lo]:{port}/",
    "http://[::1:{port}/",
    "http://::1:{port}/",
    "http://[127.0.0.1]:{port}/",
    "http://[v1.127]:{port}/",
    "http:127.0.0.1:{port}/",
    "http:/127.0.0.1:{port}/",
    "http:///127.0.0.1:{port}/",
    "//127.0.0.1:{port}/",
    "127.0.0.1:{port}",
    "/",
    "",
    " http://127.0.0.1:{port}/",
    "http://127.0.0.1:{port}/\r\nHost: x",
    "http:// 127.0.0.1:{port}/",
    "http://127.0.0.1\t:{port}/",
    "http://\u200b127.0.0.1:{port}/",
    "http://\ud800:{port}/",
    "http://127.0.0.1:-1/",
    "http://127.0.0.1:99999/",
    "http://127.0.0.1:１/",
    "file:///etc/passwd",
    "file://127.0.0.1:{port}/etc/passwd",
    "ftp://127.0.0.1:{port}/",
    "gopher://127.0.0.1:{port}/_x",
    "dict://127.0.0.1:{port}/",
    "ldap://127.0.0.1:{port}/",
    "ws://127.0.0.1:{port}/",
    "wss://127.0.0.1:{port}/",
    "unix://127.0.0.1:{port}/",
    "http+unix://%2Fvar%2Frun%2Fdocker.sock/",
    "jar:http://127.0.0.1:{port}/!/",
    "data:text/plain,x",
    "javascript:alert(1)",
    "HTTP://LOCALHOST:{port}/",
    "hTTps://127.0.0.1:{port}/",
    "http://" + "a" * 64 + ".example:{port}/",
    "http://" + "a." * 200 + "example:{port}/",
    "http://no-such-host.invalid:{port}/",
    "http://.:{port}/",
    "http://..127.0.0.1:{port}/",
    "http://xn--:{port}/",
]
NUMERIC_URLS = [
    f"{scheme}://{f'[{number}]' if ':' in number else number}:{{port}}/x"
    for number in DENIED_NUMBERS
    if "%" not in number
    for scheme in ("http", "https")
]
TRICK_URLS = [f"http://{host}:{{port}}/latest/meta-data/" for host in TRICKS]


@asynccontextmanager
async def canary():
    async with serve(say(response(body=b"secret")), host="0.0.0.0") as heard:
        yield heard


async def fetch(client, url):
    async with asyncio.timeout(10):
        return await client.get(url)


def test_the_table_is_large_enough():
    assert len({*NUMERIC_URLS, *TRICK_URLS, *UNUSABLE}) >= 150


async def test_no_url_in_the_table_reaches_anything():
    async with canary() as heard, guarded_client() as client:
        for template in [*NUMERIC_URLS, *TRICK_URLS]:
            with pytest.raises(Denied) as caught:
                await fetch(client, template.format(port=heard.port))
            assert isinstance(caught.value, HTTPError), template
        for template in UNUSABLE:
            with pytest.raises(HTTPError):
                await fetch(client, template.format(port=heard.port))
    assert heard.connections == 0


async def test_the_canary_would_have_been_heard():
    async with canary() as heard, guarded_client(["127.0.0.0/8"]) as client:
        for host in ("127.0.0.1", "127.1", "0x7f.1", "2130706433", "localhost", "[::ffff:127.0.0.1]"):
            assert (await fetch(client, f"http://{host}:{heard.port}/")).text == "secret"
    assert heard.connections > 0


@pytest.mark.long
async def test_no_redirect_reaches_anything():
    async with canary() as heard:
        talks = {}
        targets = [template.format(port=heard.port) for template in (*TRICK_URLS, *NUMERIC_URLS, *UNUSABLE) if template.isascii()]
        targets = [target for target in targets if target.isprintable() and target.strip(" /")]
        # Relative ones lead back to where they came from.
        targets = [target for target in targets if ":" in target and not target.startswith(("http:127", "http:/127", "127"))]
        for number, target in enumerate(targets):
            talks[f"/{number}"] = response(302, location=target)
        async with serve(by_path(talks), host="127.0.0.9") as door, guarded_client(["127.0.0.9"]) as client:
            for number in range(len(targets)):
                with pytest.raises(HTTPError):
                    (await fetch(client, f"{door.url}/{number}")).raise_for_status()
            assert len(door.seen) >= len(targets)
    assert heard.connections == 0


# Names, with a DNS server of our own


class NameServer(asyncio.DatagramProtocol):
    """Answers each question for an address with the next of its answers; the last one stays."""

    def __init__(self, *answers):
        self.answers, self.asked = list(answers), 0

    def connection_made(self, transport):
        self.transport = transport

    def datagram_received(self, data, addr):
        self.asked += 1
        numbers = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        records = [ipaddress.ip_address(number).packed for number in numbers]
        question = data[12:]
        body = b"".join(struct.pack("!HHHIH", 0xC00C, 1 if len(raw) == 4 else 28, 1, 0, len(raw)) + raw for raw in records)
        self.transport.sendto(data[:2] + struct.pack("!HHHHH", 0x8180, 1, len(records), 0, 0) + question + body, addr)

    async def resolve(self, host, port):
        """What a stub resolver does, without a cache (a time to live of 0 is what rebinding uses)."""
        name = b"".join(bytes([len(label)]) + label.encode() for label in host.split(".")) + b"\0"
        loop = asyncio.get_running_loop()
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
            asking.setblocking(False)
            await loop.sock_connect(asking, self.transport.get_extra_info("sockname"))
            await loop.sock_sendall(asking, struct.pack("!HHHHHH", 7, 0x0100, 1, 0, 0, 0) + name + struct.pack("!HH", 1, 1))
            answer = await loop.sock_recv(asking, 4096)
        found, at = [], 12 + len(name) + 4
        for _ in range(struct.unpack("!H", answer[6:8])[0]):
            size = struct.unpack("!H", answer[at + 10 : at + 12])[0]
            found.append(str(ipaddress.ip_address(answer[at + 12 : at + 12 + size])))
            at += 12 + size
        return found


@asynccontextmanager
async def names(*answers):
    transport, server = await asyncio.get_running_loop().create_datagram_endpoint(lambda: NameServer(*answers), local_addr=("127.0.0.1", 0))
    try:
        yield server
    finally:
        transport.close()


async def test_a_name_that_changes_its_address_after_the_check_is_not_asked_again():
    async with names(["127.0.0.9"], ["127.0.0.1"]) as server, canary() as heard:
        async with (
            serve(say_and_close(response(body=b"right")), host="127.0.0.9") as door,
            guarded_client(["127.0.0.9"], resolve=server.resolve) as client,
        ):
            url = f"http://rebind.example.com:{door.port}/"
            assert (await fetch(client, url)).text == "right"
            assert server.asked == 1
            assert door.seen[0].headers["host"] == f"rebind.example.com:{door.port}"
            with pytest.raises(Denied, match="loopback"):
                await fetch(client, url)
            assert (server.asked, door.connections) == (2, 1)
        assert heard.connections == 0


async def test_one_private_address_among_public_ones_denies_the_name():
    for answer in (["8.8.8.8", "127.0.0.1"], ["127.0.0.1", "8.8.8.8"], ["2606:4700::1111", "::ffff:10.0.0.1"], ["1.1.1.1", "fe80::1"]):
        async with names(answer) as server, guarded_client(resolve=server.resolve) as client:
            with pytest.raises(Denied):
                await fetch(client, "http://mixed.example.com/")
            assert server.asked == 1


async def test_a_name_that_redirects_to_itself_is_looked_up_again_for_a_new_connection():
    async with names(["127.0.0.9"], ["169.254.169.254"]) as server:
        raw = response(302, location="/again", connection="close")
        async with serve(say(raw), host="127.0.0.9") as door, guarded_client(["127.0.0.9"], resolve=server.resolve) as client:
            with pytest.raises(Denied, match="metadata"):
                await fetch(client, f"http://rebind.example.com:{door.port}/")
    assert (server.asked, door.connections) == (2, 1)


async def test_the_next_address_is_tried_when_one_is_dead():
    async with (
        names(["127.0.0.8", "127.0.0.9"]) as server,
        serve(say(response(body=b"ok")), host="127.0.0.9") as door,
        guarded_client(["127.0.0.0/8"], resolve=server.resolve) as client,
    ):
        assert (await fetch(client, f"http://two.example.com:{door.port}/")).text == "ok"


async def test_a_name_without_an_address_or_with_a_slow_server_is_a_failed_connection():
    async def nothing(host, port):
        return []

    async def slow(host, port):
        await asyncio.Event().wait()
        return []

    async with guarded_client(resolve=nothing) as client:
        with pytest.raises(httpx.ConnectError):
            await fetch(client, "http://empty.example.com/")
    async with guarded_client(resolve=slow) as client:
        with pytest.raises(httpx.ConnectTimeout):
            await client.get("http://slow.example.com/", timeout=0.1)


async def test_tls_is_checked_against_the_name_and_not_the_number(tmp_path):
    server_tls, client_tls = make_tls(tmp_path)
    async with (
        names(["127.0.0.9"]) as server,
        serve(say(response(body=b"ok")), host="127.0.0.9", tls=server_tls) as door,
        guarded_client(["127.0.0.9"], resolve=server.resolve, tls=client_tls) as client,
    ):
        assert (await fetch(client, f"https://cdn.example.com:{door.port}/")).text == "ok"
        with pytest.raises(httpx.ConnectError):
            await fetch(client, f"https://other.example.com:{door.port}/")


async def test_unix_sockets_are_denied():
    guard = Guard((), resolve)
    with pytest.raises(Denied):
        await guard.connect_unix_socket("/var/run/docker.sock")


# Redirects, keys, sizes

LOOPBACK = ["127.0.0.0/8"]


async def test_five_redirects_are_followed_and_no_more():
    talks = {f"/{number}": response(302, location=f"/{number + 1}") for number in range(9)} | {"/9": response(body=b"end")}
    async with serve(by_path(talks)) as peer, guarded_client(LOOPBACK) as client:
        answer = await fetch(client, f"{peer.url}/4")
        assert (answer.text, len(answer.history), str(answer.url)) == ("end", 5, f"{peer.url}/9")
        with pytest.raises(httpx.TooManyRedirects):
            await fetch(client, f"{peer.url}/3")
        assert (await client.get(f"{peer.url}/4", follow_redirects=False)).status_code == 302


async def test_a_redirect_from_https_to_http_is_denied(tmp_path):
    server_tls, client_tls = make_tls(tmp_path)
    async with (
        serve(say(response())) as plain,
        serve(say(response(302, location=plain.url)), tls=server_tls) as safe,
        guarded_client(LOOPBACK, tls=client_tls) as client,
    ):
        with pytest.raises(Denied):
            await fetch(client, safe.url)
    assert plain.connections == 0


KEYS = {
    "Authorization": "Bearer k",
    "X-Api-Key": "k",
    "xi-api-key": "k",
    "Cookie": "k",
    "Ocp-Apim-Subscription-Key": "k",
    "Proxy-Authorization": "k",
}


async def test_keys_stay_behind_on_a_redirect_to_another_origin():
    async with (
        serve(say(response(body=b"ok"))) as other,
        serve(say(response(302, location=other.url))) as peer,
        guarded_client(LOOPBACK) as client,
    ):
        answer = await client.get(peer.url, headers={**KEYS, "Range": "bytes=5-", "Accept": "image/png"})
    assert answer.text == "ok"
    assert all(peer.seen[0].headers[name.lower()] == value for name, value in KEYS.items())
    assert not {name.lower() for name in KEYS} & set(other.seen[0].headers)
    assert (other.seen[0].headers["range"], other.seen[0].headers["accept"]) == ("bytes=5-", "image/png")
    assert other.seen[0].headers["host"] == f"127.0.0.1:{other.port}"


async def test_a_key_goes_along_within_one_origin():
    async with serve(by_path({"/a": response(302, location="/b"), "/b": response()})) as peer, guarded_client(LOOPBACK) as client:
        await client.get(f"{peer.url}/a", headers=KEYS, auth=None)
    assert peer.seen[1].headers["authorization"] == "Bearer k"


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_a_redirect_of_a_post_is_given_back(status):
    async with (
        serve(say(response())) as other,
        serve(say(response(status, location=other.url))) as peer,
        guarded_client(LOOPBACK) as client,
    ):
        assert (await client.post(peer.url, content=b"event")).status_code == status
    assert other.connections == 0


@pytest.mark.parametrize(
    "location", ["http://[broken/", "http://\x01/", "http://" + "a" * 64 + ".example/", "ftp://127.0.0.1/", "\\\\x", "//"]
)
async def test_a_redirect_that_leads_nowhere_is_an_http_error(location):
    async with serve(say(response(302, location=location))) as peer, guarded_client(LOOPBACK) as client:
        with pytest.raises(HTTPError):
            await fetch(client, f"{peer.url}/")


async def test_an_answer_read_whole_is_capped():
    async with serve(say(response(body=b"a" * (16 * 2**20 + 1)))) as peer, guarded_client(LOOPBACK) as client:
        with pytest.raises(HTTPError, match="over 16777216 bytes"):
            await fetch(client, peer.url)


async def test_a_streamed_answer_is_the_callers_to_cap():
    async with (
        serve(say(response(body=b"a" * (17 * 2**20)))) as peer,
        guarded_client(LOOPBACK) as client,
        client.stream("GET", peer.url) as answer,
    ):
        assert sum([len(piece) async for piece in answer.aiter_bytes()]) == 17 * 2**20


async def test_what_has_come_is_read_in_one_piece():
    come = bytearray(200 * 1024)

    class Come(httpcore.AsyncNetworkStream):
        async def read(self, max_bytes, timeout=None):
            piece = bytes(come[:max_bytes])
            del come[:max_bytes]
            return piece

    assert len(await WideStream(Come()).read(64 * 1024)) == 200 * 1024


async def test_what_has_come_by_tls_is_read_in_larger_pieces_than_its_records(tmp_path):
    server_tls, client_tls = make_tls(tmp_path)
    body = bytes(range(256)) * 8192
    async with (
        serve(say(response(body=body)), tls=server_tls) as peer,
        guarded_client(LOOPBACK, tls=client_tls) as client,
        client.stream("GET", peer.url) as answer,
    ):
        pieces = [piece async for piece in answer.aiter_bytes()]
    assert b"".join(pieces) == body
    assert max(map(len, pieces)) > 16 * 1024


HALF = response(body=b"a" * 50_000, content_length="100000")


async def garble(seen, writer):
    writer.write(HALF)
    await writer.drain()
    with socket.socket(fileno=os.dup(writer.get_extra_info("socket").fileno())) as wire:
        wire.send(b"no TLS" * 10)
    await hang(seen, writer)


@pytest.mark.parametrize("talk", [say_and_close(HALF), garble], ids=["cut off", "garbled"])
async def test_tls_that_breaks_in_an_answer_is_an_http_error_behind_what_came_before(tmp_path, talk):
    server_tls, client_tls = make_tls(tmp_path)
    came = bytearray()

    async def read(client, url):
        async with client.stream("GET", url) as answer:
            async for piece in answer.aiter_bytes():
                came.extend(piece)

    async with serve(talk, tls=server_tls) as peer, guarded_client(LOOPBACK, tls=client_tls) as client, asyncio.timeout(30):
        with pytest.raises(HTTPError):
            await read(client, peer.url)
    assert len(came) == 50_000


async def test_a_bomb_is_refused_while_streaming():
    bomb = gzip.compress(b"\0" * (64 * 2**20))
    seen = 0

    async def swallow(client, url):
        nonlocal seen
        async with client.stream("GET", url) as answer:
            async for piece in answer.aiter_bytes():
                assert len(piece) <= 64 * 1024
                seen += len(piece)

    async with serve(say(response(body=bomb, content_encoding="gzip"))) as peer, guarded_client(LOOPBACK) as client:
        with pytest.raises(HTTPError, match="bomb"):
            await swallow(client, peer.url)
    assert seen <= 17 * 2**20


async def test_a_compressed_answer_comes_in_small_pieces():
    raw = response(body=gzip.compress(b"\0" * (8 * 2**20)), content_encoding="gzip")
    async with serve(say(raw)) as peer, guarded_client(LOOPBACK) as client, client.stream("GET", peer.url) as answer:
        sizes = [len(piece) async for piece in answer.aiter_bytes()]
    assert (sum(sizes), max(sizes)) == (8 * 2**20, 64 * 1024)


async def test_compressed_answers_are_decoded_and_odd_words_for_it_ignored():
    talks = {
        "/gzip": response(body=gzip.compress(b"hello"), content_encoding="gzip"),
        "/word": response(body=b"hello", content_encoding="utf-8"),
        "/br": response(body=b"hello", content_encoding="br"),
        "/twice": response(body=gzip.compress(gzip.compress(b"hello")), content_encoding="gzip, x-gzip"),
    }
    async with serve(by_path(talks)) as peer, guarded_client(LOOPBACK) as client:
        assert (await fetch(client, f"{peer.url}/gzip")).text == "hello"
        assert (await fetch(client, f"{peer.url}/word")).text == "hello"
        for path in ("br", "twice"):
            with pytest.raises(HTTPError):
                await fetch(client, f"{peer.url}/{path}")


async def test_an_answer_that_trickles_runs_out_of_time(monkeypatch):
    monkeypatch.setattr("receiver.guarded.WHOLE_SECONDS", 0.2)
    async with serve(hang) as peer, guarded_client(LOOPBACK) as client:
        with pytest.raises(httpx.ReadTimeout):
            await fetch(client, peer.url)


async def test_the_environment_is_not_asked_and_cookies_are_not_kept(monkeypatch):
    async with canary() as proxy, serve(say(response(set_cookie="a=1"))) as peer:
        for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY", "https_proxy"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.port}")
        async with guarded_client(LOOPBACK, user_agent="me/1") as client:
            await fetch(client, peer.url)
            await fetch(client, peer.url)
    assert proxy.connections == 0
    assert [seen.headers.get("cookie") for seen in peer.seen] == [None, None]
    assert peer.seen[0].headers["user-agent"] == "me/1"


async def test_a_refused_connection_is_no_denial():
    async with guarded_client(LOOPBACK) as client:
        with pytest.raises(httpx.ConnectError) as caught:
            await fetch(client, f"http://127.0.0.1:{free_port()}/")
    assert not isinstance(caught.value, Denied)


async def test_a_denial_names_its_request():
    async with guarded_client() as client:
        with pytest.raises(AddressDenied, match="loopback") as caught:
            await fetch(client, "http://127.0.0.1/")
    assert caught.value.request.url.host == "127.0.0.1"


def test_an_httpx_that_keeps_its_connections_elsewhere_starts_no_guarded_client(monkeypatch):
    original = httpx.AsyncHTTPTransport.__init__

    def elsewhere(self, *args, **kwargs):
        original(self, *args, **kwargs)
        self._elsewhere = self.__dict__.pop("_pool")

    monkeypatch.setattr(httpx.AsyncHTTPTransport, "__init__", elsewhere)
    with pytest.raises(RuntimeError, match="guard"):
        guarded_client()
