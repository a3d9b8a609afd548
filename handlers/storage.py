"""Keeps every output of a job in a folder or a bucket: streamed, size-capped, hashed, typed by content, whole or not there, once."""

from __future__ import annotations

import asyncio
import fcntl
import hashlib
import importlib.util
import os
import re
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, TypeVar

import msgspec

from receiver.handling import (
    BadOptions,
    Context,
    Event,
    HTTPError,
    OutputGone,
    OutputStream,
    PermanentError,
    RetryLater,
    Stored,
    is_web_address,
    parse_size,
)

from .storage_names import DEFAULT, PLAIN, Name, NameTemplate
from .storage_types import EXTENSIONS, HEAD_BYTES, TYPES_BY_EXTENSION, UNKNOWN, choose_declared, find_type

WRITE_BYTES = 256 * 1024  # collected before a thread writes them
MOST_WAITING = 1024 * 1024  # while it does
BUCKET = re.compile(r"s3://([a-z0-9][a-z0-9.-]{1,61}[a-z0-9])(?:/(.{0,200}))?")
BUCKET_LIMIT = 5 * 1024**3  # of one copy within S3: https://docs.aws.amazon.com/AmazonS3/latest/userguide/qfacts.html
BUCKET_OPTIONS = ("endpoint", "region", "access_key_id", "secret_access_key")
T = TypeVar("T")


class StorageOptions(msgspec.Struct):
    """`path`: a folder, relative to that of the configuration file, or `s3://BUCKET/PREFIX`. `name`: of each file in it.

    `max_bytes`: of one output. The others are for `s3://` alone; what is left out there, the environment says (`AWS_ACCESS_KEY_ID`, …).
    """

    path: str = "outputs"
    name: str = DEFAULT
    max_bytes: int | str = "5GiB"
    endpoint: str | None = None
    region: str | None = None
    access_key_id: str | None = None
    secret_access_key: str | None = None

    def __post_init__(self) -> None:
        mistakes = self._find_bucket_mistakes() if "://" in self.path else self._find_folder_mistakes()
        try:
            NameTemplate(self.name)
        except ValueError as error:
            mistakes["name"] = str(error)
        try:
            size = parse_size(self.max_bytes)
            if size < 1:
                mistakes["max_bytes"] = "must be at least 1"
            elif self.is_bucket and size > BUCKET_LIMIT:
                mistakes["max_bytes"] = "must be at most 5GiB where outputs go to a bucket"
        except ValueError as error:
            mistakes["max_bytes"] = str(error)
        if mistakes:
            raise BadOptions(mistakes)

    def __repr__(self) -> str:
        return f"StorageOptions(path={self.path!r}, …)"  # the key is a secret

    @property
    def is_bucket(self) -> bool:
        return self.path.startswith("s3://")

    def split_bucket(self) -> tuple[str, tuple[str, ...]]:
        """The bucket's name and the folders below it."""
        found = BUCKET.fullmatch(self.path)
        assert found is not None
        return found[1], tuple((found[2] or "").strip("/").split("/")) if (found[2] or "").strip("/") else ()

    def _find_folder_mistakes(self) -> dict[str, str]:
        mistakes = {}
        if not self.path.strip() or "\0" in self.path:
            mistakes["path"] = 'must be a folder, like "outputs", or "s3://BUCKET/PREFIX"'
        for option in BUCKET_OPTIONS:
            if getattr(self, option) is not None:
                mistakes[option] = 'is only for a path like "s3://BUCKET/PREFIX"'
        return mistakes

    def _find_bucket_mistakes(self) -> dict[str, str]:
        if not self.is_bucket:
            scheme = self.path.partition("://")[0]
            return {"path": f'"{scheme}://" is not supported; name a folder, like "outputs", or "s3://BUCKET/PREFIX"'}
        mistakes = {}
        if not BUCKET.fullmatch(self.path):
            mistakes["path"] = 'must be "s3://BUCKET/PREFIX", with small letters, digits, "." and "-" in the bucket\'s name'
        elif any(not folder or folder.startswith(".") or not PLAIN.fullmatch(folder) for folder in self.split_bucket()[1]):
            mistakes["path"] = 'has a folder below the bucket that is empty, begins with "." or has letters other than those of English'
        elif importlib.util.find_spec("obstore") is None:
            mistakes["path"] = '"s3://" needs more packages: pip install "callback-receiver[s3]"'
        if self.endpoint is not None and not is_web_address(self.endpoint):
            mistakes["endpoint"] = "must be an address that begins with http:// or https://"
        if (self.access_key_id is None) != (self.secret_access_key is None):
            missing = "access_key_id" if self.access_key_id is None else "secret_access_key"
            mistakes[missing] = "is missing; give both or none of access_key_id and secret_access_key"
        return mistakes


class Shelf(Protocol):
    """Where outputs are kept."""

    async def keep(self, job: dict[str, Any], output: dict[str, Any]) -> Stored:
        """Keep one, or find that it is kept already."""


class Storage:
    """Keeps the outputs of `job.succeeded` as PATH/PROVIDER/DATE/JOB-INDEX.EXT, or as `name` says, then emits `job.stored`.

    An output that fails does not keep the others from being kept. In a folder, what was cut off is taken up again where it ended, so a
    large file needs several attempts when the handler's `timeout` is short; into a bucket it has to come in one.
    """

    Options = StorageOptions

    def __init__(self, options: StorageOptions, context: Context) -> None:
        self._context = context
        self._shelf = make_shelf(options, context)

    async def handle(self, event: Event) -> None:
        job = event.data.get("job")
        if event.type != "job.succeeded" or not job or not job["outputs"]:
            return
        kept: list[dict[str, Any]] = []
        faults: list[Exception] = []
        for output in job["outputs"]:
            try:
                stored = await self._shelf.keep(job, output)
                await self._context.record_stored(job["id"], output["index"], stored)
                kept.append({**output, "stored": msgspec.to_builtins(stored)})
            except Exception as error:  # raised below, when the other outputs had their turn: their links may die soon
                faults.append(error)
        if faults:
            raise next((error for error in faults if not isinstance(error, PermanentError)), faults[0])
        await self._context.emit("job.stored", job["id"], {"outputs": kept})


def make_shelf(options: StorageOptions, context: Context) -> Shelf:
    names, max_bytes = NameTemplate(options.name), parse_size(options.max_bytes)
    if not options.is_bucket:
        return Folder((context.folder / options.path).resolve(), names, max_bytes, context)
    from .storage_s3 import Bucket  # its library is big, and an extra

    bucket, folders = options.split_bucket()
    given = {option: getattr(options, option) for option in BUCKET_OPTIONS}
    return Bucket(bucket, folders, given, names, max_bytes, context)


class Folder:
    """Keeps outputs as files of this machine."""

    def __init__(self, root: Path, names: NameTemplate, max_bytes: int, context: Context) -> None:
        self._root, self._names, self._max_bytes, self._context = root, names, max_bytes, context
        self._rooted: set[Path] = set()  # folders whose own names are on disk, up to the root

    async def keep(self, job: dict[str, Any], output: dict[str, Any]) -> Stored:
        place = Place(self._root, self._names.name(job, output["index"]))
        there = await in_thread(place.read_final)
        known = (output.get("stored") or {}).get("sha256")
        if there is not None and known in (None, there.sha256):
            return there  # from an attempt that ended before it could tell
        with Part(place, self._rooted) as part:
            await in_thread(part.open)
            try:
                await self._fill(part, job["id"], output["index"])
            except OverLimit:
                await in_thread(part.remove)
                raise
            except OutputGone as error:
                raise PermanentError(f"output {output['index']} cannot be had any more: {error}") from error
            return await in_thread(part.finish, output.get("media_type"))

    async def _fill(self, part: Part, job_id: str, index: int) -> None:
        while not part.is_whole:
            begun = part.size
            async with self._context.open_output(job_id, index, begun) as stream:
                if await in_thread(part.continue_with, stream.offset, stream.total):
                    await self._pour(stream, part, index)
                    return
            if begun == 0:
                raise HTTPError(f"output {index} came from byte {stream.offset} on, asked for from its start")
            await in_thread(part.clear)  # it was begun with another file than the one that is there now

    async def _pour(self, stream: OutputStream, part: Part, index: int) -> None:
        part.declared = stream.media_type
        check_size(index, stream.total or 0, self._max_bytes)
        came, waiting = part.size, bytearray()
        writing: asyncio.Future[None] | None = None  # hashed and written while the next bytes come
        try:
            async for piece in stream:
                waiting += piece
                came += len(piece)
                check_size(index, came, self._max_bytes)
                if len(waiting) >= WRITE_BYTES and (writing is None or writing.done() or len(waiting) >= MOST_WAITING):
                    if writing is not None:
                        await whole(writing)
                    writing, waiting = start_thread(part.take, waiting), bytearray()
        finally:  # what came before a fault need not come again
            if writing is not None:
                await whole(writing)
            await in_thread(part.take, waiting)
        if part.total is not None and part.size != part.total:
            raise HTTPError(f"output {index} ended after {part.size} of {part.total} bytes")


class OverLimit(PermanentError):
    """The output is larger than `max_bytes`."""


def check_size(index: int, size: int, max_bytes: int) -> None:
    if size > max_bytes:
        raise OverLimit(f"output {index} has more bytes than max_bytes allows ({max_bytes})")


class Place:
    """Where an output is kept. Nothing in its names is taken as it came."""

    def __init__(self, root: Path, name: Name) -> None:
        self.root, self._name = root, name
        self.folder = root.joinpath(*name.folders)
        self.part = self.folder / f".{name.stem}.part"
        self.total = self.folder / f".{name.stem}.total"  # how many bytes the part is to have

    def final(self, media_type: str) -> Path:
        return self.folder / self._name.file(EXTENSIONS.get(media_type, "bin"))

    def find_finals(self) -> list[Path]:
        return [path for path in dict.fromkeys(map(self.final, EXTENSIONS)) if path.is_file()]

    def read_final(self) -> Stored | None:
        """The output that is already here."""
        for path in self.find_finals():
            digest, size = hash_file(path)
            with path.open("rb") as file:
                media_type = find_type(file.read(HEAD_BYTES)) or TYPES_BY_EXTENSION.get(path.suffix[1:], UNKNOWN)
            return Stored(uri=path.as_uri(), bytes=size, sha256=digest.hexdigest(), media_type=media_type)
        return None


class Part:
    """An output that is not whole yet, in a file of its own that one attempt at a time may write. Its methods block."""

    def __init__(self, place: Place, rooted: set[Path]) -> None:
        self._place, self._rooted = place, rooted
        self._file = -1
        self._digest, self.size = hashlib.sha256(), 0
        self.total: int | None = None
        self.declared: str | None = None

    def open(self) -> None:
        """Take up what an earlier attempt left. RetryLater: another one is at it."""
        if not self._place.folder.is_dir():
            self._rooted.discard(self._place.folder)
            self._place.folder.mkdir(parents=True, exist_ok=True)
        self._file = os.open(self._place.part, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        self._lock()
        self._digest, self.size = hash_file(self._place.part)
        self.total = self._read_total()
        if self.total is None or self.size > self.total:
            self.clear()

    def _lock(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            is_ours = os.path.samestat(os.fstat(self._file), self._place.part.stat())
        except (BlockingIOError, FileNotFoundError):
            is_ours = False
        if not is_ours:  # held by another attempt, or finished by it meanwhile
            raise RetryLater(5, "another attempt is writing this output")

    def _read_total(self) -> int | None:
        try:
            return int(self._place.total.read_text())
        except (FileNotFoundError, ValueError):
            return None

    def __enter__(self) -> Part:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        if self._file >= 0:
            os.close(self._file)

    @property
    def is_whole(self) -> bool:
        return self.total is not None and self.size == self.total

    def continue_with(self, offset: int, total: int | None) -> bool:
        """Get ready for bytes from `offset` on; False where they do not fit what is here."""
        if offset > self.size or (offset > 0 and total != self.total):
            return False
        if offset < self.size:
            os.ftruncate(self._file, offset)
            self._digest, self.size = hash_file(self._place.part)
        self.total = total
        if total is None:
            self._place.total.unlink(missing_ok=True)
        else:
            self._place.total.write_text(str(total))
        return True

    def take(self, waiting: bytearray) -> None:
        """Write what waits and take it out: what was written once is not there to be written again, however this ends."""
        while waiting:
            count = os.pwrite(self._file, waiting, self.size)
            self._digest.update(waiting[:count])
            self.size += count
            del waiting[:count]

    def clear(self) -> None:
        """Begin anew."""
        os.ftruncate(self._file, 0)
        self._digest, self.size, self.total = hashlib.sha256(), 0, None

    def remove(self) -> None:
        self._place.part.unlink(missing_ok=True)
        self._place.total.unlink(missing_ok=True)

    def finish(self, declared: str | None) -> Stored:
        """Give the file its name, for ever: it is whole on disk before, and its name is on disk after."""
        media_type = find_type(os.pread(self._file, HEAD_BYTES, 0)) or choose_declared(declared, self.declared)
        final = self._place.final(media_type)
        os.fsync(self._file)
        os.replace(self._place.part, final)
        for other in self._place.find_finals():
            if other != final:
                other.unlink()  # damaged: its hash was not the one on record
        self._place.total.unlink(missing_ok=True)
        for folder in final.parents:
            sync_folder(folder)
            if folder == self._place.root or folder in self._rooted:
                break
        self._rooted.add(final.parent)
        return Stored(uri=final.as_uri(), bytes=self.size, sha256=self._digest.hexdigest(), media_type=media_type)


async def in_thread(work: Callable[..., T], *arguments: Any) -> T:
    """Run what blocks in a thread."""
    return await whole(start_thread(work, *arguments))


def start_thread(work: Callable[..., T], *arguments: Any) -> asyncio.Future[T]:
    return asyncio.ensure_future(asyncio.to_thread(work, *arguments))


async def whole(task: asyncio.Future[T]) -> T:
    """What came of it; cancelled, it is waited for, so that no file is closed under it."""
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait({task})
        raise


def hash_file(path: Path) -> tuple[hashlib._Hash, int]:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256")
        return digest, file.tell()


def sync_folder(path: Path) -> None:
    folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
