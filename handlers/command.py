"""Runs a program per event: the event as JSON on its standard input, no shell."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import tempfile
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager, suppress
from typing import IO, Any

import msgspec

from receiver.handling import BadOptions, Context, Event, RetryLater

EX_TEMPFAIL = 75  # sysexits.h: "the user is invited to retry"
RETRY_SECONDS = 60.0
KEPT_BYTES = 4096  # of the end of standard error
LINE_LIMIT = 500
KILL_SECONDS = 0.5  # between SIGTERM and SIGKILL
DRAIN_SECONDS = 0.5
# Of our own environment, where secrets stand, a program gets these only.
INHERITED = ("PATH", "HOME", "LANG", "LC_ALL", "TZ", "TMPDIR")


class CommandOptions(msgspec.Struct):
    """`argv`: the program and its arguments, looked for on PATH, or relative to the folder of the configuration file."""

    argv: tuple[str, ...]

    def __post_init__(self) -> None:
        if not self.argv or not self.argv[0]:
            raise BadOptions({"argv": 'must begin with a program, as in ["prog", "arg"]'})
        if any("\0" in argument for argument in self.argv):
            raise BadOptions({"argv": "an argument cannot have a NUL character"})


class CommandFailed(Exception):
    """The program ended with an error."""


class Command:
    """Exit code 0: done. 75: tried again in a minute. Any other: tried again, with the last line of standard error as the reason.

    A program that is cut off by the timeout gets SIGTERM and soon SIGKILL, together with what it started. It finds RECEIVER_EVENT_ID,
    RECEIVER_EVENT_TYPE, RECEIVER_JOB_ID and RECEIVER_HANDLER in its environment.
    """

    Options = CommandOptions

    def __init__(self, options: CommandOptions, context: Context) -> None:
        self._argv, self._name, self._folder = options.argv, context.name, context.folder
        program = options.argv[0]
        if shutil.which(str(context.folder / program) if "/" in program else program) is None:
            raise BadOptions({"argv": f'there is no program "{program}" that can be run'})

    async def handle(self, event: Event) -> None:
        code, reason = await self._run(event)
        said = f": {reason}" if reason else ""
        if code == EX_TEMPFAIL:
            raise RetryLater(RETRY_SECONDS, f"the program asks to be tried again later{said}")
        if code != 0:
            raise CommandFailed((f"exit code {code}" if code > 0 else f"ended by signal {-code}") + said)

    async def _run(self, event: Event) -> tuple[int, str]:
        """The exit code, and the last line of standard error."""
        async with _open_tail() as (tail, stderr):
            with stderr, tempfile.TemporaryFile() as stdin:  # a pipe would have to be fed while the program runs
                stdin.write(msgspec.json.encode(event.envelope()))
                stdin.seek(0)
                starting = asyncio.create_subprocess_exec(
                    *self._argv,
                    stdin=stdin,
                    stdout=asyncio.subprocess.DEVNULL,
                    stderr=stderr,
                    cwd=self._folder,
                    env=self._environment(event),
                    start_new_session=True,
                )
                process = await _start(starting)
            try:
                code = await process.wait()
            finally:
                if process.returncode is None:
                    await _stop(process)
            return code, await tail.read_last_line()

    def _environment(self, event: Event) -> dict[str, str]:
        ours = {name: os.environ[name] for name in INHERITED if name in os.environ}
        return ours | {
            "RECEIVER_HANDLER": self._name,
            "RECEIVER_EVENT_ID": event.id,
            "RECEIVER_EVENT_TYPE": event.type,
            "RECEIVER_JOB_ID": event.subject or "",
        }


async def _start(starting: Coroutine[Any, Any, asyncio.subprocess.Process]) -> asyncio.subprocess.Process:
    """Cut off while the program starts, asyncio would end it alone and leave what it has started."""
    task = asyncio.create_task(starting)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await _stop(await task)
        raise


async def _stop(process: asyncio.subprocess.Process) -> None:
    """End the program with all that it started."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
    with suppress(TimeoutError):
        await asyncio.wait_for(process.wait(), KILL_SECONDS)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)  # also when it is gone itself: what it started may not be
    await process.wait()


class _Tail(asyncio.Protocol):
    """Keeps the end of what a program writes, however much that is."""

    def __init__(self) -> None:
        self._kept = b""
        self._is_ended = asyncio.Event()

    def data_received(self, data: bytes) -> None:
        self._kept = (self._kept + data)[-KEPT_BYTES:]

    def connection_lost(self, exc: Exception | None) -> None:
        self._is_ended.set()

    async def read_last_line(self) -> str:
        # Something that the program left running in the background may hold the pipe open.
        with suppress(TimeoutError):
            await asyncio.wait_for(self._is_ended.wait(), DRAIN_SECONDS)
        lines = self._kept.decode("utf-8", "replace").split("\n")
        line = next((line for line in reversed(lines) if line.strip()), "")
        return "".join(sign for sign in line.strip() if sign.isprintable())[:LINE_LIMIT]


@asynccontextmanager
async def _open_tail() -> AsyncIterator[tuple[_Tail, IO[bytes]]]:
    """A pipe: what is written into its one end is kept at the other."""
    # The pipe of asyncio's own would make `wait()` wait for everybody who holds it, on some versions of Python.
    read_end, write_end = os.pipe()
    stderr = os.fdopen(write_end, "wb", 0)
    with stderr:
        transport, tail = await asyncio.get_running_loop().connect_read_pipe(_Tail, os.fdopen(read_end, "rb", 0))
        try:
            yield tail, stderr
        finally:
            transport.close()
