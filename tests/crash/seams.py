"""Named places at which a server of ours kills itself, as kill -9 would. They are cut in from outside: the product knows none."""

from __future__ import annotations

import functools
import importlib
import inspect
import os
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FINAL = frozenset({"job.succeeded", "job.failed", "job.cancelled", "job.expired"})


@dataclass(frozen=True)
class Seam:
    """Die when this function is called (`is_before`) or has come back. `when` looks at the result, or before it at the arguments."""

    place: str  # module:name, module:class.name
    when: Callable[[Any], Any] = lambda seen: True
    is_before: bool = False


def is_final(settlements: Any) -> bool:
    return any(event.type in FINAL for settlement in settlements for event in settlement.events)


def has_answer(settlements: Any) -> bool:
    return any(settlement.calls for settlement in settlements)


STORE = "receiver.stores.sqlite_"
MOVE = "receiver.stores.postgres_moving:Target."
SEAMS = {
    # the submit: each write, and the answer that is not written yet
    "submit.created": Seam(f"{STORE}submissions:SubmissionsPart.create_submission"),
    "submit.claimed": Seam(f"{STORE}submissions:SubmissionsPart.claim_submissions", bool),
    "submit.marked": Seam(f"{STORE}submissions:SubmissionsPart.mark_sent", bool),
    "submit.answered": Seam("receiver.submitter:Submitter._decide", is_before=True),
    "submit.settled": Seam(f"{STORE}settling:SettlingPart.settle_and_claim", lambda seen: has_answer(seen.arguments[1])),
    # a callback
    "callback.begun": Seam(f"{STORE}inbox:InboxPart.keep_and_claim", is_before=True),
    "callback.kept": Seam(f"{STORE}inbox:InboxPart.keep_and_claim"),
    "notices.claimed": Seam("receiver.settler:Settler._settle_all", is_before=True),
    # a settlement: written and not committed, committed and not told
    "settle.uncommitted": Seam(f"{STORE}settling:settle", lambda seen: any(map(is_final, seen.arguments[1]))),
    "settle.written": Seam(f"{STORE}settling:SettlingPart.settle_and_claim", lambda seen: is_final(seen.arguments[1])),
    # a poll
    "poll.claimed": Seam(f"{STORE}polls:PollsPart.claim_polls", bool),
    "poll.answered": Seam("receiver.poller:Poller._decide", is_before=True),
    # a delivery
    "delivery.claimed": Seam(f"{STORE}settling:SettlingPart.settle_and_claim", lambda seen: seen.result[1]),
    "delivery.handled": Seam("receiver.dispatcher:outcome_of"),
    "delivery.finished": Seam(f"{STORE}deliveries:DeliveriesPart.finish_deliveries"),
    # an output
    "storage.part": Seam("receiver.handlers.storage_folder:Part._write"),
    "storage.named": Seam("receiver.handlers.storage_folder:Part.finish"),
    "storage.recorded": Seam(f"{STORE}deliveries:DeliveriesPart.record_stored"),
    "storage.told": Seam(f"{STORE}deliveries:DeliveriesPart.emit"),
    # the schema
    "migration.half": Seam("receiver.stores.migrate:split_statements"),
    "migration.done": Seam("receiver.stores.migrate:_apply"),
    # a move into another database
    "move.noted": Seam("receiver.stores.moving:write_note"),
    "move.begun": Seam(f"{MOVE}begin"),
    "move.uncommitted": Seam("asyncpg.connection:Connection.copy_records_to_table", lambda seen: seen.arguments[1] == "events"),
    "move.part": Seam(f"{MOVE}take", lambda seen: seen.arguments[1].name == "notices"),
    "move.copied": Seam("receiver.stores.moving:_compare", is_before=True),
    "move.compared": Seam(f"{MOVE}finish", is_before=True),
    "move.finished": Seam(f"{MOVE}finish"),
    # the end
    "shutdown.begun": Seam("receiver.app:House._stop", is_before=True),
    "shutdown.leaving": Seam("receiver.stores.sqlite_access:Access._close_writer", is_before=True),
}


@dataclass(frozen=True)
class Seen:
    """A call that has come back."""

    arguments: tuple[Any, ...]
    result: Any

    def __bool__(self) -> bool:
        return bool(self.result)


def run(words: tuple[str, ...], seam: str, log: Path) -> None:
    """`receiver WORDS…` in this process, with its output in the log, dying at the seam if one is named."""
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    for stream in (1, 2):
        os.dup2(file, stream)
    for name in [name for name in os.environ if name.startswith("RECEIVER_")]:
        del os.environ[name]
    if seam:
        cut(SEAMS[seam])
    sys.argv = ["receiver", *words]
    from receiver.__main__ import main

    main()


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def cut(seam: Seam) -> None:
    """Put the seam in. A place that is no longer there is an error: the table would test nothing."""
    module, _, path = seam.place.partition(":")
    *owners, name = path.split(".")
    owner: Any = functools.reduce(getattr, owners, importlib.import_module(module))
    setattr(owner, name, wrap(getattr(owner, name), seam))


def wrap(function: Any, seam: Seam) -> Any:
    def begin(arguments: tuple[Any, ...]) -> None:
        if seam.is_before and seam.when(Seen(arguments, True)):
            die()

    def end(arguments: tuple[Any, ...], result: Any) -> Any:
        if not seam.is_before and seam.when(Seen(arguments, result)):
            die()
        return result

    @functools.wraps(function)
    async def wrapped(*arguments: Any, **more: Any) -> Any:
        begin(arguments)
        return end(arguments, await function(*arguments, **more))

    @functools.wraps(function)
    def wrapped_plain(*arguments: Any, **more: Any) -> Any:
        begin(arguments)
        return end(arguments, function(*arguments, **more))

    @functools.wraps(function)
    def wrapped_generator(*arguments: Any, **more: Any) -> Iterator[Any]:
        """Half way: after three of what it gives."""
        for count, item in enumerate(function(*arguments, **more)):
            if count == 3:
                die()
            yield item

    if inspect.iscoroutinefunction(function):
        return wrapped
    return wrapped_generator if inspect.isgeneratorfunction(function) else wrapped_plain
