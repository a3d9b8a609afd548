"""Logging: one line per fact on stderr, for people on a terminal and as JSON elsewhere; secrets are masked in every line."""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any, Protocol, TextIO

import structlog
from structlog.dev import ConsoleRenderer, plain_traceback
from structlog.processors import TimeStamper, format_exc_info
from structlog.stdlib import ProcessorFormatter
from structlog.typing import EventDict, Processor, WrappedLogger

from receiver.tracing import current

QUIET, NORMAL, VERBOSE = logging.WARNING, logging.INFO, logging.DEBUG
# Whole URLs stand in their lines, or they say at INFO what our own lines say.
NOISY = ("httpx", "httpcore", "uvicorn", "sse_starlette", "asyncio", "aiosqlite")
ENCODER = json.JSONEncoder(default=str)
CONTROL = {code: "\ufffd" for code in (*range(32), *range(127, 160)) if chr(code) not in "\n\t"}


class MaskText(Protocol):
    """What is needed of a masker."""

    def mask_text(self, text: str) -> str: ...


def set_up_logs(*, level: int = NORMAL, masker: MaskText | None = None, stream: TextIO | None = None) -> None:
    """Send our lines and those of the standard library to `stream` (stderr): coloured on a terminal, JSON lines elsewhere."""
    out = stream or sys.stderr
    is_terminal = out.isatty()
    stamp = TimeStamper(fmt="%H:%M:%S", utc=False) if is_terminal else TimeStamper(fmt="iso", utc=True)
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        add_trace,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        stamp,
    ]
    finish: list[Processor] = [format_exc_info, Mask(masker, is_terminal), console() if is_terminal else render_json]
    handler = Lines(out, finish)
    handler.setFormatter(ProcessorFormatter(foreign_pre_chain=shared, processors=[ProcessorFormatter.remove_processors_meta, *finish]))
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(level)
    for name in NOISY:
        logging.getLogger(name).setLevel(max(level, logging.WARNING))
    structlog.configure(
        processors=[*shared, as_it_is],
        logger_factory=OurLogger,
        wrapper_class=structlog.make_filtering_bound_logger(level),  # what is not told costs nothing
        cache_logger_on_first_use=True,
    )


class Lines(logging.StreamHandler[TextIO]):
    """Writes every line. Our own, which are many, come as they are: as records of the standard library they would cost twice as much."""

    def __init__(self, out: TextIO, finish: Sequence[Processor]) -> None:
        super().__init__(out)
        self._finish = finish

    def tell(self, event: Any) -> None:
        self.acquire()
        try:
            for process in self._finish:
                event = process(None, "", event)
            self.stream.write(f"{event}{self.terminator}")
            self.stream.flush()
        except Exception:  # a line that cannot be written stops nobody
            self.handleError(logging.makeLogRecord({"msg": "a line of ours"}))
        finally:
            self.release()


class OurLogger:
    """Hands our lines to where those of the standard library go."""

    def __init__(self, name: str = "receiver") -> None:
        self.name = name

    def tell(self, event: EventDict) -> None:
        for handler in logging.getLogger().handlers:
            if isinstance(handler, Lines):
                handler.tell(event)

    debug = info = warning = error = critical = tell


def as_it_is(_: WrappedLogger, __: str, event: EventDict) -> tuple[tuple[EventDict], dict[str, Any]]:
    """The arguments for OurLogger."""
    return (event,), {}


def add_trace(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    """Which trace the line belongs to, where traces are kept."""
    traceparent = current.get().traceparent
    if traceparent is not None:
        _, event["trace_id"], event["span_id"], _ = traceparent.split("-")
    return event


def console() -> ConsoleRenderer:
    """For people; without colours where NO_COLOR is set."""
    return ConsoleRenderer(colors=not os.environ.get("NO_COLOR"), exception_formatter=plain_traceback, sort_keys=False, pad_event_to=24)


def render_json(_: WrappedLogger, __: str, event: EventDict) -> str:
    """What a line says first stands first."""
    first = {key: event.pop(key) for key in ("timestamp", "level", "event", "logger") if key in event}
    return ENCODER.encode({**first, **event})


class Mask:
    """Takes secrets out of everything that a line says, and for a terminal what would steer it."""

    def __init__(self, masker: MaskText | None, is_terminal: bool) -> None:
        self._mask: Callable[[str], str] = masker.mask_text if masker else str
        self._is_terminal = is_terminal

    def __call__(self, _: WrappedLogger, __: str, event: EventDict) -> EventDict:
        return event if self._is_clean(event) else {key: self._clean(value) for key, value in event.items()}

    def _is_clean(self, event: EventDict) -> bool:
        """Whether there is nothing to take out, as in nearly every line. One look at all its texts costs less than a look at each."""
        texts = []
        for value in event.values():
            if isinstance(value, str):
                texts.append(value)
            elif value is not None and not isinstance(value, int | float):
                return False
        text = "\n".join(texts)
        return not self._is_terminal and self._mask(text) == text

    def _clean(self, value: Any) -> Any:
        if not isinstance(value, str):
            if isinstance(value, dict):
                return {key: self._clean(inner) for key, inner in value.items()}
            if isinstance(value, list | tuple):
                return [self._clean(inner) for inner in value]
            if value is None or isinstance(value, bool | int | float):
                return value
        text = self._mask(str(value))
        return text.translate(CONTROL) if self._is_terminal else text
