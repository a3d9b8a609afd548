from __future__ import annotations

import pytest
from structlog.testing import capture_logs

from receiver.config import HandlerConfig
from receiver.errors import ConfigError
from receiver.handling import load_handler
from receiver.model import ErrorCode, JobError, Status
from tests.factories import make_event, make_job
from tests.handler_kit import open_desk


async def test_it_writes_one_line_per_event(tmp_path):
    error = JobError(ErrorCode.CONTENT_REJECTED, "the provider's words")
    failed = make_event(make_job(status=Status.FAILED, error=error), "job.failed")
    with capture_logs() as lines:
        async with open_desk(tmp_path, "lines") as desk:
            handler = desk.make("log")
            await handler.handle(failed)
            await handler.handle(make_event(None, "receiver.started"))
    first, second = [line for line in lines if line["event"] == "event.seen"]
    assert (first["event_type"], first["job"], first["provider"], first["status"], first["error"], first["handler"]) == (
        "job.failed",
        failed.subject,
        "elkapi",
        "failed",
        "content_rejected",
        "lines",
    )
    assert "the provider's words" not in str(lines)
    assert (second["event_type"], second["job"]) == ("receiver.started", None)


def test_it_has_no_options(tmp_path):
    with pytest.raises(ConfigError, match="there are none"):
        load_handler(HandlerConfig(name="lines", use="log", options={"level": "debug"}), tmp_path)
