from __future__ import annotations

import asyncio
import hashlib
import io
import os
import shutil
import stat
import struct
import zipfile
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from receiver.config import HandlerConfig
from receiver.errors import ConfigError
from receiver.handling import HTTPError, PermanentError, RetryLater, load_handler
from receiver.times import to_rfc3339
from tests.factories import NOW, make_event, make_job, make_stored
from tests.handler_kit import open_desk
from tests.loopback import Seen, response, serve

PNG = b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 4000  # about 1 MB
WAIT = 10.0


@pytest.fixture
async def desk(tmp_path):
    async with open_desk(tmp_path, "archive") as opened:
        yield opened


class Files:
    """A host of files that knows Range; `cut` ends the next answers after so many bytes."""

    def __init__(self, **files: bytes) -> None:
        self.files = files
        self.types: dict[str, str] = {}
        self.cut: list[int] = []
        self.knows_range = True
        self.tells_total = True

    async def talk(self, seen: Seen, writer: asyncio.StreamWriter) -> None:
        name = seen.target.strip("/")
        body = self.files.get(name)
        if body is None:
            writer.write(response(404))
            return
        headers = {"content_type": self.types.get(name, "application/octet-stream"), "connection": "close"}
        status, start = 200, 0
        if self.knows_range and "range" in seen.headers:
            start = int(seen.headers["range"].removeprefix("bytes=").removesuffix("-"))
            status, headers["content_range"] = 206, f"bytes {start}-{len(body) - 1}/{len(body)}"
        rest = body[start:]
        if self.tells_total:
            headers["content_length"] = str(len(rest))
        head = response(status, **headers)
        if not self.tells_total:
            head = head.replace(b"content-length: 0\r\n", b"")
        writer.write(head + (rest[: self.cut.pop(0)] if self.cut else rest))
        await writer.drain()
        writer.close()


def path_of(uri: str) -> Path:
    return Path(unquote(urlsplit(uri).path))


def files_in(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


async def test_every_output_is_kept_hashed_and_typed_by_its_content(desk, tmp_path):
    wav = b"RIFF\x00\x00\x00\x00WAVEfmt " + bytes(100)
    files = Files(a=PNG, b=wav)
    files.types = {"a": "text/html", "b": "image/png"}
    async with serve(files.talk) as peer:
        event = desk.succeed(f"{peer.url}/a", f"{peer.url}/b", media_type="video/mp4")
        await desk.make("storage", path="kept").handle(event)
    job_id = event.subject
    assert files_in(tmp_path) == [f"kept/elkapi/2026-07-01/{job_id}-0.png", f"kept/elkapi/2026-07-01/{job_id}-1.wav"]
    (_, _, first), (_, _, second) = desk.stored
    assert [(job, index) for job, index, _ in desk.stored] == [(job_id, 0), (job_id, 1)]
    assert path_of(first.uri).read_bytes() == PNG
    assert (first.bytes, first.sha256, first.media_type) == (len(PNG), hashlib.sha256(PNG).hexdigest(), "image/png")
    assert (second.bytes, second.sha256, second.media_type) == (len(wav), hashlib.sha256(wav).hexdigest(), "audio/wav")
    assert stat.S_IMODE(path_of(first.uri).stat().st_mode) & 0o111 == 0


async def test_when_all_is_kept_it_says_so_with_the_outputs_as_the_job_shows_them(desk):
    async with serve(Files(a=PNG).talk) as peer:
        event = desk.succeed(f"{peer.url}/a")
        await desk.make("storage").handle(event)
    digest = hashlib.sha256(PNG).hexdigest()
    uri = desk.stored[0][2].uri
    shown = {"index": 0, "url": f"{peer.url}/a", "media_type": None}
    stored = {"uri": uri, "bytes": len(PNG), "sha256": digest, "media_type": "image/png"}
    assert desk.emitted == [("job.stored", event.subject, {"outputs": [shown | {"stored": stored}]})]


async def test_other_events_and_jobs_without_outputs_are_nothing_to_it(desk, tmp_path):
    handler = desk.make("storage")
    async with serve(Files(a=PNG).talk) as peer:
        job = desk.jobs[desk.succeed(f"{peer.url}/a").subject]
        for event in (make_event(job, "job.processing"), make_event(job, "job.stored"), make_event(), desk.succeed()):
            await handler.handle(event)
        assert peer.seen == []
    assert (desk.emitted, desk.stored, files_in(tmp_path)) == ([], [], [])


async def test_what_was_cut_off_is_taken_up_where_it_ended(desk, tmp_path):
    files = Files(a=PNG)
    files.cut = [300_000, 300_000]
    handler = desk.make("storage")
    async with serve(files.talk) as peer:
        event = desk.succeed(f"{peer.url}/a")
        for _ in range(2):
            with pytest.raises(HTTPError):
                await handler.handle(event)
        assert (desk.stored, desk.emitted) == ([], [])
        await handler.handle(event)
    first, second, third = (offset for _, offset in desk.opened)
    assert first == 0
    assert 200_000 < second <= 300_000  # of the last piece some may be lost
    assert second + 200_000 < third <= 600_000
    assert [seen.headers.get("range") for seen in peer.seen] == [None, f"bytes={second}-", f"bytes={third}-"]
    ((_, _, stored),) = desk.stored
    assert path_of(stored.uri).read_bytes() == PNG
    assert stored.sha256 == hashlib.sha256(PNG).hexdigest()
    assert len(files_in(tmp_path)) == 1


async def test_a_host_that_does_not_know_ranges_is_read_from_the_start_again(desk):
    files = Files(a=PNG)
    files.cut, files.knows_range = [300_000], False
    handler = desk.make("storage")
    async with serve(files.talk) as peer:
        event = desk.succeed(f"{peer.url}/a")
        with pytest.raises(HTTPError):
            await handler.handle(event)
        await handler.handle(event)
    assert path_of(desk.stored[0][2].uri).read_bytes() == PNG


async def test_another_file_behind_the_same_link_is_not_joined_to_the_first(desk):
    files = Files(a=PNG)
    files.cut = [300_000]
    other = PNG[:50] + b"other" * 200_000
    handler = desk.make("storage")
    async with serve(files.talk) as peer:
        event = desk.succeed(f"{peer.url}/a")
        with pytest.raises(HTTPError):
            await handler.handle(event)
        files.files["a"] = other
        await handler.handle(event)
    stored = desk.stored[0][2]
    assert path_of(stored.uri).read_bytes() == other
    assert stored.sha256 == hashlib.sha256(other).hexdigest()


async def test_a_file_of_unknown_size_is_kept_and_begun_anew_after_a_fault(desk, monkeypatch):
    files = Files(a=PNG)
    files.tells_total = False
    async with serve(files.talk) as peer:
        event = desk.succeed(f"{peer.url}/a")
        place = desk.context.folder / "outputs/elkapi/2026-07-01"
        place.mkdir(parents=True)
        (place / f".{event.subject}-0.part").write_bytes(b"of an attempt that did not know how many there would be")
        await desk.make("storage").handle(event)
    assert path_of(desk.stored[0][2].uri).read_bytes() == PNG


async def test_a_part_that_was_whole_is_finished_without_the_network(desk):
    event = desk.succeed("http://127.0.0.1:1/gone")
    place = desk.context.folder / "outputs/elkapi/2026-07-01"
    place.mkdir(parents=True)
    (place / f".{event.subject}-0.part").write_bytes(PNG)
    (place / f".{event.subject}-0.total").write_text(str(len(PNG)))
    await desk.make("storage").handle(event)
    assert path_of(desk.stored[0][2].uri).read_bytes() == PNG
    assert files_in(place) == [f"{event.subject}-0.png"]


async def test_a_part_whose_total_was_lost_with_the_power_is_begun_anew(desk):
    async with serve(Files(a=PNG[:2000]).talk) as peer:
        event = desk.succeed(f"{peer.url}/a")
        place = desk.context.folder / "outputs/elkapi/2026-07-01"
        place.mkdir(parents=True)
        (place / f".{event.subject}-0.part").write_bytes(PNG[:1000])
        (place / f".{event.subject}-0.total").write_text("")
        await desk.make("storage").handle(event)
        assert "range" not in peer.seen[0].headers
    assert path_of(desk.stored[0][2].uri).read_bytes() == PNG[:2000]
    assert files_in(place) == [f"{event.subject}-0.png"]


async def test_a_part_is_not_whole_by_the_total_of_another_file(desk):
    files = Files(a=PNG)
    files.cut = [600_000]
    handler = desk.make("storage")
    async with serve(files.talk) as peer:
        event = desk.succeed(f"{peer.url}/a")
        with pytest.raises(HTTPError):
            await handler.handle(event)
        files.files["a"], files.cut = b"GIF89a" + bytes(2000), [0, 1500]
        with pytest.raises(HTTPError):
            await handler.handle(event)
        (noted,) = desk.context.folder.rglob("*.total")
        assert int(noted.read_text()) == 2006
        await handler.handle(event)
    assert path_of(desk.stored[0][2].uri).read_bytes() == files.files["a"]


async def test_what_is_there_already_is_recorded_and_not_fetched_again(desk):
    handler = desk.make("storage")
    async with serve(Files(a=PNG).talk) as peer:
        event = desk.succeed(f"{peer.url}/a")
        await handler.handle(event)
        await handler.handle(event)
        assert len(peer.seen) == 1
    assert desk.stored[0] == desk.stored[1]
    assert desk.emitted[0] == desk.emitted[1]


async def test_a_kept_file_with_another_hash_than_the_recorded_one_is_fetched_again(desk):
    handler = desk.make("storage")
    async with serve(Files(a=PNG).talk) as peer:
        event = desk.succeed(f"{peer.url}/a")
        await handler.handle(event)
        stored = desk.stored[0][2]
        damaged = path_of(stored.uri).rename(path_of(stored.uri).with_suffix(".bin"))
        damaged.write_bytes(b"damaged")
        event.data["job"]["outputs"][0]["stored"] = {"sha256": stored.sha256}
        await handler.handle(event)
    assert desk.stored[1] == desk.stored[0]
    assert path_of(stored.uri).read_bytes() == PNG
    assert not damaged.exists()


@pytest.mark.parametrize("tells_total", [True, False])
async def test_an_output_over_the_limit_is_dead_at_once_and_leaves_nothing(desk, tmp_path, tells_total):
    files = Files(a=PNG)
    files.tells_total = tells_total
    async with serve(files.talk) as peer:
        with pytest.raises(PermanentError, match="max_bytes"):
            await desk.make("storage", max_bytes="512KiB").handle(desk.succeed(f"{peer.url}/a"))
    assert files_in(tmp_path) == []
    assert desk.stored == []


async def test_an_output_of_just_the_limit_is_kept(desk):
    async with serve(Files(a=PNG).talk) as peer:
        await desk.make("storage", max_bytes=len(PNG)).handle(desk.succeed(f"{peer.url}/a"))
    assert desk.stored[0][2].bytes == len(PNG)


async def test_an_output_that_is_gone_is_dead_at_once_and_the_others_are_kept(desk):
    async with serve(Files(b=PNG).talk) as peer:
        event = desk.succeed(f"{peer.url}/a", f"{peer.url}/b")
        with pytest.raises(PermanentError, match="output 0 cannot be had any more"):
            await desk.make("storage").handle(event)
    assert [index for _, index, _ in desk.stored] == [1]
    assert desk.emitted == []
    assert [path.name for path in desk.context.folder.rglob("*.part")] == []


async def test_a_passing_fault_of_one_output_outweighs_the_end_of_another(desk):
    files = Files(b=PNG)
    files.cut = [10]
    async with serve(files.talk) as peer:
        event = desk.succeed(f"{peer.url}/a", f"{peer.url}/b")
        with pytest.raises(HTTPError):
            await desk.make("storage").handle(event)


async def test_a_second_attempt_at_the_same_output_leaves_the_first_alone(desk):
    gate = asyncio.Event()
    begun = asyncio.Event()

    async def talk(seen: Seen, writer: asyncio.StreamWriter) -> None:
        head = response(200, content_length=str(len(PNG)))
        writer.write(head + PNG[:1000])
        begun.set()
        await gate.wait()
        writer.write(PNG[1000:])

    handler = desk.make("storage")
    async with serve(talk) as peer:
        event = desk.succeed(f"{peer.url}/a")
        first = asyncio.create_task(handler.handle(event))
        await asyncio.wait_for(begun.wait(), WAIT)
        with pytest.raises(RetryLater):
            await desk.make("storage").handle(event)
        gate.set()
        await asyncio.wait_for(first, WAIT)
    assert path_of(desk.stored[0][2].uri).read_bytes() == PNG


async def test_a_cancelled_attempt_keeps_its_bytes_and_gives_up_its_place(desk, tmp_path):
    async def talk(seen: Seen, writer: asyncio.StreamWriter) -> None:
        if "range" in seen.headers:
            start = int(seen.headers["range"].removeprefix("bytes=").removesuffix("-"))
            writer.write(response(206, PNG[start:], content_range=f"bytes {start}-{len(PNG) - 1}/{len(PNG)}"))
            return
        writer.write(response(200, content_length=str(len(PNG))) + PNG[:600_000])
        await writer.drain()
        await asyncio.Event().wait()

    handler = desk.make("storage")
    async with serve(talk) as peer:
        event = desk.succeed(f"{peer.url}/a")
        first = asyncio.create_task(handler.handle(event))
        part = tmp_path / f"outputs/elkapi/2026-07-01/.{event.subject}-0.part"
        async with asyncio.timeout(WAIT):
            while not (part.exists() and part.stat().st_size):
                await asyncio.sleep(0)
        first.cancel()
        await asyncio.wait({first}, timeout=WAIT)
        assert first.cancelled()
        await asyncio.wait_for(handler.handle(event), WAIT)
        assert "range" in peer.seen[1].headers
    assert path_of(desk.stored[0][2].uri).read_bytes() == PNG


async def test_a_full_disk_is_a_passing_fault_and_loses_nothing_that_it_took(desk, monkeypatch):
    real, left = os.pwritev, [1000]

    def fill(file, pieces, offset):
        if not left:
            return real(file, pieces, offset)
        if not left[0]:
            raise OSError(28, "No space left on device")
        count, left[0] = left[0], 0
        return real(file, [b"".join(pieces)[:count]], offset)

    monkeypatch.setattr(os, "pwritev", fill)  # a full disk cannot be had without mounting one
    handler = desk.make("storage")
    async with serve(Files(a=PNG).talk) as peer:
        event = desk.succeed(f"{peer.url}/a")
        with pytest.raises(OSError, match="No space left"):
            await handler.handle(event)
        left.clear()  # somebody made room
        await handler.handle(event)
    assert desk.opened == [(0, 0), (0, 1000)]
    assert path_of(desk.stored[0][2].uri).read_bytes() == PNG


async def test_folders_are_synced_up_to_the_root_while_they_are_new(desk, tmp_path, monkeypatch):
    real, synced = os.fsync, []

    def note(handle):
        path = Path(os.readlink(f"/proc/self/fd/{handle}"))
        if path.is_dir():
            synced.append(path)
        real(handle)

    monkeypatch.setattr(os, "fsync", note)
    handler = desk.make("storage", path="kept", name="{provider}/{job}-{index}{ext}")
    root, folder = tmp_path / "kept", tmp_path / "kept" / "elkapi"
    async with serve(Files(a=PNG).talk) as peer:
        await handler.handle(desk.succeed(f"{peer.url}/a"))
        assert synced == [folder, root]
        await handler.handle(desk.succeed(f"{peer.url}/a"))
        assert synced[2:] == [folder]
        shutil.rmtree(root)  # somebody tidied up
        await handler.handle(desk.succeed(f"{peer.url}/a"))
        assert synced[3:] == [folder, root]


async def test_no_name_from_outside_leads_out_of_the_folder(desk, tmp_path):
    async with serve(Files(a=PNG).talk) as peer:
        event = desk.succeed(f"{peer.url}/a")
        event.data["job"] |= {"provider": "../../up", "created_at": "../../..//etc"}
        await desk.make("storage", path="in/side").handle(event)
    assert [path.split("/")[:2] for path in files_in(tmp_path)] == [["in", "side"]]


@pytest.mark.parametrize(
    ("options", "key", "said"),
    [
        ({"path": "file:///srv"}, "path", '"file://" is not supported; name a folder'),
        ({"path": " "}, "path", "must be a folder"),
        ({"max_bytes": "many"}, "max_bytes", "must be a size"),
        ({"max_bytes": 0}, "max_bytes", "at least 1"),
        ({"max_bytes": 1.5}, "max_bytes", "Expected `int | str`"),
        ({"pth": "x"}, "pth", 'did you mean "path"?'),
    ],
)
def test_mistakes_in_its_options_are_told_at_start(tmp_path, options, key, said):
    with pytest.raises(ConfigError) as raised:
        load_handler(HandlerConfig(name="archive", use="storage", options=options), tmp_path)
    (mistake,) = raised.value.mistakes
    assert mistake.key == f"handlers.archive.options.{key}"
    assert said in mistake.detail


def box(brand: bytes, *compatible: bytes) -> bytes:
    body = b"ftyp" + brand + bytes(4) + b"".join(compatible)
    return struct.pack(">I", len(body) + 4) + body + b"\0\0\0\x08moov"


def zipped(name: str) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(name, "x")
    return file.getvalue()


@pytest.mark.parametrize(
    ("body", "declared", "media_type", "extension"),
    [
        (b"\xff\xd8\xff\xe0" + bytes(50), "image/png", "image/jpeg", "jpg"),
        (b"GIF89a" + bytes(50), None, "image/gif", "gif"),
        (b"RIFF\0\0\0\0WEBPVP8 ", "image/png", "image/webp", "webp"),
        (box(b"avif"), None, "image/avif", "avif"),
        (box(b"mif1", b"miaf", b"avif"), None, "image/avif", "avif"),
        (box(b"heic"), None, "image/heic", "heic"),
        (box(b"isom", b"mp41"), None, "video/mp4", "mp4"),
        (box(b"qt  "), "video/mp4", "video/quicktime", "mov"),
        (box(b"M4A "), None, "audio/mp4", "m4a"),
        (b"\x1a\x45\xdf\xa3\x9fB\x86\x81\x01B\x82\x84webm", None, "video/webm", "webm"),
        (b"\x1a\x45\xdf\xa3\x9fB\x86\x81\x01B\x82\x88matroska", None, "video/matroska", "mkv"),
        (b"ID3\x04" + bytes(50), None, "audio/mpeg", "mp3"),
        (b"\xff\xfb\x90\x64" + bytes(50), "video/mp4", "audio/mpeg", "mp3"),
        (b"\xff\xf1\x50\x80" + bytes(50), None, "audio/aac", "aac"),
        (b"fLaC" + bytes(50), None, "audio/flac", "flac"),
        (b"OggS" + bytes(24) + b"\x01vorbis", None, "audio/ogg", "ogg"),
        (b"OggS" + bytes(24) + b"\x80theora", None, "video/ogg", "ogv"),
        (b"glTF\x02\0\0\0", "application/octet-stream", "model/gltf-binary", "glb"),
        (b'{"asset": {"version": "2.0"}, "scenes": []}', "application/json", "model/gltf+json", "gltf"),
        (b"# cube\nv 0.0 1.0 -1\nv 1 1 1\n", None, "model/obj", "obj"),
        (zipped("scene.usdc"), None, "model/vnd.usdz+zip", "usdz"),
        (zipped("a.txt"), "model/gltf-binary", "application/zip", "zip"),
        (b"%PDF-1.7\n", None, "application/pdf", "pdf"),
        (b'[{"a": 1}]', None, "application/json", "json"),
        (b"\n<!-- x --><!DOCTYPE html><script>", "image/png", "text/html", "html"),
        (b'<?xml version="1.0"?><svg xmlns="x">', "image/png", "image/svg+xml", "svg"),
        (b"WEBVTT\n\n", "text/vtt; charset=utf-8", "text/vtt", "vtt"),
        (b"\x00\x01\x02\x03", "Image/PNG", "image/png", "png"),
        (b"\x00\x01\x02\x03", "application/x-evil.exe", "application/octet-stream", "bin"),
        (b"", None, "application/octet-stream", "bin"),
    ],
)
async def test_the_media_type_is_what_the_bytes_prove(desk, body, declared, media_type, extension):
    async with serve(Files(a=body).talk) as peer:
        event = desk.succeed(f"{peer.url}/a", media_type=declared)
        handler = desk.make("storage")
        await handler.handle(event)
        await handler.handle(event)
    (_, _, first), (_, _, again) = desk.stored
    assert (first.media_type, Path(first.uri).suffix) == (media_type, f".{extension}")
    assert again == first


async def test_a_job_that_shows_a_kept_file_elsewhere_is_kept_here_too(desk):
    async with serve(Files(a=PNG).talk) as peer:
        event = desk.succeed(f"{peer.url}/a", created_at=NOW, updated_at=NOW)
        event.data["job"]["outputs"][0]["stored"] = {"uri": make_stored().uri, "sha256": make_stored().sha256}
        await desk.make("storage", path="second").handle(event)
    assert "second" in desk.stored[0][2].uri
    assert to_rfc3339(NOW)[:10] in desk.stored[0][2].uri
    assert make_job().provider in desk.stored[0][2].uri
