"""The server as a process against its own OpenAPI document, by schemathesis: nothing breaks, nothing undocumented is answered.

Wants the extra `contract`. Half of the requests are about things that exist, so that they get beyond "there is no such thing".
"""

from __future__ import annotations

import re
import time
from dataclasses import dataclass, field

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from receiver.simulator import Fault
from receiver.tokens import Tokens
from receiver.web.application import openapi_document
from receiver.web.pages_frame import static_files
from tests.cli.running import PATIENCE, running
from tests.loopback import free_port

pytest.importorskip("schemathesis", reason="wants the extra `contract`: pip install -c config/constraints.txt -e '.[test,contract]'")

import requests
import schemathesis
from schemathesis import GenerationMode
from schemathesis.specs.openapi.checks import ignored_auth, positive_data_acceptance

pytestmark = pytest.mark.long

SCHEMA = schemathesis.openapi.from_dict(openapi_document())
OPERATIONS = {found.ok().label: found.ok() for found in SCHEMA.get_all_operations()}
FOLLOW = "GET /v1/events"  # it does not end
# Not asked here: a cursor that nobody gave out fits the document, and is refused with a 400 that it tells of; and each wrong key is
# answered only after a second, so that tests/web/test_guard.py tries them.
FINE = [positive_data_acceptance, ignored_auth]
KEY = "rcv_a-key-that-may-do-everything"
SECRET = "a-secret-that-signs-the-callbacks"
WHICH = {  # what an id is about, where not any job will do; who waits for a lasting one waits for a minute
    "GET /v1/jobs/{id}": "ended",
    "DELETE /v1/jobs/{id}": "doomed",
    "POST /v1/deliveries/{id}/replay": "delivery",
    "POST /v1/notices/{id}/settle": "notice",
}
FINAL = {"succeeded", "failed", "cancelled", "expired"}
RECEIVER = """
[server]
port = {port}
public_url = "http://127.0.0.1:{port}"
probe_public_url = false
secrets = ["{SECRET}"]
api_keys = ["{KEY}"]
[network]
allow_private = ["127.0.0.0/8"]
[polling]
interval = "0.2s"
overdue_after = "0.3s"
[providers.elkapi]
api_key = "key-of-elkapi"
base_url = "{simulator}/elkapi"
rate_limit = "100000/m"
submit_timeout = "1s"
submit_attempts = 1
[[handlers]]
name = "archive"
use = "storage"
events = ["job.succeeded"]
[[handlers]]
name = "broken"
use = "command"
events = ["job.failed"]
retry = {{attempts = 1}}
[handlers.options]
argv = ["false"]
"""


@dataclass
class Lived:
    """A server to which something has happened: what there is, for the paths."""

    url: str
    api: httpx.Client
    things: dict[str, list[str]] = field(default_factory=dict)  # by path parameter

    def submit(self, words: str, **more):
        """The submission's jobs; `words` say to the simulator what is to happen."""
        body = {"provider": "elkapi", "model": "flux", "input": {"prompt": f"a moose [sim: seconds=0.1 {words}]"}, **more}
        answer = self.api.post("/v1/jobs", json=body)
        assert answer.status_code == 202, answer.text
        return answer.json()["jobs"]

    def look(self, path: str, **params):
        answer = self.api.get(path, params=params)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def real(self, label: str) -> st.SearchStrategy[dict[str, str]]:
        """For each parameter of the path something that exists."""
        names = re.findall(r"\{(\w+)\}", label)
        return st.fixed_dictionaries({name: st.sampled_from(self.things[WHICH.get(label, name)]) for name in names})


def until(condition, what: str):
    ends_at = time.monotonic() + PATIENCE
    while not (found := condition()):
        assert time.monotonic() < ends_at, what
        time.sleep(0.05)
    return found


@pytest.fixture(scope="module")
def lived(tmp_path_factory):
    folder = tmp_path_factory.mktemp("contract")
    with running(folder, "simulate", "--port", 0, "--json") as simulator:
        port, at = free_port(), simulator.line('"url"').split('"')[3]
        (folder / "receiver.toml").write_text(RECEIVER.format(port=port, simulator=at, KEY=KEY, SECRET=SECRET))
        with running(folder, "serve") as server:
            url = server.line().removeprefix("Receiver listens on ")
            with httpx.Client(base_url=url, headers={"Authorization": f"Bearer {KEY}"}, timeout=PATIENCE, trust_env=False) as api:
                yield live(Lived(url, api))


def live(lived: Lived) -> Lived:
    """One job of every sort, with a dead delivery, a notice that cannot be read, and a stored file."""
    lasting = lived.submit("stuck")
    doubtful = lived.submit(Fault.SUBMIT_GARBLED + " " + Fault.LOST)
    ended = [*lived.submit(""), *lived.submit("failed"), *lived.submit(Fault.GARBLED), *lived.submit(Fault.REFUSED)]
    until(lambda: all(lived.look(f"/v1/jobs/{job['id']}")["status"] in FINAL for job in ended), "they never ended")
    until(lambda: "stored" in lived.look(f"/v1/jobs/{ended[0]['id']}")["outputs"][0], "nothing was stored")
    doomed = lived.submit(Fault.REFUSED)
    dead = until(lambda: lived.look("/v1/deliveries", state="dead")["deliveries"], "no delivery died")
    unread = until(lambda: lived.look("/v1/notices", outcome="unreadable")["notices"], "every notice could be read")
    assert lived.look(f"/v1/jobs/{doubtful[0]['id']}")["status"] == "unconfirmed"
    lived.things = {
        "id": [job["id"] for job in (*ended, *lasting, *doubtful)],
        "ended": [job["id"] for job in ended],
        "doomed": [job["id"] for job in (*doomed, *lasting)],
        "delivery": [row["id"] for row in (*dead, *lived.look("/v1/deliveries")["deliveries"])],
        "notice": [row["id"] for row in (*unread, *lived.look("/v1/notices")["notices"])],
        "index": ["0"],
        "provider": ["elkapi"],
        "token": [Tokens([SECRET]).make("elkapi", lasting[0]["submission_id"])],
        "name": sorted(static_files()),
    }
    return lived


def test_what_is_served_is_what_is_tried(lived: Lived):
    assert lived.look("/openapi.json") == openapi_document()


def has_rules(told: dict) -> bool:
    """Whether a request can be wrong at all."""
    return bool(told["security"] or "requestBody" in told or any(each["in"] != "path" for each in told["parameters"]))


MODES = [
    (label, mode)
    for label, operation in OPERATIONS.items()
    for mode in GenerationMode
    if mode.is_positive or has_rules(operation.definition.raw)
]


@pytest.mark.parametrize(("label", "mode"), MODES, ids=str)
def test_whatever_is_asked_the_answer_is_documented(lived: Lived, label: str, mode: GenerationMode):
    operation = OPERATIONS[label]

    @settings(max_examples=30, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
    @given(case=operation.as_strategy(mode), is_real=st.booleans(), things=lived.real(label))
    def ask(case, is_real, things):
        if is_real:
            case.path_parameters = things
        if is_real and mode.is_positive and label == "POST /v1/jobs":
            case.headers.pop("Idempotency-Key", None)
            case.body |= {"provider": "elkapi", "model": "flux", "operation": None, "input": case.body["input"] | {"prompt": "a moose"}}
        check(lived, case, is_stream=label == FOLLOW)

    ask()


def check(lived: Lived, case, *, is_stream: bool) -> None:
    headers = {"Authorization": f"Bearer {KEY}"}
    with requests.Session() as session:
        session.trust_env = False
        if not is_stream:
            case.call_and_validate(lived.url, session, headers, excluded_checks=FINE, timeout=PATIENCE, allow_redirects=False)
            return
        answer = session.request(**case.as_transport_kwargs(lived.url, headers), stream=True, timeout=PATIENCE)
        if answer.status_code == 200:
            assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
            assert next(answer.iter_lines()) == b": connected"
            answer.close()
        else:
            case.validate_response(answer, excluded_checks=FINE)
