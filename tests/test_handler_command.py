from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path

import pytest

from receiver.config import HandlerConfig
from receiver.errors import ConfigError
from receiver.handling import RetryLater, load_handler
from receiver.model import Status
from tests.factories import make_event, make_job, make_output
from tests.handler_kit import open_desk

WAIT = 10.0


@pytest.fixture
async def desk(tmp_path):
    async with open_desk(tmp_path, "tool") as opened:
        yield opened


def event():
    return make_event(make_job(status=Status.SUCCEEDED, outputs=(make_output(),), metadata={"user": "Zoë"}))


def python(code: str, *arguments: str) -> list[str]:
    return [sys.executable, "-c", code, *arguments]


async def run(desk, argv: list[str], given=None) -> None:
    await asyncio.wait_for(desk.make("command", argv=argv).handle(given or event()), WAIT)


def is_alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


async def until(condition) -> None:
    async with asyncio.timeout(WAIT):
        while not condition():
            await asyncio.sleep(0)


async def test_the_event_is_on_standard_input_and_no_shell_reads_the_arguments(desk, tmp_path):
    given = event()
    code = "import sys, json; json.dump([json.load(sys.stdin), sys.argv[1:]], open('seen.json', 'w'))"
    await run(desk, python(code, "$HOME; touch evil", "*"), given)
    assert json.loads((tmp_path / "seen.json").read_text()) == [given.envelope(), ["$HOME; touch evil", "*"]]
    assert not (tmp_path / "evil").exists()


async def test_it_finds_what_the_event_is_in_its_environment_and_nothing_of_ours(desk, tmp_path, monkeypatch):
    monkeypatch.setenv("PIXAZO_API_KEY", "hidden")
    given = event()
    await run(desk, python("import os, json; json.dump(dict(os.environ), open('env.json', 'w'))"), given)
    seen = json.loads((tmp_path / "env.json").read_text())
    assert {name: value for name, value in seen.items() if name.startswith("RECEIVER_")} == {
        "RECEIVER_HANDLER": "tool",
        "RECEIVER_EVENT_ID": given.id,
        "RECEIVER_EVENT_TYPE": "job.succeeded",
        "RECEIVER_JOB_ID": given.subject,
    }
    assert seen["PATH"] == os.environ["PATH"]
    assert "hidden" not in seen.values()


async def test_a_program_that_reads_nothing_of_a_large_event_is_done(desk):
    job = make_job(metadata={str(index): "x" * 256 for index in range(16)})
    large = make_event(job, data={"job": job.public(), "more": "x" * 2_000_000})
    await run(desk, ["true"], large)


async def test_75_asks_to_be_tried_again_later(desk):
    with pytest.raises(RetryLater, match="try me at noon") as raised:
        await run(desk, python("import sys; print('try me at noon', file=sys.stderr); sys.exit(75)"))
    assert raised.value.seconds > 0


async def test_any_other_exit_code_is_a_failure_with_the_last_line_of_standard_error(desk):
    code = "import sys; print('first\\nsecond \\x1b[31mred\\x1b[0m\\n\\n', file=sys.stderr); print('out'); sys.exit(3)"
    with pytest.raises(Exception, match=r"exit code 3: second \[31mred\[0m$"):
        await run(desk, python(code))
    with pytest.raises(Exception, match=r"exit code 1$"):
        await run(desk, ["false"])
    with pytest.raises(Exception, match=r"ended by signal 9$"):
        await run(desk, python("import os; os.kill(os.getpid(), 9)"))


async def test_however_much_it_writes_little_is_kept(desk):
    code = "import sys; [sys.stderr.write('x' * 100_000) for _ in range(200)]; print('y' * 10_000_000); sys.exit(1)"
    with pytest.raises(Exception, match=r"exit code 1: x{500}$"):
        await run(desk, python(code))


async def test_a_program_that_leaves_something_in_the_background_is_done_when_it_ends(desk, tmp_path):
    code = "import subprocess, sys; print(subprocess.Popen(['sleep', '60']).pid, file=open('pid', 'w'))"
    try:
        await run(desk, python(code))
        assert is_alive(int((tmp_path / "pid").read_text()))
    finally:
        os.kill(int((tmp_path / "pid").read_text()), 9)


@pytest.mark.parametrize("setup", ["", "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)"])
async def test_cut_off_it_ends_with_all_that_it_started(desk, tmp_path, setup):
    code = f"""{setup}
import os, subprocess, time
child = subprocess.Popen(["sleep", "60"]).pid
with open("new", "w") as file:
    file.write(f"{{os.getpid()}} {{child}}")
os.rename("new", "pids")
time.sleep(60)
"""
    task = asyncio.create_task(run(desk, python(code)))
    await until((tmp_path / "pids").exists)
    pids = [int(pid) for pid in (tmp_path / "pids").read_text().split()]
    assert all(is_alive(pid) for pid in pids)
    task.cancel()
    await asyncio.wait({task}, timeout=WAIT)
    assert task.cancelled()
    await until(lambda: not any(is_alive(pid) for pid in pids))


async def test_a_program_beside_the_configuration_can_be_named(desk, tmp_path):
    script = tmp_path / "tools/mine.sh"
    script.parent.mkdir()
    script.write_text("#!/bin/sh\nexit 7\n")
    script.chmod(0o755)
    with pytest.raises(Exception, match="exit code 7"):
        await run(desk, ["tools/mine.sh"])


async def test_no_file_stays_open(desk):
    handler = desk.make("command", argv=["true"])
    await handler.handle(event())
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        await handler.handle(event())
    assert len(os.listdir("/proc/self/fd")) <= before


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, "is missing"),
        ({"argv": []}, "must begin with a program"),
        ({"argv": [""]}, "must begin with a program"),
        ({"argv": "echo hello"}, "Expected `array`"),
        ({"argv": ["echo", "\0"]}, "NUL"),
    ],
)
def test_mistakes_in_its_options_are_told_at_start(tmp_path, options, said):
    with pytest.raises(ConfigError) as raised:
        load_handler(HandlerConfig(name="tool", use="command", options=options), tmp_path)
    (mistake,) = raised.value.mistakes
    assert mistake.key == "handlers.tool.options.argv"
    assert said in mistake.detail


@pytest.mark.parametrize("program", ["no-such-program", "./no-such-program", "receiver.toml"])
async def test_a_program_that_cannot_be_run_is_told_at_start(desk, tmp_path, program):
    (tmp_path / "receiver.toml").write_text("")
    with pytest.raises(ConfigError, match="there is no program") as raised:
        desk.make("command", argv=[program])
    assert raised.value.mistakes[0].key == "handlers.tool.options.argv"


async def test_cut_off_while_it_starts_it_ends_with_all_that_it_started(desk, tmp_path):
    code = """
import os, subprocess, time
child = subprocess.Popen(["sleep", "60"]).pid
with open("new", "w") as file:
    file.write(f"{os.getpid()} {child}")
os.rename("new", "pids")
time.sleep(60)
"""
    task = asyncio.create_task(run(desk, python(code)))
    while not children():  # started, and asyncio is still busy with it
        await asyncio.sleep(0)
    while not (tmp_path / "pids").exists():  # the loop stands still meanwhile
        pass
    task.cancel()
    await asyncio.wait({task}, timeout=WAIT)
    assert task.cancelled()
    pids = [int(pid) for pid in (tmp_path / "pids").read_text().split()]
    await until(lambda: not any(is_alive(pid) for pid in pids))


def children() -> str:
    return Path(f"/proc/self/task/{os.getpid()}/children").read_text().strip()
