"""What kind of file it is: by its first bytes, then by what others say."""

from __future__ import annotations

import re

HEAD_BYTES = 64 * 1024  # looked at to find the type

UNKNOWN = "application/octet-stream"
# A declared type that is not among these counts for nothing.
EXTENSIONS = {
    "image/png": "png",
    "image/jpeg": "jpg",
    "image/gif": "gif",
    "image/webp": "webp",
    "image/avif": "avif",
    "image/heic": "heic",
    "image/bmp": "bmp",
    "image/tiff": "tiff",
    "image/svg+xml": "svg",
    "video/mp4": "mp4",
    "video/quicktime": "mov",
    "video/webm": "webm",
    "video/matroska": "mkv",
    "video/ogg": "ogv",
    "audio/mpeg": "mp3",
    "audio/wav": "wav",
    "audio/flac": "flac",
    "audio/ogg": "ogg",
    "audio/mp4": "m4a",
    "audio/aac": "aac",
    "model/gltf-binary": "glb",
    "model/gltf+json": "gltf",
    "model/obj": "obj",
    "model/stl": "stl",
    "model/vnd.usdz+zip": "usdz",
    "application/zip": "zip",
    "application/gzip": "gz",
    "application/pdf": "pdf",
    "application/json": "json",
    "text/html": "html",
    "text/plain": "txt",
    "text/vtt": "vtt",
    UNKNOWN: "bin",
}
TYPES_BY_EXTENSION = {extension: media_type for media_type, extension in EXTENSIONS.items()}

MAGIC = (
    (b"\x89PNG\r\n\x1a\n", "image/png"),
    (b"\xff\xd8\xff", "image/jpeg"),
    (b"GIF87a", "image/gif"),
    (b"GIF89a", "image/gif"),
    (b"II*\0", "image/tiff"),
    (b"MM\0*", "image/tiff"),
    (b"ID3", "audio/mpeg"),
    (b"fLaC", "audio/flac"),
    (b"glTF", "model/gltf-binary"),
    (b"%PDF-", "application/pdf"),
    (b"\x1f\x8b\x08", "application/gzip"),
)
RIFF = {b"WEBP": "image/webp", b"WAVE": "audio/wav"}
# The major brand of an ISO base media file: https://mp4ra.org/registered-types/brands
BRANDS = {
    b"avif": "image/avif",
    b"avis": "image/avif",
    b"heic": "image/heic",
    b"heix": "image/heic",
    b"mif1": "image/heic",
    b"msf1": "image/heic",
    b"qt  ": "video/quicktime",
    b"M4A ": "audio/mp4",
    b"M4B ": "audio/mp4",
}
HTML = re.compile(rb"(?:<!--.*?-->\s*)*<(?:!doctype html|html|head|body|script|iframe|title)\b", re.IGNORECASE | re.DOTALL)
SVG = re.compile(rb"(?:<\?xml[^>]*>\s*|<!--.*?-->\s*|<!doctype svg[^>]*>\s*)*<svg\b", re.IGNORECASE | re.DOTALL)
OBJ = re.compile(rb"^v[ \t]+-?[0-9.]+[ \t]+-?[0-9.]+[ \t]+-?[0-9.]+", re.MULTILINE)


def choose_declared(*declared: str | None) -> str:
    """The first of the types that others name that says something."""
    for text in declared:
        media_type = (text or "").partition(";")[0].strip().lower()
        if media_type in EXTENSIONS and media_type != UNKNOWN:
            return media_type
    return UNKNOWN


def find_type(head: bytes) -> str | None:
    """The media type that the first bytes of a file prove."""
    for magic, media_type in MAGIC:
        if head.startswith(magic):
            return media_type
    return _find_container(head) or _find_frames(head) or _find_text(head)


def _find_container(head: bytes) -> str | None:
    if head.startswith(b"RIFF"):
        return RIFF.get(head[8:12])
    if head[4:8] == b"ftyp":
        # A picture may name a general brand first and its own one among the compatible ones.
        compatible = head[16 : int.from_bytes(head[:4], "big")]
        is_avif = head[8:12] in (b"mif1", b"msf1") and b"avif" in compatible
        return "image/avif" if is_avif else BRANDS.get(head[8:12], "video/mp4")
    if head[4:8] in (b"moov", b"mdat", b"wide"):
        return "video/quicktime"
    if head.startswith(b"\x1a\x45\xdf\xa3"):
        return "video/webm" if b"webm" in head[:64] else "video/matroska"
    if head.startswith(b"OggS"):
        return "video/ogg" if b"theora" in head[:64] else "audio/ogg"
    if head.startswith(b"PK\x03\x04"):
        # A USDZ is a ZIP whose first file is a USD: https://openusd.org/release/spec_usdz.html
        name = head[30 : 30 + int.from_bytes(head[26:28], "little")]
        return "model/vnd.usdz+zip" if name.endswith((b".usd", b".usda", b".usdc")) else "application/zip"
    if head.startswith(b"BM") and head[6:10] == b"\0\0\0\0":
        return "image/bmp"
    return None


def _find_frames(head: bytes) -> str | None:
    """MPEG audio without a header of its own: eleven set bits, then a layer and rates that exist."""
    if len(head) < 4 or head[0] != 0xFF or head[1] & 0xE0 != 0xE0:
        return None
    if head[1] & 0xF6 == 0xF0:
        return "audio/aac"
    layer, bitrate, sample_rate = head[1] >> 1 & 3, head[2] >> 4, head[2] >> 2 & 3
    return "audio/mpeg" if layer in (1, 2) and bitrate not in (0, 15) and sample_rate != 3 else None


def _find_text(head: bytes) -> str | None:
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    if b"\0" in text:
        return None
    if HTML.match(text):
        return "text/html"
    if SVG.match(text):
        return "image/svg+xml"
    if re.match(rb'[{\[]\s*["{\[\]}\d-]', text):
        is_gltf = re.search(rb'"asset"\s*:\s*\{', text) and re.search(rb'"(?:scenes?|nodes|meshes|buffers)"\s*:', text)
        return "model/gltf+json" if is_gltf else "application/json"
    return "model/obj" if OBJ.search(text[:4096]) else None
