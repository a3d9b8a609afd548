"""Whether traces are sent, and where to: the standard environment says it.

Asked for by `OTEL_EXPORTER_OTLP_ENDPOINT` (or `…_TRACES_ENDPOINT`), or `OTEL_TRACES_EXPORTER=otlp`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

from receiver.errors import ConfigError, Mistake
from receiver.tracing import OFF, Tracing

ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")


@asynccontextmanager
async def open_tracing(environ: Mapping[str, str]) -> AsyncIterator[Tracing]:
    """On where the environment asks for it; what is left over is sent at the end, for a few seconds. ConfigError."""
    if not is_wanted(environ):
        yield OFF
        return
    mistakes = find_mistakes(environ)
    if mistakes:
        raise ConfigError(mistakes)
    try:
        from receiver.otlp import Otlp  # big, and an extra
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] not in ("opentelemetry", "google", "requests"):
            raise
        asked = next(name for name in ("OTEL_TRACES_EXPORTER", *ENDPOINTS) if environ.get(name))
        detail = 'traces need more packages: pip install "callback-receiver[otel]"; or set OTEL_TRACES_EXPORTER=none to send none'
        raise ConfigError([Mistake("", asked, detail)]) from error
    tracing = Otlp()
    try:
        yield tracing
    finally:
        await tracing.close()


def is_wanted(environ: Mapping[str, str]) -> bool:
    exporter = environ.get("OTEL_TRACES_EXPORTER", "").strip()
    if environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true" or exporter == "none":
        return False
    return bool(exporter) or any(environ.get(name) for name in ENDPOINTS)


def find_mistakes(environ: Mapping[str, str]) -> list[Mistake]:
    mistakes = []
    exporter = environ.get("OTEL_TRACES_EXPORTER", "").strip()
    if exporter not in ("", "otlp"):
        mistakes.append(Mistake("", "OTEL_TRACES_EXPORTER", f"is {exporter!r}; traces go out as otlp, or none do"))
    for name in ENDPOINTS:
        if environ.get(name) and not environ[name].startswith(("http://", "https://")):
            mistakes.append(Mistake("", name, "must be an address that begins with http:// or https://"))
    protocols = [name for name in PROTOCOLS if environ.get(name)]
    if protocols and environ[protocols[0]] != "http/protobuf":
        mistakes.append(Mistake("", protocols[0], f"is {environ[protocols[0]]!r}; only http/protobuf is spoken"))
    return mistakes
