"""Compressed bodies, decoded in pieces of bounded size, so that a small body cannot become a large one in memory."""

from __future__ import annotations

import zlib
from collections.abc import Iterator

PIECE_BYTES = 64 * 1024
# A body that grows beyond both is a bomb. Text and geometry shrink to a tenth, seldom to a fiftieth; a bomb to a thousandth.
HARMLESS_BYTES = 16 * 2**20
MAX_GROWTH = 200

MOST_MEMBERS = 16  # of one gzip that was pushed to us; each costs time, also an empty one of twenty bytes
WINDOWS = {  # https://www.rfc-editor.org/rfc/rfc9110#section-8.4.1; some send deflate without the frame that it says
    "gzip": (zlib.MAX_WBITS | 16,),
    "x-gzip": (zlib.MAX_WBITS | 16,),
    "deflate": (zlib.MAX_WBITS, -zlib.MAX_WBITS),
}

UNKNOWN_CODINGS = frozenset({"br", "compress", "dcb", "dcz", "deflate", "x-compress", "zstd"})


class UnusableAnswer(ValueError):
    """An answer that came and is not one that we take: broken, cut off, too large, of a kind that was not asked for."""


def choose_coding(content_encoding: str) -> str | None:
    """`gzip`, or None for a body that stands as it is. Servers put other words there too (`utf-8`, `aws-chunked`): they mean nothing."""
    codings = [word.strip().lower() for word in content_encoding.split(",")]
    if any(coding in UNKNOWN_CODINGS for coding in codings):
        raise UnusableAnswer(f"is compressed in a way that was not asked for ({content_encoding[:40]!r})")
    packed = [coding for coding in codings if coding in ("gzip", "x-gzip")]
    if len(packed) > 1:
        raise UnusableAnswer("is compressed more than once")
    return "gzip" if packed else None


class Gunzip:
    """Decodes gzip as it comes."""

    def __init__(self) -> None:
        self._zlib = zlib.decompressobj(zlib.MAX_WBITS | 16)
        self._taken = self._given = 0
        self._has_more = False

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Pieces of at most 64 KiB. Raises UnusableAnswer."""
        self._taken += len(data)
        while data or self._has_more:
            if self._zlib.eof:
                if not data.startswith(b"\x1f"):  # padding
                    return
                self._zlib = zlib.decompressobj(zlib.MAX_WBITS | 16)  # several members in a row are one body (RFC 1952)
            try:
                piece = self._zlib.decompress(data, PIECE_BYTES)
            except zlib.error:
                raise UnusableAnswer("is not the gzip that it says it is") from None
            data = self._zlib.unused_data if self._zlib.eof else self._zlib.unconsumed_tail
            # A full piece may have left something inside of zlib without any input being left over.
            self._has_more = len(piece) == PIECE_BYTES and not self._zlib.eof
            self._given += len(piece)
            if self._given > HARMLESS_BYTES and self._given > MAX_GROWTH * self._taken:
                raise UnusableAnswer("is a decompression bomb")
            if piece:
                yield piece

    def finish(self) -> None:
        """Raises UnusableAnswer when the body ended before its end. No body at all is none (HEAD, 304)."""
        if self._taken and not self._zlib.eof:
            raise UnusableAnswer("is cut off inside its gzip")


def unpack(body: bytes, coding: str, limit: int) -> bytes | None:
    """A body that came as a whole in one of the codings of WINDOWS. None where it is none, is cut off, or has more than `limit` bytes."""
    found = (_inflate(body, window, limit) for window in WINDOWS[coding])
    return next((plain for plain in found if plain is not None), None)


def _inflate(body: bytes, window: int, limit: int) -> bytes | None:
    plain = b""
    for _ in range(MOST_MEMBERS):
        member = zlib.decompressobj(window)
        try:
            plain += member.decompress(body, limit + 1 - len(plain))
        except zlib.error:
            return None
        if not member.eof or len(plain) > limit:
            return None
        body = member.unused_data.lstrip(b"\0")  # padding
        if not body:
            return plain
    return None
