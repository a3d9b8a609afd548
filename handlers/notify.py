"""Tells people by e-mail, Discord, Telegram, Teams and a hundred more: https://appriseit.com/services/ lists them with their addresses."""

from __future__ import annotations

import difflib
import logging
import re
import threading
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
from apprise import Apprise, AppriseAsset, NotifyBase, NotifyFormat, NotifyType, OverflowMode, PersistentStoreMode
from apprise.manager_plugins import NotificationManager
from apprise.result import AppriseResultStatus, NotifyResult

from receiver.handling import BadOptions, Context, Event, HTTPError, is_web_address

SECONDS = 30.0  # for all addresses together; the library leaves behind what takes longer
LINKS = 20
TITLE_LIMIT = 200
VALUE_LIMIT = 2000
REMEMBERED = 1000  # events that some addresses have and others not yet
TITLE = "{provider} {model}: {status}"
BODY = "{error}\n{outputs}\n{job}"
FIELD = re.compile(r"\{([^{}]*)\}")
KINDS = {
    "succeeded": NotifyType.SUCCESS,
    "stored": NotifyType.SUCCESS,
    "failed": NotifyType.FAILURE,
    "expired": NotifyType.FAILURE,
    "cancelled": NotifyType.WARNING,
    "unconfirmed": NotifyType.WARNING,
}


class NotifyOptions(msgspec.Struct):
    """`urls`: addresses as Apprise writes them, which are secrets. `title` and `body`: of events about a job, with fields in braces."""

    urls: tuple[str, ...]
    title: str = TITLE
    body: str = BODY

    def __post_init__(self) -> None:
        mistakes = {} if self.urls else {"urls": "must have at least one address"}
        for index, url in enumerate(self.urls):
            if open_service(url) is None:
                mistakes[f"urls[{index}]"] = explain_address(url)
        for option, template in (("title", self.title), ("body", self.body)):
            mistake = find_mistake(template)
            if mistake:
                mistakes[option] = mistake
        if mistakes:
            raise BadOptions(mistakes)

    def __repr__(self) -> str:
        return "NotifyOptions(…)"  # the addresses are secrets


class Notify:
    """Sends one message per event to every address; when some of them did not take it, only those get it again."""

    Options = NotifyOptions

    def __init__(self, options: NotifyOptions, context: Context) -> None:
        self._title, self._body = options.title, options.body
        # A tag of ours tells in the result which address it was.
        opened = ((str(index), open_service(url, str(index))) for index, url in enumerate(options.urls))
        self._services = {tag: service for tag, service in opened if service is not None}
        self._taken: OrderedDict[str, set[str]] = OrderedDict()
        self._lock = threading.Lock()

    def handle(self, event: Event) -> None:
        with self._lock:
            taken = set(self._taken.get(event.id, ()))
        faults = list(self._send(event, taken))
        with self._lock:
            self._taken.pop(event.id, None)
            if faults and taken:
                self._taken[event.id] = taken
                while len(self._taken) > REMEMBERED:
                    self._taken.popitem(last=False)
        if faults:
            raise HTTPError("not taken by " + ", ".join(faults))

    def _send(self, event: Event, taken: set[str]) -> Iterator[str]:
        """Adds to `taken` who has it, and says who has not."""
        waiting = {tag: service for tag, service in self._services.items() if tag not in taken}
        apprised = Apprise(asset=make_asset())
        for service in waiting.values():
            apprised.add(service)
        title, body = build_message(event, self._title, self._body)
        results = apprised.notify(body=body, title=title, notify_type=kind_of(event), body_format=NotifyFormat.TEXT, timeout=SECONDS)
        by_tag = {tag: result for result in results for tag in result.tag}
        for tag, service in waiting.items():
            result = by_tag.get(tag)
            if result:
                taken.add(tag)
            else:
                yield f"urls[{tag}] ({service.service_name}{explain(result)})"


def make_asset() -> AppriseAsset:
    return AppriseAsset(storage_mode=PersistentStoreMode.MEMORY)  # else some services keep files in the home folder


def open_service(url: str, tag: str = "") -> NotifyBase | None:
    """None where Apprise does not understand the address."""
    # Their lines name addresses, and at DEBUG the secrets in them; what failed is told by what we raise.
    logging.getLogger("apprise").propagate = False
    logging.getLogger("urllib3").setLevel(logging.WARNING)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the first call imports all services, some of which use what Python will not have for ever
        service = Apprise.instantiate(url, asset=make_asset(), tag=tag)
    if service is not None:
        service.overflow_mode = OverflowMode.TRUNCATE  # one message per event
    return service


def explain_address(url: str) -> str:
    """What may be wrong, without the address."""
    scheme = url.partition("://")[0].lower()
    known = [str(schema) for schema in NotificationManager().schemas()]
    if "://" not in url or scheme in known or not re.fullmatch(r"[a-z0-9+.-]{1,20}", scheme):
        return "must be an address as on https://appriseit.com/services/"
    close = difflib.get_close_matches(scheme, known, n=1)
    return f'there is no service "{scheme}://"; ' + (f'did you mean "{close[0]}://"?' if close else "see https://appriseit.com/services/")


def kind_of(event: Event) -> NotifyType:
    if not event.type.startswith("job."):
        return NotifyType.WARNING
    return KINDS.get(event.type.removeprefix("job."), NotifyType.INFO)


def explain(result: NotifyResult | None) -> str:
    """Of what the library says, only what can hold no secret."""
    if result is None:
        return ""
    if result.status == AppriseResultStatus.TIMEOUT:
        return ", no answer in time"
    codes = (re.search(r"\berror=(\d{3})\b", entry.message) for entry in result.logs())
    return next((f", answered {code[1]}" for code in codes if code), "")


def build_message(event: Event, title: str, body: str) -> tuple[str, str]:
    job = event.data.get("job")
    if not job:
        facts = (
            f"{name}: {value if isinstance(value, str) else msgspec.json.encode(value).decode()}" for name, value in event.data.items()
        )
        return event.type, "\n".join(tame(fact) for fact in facts) or event.type
    values = {field: tame(say(event, job)) for field, say in SAY.items()}
    values |= {f"metadata.{key}": tame(str(value)) for key, value in (job.get("metadata") or {}).items()}
    head = " ".join(fill(title, values).split())[:TITLE_LIMIT]
    return re.sub(r"\s+(?=:)", "", head) or event.type, fill(body, values) or event.type


def fill(template: str, values: dict[str, str]) -> str:
    """A line whose fields are all empty is left out."""
    lines = []
    for line in template.split("\n"):
        said = [values.get(field, "") for field in FIELD.findall(line)]
        if any(said) or not said:
            lines.append(FIELD.sub(lambda field: values.get(field[1], ""), line))
    return "\n".join(lines).strip()


def find_mistake(template: str) -> str | None:
    for field in FIELD.findall(template):
        if field not in SAY and not re.fullmatch(r"metadata\..+", field):
            close = difflib.get_close_matches(field, SAY, n=1)
            there_are = ", ".join(f"{{{known}}}" for known in (*SAY, "metadata.KEY"))
            return f"there is no {{{field}}}; " + (f"did you mean {{{close[0]}}}?" if close else f"there are {there_are}")
    if not template.strip():
        return "must say something"
    return "has a brace without its other one" if re.search(r"[{}]", FIELD.sub("", template)) else None


def tame(text: str) -> str:
    """Somebody else's words: nothing that steers a terminal, nobody called who is not asked for."""
    plain = re.sub(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]", " ", text[:VALUE_LIMIT])
    return re.sub(r"@(?=everyone|here|channel|all\b)", "@\u200b", plain)


def _word(event: Event, job: dict[str, Any]) -> str:
    word = event.type.removeprefix("job.")
    return f"{word} (late)" if event.data.get("late") else word


def _error(event: Event, job: dict[str, Any]) -> str:
    error = job.get("error")
    return f"{error['code']}: {error['message']}" if error else ""


def _cost(event: Event, job: dict[str, Any]) -> str:
    return f"{job['cost']['amount']:g} {job['cost']['unit']}" if job.get("cost") else ""


def _outputs(event: Event, job: dict[str, Any]) -> str:
    outputs = event.data.get("outputs") or job.get("outputs") or []
    links = [link for link in map(_link, outputs) if link]
    more = [f"… and {len(links) - LINKS} more"] if len(links) > LINKS else []
    return "\n".join(links[:LINKS] + more)


def _link(output: dict[str, Any]) -> str:
    url = output.get("url") or ""
    return url if is_web_address(url) else str((output.get("stored") or {}).get("uri", ""))


def _plain(field: str) -> Callable[[Event, dict[str, Any]], str]:
    return lambda event, job: str(job.get(field) or "")


# What a field of a template says.
SAY: dict[str, Callable[[Event, dict[str, Any]], str]] = {
    "type": lambda event, job: event.type,
    "status": _word,
    "job": lambda event, job: str(job["id"]),
    "error": _error,
    "outputs": _outputs,
    "cost": _cost,
    **{field: _plain(field) for field in ("provider", "model", "media", "operation", "remote_id")},
}
