"""What a handler imports, and how `use = …` is resolved.

A handler is a class that is made with (options, context) and has `async def handle(self, event)`, or a plain function
`handle(event, context)`. It returns: done. It raises: tried again later. PermanentError: dead at once. RetryLater(seconds): not before.
"""

from __future__ import annotations

import asyncio
import contextvars
import importlib
import inspect
import sys
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from datetime import datetime
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol, TypeVar
from urllib.parse import urlsplit

from structlog.typing import FilteringBoundLogger

from receiver.clock import Clock, SystemClock
from receiver.config import HandlerConfig
from receiver.errors import ConfigError, Mistake, OutputGone, PermanentError, RetryLater
from receiver.model import Event, Stored
from receiver.net import AsyncClient, HTTPError, read_retry_after
from receiver.options import BadOptions, describe, did_you_mean, explain, read_options
from receiver.tracing import trace_headers
from receiver.units import parse_duration, parse_size

__all__ = [
    "BadOptions",
    "Context",
    "Event",
    "HTTPError",
    "OutputGone",
    "OutputStream",
    "PermanentError",
    "RetryLater",
    "Stored",
    "is_web_address",
    "parse_duration",
    "parse_size",
    "post",
]

CLOSE_SECONDS = 10.0
GROUP = "receiver.handlers"
MAX_ANSWER_BYTES = 64 * 1024
OURS = "callback-receiver"
T = TypeVar("T")


class OutputStream(Protocol):
    """The bytes of an output from `offset`, where the other side really began, to its end; read once."""

    offset: int
    media_type: str | None  # as the other side names it, which need not be true
    total: int | None  # bytes of the whole output, where that is known

    def __aiter__(self) -> AsyncIterator[bytes]: ...


Emit = Callable[[str, str, dict[str, Any]], Awaitable[object]]
OpenOutput = Callable[[str, int, int], AbstractAsyncContextManager[OutputStream]]
RecordStored = Callable[[str, int, Stored], Awaitable[object]]


class Context:
    """What a handler is given beside its options. One for each handler, as long as it lives.

    - `name`: the handler's own name, from the configuration.
    - `log`: a structlog logger that carries the name.
    - `http`: an httpx client that reaches public addresses only: for URLs that somebody else named (a job's input, an output).
    - `direct_http`: an httpx client without that guard: only for addresses that stand in the handler's own options, which are the
      operator's word and may be private.
    - `folder`: the folder of the configuration file; relative paths in options are relative to it.
    """

    def __init__(
        self,
        *,
        name: str,
        log: FilteringBoundLogger,
        http: AsyncClient,
        direct_http: AsyncClient,
        folder: Path,
        emit: Emit,
        open_output: OpenOutput,
        record_stored: RecordStored,
        clock: Clock | None = None,
    ) -> None:
        self.name, self.log, self.folder = name, log, folder
        self.http, self.direct_http = http, direct_http
        self._emit, self._open_output, self._record_stored = emit, open_output, record_stored
        self._clock = clock or SystemClock()
        self._loop: asyncio.AbstractEventLoop | None = None

    def now(self) -> datetime:
        """The time, in UTC."""
        return self._clock.now()

    async def emit(self, type: str, job_id: str, data: dict[str, Any] | None = None) -> None:
        """Make a follow-up event of a job, with `data` beside `job`. The same emit in a repeated attempt makes no second event."""
        await self._emit(type, job_id, data or {})

    def open_output(self, job_id: str, index: int, offset: int = 0) -> AbstractAsyncContextManager[OutputStream]:
        """The bytes of an output as a guarded stream, from `offset` where the other side can; an expired link is asked for once more."""
        return self._open_output(job_id, index, offset)

    async def record_stored(self, job_id: str, index: int, stored: Stored) -> None:
        """Tell where an output is kept: the job shows it, and the outputs route serves it. Doing it again changes nothing."""
        await self._record_stored(job_id, index, stored)

    def trace_headers(self) -> dict[str, str]:
        """`traceparent` for a call to a server of the operator's own, which goes on with the trace; empty while none is kept."""
        return trace_headers()

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """For a plain `def handle`, which runs in a thread: wait for a coroutine of the context, as in `context.run(context.emit(…))`."""
        if self._loop is None:
            coroutine.close()
            raise RuntimeError("context.run is for plain functions; await the coroutine instead")
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()


class Handler:
    """One running handler, class or function: `start`, `handle` and `close` can always be called."""

    def __init__(self, config: HandlerConfig, context: Context, made: Any, handle: Callable[..., Any], *arguments: Any) -> None:
        self.name: str = config.name
        self._context, self._made, self._handle, self._arguments = context, made, handle, arguments
        self._threads = None if _is_async(handle) else _Threads(config.name, config.concurrency)

    async def start(self) -> None:
        if self._threads is not None:
            self._context._loop = asyncio.get_running_loop()
        await self._call_optional("start")

    async def handle(self, event: Event) -> None:
        """Return: done; raise: not done."""
        if self._threads is None:
            result = self._handle(event, *self._arguments)
        else:
            result = await self._threads.run(self._handle, event, *self._arguments)
        if inspect.isawaitable(result):
            await result

    async def close(self) -> None:
        """Whatever comes of it, the others are closed, and the server ends as it should."""
        try:
            async with asyncio.timeout(CLOSE_SECONDS):
                await self._call_optional("close")
        except (Exception, SystemExit) as error:
            self._context.log.error("handler.not_closed", error=f"{type(error).__name__}: {error}", exc_info=True)

    async def _call_optional(self, name: str) -> None:
        method = getattr(self._made, name, None)
        result = method() if callable(method) else None
        if inspect.isawaitable(result):
            await result


class _Threads:
    """Runs blocking calls of one handler, each in a thread of its own, so that one which hangs takes no other's place.

    A call that was given up cannot be ended; when as many such calls still run as the handler may have at once, it gets no new one.
    Daemon threads: they do not hold up our own end.
    """

    def __init__(self, name: str, concurrency: int) -> None:
        self._name, self._concurrency, self._abandoned = name, concurrency, 0

    async def run(self, function: Callable[..., T], *arguments: Any) -> T:
        if self._abandoned >= self._concurrency:
            raise RuntimeError(f"{self._abandoned} earlier calls of this handler did not come back and still run")
        loop = asyncio.get_running_loop()
        outcome: asyncio.Future[tuple[T | None, BaseException | None]] = loop.create_future()
        context = contextvars.copy_context()

        def settle(result: tuple[T | None, BaseException | None]) -> None:
            if outcome.cancelled():
                self._abandoned -= 1
            else:
                outcome.set_result(result)

        def work() -> None:
            result: tuple[T | None, BaseException | None]
            try:
                result = context.run(function, *arguments), None
            except (Exception, SystemExit) as error:  # a stranger's fault is handed to the one who waits for it
                result = None, error
            try:
                loop.call_soon_threadsafe(settle, result)
            except RuntimeError:
                pass  # the loop is closed: nobody waits any more

        threading.Thread(target=work, name=f"handler {self._name}", daemon=True).start()
        try:
            value, error = await outcome
        except asyncio.CancelledError:
            self._abandoned += outcome.cancelled()
            raise
        if isinstance(error, SystemExit):
            raise RuntimeError("the handler tried to end the process")
        if error is not None:
            raise error
        return value  # type: ignore[return-value]


def _is_async(function: Callable[..., Any]) -> bool:
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(getattr(function, "__call__", None))  # noqa: B004


@dataclass(frozen=True)
class HandlerPlugin:
    """A configured handler: found, its options validated, not made yet."""

    config: HandlerConfig
    target: Any = field(repr=False)
    options: Any = field(repr=False)  # may hold secrets
    file: str = "receiver.toml"

    @property
    def name(self) -> str:
        return self.config.name

    def build(self, context: Context) -> Handler:
        """Make it. ConfigError where it refuses its options or cannot be made."""
        if not inspect.isclass(self.target):
            return Handler(self.config, context, self.target, self.target, context)
        make: Callable[..., Any] = self.target
        try:
            made = make(self.options, context)
        except BadOptions as error:
            raise ConfigError(explain(error, self.file, f"handlers.{self.name}.options")) from None
        except Exception as error:  # a stranger's code
            raise ConfigError([Mistake(self.file, f"handlers.{self.name}", f"cannot be made: {describe(error)}")]) from error
        return Handler(self.config, context, made, made.handle)


def load_handlers(configs: Iterable[HandlerConfig], folder: Path, file: str = "receiver.toml") -> list[HandlerPlugin]:
    """All of them, or ConfigError with the mistakes of all of them."""
    plugins: list[HandlerPlugin] = []
    mistakes: list[Mistake] = []
    for config in configs:
        try:
            plugins.append(load_handler(config, folder, file))
        except ConfigError as error:
            mistakes += error.mistakes
    if mistakes:
        raise ConfigError(mistakes)
    return plugins


def load_handler(config: HandlerConfig, folder: Path, file: str = "receiver.toml") -> HandlerPlugin:
    """Find what `use` names and validate the options; ConfigError names every mistake.

    `use` is the name of a built-in or of an entry point, or `package.module:Name`: looked for on the Python path, then in `folder`.
    """
    try:
        target = _find(config.use, folder)
    except _NotUsable as error:
        raise ConfigError([Mistake(file, f"handlers.{config.name}.use", str(error))]) from error.__cause__
    return plug_in(config, target, folder, file)


def plug_in(config: HandlerConfig, target: Any, folder: Path, file: str = "receiver.toml") -> HandlerPlugin:
    """A class or function that is at hand already, whatever `use` says; ConfigError as for one that was looked for."""
    key = f"handlers.{config.name}"
    try:
        _check_shape(target, config.use)
    except _NotUsable as error:
        raise ConfigError([Mistake(file, f"{key}.use", str(error))]) from error.__cause__
    options, mistakes = read_options(target, config.options, folder, file, f"{key}.options")
    if mistakes:
        raise ConfigError(mistakes)
    return HandlerPlugin(config, target, options, file)


class _NotUsable(Exception):
    """What `use` names cannot be used."""


def _find(use: str, folder: Path) -> Any:
    module, colon, name = use.partition(":")
    if colon and not (module and name):
        raise _NotUsable(f'"{use}" is not a name; write "package.module:Name"')
    if colon:
        return _get_attribute(_import(module, folder, ""), name)
    entry = _find_entry_point(use)
    extras = ",".join(entry.extras)
    needs = f'; it needs more packages: pip install "{entry.dist.name}[{extras}]"' if extras and entry.dist is not None else ""
    return _get_attribute(_import(entry.module, folder, needs), entry.attr)


def _find_entry_point(name: str) -> EntryPoint:
    found = entry_points(group=GROUP)
    named = [entry for entry in found if entry.name == name]
    # A built-in keeps its name, whatever else is installed.
    for entry in sorted(named, key=lambda entry: entry.dist is None or entry.dist.name != OURS):
        return entry
    known = sorted(found.names)
    hint = did_you_mean(name, known) or f"there are {', '.join(known)}"
    raise _NotUsable(f'there is no handler "{name}"; {hint}; one of your own is "module:Name"')


def _import(name: str, folder: Path, needs: str) -> ModuleType:
    where = str(folder.resolve())
    if where not in sys.path:
        sys.path.append(where)  # at the end: a user's file must not stand in for a module of Python
    importlib.invalidate_caches()
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and (name == error.name or name.startswith(f"{error.name}.")):
            raise _NotUsable(f'there is no module "{error.name}" on the Python path or in {folder}') from None
        raise _NotUsable(f'the module "{name}" cannot be imported: {describe(error)}{needs}') from error
    except Exception as error:  # a stranger's code
        raise _NotUsable(f'the module "{name}" cannot be imported: {describe(error)}') from error


def _get_attribute(module: ModuleType, path: str) -> Any:
    found: Any = module
    for name in path.split("."):
        if not hasattr(found, name):
            hint = did_you_mean(name, [known for known in vars(found) if not known.startswith("_")])
            raise _NotUsable(f'the module "{module.__name__}" has no "{path}"' + (f"; {hint}" if hint else ""))
        found = getattr(found, name)
    return found


def _check_shape(target: Any, use: str) -> None:
    """A mistake in the form is told at start, not with the first event."""
    if inspect.isclass(target):
        handle = getattr(target, "handle", None)
        if not callable(handle):
            raise _NotUsable(f'"{use}" has no `async def handle(self, event)`')
        if not _takes_two(handle):
            raise _NotUsable(f'`handle` of "{use}" must take (self, event)')
        if not _takes_two(target):
            raise _NotUsable(f'`__init__` of "{use}" must take (self, options, context)')
    elif not callable(target):
        raise _NotUsable(f'"{use}" is neither a class nor a function')
    elif not _takes_two(target):
        raise _NotUsable(f'"{use}" must take (event, context)')


def _takes_two(function: Callable[..., Any]) -> bool:
    try:
        inspect.signature(function).bind(None, None)
    except TypeError:
        return False
    except ValueError:
        return True  # written in C, without a signature to look at
    return True


async def post(client: AsyncClient, url: str, content: bytes, headers: Mapping[str, str]) -> tuple[int, bytes]:
    """One POST, redirects not followed: the HTTP code and the start of the body.

    RetryLater: a 429 or 503 says when. HTTPError: no answer.
    """
    headers = {**headers, "accept-encoding": "identity"}
    async with client.stream("POST", url, content=content, headers=headers, follow_redirects=False) as response:
        body = b""
        async for piece in response.aiter_raw():
            body += piece
            if len(body) > MAX_ANSWER_BYTES:
                break
        seconds = read_retry_after(response)
        if response.status_code in (429, 503) and seconds is not None:
            raise RetryLater(seconds, f"answered {response.status_code}, try again in {seconds:.0f} s")
        return response.status_code, body[:MAX_ANSWER_BYTES]


def is_web_address(text: str) -> bool:
    """`http://` or `https://` with a host."""
    try:
        parts = urlsplit(text)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False
