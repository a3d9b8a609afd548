"""The shipped specs and the simulator understand each other, submit to output and callback."""

from datetime import UTC, datetime

import httpx
import pytest
from starlette.applications import Starlette
from starlette.responses import Response
from starlette.routing import Route

from receiver.config import PollingConfig, ProviderConfig
from receiver.model import Answer, Job, Status, Submission
from receiver.normalize import Accepted, read_callback, read_poll_answer, read_result_answer, read_submit_answer
from receiver.providers.account import make_account
from receiver.providers.loader import load_specs
from receiver.providers.requests import build_poll_request, build_result_request, build_submit_request, plan_submission
from receiver.providers.signatures import Keys, Presented, make_keys, prove, read_jwks
from receiver.simulator import Outcome, Scenario, Simulator, serve_simulator
from receiver.simulator.serving import serve_app

NOW = datetime(2026, 11, 21, tzinfo=UTC)
PROMPT = {"prompt": "a boat"}
CASES = [
    ("huzz", None, "kling/kling-v2.6-pro/text-to-video", PROMPT, 1, 1),
    ("elkapi", None, "flux-pro", PROMPT, 1, 1),
    ("oxen", None, "kling-video-v2-6-pro-text-to-video", {**PROMPT, "num_generations": 2}, 2, 1),
    ("pixazo", None, "hunyuan-image", {**PROMPT, "num_images": 3}, 1, 3),
    ("pixazo", None, "hunyuan3d-3-0-api-294", {"input_image_url": "https://example.org/cat.png"}, 1, 1),
    ("hoox", "asset", "veo-3.1", {**PROMPT, "type": "video", "generation_count": 2}, 2, 1),
    ("hoox", "video", None, PROMPT, 1, None),
    ("hoox", "export", None, {"video_id": "vid_1"}, 1, 1),
    ("hoox", "avatar_create", None, PROMPT, 1, None),
    ("hoox", "avatar_edit", None, {**PROMPT, "avatar_id": "avatar_1"}, 1, None),
    ("replicate", "model", "black-forest-labs/flux-schnell", {**PROMPT, "num_outputs": 2}, 1, 2),
    ("replicate", "model", "minimax/video-01", PROMPT, 1, 1),
    ("replicate", "version", "5c7d5dc6", PROMPT, 1, 1),
    ("replicate", "deployment", "acme/boats", PROMPT, 1, 1),
    ("fal", None, "fal-ai/flux/dev", {**PROMPT, "num_images": 2}, 1, 2),
    ("fal", None, "fal-ai/kling-video/v2/master/text-to-video", PROMPT, 1, 1),
    ("fal", None, "fal-ai/tripo3d", PROMPT, 1, 1),
    ("openai", None, "sora-2", PROMPT, 1, 1),
]


async def send(client, request) -> Answer:
    answer = await client.request(request.method, request.url, headers=request.headers, content=request.body)
    return Answer(status=answer.status_code, headers={k.lower(): v for k, v in answer.headers.items()}, body=answer.content)


def make_job(submission: Submission, update) -> Job:
    return Job(
        id="job_1",
        submission_id=submission.id,
        provider=submission.provider,
        operation=submission.operation,
        model=submission.model,
        media=submission.media,
        status=Status.QUEUED,
        remote_id=update.remote_id,
        polling_url=update.polling_url,
        created_at=NOW,
        updated_at=NOW,
        deadline_at=NOW,
    )


@pytest.fixture(scope="module")
def anyio_backend():
    return "asyncio"


@pytest.fixture(scope="module")
async def served(anyio_backend):
    async with serve_simulator(Simulator()) as served:
        yield served


@pytest.fixture(scope="module")
async def kept(anyio_backend):
    """Callbacks as they came; the first entry is the URL that takes them."""
    kept = []

    async def receive(request):
        kept.append((dict(request.headers), await request.body()))
        return Response()

    async with serve_app(Starlette(routes=[Route("/{path:path}", receive, methods=["POST"])])) as url:
        kept.append(url)
        yield kept


@pytest.fixture(scope="module")
def specs():
    return load_specs()


@pytest.fixture
async def client(served, kept):
    async with httpx.AsyncClient(trust_env=False, verify=False) as client:
        yield client
    del kept[1:]
    await served.simulator.reset()


@pytest.mark.parametrize("outcome", [Outcome.SUCCEEDED, Outcome.FAILED])
@pytest.mark.parametrize(("name", "operation", "model", "input", "jobs", "outputs"), CASES)
async def test_a_job_comes_home(served, client, kept, specs, name, operation, model, input, jobs, outputs, outcome):
    simulator = served.simulator
    simulator.plan(name, Scenario(seconds=0, outcome=outcome))
    config = ProviderConfig(api_key="any-key", **served.settings(name))
    account = make_account(name, config, PollingConfig(), specs[name])
    plan = plan_submission(account, model=model, input=input, operation=operation, media=None)
    submission = Submission(
        id="sub_1",
        provider=name,
        operation=plan.operation,
        model=plan.model,
        media=plan.media,
        input=input,
        count=plan.count,
        next_attempt_at=NOW,
        deadline_seconds=60,
        created_at=NOW,
    )
    url = f"{kept[0]}/callbacks/{name}/token" if account.has_callback else None
    simulator.register_webhook("openai", url)
    taken = read_submit_answer(account, submission, await send(client, build_submit_request(account, submission, url)), NOW)
    assert isinstance(taken, Accepted)
    assert len(taken.updates) == jobs
    await simulator.quiet()
    expected = Status(outcome.value)
    for update in taken.updates:
        job = make_job(submission, update)
        polled = read_poll_answer(account, job, await send(client, build_poll_request(account, job)), NOW)
        result = build_result_request(account, job)
        if polled.status is Status.SUCCEEDED and result is not None:
            polled = read_result_answer(account, job, await send(client, result), NOW)
        assert (polled.status, polled.remote_id) == (expected, update.remote_id)
        if outcome is Outcome.SUCCEEDED and outputs is not None:
            assert len(polled.outputs) == outputs
            link = polled.outputs[0].url
            key = {"authorization": "Bearer any-key"} if account.output_may_have_key(link) else {}
            assert (await client.get(link, headers=key)).status_code == 200
    final = [read_callback(account, plan.operation, headers, body) for headers, body in kept[1:]]
    if account.signature is not None:
        keys = make_keys(account.signature, account.callback_secrets)
        if account.jwks_url is not None:
            keys = Keys(public=read_jwks((await client.get(account.jwks_url)).content))
        for headers, body in kept[1:]:
            prove(account.signature, keys, Presented(headers, body), datetime.now(UTC))
    ends = {update.remote_id for update in final if update.status is expected}
    assert ends == ({update.remote_id for update in taken.updates} if account.has_callback else set())
