"""Keeps outputs as files of this machine: each in a part of its own until it is whole and on disk, then under its name.

The network is read while a thread hashes and writes what came before; both let go of the interpreter for that. Each step into a
thread costs as much as reading some hundred KiB, so there are few: one to begin, one for each large piece, one to end. The large
pieces of all outputs take turns in one thread, which is faster than the loop reads: several would only fight with the loop, and with
each other, for the interpreter and the processor.
"""

from __future__ import annotations

import asyncio
import fcntl
import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any

from receiver.handling import Context, HTTPError, OutputGone, OutputStream, PermanentError, RetryLater, Stored

from .storage_names import Name, NameTemplate
from .storage_shelf import OverLimit, check_size, in_thread, whole
from .storage_types import EXTENSIONS, HEAD_BYTES, TYPES_BY_EXTENSION, UNKNOWN, choose_declared, find_type

WRITE_BYTES = 512 * 1024  # collected before a thread takes them
MOST_WAITING = 1024 * 1024  # while it does
MOST_PIECES = 1024  # in one call of the system
FLUSH_BYTES = 8 * 1024 * 1024  # written before the disk is told to begin: it works while the rest comes, not only at the end


class Folder:
    """A folder, and what is below it."""

    def __init__(self, root: Path, names: NameTemplate, max_bytes: int, context: Context) -> None:
        self._root, self._names, self._max_bytes, self._context = root, names, max_bytes, context
        self._rooted: set[Path] = set()  # folders whose own names are on disk, up to the root
        self._taker = ThreadPoolExecutor(1, "storage")

    async def keep(self, job: dict[str, Any], output: dict[str, Any]) -> Stored:
        place = Place(self._root, self._names.name(job, output["index"]))
        known = (output.get("stored") or {}).get("sha256")
        with Part(place, self._rooted) as part:
            there = await in_thread(part.open, known)
            if there is not None:
                return there
            try:
                await self._fill(part, job["id"], output["index"])
            except OverLimit:
                await in_thread(part.remove)
                raise
            except OutputGone as error:
                await in_thread(part.remove)
                raise PermanentError(f"output {output['index']} cannot be had any more: {error}") from error
            return await in_thread(part.finish, output.get("media_type"))

    async def _fill(self, part: Part, job_id: str, index: int) -> None:
        while not part.is_whole:
            begun = part.size
            async with self._context.open_output(job_id, index, begun) as stream:
                if part.fits(stream.offset, stream.total):
                    if stream.offset < part.size:
                        await in_thread(part.cut, stream.offset)
                    part.total, part.declared = stream.total, stream.media_type
                    await self._pour(stream, part, index)
                    return
            if begun == 0:
                raise HTTPError(f"output {index} came from byte {stream.offset} on, asked for from its start")
            await in_thread(part.clear)  # it was begun with another file than the one that is there now

    async def _pour(self, stream: OutputStream, part: Part, index: int) -> None:
        """All of it into the part. What waits at the end is written when the part is finished."""
        check_size(index, stream.total or 0, self._max_bytes)
        writing: asyncio.Future[None] | None = None  # hashed and written while the next bytes come
        has_come = False
        try:
            async for piece in stream:
                part.add(piece)
                check_size(index, part.came, self._max_bytes)
                if part.waiting_bytes >= WRITE_BYTES and (writing is None or writing.done() or part.waiting_bytes >= MOST_WAITING):
                    if writing is not None:
                        await whole(writing)
                    writing = asyncio.get_running_loop().run_in_executor(self._taker, part.take, part.hand_over())
            has_come = part.total is None or part.came == part.total
        finally:
            if writing is not None:
                await whole(writing)
            if not has_come:  # what came before a fault need not come again
                await in_thread(part.take, part.hand_over())
        if not has_come:
            raise HTTPError(f"output {index} ended after {part.came} of {part.total} bytes")


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
        """A question for each extension, as cheap as can be: a listing would grow with the folder."""
        folder = str(self.folder)
        names = dict.fromkeys(self._name.file(extension) for extension in EXTENSIONS.values())
        found = [self.folder / name for name in names if os.access(f"{folder}/{name}", os.F_OK)]
        return [path for path in found if path.is_file()]

    def read_final(self) -> Stored | None:
        """The output that is already here."""
        for path in self.find_finals():
            digest, size = hash_file(path)
            with path.open("rb") as file:
                media_type = find_type(file.read(HEAD_BYTES)) or TYPES_BY_EXTENSION.get(path.suffix[1:], UNKNOWN)
            return Stored(uri=path.as_uri(), bytes=size, sha256=digest.hexdigest(), media_type=media_type)
        return None


class Part:
    """An output that is not whole yet, in a file of its own that one attempt at a time may write.

    `size` bytes of `total` are in the file, `came` with those that still wait. What waits is added and handed over on the loop; the
    other methods block, one of them at a time.
    """

    def __init__(self, place: Place, rooted: set[Path]) -> None:
        self._place, self._rooted = place, rooted
        self._file = -1
        self._digest, self.size = hashlib.sha256(), 0
        self._waiting: list[bytes] = []
        self.waiting_bytes = 0
        self.came = 0
        self._flushed = 0  # bytes that the disk was told to begin with
        self.total: int | None = None
        self._noted: int | None = None  # the total as it stands beside the part
        self.declared: str | None = None
        self._is_replacing = False

    def open(self, known: str | None) -> Stored | None:
        """What is there already, if its hash is the one that is known; else None, with what an earlier attempt left taken up.

        RetryLater: another one is at it.
        """
        there = self._place.read_final()
        if there is not None and known in (None, there.sha256):
            return there  # from an attempt that ended before it could tell
        self._is_replacing = there is not None  # damaged: its hash is not the one on record
        if not self._place.folder.is_dir():
            self._rooted.discard(self._place.folder)
            self._place.folder.mkdir(parents=True, exist_ok=True)
        self._file = os.open(self._place.part, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        self._lock()
        self._noted = self.total = self._read_total()
        if os.fstat(self._file).st_size:
            self._hash()
        if self.total is None or self.size > self.total:
            self.clear()
        return None

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
        except FileNotFoundError:
            return None
        except ValueError:  # cut off with the power
            self._place.total.unlink()
            return None

    def _hash(self) -> None:
        self._digest, self.size = hash_file(self._place.part)
        self.came = self._flushed = self.size

    def __enter__(self) -> Part:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        if self._file >= 0:
            os.close(self._file)

    @property
    def is_whole(self) -> bool:
        return self.total is not None and self.size == self.total

    def fits(self, offset: int, total: int | None) -> bool:
        """Whether bytes from `offset` on, of so many, go on with what is here."""
        return offset == 0 or (offset <= self.size and total == self.total)

    def cut(self, offset: int) -> None:
        """Forget what is beyond."""
        os.ftruncate(self._file, offset)
        self._hash()

    def add(self, piece: bytes) -> None:
        self._waiting.append(piece)
        self.waiting_bytes += len(piece)
        self.came += len(piece)

    def hand_over(self) -> list[bytes]:
        """What waits, for `take`."""
        pieces, self._waiting, self.waiting_bytes = self._waiting, [], 0
        return pieces

    def take(self, pieces: list[bytes]) -> None:
        """Hash and write what came next, of an output of which more is to come."""
        self._note_total()
        self._write(pieces)
        if self.size - self._flushed >= FLUSH_BYTES:
            begin_flush(self._file, self._flushed, self.size - self._flushed)
            self._flushed = self.size

    def _note_total(self) -> None:
        """Beside the part, before its bytes: whoever takes it up has to know when it is whole. Without it, it is begun anew."""
        if self.total == self._noted:
            return
        if self.total is None:
            self._place.total.unlink(missing_ok=True)
        else:
            self._place.total.write_text(str(self.total))
        self._noted = self.total

    def _write(self, pieces: list[bytes]) -> None:
        for piece in pieces:
            self._digest.update(piece)
        views = [memoryview(piece) for piece in pieces]
        while views:
            count = os.pwritev(self._file, views[:MOST_PIECES], self.size)
            self.size += count
            while views and count >= len(views[0]):
                count -= len(views.pop(0))
            if count:
                views[0] = views[0][count:]

    def clear(self) -> None:
        """Begin anew."""
        os.ftruncate(self._file, 0)
        self._digest, self.size, self.total = hashlib.sha256(), 0, None
        self.came = self._flushed = 0

    def remove(self) -> None:
        self._place.part.unlink(missing_ok=True)
        self._place.total.unlink(missing_ok=True)

    def finish(self, declared: str | None) -> Stored:
        """Write the last of it and give the file its name, for ever: it is whole on disk before, and its name is on disk after."""
        if self._noted is not None:
            self._note_total()
        self._write(self.hand_over())
        media_type = find_type(os.pread(self._file, HEAD_BYTES, 0)) or choose_declared(declared, self.declared)
        final = self._place.final(media_type)
        os.fsync(self._file)
        os.replace(self._place.part, final)
        for other in self._place.find_finals() if self._is_replacing else ():
            if other != final:
                other.unlink()
        if self._noted is not None:
            self._place.total.unlink(missing_ok=True)
        for folder in final.parents:
            sync_folder(folder)
            if folder == self._place.root or folder in self._rooted:
                break
        self._rooted.add(final.parent)
        return Stored(uri=final.as_uri(), bytes=self.size, sha256=self._digest.hexdigest(), media_type=media_type)


def hash_file(path: Path) -> tuple[hashlib._Hash, int]:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256")
        return digest, file.tell()


def begin_flush(file: int, offset: int, size: int) -> None:
    """Let the disk begin, and do not wait: Linux writes out what it is told that nobody needs. macOS has no such call."""
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(file, offset, size, os.POSIX_FADV_DONTNEED)


def sync_folder(path: Path) -> None:
    folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
