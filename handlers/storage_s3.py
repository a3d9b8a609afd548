"""Keeps outputs in a bucket of S3 or its like: streamed in parts, without a file of ours, and never over what is there.

An output of one part is put under its name unless something is there already. A longer one goes in parts to a name of its own below
`.parts/`, because S3 says of parts only at their end whether the name was free; then the bucket copies it to its name, unless
something is there already. What a killed process leaves below `.parts/` a rule of the bucket has to remove, and so its unfinished uploads.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from datetime import timedelta
from typing import Any

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError
from obstore.store import S3Store

from receiver.handling import Context, HTTPError, OutputGone, OutputStream, PermanentError, Stored

from .storage_names import Name, NameTemplate
from .storage_shelf import check_size, start_thread, whole
from .storage_types import EXTENSIONS, HEAD_BYTES, choose_declared, find_type

PART_BYTES = 8 * 1024 * 1024
PARTS_AT_ONCE = 2
PIECE_BYTES = 1024 * 1024
PARTS = ".parts"
END_SECONDS = 10.0  # how long the bucket may take to forget an upload that is given up
RETRY_TIMEOUT = timedelta(seconds=20)  # the dispatcher tries again, later and later


class AlreadyThere(Exception):
    """Another attempt at the output was quicker."""

    def __init__(self, key: str) -> None:
        super().__init__(f"{key} is there already")
        self.key = key


class Bucket:
    """Keeps outputs as objects. Needs the rights to list, get, put and delete."""

    def __init__(
        self, bucket: str, folders: tuple[str, ...], given: dict[str, str | None], names: NameTemplate, max_bytes: int, context: Context
    ) -> None:
        self._bucket, self._folders = bucket, folders
        self._given: dict[str, Any] = {option: value for option, value in given.items() if value is not None}
        self._names, self._max_bytes, self._context = names, max_bytes, context
        self._store = self._open()

    def _open(self, media_type: str | None = None) -> S3Store:
        """The bucket, for objects of a type; what is not given comes from the environment."""
        client: dict[str, Any] = {"connect_timeout": "5s", "timeout": "10m"}
        if self._given.get("endpoint", "").startswith("http://"):
            client["allow_http"] = True
        if media_type is not None:
            client["default_content_type"] = media_type  # a copy in parts takes no type along
        retry: Any = {"max_retries": 2, "retry_timeout": RETRY_TIMEOUT}
        options: Any = {"client_options": client, "retry_config": retry, "copy_if_not_exists": "multipart", **self._given}
        return S3Store(self._bucket, **options)

    async def keep(self, job: dict[str, Any], output: dict[str, Any]) -> Stored:
        name = self._names.name(job, output["index"])
        name = name._replace(folders=(*self._folders, *name.folders))
        there = await self._find(name)
        if there is not None:
            return await self._adopt(there, output)
        try:
            return await self._upload(name, job["id"], output)
        except OutputGone as error:
            raise PermanentError(f"output {output['index']} cannot be had any more: {error}") from error
        except AlreadyThere as error:
            return await self._adopt(error.key, output)

    def _uri(self, key: str) -> str:
        return f"s3://{self._bucket}/{key}"

    async def _find(self, name: Name) -> str | None:
        """The key under which the output is, whatever its extension."""
        wanted = {make_key(name, extension) for extension in EXTENSIONS.values()}
        last = max(wanted)
        # Of names without extension the list begins before the name itself.
        after = "/".join((*name.folders, name.stem if name.has_extension else name.stem[:-1]))
        async with translated():
            async for page in obstore.list(self._store, prefix="/".join(name.folders) or None, offset=after or None):
                for found in page:
                    if found["path"] in wanted:
                        return found["path"]
                    if found["path"] > last:
                        return None
        return None

    async def _adopt(self, key: str, output: dict[str, Any]) -> Stored:
        """What is there already, as it is: from an attempt that ended before it could tell."""
        async with translated():
            found = await obstore.get_async(self._store, key)
            digest, size, head = hashlib.sha256(), 0, b""
            async for piece in found.stream():
                digest.update(piece)
                size += len(piece)
                if len(head) < HEAD_BYTES:
                    head += bytes(piece)[:HEAD_BYTES]
        known = output.get("stored") or {}
        if known.get("uri") == self._uri(key) and known.get("sha256") != digest.hexdigest():
            raise PermanentError(f"another file has taken the place of output {output['index']} at {self._uri(key)}; it is left alone")
        media_type = find_type(head[:HEAD_BYTES]) or choose_declared(found.attributes.get("Content-Type"))
        return Stored(uri=self._uri(key), bytes=size, sha256=digest.hexdigest(), media_type=media_type)

    async def _upload(self, name: Name, job_id: str, output: dict[str, Any]) -> Stored:
        async with self._context.open_output(job_id, output["index"]) as stream:
            source = Source(stream, output["index"], self._max_bytes)
            first = await source.read(PART_BYTES)
            media_type = find_type(first[:HEAD_BYTES]) or choose_declared(output.get("media_type"), stream.media_type)
            key = make_key(name, EXTENSIONS[media_type])
            if source.is_done:
                await self._put(key, first, media_type)
            else:
                await self._put_in_parts(key, name, first, source, media_type)
        return Stored(uri=self._uri(key), bytes=source.size, sha256=await source.sha256(), media_type=media_type)

    async def _put(self, key: str, body: bytes, media_type: str) -> None:
        async with translated(key):
            await obstore.put_async(self._store, key, body, attributes={"Content-Type": media_type}, mode="create", use_multipart=False)

    async def _put_in_parts(self, key: str, name: Name, first: bytes, source: Source, media_type: str) -> None:
        parts = "/".join((*self._folders, PARTS, f"{name.stem}-{secrets.token_hex(8)}"))
        try:
            await self._pour(parts, first, source)
            async with translated(key):
                await obstore.copy_async(self._open(media_type), parts, key, overwrite=False)
        finally:
            with suppress(BaseError, OSError):
                await asyncio.wait_for(obstore.delete_async(self._store, parts), END_SECONDS)

    async def _pour(self, key: str, first: bytes, source: Source) -> None:
        """All of it to `key`, or nothing: an upload that is just dropped would stay in the bucket, unseen and paid for."""
        pipe = Pipe()
        uploading = asyncio.ensure_future(
            obstore.put_async(self._store, key, pipe.read(), use_multipart=True, chunk_size=PART_BYTES, max_concurrency=PARTS_AT_ONCE)
        )
        uploading.add_done_callback(pipe.close)
        try:
            piece = first
            while piece and not uploading.done():
                await pipe.write(piece)
                piece = await source.read(PIECE_BYTES)
            await pipe.write(b"")
            async with translated():
                await asyncio.shield(uploading)
        finally:
            if not uploading.done():
                pipe.give_up()
                await asyncio.wait({uploading}, timeout=END_SECONDS)
                uploading.cancel()


class Source:
    """The bytes of an output as they come: counted, bounded and hashed, which a thread does while the next ones come."""

    def __init__(self, stream: OutputStream, index: int, max_bytes: int) -> None:
        if stream.offset:
            raise HTTPError(f"output {index} came from byte {stream.offset} on, asked for from its start")
        check_size(index, stream.total or 0, max_bytes)
        self._pieces, self._total, self._index, self._max_bytes = aiter(stream), stream.total, index, max_bytes
        self._digest, self.size, self.is_done = hashlib.sha256(), 0, False
        self._hashing: asyncio.Future[None] | None = None

    async def read(self, size: int) -> bytes:
        """At least so many bytes, fewer only at the end."""
        begun, pieces = self.size, list[bytes]()
        while self.size - begun < size and not self.is_done:
            piece = await anext(self._pieces, None)
            if piece is None:
                self._end()
            else:
                pieces.append(piece)
                self.size += len(piece)
                check_size(self._index, self.size, self._max_bytes)
        body = b"".join(pieces)
        await self._hashed()
        self._hashing = start_thread(self._digest.update, body)
        return body

    async def _hashed(self) -> None:
        if self._hashing is not None:
            await whole(self._hashing)

    async def sha256(self) -> str:
        """Of all that was read."""
        await self._hashed()
        return self._digest.hexdigest()

    def _end(self) -> None:
        if self._total is not None and self.size != self._total:
            raise HTTPError(f"output {self._index} ended after {self.size} of {self._total} bytes")
        self.is_done = True


class Pipe:
    """Bytes from our task to the library's: it reads until `b""`, or fails when we give up."""

    def __init__(self) -> None:
        self._pieces: asyncio.Queue[bytes | None] = asyncio.Queue(1)
        self._is_closed = False

    async def write(self, piece: bytes) -> None:
        if not self._is_closed:
            await self._pieces.put(piece)

    async def read(self) -> AsyncIterator[bytes]:
        while piece := await self._pieces.get():
            yield piece
        if piece is None:
            raise EOFError("given up")

    def give_up(self) -> None:
        self._drain()
        self._pieces.put_nowait(None)

    def close(self, reader: asyncio.Future[Any]) -> None:
        """Nobody reads any more: nobody who writes has to wait."""
        if not reader.cancelled():
            reader.exception()  # looked at here, for where another fault comes first nobody else does
        self._is_closed = True
        self._drain()

    def _drain(self) -> None:
        while not self._pieces.empty():
            self._pieces.get_nowait()


def make_key(name: Name, extension: str) -> str:
    return "/".join((*name.folders, name.file(extension)))


@asynccontextmanager
async def translated(key: str = "") -> AsyncIterator[None]:
    """The library's faults as ours; of its long texts the first words, which name the call and what was answered."""
    try:
        yield
    except AlreadyExistsError:
        raise AlreadyThere(key) from None
    except (BaseError, FileNotFoundError) as error:
        said = re.split(r"[<\n]", str(error), maxsplit=1)[0].strip(" :")
        raise HTTPError(f"the bucket: {said[:300]}") from None
