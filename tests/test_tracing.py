"""When traces are kept, what a caller's traceparent may say, and what a log line says of it."""

import io
import json
import logging
import os
import subprocess
import sys

import pytest
import structlog

from receiver.errors import ConfigError
from receiver.logs import set_up_logs
from receiver.telemetry import open_tracing
from receiver.tracing import OFF, current, read_traceparent, trace_headers

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
COLLECTOR = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9"}


@pytest.mark.parametrize("flags", ["00", "01"])
def test_a_callers_traceparent_is_taken_as_it_is(flags):
    assert read_traceparent([f"00-{TRACE}-{SPAN}-{flags}"]) == f"00-{TRACE}-{SPAN}-{flags}"


def test_one_of_a_later_version_is_read_as_far_as_it_is_known():
    assert read_traceparent([f"cc-{TRACE}-{SPAN}-ff-what-the-future-brings"]) == f"00-{TRACE}-{SPAN}-01"


@pytest.mark.parametrize(
    "hostile",
    [
        "",
        "00",
        f"00-{'0' * 32}-{SPAN}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"ff-{TRACE}-{SPAN}-01",
        f"00-{TRACE.upper()}-{SPAN}-01",
        f"00-{TRACE}-{SPAN}-01-more",
        f"00-{TRACE}-{SPAN}-01\n",
        f"00-{TRACE}-{SPAN}",
        f"00-{TRACE}{TRACE}-{SPAN}-01",
        f"00-{'٣' * 32}-{SPAN}-01",
        f"cc-{TRACE}-{SPAN}-01-" + "x" * 5000,
        "'; DROP TABLE jobs; --",
    ],
)
def test_what_is_no_traceparent_counts_as_none(hostile):
    assert read_traceparent([hostile]) is None


def test_two_of_them_count_as_none():
    assert read_traceparent([]) is None
    assert read_traceparent([f"00-{TRACE}-{SPAN}-01"] * 2) is None


@pytest.mark.parametrize("asked", [{}, {"OTEL_TRACES_EXPORTER": "none"} | COLLECTOR, {"OTEL_SDK_DISABLED": "true"} | COLLECTOR])
async def test_it_is_off_where_the_environment_does_not_ask_for_it(asked):
    async with open_tracing(asked) as tracing:
        assert tracing is OFF
        with tracing.begin_trace("submit") as span:
            assert (span.traceparent, trace_headers()) == (None, {})


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"OTEL_TRACES_EXPORTER": "zipkin"}, "OTEL_TRACES_EXPORTER: is 'zipkin'; traces go out as otlp, or none do"),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "collector:4318"}, "must be an address that begins with http:// or https://"),
        ({"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"} | COLLECTOR, "OTEL_EXPORTER_OTLP_PROTOCOL: is 'grpc'; only http/protobuf is spoken"),
    ],
)
async def test_what_the_environment_says_wrong_is_said_at_start(asked, said):
    with pytest.raises(ConfigError) as raised:
        async with open_tracing(asked):
            pass
    assert said in str(raised.value)


async def test_without_the_extra_the_start_says_what_to_install(monkeypatch):
    monkeypatch.delitem(sys.modules, "receiver.otlp", raising=False)
    monkeypatch.setitem(sys.modules, "opentelemetry", None)
    with pytest.raises(ConfigError, match=r'pip install "callback-receiver\[otel\]"; or set OTEL_TRACES_EXPORTER=none'):
        async with open_tracing(COLLECTOR):
            pass


def test_opentelemetry_is_imported_only_where_traces_are_kept():
    code = "import sys, receiver.app, receiver.web.application; sys.exit('opentelemetry' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0


async def test_a_span_goes_on_from_the_one_that_is_on_disk(collector):
    async with open_tracing(os.environ) as tracing:
        with tracing.begin_trace("submit", f"00-{TRACE}-{SPAN}-01") as submit:
            assert submit.traceparent[3:35] == TRACE
            assert current.get() is submit
            with tracing.begin("settle", submit.traceparent) as settle:
                assert settle.traceparent[3:35] == TRACE
                assert settle.traceparent != submit.traceparent
                assert trace_headers() == {"traceparent": settle.traceparent}
        assert trace_headers() == {}
        assert tracing.begin("settle", None).traceparent is None


async def test_in_an_application_that_keeps_traces_too_its_span_comes_first(collector):
    from opentelemetry.sdk.trace import TracerProvider

    outer = TracerProvider(shutdown_on_exit=False).get_tracer("shop")
    async with open_tracing(os.environ) as tracing:
        with outer.start_as_current_span("POST /receiver/v1/jobs") as server:
            span = tracing.begin_trace("submit", f"00-{TRACE}-{SPAN}-01")
            span.end()
        assert int(span.traceparent[3:35], 16) == server.get_span_context().trace_id
    (told,) = await collector.until(lambda spans: spans)
    assert int(told.parent, 16) == server.get_span_context().span_id


async def test_a_log_line_names_the_trace_that_it_belongs_to(collector):
    root = logging.getLogger()
    handlers, level = root.handlers, root.level
    out = io.StringIO()
    try:
        async with open_tracing(os.environ) as tracing:
            set_up_logs(stream=out)
            with tracing.begin_trace("submit", f"00-{TRACE}-{SPAN}-01") as span:
                structlog.get_logger("receiver.settler").info("job.settled")
                logging.getLogger("somebody.else").warning("plain")
            structlog.get_logger("receiver.settler").info("loop.started")
    finally:
        root.handlers, root.level = handlers, level
        structlog.reset_defaults()
    first, second, last = (json.loads(line) for line in out.getvalue().splitlines() if "opentelemetry" not in line)
    assert (first["trace_id"], first["span_id"]) == (TRACE, span.traceparent[36:52])
    assert second["trace_id"] == TRACE
    assert "trace_id" not in last
