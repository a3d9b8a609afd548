"""Files that ordinary programs open: a PNG, an MP4, a WAV and a GLB, each different for each seed."""

from __future__ import annotations

import hashlib
import json
import math
import struct
import zlib
from functools import lru_cache
from pathlib import Path
from typing import Literal

import msgspec

Kind = Literal["image", "video", "audio", "3d"]
TYPES: dict[Kind, tuple[str, str]] = {
    "image": ("png", "image/png"),
    "video": ("mp4", "video/mp4"),
    "audio": ("wav", "audio/wav"),
    "3d": ("glb", "model/gltf-binary"),
}


class MediaFile(msgspec.Struct, frozen=True):
    """A file that is made again, byte for byte, whenever it is asked for."""

    kind: Kind
    seed: str

    @property
    def extension(self) -> str:
        return TYPES[self.kind][0]

    @property
    def media_type(self) -> str:
        return TYPES[self.kind][1]

    @property
    def content(self) -> bytes:
        return render(self.kind, self.seed)

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()


@lru_cache(maxsize=64)
def render(kind: Kind, seed: str) -> bytes:
    """The same kind and seed give the same bytes."""
    digest = hashlib.sha256(seed.encode()).digest()
    match kind:
        case "image":
            return make_png(digest)
        case "video":
            return make_mp4(digest)
        case "audio":
            return make_wav(digest)
        case "3d":
            return make_glb(digest)


def make_png(digest: bytes, size: int = 256) -> bytes:
    """Waves of two colours over a gradient. A row is a piece of one long wave, and so are its differences: quick and small."""
    red = _wave(size * 3, cycles=2 + digest[0] % 5, low=digest[1] // 2, high=255)
    blue = _wave(size * 3, cycles=2 + digest[2] % 5, low=40, high=120 + digest[3] // 2)
    red_differences, blue_differences = _differences(red), _differences(blue)
    red_slope, blue_slope = 1 + digest[4] % 2, 1 + digest[5] % 2
    rows = bytearray()
    for y in range(size):
        at, back = y * red_slope, (size - y) * blue_slope
        row = bytearray(size * 3)
        row[0::3] = red[at : at + 1] + red_differences[at + 1 : at + size]
        row[1] = digest[6] // 2 + 120 * y // size
        row[2::3] = blue[back : back + 1] + blue_differences[back + 1 : back + size]
        rows += b"\1" + row  # filter 1: each pixel as its difference from the one before
    header = struct.pack(">IIBBBBB", size, size, 8, 2, 0, 0, 0)  # 8 bits, RGB, no interlace
    chunks = _png_chunk(b"IHDR", header), _png_chunk(b"IDAT", zlib.compress(bytes(rows), 6)), _png_chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def _differences(values: bytes) -> bytes:
    return bytes((value - before) % 256 for before, value in zip(b"\0" + values, values, strict=False))


def _wave(length: int, cycles: int, low: int, high: int) -> bytes:
    middle, swing = (low + high) / 2, (high - low) / 2
    return bytes(int(middle + swing * math.sin(2 * math.pi * cycles * x / length)) for x in range(length))


def _png_chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def make_mp4(digest: bytes) -> bytes:
    """Three seconds of H.264 and AAC; a `free` box at the end, which players skip, makes each file its own."""
    note = b"simulated " + digest.hex().encode()
    return _clip() + struct.pack(">I", 8 + len(note)) + b"free" + note


@lru_cache(maxsize=1)
def _clip() -> bytes:
    return (Path(__file__).parent / "clip.mp4").read_bytes()


def make_wav(digest: bytes, seconds: float = 1.0, rate: int = 16_000) -> bytes:
    """A tone with its fifth, fading out: 16 bits, mono."""
    pitch = 220 * 2 ** (digest[0] % 24 / 12)
    count = int(seconds * rate)
    turn = 2 * math.pi * pitch / rate
    samples = ((1 - n / count) * (0.5 * math.sin(turn * n) + 0.25 * math.sin(1.5 * turn * n)) for n in range(count))
    data = struct.pack(f"<{count}h", *(int(32_000 * sample) for sample in samples))
    note = _riff_chunk(b"LIST", b"INFO" + _riff_chunk(b"ICMT", digest.hex().encode()))
    body = b"WAVE" + _riff_chunk(b"fmt ", struct.pack("<HHIIHH", 1, 1, rate, rate * 2, 2, 16)) + note + _riff_chunk(b"data", data)
    return _riff_chunk(b"RIFF", body)


def _riff_chunk(name: bytes, data: bytes) -> bytes:
    return name + struct.pack("<I", len(data)) + data + b"\0" * (len(data) % 2)


def make_glb(digest: bytes) -> bytes:
    """A cube in a colour of its own, as binary glTF 2.0."""
    positions, normals, indices = _cube()
    vertices = struct.pack(f"<{len(positions)}f", *positions)
    directions = struct.pack(f"<{len(normals)}f", *normals)
    triangles = struct.pack(f"<{len(indices)}H", *indices)
    binary = vertices + directions + triangles
    count = len(positions) // 3
    colour = [*(round(part / 255, 3) for part in digest[:3]), 1.0]
    document = {
        "asset": {"version": "2.0", "generator": "receiver simulator"},
        "scene": 0,
        "scenes": [{"nodes": [0]}],
        "nodes": [{"mesh": 0, "name": digest.hex()[:12]}],
        "meshes": [{"primitives": [{"attributes": {"POSITION": 0, "NORMAL": 1}, "indices": 2, "material": 0}]}],
        "materials": [{"pbrMetallicRoughness": {"baseColorFactor": colour, "metallicFactor": 0.1}}],
        "buffers": [{"byteLength": len(binary)}],
        "bufferViews": [
            {"buffer": 0, "byteOffset": 0, "byteLength": len(vertices), "target": 34962},
            {"buffer": 0, "byteOffset": len(vertices), "byteLength": len(directions), "target": 34962},
            {"buffer": 0, "byteOffset": len(vertices) + len(directions), "byteLength": len(triangles), "target": 34963},
        ],
        "accessors": [
            {"bufferView": 0, "componentType": 5126, "count": count, "type": "VEC3", "min": [-0.5] * 3, "max": [0.5] * 3},
            {"bufferView": 1, "componentType": 5126, "count": count, "type": "VEC3"},
            {"bufferView": 2, "componentType": 5123, "count": len(indices), "type": "SCALAR"},
        ],
    }
    chunks = _glb_chunk(b"JSON", json.dumps(document, separators=(",", ":")).encode(), b" ") + _glb_chunk(b"BIN\0", binary, b"\0")
    return struct.pack("<4sII", b"glTF", 2, 12 + len(chunks)) + chunks


def _cube() -> tuple[list[float], list[float], list[int]]:
    """Four corners and two triangles for each of the six sides, counter-clockwise as seen from outside."""
    positions: list[float] = []
    normals: list[float] = []
    indices: list[int] = []
    for axis in range(3):
        for side in (-0.5, 0.5):
            first = len(positions) // 3
            for u, v in ((-0.5, -0.5), (0.5, -0.5), (0.5, 0.5), (-0.5, 0.5)):
                corner = [0.0, 0.0, 0.0]
                corner[axis], corner[(axis + 1) % 3], corner[(axis + 2) % 3] = side, u, v
                positions += corner
                normals += [2 * side if n == axis else 0.0 for n in range(3)]
            order = (0, 1, 2, 0, 2, 3) if side > 0 else (0, 2, 1, 0, 3, 2)
            indices += [first + n for n in order]
    return positions, normals, indices


def _glb_chunk(name: bytes, data: bytes, padding: bytes) -> bytes:
    data += padding * (-len(data) % 4)
    return struct.pack("<I4s", len(data), name) + data
