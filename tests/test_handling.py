from __future__ import annotations

import asyncio
import sys
import threading
from contextvars import ContextVar
from pathlib import Path
from textwrap import dedent

import pytest
from structlog.testing import capture_logs

from receiver.config import HandlerConfig
from receiver.errors import ConfigError
from receiver.handling import PermanentError, load_handler, load_handlers
from tests.factories import make_event, make_job
from tests.handler_kit import open_desk

WAIT = 5.0
current: ContextVar[str] = ContextVar("current", default="")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The folder of a configuration file, whose modules are forgotten afterwards."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    known = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - known:
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", "")) + str(getattr(sys.modules[name], "__path__", "")):
            del sys.modules[name]


@pytest.fixture
async def desk(folder):
    async with open_desk(folder) as opened:
        yield opened


def write(folder: Path, name: str, text: str) -> None:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(dedent(text))


def config(use: str, **options) -> HandlerConfig:
    return HandlerConfig(name="mine", use=use, options=options)


def mistakes(folder: Path, use: str, /, **options) -> list[str]:
    with pytest.raises(ConfigError) as raised:
        load_handler(config(use, **options), folder)
    return [str(mistake) for mistake in raised.value.mistakes]


CLASS = """
    import msgspec
    from receiver.handling import Context, Event, PermanentError

    class Options(msgspec.Struct):
        channel: str
        size: int = 3

    class Mine:
        Options = Options

        def __init__(self, options: Options, context: Context) -> None:
            self.options, self.context, self.calls = options, context, []

        async def start(self) -> None:
            self.calls.append("start")

        async def handle(self, event: Event) -> None:
            self.calls.append(event.type)
            await self.context.emit("mine.seen", event.subject, {"channel": self.options.channel, "calls": list(self.calls)})

        async def close(self) -> None:
            raise PermanentError("nobody is held up by this")
"""


async def test_a_class_gets_its_options_and_its_context(folder, desk):
    write(folder, "kept_class.py", CLASS)
    handler = desk.make("kept_class:Mine", channel="red")
    event = make_event(make_job())
    await handler.start()
    await handler.handle(event)
    assert desk.emitted == [("mine.seen", event.subject, {"channel": "red", "calls": ["start", "job.succeeded"]})]
    with capture_logs() as told:
        await handler.close()
    assert [(line["event"], line["error"]) for line in told] == [("handler.not_closed", "PermanentError: nobody is held up by this")]


async def test_a_plain_coroutine_function_is_a_handler(folder, desk):
    write(
        folder,
        "plain.py",
        """
        async def handle(event, context):
            await context.emit("mine.seen", event.subject, {"name": context.name})
        """,
    )
    handler = desk.make("plain:handle")
    event = make_event(make_job())
    await handler.start()
    await handler.handle(event)
    await handler.close()
    assert desk.emitted == [("mine.seen", event.subject, {"name": "mine"})]


async def test_a_plain_function_runs_in_a_thread_and_can_wait_for_the_context(folder, desk):
    write(
        folder,
        "blocking.py",
        """
        import threading
        from tests.test_handling import current

        def handle(event, context):
            context.run(context.emit("mine.seen", event.subject, {"thread": threading.current_thread().name, "current": current.get()}))
        """,
    )
    handler = desk.make("blocking:handle")
    event = make_event(make_job())
    await handler.start()
    current.set("the delivery")
    await handler.handle(event)
    assert desk.emitted == [("mine.seen", event.subject, {"thread": "handler mine", "current": "the delivery"})]


async def test_waiting_for_the_context_on_the_loop_itself_is_refused(desk):
    with pytest.raises(RuntimeError, match="await the coroutine"):
        desk.context.run(desk.context.emit("mine.seen", "job_1", {}))


async def test_a_blocking_method_of_a_class_runs_in_a_thread(folder, desk):
    write(
        folder,
        "blocking_class.py",
        """
        import threading

        class Mine:
            def __init__(self, options, context):
                self.seen = []

            def handle(self, event):
                raise RuntimeError(threading.current_thread().name)
        """,
    )
    with pytest.raises(RuntimeError, match="handler mine"):
        await desk.make("blocking_class:Mine").handle(make_event())


async def test_what_a_blocking_function_raises_reaches_the_caller(folder, desk):
    write(
        folder,
        "raising.py",
        """
        from receiver.handling import PermanentError
        import sys

        def permanent(event, context):
            raise PermanentError("never")

        def stops(event, context):
            raise StopIteration

        def exits(event, context):
            sys.exit(3)
        """,
    )
    with pytest.raises(PermanentError, match="never"):
        await asyncio.wait_for(desk.make("raising:permanent").handle(make_event()), WAIT)
    with pytest.raises(RuntimeError):
        await asyncio.wait_for(desk.make("raising:stops").handle(make_event()), WAIT)
    with pytest.raises(RuntimeError, match="end the process"):
        await asyncio.wait_for(desk.make("raising:exits").handle(make_event()), WAIT)


async def test_blocking_calls_that_never_come_back_take_no_place_but_their_own(folder, desk, monkeypatch):
    gate, begun = threading.Event(), threading.Semaphore(0)
    monkeypatch.setattr(sys.modules[__name__], "held", (gate, begun), raising=False)
    write(
        folder,
        "stuck.py",
        """
        from tests import test_handling

        def handle(event, context):
            gate, begun = test_handling.held
            begun.release()
            gate.wait(30)
        """,
    )
    handler = desk.make("stuck:handle")
    calls = [asyncio.create_task(handler.handle(make_event())) for _ in range(4)]
    try:
        for _ in calls:
            assert await asyncio.to_thread(begun.acquire, timeout=WAIT)
        for call in calls:
            call.cancel()
        await asyncio.wait(calls, timeout=WAIT)
        assert all(call.cancelled() for call in calls)
        with pytest.raises(RuntimeError, match="4 earlier calls"):
            await handler.handle(make_event())
    finally:
        gate.set()
    async with asyncio.timeout(WAIT):
        while True:  # their threads end, and the handler is itself again
            try:
                await handler.handle(make_event())
                break
            except RuntimeError:
                await asyncio.sleep(0)


async def test_every_built_in_is_found_by_its_name(folder):
    options = {"slack": {"webhook_url": "https://hooks.slack.com/x"}, "webhook": {"url": "http://localhost"}, "command": {"argv": ["true"]}}
    for name in ("log", "storage", "slack", "webhook", "command"):
        plugin = load_handler(config(name, **options.get(name, {})), folder)
        assert plugin.target.__module__ == f"receiver.handlers.{name}"


async def test_a_users_own_package_called_handlers_stands_beside_the_built_ins(folder, desk):
    write(
        folder,
        "handlers/mine.py",
        """
        from handlers.words import WORD

        async def handle(event, context):
            await context.emit(WORD, "job_1", {})
        """,
    )
    write(folder, "handlers/words.py", "WORD = 'mine.seen'\n")
    write(folder, "handlers/log.py", "async def handle(event, context):\n    await context.emit('mine.logged', 'job_1', {})\n")
    write(folder, "handlers/__init__.py", "")
    for use in ("handlers.mine:handle", "handlers.log:handle"):
        await desk.make(use).handle(make_event())
    assert [name for name, _, _ in desk.emitted] == ["mine.seen", "mine.logged"]
    assert load_handler(config("log"), folder).target.__module__ == "receiver.handlers.log"


async def test_a_users_own_package_called_handlers_needs_no_init_file(folder, desk):
    write(folder, "handlers/more.py", "async def handle(event, context):\n    await context.emit('more.seen', 'job_1', {})\n")
    await desk.make("handlers.more:handle").handle(make_event())
    assert desk.emitted == [("more.seen", "job_1", {})]
    assert load_handler(config("log"), folder).target.__module__ == "receiver.handlers.log"


async def test_an_entry_point_of_another_distribution_is_found_and_takes_no_name_of_a_built_in(folder, desk):
    write(folder, "acme.py", "async def handle(event, context):\n    await context.emit('acme.seen', 'job_1', {})\n")
    write(folder, "acme-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: acme\nVersion: 1.0\n")
    write(folder, "acme-1.0.dist-info/entry_points.txt", "[receiver.handlers]\nacme = acme:handle\nlog = acme:handle\n")
    sys.path.insert(0, str(folder))
    await desk.make("acme").handle(make_event())
    assert desk.emitted == [("acme.seen", "job_1", {})]
    assert load_handler(config("log"), folder).target.__name__ == "Log"


async def test_an_entry_point_without_the_packages_of_its_extra_names_the_command_that_installs_them(folder):
    write(folder, "acme_mail.py", "import a_package_that_is_not_there\n")
    write(folder, "acme-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: acme\nVersion: 1.0\nProvides-Extra: mail\n")
    write(folder, "acme-1.0.dist-info/entry_points.txt", "[receiver.handlers]\nmail = acme_mail:handle [mail]\n")
    sys.path.insert(0, str(folder))
    (mistake,) = mistakes(folder, "mail")
    assert "a_package_that_is_not_there" in mistake
    assert 'pip install "acme[mail]"' in mistake


@pytest.mark.parametrize(
    ("use", "said"),
    [
        ("slak", 'did you mean "slack"?'),
        ("something else", "there are command, log, notify, slack, storage, webhook"),
        ("nowhere.at.all:handle", 'there is no module "nowhere"'),
        ("broken_import:handle", "No module named 'not_installed'"),
        ("broken_code:handle", "SyntaxError"),
        ("shapes:handel", 'did you mean "handle"?'),
        ("shapes:NUMBER", "neither a class nor a function"),
        ("shapes:handle", "must take (event, context)"),
        ("shapes:Empty", "has no `async def handle(self, event)`"),
        ("shapes:NoEvent", '`handle` of "shapes:NoEvent" must take (self, event)'),
        ("shapes:NoOptions", "must take (self, options, context)"),
        (":handle", "is not a name"),
        ("shapes:", "is not a name"),
    ],
)
def test_a_use_that_cannot_be_used_is_told_with_what_would_be_right(folder, use, said):
    write(folder, "broken_import.py", "import not_installed\n")
    write(folder, "broken_code.py", "def handle(:\n")
    write(
        folder,
        "shapes.py",
        """
        NUMBER = 3
        async def handle(event): ...
        class Empty: ...
        class NoEvent:
            def __init__(self, options, context): ...
            async def handle(self): ...
        class NoOptions:
            async def handle(self, event): ...
        """,
    )
    (mistake,) = mistakes(folder, use)
    assert mistake.startswith("receiver.toml: handlers.mine.use: ")
    assert said in mistake


STRICT = """
    from pathlib import Path
    from typing import Literal
    import msgspec
    from receiver.handling import BadOptions

    class Where(msgspec.Struct):
        host: str
        port: int = 1

    class Options(msgspec.Struct):
        channel: str
        size: int = 3
        mode: Literal["a", "b"] = "a"
        folder: Path = Path("x")
        where: Where | None = None
        apart: list[int] = []

        def __post_init__(self):
            if self.size > 9:
                raise BadOptions({"size": "must be at most 9", "channel": "must be short"})

    class Mine:
        Options = Options
        def __init__(self, options, context):
            self.options = options
            if options.channel == "refused":
                raise BadOptions({"channel": "is refused"})
            if options.channel == "broken":
                raise KeyError("gone")
        async def handle(self, event):
            raise ValueError(self.options)
"""


def test_all_mistakes_in_options_are_told_at_once(folder):
    write(folder, "strict.py", STRICT)
    found = mistakes(folder, "strict:Mine", chanel="red", size="3", mode="c", folder=3, where={"port": 1}, apart=[1, "x"])
    assert [mistake.split(": ", 2)[1] for mistake in found] == [
        "handlers.mine.options.chanel",
        "handlers.mine.options.channel",
        "handlers.mine.options.size",
        "handlers.mine.options.mode",
        "handlers.mine.options.folder",
        "handlers.mine.options.where",
        "handlers.mine.options.apart[1]",
    ]
    text = "\n".join(found)
    assert 'did you mean "channel"?' in text
    assert "is missing" in text
    assert "Expected `int`, got `str`" in text
    assert "Expected a path in quotes" in text
    assert "missing required field `host`" in text


def test_what_options_say_of_themselves_is_told_by_option(folder):
    write(folder, "strict.py", STRICT)
    assert mistakes(folder, "strict:Mine", channel="red", size=10) == [
        "receiver.toml: handlers.mine.options.size: must be at most 9",
        "receiver.toml: handlers.mine.options.channel: must be short",
    ]


async def test_a_relative_path_among_options_is_relative_to_the_configuration(folder, desk):
    write(folder, "strict.py", STRICT)
    plugin = load_handler(config("strict:Mine", channel="red", folder="deep/er"), folder)
    assert plugin.options.folder == folder / "deep/er"


async def test_a_handler_that_cannot_be_made_is_a_mistake_of_the_configuration(folder, desk):
    write(folder, "strict.py", STRICT)
    with pytest.raises(ConfigError, match=r"handlers\.mine\.options\.channel: is refused"):
        desk.make("strict:Mine", channel="refused")
    with pytest.raises(ConfigError, match=r"handlers\.mine: cannot be made: KeyError: 'gone'"):
        desk.make("strict:Mine", channel="broken")


async def test_without_options_of_its_own_a_handler_gets_a_plain_dict(folder, desk):
    write(folder, "loose.py", STRICT.replace("Options = Options", "").replace("options.channel", "options['channel']"))
    with pytest.raises(ValueError, match=r"\{'channel': 'red', 'any': 1\}"):
        await desk.make("loose:Mine", channel="red", any=1).handle(make_event())


def test_options_for_a_plain_function_are_told_to_do_nothing(folder):
    write(folder, "plain.py", "async def handle(event, context): ...\n")
    assert mistakes(folder, "plain:handle", channel="red") == [
        "receiver.toml: handlers.mine.options.channel: a plain function takes no options; write a class with Options"
    ]


def test_options_that_are_no_struct_or_cannot_be_read_are_told(folder):
    write(
        folder,
        "odd.py",
        """
        from __future__ import annotations
        import msgspec
        class Mine:
            Options = dict
            def __init__(self, options, context): ...
            async def handle(self, event): ...
        class Odd(Mine):
            class Options(msgspec.Struct):
                x: NotDefined
        """,
    )
    assert "is not a msgspec.Struct" in mistakes(folder, "odd:Mine")[0]
    assert "NotDefined" in mistakes(folder, "odd:Odd")[0]


def test_the_mistakes_of_all_handlers_are_told_together_and_secrets_are_not(folder):
    configs = [
        HandlerConfig(name="one", use="slak"),
        HandlerConfig(name="two", use="webhook", options={"url": "nonsense", "secrets": ["whsec_!secret!"]}),
        HandlerConfig(name="three", use="log"),
    ]
    with pytest.raises(ConfigError) as raised:
        load_handlers(configs, folder, "mine.toml")
    assert [(mistake.file, mistake.key) for mistake in raised.value.mistakes] == [
        ("mine.toml", "handlers.one.use"),
        ("mine.toml", "handlers.two.options.url"),
        ("mine.toml", "handlers.two.options.secrets[0]"),
    ]
    assert "!secret!" not in str(raised.value)
    good = {"url": "http://127.0.0.1", "secrets": ["whsec_" + "c2VjcmV0" * 4]}
    assert "c2Vj" not in repr(load_handlers([HandlerConfig(name="two", use="webhook", options=good)], folder))
