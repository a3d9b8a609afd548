"""Keeps every output of a job in a folder or a bucket: streamed, size-capped, hashed, typed by content, whole or not there, once."""

from __future__ import annotations

import importlib.util
import re
from typing import Any

import msgspec

from receiver.handling import BadOptions, Context, Event, PermanentError, is_web_address, parse_size

from .storage_folder import Folder
from .storage_names import DEFAULT, PLAIN, NameTemplate
from .storage_shelf import Shelf

BUCKET = re.compile(r"s3://([a-z0-9][a-z0-9.-]{1,61}[a-z0-9])(?:/(.{0,200}))?")
BUCKET_LIMIT = 5 * 1024**3  # of one copy within S3: https://docs.aws.amazon.com/AmazonS3/latest/userguide/qfacts.html
BUCKET_OPTIONS = ("endpoint", "region", "access_key_id", "secret_access_key")


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
