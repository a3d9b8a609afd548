"""The files are what they say they are."""

import hashlib
import io
import json
import shutil
import struct
import subprocess
import wave
import zlib

import pytest

from receiver.simulator.media import TYPES, MediaFile

KINDS = list(TYPES)


def chunks_of_png(content: bytes):
    at = 8
    while at < len(content):
        length, name = struct.unpack(">I4s", content[at : at + 8])
        data = content[at + 8 : at + 8 + length]
        assert struct.unpack(">I", content[at + 8 + length : at + 12 + length])[0] == zlib.crc32(name + data)
        yield name, data
        at += 12 + length


def codecs(content: bytes, path):
    """What ffprobe finds in a file; None on a machine without it."""
    if shutil.which("ffprobe") is None:
        return None
    path.write_bytes(content)
    command = ["ffprobe", "-v", "error", "-show_entries", "stream=codec_name", "-of", "csv=p=0", str(path)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_is_the_same_for_a_seed_and_another_for_another(kind):
    assert MediaFile(kind, "a").content == MediaFile(kind, "a").content
    assert MediaFile(kind, "a").sha256 != MediaFile(kind, "b").sha256
    assert MediaFile(kind, "a").sha256 == hashlib.sha256(MediaFile(kind, "a").content).hexdigest()


def test_the_png_has_good_checksums_and_every_pixel(tmp_path):
    content = MediaFile("image", "boat").content
    assert content.startswith(b"\x89PNG\r\n\x1a\n")
    chunks = dict(chunks_of_png(content))
    assert list(chunks) == [b"IHDR", b"IDAT", b"IEND"]
    assert struct.unpack(">II", chunks[b"IHDR"][:8]) == (256, 256)
    assert len(zlib.decompress(chunks[b"IDAT"])) == 256 * (1 + 3 * 256)
    assert codecs(content, tmp_path / "boat.png") in (None, ["png"])


def test_the_mp4_is_a_row_of_whole_boxes(tmp_path):
    content, boxes, at = MediaFile("video", "boat").content, [], 0
    while at < len(content):
        length, name = struct.unpack(">I4s", content[at : at + 8])
        boxes.append(name)
        at += length
    assert at == len(content)
    assert (boxes[0], boxes[-1]) == (b"ftyp", b"free")
    assert {b"moov", b"mdat"} <= set(boxes)
    assert codecs(content, tmp_path / "boat.mp4") in (None, ["h264", "aac"])


def test_the_wav_is_a_tone(tmp_path):
    content = MediaFile("audio", "boat").content
    with wave.open(io.BytesIO(content)) as tone:
        assert (tone.getnchannels(), tone.getsampwidth(), tone.getframerate(), tone.getnframes()) == (1, 2, 16_000, 16_000)
        samples = struct.unpack("<16000h", tone.readframes(16_000))
    assert max(samples) > 10_000
    assert codecs(content, tmp_path / "boat.wav") in (None, ["pcm_s16le"])


def test_the_glb_is_a_closed_cube():
    content = MediaFile("3d", "boat").content
    magic, version, length = struct.unpack("<4sII", content[:12])
    assert (magic, version, length) == (b"glTF", 2, len(content))
    size, name = struct.unpack("<I4s", content[12:20])
    document, binary = json.loads(content[20 : 20 + size]), content[28 + size :]
    assert (name, size % 4, len(binary) % 4) == (b"JSON", 0, 0)
    assert document["buffers"][0]["byteLength"] <= len(binary)
    view = document["bufferViews"][2]
    indices = struct.unpack(f"<{view['byteLength'] // 2}H", binary[view["byteOffset"] : view["byteOffset"] + view["byteLength"]])
    assert (len(indices), max(indices), document["accessors"][0]["count"]) == (36, 23, 24)
    corners = [struct.unpack_from("<3f", binary, 12 * n) for n in range(24)]
    normals = [struct.unpack_from("<3f", binary, 24 * 12 + 12 * n) for n in range(24)]
    for a, b, c in zip(indices[::3], indices[1::3], indices[2::3], strict=True):
        u, v = ([q - p for p, q in zip(corners[a], corners[n], strict=True)] for n in (b, c))
        outward = (u[1] * v[2] - u[2] * v[1], u[2] * v[0] - u[0] * v[2], u[0] * v[1] - u[1] * v[0])
        assert outward == normals[a], "a side that is seen from within"
