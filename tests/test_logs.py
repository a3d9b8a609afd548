"""What a log line looks like, and what never stands in one."""

import io
import json
import logging

import pytest
import structlog

from receiver.logs import NORMAL, QUIET, VERBOSE, set_up_logs
from receiver.masking import Masker

SECRET = "sk-0123456789abcdef"


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture(autouse=True)
def as_before():
    root = logging.getLogger()
    handlers, level = root.handlers, root.level
    yield
    root.handlers, root.level = handlers, level
    structlog.reset_defaults()


def lines(stream):
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_a_line_is_one_json_document_where_nobody_looks():
    out = io.StringIO()
    set_up_logs(stream=out)
    structlog.get_logger("receiver.settler").info("job.settled", job="job_1", count=2, is_late=False, error=None)
    [line] = lines(out)
    assert line.pop("timestamp").endswith("Z")
    assert line == {
        "level": "info",
        "event": "job.settled",
        "logger": "receiver.settler",
        "job": "job_1",
        "count": 2,
        "is_late": False,
        "error": None,
    }


def test_a_handler_may_log_as_the_standard_library_does():
    out = io.StringIO()
    set_up_logs(stream=out)
    structlog.get_logger("handler.mine").bind(handler="mine").info("stored %s of %d", "a.png", 3)
    [line] = lines(out)
    assert (line["event"], line["handler"]) == ("stored a.png of 3", "mine")


def test_a_logger_that_is_in_use_goes_where_the_last_set_up_says():
    log, first, second = structlog.get_logger("receiver.settler"), io.StringIO(), io.StringIO()
    set_up_logs(stream=first)
    log.info("a")
    first.close()
    set_up_logs(stream=second)
    log.info("b")
    assert [line["event"] for line in lines(second)] == ["b"]


def test_a_line_that_cannot_be_written_stops_nobody(capsys):
    class Odd:
        def __str__(self):
            raise RuntimeError("no words")

    out = io.StringIO()
    set_up_logs(stream=out)
    log = structlog.get_logger("receiver.settler")
    log.info("odd", thing=Odd())
    log.info("whole")
    assert [line["event"] for line in lines(out)] == ["whole"]
    assert "no words" in capsys.readouterr().err
    out.close()
    log.info("closed")


def test_an_exception_is_told_whole():
    out = io.StringIO()
    set_up_logs(stream=out)
    try:
        raise ValueError("broken")
    except ValueError:
        structlog.get_logger("handler.mine").exception("failed")
    [line] = lines(out)
    assert (line["level"], line["exception"].splitlines()[-1]) == ("error", "ValueError: broken")


def test_the_standard_library_logs_through_the_same_lines():
    out = io.StringIO()
    set_up_logs(stream=out)
    logging.getLogger("somebody").warning("disk %s is %d%% full", "a", 90)
    [line] = lines(out)
    assert (line["event"], line["logger"], line["level"]) == ("disk a is 90% full", "somebody", "warning")


def test_secrets_are_masked_wherever_they_stand():
    out = io.StringIO()
    set_up_logs(stream=out, masker=Masker([SECRET]))
    try:
        raise ValueError(f"key {SECRET}")
    except ValueError as error:
        log = structlog.get_logger().bind(bound={"deep": [SECRET]})
        log.error(f"failed {SECRET}", error=error, exc_info=True)
    logging.getLogger("somebody").error("said %s", SECRET)
    assert SECRET not in out.getvalue()
    assert "ValueError: key ***" in lines(out)[0]["exception"]


def test_a_secret_is_taken_out_of_the_text_it_stands_in():
    out = io.StringIO()
    set_up_logs(stream=out, masker=Masker([SECRET]))
    structlog.get_logger().info("told", job="job_1", by=f"key {SECRET}", attempt=1, reason=None)
    [line] = lines(out)
    assert (line["job"], line["by"], line["attempt"], line["reason"]) == ("job_1", "key ***", 1, None)


@pytest.mark.parametrize(("level", "said"), [(QUIET, ["warning"]), (NORMAL, ["info", "warning"]), (VERBOSE, ["debug", "info", "warning"])])
def test_the_level_says_how_much_is_told(level, said):
    out = io.StringIO()
    set_up_logs(stream=out, level=level)
    log = structlog.get_logger("receiver")
    log.debug("a")
    log.info("b")
    log.warning("c")
    assert [line["level"] for line in lines(out)] == said


@pytest.mark.parametrize("name", ["uvicorn.error", "uvicorn.access", "httpx", "httpcore.http11"])
def test_those_who_name_whole_urls_are_heard_only_when_something_is_wrong(name):
    out = io.StringIO()
    logger = logging.getLogger(name)
    logger.setLevel(logging.NOTSET)  # a server that another test ran in this process may have silenced it
    logger.propagate = True
    set_up_logs(stream=out, level=VERBOSE)
    logging.getLogger(name).info("GET /callbacks/pixazo/token")
    logging.getLogger(name).error("broken")
    assert [line["event"] for line in lines(out)] == ["broken"]


def test_a_terminal_is_told_in_colours_and_never_steered(monkeypatch):
    monkeypatch.delenv("NO_COLOR", raising=False)
    out = Terminal()
    set_up_logs(stream=out)
    structlog.get_logger().info("poll.failed", error="\x1b[2Jgone")
    assert "poll.failed" in out.getvalue()
    assert "\x1b[2J" not in out.getvalue()
    assert "\x1b[" in out.getvalue()


def test_no_color_is_honoured(monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")
    out = Terminal()
    set_up_logs(stream=out)
    structlog.get_logger().info("poll.failed", error="x")
    assert "\x1b" not in out.getvalue()


def test_what_json_does_not_know_is_told_as_text():
    out = io.StringIO()
    set_up_logs(stream=out)
    structlog.get_logger().info("odd", thing=object, surrogate="\ud800", many={1, 2})
    assert lines(out)[0]["thing"] == "<class 'object'>"
