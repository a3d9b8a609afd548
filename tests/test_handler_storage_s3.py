"""Outputs in a bucket, over HTTP: a server of S3 in a thread stands for the bucket's side."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from receiver.config import HandlerConfig
from receiver.errors import ConfigError
from receiver.handling import HTTPError, OutputGone, PermanentError, load_handler
from tests.factories import make_output, make_stored
from tests.handler_kit import open_desk
from tests.loopback import Seen, free_port, response, serve
from tests.web.opened import open_web

pytestmark = pytest.mark.long

pytest.importorskip("obstore")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import boto3
    from moto.server import ThreadedMotoServer

MIB = 1024 * 1024
PNG = b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 4000  # about 1 MB: one part
CLIP = b"\0\0\0\x18ftypisom" + bytes(range(256)) * 80_000  # about 20 MB: three parts
KEYS = {"region": "us-east-1", "access_key_id": "any", "secret_access_key": "s3cret"}
WAIT = 30.0
ROOT = Path(__file__).resolve().parents[1]


class Bucket:
    """The bucket as somebody else sees it."""

    def __init__(self, url: str, name: str) -> None:
        self.url, self.name = url, name
        self._client = boto3.client(
            "s3", endpoint_url=url, region_name="us-east-1", aws_access_key_id="any", aws_secret_access_key="s3cret"
        )
        self._client.create_bucket(Bucket=name)

    def options(self, path: str = "") -> dict[str, str]:
        return {"path": f"s3://{self.name}{path}", "endpoint": self.url, **KEYS}

    def keys(self) -> list[str]:
        return [found["Key"] for found in self._client.list_objects_v2(Bucket=self.name).get("Contents", [])]

    def unfinished(self) -> list[str]:
        return [found["Key"] for found in self._client.list_multipart_uploads(Bucket=self.name).get("Uploads", [])]

    def read(self, key: str) -> tuple[bytes, str]:
        found = self._client.get_object(Bucket=self.name, Key=key)
        return found["Body"].read(), found["ContentType"]

    def write(self, key: str, body: bytes) -> None:
        self._client.put_object(Bucket=self.name, Key=key, Body=body)


@pytest.fixture(scope="module")
def server():
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    served = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    served.start()
    yield "http://{}:{}".format(*served.get_host_and_port())
    served.stop()


@pytest.fixture
def bucket(server, request):
    return Bucket(server, "b" + hashlib.sha256(request.node.name.encode()).hexdigest()[:20])


@pytest.fixture
async def desk(tmp_path):
    async with open_desk(tmp_path, "archive") as opened:
        yield opened


def host(files: dict[str, bytes], *, tells_total: bool = True, cut: int | None = None):
    """A host of files; `cut` ends every answer after so many bytes."""

    async def talk(seen: Seen, writer: asyncio.StreamWriter) -> None:
        body = files.get(seen.target.strip("/"))
        head = response(404) if body is None else response(200, content_length=str(len(body)), connection="close")
        if not tells_total and body is not None:
            head = head.replace(f"content-length: {len(body)}\r\n".encode(), b"")
        writer.write(head + (body or b"")[:cut])
        await writer.drain()
        writer.close()

    return talk


async def test_outputs_of_one_part_and_of_several_are_kept_hashed_and_typed(desk, bucket):
    async with serve(host({"a": PNG, "b": CLIP})) as peer:
        event = desk.succeed(f"{peer.url}/a", f"{peer.url}/b", media_type="text/plain")
        await desk.make("storage", **bucket.options("/kept/here/")).handle(event)
    folder = "kept/here/elkapi/2026-07-01"
    keys = [f"{folder}/{event.subject}-0.png", f"{folder}/{event.subject}-1.mp4"]
    assert bucket.keys() == keys
    assert [bucket.read(key) for key in keys] == [(PNG, "image/png"), (CLIP, "video/mp4")]
    assert bucket.unfinished() == []
    for (_, index, stored), body, key in zip(desk.stored, (PNG, CLIP), keys, strict=True):
        assert stored.uri == f"s3://{bucket.name}/{key}"
        assert (stored.bytes, stored.sha256) == (len(body), hashlib.sha256(body).hexdigest())
        assert desk.emitted[0][2]["outputs"][index]["stored"]["uri"] == stored.uri
    assert desk.emitted[0][0] == "job.stored"


@pytest.mark.parametrize("body", [PNG, CLIP, b""], ids=["one part", "three parts", "nothing"])
async def test_what_an_attempt_kept_before_it_could_tell_is_found_without_the_provider(desk, bucket, body):
    handler = desk.make("storage", **bucket.options())
    async with serve(host({"a": body})) as peer:
        event = desk.succeed(f"{peer.url}/a")
        await handler.handle(event)
    await handler.handle(event)  # the host is away: asked, it would not answer
    first, again = desk.stored
    assert first == again
    assert len(desk.opened) == 1
    assert len(bucket.keys()) == 1


async def test_a_name_without_extension_is_found_again(desk, bucket):
    handler = desk.make("storage", name="{job}/{index}", **bucket.options())
    async with serve(host({"a": PNG})) as peer:
        event = desk.succeed(f"{peer.url}/a")
        await handler.handle(event)
    await handler.handle(event)
    assert desk.stored[0] == desk.stored[1]
    assert desk.stored[0][2].media_type == "image/png"
    assert bucket.keys() == [f"{event.subject}/0"]


@pytest.mark.parametrize("body", [PNG, CLIP], ids=["one part", "three parts"])
async def test_of_two_attempts_at_once_the_first_one_to_end_is_kept_and_both_tell_of_it(desk, bucket, body):
    other = body[:20] + b"another one" + body[20:]
    second_may_end = asyncio.Event()
    bodies = [body, other]

    async def talk(seen: Seen, writer: asyncio.StreamWriter) -> None:
        mine = bodies.pop()
        writer.write(response(200, content_length=str(len(mine)), connection="close") + mine[:100])
        if mine is other:
            await second_may_end.wait()
        writer.write(mine[100:])
        await writer.drain()
        writer.close()

    async with serve(talk) as peer:
        event = desk.succeed(f"{peer.url}/a")
        slow = asyncio.create_task(desk.make("storage", **bucket.options()).handle(event))
        while len(desk.opened) < 1 or len(bodies) == 2:
            await asyncio.sleep(0.001)
        await asyncio.wait_for(desk.make("storage", **bucket.options()).handle(event), WAIT)
        second_may_end.set()
        await asyncio.wait_for(slow, WAIT)
    (key,) = bucket.keys()
    assert bucket.read(key)[0] == body
    assert [stored.sha256 for _, _, stored in desk.stored] == [hashlib.sha256(body).hexdigest()] * 2


async def test_a_file_that_took_the_place_of_a_kept_one_is_left_alone_and_told(desk, bucket):
    handler = desk.make("storage", **bucket.options())
    async with serve(host({"a": PNG})) as peer:
        event = desk.succeed(f"{peer.url}/a")
        await handler.handle(event)
        stored = desk.stored[0][2]
        key = stored.uri.removeprefix(f"s3://{bucket.name}/")
        bucket.write(key, b"somebody else's")
        event.data["job"]["outputs"][0]["stored"] = {"uri": stored.uri, "sha256": stored.sha256}
        with pytest.raises(PermanentError, match="another file"):
            await handler.handle(event)
    assert bucket.read(key)[0] == b"somebody else's"


@pytest.mark.parametrize("cut", [1000, 10 * MIB], ids=["in the first part", "later"])
async def test_what_was_cut_off_leaves_nothing_behind_and_comes_whole_the_next_time(desk, bucket, cut):
    handler = desk.make("storage", **bucket.options())
    async with serve(host({"a": CLIP}, cut=cut)) as peer:
        with pytest.raises(HTTPError):
            await handler.handle(desk.succeed(f"{peer.url}/a"))
    assert (bucket.keys(), bucket.unfinished(), desk.stored) == ([], [], [])
    async with serve(host({"a": CLIP})) as peer:
        await handler.handle(desk.succeed(f"{peer.url}/a"))
    assert len(bucket.keys()) == 1


@pytest.mark.parametrize("tells_total", [True, False])
async def test_an_output_over_the_limit_is_dead_at_once_and_leaves_nothing(desk, bucket, tells_total):
    async with serve(host({"a": CLIP}, tells_total=tells_total)) as peer:
        with pytest.raises(PermanentError, match="max_bytes"):
            await desk.make("storage", max_bytes="12MiB", **bucket.options()).handle(desk.succeed(f"{peer.url}/a"))
    assert (bucket.keys(), bucket.unfinished(), desk.stored) == ([], [], [])


async def test_an_output_that_is_gone_is_dead_at_once(desk, bucket):
    async with serve(host({})) as peer:
        with pytest.raises(PermanentError, match="cannot be had any more") as raised:
            await desk.make("storage", **bucket.options()).handle(desk.succeed(f"{peer.url}/a"))
    assert isinstance(raised.value.__cause__, OutputGone)


async def test_a_cancelled_upload_is_forgotten_by_the_bucket(desk, bucket):
    async def talk(seen: Seen, writer: asyncio.StreamWriter) -> None:
        writer.write(response(200, content_length=str(len(CLIP))) + CLIP[: 17 * MIB])
        await writer.drain()
        await asyncio.Event().wait()

    async with serve(talk) as peer:
        task = asyncio.create_task(desk.make("storage", **bucket.options()).handle(desk.succeed(f"{peer.url}/a")))
        async with asyncio.timeout(WAIT):
            while not await asyncio.to_thread(bucket.unfinished):
                await asyncio.sleep(0.01)
        task.cancel()
        await asyncio.wait({task}, timeout=WAIT)
        assert task.cancelled()
    assert (bucket.keys(), bucket.unfinished()) == ([], [])


KEEPER = """
import asyncio, re, sys
from pathlib import Path
from tests.handler_kit import open_desk

def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024

async def main(url, folder, path, endpoint):
    async with open_desk(Path(folder)) as desk:
        keys = {"region": "us-east-1", "access_key_id": "any", "secret_access_key": "s3cret"}
        handler = desk.make("storage", path=path, endpoint=endpoint, **keys)
        await handler.handle(desk.succeed(f"{url}/short"))
        before = peak()
        await handler.handle(desk.succeed(f"{url}/long"))
        print([stored.bytes for _, _, stored in desk.stored], peak() - before)

asyncio.run(main(*sys.argv[1:]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
async def test_memory_stays_flat_however_long_the_output_is(tmp_path, bucket):
    sizes, piece = {"/short": MIB, "/long": 96 * MIB}, bytes(MIB)

    async def talk(seen: Seen, writer: asyncio.StreamWriter) -> None:
        writer.write(response(200, content_length=str(sizes[seen.target]), connection="close"))
        for _ in range(sizes[seen.target] // MIB):
            writer.write(piece)
            await writer.drain()
        writer.close()

    async with serve(talk) as peer:
        keeper = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", KEEPER, peer.url, str(tmp_path), f"s3://{bucket.name}", bucket.url), cwd=ROOT, stdout=subprocess.PIPE
        )
        said, _ = await asyncio.wait_for(keeper.communicate(), 2 * WAIT)
    kept, _, growth = said.decode().strip().rpartition(" ")
    assert kept == str(list(sizes.values()))
    assert int(growth) < 64 * MIB


async def test_a_bucket_that_is_away_or_missing_is_a_passing_fault_and_its_key_is_not_told(desk, server):
    gone = f"http://127.0.0.1:{free_port()}"
    async with serve(host({"a": PNG})) as peer:
        event = desk.succeed(f"{peer.url}/a")
        for path, endpoint in (("s3://missing", server), ("s3://away", gone)):
            with pytest.raises(HTTPError, match="the bucket: ") as raised:
                await desk.make("storage", path=path, endpoint=endpoint, **KEYS).handle(event)
            assert "s3cret" not in str(raised.value)
            assert "\n" not in str(raised.value)


async def test_what_is_in_a_bucket_is_led_to_at_the_provider(tmp_path):
    async with open_web(tmp_path) as web:
        job = await web.succeed(outputs=[make_output(url="https://cdn.example.com/a.png")])
        stored = make_stored(uri="s3://bucket/a.png")
        assert await web.services.store.record_stored(job.id, 0, stored, web.services.clock.now())
        answer = await web.client.get(f"/v1/jobs/{job.id}/outputs/0")
    assert (answer.status_code, answer.headers["location"]) == (307, "https://cdn.example.com/a.png")


def load(folder, **options):
    return load_handler(HandlerConfig(name="archive", use="storage", options=options), folder)


def test_its_key_does_not_show(tmp_path):
    assert "s3cret" not in repr(load(tmp_path, path="s3://bucket", **KEYS).options)


@pytest.mark.parametrize(
    ("options", "key", "said"),
    [
        ({"path": "gs://bucket"}, "path", '"gs://" is not supported'),
        ({"path": "s3://"}, "path", 'must be "s3://BUCKET/PREFIX"'),
        ({"path": "s3://B/x"}, "path", 'must be "s3://BUCKET/PREFIX"'),
        ({"path": "s3://bucket/../up"}, "path", 'begins with "."'),
        ({"path": "s3://bucket/a//b"}, "path", "empty"),
        ({"path": "s3://bucket/ä"}, "path", "letters other than"),
        ({"path": "s3://bucket", "endpoint": "minio:9000"}, "endpoint", "begins with http"),
        ({"path": "s3://bucket", "access_key_id": "a"}, "secret_access_key", "give both or none"),
        ({"path": "s3://bucket", "secret_access_key": "a"}, "access_key_id", "give both or none"),
        ({"path": "s3://bucket", "max_bytes": "6GiB"}, "max_bytes", "at most 5GiB"),
        ({"path": "outputs", "region": "eu-central-1"}, "region", "only for a path like"),
        ({"path": "s3://bucket", "bucket": "a"}, "bucket", "no such option"),
    ],
)
def test_mistakes_in_its_options_are_told_at_start(tmp_path, options, key, said):
    with pytest.raises(ConfigError) as raised:
        load(tmp_path, **options)
    (mistake,) = raised.value.mistakes
    assert mistake.key == f"handlers.archive.options.{key}"
    assert said in mistake.detail


def test_what_is_to_be_installed_is_told_where_it_is_not():
    code = """
import sys
from importlib.machinery import PathFinder
find = PathFinder.find_spec
PathFinder.find_spec = classmethod(lambda cls, name, *more: None if name == "obstore" else find(name, *more))
from receiver.handlers.storage import StorageOptions
StorageOptions(path="outputs")
try:
    StorageOptions(path="s3://bucket")
except ValueError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert 'pip install "callback-receiver[s3]"' in done.stdout
    assert done.stderr == ""


def test_a_folder_needs_nothing_of_it():
    code = "import sys, receiver.handlers.storage; assert 'obstore' not in sys.modules"
    with contextlib.chdir("/"):
        assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0
